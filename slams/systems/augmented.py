"""AugmentedParameters: unknown coefficients appended to the state, so that any filter estimates them."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal
from slams.systems.base import Dynamics
from slams.systems.flow import Flow


class AugmentedParameters(Dynamics):
    """The joint system of state and parameters: x' = M(x; theta), theta' = theta + walk sqrt(dt) N(0, I).

    A state is (x, theta): the system's d variables, then one number for each parameter, in the order of
    `start`. Observations of the system see it through `state`:
    `observations.pullback({name: augmented.state})`.

    Args:
        dynamics: The system; each member runs with its own parameters.
        start: Mean and standard deviation of each parameter at the start, by the name of a coefficient.
        walk: Standard deviation of the random walk per square root of model time, one for all or by name; 0
            keeps each member's parameters as they are between analyses.

    Raises:
        ValueError: If there are no parameters, a name is unknown, or a standard deviation is negative.

    Source:
        Anderson (2001), doi:10.1175/1520-0493(2001)129<2884:AEAKFF>2.0.CO;2 (parameters as state variables).
    """

    _mean: Tensor
    _std: Tensor
    _walk: Tensor

    def __init__(
        self,
        dynamics: Flow,
        start: Mapping[str, tuple[float, float]],
        *,
        walk: float | Mapping[str, float] = 0.0,
    ) -> None:
        super().__init__()
        known = getattr(dynamics, "coefficients", ())
        walks = dict(walk) if isinstance(walk, Mapping) else dict.fromkeys(start, float(walk))
        if not start or set(start) - set(known) or set(walks) - set(start):
            raise InvalidValueError(
                f"parameters {[*start]} with walks {[*walks]}: name at least one, walks only of those named, and "
                f"only coefficients of {type(dynamics).__name__}, which are {[*known]}."
            )
        spreads = [std for _, std in start.values()] + [*walks.values()]
        if not all(0 <= spread < math.inf for spread in spreads):
            raise InvalidValueError(f"standard deviations must not be negative, got {spreads}.")
        self.dynamics, self.names, self.dt = dynamics, tuple(start), dynamics.dt
        self.size = dynamics.size + len(start)
        self.state_shape = (self.size,)
        dtype = dynamics.start.mean.dtype if dynamics.start is not None else None
        mean, std = torch.tensor([*start.values()], dtype=dtype).unbind(-1)
        self.register_buffer("_mean", mean.clone(), persistent=False)
        self.register_buffer("_std", std.clone(), persistent=False)
        steps = [walks.get(name, 0.0) * math.sqrt(self.dt) for name in start]
        self.register_buffer("_walk", torch.tensor(steps, dtype=dtype), persistent=False)
        self._walks = any(steps)

    def state(self, x: Tensor) -> Tensor:
        """The system's own variables, (*B, d + P) to (*B, d)."""
        return x[..., : self.dynamics.size]

    def parameters_of(self, x: Tensor) -> dict[str, Tensor]:
        """The parameters by name, each (*B)."""
        return dict(zip(self.names, x[..., self.dynamics.size :].unbind(-1), strict=True))

    def joined(self, x: Tensor, values: Mapping[str, float | Tensor]) -> Tensor:
        """States of the system with parameters appended, as of a known truth.

        Args:
            x: States, (*B, d).
            values: Parameters by name, numbers or (*B).

        Returns:
            (*B, d + P).

        Raises:
            ValueError: If a parameter is missing or unknown.
        """
        if set(values) != set(self.names):
            raise InvalidValueError(
                f"the parameters are {[*self.names]}, got {[*values]}; give each one value."
            )
        columns = [torch.as_tensor(values[name]).to(x).expand(x.shape[:-1]) for name in self.names]
        return torch.cat([x, torch.stack(columns, -1)], -1)

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draws of the system's initial distribution with independent parameters, (*shape, d + P)."""
        rng = generator(rng, "initial")
        x = self.dynamics.initial(*shape, rng=rng)
        draw = normal((*shape, len(self.names)), like=self._mean, rng=rng)
        return torch.cat([x, self._mean + self._std * draw], -1)

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """Advance by one `dt`, each state with its own parameters.

        Args:
            x: States, (*B, d + P).
            rng: Source of the noise of the system and of the walk.

        Returns:
            States one step later, (*B, d + P).

        Raises:
            ValueError: If the last axis is not d + P.
        """
        if x.shape[-1:] != self.state_shape:
            raise InvalidValueError(
                f"states have shape {tuple(x.shape)}, but the last axis must be {self.size}: "
                f"{self.dynamics.size} variables and the parameters {[*self.names]}; see `joined`."
            )
        state, theta = x.split([self.dynamics.size, len(self.names)], -1)
        values = dict(zip(self.names, theta.split(1, -1), strict=True))
        rng = generator(rng, "model noise") if self._walks else rng
        after = self.dynamics(state, rng=rng, **values)
        if self._walks:
            theta = theta + self._walk * normal(theta.shape, like=theta, rng=rng)
        return torch.cat([after, theta], -1)
