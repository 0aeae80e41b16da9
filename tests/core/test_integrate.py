"""Laws of the time steppers."""

import math

import pytest
import torch

from slams.core.integrate import ab3, integrating_factor_rk4, rk4

LAMBDA = 0.7


def forced(x, time):
    """x' = -0.7 x + cos(t), with the solution in `exact`."""
    return -LAMBDA * x + math.cos(time)


def exact(time, start):
    particular = (LAMBDA * math.cos(time) + math.sin(time)) / (1 + LAMBDA**2)
    return particular + (start - LAMBDA / (1 + LAMBDA**2)) * math.exp(-LAMBDA * time)


def error(method, steps):
    x, dt = torch.tensor(2.0, dtype=torch.float64), 2.0 / steps
    if method == "ab3":
        x = ab3(forced, x, 0.0, dt, steps)
    for k in range(steps if method != "ab3" else 0):
        if method == "rk4":
            x = rk4(forced, x, k * dt, dt)
        else:
            half = torch.exp(torch.tensor(-LAMBDA * dt / 2, dtype=torch.float64))
            x = integrating_factor_rk4(
                lambda y, t: torch.cos(torch.tensor(t, dtype=torch.float64)), x, k * dt, dt, half
            )
    return abs(float(x) - exact(2.0, 2.0))


@pytest.mark.parametrize(("method", "order"), [("rk4", 4), ("factor", 4), ("ab3", 3)])
def test_error_falls_with_the_order_of_the_method(method, order):
    """Slope of log error between 40 and 80 steps; the next order of the error changes it by under 0.15."""
    slope = math.log2(error(method, 40) / error(method, 80))
    assert slope == pytest.approx(order, abs=0.15)


def test_integrating_factor_damps_exactly():
    """Without forcing any rate is exact, also one a thousand times beyond explicit stability."""
    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    half = torch.exp(-torch.tensor([0.3, 4000.0], dtype=torch.float64) / 2)
    after = integrating_factor_rk4(lambda y, t: torch.zeros_like(y), x, 0.0, 1.0, half)
    torch.testing.assert_close(after, x * half**2, rtol=1e-14, atol=0)


def test_integrating_factor_without_damping_is_rk4():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(
        integrating_factor_rk4(forced, x, 0.3, 0.1, one), rk4(forced, x, 0.3, 0.1), rtol=1e-14, atol=1e-15
    )


def test_ab3_starts_with_rk4():
    x = torch.ones(3, dtype=torch.float64)
    two = rk4(forced, rk4(forced, x, 0.0, 0.1), 0.1, 0.1)
    torch.testing.assert_close(ab3(forced, x, 0.0, 0.1, 2), two, rtol=1e-15, atol=0)


def test_ab3_refuses_no_steps():
    with pytest.raises(ValueError, match="at least 1"):
        ab3(forced, torch.ones(1), 0.0, 0.1, 0)
