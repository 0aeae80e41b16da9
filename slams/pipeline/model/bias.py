"""Biases of observed modalities from year to year: their size in training years, and their estimate in a record."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.bias import Bias, BiasPosterior
from slams.assimilation.baseline.gaussian import ClosedFormGaussian, ridge
from slams.assimilation.score.sda import SDA
from slams.core.days import Days, Values, daywise, fits, over
from slams.core.eof import eof
from slams.data.windows import runs
from slams.diffusion.guidance.conditional import ConditionalGuidance
from slams.observation.observation import Observations
from slams.observation.operators import Operator
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.operators import through
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.model import Model

FEWEST = 4  # years from which a spread between years is estimated
_DAYS = 600  # by which the patterns of the states are found
_PATTERNS = 100
_PENALTIES = (1.0, 30.0, 300.0, 3000.0)

Size = dict[str, float]


def years_of(dates: np.ndarray) -> list[np.ndarray]:
    """Rows of each year or season: runs of consecutive days, those above 400 days cut at the turn of the year."""
    found = []
    for run in runs(dates):
        rows = np.arange(run.start, run.stop)
        year = dates[rows].astype("datetime64[Y]")
        found += [rows] if len(rows) <= 400 else [rows[year == each] for each in np.unique(year)]
    return found


def bias_sizes(
    layouts: Mapping[str, Layout],
    states: Sequence[str],
    train: Anomalies,
    dates: np.ndarray,
    length: int,
    *,
    fresh: bool = False,
) -> dict[str, Size]:
    """How much each observed modality is off in a year that its regression on the state did not know.

    For each year, the mean over the area (of stations: of each one) is regressed on the patterns of the state of the
    other years, and the year's mean residual is one draw of its bias.

    Of a year of n days whose residuals deviate from their mean m by the variance v, m^2 contains v / n, which the error
    covariance of single days implies already; and with the climate of J years, m is b - mean(b), of variance
    (1 - 1/J) var(b), while the bias of another year is seen with (1 + 1/J) var(b).

    Args:
        layouts: Layouts by modality.
        states: Names of the state variables.
        train: Anomalies of training days, (n, *S).
        dates: Those days.
        length: Number of days of a window.
        fresh: Whether v / n is taken out and the variance is that seen in another year; runs without
            `prior.leave_out` have the mean of m^2.

    Returns:
        By modality the variances of a bias that its channels or stations share, "shared", and of their "own", and the
        "share" of windows that are independent, (1 - rho) / (1 + rho) with rho the correlation of windows that follow
        each other. Empty with fewer than 4 years.
    """
    years = years_of(dates)
    if len(years) < FEWEST:
        return {}

    def state(rows: Any) -> Tensor:
        return torch.nan_to_num(torch.cat([train[name][rows].flatten(1) for name in states], 1))

    size = sum(layouts[name].size for name in states)
    some = Days(state, len(dates), [size]).rows(slice(None, None, max(1, len(dates) // _DAYS)))
    basis = eof(some[:] if fits(len(some), [size]) else some, fraction=0.99, most=_PATTERNS).basis
    # in parts, because all days of large grids are more than memory has
    parts = [slice(first, first + 256) for first in range(0, len(dates), 256)]
    a, found = torch.cat([state(rows) @ basis for rows in parts]), {}
    for name, layout in layouts.items():
        if name in states:
            continue
        series = torch.cat([area_means(train[name][rows], layout) for rows in parts])
        left_out = [_left_out(a, series, years, penalty) for penalty in _PENALTIES]
        errors = min(left_out, key=lambda each: float(torch.nanmean(each.square())))
        means = torch.stack([torch.nanmean(errors[rows], 0) for rows in years])
        sampled = torch.zeros_like(means[0])
        if fresh:
            means = means * ((len(years) + 1) / (len(years) - 1)) ** 0.5
            sampled = torch.stack([_sampled(errors[rows]) for rows in years]).mean(0)
        found[name] = _moments(means, sampled) | {"share": independent_share(series, years, length)}
    return found


def area_means(x: Tensor, layout: Layout) -> Tensor:
    """Area means of each channel of a grid, or the values of all stations, (n, r); NaN where nothing was seen."""
    if not layout.is_grid:
        return x.flatten(1)
    weight = torch.where(torch.isfinite(x), layout.weights(), 0.0).flatten(2)
    return (torch.nan_to_num(x).flatten(2) * weight).sum(-1) / weight.sum(-1)


def _left_out(a: Tensor, series: Tensor, years: Sequence[np.ndarray], penalty: float) -> Tensor:
    """Residuals of every day from the regression of the other years, (n, r)."""
    residual = torch.full_like(series, torch.nan)
    for rows in years:
        others = np.setdiff1d(np.concatenate(list(years)), rows)
        residual[rows] = series[rows] - a[rows] @ ridge(a[others], series[others], penalty).mT
    return residual


def _sampled(errors: Tensor) -> Tensor:
    """Variance of the mean of a year's independent residuals, (r)."""
    count = torch.isfinite(errors).sum(0).clamp(min=2)
    return torch.nan_to_num(errors - torch.nanmean(errors, 0)).square().sum(0) / (count * (count - 1))


def _moments(means: Tensor, sampled: Tensor) -> Size:
    """Variance that the columns of (years, r) share, and that of each of its own without what was `sampled` (r)."""
    known = torch.isfinite(means).all(0)
    means = means[:, known].double()
    count = means.shape[1]
    if not count:
        return {"shared": 0.0, "own": 0.0}
    whole = max(float(means.square().mean()) - float(sampled[known].mean()), 0.0)
    pairs = float((means.sum(1).square() - means.square().sum(1)).mean()) / max(count * (count - 1), 1)
    shared = whole if count == 1 else min(max(pairs, 0.0), whole)
    return {"shared": shared, "own": whole - shared}


def independent_share(series: Tensor, years: Sequence[np.ndarray], length: int) -> float:
    """(1 - rho) / (1 + rho) with rho the correlation of means over windows that follow each other."""
    products, squares = [], []
    for rows in years:
        whole = rows[: len(rows) // length * length]
        if len(whole) < 2 * length:
            continue
        means = torch.nanmean(series[whole].unflatten(0, (-1, length)), 1)
        products.append((means[1:] * means[:-1]).flatten())
        squares.append((0.5 * (means[1:].square() + means[:-1].square())).flatten())
    if not products:
        return 1.0
    rho = float(torch.nanmean(torch.cat(products)) / torch.nanmean(torch.cat(squares)))
    return min(max((1 - rho) / (1 + rho), 0.05), 1.0)


def without_bias(x: Values, layout: Layout) -> Values:
    """Residuals of the days of a year (n, *S) less their mean over the days in each direction of a bias."""
    mean = torch.nan_to_num(torch.nanmean(over(x, lambda part: area_means(part, layout)), 0))
    mean = mean.reshape(-1, *[1] * (len(layout.shape) - 1)) if layout.is_grid else mean.reshape(layout.shape)
    return daywise(x, lambda part: part - mean)


def bias_priors(model: Model) -> dict[str, Bias]:
    """Priors of the biases by observed modality, in the space of what its operator returns; empty where switched off."""
    found = {}
    for name, size in model.prior.biases.items() if model.recipe.assimilation.bias else ():
        layout = model.layouts[name]
        count = layout.shape[0] if layout.is_grid else layout.size
        directions = torch.eye(count).repeat_interleave(layout.size // count, 0)
        if name in model.operators:
            directions = through(model.operators[name], directions, layout)
        covariance = size["shared"] * torch.ones(count, count) + (size["own"] + 1e-6) * torch.eye(count)
        found[name] = Bias(directions, covariance, size["share"])
    return found


def biases_in(
    model: Model,
    seen: Mapping[str, Tensor],
    composed: bool,
    closed: ClosedFormGaussian | None = None,
    operators: Mapping[str, Tensor] | None = None,
    errors: Mapping[str, Tensor] | None = None,
) -> BiasPosterior | None:
    """Biases of the modalities in a record, under a closed form.

    Args:
        model: Trained model.
        seen: Observed anomalies along a trajectory (T, *S), or of windows (W, L, *S) if not composed.
        composed: Whether they are along a trajectory, whose windows that do not overlap are taken.
        closed: Closed form with its `operators` and `errors` by modality; that of the model's prior if None.
        operators: See `closed`.
        errors: See `closed`.

    Returns:
        None where no observed modality has a bias, in a record shorter than a window, and of trajectories that are longer
        than one but not composed, as of filters and forecasts.
    """
    priors = {name: prior for name, prior in bias_priors(model).items() if name in seen}
    if not priors:
        return None
    length = model.recipe.prior.window
    days = len(next(iter(seen.values()))) if composed else next(iter(seen.values())).shape[1]
    # memories of a filter overlap and see each other's future, so that one bias of all is not theirs
    if days < length if composed else days != length:
        return None
    if closed is None:
        gaussian = copy.deepcopy(model.prior.gaussian).cpu()
        closed = ClosedFormGaussian(gaussian, torch.zeros(1, gaussian.basis.shape[1]), torch.ones(1))
        operators, errors = model.jacobians(), model.errors()
    assert operators is not None and errors is not None
    if composed:
        whole = len(next(iter(seen.values()))) // length * length
        seen = {name: value[:whole].unflatten(0, (-1, length)) for name, value in seen.items()}
    return closed.biases(model.seen(seen, errors), operators, priors)


def shifted(observations: Observations, offsets: Mapping[str, Tensor]) -> Observations:
    """Observations whose operators add a bias of each member's own, for states (N, W, L, *S).

    Args:
        observations: Observations of windows or of a trajectory.
        offsets: Biases by modality, (N, prod(O)).
    """
    made = {}
    for name, o in observations.items():
        if name in offsets:
            event = o.value.shape[o.value.ndim - o.event :]
            offset = offsets[name].to(o.value).reshape(-1, 1, 1, *event)
            o = replace(o, operator=_Biased(o.operator, offset))
        made[name] = o
    return Observations(made)


def bias_draws(
    model: Model,
    seen: Mapping[str, Tensor],
    composed: bool,
    *,
    rng: torch.Generator,
    members: int | None = None,
) -> dict[str, Tensor]:
    """Draws of the biases of a record for each member, (N, prod(O)) by modality; see `biases_in`.

    There are none under guidances that do not take members' own observations, and none in a filter, whose days share
    no bias that each of them could know.
    """
    a = model.recipe.assimilation
    if a.guidance != "covariance" or a.uses == "past":
        return {}
    found = biases_in(model, seen, composed)
    return found.draw(members or a.members, rng=rng) if found else {}


def without_biases(sda: SDA, observations: Observations, offsets: Mapping[str, Tensor]) -> Observations:
    """Observations with biases of each member's own, which a conditional network takes out of the values itself."""
    if isinstance(sda.guidance, ConditionalGuidance):
        sda.guidance = replace(sda.guidance, offsets=offsets)
    return shifted(observations, offsets)


@dataclass(frozen=True)
class _Biased:
    """h(x) + b_n, members n in front."""

    operator: Operator
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return self.operator(x) + self.offset
