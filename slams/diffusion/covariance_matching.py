"""Guidance by the covariance that a Gaussian has in closed form, for trajectories and any operators."""

import torch
from torch import Tensor

from slams.diffusion.denoiser import Denoiser
from slams.diffusion.evidence import Evidence, refuse_broken
from slams.diffusion.krylov import conjugate_gradients
from slams.observation.observation import Observation, Observations


class CovarianceMatching(Denoiser):
    """Moment matching with V = (C^-1 + (alpha_t / sigma_t)^2 1)^-1 in place of the network's derivative.

    With m = E[x | x_t] of any denoiser, C a covariance of x, and h linearized at m,

        m_y = m + V H^T (H V H^T + R)^-1 (y - h(m)).

    Exact for a Gaussian prior and linear operators. Otherwise V knows how far a value tells of others on average, and not
    at this x_t; but it costs one evaluation without a backward pass, and no error of a network's derivative enters.

    Args:
        denoiser: The prior.
        observations: What was seen, any operators and errors: values (*B, L, *O) along windows, or (*B, *O).
        covariance: C over the event, (n, n).
        iterations: Most steps of the solver.
        tolerance: Residual at which a sample's solver stops, relative to its innovation.

    Raises:
        ValueError: If a number is not positive.
        FloatingPointError: In sampling, if a guided mean is not finite; names time and norm of the guidance.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2, with a covariance in closed form.
    """

    values: Tensor
    vectors: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations | Observation,
        *,
        covariance: Tensor,
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
        values, vectors = torch.linalg.eigh(covariance.double())
        self.register_buffer("values", values.clamp(min=1e-8 * float(values[-1])).to(covariance))
        self.register_buffer("vectors", vectors.to(covariance))
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
        event = self._event(mean)
        ratio = (alpha / sigma) ** 2
        if ratio.ndim:
            ratio = ratio.reshape(*ratio.shape[: mean.ndim - event], 1)
        width = self.values / (1 + ratio * self.values)

        def spread(v: Tensor) -> Tensor:
            flat = v.flatten(-event)
            return (((flat @ self.vectors) * width) @ self.vectors.mT).reshape(v.shape)

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

    def _event(self, x: Tensor) -> int:
        """Number of axes that hold as many values as the covariance has rows."""
        size = 1
        for axes, length in enumerate(reversed(x.shape), 1):
            size *= length
            if size == len(self.values):
                return axes
        raise ValueError(
            f"a covariance of {len(self.values)} values does not belong to samples of shape {tuple(x.shape)}; take that "
            "of a whole event."
        )
