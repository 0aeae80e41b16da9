"""Guidance by the covariance that a Gaussian has in closed form, for trajectories and any operators."""

from typing import Protocol

import torch
from torch import Tensor, nn

from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.evidence import Evidence, refuse_broken
from slams.diffusion.guidance.krylov import conjugate_gradients
from slams.observation.observation import Observation, Observations


class Covariance(Protocol):
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
        raise ValueError(
            f"a covariance of {len(self.values)} values does not belong to samples of shape {tuple(x.shape)}; take that "
            "of a whole event."
        )

    def posterior(self, v: Tensor, ratio: Tensor) -> Tensor:
        """See `Covariance.posterior`."""
        event = self.axes(v)
        if ratio.ndim:
            ratio = ratio.reshape(*ratio.shape[: v.ndim - event], 1)
        width = self.values / (1 + ratio * self.values)
        return (((v.flatten(-event) @ self.vectors) * width) @ self.vectors.mT).reshape(v.shape)


class CovarianceMatching(Denoiser):
    """Moment matching with V = (C^-1 + (alpha_t / sigma_t)^2 1)^-1 in place of the network's derivative.

    With m = E[x | x_t] of any denoiser, C a covariance of x, and h linearized at m,

        m_y = m + V H^T (H V H^T + R)^-1 (y - h(m)).

    Exact for a Gaussian prior and linear operators. Otherwise V knows how far a value tells of others on average, and not
    at this x_t; but it costs one evaluation without a backward pass, and no error of a network's derivative enters.

    Args:
        denoiser: The prior.
        observations: What was seen, any operators and errors: values (*B, L, *O) along windows, or (*B, *O).
        covariance: C over the event, (n, n), or in a form of its own such as `FlowCovariance`.
        iterations: Most steps of the solver.
        tolerance: Residual at which a sample's solver stops, relative to its innovation.

    Raises:
        ValueError: If a number is not positive.
        FloatingPointError: In sampling, if a guided mean is not finite; names time and norm of the guidance.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2, with a covariance in closed form.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations | Observation,
        *,
        covariance: Tensor | Covariance,
        iterations: int = 64,
        tolerance: float = 1e-3,
    ) -> None:
        super().__init__()
        if iterations < 1 or not tolerance > 0:
            raise ValueError(
                f"needs iterations >= 1 and a positive tolerance, got {iterations} and {tolerance}."
            )
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.evidence = Evidence(observations)
        self.covariance = DenseCovariance(covariance) if isinstance(covariance, Tensor) else covariance
        self.iterations = iterations
        self.tolerance = tolerance

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, [L,] *S), () or (b, 1, ..., 1) -> shape of `x_t`; not differentiable.

        Raises:
            ValueError: If the event has another size than the covariance.
        """
        alpha, sigma = self.schedule(t)
        with torch.no_grad():
            mean = self.denoiser(x_t, t)
        self.covariance.axes(mean)
        ratio = (alpha / sigma) ** 2

        def spread(v: Tensor) -> Tensor:
            return self.covariance.posterior(v, ratio)

        local = self.evidence.linearized(mean)

        def product(u: Tensor) -> Tensor:
            return u + local.push(spread(local.pull(u)))

        solved = conjugate_gradients(
            product, local.innovation, iterations=self.iterations, tolerance=self.tolerance
        )
        guidance = spread(local.pull(solved)).detach()
        guided = mean + guidance
        refuse_broken(guided, guidance, t)
        return guided
