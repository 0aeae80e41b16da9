"""Wrappers of systems: random shocks, and spin-up before the start."""

from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, uniform
from slams.systems.base import Dynamics


class _Around(Dynamics):
    """Base of systems that wrap another.

    Args:
        dynamics: Wrapped system.
    """

    def __init__(self, dynamics: Dynamics) -> None:
        super().__init__()
        self.dynamics = dynamics
        self.state_shape, self.dt = dynamics.state_shape, dynamics.dt
        self.geometry = dynamics.geometry

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Dynamics.initial`."""
        return self.dynamics.initial(*shape, rng=rng)

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.forward`."""
        return self.dynamics(x, rng=rng)

    def advance(self, x: Tensor, k: int, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.advance`."""
        return self.dynamics.advance(x, k, rng=rng)


class Shocked(_Around):
    """A system with random shocks: x_{k+1} = M(x_k) + s c e, c 1 with probability p and 0 otherwise, e ~ N(0, I).

    Shocks come to the states of a batch independently, and to all variables of one state at once.

    Args:
        dynamics: The system M.
        probability: Probability p of a shock at a step.
        deviation: Standard deviation s of the shock in every variable.

    Raises:
        ValueError: If the probability is outside [0, 1] or the deviation is negative.
    """

    def __init__(self, dynamics: Dynamics, probability: float, deviation: float) -> None:
        super().__init__(dynamics)
        if not 0 <= probability <= 1 or not deviation >= 0:
            raise InvalidValueError(
                f"shocks need a probability in [0, 1] and a deviation of at least 0, got {probability} and "
                f"{deviation}."
            )
        self.probability, self.deviation = probability, deviation

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.forward`."""
        rng = generator(rng, "model noise")
        return self._hit(super().forward(x, rng=rng), rng)

    def advance(self, x: Tensor, k: int, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.advance`."""
        rng = generator(rng, "model noise")
        return self._hit(super().advance(x, k, rng=rng), rng)

    def _hit(self, x: Tensor, rng: Rng) -> Tensor:
        if not self.probability or not self.deviation:
            return x
        batch = x.shape[: x.ndim - len(self.state_shape)]
        drawn = uniform(batch, like=x, rng=rng) < self.probability
        hit = drawn.reshape(*batch, *(1,) * len(self.state_shape)).to(x)
        return x + self.deviation * hit * normal(x.shape, like=x, rng=rng)


class SpunUp(_Around):
    """A system with spin-up, so that its initial states are drawn from its climate.

    Args:
        dynamics: The system.
        steps: Number of spin-up steps.

    Raises:
        ValueError: If the number of steps is negative.
    """

    def __init__(self, dynamics: Dynamics, steps: int) -> None:
        super().__init__(dynamics)
        if steps < 0:
            raise InvalidValueError(f"the steps before the start must be at least 0, got {steps}.")
        self.steps = steps

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Dynamics.initial`."""
        rng = generator(rng, "initial")
        x = self.dynamics.initial(*shape, rng=rng)
        for k in range(self.steps):
            x = self.dynamics.advance(x, k, rng=rng)
        return x
