"""Dynamics: the common interface of all forecast models."""

import abc

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.geometry.places import Geometry
from slams.core.random import Rng, generator


class Dynamics(nn.Module, abc.ABC):
    """A discrete-time system x_{k+1} = M(x_k), possibly stochastic.

    Attributes:
        state_shape: Event shape `*S` of one state.
        dt: Model time between two states, in the unit the subclass names.
    """

    state_shape: tuple[int, ...]
    dt: float
    _geometry: Geometry | None = None

    @property
    def geometry(self) -> Geometry | None:
        """Positions of the variables; None if they have none, unless set."""
        return self._geometry

    @geometry.setter
    def geometry(self, geometry: Geometry | None) -> None:
        self._geometry = geometry

    @abc.abstractmethod
    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draw independent initial states.

        Args:
            *shape: Leading axes of the draw.
            rng: Generator or seed; a fresh seed if None.

        Returns:
            States, `(*shape, *S)`.
        """

    @abc.abstractmethod
    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by one `dt`.

        Args:
            x: States, `(*B, *S)`.
            rng: Generator or seed, for stochastic systems.

        Returns:
            States one step later, `(*B, *S)`.
        """

    def advance(self, x: Tensor, k: int, *, rng: Rng = None) -> Tensor:
        """States at step k + 1 from those at step k, for systems that vary in time; else `forward`.

        Args:
            x: States at step k, `(*B, *S)`.
            k: Number of the step.
            rng: Generator or seed, for stochastic systems.

        Returns:
            `(*B, *S)`.
        """
        return self(x, rng=rng)

    def trajectory(self, x: Tensor, steps: int, *, rng: Rng = None) -> Tensor:
        """Advance `steps` times and keep every state, the first included.

        Args:
            x: States, `(*B, *S)`.
            steps: Number of steps, at least 0.
            rng: Generator or seed, for stochastic systems.

        Returns:
            Trajectory, `(*B, 1 + steps, *S)`.

        Raises:
            ValueError: If the trailing axes are not `state_shape` or `steps` is negative.
        """
        event = len(self.state_shape)
        if x.ndim < event or tuple(x.shape[x.ndim - event :]) != tuple(self.state_shape):
            raise InvalidValueError(
                f"states have shape {tuple(x.shape)}, but the last {event} axes must be "
                f"{tuple(self.state_shape)}; start from `initial()`."
            )
        if steps < 0:
            raise InvalidValueError(f"steps must be at least 0, got {steps}.")
        states, rng = [x], generator(rng, "trajectory")
        for k in range(steps):
            states.append(self.advance(states[-1], k, rng=rng))
        return torch.stack(states, dim=x.ndim - event)
