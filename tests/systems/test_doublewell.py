"""Laws of the double well."""

import math

import pytest
import torch

from slams.systems import DoubleWell

F64 = torch.float64


def test_tendency_is_minus_the_slope_of_the_potential(rng):
    x = torch.randn(9, 1, dtype=F64, generator=rng).requires_grad_()
    system = DoubleWell()
    (slope,) = torch.autograd.grad(system.potential(x).sum(), x)
    torch.testing.assert_close(system.tendency(x), -slope, rtol=1e-13, atol=1e-13)


def test_step_is_that_of_the_paper(rng):
    """x - dt U'(x) + beta sqrt(dt) V, dt = 0.1, beta = 0.3: exact mean, variance within 6 sqrt(2 / n)."""
    x = torch.tensor([-1.3], dtype=F64)
    system = DoubleWell()
    mean = -1.3 - 0.1 * (4 * (-1.3) ** 3 + 4 * 1.3)
    assert float(system.mean(x)) == pytest.approx(mean, rel=1e-14)
    draws = system(x.expand(200_000, 1), rng=rng) - mean
    assert float(draws.square().mean()) == pytest.approx(0.09 * 0.1, rel=6 * math.sqrt(2 / 200_000))


def test_stationary_density_is_the_closed_form(rng):
    """Moments of 20000 independent paths, noise 1, against quadrature of exp(-2 U / noise^2).

    Tolerance: 6 standard errors (1 false alarm in 5e8) and 3 % for dt = 0.01, whose error is first order.
    """
    system = DoubleWell(dt=0.01, noise=1.0)
    x = torch.where(torch.rand(20_000, 1, generator=rng) < 0.5, -1.0, 1.0).to(F64)
    for _ in range(300):
        x = system(x, rng=rng)
    grid = torch.linspace(-3, 3, 6001, dtype=F64)[:, None]
    weight = system.log_stationary(grid).exp()
    weight = weight / weight.sum()
    for power in (2, 4):
        exact = float((weight * grid[:, 0] ** power).sum())
        sample = x[:, 0] ** power
        error = 6 * float(sample.std()) / math.sqrt(len(sample))
        assert float(sample.mean()) == pytest.approx(exact, abs=error + 0.03 * exact)
    inside = float((x.abs() < 0.5).double().mean())
    exact = float(weight[grid[:, 0].abs() < 0.5].sum())
    assert inside == pytest.approx(exact, abs=6 * math.sqrt(exact / len(x)) + 0.03 * exact)


def test_truth_jumps_and_the_model_does_not():
    """Without noise from the well at -1: in steps 0-19 at -1, 20-39 at 1, then -1 again."""
    system = DoubleWell(noise=0.0, flip_every=20)
    start = torch.full((2, 1), -1.0, dtype=F64)
    path = system.trajectory(start, 45)[..., 0]
    expected = torch.tensor([-1.0] * 20 + [1.0] * 20 + [-1.0] * 6, dtype=F64)
    assert torch.equal(path, expected.expand(2, -1))
    assert torch.equal(system(start), start)
    assert torch.equal(system.trajectory(start, 0), start[:, None])


def test_steps_between_jumps_are_those_of_the_model():
    """A path with jumps, replayed step by step with the same generator."""
    system = DoubleWell(flip_every=3, dtype=F64)
    x = system.initial(4, rng=torch.Generator().manual_seed(2))
    path = system.trajectory(x, 8, rng=torch.Generator().manual_seed(3))
    rng = torch.Generator().manual_seed(3)
    for k in range(1, 9):
        x = system(x, rng=rng)
        x = -x if k % 3 == 0 else x
        assert torch.equal(path[:, k], x)


def test_a_model_that_foresees_jumps_makes_them_with_their_chance(rng):
    """Share of 40 000 steps that end in the other well: within 6 binomial standard errors, one false alarm in 5e8."""
    x = torch.full((40_000, 1), -1.0, dtype=F64)
    after = DoubleWell(flip_chance=0.05)(x, rng=rng)
    error = math.sqrt(0.05 * 0.95 / len(x))
    assert float((after > 0).double().mean()) == pytest.approx(0.05, abs=6 * error)
    assert torch.equal(DoubleWell(flip_chance=1.0, noise=0.0)(x), -DoubleWell(noise=0.0)(x))


@pytest.mark.parametrize("chance", [0.0, 0.05, 1.0])
def test_the_density_of_a_step_with_jumps_is_one_and_that_of_its_draws(chance, rng):
    """Integral to 1e-9, and the mean square of 40 000 draws within 6 standard errors of that of the density."""
    system, x = DoubleWell(flip_chance=chance), torch.tensor([[-0.4]], dtype=F64)
    grid = torch.linspace(-2, 2, 4001, dtype=F64)[:, None]
    density = system.log_transition(x.expand_as(grid), grid).exp() * 0.001
    assert float(density.sum()) == pytest.approx(1.0, abs=1e-9)
    draws = system(x.expand(40_000, 1), rng=rng)
    for moment in (1, 2):
        error = float((draws**moment).std()) / 200
        assert float((draws**moment).mean()) == pytest.approx(
            float(density @ grid[:, 0] ** moment), abs=6 * error
        )


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="probability, got 1.5"):
        DoubleWell(flip_chance=1.5)
    with pytest.raises(ValueError, match="at least 0"):
        DoubleWell(flip_every=-1)
    with pytest.raises(ValueError, match="noise > 0"):
        DoubleWell(noise=0.0).log_stationary(torch.zeros(1))
    with pytest.raises(ValueError, match="at least 0"):
        DoubleWell(flip_every=2).trajectory(torch.zeros(1), -1)
