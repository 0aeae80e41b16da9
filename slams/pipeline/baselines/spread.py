"""Spread of the closed-form Gaussians, calibrated as that of the analysis."""

import torch
from torch import Tensor

from slams.data.windows import window_starts
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.baselines.members import BASELINES, ClosedForm
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import Anomalies, anomalies
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
    fitted.spreads = {}
    index = fields.part(model.recipe.data.validation)
    validation = anomalies(model.codec, fields, index)
    length = model.recipe.prior.window
    rows = spread_windows(window_starts(fields.dates[index], length), length)
    for method in gaussians(model, fitted):
        sums = spread_sums(method, validation, rows, composed=False)
        fitted.spreads[method.name] = {label: spread_factor(*each.tolist()) for label, each in sums.items()}


def gaussians(model: Model, fitted: Baselines) -> list[ClosedForm]:
    """The closed-form Gaussians among the baselines."""
    return [kind(model, fitted) for kind in BASELINES if issubclass(kind, ClosedForm)]


def spread_sums(method: ClosedForm, values: Anomalies, days: Tensor, composed: bool) -> dict[str, Tensor]:
    """Squared error of the mean, variance within the patterns and outside them, summed over points and days, by set.

    Args:
        method: Closed-form Gaussian.
        values: Anomalies of some days, (n, *S) by modality.
        days: Days of each window, (W, L), or of a trajectory, (T).
        composed: Whether they are those of a trajectory.

    Returns:
        Three sums (3) for each set.
    """
    model, found = method.model, {}
    recipe, states = model.recipe, model.states
    truth = torch.cat([values[n][days].flatten(days.ndim) for n in states], -1)
    area = torch.cat([model.layouts[n].weights().expand(model.layouts[n].shape).flatten() for n in states])
    std = {n: s.std for n, s in model.codec.statistics.items()}
    target, rest = truth[..., method.present], method.closed.rest
    weight = torch.where(torch.isfinite(target), area[method.present], 0.0)
    for label, names in recipe.experiment.sets.items():
        seen = observe(model.layouts, recipe, values, names, days=days, std=std)
        mean, deviation = method.exact(seen, composed=composed)
        error = (weight * torch.nan_to_num(target - mean).square()).sum()
        spread = (weight * (deviation.square() - rest)).sum()
        found[label] = torch.stack([error, spread, (weight * rest).sum()]).double()
    return found
