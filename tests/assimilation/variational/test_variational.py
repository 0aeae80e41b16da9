"""3D-Var and 4D-Var, against closed forms, the exact smoother, and their own gradients."""

import pytest
import torch

from slams.assimilation.variational.fourdvar import FourDVar, ThreeDVar
from slams.assimilation.variational.minimize import gauss_newton, lbfgs
from slams.assimilation.variational.window import WindowProblem, weak_constraint
from slams.core.covariance import Dense, Isotropic
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity, Pointwise, Select
from slams.observation.survey import Survey
from slams.systems import LinearGaussian, Lorenz63, Lorenz96

DOUBLE = torch.float64


def spd(size, rng, scale=1.0):
    A = torch.randn(size, size, generator=rng, dtype=DOUBLE)
    return scale * (A @ A.mT / size + 0.3 * torch.eye(size, dtype=DOUBLE))


def system(rng, noise=0.2):
    """4 variables, neither stable nor symmetric."""
    transition = torch.randn(4, 4, generator=rng, dtype=DOUBLE)
    transition = 1.02 * transition / torch.linalg.eigvals(transition).abs().max()
    Q = spd(4, rng, noise) if noise else torch.zeros(4, 4, dtype=DOUBLE)
    return LinearGaussian(transition, Q, torch.randn(4, generator=rng, dtype=DOUBLE), spd(4, rng))


def seen(model, steps, rng, replicates=3):
    truth = model.trajectory(model.initial(replicates, rng=rng), steps - 1, rng=rng)
    survey = Survey(Select(torch.tensor([0, 2, 3]), event=1), Dense(spd(3, rng)), missing=0.3)
    return survey.observe(truth, rng=rng)


@pytest.mark.parametrize("solver", ["direct", "cg"])
@pytest.mark.parametrize("noise", [0.2, 0.0])
def test_one_window_is_the_exact_smoother(solver, noise, rng):
    """Weak constraint with exact B, Q, R; strong constraint where Q = 0. Mean and variance, values missing."""
    model = system(rng, noise)
    observations = seen(model, 9, rng)
    exact = model.smoother(observations)
    done = weak_constraint(
        model.start.mean, model.start.cov, model.noise_cov, model, observations, solver=solver
    )
    torch.testing.assert_close(done.states, exact.mean, rtol=0, atol=1e-6)
    torch.testing.assert_close(done.covariance, exact.cov, rtol=0, atol=1e-9)


def test_as_a_method_one_window_is_the_exact_smoother(rng):
    """The cycle, its delay and its output in order: a run of one window."""
    model = system(rng)
    observations = seen(model, 6, rng)
    exact = model.smoother(observations)
    method = FourDVar(model, model.start.cov, window=6, model_error="model")
    x0 = model.start.mean.expand(3, 1, 4)
    posterior = method.assimilate(observations, 1, x0=x0, keep="moments")
    torch.testing.assert_close(posterior.mean, exact.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(posterior.variance, exact.cov.diagonal(dim1=-2, dim2=-1), rtol=0, atol=1e-9)


def test_windows_follow_one_another_from_the_forecast_of_the_last(rng):
    """Two and a half windows of three steps = three separate smoothers chained by hand."""
    model = system(rng)
    observations = seen(model, 8, rng)
    B = spd(4, rng)
    x0 = model.start.mean.expand(3, 1, 4)
    method = FourDVar(model, B, window=3, model_error=model.noise_cov)
    posterior = method.assimilate(observations, 1, x0=x0, keep="moments")
    x, o = model.start.mean.expand(3, 4), observations["observation"]
    for first in (0, 3, 6):
        part = Observations({"y": Observation(o.value[:, first : first + 3], o.operator, o.noise)})
        done = weak_constraint(x, B, model.noise_cov, model, part)
        torch.testing.assert_close(posterior.mean[:, first : first + 3], done.states, rtol=0, atol=1e-10)
        x = model.mean(done.states[:, -1])


@pytest.mark.parametrize("solver", ["direct", "cg"])
def test_a_window_in_which_nothing_was_seen_is_the_forecast(solver):
    """Windows of one step, every third observed: the others only carry the analysis on."""
    model = Lorenz63(dt=0.02, dtype=DOUBLE)
    truth = model.trajectory(model.initial(2, rng=torch.Generator().manual_seed(3)), 7)
    survey = Survey(Identity(), Isotropic(1.0), every=3, start=3)
    observations = survey.observe(truth, rng=torch.Generator().manual_seed(4))
    method = FourDVar(model, torch.eye(3, dtype=DOUBLE), window=1, solver=solver)
    post = method.assimilate(observations, 4, keep="moments", rng=torch.Generator().manual_seed(5))
    for k in (1, 2, 4, 5, 7):
        torch.testing.assert_close(post.mean[:, k], model(post.mean[:, k - 1]), rtol=0, atol=1e-12)
    assert (post.mean[:, 3] - model(post.mean[:, 2])).abs().amax() > 1e-3


def test_a_window_killed_in_its_middle_goes_on_bit_for_bit(tmp_path):
    """A save at step 4 of windows of 3; the resumed run ends with the same bits."""
    model = Lorenz63(dt=0.05, dtype=DOUBLE)

    def run(path, stop=None):
        rng = torch.Generator().manual_seed(3)
        truth = model.trajectory(model.initial(2, rng=rng), 9)
        observations = Survey(Identity(1), 2.0).observe(truth, rng=rng)

        def progress(k):
            if k == stop:
                raise KeyboardInterrupt

        method = FourDVar(model, torch.eye(3, dtype=DOUBLE), window=3)
        return method.assimilate(
            observations, 2, checkpoint=path, every=5, progress=progress, rng=torch.Generator().manual_seed(1)
        )

    whole = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", stop=5)
    assert torch.equal(run(tmp_path / "killed").samples, whole.samples)


@pytest.mark.parametrize("error", [None, 0.01])
def test_gradient_of_the_cost(error, rng):
    """J(c + e p) - J(c) - e p.g falls as e^2: slope 2 of its Taylor remainder, over three decades."""
    model = Lorenz96(8, dtype=DOUBLE)
    truth = model.trajectory(model.initial(rng=rng), 60)[-6:]
    observations = Survey(Pointwise("arctan"), 0.1).observe(truth, rng=rng)
    eye = torch.eye(8, dtype=DOUBLE)
    parts = [observations.step(k) for k in range(6)]
    problem = WindowProblem(model, parts, truth[0] + 0.3, eye, None if error is None else error * eye)
    c = torch.randn(1, problem.size, generator=rng, dtype=DOUBLE).requires_grad_()
    p = torch.randn(problem.size, generator=rng, dtype=DOUBLE)
    J = problem.cost(c)
    (g,) = torch.autograd.grad(J.sum(), c)
    e = torch.logspace(-5, -2, 7, dtype=DOUBLE)
    remainder = (problem.cost(c + e[:, None] * p) - J - e * (g @ p)).abs().log()
    slope = torch.diff(remainder) / torch.diff(e.log())
    torch.testing.assert_close(slope, torch.full_like(slope, 2.0), rtol=0, atol=0.05)


@pytest.mark.parametrize("solver", ["direct", "cg"])
def test_the_incremental_minimum_is_that_of_the_full_cost(solver, rng):
    """The gradient of the non-linear cost vanishes where the sequence of linear problems ends."""
    model = Lorenz63(dt=0.05, dtype=DOUBLE)
    truth = model.trajectory(model.initial(4, rng=rng), 8)
    observations = Survey(Identity(1), 1.0).observe(truth, rng=rng)
    parts = [observations.step(k) for k in range(9)]
    background = truth[:, 0] + 0.5
    eye = torch.eye(3, dtype=DOUBLE)
    problem = WindowProblem(model, parts, background, eye, 0.01 * eye)
    c = gauss_newton(problem.residual, problem.origin(), iterations=25, solver=solver).control
    c = c.unsqueeze(-2).requires_grad_()
    J = problem.cost(c)
    (g,) = torch.autograd.grad(J.sum(), c)
    assert (problem.cost(torch.zeros_like(c)) > J).all()
    assert g.abs().max() < 1e-5


@pytest.mark.parametrize("variance, controls", [(0.0, 1), (1.0, 3), (2.0, 3)])
def test_a_model_error_is_a_control_of_every_step_unless_it_is_zero(variance, controls):
    model = LinearGaussian(torch.eye(1), torch.eye(1), torch.zeros(1), torch.eye(1))
    error = torch.full((1, 1), variance)
    assert WindowProblem(model, [None] * 3, torch.zeros(1, 1), torch.eye(1), error).size == controls


@pytest.mark.parametrize("solver", ["direct", "cg"])
def test_a_linear_residual_needs_one_step(solver, rng):
    """Known by the residual at its end, not by a second step that does not move."""
    G, y = torch.randn(5, 3, generator=rng, dtype=DOUBLE), torch.randn(2, 1, 5, generator=rng, dtype=DOUBLE)
    done = gauss_newton(lambda c: y - c @ G.mT, torch.zeros(2, 3, dtype=DOUBLE), solver=solver)
    exact = torch.linalg.solve(G.mT @ G + torch.eye(3, dtype=DOUBLE), G.mT @ y.mT)[..., 0]
    torch.testing.assert_close(done.control, exact, rtol=0, atol=1e-10)
    J = (exact.square().sum(-1) + (y[:, 0] - exact @ G.mT).square().sum(-1)) / 2
    torch.testing.assert_close(done.cost, J, rtol=0, atol=1e-10)
    assert done.iterations == 1


def test_steps_only_go_downhill():
    """From the far side of a steep valley the full step overshoots; each replicate still ends in its minimum."""
    start = torch.tensor([[-3.0], [3.0], [0.1]], dtype=DOUBLE)
    done = gauss_newton(lambda c: 10 * torch.arctan(3 * (c - 1)), start, iterations=60)
    c = done.control.requires_grad_()
    J = (c**2 + (10 * torch.arctan(3 * (c - 1))) ** 2).sum() / 2
    assert torch.autograd.grad(J, c)[0].abs().max() < 1e-5
    assert (done.cost <= (start**2 + (10 * torch.arctan(3 * (start - 1))) ** 2).sum(-1) / 2).all()


def test_three_d_var_is_the_linear_formula(rng):
    """x_f + B H^T (H B H^T + R)^-1 (y - H x_f), with (I - K H) B, B scaled and the forecast by the model."""
    model, C, R, index = system(rng, 0.0), spd(4, rng), spd(2, rng), torch.tensor([1, 2])
    value = torch.randn(2, 2, 2, generator=rng, dtype=DOUBLE)
    observations = Observations({"y": Observation(value, Select(index, event=1), Dense(R))})
    x0 = torch.randn(2, 1, 4, generator=rng, dtype=DOUBLE)
    posterior = ThreeDVar(model, C, scale=0.3).assimilate(observations, 1, x0=x0, keep="moments")
    B, H = 0.3 * C, torch.eye(4, dtype=DOUBLE)[index]
    K = B @ H.T @ torch.linalg.inv(H @ B @ H.T + R)
    x = x0[:, 0]
    for k in range(2):
        x = x if k == 0 else model.mean(x)
        x = x + (value[:, k] - x @ H.T) @ K.T
        torch.testing.assert_close(posterior.mean[:, k], x, rtol=0, atol=1e-12)
        variance = (B - K @ H @ B).diagonal().expand(2, 4)
        torch.testing.assert_close(posterior.variance[:, k], variance, rtol=0, atol=1e-12)


def test_three_d_var_finds_the_minimum_of_a_nonlinear_cost(rng):
    """Gradient of the cost at the analysis is zero for h = arctan, against autograd."""
    model, B = Lorenz96(5, dtype=DOUBLE), spd(5, rng)
    x = torch.randn(3, 1, 5, generator=rng, dtype=DOUBLE)
    observation = Observation(
        torch.randn(3, 5, generator=rng, dtype=DOUBLE), Pointwise("arctan"), Isotropic(0.2)
    )
    z = ThreeDVar(model, B, iterations=60).analyse(x, observation).squeeze(1).requires_grad_()
    background = ((z - x[:, 0]) @ torch.linalg.inv(B) * (z - x[:, 0])).sum() / 2
    (g,) = torch.autograd.grad(background - observation.log_likelihood(z).sum(), z)
    assert g.abs().max() < 1e-5


def test_settings_that_cannot_be_are_refused():
    model = Lorenz63(dtype=DOUBLE)
    for wrong in (
        torch.tensor([[2.0, 0.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]),
        torch.eye(3) * torch.inf,
    ):
        with pytest.raises(ValueError, match="finite and symmetric"):
            ThreeDVar(model, wrong)
    with pytest.raises(ValueError, match="window and iterations at least 1"):
        FourDVar(model, torch.eye(3), window=0)
    with pytest.raises(ValueError, match='"model", which needs a model with noise'):
        FourDVar(model, torch.eye(3), window=3, model_error="model")
    with pytest.raises(ValueError, match="scale must be positive"):
        ThreeDVar(model, torch.eye(3), scale=-1.0)


def test_lbfgs_learns_nothing_from_negative_curvature():
    """cos x near its maximum: to the minimum on the same side, not to one far away by an inverse Hessian of any size."""
    start = torch.tensor([[0.1], [-0.2], [1e-3]], dtype=DOUBLE)
    found = lbfgs(lambda x: (x.cos()[:, 0], -x.sin()), start, iterations=60)
    torch.testing.assert_close(found, torch.pi * start.sign(), rtol=0, atol=1e-6)


def test_lbfgs_minimises_each_row_on_its_own():
    """Rosenbrock's valley and a quadratic, together and alone: the same bits, and the minimum at 1."""
    scale = torch.tensor([100.0, 1.0], dtype=torch.float64)

    def objective(x, scale=scale):
        value = scale * (x[:, 1] - x[:, 0] ** 2) ** 2 + (1 - x[:, 0]) ** 2
        away = 2 * scale * (x[:, 1] - x[:, 0] ** 2)
        return value, torch.stack([-2 * away * x[:, 0] - 2 * (1 - x[:, 0]), away], -1)

    start = torch.tensor([[-1.2, 1.0], [3.0, -1.0]], dtype=torch.float64)
    found = lbfgs(objective, start, iterations=80)
    torch.testing.assert_close(found, torch.ones_like(found), rtol=0, atol=1e-6)
    for i in range(2):
        alone = lbfgs(lambda x, i=i: objective(x, scale[i : i + 1]), start[i : i + 1], iterations=80)
        torch.testing.assert_close(alone[0], found[i], rtol=0, atol=1e-9)
