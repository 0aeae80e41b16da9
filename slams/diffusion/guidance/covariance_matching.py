"""Guidance by the covariance that a Gaussian has in closed form, for trajectories and any operators."""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.diffusion.guidance.base import Guidance, GuidedDenoiser
from slams.diffusion.guidance.krylov import conjugate_gradients


class EventCovariance(Protocol):
    """C of an event, in a form in which (C^-1 + r 1)^-1 is cheap."""

    def axes(self, x: Tensor) -> int:
        """Number of event axes of samples; a ValueError if they are no such events."""

    def posterior(self, v: Tensor, ratio: Tensor) -> Tensor:
        """(C^-1 + ratio 1)^-1 v, (*B, *S), ratio () or with ones for the event."""


class DenseCovariance(nn.Module):
    """C as a matrix.

    Args:
        covariance: (n, n), n the values of an event.
    """

    values: Tensor
    vectors: Tensor

    def __init__(self, covariance: Tensor) -> None:
        super().__init__()
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("values", values.clamp(min=1e-8 * float(values[-1])).to(covariance))
        self.register_buffer("vectors", vectors.to(covariance))

    def axes(self, x: Tensor) -> int:
        """Number of axes that hold as many values as the covariance has rows.

        Raises:
            ValueError: If no number of axes does.
        """
        size = 1
        for axes, length in enumerate(reversed(x.shape), 1):
            size *= length
            if size == len(self.values):
                return axes
        raise InvalidValueError(
            f"a covariance of {len(self.values)} values does not belong to samples of shape {tuple(x.shape)}; take that "
            "of a whole event."
        )

    def posterior(self, v: Tensor, ratio: Tensor) -> Tensor:
        """See `EventCovariance.posterior`."""
        event = self.axes(v)
        if ratio.ndim:
            ratio = ratio.reshape(*ratio.shape[: v.ndim - event], 1)
        width = self.values / (1 + ratio * self.values)
        return (((v.flatten(-event) @ self.vectors) * width) @ self.vectors.mT).reshape(v.shape)


@dataclass(frozen=True, eq=False)
class CovarianceMatching(Guidance):
    """Moment matching with V = (C^-1 + (alpha_t / sigma_t)^2 1)^-1 in place of the network's derivative.

    With m = E[x | x_t] of any denoiser, C a covariance of x, and h linearized at m,

        m_y = m + V H^T (H V H^T + R)^-1 (y - h(m)).

    Exact for a Gaussian prior and linear operators. Otherwise V is the average covariance instead of that
    at this x_t; but it costs one evaluation without a backward pass, and no error of a network's derivative enters.

    Attributes:
        covariance: C over the event, (n, n), or in a form of its own such as `FlowCovariance`.
        iterations: Most steps of the solver.
        tolerance: Residual at which a sample's solver stops, relative to its innovation.

    Raises:
        ValueError: If a number is not positive; in sampling, if the event has another size than the covariance.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2, with a covariance in closed form.
    """

    covariance: Tensor | EventCovariance
    iterations: int = 64
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        if self.iterations < 1 or not self.tolerance > 0:
            raise InvalidValueError(
                f"needs iterations >= 1 and a positive tolerance, got {self.iterations} and {self.tolerance}."
            )

    @cached_property
    def _form(self) -> EventCovariance:
        return DenseCovariance(self.covariance) if isinstance(self.covariance, Tensor) else self.covariance

    def pull(self, guided: GuidedDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance.pull`."""
        alpha, sigma = guided.schedule(t)
        with torch.no_grad():
            mean = guided.denoiser(x_t, t)
        self._form.axes(mean)
        ratio = (alpha / sigma) ** 2
        local = guided.evidence.linearized(mean)

        def product(u: Tensor) -> Tensor:
            return u + local.jvp(self._form.posterior(local.vjp(u), ratio))

        solved = conjugate_gradients(
            product, local.innovation, iterations=self.iterations, tolerance=self.tolerance
        )
        return mean, self._form.posterior(local.vjp(solved), ratio).detach()
