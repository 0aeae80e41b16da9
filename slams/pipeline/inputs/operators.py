"""Observation operators of a recipe: block means, points, or every n-th cell of a gridded modality."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.observation.operators import Compose, Flatten, by_name
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.recipe import OperatorRecipe, Recipe


def operator_of(settings: OperatorRecipe, layout: Layout) -> nn.Module | None:
    """Operator H on the grid of a modality, (*B, C, H, W) -> (*B, C * P).

    It acts on standardized anomalies; as their spread is one a channel, and H is linear, that is the anomaly of
    what H makes of the fields (after a transform such as log1p).

    Args:
        settings: Settings of the operator in the recipe.
        layout: Layout of the modality.

    Returns:
        H, or None for a stride (see `thinned`).

    Raises:
        ValueError: If the modality is no grid, blocks do not divide it, or points lie outside.
    """
    if not layout.is_grid:
        raise InvalidValueError(
            f"an operator of kind {settings.kind} needs a grid, but {layout.source_name} is at stations; withhold "
            "stations instead (experiment.withhold)."
        )
    height, width = layout.shape[-2:]
    if settings.kind == "stride":
        return None
    if settings.kind == "block_mean":
        if height % settings.size or width % settings.size:
            raise InvalidValueError(
                f"blocks of {settings.size} do not divide the grid of {layout.source_name}, {height} x {width}; "
                "choose a divisor of both."
            )
        return Compose([by_name("block_mean", {"size": settings.size}, weights=layout.weights()), Flatten(3)])
    grid = {axis: torch.tensor(layout.coords[axis]) for axis in ("lat", "lon")}
    given = {"points": settings.points}
    return Compose([by_name(settings.kind, given, **grid, periodic=layout.is_global), Flatten(2)])


def operators_of(recipe: Recipe, layouts: Mapping[str, Layout]) -> dict[str, nn.Module]:
    """Operators of a recipe that change the points of a modality, by modality."""
    found = {n: operator_of(settings, layouts[n]) for n, settings in recipe.assimilation.operators.items()}
    return {name: operator for name, operator in found.items() if operator is not None}


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


def noise_gain(operator: nn.Module, layout: Layout) -> Tensor:
    """Variance of what H makes of independent errors of variance 1 in each cell, sum_j H_ij^2, shape (C * P)."""
    height, width = layout.shape[-2:]
    total = torch.zeros(())
    for cells in torch.arange(height * width).split(
        1024
    ):  # of a large grid, all at once are more than memory has
        single = nn.functional.one_hot(cells, height * width).float().reshape(-1, 1, height, width)
        total = total + operator(single).square().sum(0)
    return total.repeat(layout.shape[0])
