"""Observation operators of a recipe: block means, points, or every n-th cell of a gridded modality."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.random import normal
from slams.observation.operators import Compose, Flatten, by_name
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.recipe import OperatorRecipe, Recipe


def operator_of(settings: OperatorRecipe, layout: Layout) -> Compose | None:
    """Operator H on the grid of a modality, (*B, C, H, W) -> (*B, C * P).

    It acts on standardized anomalies; as their spread is one a channel, and H is linear, that is the anomaly of
    what H makes of the fields (after a transform such as log1p).

    Args:
        settings: Settings of the operator in the recipe.
        layout: Layout of the modality.

    Returns:
        H, or None for a stride (see `thinned`).

    Raises:
        ValueError: If the modality is no grid, blocks do not divide it, points lie outside, or the errors are for
            another number of levels.
    """
    if not layout.is_grid:
        raise InvalidValueError(
            f"an operator of kind {settings.kind} needs a grid, but {layout.source_name} is at stations; withhold "
            "stations instead (experiment.withhold)."
        )
    instrument_std(settings, layout)
    height, width = layout.shape[-2:]
    if settings.kind == "stride":
        return None
    if settings.kind == "block_mean":
        if height % settings.size or width % settings.size:
            raise InvalidValueError(
                f"blocks of {settings.size} do not divide the grid of {layout.source_name}, {height} x {width}; "
                "choose a divisor of both. A grid with a row at each pole has none: make its stores with --grid "
                "1.5deg-published (120 x 240), or another grid without them."
            )
        return Compose([by_name("block_mean", {"size": settings.size}, weights=layout.weights()), Flatten(3)])
    grid = {axis: torch.tensor(layout.coords[axis]) for axis in ("lat", "lon")}
    given = {"points": settings.points}
    return Compose([by_name(settings.kind, given, **grid, periodic=layout.is_global), Flatten(2)])


def operators_of(recipe: Recipe, layouts: Mapping[str, Layout]) -> dict[str, Compose]:
    """Operators of a recipe that change the points of a modality, by modality."""
    found = {n: operator_of(settings, layouts[n]) for n, settings in recipe.assimilation.operators.items()}
    return {name: operator for name, operator in found.items() if operator is not None}


def instrument_std(settings: OperatorRecipe, layout: Layout) -> Tensor | None:
    """Errors of what an operator returns, standardized, of each level (C); None if it states none.

    Raises:
        ValueError: If they are for another number of levels.
    """
    levels = layout.shape[0]
    if len(settings.std) not in (0, 1, levels):
        raise InvalidValueError(
            f"an operator's std is one number or one for each of the {levels} levels of {layout.source_name}, got "
            f"{len(settings.std)} (assimilation.operators)."
        )
    return torch.tensor(settings.std).expand(levels) if settings.std else None


def noisy(settings: OperatorRecipe, layout: Layout, value: Tensor, rng: torch.Generator) -> Tensor:
    """Anomalies (*B, C, H, W) that the operator sees with its errors: e is constant in each block, or one a cell.

    Args:
        settings: Settings of the operator.
        layout: Layout of the modality.
        value: Anomalies (*B, C, H, W).
        rng: Generator of the errors.
    """
    std = instrument_std(settings, layout)
    if std is None:
        return value
    side = settings.size if settings.kind == "block_mean" else 1
    coarse = (*value.shape[:-2], value.shape[-2] // side, value.shape[-1] // side)
    error = std[:, None, None] * normal(coarse, like=value, rng=rng)
    return value + error.repeat_interleave(side, -1).repeat_interleave(side, -2)


def thinned(recipe: Recipe, name: str, value: Tensor) -> Tensor:
    """A modality (*B, C, H, W) with NaN in the cells outside its stride, if it has one."""
    settings = recipe.assimilation.operators.get(name)
    if settings is None or settings.kind != "stride":
        return value
    strided = torch.full_like(value, torch.nan)
    every = slice(settings.offset, None, settings.step)
    strided[..., every, every] = value[..., every, every]
    return strided


def through(operator: nn.Module, patterns: Tensor, layout: Layout) -> Tensor:
    """Product H G with patterns G on the grid, (P_grid, K) -> (P_seen, K)."""
    return operator(patterns.mT.reshape(-1, *layout.shape)).mT


def noise_gain(operator: Compose, layout: Layout) -> Tensor:
    """Variance of what H makes of independent errors of variance 1 in each cell, sum_j H_ij^2, shape (C * P)."""
    mean: Any = operator.operators[0]  # block means or points of one channel
    gain: Tensor = mean.squared_weights(layout.shape[-2:])
    return gain.flatten().float().repeat(layout.shape[0])
