"""The closed-form baselines, calibrated on the seasons that fits left out, as the analysis is."""

from collections.abc import Sequence

import torch

from slams.core.console import Console
from slams.pipeline.baselines.fit import Baselines, GaussianFit, tuned
from slams.pipeline.baselines.members import ClosedForm, LatentGaussian
from slams.pipeline.baselines.spread import spread_sums
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.left_out.calibrate import LEAST, MOST, trajectory
from slams.pipeline.left_out.folds import Fold
from slams.pipeline.model.calibrate import season_windows
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import spread_factor


@torch.no_grad()
def left_out_baselines(model: Model, folds: Sequence[Fold], fields: Fields, console: Console) -> Baselines:
    """Fitted baselines whose ridge, inflation and spreads come from seasons left out.

    The pixel Gaussian is fitted without each season in turn. Ridge and inflation have the lowest sum of the CRPS of the
    folds, each on its season; spreads follow from sums over the seasons.

    Args:
        model: Trained model.
        folds: Folds, calibrated by `slams.pipeline.left_out.calibrate.calibrate_left_out`.
        fields: Fields of all days.
        console: Console for the progress.
    """
    fits, scores = [], []
    with console.bar("fitting the baselines without each season", len(folds)) as advance:
        for fold in folds:
            fit = GaussianFit(fold.model, fold.fields, bias=True)
            fits.append(fit)
            scores.append(fit.score(fold.values, season_windows(fold.starts, model.recipe.prior.window)))
            advance(1, fold.name)
    settings = tuned(lambda penalty, inflation: sum(each(penalty, inflation) for each in scores))
    fitted = GaussianFit(model, fields, bias=True).baselines(*settings)
    for kind in (ClosedForm, LatentGaussian):
        sums: dict[str, torch.Tensor] = {}
        for fold, fit in zip(folds, fits, strict=True):
            method = kind(fold.model, fit.baselines(*settings))
            found = spread_sums(method, fold.values, *trajectory(fold))
            sums = {label: each + sums.get(label, 0.0) for label, each in found.items()}
        fitted.spreads[kind.name] = {
            label: spread_factor(*each.tolist(), least=LEAST, most=MOST) for label, each in sums.items()
        }
    return fitted
