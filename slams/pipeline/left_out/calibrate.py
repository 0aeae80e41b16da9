"""Errors, factors and spreads of a model, calibrated on seasons that fits left out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from slams.core.console import Console
from slams.pipeline.inputs.observe import observe
from slams.pipeline.left_out.folds import Fold, others
from slams.pipeline.left_out.residuals import pool
from slams.pipeline.model.calibrate import choose_factors, closed_form_score
from slams.pipeline.model.exact import exact_moments, latent_gaussian
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import spread_factor, spread_windows

LEAST, MOST = 0.5, 3.0  # factors on deviations: many seasons are evidence also of draws that are too wide


@torch.no_grad()
def calibrate_left_out(model: Model, folds: Sequence[Fold], console: Console) -> None:
    """Set a model's errors, their factors, and its residuals from seasons left out, pooled over folds.

    The factors minimise the sum of the closed-form scores of the folds, each on the season it left out, with its own
    closed form, the errors of the other folds, and its modalities' biases estimated with the state.

    Args:
        model: Model whose prior is changed.
        folds: Folds; their priors' errors and factors are changed too.
        console: Console for the progress.
    """
    prior = model.prior
    pool(prior, [fold.residuals for fold in folds])
    prior.factors = dict.fromkeys(sorted(prior.errors), 1.0)
    if not model.recipe.experiment.sets:
        return
    scores = []
    for fold in folds:
        pool(fold.model.prior, [other.residuals for other in others(folds, fold)])
        fold.model.prior.factors = prior.factors  # one dictionary, which `choose_factors` changes
        scores.append(closed_form_score(fold.model, fold.values, fold.starts, bias=True))
    choose_factors(model, lambda names: sum(score(names) for score in scores), console)


@torch.no_grad()
def spread_left_out(model: Model, folds: Sequence[Fold]) -> None:
    """Set a model's factors on deviations by set, `LearntPrior.inflation`, after `calibrate_left_out`.

    With error, spread and rest summed over the seasons left out, of the exact posterior of each fold's closed form: a
    network's draws are not needed, and the factor is ((error - rest) / spread)^1/2 between 0.5 and 3.

    Args:
        model: Model whose prior is changed.
        folds: Folds, calibrated.
    """
    recipe, model.prior.inflation = model.recipe, 1.0
    if not recipe.experiment.sets or recipe.assimilation.members == 1:
        return
    model.prior.inflation = {
        label: spread_factor(
            *sum(_sums(fold, names) for fold in folds).tolist(),  # type: ignore[union-attr]
            least=LEAST,
            most=MOST,
        )
        for label, names in recipe.experiment.sets.items()
    }


def observed(fold: Fold, names: Sequence[str]) -> tuple[dict[str, Tensor], Tensor, bool]:
    """Observations of a fold's season, their days, and whether they are along a trajectory, as in the run's test."""
    recipe, model = fold.model.recipe, fold.model
    composed = not recipe.experiment.windows
    days = torch.arange(len(fold.dates)) if composed else spread_windows(fold.starts, recipe.prior.window)
    std = {n: s.std for n, s in model.codec.statistics.items()}
    return observe(model.layouts, recipe, fold.values, names, days=days, std=std), days, composed


def _sums(fold: Fold, names: Sequence[str]) -> Tensor:
    """Squared error of the mean, variance of the deviations, and of the decoder's residual, summed, (3)."""
    model, states = fold.model, fold.model.states
    seen, days, composed = observed(fold, names)
    closed, present = latent_gaussian(model)
    mean, std = exact_moments(model, closed, model.jacobians(), model.errors(), seen, composed)
    truth = torch.cat([fold.values[n][days].flatten(days.ndim) for n in states], -1)[..., present]
    area = torch.cat([model.layouts[n].weights().expand(model.layouts[n].shape).flatten() for n in states])
    rest = torch.cat([model.prior.residuals[n] for n in states])[present]
    weight = torch.where(torch.isfinite(truth), area[present], 0.0)
    error = (weight * torch.nan_to_num(truth - mean).square()).sum()
    return torch.stack([error, (weight * (std.square() - closed.rest)).sum(), (weight * rest).sum()]).double()
