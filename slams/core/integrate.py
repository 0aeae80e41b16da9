"""Explicit time stepping: a tendency and a step length become a step."""

from collections.abc import Callable

from torch import Tensor

Tendency = Callable[[Tensor, float], Tensor]


def rk4(tendency: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """Advance x' = f(x, t) by the classical fourth-order Runge-Kutta step.

    Args:
        tendency: f(x, t), same shape as `x`.
        x: State, any shape.
        time: Time t of the state [unit of `dt`].
        dt: Step length, may be negative.

    Returns:
        The state at `time + dt`; local error O(dt^5), global error O(dt^4).

    Source:
        Kutta (1901); Hairer, Norsett & Wanner (1993), Solving ODE I, table II.1.2.
    """
    half = time + dt / 2
    k1 = tendency(x, time)
    k2 = tendency(x + dt / 2 * k1, half)
    k3 = tendency(x + dt / 2 * k2, half)
    k4 = tendency(x + dt * k3, time + dt)
    return x + dt / 6 * (k1 + 2 * (k2 + k3) + k4)


def integrating_factor_rk4(
    tendency: Tendency, x: Tensor, time: float, dt: float, half_decay: Tensor
) -> Tensor:
    """Advance x' = -lambda x + f(x, t): the damping exactly, the rest by rk4.

    The variable y = exp(lambda t) x is stepped, so stiff damping never limits `dt` and f = 0 is exact.

    Args:
        tendency: f(x, t) without the damping, same shape as `x`.
        x: State, any shape.
        time: Time t of the state [unit of `dt`].
        dt: Step length.
        half_decay: exp(-lambda dt / 2), broadcastable to `x`.

    Returns:
        The state at `time + dt`, fourth order in dt.

    Source:
        Canuto, Hussaini, Quarteroni & Zang (2007), Spectral Methods, appendix D.4.
    """
    half = time + dt / 2
    k1 = tendency(x, time)
    x_half = half_decay * x
    k1_half = half_decay * k1
    k2 = tendency(x_half + dt / 2 * k1_half, half)
    k3 = tendency(x_half + dt / 2 * k2, half)
    k4 = tendency(half_decay * (x_half + dt * k3), time + dt)
    return half_decay * (x_half + dt / 6 * (k1_half + 2 * (k2 + k3))) + dt / 6 * k4


def ab3(tendency: Tendency, x: Tensor, time: float, dt: float, steps: int) -> Tensor:
    """Advance x' = f(x, t) by `steps` third-order Adams-Bashforth steps, started by two of rk4.

    x_{k+1} = x_k + dt (23 f_k - 16 f_{k-1} + 5 f_{k-2}) / 12: one evaluation a step.

    Args:
        tendency: f(x, t), same shape as `x`.
        x: State, any shape.
        time: Time t of the state [unit of `dt`].
        dt: Step length.
        steps: Number of steps, at least 1.

    Returns:
        The state at `time + steps * dt`, global error O(dt^3).

    Raises:
        ValueError: If `steps` is below 1.

    Source:
        Durran (2010), Numerical Methods for Fluid Dynamics, eq. 2.58.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}.")
    past: list[Tensor] = []
    for k in range(steps):
        now = time + k * dt
        if k < 2:
            past.append(tendency(x, now))
            x = rk4(tendency, x, now, dt)
            continue
        past.append(tendency(x, now))
        x = x + dt / 12 * (23 * past[2] - 16 * past[1] + 5 * past[0])
        past.pop(0)
    return x
