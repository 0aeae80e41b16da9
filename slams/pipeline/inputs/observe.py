"""What a test sees of the fields: sets of modalities, columns, dates shuffled, stations withheld."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slams.core.random import fork, normal
from slams.pipeline.inputs.fields import Place
from slams.pipeline.inputs.operators import thinned
from slams.pipeline.recipe import Recipe


def columns(place: Place, share: float, seed: int) -> Tensor:
    """Cells of a grid that are observed, drawn by area without replacement, sorted.

    Args:
        place: Of a gridded modality.
        share: Share of the cells.
        seed: Of the draw.

    Returns:
        Indices of the flattened grid.

    Raises:
        ValueError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"experiment.share must be in (0, 1], got {share}.")
    weights = place.weights().flatten()
    count = max(1, round(share * len(weights)))
    return torch.multinomial(weights, count, generator=fork(seed, "columns")).sort().values


def observe(
    places: Mapping[str, Place],
    recipe: Recipe,
    anomalies: Mapping[str, Tensor],
    names: Sequence[str],
    *,
    days: Tensor,
    std: Mapping[str, Tensor] | None = None,
    shuffled: bool = False,
    withhold: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Observed anomalies, NaN where nothing is seen.

    A modality with the role of an observation is seen as its file has it. A state variable is seen in columns, with
    fresh instrument noise of its `error_std`. One with a block mean or points as its operator is left whole here:
    the operator is applied where observations are made of it.

    Args:
        places: Where values are.
        recipe: Share of the columns, seed.
        anomalies: Standardized anomalies (n, *S).
        names: Modalities in the set.
        days: Days of each window, (W, L), or of a trajectory, (T).
        std: Spread of each modality, to standardize instrument errors; no noise is added without.
        shuffled: Whether windows get the observation-role modalities of another window.
        withhold: Stations kept back by modality.

    Returns:
        (*days, *S) by name.
    """
    modalities = recipe.modalities()
    seen = {}
    for name in names:
        rows = days
        if shuffled and modalities[name].role == "observation":
            rows = days.roll(len(days) // 2, 0)
        value = anomalies[name][rows].clone()
        if modalities[name].role == "state":
            error = modalities[name].error_std
            if std is not None and error is not None:
                value = value + error / std[name] * normal(
                    value.shape, like=value, rng=fork(recipe.seed, "noise", name)
                )
            if name not in recipe.assimilation.operators:
                hidden = torch.ones(places[name].weights().numel(), dtype=torch.bool)
                hidden[columns(places[name], recipe.experiment.share, recipe.seed)] = False
                shape = places[name].weights().shape
                value = value.masked_fill(hidden.reshape(shape), torch.nan)
        value = thinned(recipe, name, value)
        for station in (withhold or {}).get(name, ()):
            if not 0 <= station < value.shape[-1]:
                raise ValueError(
                    f"withhold.{name} names station {station}, but there are {value.shape[-1]} (numbered from 0)."
                )
            value[..., station] = torch.nan
        seen[name] = value
    return seen
