"""What guidance needs to know of observations: whitened innovations of a state, and how they change with it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from slams.core.covariance import Diagonal
from slams.observation.observation import Observation, Observations


@dataclass(frozen=True)
class Linearized:
    """W (y - h(x)) near one x, to first order, each sample of a batch on its own.

    With G = W dh/dx and W^T W = R^-1 for what was seen:

    Attributes:
        innovation: W (y - h(x)), shape (*B, n), 0 where nothing was seen.
        pull: u (*B, n) -> G^T u, shape of x.
        push: v, shape of x -> G v (*B, n).
    """

    innovation: Tensor
    pull: Callable[[Tensor], Tensor]
    push: Callable[[Tensor], Tensor]


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
                raise TypeError(
                    f"this guidance needs independent errors, got a {type(o.noise).__name__} covariance; "
                    "use MomentMatching."
                )
        deviations = [o.noise.variance.sqrt().expand(o.seen.shape) for o in self.parts]  # type: ignore[attr-defined]
        return self._join(deviations)

    def linearized(self, x: Tensor) -> Linearized:
        """h to first order at x.

        The derivative along v comes from differentiating G^T u by u, so that every operator with a second
        derivative will do, whether or not it knows forward-mode differentiation.
        """
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            innovation = self.innovation(leaf)
            dual = torch.zeros_like(innovation, requires_grad=True)
            (pulled,) = torch.autograd.grad(innovation, leaf, dual, create_graph=True)

        def pull(u: Tensor) -> Tensor:
            return -torch.autograd.grad(innovation, leaf, u, retain_graph=True)[0]

        def push(v: Tensor) -> Tensor:
            return -torch.autograd.grad(pulled, dual, v, retain_graph=True)[0]

        return Linearized(innovation.detach(), pull, push)

    def _join(self, parts: list[Tensor]) -> Tensor:
        flat = [part.flatten(-2) if self.windowed else part for part in parts]
        if len(flat) == 1:
            return flat[0]
        batch = torch.broadcast_shapes(*(part.shape[:-1] for part in flat))
        return torch.cat([part.expand(*batch, -1) for part in flat], -1)


def refuse_broken(guided: Tensor, guidance: Tensor, t: Tensor) -> None:
    """Stops where a guided mean is not finite.

    Args:
        guided: E[x | x_t, y] (*B, *S).
        guidance: What guidance added to the prior's mean, shape of `guided`.
        t: Diffusion time.

    Raises:
        FloatingPointError: If a value is not finite; names the time and the largest norm of the guidance.
    """
    if bool(torch.isfinite(guided).all()):
        return
    finite = torch.isfinite(guidance)
    largest = float(torch.where(finite, guidance, 0.0).reshape(len(guidance), -1).norm(dim=1).max())
    raise FloatingPointError(
        f"the guided mean is not finite at diffusion time {float(t.max()):.3f} (largest norm of the finite part "
        f"of the guidance {largest:g}, {int((~finite).sum())} of its values not finite); check the observations "
        "and their errors, or take more steps."
    )
