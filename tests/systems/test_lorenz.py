"""Laws of the Lorenz systems and of the flow they are made of."""

import math

import pytest
import torch

from slams.core.integrate import rk4
from slams.systems import Gaussian, Lorenz63, Lorenz96

F64 = torch.float64


def developed(system, count, steps, rng):
    """States on the attractor, (count, d)."""
    x = system.initial(count, rng=rng) + torch.randn(count, system.size, dtype=F64, generator=rng)
    for _ in range(steps):
        x = system(x)
    return x


@pytest.fixture
def l96():
    return Lorenz96(dtype=F64)


@pytest.fixture
def l63():
    return Lorenz63(dtype=F64)


def test_advection_conserves_the_sum_of_squares(l96, rng):
    """Without forcing d/dt sum x^2 / 2 is -sum x^2, the damping alone."""
    x = 5 * torch.randn(7, 40, dtype=F64, generator=rng)
    work = (x * l96.tendency(x, forcing=0.0)).sum(-1)
    torch.testing.assert_close(work, -x.square().sum(-1), rtol=1e-12, atol=1e-11)


def test_tendency_equals_the_equation_written_site_by_site(l96, rng):
    x = torch.randn(40, dtype=F64, generator=rng)
    expected = [(x[(i + 1) % 40] - x[i - 2]) * x[i - 1] - x[i] + 8 for i in range(40)]
    torch.testing.assert_close(l96.tendency(x), torch.stack(expected), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("size", [4, 5, 7, 8, 9, 40])
@pytest.mark.parametrize("method", ["rk4", "heun", "euler"])
def test_shift_of_the_circle_commutes_with_the_step(size, method, rng):
    """To rounding: vector and scalar lanes of a processor may differ in the last bit."""
    system = Lorenz96(size, method=method, substeps=2)
    x = 3 * torch.randn(6, size, dtype=F64, generator=rng)
    torch.testing.assert_close(system(x.roll(3, -1)), system(x).roll(3, -1), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("shape", [(), (5,), (3, 700)])
def test_fast_step_equals_the_readable_one(shape, l96, rng):
    """One extension of the circle for four stages, and pieces for the cache, against plain rk4."""
    x = 3 * torch.randn(*shape, 40, dtype=F64, generator=rng)
    expected = rk4(lambda y, _: l96.tendency(y), x, 0.0, 0.05)
    torch.testing.assert_close(l96(x), expected, rtol=1e-13, atol=1e-13)


def test_volume_contracts_at_the_known_rate(l63, rng):
    """div f = -(sigma + 1 + beta) everywhere."""
    for x in 20 * torch.randn(4, 3, dtype=F64, generator=rng):
        jacobian = torch.func.jacrev(l63.tendency)(x)
        assert float(jacobian.trace()) == pytest.approx(-(10 + 1 + 8 / 3), rel=1e-13)


def test_fixed_points_stay(l63):
    """The two centres of the butterfly, (+-sqrt(beta (rho - 1)), same, rho - 1)."""
    r = math.sqrt(8 / 3 * 27)
    x = torch.tensor([[r, r, 27.0], [-r, -r, 27.0]], dtype=F64)
    torch.testing.assert_close(l63(x), x, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("heun", 2), ("euler", 1)])
@pytest.mark.parametrize("kind", [Lorenz63, Lorenz96])
def test_error_falls_with_the_order_of_the_method(kind, method, order, rng):
    """Slope between 8 and 32 steps over a short time, against 2000 steps; the next order costs under 0.25."""
    span = 0.05
    reference = kind(dt=span, substeps=2000, method="rk4", dtype=F64)
    x = developed(kind(dt=0.01, dtype=F64), 16, 1000, rng)
    exact = reference(x)
    error = [(kind(dt=span, substeps=n, method=method)(x) - exact).square().mean().sqrt() for n in (8, 32)]
    assert math.log(error[0] / error[1], 4) == pytest.approx(order, abs=0.25)


def exponent(system, x, steps, every):
    """Leading Lyapunov exponent of each row: growth of a small difference, shrunk back now and then."""
    size, growth = 1e-6, torch.zeros(len(x), dtype=F64)
    delta = torch.ones_like(x) * size / math.sqrt(system.size)
    for burn in (True, False):
        for k in range(1, steps + 1):
            ahead = system(torch.stack([x, x + delta]))
            x, delta = ahead[0], ahead[1] - ahead[0]
            if k % every == 0:
                norm = delta.norm(dim=-1)
                growth = growth + (0 if burn else 1) * (norm / size).log()
                delta = delta * (size / norm)[:, None]
    return growth / (steps * system.dt)


@pytest.mark.parametrize(
    ("system", "published", "steps"),
    [(Lorenz63(dt=0.02, dtype=F64), 0.9056, 1500), (Lorenz96(dtype=F64), 1.68, 400)],
)
def test_leading_lyapunov_exponent_is_the_published_one(system, published, steps, rng):
    """Within 6 standard errors over 100 starts (1 false alarm in 5e8), and 2 % for published digits and dt.

    0.9056 from Sprott (2003), Chaos and Time-Series Analysis; 1.68 (doubling in 2.1 days) from Lorenz &
    Emanuel (1998).
    """
    rates = exponent(system, developed(system, 100, 500, rng), steps, every=10)
    tolerance = 6 * float(rates.std()) / 10 + 0.02 * published
    assert tolerance < 0.1 * published
    assert float(rates.mean()) == pytest.approx(published, abs=tolerance)


def test_lorenz96_climate(l96, rng):
    """Energy balance <x^2> = F <x>, and mean 2.34 and std 3.63 of F = 8; tolerance 6 standard errors."""
    x = developed(l96, 200, 300, rng)
    mean, square = [], []
    for _ in range(200):
        x = l96(x)
        mean.append(x.mean(-1))
        square.append(x.square().mean(-1))
    mean, square = torch.stack(mean).mean(0), torch.stack(square).mean(0)  # (200), nearly independent
    error = 6 / math.sqrt(len(mean))
    balance = square - 8 * mean
    assert abs(float(balance.mean())) < error * float(balance.std())
    assert float(mean.mean()) == pytest.approx(2.34, abs=error * float(mean.std()) + 0.01)
    std = float((square.mean() - mean.mean() ** 2).sqrt())
    assert std == pytest.approx(3.63, abs=error * float(square.std()) / (2 * 3.63) + 0.02)


@pytest.mark.parametrize("kind", [Lorenz63, Lorenz96])
def test_noise_has_the_stated_variance(kind, rng):
    """s^2 dt, once a dt whatever the substeps; sampling error of a variance 6 sqrt(2 / n)."""
    quiet, noisy = kind(dt=0.04, substeps=4, dtype=F64), kind(dt=0.04, substeps=4, noise=0.5, dtype=F64)
    x = quiet.initial(rng=rng).expand(40000, -1)
    error = noisy(x, rng=rng) - quiet(x)
    n = error.numel()
    assert float(error.square().mean()) == pytest.approx(0.25 * 0.04, rel=6 * math.sqrt(2 / n))
    assert abs(float(error.mean())) < 6 * 0.5 * 0.2 / math.sqrt(n)


def test_transition_density_of_true_trajectories_is_minus_the_entropy(rng):
    """192 (-log(2 pi 0.025) - 1) / 2 = 81.7 nats for 64 steps of the noisy system; 6 standard errors."""
    system = Lorenz63(dt=0.025, noise=1.0, dtype=F64)
    x = system.trajectory(system.initial(500, rng=rng), 64, rng=rng)
    log_p = system.log_transition(x[:, :-1], x[:, 1:]).sum(-1)
    expected = 192 * (-0.5 * math.log(2 * math.pi * 0.025) - 0.5)
    assert expected == pytest.approx(81.7, abs=0.05)
    assert float(log_p.mean()) == pytest.approx(expected, abs=6 * math.sqrt(192 / 2 / 500))


def test_replicates_with_their_own_forcing_equal_separate_runs(rng):
    """One call with forcing (B, 1, 1) against three systems, over 20 steps; also 3 pieces of a cache."""
    forcing = [6.0, 8.0, 11.0]
    x = 3 * torch.randn(3, 800, 40, dtype=F64, generator=rng)
    together = Lorenz96(forcing=torch.tensor(forcing)[:, None, None], dtype=F64)
    apart = [Lorenz96(forcing=f) for f in forcing]
    expected = list(x)
    for _ in range(20):
        x, expected = together(x), [s(y) for s, y in zip(apart, expected, strict=True)]
    torch.testing.assert_close(x, torch.stack(expected), rtol=1e-10, atol=1e-10)


def test_replicates_of_lorenz63_equal_separate_runs(rng):
    x = 5 * torch.randn(4, 3, dtype=F64, generator=rng)
    together = Lorenz63(rho=torch.tensor([20.0, 28.0], dtype=F64)[:, None, None])
    expected = torch.stack([Lorenz63(rho=20.0)(x), Lorenz63(rho=28.0)(x)])
    torch.testing.assert_close(together(x), expected, rtol=1e-13, atol=1e-13)


def test_forcing_of_every_site(rng):
    """A local forcing acts on its site only at first order: the tendency differs there and nowhere else."""
    forcing = torch.full((40,), 8.0, dtype=F64)
    forcing[3] += 2
    x = torch.randn(5, 40, dtype=F64, generator=rng)
    change = Lorenz96(forcing=forcing).tendency(x) - Lorenz96().tendency(x)
    torch.testing.assert_close(change, (forcing - 8).expand(5, 40), rtol=0, atol=1e-13)
    step = Lorenz96(forcing=forcing)(x) - rk4(
        lambda y, _: Lorenz96(forcing=forcing).tendency(y), x, 0.0, 0.05
    )
    assert float(step.abs().max()) < 1e-13


@pytest.mark.parametrize("kind", [Lorenz63, Lorenz96])
@pytest.mark.parametrize("method", ["rk4", "heun", "euler"])
def test_gradients_equal_finite_differences(kind, method, rng):
    system = kind(method=method, substeps=2, dt=0.02)
    x = torch.randn(2, system.size, dtype=F64, generator=rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: system(y), x)


def test_gradient_of_a_batch_in_pieces_is_that_of_its_rows(l96, rng):
    """In-place sums in the fast step must not damage what the gradient needs, also across pieces."""
    x = torch.randn(2000, 40, dtype=F64, generator=rng).requires_grad_()
    (whole,) = torch.autograd.grad(l96(x).square().sum(), x)
    row = x[1700].detach().requires_grad_()
    (alone,) = torch.autograd.grad(l96(row).square().sum(), row)
    torch.testing.assert_close(whole[1700], alone, rtol=1e-12, atol=1e-12)


def test_gradient_with_respect_to_the_forcing(rng):
    system = Lorenz96(forcing=torch.nn.Parameter(torch.tensor(8.0, dtype=F64)))
    x = torch.randn(40, dtype=F64, generator=rng)
    (slope,) = torch.autograd.grad(system(x).sum(), system.forcing)
    change = (Lorenz96(forcing=8.0 + 1e-5)(x).sum() - Lorenz96(forcing=8.0 - 1e-5)(x).sum()) / 2e-5
    assert float(slope) == pytest.approx(float(change), rel=1e-8)


@pytest.mark.parametrize("kind", [Lorenz63, Lorenz96])
def test_tangent_and_adjoint_agree(kind, rng):
    """<w, J v> = <J^T w, v>, forward against backward mode."""
    system = kind(substeps=3)
    x, v, w = torch.randn(3, system.size, dtype=F64, generator=rng)
    _, tangent = torch.func.jvp(system, (x,), (v,))
    _, pull = torch.func.vjp(system, x)
    assert float(w @ tangent) == pytest.approx(float(pull(w)[0] @ v), rel=1e-12)


def test_start_has_the_stated_moments(rng):
    """Mean and covariance of 100000 draws within 6 standard errors; std 0 is exact."""
    cov = torch.tensor([[64.0, 50, 0], [50, 81, 0], [0, 0, 75]], dtype=F64)
    system = Lorenz63(start=Gaussian((0.0, 0.0, 25.0), cov=cov), dtype=F64)
    x = system.initial(100_000, rng=rng)
    scale = cov.diagonal().sqrt()
    error = 6 / math.sqrt(len(x))
    assert ((x.mean(0) - torch.tensor([0.0, 0, 25])).abs() < error * scale).all()
    assert ((x.T.cov() - cov).abs() < error * math.sqrt(2) * scale[:, None] * scale).all()
    fixed = Lorenz96(20, start=Gaussian((8.01, *[8.0] * 19), std=0.0), dtype=F64).initial(2)
    assert torch.equal(fixed, torch.tensor([[8.01] + [8.0] * 19] * 2, dtype=F64))


def test_same_generator_same_path():
    system = Lorenz96(noise=0.1)
    first, second = (
        system.trajectory(system.initial(3, rng=g), 5, rng=g)
        for g in (torch.Generator().manual_seed(1), torch.Generator().manual_seed(1))
    )
    assert torch.equal(first, second)


def test_dtype_of_the_states_is_kept(dtype, device, rng):
    """Coefficients given as tensors of another type do not widen an ensemble."""
    system = Lorenz96(forcing=torch.tensor([8.0], dtype=F64), noise=0.1, dtype=dtype).to(device)
    system.to(dtype)
    x = system(system.initial(3, rng=rng), rng=rng)
    assert x.dtype == dtype
    assert x.device.type == device.type


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lorenz96(3), "size >= 4"),
        (lambda: Lorenz96(dt=0.0), "dt must be positive"),
        (lambda: Lorenz96(dt=math.nan), "dt must be positive"),
        (lambda: Lorenz63(substeps=0), "substeps at least 1"),
        (lambda: Lorenz63(noise=-1.0), "must not be negative"),
        (lambda: Lorenz96(method="rk5"), "did you mean 'rk4'"),
        (lambda: Lorenz96(method="hune"), "did you mean 'heun'"),
        (lambda: Lorenz96(forcing=torch.ones(3)), "last axis of 1"),
        (lambda: Lorenz96()(torch.zeros(2, 39)), "must be 40"),
        (lambda: Lorenz96().mean(torch.zeros(40), forcin=8.0), "did you mean 'forcing'"),
        (lambda: Lorenz96(start=Gaussian((1.0, 2.0), std=1.0)), "2 variables, the system 40"),
        (lambda: Gaussian(0.0), "both or neither"),
        (lambda: Gaussian(0.0, std=-1.0), "not be negative"),
        (lambda: Gaussian((0.0, 0.0), cov=((1.0, 2.0), (2.0, 1.0))), "negative eigenvalues"),
        (lambda: Lorenz63().log_transition(torch.zeros(3), torch.zeros(3)), "without noise"),
    ],
)
def test_wrong_settings_are_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()
