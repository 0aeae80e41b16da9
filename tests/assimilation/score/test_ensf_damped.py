"""The damped filter against moment equations of its own; the single-member form against its published weights."""

import math

import pytest
import torch
from torch import Tensor

from slams.assimilation import DampedEnSF, SingleMemberEnSF
from slams.assimilation.memory import Memory
from slams.assimilation.score.ensf_damped import _phi
from slams.core.covariance import Diagonal
from slams.observation import Observation, operators
from slams.systems import LinearGaussian, Lorenz96

DOUBLE = torch.float64


def still(size: int) -> LinearGaussian:
    one = torch.eye(size, dtype=DOUBLE)
    return LinearGaussian(one, 0 * one, torch.zeros(size, dtype=DOUBLE), one)


def seen(y: Tensor, error: float, operator: torch.nn.Module | None = None) -> Observation:
    R = Diagonal(torch.full(y.shape[-1:], error**2, dtype=DOUBLE))
    return Observation(y, operator or operators.Identity(), R)


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quantiles(count: int) -> Tensor:
    """(1, count, 1) members of N(0, 1)."""
    return torch.special.ndtri((torch.arange(count, dtype=DOUBLE) + 0.5) / count)[None, :, None]


def analysed(method: DampedEnSF, error: float, y: float = 2.0, *, replicates: int = 20, members: int = 100):
    E = quantiles(members).expand(replicates, -1, -1)
    return method.analyse(E, seen(torch.full((replicates, 1), y, dtype=DOUBLE), error), rng=rng(1))


def limit(error: float, y: float, solver: str, eps_alpha: float, eps_beta: float) -> tuple[float, float]:
    """Mean and deviation of the damped process for N(0, 1), by Euler's method in pseudo-time at 50 000 steps."""
    steps, mean, variance = 50_000, 0.0, 1.0
    dt, share = 1 / steps, 1.0 if solver == "sde" else 0.5
    for k in range(steps):
        t = 1 - (k + 0.5) * dt
        alpha, noise = 1 - (1 - eps_alpha) * t, eps_beta + (1 - eps_beta) * t
        b = -(1 - eps_alpha) / alpha
        g2 = 1 - eps_beta - 2 * b * noise
        slope = -b - share * g2 * (1 / (alpha**2 + noise) + (1 - t) / error**2)
        mean += dt * (slope * mean + share * g2 * (1 - t) * y / error**2)
        variance += dt * (2 * slope * variance + (g2 if share == 1 else 0.0))
    return mean, math.sqrt(variance)


@pytest.mark.parametrize(
    "eps_alpha, error, steps, forecast, observed, deviation",
    [
        (0.01, 0.1, 100, 0.633, 0.367, 0.157),
        (0.5, 0.1, 100, 0.633, 0.367, 0.153),
        (0.05, 0.1, 500, 0.867, 0.134, 0.046),
        (0.05, 0.1, 1000, 0.923, 0.077, 0.032),
        (0.05, 1.0, 100, 0.991, 0.009, 0.101),
    ],
)
def test_single_member_weights_follow_from_the_step(eps_alpha, error, steps, forecast, observed, deviation):
    """They are exact differences; the deviation of 4000 draws has an error of 1.1 %, three of these allowed."""
    method = SingleMemberEnSF(still(1), eps_alpha=eps_alpha, steps=steps)

    def after(x: float, y: float, members: int = 2) -> Tensor:
        E = torch.full((1, members, 1), x, dtype=DOUBLE)
        return method.analyse(E, seen(torch.full((1, 1), y, dtype=DOUBLE), error), rng=rng())[0, :, 0]

    base = after(0, 0)
    assert float((after(1, 0) - base)[0]) == pytest.approx(forecast, abs=1.1e-3)
    assert float((after(0, 1) - base)[0]) == pytest.approx(observed, abs=1.1e-3)
    assert float(after(0, 0, 4000).std()) == pytest.approx(deviation, rel=0.034, abs=5e-4)


def test_single_member_weights_do_not_know_the_scale_but_the_noise_does_and_stiff_ones_diverge():
    E, y = torch.ones(1, 3, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)

    def gap(scale: float) -> Tensor:
        method = SingleMemberEnSF(still(1), scale=scale, error=0.1)
        one, none = (method.analyse(x, seen(y, 0.7), rng=rng()) for x in (E, 0 * E))
        return torch.stack([one - none, none * scale])

    torch.testing.assert_close(gap(100.0), gap(1.0))
    wild = SingleMemberEnSF(still(1), eps_alpha=0.05).analyse(E, seen(y, 0.05), rng=rng())
    assert float(wild.abs().max()) > 1e50


@pytest.mark.parametrize("solver", ["sde", "ode"])
@pytest.mark.parametrize("error", [1.0, 0.2])
def test_damped_form_is_at_its_fine_step_limit(solver, error):
    """Mean within 0.02 prior deviations, deviation within 3 %, and three standard errors of 4000 draws each."""
    mean, deviation = limit(error, 2.0, solver, 0.05, 0.025)
    draws = analysed(DampedEnSF(still(1), solver=solver, scale=1.0), error, replicates=40)
    assert abs(float(draws.mean()) - mean) < 0.02 + 3 * float(draws.std()) / 4000**0.5
    assert abs(float(draws.std()) / deviation - 1) < 0.03 + 3 * 8000**-0.5


def test_twice_the_steps_change_little():
    """Same random numbers: mean by less than 2 % of a deviation, variance by less than 2 %; also with a stiff arctan."""
    for operator, error, y in ((operators.Identity(), 0.5, 2.0), (operators.Pointwise("arctan"), 0.2, 0.8)):
        found, steps = [], []
        for tolerance in (0.02, 0.005):
            method = DampedEnSF(still(1), solver="ode", tolerance=tolerance)
            memory = Memory()
            observation = seen(torch.full((4, 1), y, dtype=DOUBLE), error, operator)
            E = quantiles(60).expand(4, -1, -1)
            found.append(method.analyse(E, observation, rng=rng(1), memory=memory))
            steps.append(float(memory.diagnostics["steps"][0]))
        one, two = found
        assert steps[1] > 1.8 * steps[0]
        assert ((one.mean(1) - two.mean(1)) / two.std(1)).abs().max() < 0.02
        assert (one.var(1) / two.var(1) - 1).abs().max() < 0.02


def test_units_of_the_spread_are_the_members_unbiased_deviation():
    """Of few members about 0, for which the deviation is a factor on the state like any other."""
    E = torch.tensor([[[-2.0], [0.5], [1.5], [0.0]]], dtype=DOUBLE)
    observation = seen(torch.full((1, 1), 0.7, dtype=DOUBLE), 0.5)
    deviation = (E.square().sum() / 3) ** 0.5
    by_spread, by_factor = (
        DampedEnSF(still(1), scale=scale).analyse(E, observation, rng=rng())
        for scale in ("spread", float(1 / deviation))
    )
    torch.testing.assert_close(by_spread, by_factor, rtol=0, atol=1e-9)


def test_factors_of_the_exponential_step_are_their_series():
    """sum (-q)^k / (k + 1)! and sum (-q)^k / (k + 2)!, to the square of the q up to which two terms are taken."""
    q = torch.cat([torch.zeros(1, dtype=DOUBLE), torch.logspace(-12, 0.5, 400, dtype=DOUBLE)])
    terms = torch.arange(40, dtype=DOUBLE)
    powers = (-q[:, None]) ** terms
    for found, shift in zip(_phi(q), (2, 3), strict=True):
        exact = (powers / torch.exp(torch.lgamma(terms + shift))).sum(-1)
        torch.testing.assert_close(found, exact, rtol=0, atol=2e-7)


def test_very_accurate_values_through_a_bounded_operator_are_met():
    """Curvature 400 where the operator is steep and 0 where it is flat: the mean is at tan y to 0.05."""
    y = torch.full((3, 1), math.atan(1.2), dtype=DOUBLE)
    E = quantiles(100).expand(3, -1, -1)
    after = DampedEnSF(still(1)).analyse(E, seen(y, 0.05, operators.Pointwise("arctan")), rng=rng())
    assert (after.mean(1) - 1.2).abs().max() < 0.05
    assert after.std(1).max() < 0.3


def test_where_nothing_is_seen_points_are_drawn_again():
    E = torch.randn(2, 12, 3, generator=rng(), dtype=DOUBLE)
    observation = seen(torch.full((2, 3), math.nan, dtype=DOUBLE), 1.0)
    after = DampedEnSF(still(3), eps_beta=0.0).analyse(E, observation, rng=rng())
    assert torch.cdist(after, E).amin(-1).max() < 0.02


def test_some_of_the_members_at_each_step_serve_for_all():
    """Mean within 0.15 of the full mixture's; and the relaxation of the spread keeps that of the forecast."""
    whole = analysed(DampedEnSF(still(1), scale=1.0), 1.0)
    part = analysed(DampedEnSF(still(1), scale=1.0, batch=40), 1.0)
    assert abs(float(whole.mean() - part.mean())) < 0.15
    assert not torch.equal(whole, part)
    kept = analysed(DampedEnSF(still(1), rtps=1.0), 1.0, replicates=2)
    torch.testing.assert_close(kept.std(1), quantiles(100).std(1).expand(2, -1))


def test_a_collapsed_ensemble_is_named():
    with pytest.raises(FloatingPointError, match="collapsed"):
        DampedEnSF(still(2)).analyse(torch.ones(1, 4, 2), seen(torch.zeros(1, 2, dtype=DOUBLE), 1.0))


@pytest.mark.parametrize(
    "method, settings, word",
    [
        (DampedEnSF, {"eps_alpha": 0.0}, "eps_alpha"),
        (DampedEnSF, {"solver": "euler"}, "solver"),
        (DampedEnSF, {"tolerance": 2.0}, "tolerance"),
        (DampedEnSF, {"scale": -1.0}, "scale"),
        (DampedEnSF, {"batch": 0}, "batch"),
        (SingleMemberEnSF, {"steps": 0}, "step"),
        (SingleMemberEnSF, {"eps_beta": 1.0}, "eps_beta"),
    ],
)
def test_wrong_settings_are_refused(method, settings, word):
    with pytest.raises(ValueError, match=word):
        method(Lorenz96(4), **settings)
    assert DampedEnSF(Lorenz96(4), batch=1).batch == 1


def test_the_single_member_form_names_a_broken_likelihood():
    class Overflow(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * 1e200).square()

    E = torch.randn(1, 5, 4, dtype=DOUBLE, generator=rng())
    with pytest.raises(FloatingPointError, match="not finite"):
        SingleMemberEnSF(still(4)).analyse(E, seen(torch.zeros(1, 4, dtype=DOUBLE), 1.0, Overflow()))
