"""Laws of the ensemble Kalman smoothers: exact smoother, filter at lag 0, one another where all is linear."""

import pytest
import torch

from slams.assimilation.ensemble.kalman import ETKF, EnKF
from slams.assimilation.ensemble.smoother import EnKS, IEnKS, annealing_step, gauss_newton_step
from slams.assimilation.filter import Filter
from slams.assimilation.memory import Memory
from slams.core.covariance import Isotropic
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Pointwise, Select
from slams.observation.survey import Survey
from slams.systems.linear import LinearGaussian
from slams.systems.lorenz import Lorenz63

DOUBLE = torch.float64
VARIANTS = ("enkf", "etkf")


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear_system(noise: float, size: int = 3) -> LinearGaussian:
    """A slowly growing and turning system."""
    angle = torch.tensor(0.5, dtype=DOUBLE)
    transition = 1.02 * torch.eye(size, dtype=DOUBLE)
    transition[:2, :2] = torch.tensor([[angle.cos(), angle.sin()], [-angle.sin(), angle.cos()]], dtype=DOUBLE)
    transition[0, -1] = 0.3
    eye = torch.eye(size, dtype=DOUBLE)
    return LinearGaussian(transition, noise * eye, torch.zeros(size, dtype=DOUBLE), eye)


def seen(system: LinearGaussian, steps: int, missing: float = 0.0, batch: int = 1) -> Observations:
    """One truth, the same for all replicates; two of three variables."""
    rng = generator(1)
    truth = system.trajectory(system.initial(rng=rng), steps - 1, rng=rng)
    o = Survey(Select(torch.tensor([0, 2]), 1), 0.4, missing=missing).observe(truth, rng=rng)["observation"]
    value = o.value.expand(batch, *o.value.shape)
    return Observations({"y": Observation(value, o.operator, o.noise)})


def one(observations: Observations) -> Observations:
    """Without the replicates."""
    o = observations["y"]
    return Observations({"y": Observation(o.value[0], o.operator, o.noise)})


def exact_ensemble(system: LinearGaussian, size: int, seed: int) -> torch.Tensor:
    """Members whose mean and covariance are those of the start, (1, N, d)."""
    draw = torch.randn(size, system.size, generator=generator(seed), dtype=DOUBLE)
    draw = draw - draw.mean(0)
    root = torch.linalg.cholesky(draw.mT @ draw / (size - 1))
    white = torch.linalg.solve_triangular(root, draw.mT, upper=False).mT
    return (system.start.mean + white @ torch.linalg.cholesky(system.start.cov).mT)[None]


def run(method: Filter, observations: Observations, size: int, seed: int = 2, **settings) -> torch.Tensor:
    return method.assimilate(observations, size, rng=generator(seed), **settings).samples


def covariance(samples: torch.Tensor) -> torch.Tensor:
    """(*B, N, L, d) -> (*B, L, d, d), unbiased."""
    A = samples - samples.mean(-3, keepdim=True)
    return torch.einsum("...nli,...nlj->...lij", A, A) / (samples.shape[-3] - 1)


@pytest.mark.parametrize("method", [EnKS, IEnKS])
def test_square_root_smoothers_without_model_noise_equal_the_exact_smoother(method):
    """From exact first moments, mean and covariance of all steps are those of the RTS smoother to 1e-9."""
    system = linear_system(0.0)
    observations = seen(system, 8, missing=0.3)
    settings = {"output": "smoother", "tolerance": 0.0, "iterations": 3} if method is IEnKS else {}
    smoother = method(system, lag=20, variant="etkf", **settings)
    samples = run(smoother, observations, 6, x0=exact_ensemble(system, 6, 3))
    exact = system.smoother(observations)
    torch.testing.assert_close(samples.mean(1), exact.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(covariance(samples), exact.cov, rtol=0, atol=1e-9)


def test_a_fixed_lag_is_the_exact_smoother_of_the_observations_up_to_that_lag():
    """Step j with lag 2 knows the observations up to j + 2, and no others."""
    system, lag = linear_system(0.0), 2
    observations = seen(system, 8)
    samples = run(EnKS(system, lag=lag, variant="etkf"), observations, 6, x0=exact_ensemble(system, 6, 3))
    for j in range(8):
        value = observations["y"].value[:, : j + lag + 1]
        part = Observations({"y": Observation(value, observations["y"].operator, observations["y"].noise)})
        exact = system.smoother(part)
        torch.testing.assert_close(samples.mean(1)[:, j], exact.mean[:, j], rtol=0, atol=1e-9)
        torch.testing.assert_close(covariance(samples)[:, j], exact.cov[:, j], rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_enks_converges_to_the_exact_smoother(variant):
    """Mean and variance over 32 replicates of 1000 members within 6 standard errors, plus a bias of 1 %.

    With model noise and missing values; 6 sigma of a t distribution with 31 degrees: a false alarm in 1e4 seeds.
    """
    system = linear_system(0.2)
    observations = seen(system, 7, missing=0.2, batch=32)
    samples = run(EnKS(system, lag=20, variant=variant), observations, 1000)
    exact = system.smoother(one(observations))
    variance = exact.cov.diagonal(dim1=-2, dim2=-1)
    for values, target, scale in [
        (samples.mean(1), exact.mean, variance.sqrt()),
        (samples.var(1), variance, variance),
    ]:
        error = (values.mean(0) - target).abs()
        assert (error <= 6 * values.std(0) / 32**0.5 + 0.01 * scale).all()
        assert (values.std(0) < 0.2 * scale).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_enks_of_any_lag_leaves_the_filter_alone(variant):
    """The last step of every lag, and all steps of lag 0, are the filter's: the past never acts on the present."""
    system = linear_system(0.1)
    observations = seen(system, 6)
    kind = EnKF if variant == "enkf" else ETKF
    base = kind(system, inflation=1.05)
    expected = run(base, observations, 12)
    for lag in (0, 1, 4):
        samples = run(EnKS(system, lag=lag, variant=variant, inflation=1.05), observations, 12)
        torch.testing.assert_close(samples[:, :, -1], expected[:, :, -1], rtol=0, atol=1e-12)
        if lag == 0:
            torch.testing.assert_close(samples, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mda", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_ienks_of_lag_zero_and_one_iteration_is_the_filter(variant, mda):
    """Same draws, same members to 1e-10, with a non-linear model and operator, inflation and missing values."""
    system = Lorenz63(dt=0.1, substeps=10, dtype=DOUBLE)
    rng = generator(4)
    truth = system.trajectory(system.initial(2, rng=rng), 5, rng=rng)
    observations = Survey(Pointwise("cube"), 1e4, missing=0.2).observe(truth, rng=rng)
    kind = EnKF if variant == "enkf" else ETKF
    filter_ = kind(system, inflation=1.03, rtps=0.1)
    iterative = IEnKS(system, lag=0, iterations=1, variant=variant, inflation=1.03, rtps=0.1, mda=mda)
    expected = run(filter_, observations, 10)
    torch.testing.assert_close(run(iterative, observations, 10), expected, rtol=0, atol=1e-10 * 30)


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("output", ["filter", "smoother"])
def test_iterating_changes_nothing_where_all_is_linear(lag, output):
    """Any number of iterations, multiple assimilation, and the smoother without iterations agree to 1e-9."""
    system = linear_system(0.0)
    observations = seen(system, 7, missing=0.2)
    x0 = exact_ensemble(system, 6, 5)
    smoother = EnKS(system, lag=lag if output == "smoother" else 0, variant="etkf")
    expected = run(smoother, observations, 6, x0=x0)
    for settings in ({"iterations": 1}, {"iterations": 4, "tolerance": 0.0}, {"iterations": 4, "mda": True}):
        method = IEnKS(system, lag=lag, output=output, **settings)
        torch.testing.assert_close(run(method, observations, 6, x0=x0), expected, rtol=0, atol=1e-9)


def test_perturbed_iterations_settle_where_all_is_linear():
    """With the draws kept, further Gauss-Newton steps of the stochastic variant stay where the first led."""
    Y = torch.randn(2, 8, 5, generator=generator(6), dtype=DOUBLE)
    Y = Y - Y.mean(-2, keepdim=True)
    d = torch.randn(2, 1, 5, generator=generator(7), dtype=DOUBLE)
    noise = torch.randn(2, 8, 5, generator=generator(8), dtype=DOUBLE)
    noise = noise - noise.mean(-2, keepdim=True)
    start = torch.zeros(2, 1, 8, dtype=DOUBLE), torch.eye(8, dtype=DOUBLE).expand(2, 8, 8)
    w, T = gauss_newton_step(Y, d, *start, noise)
    again = gauss_newton_step(T @ Y, d - w @ Y, w, T, noise)
    torch.testing.assert_close(again[0], w, rtol=0, atol=1e-10)
    torch.testing.assert_close(again[1], T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_of_several_assimilations_is_one_with_larger_errors(variant):
    """K times the error variance = predictions, innovation and whitened units divided by sqrt(K)."""
    times = 4
    Y = torch.randn(8, 5, generator=generator(18), dtype=DOUBLE)
    Y = Y - Y.mean(-2, keepdim=True)
    d, noise = torch.randn(1, 5, generator=generator(19), dtype=DOUBLE), Y.roll(1, -1)
    draws = noise if variant == "enkf" else None
    start = torch.zeros(1, 8, dtype=DOUBLE), torch.eye(8, dtype=DOUBLE)
    expected = gauss_newton_step(Y / times**0.5, d / times**0.5, *start, draws)
    for value, target in zip(annealing_step(Y, d, *start, times, draws), expected, strict=True):
        torch.testing.assert_close(value, target, rtol=0, atol=1e-12)


def test_gauss_newton_finds_the_minimum_of_the_cost():
    """With h(x) = x + 0.1 x^3 in one variable, the mean's weights end where an exact tangent puts the minimum.

    The ensemble is so narrow that its tangent is the derivative; (N - 1)/2 |w|^2 + (y - h)^2 / 2 is minimized by
    its gradient, checked at the end, in units of the slope at the start.
    """
    system = LinearGaussian(*(torch.ones(1, 1, dtype=DOUBLE) * v for v in (1.0, 0.0)), *_narrow())
    x = 1.0 + 1e-3 * torch.tensor([[-1.0], [0.2], [0.8]], dtype=DOUBLE)
    observation = Observation(torch.tensor([3.0], dtype=DOUBLE), lambda v: v + 0.1 * v**3, Isotropic(1e-6))
    method = IEnKS(system, lag=0, iterations=30, tolerance=0.0)
    mean = method.analyse(x, observation).mean()
    variance = x.var()
    slope = 1 + 0.3 * mean**2
    gradient = (mean - 1.0) / variance - slope * (3.0 - mean - 0.1 * mean**3) / 1e-6
    assert abs(float(gradient)) < 1e-3 * float(2.0 * slope / 1e-6)


def _narrow() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1, dtype=DOUBLE), torch.full((1, 1), 1e-6, dtype=DOUBLE)


@pytest.mark.parametrize("variant", VARIANTS)
def test_permuting_members_with_their_draws_permutes_the_step(variant):
    """P Y, P noise: T becomes P T P^T and w becomes w P^T, to rounding."""
    Y = torch.randn(9, 4, generator=generator(9), dtype=DOUBLE)
    Y = Y - Y.mean(-2, keepdim=True)
    d = torch.randn(1, 4, generator=generator(10), dtype=DOUBLE)
    noise = torch.randn(9, 4, generator=generator(11), dtype=DOUBLE) if variant == "enkf" else None
    order = torch.randperm(9, generator=generator(12))
    start = torch.zeros(1, 9, dtype=DOUBLE), torch.eye(9, dtype=DOUBLE)
    mixed = None if noise is None else noise[order]
    for step in (gauss_newton_step, lambda *a: annealing_step(*a[:4], 3, a[4])):
        w, T = step(Y, d, *start, noise)
        w_mixed, T_mixed = step(Y[order], d, *start, mixed)
        torch.testing.assert_close(w_mixed, w[:, order], rtol=0, atol=1e-12)
        torch.testing.assert_close(T_mixed, T[order][:, order], rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", [EnKS, IEnKS])
def test_permuting_members_permutes_a_run(method):
    """The square root variants have no draws: members keep their identity through window and smoothing."""
    system = Lorenz63(dt=0.1, substeps=5, dtype=DOUBLE)
    rng = generator(13)
    truth = system.trajectory(system.initial(1, rng=rng), 5, rng=rng)
    observations = Survey(Select(torch.tensor([0, 1]), 1), 1.0).observe(truth, rng=rng)
    x0, order = system.initial(1, 6, rng=rng), torch.randperm(6, generator=rng)
    smoother = method(system, lag=2, variant="etkf", inflation=1.02)
    expected = run(smoother, observations, 6, x0=x0)[:, order]
    torch.testing.assert_close(run(smoother, observations, 6, x0=x0[:, order]), expected, rtol=0, atol=1e-8)


def test_a_replicate_iterates_on_its_own():
    """Two replicates together give what each gives alone: convergence of one neither stops nor drives the other."""
    system = Lorenz63(dt=0.25, substeps=10, dtype=DOUBLE)
    rng = generator(14)
    truth = system.trajectory(system.initial(2, rng=rng), 12, rng=rng)
    observed = Survey(Select(torch.tensor([0, 1, 2]), 1), 2.0).observe(truth, rng=rng)["observation"]
    x0 = system.initial(2, 8, rng=rng)
    method = IEnKS(system, lag=1, inflation=1.02)

    def posterior(rows: slice):
        values = Observation(observed.value[rows], observed.operator, observed.noise)
        return method.assimilate(Observations({"y": values}), 8, x0=x0[rows])

    together = posterior(slice(0, 2))
    counts = together.diagnostics["iterations"]
    assert not torch.equal(counts[0], counts[1])
    for row in (0, 1):
        alone = posterior(slice(row, row + 1))
        assert torch.equal(alone.diagnostics["iterations"][0], counts[row])
        torch.testing.assert_close(alone.samples[0], together.samples[row], rtol=0, atol=1e-6)


def test_smoothing_and_iterating_pay_on_lorenz63():
    """Iterated beats one pass, and smoothed filtered, in at least 14 of 16 truths (by chance: 0.2 %)."""
    system = Lorenz63(dt=0.25, substeps=10, dtype=DOUBLE)
    rng = generator(15)
    truth = system.trajectory(system.initial(16, rng=rng), 60, rng=rng)
    observations = Survey(Select(torch.tensor([0, 1, 2]), 1), 2.0).observe(truth, rng=rng)
    settings = {"lag": 1, "inflation": 1.03, "rotate": True, "iterations": 4}

    def error(method: Filter) -> torch.Tensor:
        mean = method.assimilate(observations, 10, keep="moments", rng=generator(16)).mean
        assert mean is not None
        return (mean - truth)[:, 10:].square().mean((-2, -1)).sqrt()

    one_pass = error(ETKF(system, inflation=1.03, rotate=True))
    iterated = error(IEnKS(system, **settings))
    smoothed = error(IEnKS(system, output="smoother", **settings))
    assert int((iterated < one_pass).sum()) >= 14
    assert int((smoothed < iterated).sum()) >= 14


@pytest.mark.parametrize("method", [EnKS, IEnKS])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_every_step_is_given_once_and_finite(method, lag):
    """Runs shorter and longer than the window, with and without observations at the end."""
    system = linear_system(0.0)
    settings = {"output": "smoother"} if method is IEnKS else {}
    for steps in (1, 2, 6):
        observations = seen(system, steps, missing=0.5, batch=2)
        assert torch.isfinite(run(method(system, lag=lag, **settings), observations, 5)).all()


@pytest.mark.parametrize("method", [EnKS, IEnKS])
def test_a_killed_run_ends_with_the_same_bits(method, tmp_path):
    """The window is part of what is saved."""
    system = linear_system(0.1 if method is EnKS else 0.0)
    observations = seen(system, 9, batch=2)
    smoother = method(system, lag=3, variant="enkf", rotate=True)

    def stop(k: int) -> None:
        if k == 6:
            raise KeyboardInterrupt

    whole = run(smoother, observations, 8)
    settings = {"checkpoint": tmp_path / "run.safetensors", "every": 2}
    with pytest.raises(KeyboardInterrupt):
        run(smoother, observations, 8, progress=stop, **settings)
    assert torch.equal(whole, run(smoother, observations, 8, **settings))


def test_a_replaced_member_starts_anew_in_the_whole_window():
    """What the loop puts in place of an absurd member is what the next window holds of it."""
    system = linear_system(0.0)
    method = IEnKS(system, lag=2, failure="replace", bound=50.0)
    memory = Memory()
    x = method.start(exact_ensemble(system, 6, 17), memory)
    for _ in range(3):
        x = method.forecast(x, memory)
    before, repaired = memory.carry["window"].clone(), x.clone()
    repaired[:, 2] = repaired[:, 0]
    method.forecast(repaired, memory)
    after = memory.carry["window"][:, :, 0]
    torch.testing.assert_close(after[:, 2], system(repaired[:, 2]))
    torch.testing.assert_close(after[:, 1], before[:, 1, 1])


def test_settings_that_cannot_be_are_refused():
    system = linear_system(0.0)
    with pytest.raises(ValueError, match="lag"):
        EnKS(system, lag=-1)
    with pytest.raises(ValueError, match="variant"):
        IEnKS(system, variant="sqrt")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="iterations"):
        IEnKS(system, iterations=0)
    with pytest.raises(ValueError, match="output"):
        IEnKS(system, output="both")  # type: ignore[arg-type]
