"""Score-based assimilation: posterior draws of trajectories under a denoiser of windows."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.core.random import Rng, normal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance import CovarianceGuidance, GaussianGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.trajectory import MarkovBlanket
from slams.observation.observation import Observations


class SDA(Assimilator):
    """Samples of p(x_1..x_T | y_1..y_T) by a guided denoiser, windows composed over the trajectory.

    Args:
        denoiser: Prior over windows of L steps.
        gaussian: Closed form of the same windows, for the guidance's covariance.
        jacobians: Linearized operators of the modalities on the Gaussian's patterns, (prod(O), K) each.
        sampler: How to draw.
        guidance: "covariance" (see `CovarianceGuidance`) or "sda" (`GaussianGuidance`).
        gamma: Of "sda".

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574; the guidance differs, see `CovarianceGuidance`.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        gaussian: WindowGaussian,
        jacobians: Mapping[str, Tensor],
        sampler: Sampler,
        *,
        guidance: Literal["covariance", "sda"] = "covariance",
        gamma: float = 1e-2,
    ) -> None:
        self.denoiser = denoiser
        self.gaussian = gaussian
        self.jacobians = dict(jacobians)
        self.sampler = sampler
        self.guidance = guidance
        self.gamma = gamma

    def assimilate(  # noqa: D102
        self,
        observations: Observations,
        size: int,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Posterior:
        windows = observations.windows(self.gaussian.length)
        drawn = self.windows(windows, size, blanket=True, rng=rng, progress=progress)
        return Posterior(drawn)

    def windows(
        self,
        observations: Observations,
        size: int,
        *,
        blanket: bool = False,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draws for many windows at once, each with its own observations.

        Args:
            observations: Values (W, L, *O).
            size: N.
            blanket: Whether the windows overlap by L - 1 steps and form one trajectory.
            rng: Generator.
            progress: Called with 1 after each step of the sampler.

        Returns:
            (N, W, L, *Z), or the trajectory (N, W + L - 1, *Z).
        """
        if size < 1:
            raise ValueError(f"an ensemble needs at least one member, got {size}.")
        if self.guidance == "sda":
            guided: Denoiser = GaussianGuidance(self.denoiser, observations, self.gamma)
        else:
            jacobians = {name: self.jacobians[name] for name in observations}
            guided = CovarianceGuidance(self.denoiser, self.gaussian, observations, jacobians)
        count, length = observations.batch[0], self.gaussian.length
        event, like = self.gaussian.event, self.gaussian.basis
        if blanket:
            noise = normal((size, count + length - 1, *event), like=like, rng=rng)
            return self.sampler(MarkovBlanket(guided, length), noise, rng=rng, progress=progress)
        noise = normal((size, count, length, *event), like=like, rng=rng)
        return self.sampler(guided, noise, rng=rng, progress=progress)

    @torch.no_grad()
    def prior(self, size: int, *, rng: Rng = None) -> Tensor:
        """Unconditional draws of windows, (N, L, *Z)."""
        shape = (size, self.gaussian.length, *self.gaussian.event)
        noise = normal(shape, like=self.gaussian.basis, rng=rng)
        return self.sampler(self.denoiser, noise, rng=rng)
