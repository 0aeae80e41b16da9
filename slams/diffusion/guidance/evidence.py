"""Whitened innovations of a state and their derivatives, for guidance."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.core.errors import InvalidTypeError
from slams.observation.observation import Observation, Observations


@dataclass(frozen=True)
class Linearized:
    """W (y - h(x)) near one x, to first order, each sample of a batch on its own.

    With G = W dh/dx and W^T W = R^-1 for what was seen:

    Attributes:
        innovation: W (y - h(x)), shape (*B, n), 0 where nothing was seen.
        vjp: u (*B, n) -> G^T u, shape of x.
        jvp: v, shape of x -> G v (*B, n).
    """

    innovation: Tensor
    vjp: Callable[[Tensor], Tensor]
    jvp: Callable[[Tensor], Tensor]


class Evidence:
    """One observation, or those of several modalities along a window, as one whitened vector a sample.

    States and values broadcast from the right: a window (*B, L, *S) meets values (*B, L, *O), and further
    draws stand in front of *B. With `members` they stand behind it, (*B, N, L, *S).

    Args:
        observations: Values (*B, L, *O) of each modality, or of a single time (*B, *O).
        members: Whether samples have an axis of members between the axes of the values' batch and the event.
    """

    def __init__(self, observations: Observations | Observation, *, members: bool = False) -> None:
        self.windowed = isinstance(observations, Observations)
        parts = list(observations.values()) if isinstance(observations, Observations) else [observations]
        self._width = 2 if self.windowed else 1
        if members:
            parts = [replace(o, value=o.value.unsqueeze(-o.event - self._width)) for o in parts]
        self.parts = parts

    def residual(self, x: Tensor) -> Tensor:
        """y - h(x), not whitened, 0 where nothing was seen: (*B, [L,] *S) -> (*B, n)."""
        return self._join([o.residual(x) for o in self.parts])

    def innovation(self, x: Tensor) -> Tensor:
        """W (y - h(x)): (*B, [L,] *S) -> (*B, n)."""
        return self._join([o.whiten(o.residual(x), members=False) for o in self.parts])

    @property
    def std(self) -> Tensor:
        """Error standard deviation of each value, (*B, n), values that were not seen included.

        Raises:
            TypeError: If errors are correlated.
        """
        for o in self.parts:
            if not isinstance(o.noise, Diagonal):
                raise InvalidTypeError(
                    f"this guidance needs independent errors, got a {type(o.noise).__name__} covariance; "
                    "use MomentMatching."
                )
        deviations = [o.noise.variance.sqrt().expand(o.seen.shape) for o in self.parts]  # type: ignore[attr-defined]
        return self._join(deviations)

    def linearized(self, x: Tensor) -> Linearized:
        """h to first order at x.

        The derivative along v comes from differentiating G^T u by u, so that every operator with a second
        derivative is supported, with or without forward-mode differentiation.
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            innovation = self.innovation(leaf)
            dual = torch.zeros_like(innovation, requires_grad=True)
            (pulled,) = torch.autograd.grad(innovation, leaf, dual, create_graph=True)

        def vjp(u: Tensor) -> Tensor:
            return -torch.autograd.grad(innovation, leaf, u, retain_graph=True)[0]

        def jvp(v: Tensor) -> Tensor:
            return -torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

        return Linearized(innovation.detach(), vjp, jvp)

    def _join(self, parts: list[Tensor]) -> Tensor:
        flat = [part.flatten(-2) if self.windowed else part for part in parts]
        if len(flat) == 1:
            return flat[0]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, -1) for part in flat], -1)
