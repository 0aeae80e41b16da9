"""Score-based data assimilation: posterior draws of trajectories under a denoiser of windows or of trajectories."""

import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from slams.assimilation.base import Assimilator, Posterior
from slams.assimilation.checks import check_observations
from slams.core.errors import InvalidTypeError, InvalidValueError
from slams.core.random import Rng, generator, normal, settled
from slams.core.renamed import old_keywords
from slams.diffusion.denoiser import Denoiser, NetworkDenoiser, WindowGaussian
from slams.diffusion.divergence import refuse_diverged
from slams.diffusion.guidance.sda import CovarianceGuidance, GaussianGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.trajectory import MarkovBlanket
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser
from slams.observation.observation import Observations

GuidanceLike = Callable[[Denoiser, Observations], Denoiser]


class SDA(Assimilator):
    """Samples of p(x_1..x_L | y_1..y_L) by a guided denoiser.

    A prior of trajectories, such as a `MarkovBlanket`, is guided as a whole, so that any observations will do: of one
    step, or of differences between steps that a window does not span. A prior of windows is composed over longer records:
    where prior and guidance have a covariance in closed form, its Gaussian is extended to the record exactly
    (`TrajectoryDenoiser`); else windows are guided one by one, and the guided ones composed (`MarkovBlanket`).

    Args:
        prior: E[x | x_t] of trajectories or of windows.
        sampler: Sampler of the draws.
        guidance: Guidance, an object such as `CovarianceGuidance()` (the default: exact for a Gaussian prior
            and linear operators), `GaussianGuidance(gamma)` (as published), `MomentMatching()`; or any function of
            prior and observations that returns the guided denoiser.
        event: Event shape *Z; that of the prior if None.
        dtype: Dtype of the draws; that of the prior if None.
        rows: Trajectories drawn at once, over all replicates, which bounds memory; all if None.

    Raises:
        TypeError: If the prior is no denoiser, or a class stands for an object.
        ValueError: If `rows` is not positive, or the shape of a state unknown.

    Draws that are not finite, or larger than 1e6 standard deviations of the data (the `std` that the prior's parts state,
    at least 1), are a FloatingPointError in every call that draws, whatever the sampler and the guidance; draws of a
    network beyond 100 are a `DivergenceWarning`.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, algorithms 2 to 4; the default guidance differs, see
        `CovarianceGuidance`.
    """

    def __init__(
        self,
        prior: Denoiser,
        sampler: Sampler,
        *older: Any,
        guidance: GuidanceLike | None = None,
        event: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        rows: int | None = None,
        **settings: Any,
    ) -> None:
        if older:
            sampler, guidance = _older(sampler, *older, guidance=guidance, **settings)
        elif settings:
            raise InvalidTypeError(
                f"SDA has no setting {sorted(settings)[0]!r}; see `guidance` for those of guidances."
            )
        if rows is not None and rows < 1:
            raise InvalidValueError(f"rows must be a positive number of trajectories, got {rows}.")
        _check(prior, sampler, guidance)
        self.denoiser = prior
        self.sampler = sampler
        self.guidance: GuidanceLike = CovarianceGuidance() if guidance is None else guidance
        self.length: int | None = getattr(prior, "length", None)
        event = getattr(prior, "event", None) if event is None else event
        if not isinstance(event, Sequence):
            raise InvalidValueError(
                f"{type(prior).__name__} does not state the shape of a state; pass event=(…)."
            )
        self.event = tuple(event)
        self.dtype = _like(prior).dtype if dtype is None else dtype
        self.rows = rows

    @old_keywords("method setting")
    def assimilate(  # noqa: D102
        self,
        observations: Observations,
        members: int,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Posterior:
        check_observations(observations)
        source, seed = settled(rng)
        rng = generator(source, "method")
        batch, steps = observations.batch, observations.steps
        like = torch.empty(0, dtype=self.dtype, device=next(iter(observations.values())).value.device)
        noise = self._noise((batch.numel() * members, steps), like, rng)
        drawn = [
            self._drawn(guided, noise[rows], rng, progress)
            for rows, guided in self._guided(observations, members)
        ]
        return Posterior(torch.cat(drawn).reshape(*batch, members, steps, *self.event), seed=seed)

    def windows(
        self,
        observations: Observations,
        members: int,
        *,
        rng: Rng = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """Draws for many windows at once, each with its own observations.

        Args:
            observations: Values (W, L, *O); L may be longer than the prior's windows, which are then composed.
            members: N.
            rng: Generator or seed.
            progress: Called with 1 after each step of the sampler.

        Returns:
            (N, W, L, *Z).
        """
        rng, like = generator(rng, "method"), _like(self.denoiser).to(self.dtype)
        shape = (members, observations.batch[0], observations.steps)
        guided = self.guidance(self._whole(observations.steps), observations)
        return self._drawn(guided, self._noise(shape, like, rng), rng, progress)

    def prior(self, members: int, length: int | None = None, *, rng: Rng = None) -> Tensor:
        """Unconditional draws.

        Args:
            members: N.
            length: L; that of the prior's windows if None.
            rng: Generator or seed.

        Returns:
            (N, L, *Z).

        Raises:
            ValueError: If the prior has no length of its own, or one that does not fit.
        """
        steps = length or self.length
        if steps is None:
            raise InvalidValueError("this prior takes any length; give the number of steps.")
        whole = self._whole(steps)
        rng, like = generator(rng, "prior"), _like(self.denoiser).to(self.dtype)
        return self._drawn(whole, self._noise((members, steps), like, rng), rng, None)

    def _drawn(
        self, denoiser: Denoiser, noise: Tensor, rng: Rng, progress: Callable[[int], None] | None
    ) -> Tensor:
        """Draws of the sampler, whichever it is, refused where they diverged."""
        more = {} if progress is None else {"progress": progress}
        draws = self.sampler(denoiser, noise, rng=rng, **more)
        return refuse_diverged(draws, self.denoiser, type(self.sampler).__name__)

    def _noise(self, shape: tuple[int, ...], like: Tensor, rng: Rng) -> Tensor:
        if shape[0] < 1:
            raise InvalidValueError(f"an ensemble needs at least one member, got {shape[0]}.")
        return normal((*shape, *self.event), like=like, rng=rng)

    def _guided(self, observations: Observations, members: int) -> Iterator[tuple[Tensor, Denoiser]]:
        """Rows of the draws, over all replicates, that are drawn at once, and their guided denoiser."""
        count, steps = observations.batch.numel(), observations.steps
        index = torch.arange(count * members, device=next(iter(observations.values())).value.device)
        prior = self._whole(steps)
        if isinstance(prior, MarkovBlanket) and prior is not self.denoiser:
            window = prior.length
            for replicate, own in enumerate(index.split(members)):
                record = _records(observations, replicate).windows(window)
                guided = MarkovBlanket(self.guidance(self.denoiser, record), window)
                yield from ((rows, guided) for rows in own.split(self.rows or members))
            return
        for rows in index.split(self.rows or len(index)):
            # without replicates all rows share one record, which need not be conditioned on row by row
            record = _records(observations, rows // members) if observations.batch else observations
            yield rows, self.guidance(prior, record)

    def _whole(self, steps: int) -> Denoiser:
        """The prior of records of so many steps: as it is, or composed of its windows."""
        window, exact = self._window(steps), getattr(self.guidance, "closed_form", False)
        if window is None:
            return self.denoiser
        if exact and isinstance(self.denoiser, (NetworkDenoiser, WindowGaussian)):
            return TrajectoryDenoiser(self.denoiser, steps)
        return MarkovBlanket(self.denoiser, window)

    def _window(self, steps: int) -> int | None:
        """Length of the windows to be composed over so many steps, None where the prior takes them as they are."""
        own, whole = self.length, isinstance(self.denoiser, MarkovBlanket)
        if own is None or steps == own or (whole and steps > own):
            return None
        if steps > own and own % 2:
            return own
        remedy = (
            "pad them with steps at which nothing was seen"
            if steps < own
            else "composed trajectories need windows of an odd number of steps"
        )
        raise InvalidValueError(f"{steps} steps, but the denoiser is one of windows of {own}; {remedy}.")


class TrajectorySDA(SDA):
    """The name of `SDA` with the published guidance in earlier versions; it works until 0.4."""

    def __init__(self, denoiser: Denoiser, sampler: Sampler, **settings: Any) -> None:
        warnings.warn(
            "TrajectorySDA(denoiser, …) is now SDA(prior, …); TrajectorySDA works until version 0.4.",
            FutureWarning,
            stacklevel=2,
        )
        guidance = settings.pop("guidance", None) or GaussianGuidance()
        guidance = guidance() if isinstance(guidance, type) else guidance
        super().__init__(denoiser, sampler, guidance=guidance, **settings)


def _older(
    gaussian: Any, jacobians: Any, sampler: Any = None, *, guidance: Any = None, gamma: float = 1e-2
) -> tuple[Any, GuidanceLike]:
    """Sampler and guidance of the form SDA(denoiser, gaussian, jacobians, sampler) of earlier versions."""
    warnings.warn(
        "SDA(denoiser, gaussian, jacobians, sampler) is now SDA(prior, sampler, guidance=CovarianceGuidance("
        "gaussian, jacobians)); the older form works until version 0.4.",
        FutureWarning,
        stacklevel=3,
    )
    published = guidance == "sda"
    return sampler, GaussianGuidance(gamma) if published else CovarianceGuidance(gaussian, jacobians)


def _check(prior: object, sampler: object, guidance: object) -> None:
    """Objects of the user, at the door."""
    for name, thing in (("prior", prior), ("sampler", sampler), ("guidance", guidance)):
        if isinstance(thing, type):
            raise InvalidTypeError(
                f"the {name} is the class {thing.__name__}; pass an object, {thing.__name__}(…)."
            )
    if not isinstance(prior, Denoiser):
        raise InvalidTypeError(
            f"a prior is a Denoiser, E[x | x_t], got {type(prior).__name__}; wrap a network of your own as "
            "slams.diffusion.Preconditioned(network, schedule)."
        )
    for name, thing in (("sampler", sampler), ("guidance", guidance)):
        if not callable(thing) and thing is not None:
            raise InvalidTypeError(
                f"the {name} is {thing!r} of type {type(thing).__name__}; SDA(prior, sampler, guidance=…) takes objects "
                "such as Sampler(steps=64) and GaussianGuidance(0.01)."
            )


def _like(prior: Denoiser) -> Tensor:
    """An empty tensor of the prior's dtype and device."""
    parts = itertools.chain(prior.parameters(), prior.buffers())
    return next((part.new_empty(0) for part in parts if part.is_floating_point()), torch.empty(0))


def _records(observations: Observations, replicate: int | Tensor) -> Observations:
    """Those of one replicate, values (L, *O), or of several rows, (n, L, *O)."""
    made = {}
    for name, o in observations.items():
        value = o.value.reshape(-1, *o.value.shape[-1 - o.event :])
        made[name] = replace(o, value=value[replicate])
    return Observations(made)
