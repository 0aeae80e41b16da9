"""Spread of draws: a factor on their deviations for each set of observations, from validation days."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.random import fork
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.draws import window_draws
from slams.pipeline.model.model import Model

Factors = float | Mapping[str, float]  # of all sets, or by label of the set

WIDEST = 1.5
_WINDOWS = 8


def spread_windows(starts: Tensor, length: int) -> Tensor:
    """Days (W, L) of the validation windows that spreads are calibrated on, about eight of all first days."""
    rows = starts[:: max(1, len(starts) // 48), None] + torch.arange(length)
    return rows[:: max(1, len(rows) // _WINDOWS)]


def spread_factor(
    error: float, spread: float, rest: float, *, least: float = 1.0, most: float = WIDEST
) -> float:
    """Factor on deviations that makes their variance that of the error, by default between 1 and 1.5.

    ((error - rest) / spread)^1/2, error - rest at least a tenth of the error. A few windows of one season are no evidence
    that draws are too wide on days to come, so that no factor is below 1.

    Args:
        error: Squared error of the mean, summed over points and windows.
        spread: Variance of the deviations, summed likewise.
        rest: Variance that is added to the deviations and not scaled, summed likewise.
        least: Smallest factor.
        most: Largest factor.

    >>> spread_factor(3.0, 1.0, 1.0), spread_factor(1.0, 2.0, 0.0)
    (1.4142135623730951, 1.0)
    """
    if not spread > 0:
        return 1.0
    return min(max((max(error - rest, 0.1 * error) / spread) ** 0.5, least), most)


def factor_of(factors: Factors, sets: Mapping[str, Sequence[str]], names: Sequence[str]) -> float:
    """The factor of the set that differs from some modalities in the fewest; of several such sets the largest.

    Args:
        factors: Factors by label of the set, or one of all.
        sets: Names of the modalities of each set.
        names: Names of the observed modalities.

    >>> factor_of({"a": 1.1, "b": 1.3}, {"a": ("t",), "b": ("t", "olr")}, ["t", "olr", "rain"])
    1.3
    """
    if not isinstance(factors, Mapping):
        return float(factors)
    apart = {label: len(set(sets[label]) ^ set(names)) for label in factors if label in sets}
    nearest = min(apart.values(), default=0)
    return max((factors[label] for label, count in apart.items() if count == nearest), default=1.0)


@torch.no_grad()
def calibrate_spread(model: Model, validation: Anomalies, starts: Tensor, console: Console) -> None:
    """Choose the factor on the deviations of the analysis of each set, `LearntPrior.inflation`.

    Args:
        model: Model with calibrated errors.
        validation: Anomalies of validation days.
        starts: First day of each validation window.
        console: Console for the progress.
    """
    recipe, prior, sets = model.recipe, model.prior, model.recipe.experiment.sets
    prior.inflation = 1.0
    if not sets or recipe.assimilation.members == 1:  # without a spread
        return
    rows, factors = spread_windows(starts, recipe.prior.window), dict[str, float]()
    with console.bar("calibrating the spread", len(sets) * recipe.assimilation.steps) as advance:
        for label, names in sets.items():
            seen = observe(
                model.layouts, recipe, {n: validation[n] for n in names}, names, days=rows,
                std={n: s.std for n, s in model.codec.statistics.items()},
            )  # fmt: skip
            z = window_draws(
                model,
                seen,
                members=recipe.assimilation.members,
                rng=fork(recipe.seed, "inflation", label),
                progress=lambda n: advance(n, ""),
            )
            error = spread = rest = 0.0
            for n in model.states:
                x, layout = model.codec.decode(z, n), model.layouts[n]
                weight = torch.where(torch.isfinite(validation[n][rows]), layout.weights(), 0.0)
                error += float((weight * torch.nan_to_num(validation[n][rows] - x.mean(0)) ** 2).sum())
                spread += float((weight * x.var(0)).sum()) * (1 + 1 / len(x))
                rest += float((weight * prior.residuals[n].reshape(layout.shape)).sum())
            factors[label] = spread_factor(error, spread, rest)
        advance(0, "x " + ", ".join(f"{factor:.2f}" for factor in factors.values()))
    prior.inflation = factors
