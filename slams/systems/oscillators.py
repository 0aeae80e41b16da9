"""Two small oscillators: a damped spring, linear, and predator with prey."""

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal
from slams.systems.flow import Coefficient, Flow, Gaussian
from slams.systems.linear import LinearGaussian


class DampedSpring(LinearGaussian):
    """x'' = -0.5 x - 0.1 x' + 0.2 f under a random force f, as a linear-Gaussian system.

    The state is (position, velocity, acceleration, force), with transition rows (1, dt, dt^2/2, 0),
    (0, 1, dt, 0), (-0.5, -0.1, 0, 0.2), (0, 0, 0, 0.99^(dt / 0.01)), noise diag(0.1, 0.1, 0.1, 1) dt and
    start N((1, 0, 0, 0), I). The acceleration lags one step, so that the motion is exact to O(dt).

    Args:
        dt: Model time between two states.
        noise: Factor on the standard deviation of the noise.
        dtype: Dtype of the matrices and initial states.

    Raises:
        ValueError: If `dt` is not positive or `noise` negative.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, code of the mcs module; they use dt = 0.01.
    """

    def __init__(self, *, dt: float = 0.01, noise: float = 1.0, dtype: torch.dtype | None = None) -> None:
        if not dt > 0 or noise < 0:
            raise InvalidValueError(
                f"dt must be positive and noise not negative, got dt={dt}, noise={noise}."
            )
        transition = torch.tensor(
            [
                [1.0, dt, dt**2 / 2, 0.0],
                [0.0, 1.0, dt, 0.0],
                [-0.5, -0.1, 0.0, 0.2],
                [0.0, 0.0, 0.0, 0.99 ** (dt / 0.01)],
            ],
            dtype=dtype,
        )
        spread = torch.tensor([0.1, 0.1, 0.1, 1.0], dtype=dtype)
        first = torch.eye(4, dtype=dtype)
        super().__init__(transition, torch.diag(spread * dt * noise**2), first[0], first, dt=dt)


class LotkaVolterra(Flow):
    """Predator and prey in logarithms of their numbers: x' = alpha - beta e^y, y' = delta e^x - gamma.

    Args:
        alpha: Growth of the prey.
        beta: Loss of prey to a predator.
        delta: Growth of the predators by a prey.
        gamma: Death of the predators.
        dt: Model time between two states.
        substeps: Steps of the method in `dt`.
        noise: Standard deviation of the noise per square root of model time.
        method: "rk4", "heun" or "euler".
        start: Distribution of initial states; uniform on [0, 1]^2 if None.
        dtype: Dtype of initial states.

    Raises:
        ValueError: If a setting is out of range or the method unknown.

    Source:
        Lotka (1925), Elements of Physical Biology, chapter VIII; start of Rozet & Louppe (2023),
        arXiv:2306.10574, code of the mcs module.
    """

    coefficients = ("alpha", "beta", "delta", "gamma")
    _zero: Tensor

    def __init__(
        self,
        *,
        alpha: Coefficient = 1.0,
        beta: Coefficient = 1.0,
        delta: Coefficient = 1.0,
        gamma: Coefficient = 1.0,
        dt: float = 0.01,
        substeps: int = 1,
        noise: float = 0.0,
        method: str = "rk4",
        start: Gaussian | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            2,
            {"alpha": alpha, "beta": beta, "delta": delta, "gamma": gamma},
            dt=dt,
            substeps=substeps,
            method=method,
            noise=noise,
            start=start,
            dtype=dtype,
        )
        self.register_buffer("_zero", torch.zeros((), dtype=dtype), persistent=False)

    def tendency(self, x: Tensor, **coefficients: Coefficient) -> Tensor:
        """See `Flow.tendency`."""
        x, values = self._prepared(x, coefficients)
        alpha, beta, delta, gamma = values.values()
        prey, predator = x.exp().split(1, -1)
        return torch.cat([alpha - beta * predator, delta * prey - gamma], -1)

    def invariant(self, x: Tensor) -> Tensor:
        """delta e^x - gamma x + beta e^y - alpha y, constant along every orbit, (*B, 2) to (*B)."""
        x, values = self._prepared(x, {})
        alpha, beta, delta, gamma = values.values()
        prey, predator = x.split(1, -1)
        return (delta * prey.exp() - gamma * prey + beta * predator.exp() - alpha * predator).squeeze(-1)

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draws of `start`, or uniform ones, (*shape, 2)."""
        if self.start is not None:
            return self.start.sample(*shape, rng=rng)
        # erf turns normal draws into uniform ones: `normal` handles the generator's device.
        draw = normal((*shape, 2), like=self._zero, rng=generator(rng, "initial"))
        return (1 + torch.erf(draw / 2**0.5)) / 2
