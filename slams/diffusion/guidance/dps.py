"""Guidance by the gradient of the misfit's norm, which knows no error covariance."""

import torch
from torch import Tensor

from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.evidence import Evidence, refuse_broken
from slams.observation.observation import Observation, Observations


class PosteriorSampling(Denoiser):
    """m_y = m - zeta sigma_t^2 / alpha_t grad_{x_t} E / sqrt(E),  E = |y - h(m)|^2 of each sample.

    The norm replaces the noise level, so that the strength of the pull does not depend on R: a baseline.

    Args:
        denoiser: The prior.
        observations: What was seen: values (*B, L, *O) along windows, or (*B, *O).
        zeta: Strength, positive.
        members: Whether samples are (*B, N, [L,] *S), with members behind the axes of the observations' batch,
            instead of (N, *B, [L,] *S).

    Raises:
        ValueError: If zeta is not positive.
        FloatingPointError: In sampling, if a guided mean is not finite; names time and norm of the guidance.

    Source:
        Chung et al. (2023), arXiv:2209.14687, algorithm 1; in the form of Rozet & Louppe (2023),
        arXiv:2306.10574, whose code takes one norm over a whole batch, by which its samples depend on each other.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations | Observation,
        zeta: float = 1.0,
        *,
        members: bool = False,
    ) -> None:
        super().__init__()
        if zeta <= 0:
            raise ValueError(f"zeta must be positive, got {zeta}.")
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.zeta = zeta
        self.evidence = Evidence(observations, members=members)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, [L,] *S), () or (b, 1, ..., 1) -> shape of `x_t`; not differentiable any further."""
        alpha, sigma = self.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = self.denoiser(leaf, t)
            residual = self.evidence.residual(mean)
            norm = residual.detach().norm(dim=-1, keepdim=True)
            # grad E / sqrt(E) = -2 (dh/dx)^T r / |r|, 0 where nothing was seen or all is met
            met = norm == 0
            unit = torch.where(met, 0.0, residual.detach() / torch.where(met, 1.0, norm))
            (pulled,) = torch.autograd.grad(residual, leaf, unit)
        guidance = -2 * self.zeta * sigma**2 / alpha * pulled
        guided = mean.detach() + guidance
        refuse_broken(guided, guidance, t)
        return guided
