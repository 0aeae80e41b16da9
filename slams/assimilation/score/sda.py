"""Score-based assimilation: posterior draws of trajectories under a denoiser of windows or of trajectories."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.core.random import Rng, normal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.sda import CovarianceGuidance, GaussianGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.trajectory import MarkovBlanket
from slams.observation.observation import Observations

Guidance = Callable[[Denoiser, Observations], Denoiser]


class TrajectorySDA(Assimilator):
    """Samples of p(x_1..x_L | y_1..y_L) by guiding a denoiser of whole trajectories.

    The prior is composed first and guided then, so that any observations will do: of several modalities, through any
    differentiable operators, of one step or of differences between steps that a window does not span.

    Args:
        denoiser: Prior of trajectories (N, L, *Z) of any length, such as a `MarkovBlanket`.
        sampler: How to draw.
        guidance: Makes the guided denoiser from the prior and the observations; `GaussianGuidance` with gamma = 0.01,
            as published, if None.
        event: *Z.
        dtype: Of the draws.
        rows: Trajectories drawn at once, over all replicates, which bounds memory; all if None.

    Raises:
        ValueError: If `rows` is not positive.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, algorithms 2 to 4.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        sampler: Sampler,
        *,
        event: Sequence[int],
        guidance: Guidance | None = None,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
    ) -> None:
        if rows is not None and rows < 1:
            raise ValueError(f"rows must be a positive number of trajectories, got {rows}.")
        self.denoiser = denoiser
        self.sampler = sampler
        self.event = tuple(event)
        self.guidance = guidance or GaussianGuidance
        self.dtype = dtype or torch.get_default_dtype()
        self.rows = rows

    def assimilate(  # noqa: D102
        self,
        observations: Observations,
        size: int,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Posterior:
        if size < 1:
            raise ValueError(f"an ensemble needs at least one member, got {size}.")
        self._check(observations.steps)
        batch = observations.batch
        count = batch.numel() * size
        device = next(iter(observations.values())).value.device
        like = torch.empty(0, dtype=self.dtype, device=device)
        noise = normal((count, observations.steps, *self.event), like=like, rng=rng)
        drawn = []
        for rows in torch.arange(count, device=device).split(self.rows or count):
            # without replicates all rows share one record, which need not be conditioned on row by row
            seen = _rows(observations, rows // size) if len(batch) else observations
            guided = self.guidance(self.denoiser, seen)
            drawn.append(self.sampler(guided, noise[rows], rng=rng, progress=progress))
        return Posterior(torch.cat(drawn).reshape(*batch, size, observations.steps, *self.event))

    def _check(self, steps: int) -> None:
        """Whether the denoiser can say anything of so many steps."""
        own = getattr(self.denoiser, "length", None)
        composed = isinstance(self.denoiser, MarkovBlanket)
        if own is None or steps == own or (composed and steps > own):
            return
        remedy = (
            "pad them with steps at which nothing was seen"
            if composed
            else "compose its windows with MarkovBlanket, which takes any length from a window's on"
        )
        raise ValueError(f"{steps} steps, but the denoiser is one of windows of {own}; {remedy}.")

    def prior(self, size: int, length: int, *, rng: Rng = None) -> Tensor:
        """Unconditional draws, (N, L, *Z)."""
        self._check(length)
        noise = normal((size, length, *self.event), dtype=self.dtype, rng=rng)
        return self.sampler(self.denoiser, noise, rng=rng)


def _rows(observations: Observations, replicate: Tensor) -> Observations:
    """What each of many samples is held against: values (n, L, *O), of replicate (n)."""
    made = {}
    for name, o in observations.items():
        value = o.value.reshape(-1, *o.value.shape[-1 - o.event :])
        made[name] = replace(o, value=value[replicate])
    return Observations(made)


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
