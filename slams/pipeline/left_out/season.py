"""The analysis of one training season by the fit without it."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import augmented
from slams.core.console import Console
from slams.evaluation.tables import COLUMNS
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.left_out.calibrate import LEAST, MOST, Exact, areas, calibrate_left_out, exact
from slams.pipeline.left_out.folds import Fold
from slams.pipeline.model.bias import bias_priors, biases_in, independent_share
from slams.pipeline.model.calibrate import season_windows
from slams.pipeline.model.exact import latent_gaussian
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import spread_factor
from slams.pipeline.results.scoring import Test
from slams.pipeline.results.window_scores import Estimate

METHOD = "left_out"
SCORES = ("coverage90_fair", "crps", "rmse")
_QUANTILE = 1.6448536269514722  # of 0.95 of a normal
Row = dict[str, Any]


@torch.no_grad()
def analysed(
    fold: Fold, folds: Sequence[Fold], fields: Fields, baselines: Baselines, console: Console
) -> list[Row]:
    """Rows of the scores of one season in every set.

    Args:
        fold: The fold without the season.
        folds: The other folds, from which errors, factors and spreads are estimated; their residuals and scores on their
            own seasons are used, and never those on this one.
        fields: Fields of all days.
        baselines: Baselines of the run, which are not used.
        console: Console for the progress.
    """
    calibrate_left_out(fold.model, folds, console)
    test, rows = Test(_season_model(fold), baselines, fields), list[Row]()
    area = areas(fold.model)
    for label, names in fold.model.recipe.experiment.sets.items():
        fresh = [exact(other, names) for other in folds]
        sums = torch.stack([each.sums(area) for each in fresh]).sum(0)
        factor = spread_factor(*sums.tolist(), least=LEAST, most=MOST)
        own = exact(fold, names, whole=True)
        rows += _scores(test, own, factor, label, fold.name)
        rows += _mean_errors(fold, own, fresh, factor, label, names)
    return rows


def _season_model(fold: Fold) -> Model:
    """The fold's model with its season as the test."""
    recipe = fold.model.recipe
    data = replace(recipe.data, test=(str(fold.dates[0]), str(fold.dates[-1])))
    experiment = replace(recipe.experiment, windows=0)
    return Model(fold.model.codec, fold.model.prior, replace(recipe, data=data, experiment=experiment))


def _by_state(model: Model, x: Tensor) -> dict[str, Tensor]:
    """Values (T, D) by state, (T, *S)."""
    parts = x.split([model.layouts[n].size for n in model.states], -1)
    return {
        n: part.reshape(*x.shape[:-1], *model.layouts[n].shape)
        for n, part in zip(model.states, parts, strict=True)
    }


def _scores(test: Test, own: Exact, factor: float, label: str, season: str) -> list[Row]:
    std = (factor**2 * own.variance + own.rest).clamp(min=1e-12).sqrt()
    outcome, method = test.blank(), f"{METHOD}:{label}"
    means, stds = _by_state(test.model, own.mean), _by_state(test.model, std)
    for name in test.model.states:
        test.add(outcome.scores, Estimate(method, name, 0, (means[name], stds[name])), [])
    return [
        {**row, "part": season}
        for row in outcome.scores.rows()
        if row["metric"] in SCORES and row["part"] == "all" and row["level"] == "all"
    ]


def _mean_errors(
    fold: Fold, own: Exact, fresh: Sequence[Exact], factor: float, label: str, names: Sequence[str]
) -> list[Row]:
    """Each state's mean error over the season's area and days, and the limits of its predicted 90 % interval.

    Its variance is factor^2 (v / s + b) + r, with v and b of `ClosedFormGaussian.record_means`, s the share of windows
    whose errors are independent, from the other seasons, and r that of the mean of the decoder's residual. Values are in
    the unit of the variable after its transform.
    """
    model, length = fold.model, fold.model.recipe.prior.window
    known = torch.isfinite(own.truth) & torch.isfinite(own.mean)
    points = known.float().mean(0) > 0.5
    sizes = [model.layouts[n].size for n in model.states]
    scale = torch.cat(
        [model.codec.statistics[n].std.expand(model.layouts[n].shape).flatten() for n in model.states]
    )
    closed, present = latent_gaussian(model)
    weights = torch.zeros(len(sizes), sum(sizes))
    for row, part in zip(weights, torch.arange(sum(sizes)).split(sizes), strict=True):
        area = areas(model)[part] * points[part]
        row[part] = torch.nan_to_num(area * scale[part] / area.sum())
    error = torch.nan_to_num(own.mean - own.truth) @ weights.mT  # (T, M)
    variance, common = _of_mean(fold, closed, weights[:, present], names)
    residual = (weights.square() @ torch.nan_to_num(own.rest).mean(0)) / len(own.mean)
    rows = list[Row]()
    for i, name in enumerate(model.states):
        share = _share(fresh, weights[i], length)
        std = float((factor**2 * (variance[i] / share + common[i]) + residual[i]).sqrt())
        value, limit = float(error[:, i].mean()), _QUANTILE * std
        place = (f"{METHOD}:{label}", name, "all", fold.name)
        rows.append(
            dict(zip(COLUMNS, (*place, "mean_error", value, -limit, limit, len(own.mean)), strict=True))
        )
        inside = float(abs(value) <= limit)
        missing = float("nan")
        rows.append(
            dict(zip(COLUMNS, (*place, "mean_error_inside", inside, missing, missing, 1), strict=True))
        )
    return rows


def _of_mean(fold: Fold, closed: Any, weights: Tensor, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    model = fold.model
    days = season_windows(fold.starts, model.recipe.prior.window)
    std = {n: s.std for n, s in model.codec.statistics.items()}
    values = observe(model.layouts, model.recipe, fold.values, names, days=days, std=std)
    operators, errors = model.jacobians(), model.errors()
    seen = model.seen(values, errors)
    bias = biases_in(model, values, False, closed, operators, errors)
    priors = {n: prior for n, prior in bias_priors(model).items() if n in names}
    _, variance, common = closed.record_means(augmented(seen, operators, priors), weights, bias)
    return variance, common


def _share(fresh: Sequence[Exact], weights: Tensor, length: int) -> float:
    """Share of windows whose mean errors are independent, in other seasons without their own mean."""
    series, years, at = list[Tensor](), list[np.ndarray](), 0
    for each in fresh:
        error = (torch.nan_to_num(each.mean - each.truth) @ weights).flatten()
        series.append((error - error.mean())[:, None])
        years.append(np.arange(at, at + len(error)))
        at += len(error)
    return independent_share(torch.cat(series), years, length)


def summaries(rows: Sequence[Row]) -> list[Row]:
    """Over all seasons, by set and variable: average scores, seasons with low coverage, and mean errors inside."""
    found = list[Row]()
    for method, name in dict.fromkeys((row["method"], row["variable"]) for row in rows):
        own = [row for row in rows if (row["method"], row["variable"]) == (method, name)]
        by = {m: [row["value"] for row in own if row["metric"] == m] for m in (*SCORES, "mean_error_inside")}
        values = {m: float(np.mean(by[m])) for m in SCORES if by[m]}
        coverage = by["coverage90_fair"]
        values |= {
            "seasons_below_75": float(sum(c < 0.75 for c in coverage)),
            "seasons_below_50": float(sum(c < 0.5 for c in coverage)),
            "mean_errors_inside": float(sum(by["mean_error_inside"])),
        }
        for metric, value in values.items():
            place = (method, name, "all", "all", metric, value, float("nan"), float("nan"))
            found.append(dict(zip(COLUMNS, (*place, len(by["mean_error_inside"])), strict=True)))
    return found
