"""Laws of the damped spring and of predator and prey."""

import math

import pytest
import torch

from slams.systems import DampedSpring, Gaussian, LotkaVolterra

F64 = torch.float64


def motion(time):
    """Position and velocity of x'' = -x/2 - x'/10 from (1, 0), in closed form."""
    omega = math.sqrt(0.5 - 0.05**2)
    decay, phase = math.exp(-0.05 * time), omega * time
    x = decay * (math.cos(phase) + 0.05 / omega * math.sin(phase))
    v = -decay * (omega + 0.05**2 / omega) * math.sin(phase)
    return torch.tensor([x, v], dtype=F64)


def spring_error(dt):
    """Distance from the closed form at time 5, started with the acceleration that belongs to it."""
    system = DampedSpring(dt=dt, noise=0.0, dtype=F64)
    x = torch.tensor([1.0, 0.0, -0.5, 0.0], dtype=F64)
    x = system.trajectory(x, round(5 / dt))[-1]
    return float((x[:2] - motion(5.0)).norm())


def test_unforced_spring_follows_the_closed_form():
    """Its acceleration lags a step: first order in dt, and under 3 % at the dt of the source."""
    assert spring_error(0.01) < 0.03
    assert math.log2(spring_error(0.005) / spring_error(0.0025)) == pytest.approx(1, abs=0.1)


def test_spring_loses_energy_at_the_rate_of_its_friction():
    """E = v^2/2 + x^2/4 falls by 0.1 v^2 dt; to O(dt) summed over a period and a half."""
    system = DampedSpring(dt=0.0005, noise=0.0, dtype=F64)
    path = system.trajectory(torch.tensor([1.0, 0.0, -0.5, 0.0], dtype=F64), 20_000)
    x, v = path[:, 0], path[:, 1]
    energy = v.square() / 2 + x.square() / 4
    assert float(energy[0] - energy[-1]) == pytest.approx(0.1 * float(v.square().sum()) * 0.0005, rel=0.01)


def test_force_forgets_as_the_source_says():
    system = DampedSpring(noise=0.0, dtype=F64)
    path = system.trajectory(torch.tensor([0.0, 0, 0, 1], dtype=F64), 3)
    torch.testing.assert_close(path[:, 3], 0.99 ** torch.arange(4, dtype=F64), rtol=1e-14, atol=0)
    assert float(path[1, 2]) == pytest.approx(0.2)


def test_spring_noise_has_the_stated_covariance(rng):
    """diag(0.1, 0.1, 0.1, 1) dt, within 6 sqrt(2 / n)."""
    system, quiet = DampedSpring(dtype=F64), DampedSpring(noise=0.0, dtype=F64)
    x = torch.zeros(100_000, 4, dtype=F64)
    error = system(x, rng=rng) - quiet(x)
    expected = torch.tensor([0.001, 0.001, 0.001, 0.01], dtype=F64)
    assert ((error.square().mean(0) / expected - 1).abs() < 6 * math.sqrt(2 / 100_000)).all()


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("heun", 2), ("euler", 1)])
def test_invariant_of_predator_and_prey_drifts_with_the_order_of_the_method(method, order):
    """Largest drift over two circuits, 20 and 40 steps a unit of time; rk4 may gain an order on closed orbits."""
    x = torch.tensor([0.7, 0.2], dtype=F64)
    drift = []
    for n in (20, 40):
        system = LotkaVolterra(dt=1.0, substeps=n, method=method)
        path = system.invariant(system.trajectory(x, 14))
        drift.append(float((path - path[0]).abs().max()))
    assert order - 0.2 < math.log2(drift[0] / drift[1]) < order + 1.2
    assert method != "rk4" or drift[1] < 1e-7


def test_equilibrium_of_predator_and_prey_stays():
    """e^x = gamma / delta, e^y = alpha / beta."""
    system = LotkaVolterra(alpha=1.1, beta=0.4, delta=0.1, gamma=0.4, dt=1.0, substeps=10)
    x = torch.tensor([0.4 / 0.1, 1.1 / 0.4], dtype=F64).log()
    torch.testing.assert_close(system(x), x, rtol=1e-13, atol=0)


def test_start_of_predator_and_prey_is_uniform(rng):
    """Kolmogorov-Smirnov distance of 50000 draws; its 1e-8 quantile is 3.1 / sqrt(n)."""
    draws = LotkaVolterra(dtype=F64).initial(50_000, rng=rng)
    for column in draws.unbind(-1):
        distance = (column.sort().values - torch.linspace(0, 1, 50_000, dtype=F64)).abs().max()
        assert float(distance) < 3.1 / math.sqrt(50_000) + 1 / 50_000
    fixed = LotkaVolterra(start=Gaussian(0.5, std=0.0)).initial(3)
    assert torch.equal(fixed, torch.full((3, 2), 0.5))


def test_gradient_equals_finite_differences(rng):
    system = LotkaVolterra(dt=0.1, substeps=2)
    x = torch.rand(3, 2, dtype=F64, generator=rng).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: system(y), x)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="dt must be positive"):
        DampedSpring(dt=-1.0)
    with pytest.raises(ValueError, match="last axis of 1"):
        LotkaVolterra(alpha=torch.ones(4))
