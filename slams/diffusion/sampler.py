"""Samplers: from noise to draws of what a denoiser believes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.random import Rng, normal
from slams.diffusion.denoiser import Denoiser


@dataclass(frozen=True)
class Sampler:
    """DDIM (eta = 0) to ancestral sampling (eta = 1), with Langevin corrections.

    With eps = (x_t - alpha_t m) / sigma_t and s < t,

        x_s = alpha_s m + sqrt(sigma_s^2 - c^2) eps + c w,
        c = eta sigma_s sqrt(1 - (alpha_t sigma_s / (alpha_s sigma_t))^2),  w ~ N(0, 1).

    A correction is an unadjusted Langevin step: repeated, it widens white noise to 1 + tau / 2 of its
    variance.

    Attributes:
        steps: Number of times the denoiser is asked on the way from t = 1 to 0.
        eta: Share of ancestral noise.
        corrections: Langevin corrections after each step.
        tau: Size of a correction relative to the score.

    Raises:
        ValueError: If `steps` is below 1.

    Source:
        Song et al. (2021), arXiv:2010.02502, eq. 12 and 16; corrections as in Rozet & Louppe (2023),
        algorithm 4.
    """

    steps: int = 64
    eta: float = 0.0
    corrections: int = 0
    tau: float = 0.5

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1, got {self.steps}.")

    @torch.no_grad()
    def __call__(
        self,
        denoiser: Denoiser,
        noise: Tensor,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draws, one for each row of noise.

        Args:
            denoiser: What is believed.
            noise: Standard normal, shape (N, *event); sets the draw.
            rng: Generator of the noise added on the way.
            progress: Called with 1 after each step.

        Returns:
            Draws of the shape of `noise`.

        Raises:
            FloatingPointError: If a draw is not finite; names the step.
        """
        times = torch.linspace(1, 0, self.steps + 1).to(noise)
        x = noise
        for i in range(self.steps):
            alpha, sigma = denoiser.schedule(times[i])
            alpha_s, sigma_s = denoiser.schedule(times[i + 1])
            mean = denoiser(x, times[i])
            eps = (x - alpha * mean) / sigma
            if self.eta and i < self.steps - 1:
                fresh = (
                    self.eta * sigma_s * (1 - (alpha * sigma_s / (alpha_s * sigma)) ** 2).clamp(min=0).sqrt()
                )
                x = (
                    alpha_s * mean
                    + (sigma_s**2 - fresh**2).sqrt() * eps
                    + fresh * normal(x.shape, like=x, rng=rng)
                )
            else:
                x = alpha_s * mean + sigma_s * eps
            for _ in range(self.corrections if i < self.steps - 1 else 0):
                x = self._correct(denoiser, x, times[i + 1], rng)
            if not bool(torch.isfinite(x).all()):
                raise FloatingPointError(
                    f"the draws are not finite after step {i + 1} of {self.steps}; use more steps."
                )
            if progress is not None:
                progress(1)
        return x

    def _correct(self, denoiser: Denoiser, x: Tensor, t: Tensor, rng: Rng) -> Tensor:
        alpha, sigma = denoiser.schedule(t)
        eps = (x - alpha * denoiser(x, t)) / sigma
        delta = self.tau / eps.square().flatten(1).mean(1).clamp(min=1e-12)
        delta = delta.reshape(-1, *([1] * (x.ndim - 1)))
        return x - sigma * (delta * eps + (2 * delta).sqrt() * normal(x.shape, like=x, rng=rng))
