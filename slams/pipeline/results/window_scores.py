"""Scores of one estimate against the truth, window by window."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slams.evaluation import Scores, amount_statistics, gaussian_window_statistics, window_statistics
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model.model import Model


@dataclass(frozen=True)
class Estimate:
    """A method's estimate of one variable along one trajectory.

    Attributes:
        method: Name of the method in tables.
        variable: Name of the modality.
        trajectory: Number of the trajectory.
        value: Physical members (N, T, *S), or standardized mean and standard deviation (T, *S).
        masks: Masks of separately scored parts, by name; observed and withheld values of the variable if None.
        kept: Whether to write its members to the analysis file.
        beside: Other variables of the same members, physical (N, T, *S) or (1, T, *S), by name; for amounts.
    """

    method: str
    variable: str
    trajectory: int
    value: Tensor | tuple[Tensor, Tensor]
    masks: Mapping[str, Tensor] | None = None
    kept: bool = False
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def in_unit(model: Model, name: str, x: Tensor) -> Tensor:
    """Values of a modality in the unit of its files, without its transform."""
    transform = model.recipe.modalities[name].transformed
    return x if transform.name == "none" else torch.from_numpy(transform.inverse(x.numpy()))


def score(
    scores: Scores,
    method: str,
    name: str,
    layout: Layout,
    value: Tensor | tuple[Tensor, Tensor],
    truth: Tensor,
    blocks: Sequence[tuple[str, slice]],
    masks: Mapping[str, Tensor],
    *,
    amount: bool = False,
) -> None:
    """Add the scores of a method's estimate of one variable, whole and in parts.

    Args:
        scores: Scores to extend.
        method: Name of the method.
        name: Name of the variable.
        layout: Layout of its values.
        value: Members (N, T, *S), or mean and standard deviation (T, *S). One member has no CRPS.
        truth: Truth (T, *S), NaN where missing.
        blocks: Windows of the intervals: names and days.
        masks: Masks of the parts by name, (T, *S), or (C, P) for all days.
        amount: Whether the members are amounts such as rain, which have scores of their own.
    """
    weights, levels = layout.weights(), layout.levels() or None
    for block, days in blocks:
        for part, mask in {"all": None, **masks}.items():
            if mask is not None and mask.shape == truth.shape:
                mask = mask[days]
            if isinstance(value, tuple):
                mean, std = value
                statistics = gaussian_window_statistics(mean[days], std[days], truth[days], weights, mask)
            else:
                statistics = window_statistics(value[:, days], truth[days], weights, mask)
                of_distributions = ["crps"]
                if amount:
                    amounts = amount_statistics(
                        value[:, days], truth[days], weights, mask,
                        periodic=layout.is_global, latitude=layout.points()[:, 0].reshape(weights.shape),
                    )  # fmt: skip
                    statistics |= amounts
                    of_distributions += list(amounts)
                # one draw of a distribution is no forecast by itself
                for key in of_distributions if len(value) == 1 and method != "reconstruction" else ():
                    statistics[key] = torch.full_like(statistics[key], torch.nan)
            scores.add(method, name, block, statistics, part=part, levels=levels)
