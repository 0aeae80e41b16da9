"""Amounts and other variables of the same members: rank correlations beside those of the truth."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slams.evaluation.precipitation import joint_statistics
from slams.evaluation.windows import Statistics
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model.amounts import readable
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded

PART = "with "  # before the other variable's name, in metrics.csv
_LEVEL = 850.0  # hPa, of variables with levels: the lowest that no mountain reaches


def partners(
    model: Model,
    name: str,
    z: Tensor,
    phase: Tensor,
    seen: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    rng: torch.Generator,
) -> dict[str, Tensor]:
    """The variables on an amount's grid that its rank correlations are taken with, physical (N, T, *S) or (1, T, *S).

    What is observed in every cell is the same in all members.

    Args:
        model: Trained model.
        name: Name of the amount.
        z: Latent draws, (N, T, *Z).
        phase: Phase of the year, (T).
        seen: Observed anomalies (T, *S) by modality.
        found: Physical members decoded from these draws before, by name.
        rng: Generator of the residuals of others.
    """
    own, known = model.layouts[name], dict(found)
    for n, value in seen.items():
        if n not in model.states and n not in model.operators and bool(torch.isfinite(value).all()):
            known[n] = model.codec.physical(n, value, phase)[None]
    grids = [n for n in model.states if model.layouts[n].shape[1:] == own.shape[1:]]
    names = (
        [*grids, *readable(model.recipe, model.layouts, name)] if own.is_grid and own.shape[0] == 1 else []
    )
    return {
        n: known[n] if n in known else decoded(model, z, n, phase, rng=rng)
        for n in dict.fromkeys(names)
        if n != name
    }


def joint_scores(
    model: Model,
    name: str,
    amount: tuple[Tensor, Tensor],
    others: Mapping[str, tuple[Tensor, Tensor]],
    phase: Tensor,
    blocks: Sequence[tuple[str, slice]],
) -> list[tuple[str, str, Statistics]]:
    """Windows, parts "with OTHER" and statistics of the rank correlations of an amount with other variables.

    Of the others the departures from the season are taken, at the level nearest 850 hPa.

    Args:
        model: Trained model.
        name: Name of the amount.
        amount: Its members (N, T, *S) and truth (T, *S).
        others: Members and truth of the others, by name; members (1, T, *S) count for all.
        phase: Phase of the year, (T).
        blocks: Windows: names and days.
    """
    found = []
    for other, pair in others.items():
        layout = model.layouts[other]
        channel, level = _channel(layout)
        mean = model.codec.physical(other, torch.zeros(len(phase), *layout.shape), phase)
        members, truth = ((x - mean)[..., channel, :, :] for x in pair)
        members = members.expand(len(amount[0]), *members.shape[1:])
        for block, days in blocks:
            x, y = amount[0][:, days, 0], amount[1][days, 0]
            each = joint_statistics(x, members[:, days], y, truth[days])
            found.append((block, f"{PART}{other}{level}", each))
    return found


def _channel(layout: Layout) -> tuple[int, str]:
    """The channel nearest 850 hPa, and its level behind the variable's name; the only one has none."""
    levels = layout.coords.get("level", ())
    if not len(levels):
        return 0, ""
    channel = min(range(len(levels)), key=lambda k: abs(float(levels[k]) - _LEVEL))
    return channel, f" {levels[channel]:g}"
