"""Guidance by the gradient of the misfit's norm, without an error covariance."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.diffusion.guidance.base import Guidance, GuidedDenoiser


@dataclass(frozen=True, eq=False)
class PosteriorSampling(Guidance):
    """m_y = m - zeta sigma_t^2 / alpha_t grad_{x_t} E / sqrt(E),  E = |y - h(m)|^2 of each sample.

    The norm replaces the noise level, so that the strength of the guidance does not depend on R: a baseline.

    Attributes:
        zeta: Strength, positive.

    Raises:
        ValueError: If zeta is not positive.

    Source:
        Chung et al. (2023), arXiv:2209.14687, algorithm 1; in the form of Rozet & Louppe (2023),
        arXiv:2306.10574, whose code takes one norm over a whole batch, by which its samples depend on each other.
    """

    zeta: float = 1.0

    def __post_init__(self) -> None:
        if self.zeta <= 0:
            raise InvalidValueError(f"zeta must be positive, got {self.zeta}.")

    def pull(self, guided: GuidedDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance.pull`."""
        alpha, sigma = guided.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = guided.denoiser(leaf, t)
            residual = guided.evidence.residual(mean)
            norm = residual.detach().norm(dim=-1, keepdim=True)
            # grad E / sqrt(E) = -2 (dh/dx)^T r / |r|, 0 where nothing was seen or all is met
            met = norm == 0
            unit = torch.where(met, 0.0, residual.detach() / torch.where(met, 1.0, norm))
            (pulled,) = torch.autograd.grad(residual, leaf, unit)
        return mean.detach(), -2 * self.zeta * sigma**2 / alpha * pulled
