"""Explicit time stepping of ordinary differential equations."""

import difflib
from collections.abc import Callable

from torch import Tensor

from slams.core.errors import InvalidValueError

Tendency = Callable[[Tensor, float], Tensor]
Step = Callable[[Tendency, Tensor, float, float], Tensor]


def euler(tendency: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """Advance x' = f(x, t) by Euler's step, x + dt f(x, t).

    Args:
        tendency: f(x, t), same shape as `x`.
        x: State, any shape.
        time: Time t of the state [unit of `dt`].
        dt: Step length, may be negative.

    Returns:
        The state at `time + dt`, global error O(dt).

    Source:
        Hairer, Norsett & Wanner (1993), Solving ODE I, section I.7.
    """
    return x.add(tendency(x, time), alpha=dt)


def heun(tendency: Tendency, x: Tensor, time: float, dt: float) -> Tensor:
    """Advance x' = f(x, t) by Heun's step: the mean of the slopes at both ends, the far end by Euler.

    Args:
        tendency: f(x, t), same shape as `x`.
        x: State, any shape.
        time: Time t of the state [unit of `dt`].
        dt: Step length, may be negative.

    Returns:
        The state at `time + dt`, global error O(dt^2).

    Source:
        Heun (1900); Hairer, Norsett & Wanner (1993), Solving ODE I, section II.1.
    """
    k1 = tendency(x, time)
    k2 = tendency(x.add(k1, alpha=dt), time + dt)
    return x.add(k1.add(k2), alpha=dt / 2)


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
    # `add` with `alpha` is one kernel where a product and a sum are two: small systems are all overhead.
    half = time + dt / 2
    k1 = tendency(x, time)
    k2 = tendency(x.add(k1, alpha=dt / 2), half)
    k3 = tendency(x.add(k2, alpha=dt / 2), half)
    k4 = tendency(x.add(k3, alpha=dt), time + dt)
    return x.add(k1.add(k4).add(k2.add(k3), alpha=2), alpha=dt / 6)


_STEPS: dict[str, Step] = {"rk4": rk4, "heun": heun, "euler": euler}


def stepper(method: str) -> Step:
    """The one-step method with a given name.

    Args:
        method: "rk4", "heun" or "euler".

    Returns:
        A function of (tendency, x, time, dt), such as `rk4`.

    Raises:
        ValueError: If the name is unknown, with the nearest one.
    """
    if method not in _STEPS:
        near = difflib.get_close_matches(method, _STEPS, 1, 0.0)[0]
        raise InvalidValueError(
            f"no time-stepping method {method!r}; did you mean {near!r}? There are {[*_STEPS]}."
        )
    return _STEPS[method]


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
        raise InvalidValueError(f"steps must be at least 1, got {steps}.")
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
