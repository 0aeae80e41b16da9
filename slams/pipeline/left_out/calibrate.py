"""Errors, factors and spreads of a model, calibrated on seasons that fits left out."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    take_errors(folds, prior.factors)
    scores = [closed_form_score(fold.model, fold.values, fold.starts, bias=True) for fold in folds]
    choose_factors(model, lambda names: sum(score(names) for score in scores), console)


def take_errors(folds: Sequence[Fold], factors: dict[str, float]) -> None:
    """Give each fold the errors of the other folds' seasons, and all of them one dictionary of factors."""
    for fold in folds:
        pool(fold.model.prior, [other.residuals for other in others(folds, fold)])
        fold.model.prior.factors = factors


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
            *sum(exact(fold, names).sums(areas(model)) for fold in folds).tolist(),  # type: ignore[union-attr]
            least=LEAST,
            most=MOST,
        )
        for label, names in recipe.experiment.sets.items()
    }


def trajectory(fold: Fold) -> tuple[Tensor, bool]:
    """Days of a fold's season, and whether they are along a trajectory, as in the run's test; else of some windows."""
    composed = not fold.model.recipe.experiment.windows
    length = fold.model.recipe.prior.window
    return (torch.arange(len(fold.dates)) if composed else spread_windows(fold.starts, length)), composed


@dataclass(frozen=True)
class Exact:
    """Exact posterior of a fold's season by its closed form, standardized.

    Attributes:
        mean: Mean of the states, (*days, D).
        variance: Variance of the deviations within the patterns, before the spread is calibrated.
        rest: Variance of the decoder's residual.
        truth: True values, NaN where missing.
    """

    mean: Tensor
    variance: Tensor
    rest: Tensor
    truth: Tensor

    def sums(self, area: Tensor) -> Tensor:
        """Squared error of the mean, variance of deviations, and of the residual, summed with area weights (D), (3)."""
        weight = torch.where(torch.isfinite(self.truth), area, 0.0)
        error = torch.nan_to_num(self.truth - self.mean).square()
        return torch.stack(
            [(weight * torch.nan_to_num(x)).sum() for x in (error, self.variance, self.rest)]
        ).double()


def exact(fold: Fold, names: Sequence[str], *, whole: bool = False) -> Exact:
    """The exact posterior of a fold's season given some modalities; on all its days if `whole` (see `trajectory`)."""
    model, states = fold.model, fold.model.states
    days, composed = (torch.arange(len(fold.dates)), True) if whole else trajectory(fold)
    std = {n: s.std for n, s in model.codec.statistics.items()}
    seen = observe(model.layouts, model.recipe, fold.values, names, days=days, std=std)
    closed, present = latent_gaussian(model)
    mean, deviation = exact_moments(model, closed, model.jacobians(), model.errors(), seen, composed)
    blank = torch.full((*mean.shape[:-1], len(present)), torch.nan)
    full, variance = blank.clone(), blank
    full[..., present], variance[..., present] = mean, deviation.square() - closed.rest
    sizes = [model.layouts[n].size for n in states]
    parts = zip(states, full.split(sizes, -1), strict=True)
    rest = torch.cat([model.prior.unresolved(n, part.contiguous()) for n, part in parts], -1)
    truth = torch.cat([fold.values[n][days].flatten(days.ndim) for n in states], -1)
    return Exact(full, variance, rest, torch.where(present, truth, torch.nan))


def areas(model: Model) -> Tensor:
    """Area weights of all values of the states, (D)."""
    return torch.cat(
        [model.layouts[n].weights().expand(model.layouts[n].shape).flatten() for n in model.states]
    )
