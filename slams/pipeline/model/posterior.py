"""Draws of a run's posterior, in the latent and decoded."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from slams.core.random import Rng, normal
from slams.diffusion.divergence import finite
from slams.pipeline.model.bias import bias_draws
from slams.pipeline.model.draws import trajectory_draws, window_draws
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import factor_of

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
        model: Trained model.
        seen: Observed anomalies of each trajectory, (T, *S) by name.
        composed: Whether trajectories are composed of windows; else each is one window and all are drawn at once.
        rng: Generator of the draws.
        progress: Callback with 1 after each step of the sampler.

    Returns:
        Latent draws (N, T, *Z) of each trajectory, on the CPU.
    """
    members = model.recipe.assimilation.members
    draws = list[Tensor]()
    if composed:
        draws = [trajectory_draws(model, values, rng=rng, progress=progress) for values in seen]
    else:
        stacked = {name: torch.stack([each[name] for each in seen]) for name in seen[0]}
        offsets = bias_draws(model, stacked, composed, rng=rng)
        for first in range(0, len(seen), WINDOWS):
            part = {n: value[first : first + WINDOWS] for n, value in stacked.items()}
            draws += window_draws(
                model, part, members=members, rng=rng, progress=progress, offsets=offsets
            ).unbind(1)
    factor = spread_of(model, seen)
    for i, z in enumerate(draws):  # in their places: two of each would be twice the memory
        draws[i] = _inflated(z, factor).cpu()
    return draws


def spread_of(model: Model, seen: Sequence[Mapping[str, Tensor]]) -> float:
    """The calibrated factor on deviations for the modalities that were observed."""
    names = {n for values in seen for n, value in values.items() if bool(torch.isfinite(value).any())}
    return factor_of(model.prior.inflation, model.recipe.experiment.sets, sorted(names))


def _inflated(z: Tensor, factor: float) -> Tensor:
    mean = z.mean(0)
    return mean + factor * (z - mean)


def decoded(
    model: Model,
    z: Tensor,
    name: str,
    phase: Tensor,
    *,
    rng: Rng,
    residual: bool | None = None,
    seen: Mapping[str, Tensor] | None = None,
    days: slice = slice(None),
) -> Tensor:
    """Physical draws of a modality (N, D, *S) from latent draws (N, T, *Z).

    Amounts with a stochastic decoder are drawn by it. To others a draw of the decoder's residual is added; bounded
    variables stay in their bounds.

    Args:
        model: Trained model.
        z: Latent draws, (N, T, *Z).
        name: Name of the modality.
        phase: Phase of the year of the decoded days, (D).
        rng: Generator of the residual.
        residual: Whether to add the residual; the recipe's choice if None. Without it nothing is random.
        seen: Observed anomalies (D, *S) by modality, which decoders of amounts read.
        days: The decoded days among the T; decoders of amounts read those before and after them, too.

    Raises:
        FloatingPointError: If the decoder's values are not finite.
    """
    random = model.recipe.assimilation.residual if residual is None else residual
    if random and name in model.prior.amounts:
        x = model.prior.amounts[name].draws(z, phase, seen, days, rng=rng)
        # far from its training latents a decoder may answer anything, of which the exponential is absurd
        high = model.codec.statistics[name].credible_range()[1]
        return model.codec.masked(name, x.minimum(high.to(x).reshape(-1, *[1] * (x.ndim - 3))))
    return clipped(model, z[:, days], name, phase, rng=rng, residual=random)


def clipped(model: Model, z: Tensor, name: str, phase: Tensor, *, rng: Rng, residual: bool = True) -> Tensor:
    """`decoded` by the codec's decoder, with bounded variables clipped at their bound."""
    x = finite(model.codec.decode(z, name), z, f"the decoder of {name}")
    if residual:
        # member by member, which bounds the memory
        variance = torch.stack([model.prior.unresolved(name, member) for member in x.flatten(2)])
        x = x + variance.sqrt().reshape(x.shape) * normal(x.shape, like=x, rng=rng)
    return model.codec.possible(name, x, phase)
