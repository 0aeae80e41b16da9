"""Observations of a test: sets of modalities, columns, shuffled dates, withheld stations."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slams.core.days import Values
from slams.core.errors import InvalidValueError
from slams.core.random import fork, normal
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.operators import noisy, thinned
from slams.pipeline.recipe import Recipe


def columns(layout: Layout, share: float, seed: int) -> Tensor:
    """Cells of a grid that are observed, drawn by area without replacement, sorted.

    Args:
        layout: Layout of a gridded modality.
        share: Fraction of observed cells.
        seed: Seed of the draw.

    Returns:
        Indices of the flattened grid.

    Raises:
        ValueError: If the share is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise InvalidValueError(f"experiment.share must be in (0, 1], got {share}.")
    weights = layout.weights().flatten()
    count = max(1, round(share * len(weights)))
    return torch.multinomial(weights, count, generator=fork(seed, "columns")).sort().values


def observe(
    layouts: Mapping[str, Layout],
    recipe: Recipe,
    anomalies: Mapping[str, Values],
    names: Sequence[str],
    *,
    days: Tensor,
    std: Mapping[str, Tensor] | None = None,
    shuffled: bool = False,
    withhold: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Tensor]:
    """Observed anomalies, NaN where unobserved.

    A modality with the role of an observation is observed as in its file. A state variable is observed in columns, with
    fresh instrument noise of its `error_std`, or of its operator's `std`. One with a block mean or points as its operator
    is left whole here: the operator is applied where observations are made of it. Of all days the first and every
    `experiment.every`-th are observed.

    Args:
        layouts: Layouts of the modalities.
        recipe: Recipe with the fraction of columns and the seed.
        anomalies: Standardized anomalies (n, *S).
        names: Names of the modalities in the set.
        days: Days of each window, (W, L), or of a trajectory, (T).
        std: Spread of each modality, to standardize instrument errors; no noise is added without.
        shuffled: Whether windows get the observation-role modalities of another window.
        withhold: Withheld stations by modality.

    Returns:
        Anomalies (*days, *S) by name.
    """
    seen = {}
    for name in names:
        state, error = name in recipe.states, recipe.modalities[name].error_std
        rows = days.roll(len(days) // 2, 0) if shuffled and not state else days
        value = anomalies[name][rows].clone()
        operator = recipe.assimilation.operators.get(name)
        if state:
            rng = fork(recipe.seed, "noise", name)
            if std is not None and operator is not None and operator.std:
                value = noisy(operator, layouts[name], value, rng)
            elif std is not None and error is not None:
                value = value + error / std[name] * normal(value.shape, like=value, rng=rng)
            if operator is None:
                hidden = torch.ones(layouts[name].weights().numel(), dtype=torch.bool)
                hidden[columns(layouts[name], recipe.experiment.share, recipe.seed)] = False
                shape = layouts[name].weights().shape
                value = value.masked_fill(hidden.reshape(shape), torch.nan)
        value = thinned(recipe, name, value)
        if recipe.experiment.every > 1:
            unseen = torch.arange(days.shape[-1]) % recipe.experiment.every > 0
            value = value.masked_fill(unseen.reshape(-1, *[1] * len(layouts[name].shape)), torch.nan)
        for station in (withhold or {}).get(name, ()):
            if not 0 <= station < value.shape[-1]:
                raise InvalidValueError(
                    f"withhold.{name} names station {station}, but there are {value.shape[-1]} (numbered from 0)."
                )
            value[..., station] = torch.nan
        seen[name] = value
    return seen
