"""Draws of a run's posterior, in the latent and decoded."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slams.core.random import Rng, normal
from slams.observation.observation import Observations
from slams.pipeline.model.model import Model

WINDOWS = 8  # drawn at once, which bounds the memory of the decoders


def posterior(
    model: Model,
    seen: Sequence[Mapping[str, Tensor]],
    composed: bool,
    *,
    rng: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Latent draws for trajectories.

    Args:
        model: Trained.
        seen: Observed anomalies of each trajectory, (T, *S) by name.
        composed: Whether trajectories are composed of windows; else each is one window and all are drawn at once.
        rng: Generator.
        progress: Called with 1 after each step of the sampler.

    Returns:
        (N, T, *Z) each, on the CPU.
    """
    sda, members = model.sda(), model.recipe.assimilation.members

    def observations(values: Mapping[str, Tensor]) -> Observations:
        published = model.recipe.assimilation.guidance == "published"
        return model.published(values) if published else model.observations(values)

    draws: list[Tensor] = []
    if composed:
        for values in seen:
            drawn = sda.assimilate(observations(values), members, rng=rng, progress=progress)
            assert drawn.samples is not None
            draws.append(drawn.samples)
    else:
        stacked = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
        for first in range(0, len(seen), WINDOWS):
            part = observations({name: value[first : first + WINDOWS] for name, value in stacked.items()})
            draws += sda.windows(part, members, rng=rng, progress=progress).unbind(1)
    return [_inflated(z, model.prior.inflation).cpu() for z in draws]


def _inflated(z: Tensor, factor: float) -> Tensor:
    mean = z.mean(0)
    return mean + factor * (z - mean)


def decoded(
    model: Model, z: Tensor, name: str, phase: Tensor, *, rng: Rng, residual: bool | None = None
) -> Tensor:
    """Physical draws of a modality (N, T, *S) from latent draws (N, T, *Z).

    What the latent cannot hold is added as a draw of the decoder's residual; bounded variables stay in their bounds.

    Args:
        model: Trained.
        z: Draws.
        name: Modality.
        phase: Of the year, (T).
        rng: Generator of the residual.
        residual: Whether to add it; the recipe's choice if None.
    """
    x = model.codec.decode(z, name)
    if model.recipe.assimilation.residual if residual is None else residual:
        # member by member, which bounds the memory
        variance = torch.stack([model.prior.unresolved(name, member) for member in x.flatten(2)])
        x = x + variance.sqrt().reshape(x.shape) * normal(x.shape, like=x, rng=rng)
    return model.codec.possible(name, x, phase)
