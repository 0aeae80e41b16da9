"""Spread of the closed-form Gaussians, calibrated as that of the analysis."""

import torch

from slams.data.windows import window_starts
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.baselines.members import BASELINES, ClosedForm
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import spread_factor, spread_windows


@torch.no_grad()
def calibrate_gaussians(model: Model, fitted: Baselines, fields: Fields) -> None:
    """Choose a factor on the deviations of each closed-form Gaussian for each set of observations.

    The factors are in `fitted.spreads`; windows, rule and bounds are those of the analysis (see
    `slams.pipeline.model.spread`). The variance outside the patterns is not scaled, as the decoder's residual is not.

    Args:
        model: Trained model.
        fitted: Fitted baselines.
        fields: Fields of all days.
    """
    recipe, states, fitted.spreads = model.recipe, model.states, {}
    index = fields.part(recipe.data.validation)
    validation = anomalies(model.codec, fields, index)
    rows = spread_windows(window_starts(fields.dates[index], recipe.prior.window), recipe.prior.window)
    truth = torch.cat([validation[n][rows].flatten(2) for n in states], -1)
    area = torch.cat([model.layouts[n].weights().expand(model.layouts[n].shape).flatten() for n in states])
    std = {n: s.std for n, s in model.codec.statistics.items()}
    for method in (kind(model, fitted) for kind in BASELINES if issubclass(kind, ClosedForm)):
        target, rest = truth[..., method.present], method.closed.rest
        weight = torch.where(torch.isfinite(target), area[method.present], 0.0)
        factors = {}
        for label, names in recipe.experiment.sets.items():
            seen = observe(model.layouts, recipe, validation, names, days=rows, std=std)
            mean, deviation = method.exact(seen, composed=False)
            error = float((weight * torch.nan_to_num(target - mean).square()).sum())
            spread = float((weight * (deviation.square() - rest)).sum())
            factors[label] = spread_factor(error, spread, float((weight * rest).sum()))
        fitted.spreads[method.name] = factors
