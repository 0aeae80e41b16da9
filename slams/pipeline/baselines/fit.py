"""Fits of the reference analyses on training days, tuned on validation days."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import (
    ClosedFormGaussian,
    floored,
    normal_crps,
    residual_covariance,
    residual_variance,
    ridge,
)
from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.assimilation.baseline.ridge_sums import RidgeSums
from slams.core.days import Days, Values, daywise, fits, mean_of, over, rows_in_memory, total
from slams.data.windows import window_starts
from slams.diffusion.denoiser import WindowGaussian, window_moments
from slams.diffusion.schedule import VPCosine
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.bias import bias_priors, biases_in, without_bias, years_of
from slams.pipeline.model.calibrate import DENSE_UP_TO
from slams.pipeline.model.codec import Anomalies, anomalies
from slams.pipeline.model.model import Model

Networks = dict[str, list[Network]]
Linear = tuple[dict[str, Tensor], dict[str, Tensor]]
_FULL_UP_TO = 4096  # values of a modality: the covariance of more takes gigabytes and hours


@dataclass
class Baselines:
    """Fitted parameters of the reference analyses of a run.

    Attributes:
        gaussian: Prior over windows of the state variables' anomalies, the variables one after another.
        covariance: Covariance of its coefficients over a window, (L K, L K); None in runs of versions before 0.2.
        present: Mask of the values of the state with training data, (D).
        operators: Fitted linear operators of modalities on its patterns; a state observed cell by cell has its
            own rows of the patterns (see `linear`).
        errors: Residual covariances by modality.
        networks: Points and climatological spread of the states and of modalities that measure them, one per channel.
        interpolators: Optimal interpolation by (set, variable).
        settings: Tuned settings, for the report.
        spreads: Factors on the deviations of the closed-form Gaussians, by name and by set.
    """

    gaussian: ClosedFormGaussian
    covariance: Tensor | None
    present: Tensor
    operators: dict[str, Tensor]
    errors: dict[str, Tensor]
    networks: Networks
    interpolators: dict[tuple[str, str], AnomalyInterp] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)
    spreads: dict[str, dict[str, float]] = field(default_factory=dict)

    def linear(self, model: Model) -> Linear:
        """Operators and errors, with the states' own rows of the patterns where no others were fitted."""
        operators, errors = own_rows(model, self.present, self.gaussian)
        return {**operators, **self.operators}, {**errors, **self.errors}


def split(model: Model, present: Tensor) -> dict[str, tuple[Tensor, slice]]:
    """For each state variable, the mask of its present values and their slice among all present values."""
    found, at = {}, 0
    sizes = [model.layouts[name].size for name in model.states]
    for name, own in zip(model.states, present.split(sizes), strict=True):
        found[name] = (own, slice(at, at + int(own.sum())))
        at = found[name][1].stop
    return found


def own_rows(model: Model, present: Tensor, gaussian: ClosedFormGaussian) -> Linear:
    """Operators of states observed cell by cell, and their residual variances."""
    operators, errors = {}, {}
    for name, (own, rows) in split(model, present).items():
        operators[name] = torch.zeros(len(own), gaussian.decode.shape[1])
        errors[name] = torch.ones(len(own))
        operators[name][own], errors[name][own] = gaussian.decode[rows], gaussian.rest[rows]
    return operators, errors


class GaussianFit:
    """The closed-form Gaussian fitted on training days: EOFs to 99 % plus a remainder, and its scores on other days.

    States whose training days are too large for memory have at most as many EOFs as fit in it.

    Args:
        model: Trained model.
        fields: Fields of all days.
        bias: Whether the yearly biases of modalities are modelled in the scores (see `slams.pipeline.model.bias`); then
            their mean residual of each training year is no error of single days.
    """

    def __init__(self, model: Model, fields: Fields, *, bias: bool = False) -> None:
        recipe = model.recipe
        self.model, self.fields, self.bias = model, fields, bias
        index = fields.part(recipe.data.train)
        train = anomalies(model.codec, fields, index)
        length = recipe.prior.window
        x = _joined(train, model.states)
        self.present = mean_of(daywise(x, lambda part: torch.isfinite(part).float()), [0]) > 0.5
        x = daywise(x, lambda part: torch.nan_to_num(part[:, self.present]))
        starts = window_starts(fields.dates[index], length)
        most = 10_000 if isinstance(x, Tensor) else rows_in_memory(x.shape[1:])
        basis, self.covariance, remainder = window_moments(
            x, starts, length, fraction=0.99, most=most, shrink=0.0
        )
        prior = WindowGaussian(basis, self.covariance, remainder, x.shape[1:], VPCosine())
        self.a = over(x, lambda part: part @ basis)
        rest = mean_of(daywise(x, lambda part: (part - part @ basis @ basis.mT).square()), [0]) + 1e-6
        self.closed = ClosedFormGaussian(prior, basis, rest)
        self.observed = _observed(model, train, self.a)
        self.years = years_of(fields.dates[index]) if bias and bias_priors(model) else []
        self.subset = torch.arange(0, x.shape[1], max(1, x.shape[1] // 2000))
        self.part = ClosedFormGaussian(prior, basis[self.subset], rest[self.subset])
        # they are large, and a walk needs two at a time
        self.fitted = lru_cache(maxsize=2)(self._fitted)

    def _fitted(self, penalty: float) -> Linear:
        return _operators(self.model, self.observed, self.a, penalty, self.years)

    def errors(self, penalty: float, inflation: float) -> dict[str, Tensor]:
        """Error covariances by modality, inflated."""
        # a state seen through an operator has errors of its own fit, which were not found too small
        states = self.model.states
        return {n: e if n in states else e * inflation for n, e in self.fitted(penalty)[1].items()}

    def score(self, values: Anomalies, rows: Tensor) -> Callable[[float, float], float]:
        """Mean CRPS on some windows, summed over all sets, as a function of ridge and inflation.

        Args:
            values: Anomalies of days, (n, *S) by modality.
            rows: Days of each window, (W, L); windows of one season that do not overlap where biases are modelled.
        """
        model, recipe = self.model, self.model.recipe
        truth = torch.cat([values[n][rows].flatten(2) for n in model.states], 2)[..., self.present]
        truth = truth[..., self.subset]
        sees = [
            observe(model.layouts, recipe, values, group, days=rows)
            for group in recipe.experiment.sets.values()
        ]
        own, own_errors = own_rows(model, self.present, self.closed)

        def score(penalty: float, inflation: float) -> float:
            total = 0.0
            for seen in sees:
                errors = {**own_errors, **self.errors(penalty, inflation)}
                operators = {**own, **self.fitted(penalty)[0]}
                bias = biases_in(model, seen, False, self.part, operators, errors) if self.bias else None
                mean, std = self.part.windows(model.seen(seen, errors), operators, bias)
                total += float(torch.nanmean(normal_crps(truth - mean, std)))
            return total

        return score

    def baselines(self, penalty: float, inflation: float) -> Baselines:
        """The fitted parameters with chosen settings."""
        return Baselines(
            self.closed,
            self.covariance,
            self.present,
            self.fitted(penalty)[0],
            self.errors(penalty, inflation),
            networks_of(self.model, self.fields),
            settings={"ridge": penalty, "inflation": inflation},
        )


def fit_gaussian(model: Model, fields: Fields) -> Baselines:
    """The closed-form Gaussian of `GaussianFit`, with ridge operators with full residual covariance.

    Ridge and inflation of the residual covariances (too small on the days they were fitted) are those with the best CRPS
    on validation windows, over all sets.
    """
    fit, length = GaussianFit(model, fields), model.recipe.prior.window
    index = fields.part(model.recipe.data.validation)
    starts = window_starts(fields.dates[index], length)
    rows = starts[:: max(1, len(starts) // 32), None] + torch.arange(length)
    return fit.baselines(*tuned(fit.score(anomalies(model.codec, fields, index), rows)))


def tuned(score: Callable[[float, float], float]) -> tuple[float, float]:
    """Ridge and inflation with the lowest score, one after the other."""
    penalty = climb((1.0, 10.0, 30.0, 300.0, 3e3, 3e4, 3e5), 300.0, lambda value: score(value, 10.0))
    return penalty, climb((1.0, 3.0, 10.0, 30.0, 100.0), 10.0, lambda value: score(penalty, value))


def climb(values: Sequence[float], start: float, score: Callable[[float], float]) -> float:
    """The value of a rising grid where the score is smallest, walked from `start` as long as it falls.

    >>> climb([1, 3, 10, 30], 3, lambda x: abs(x - 12))
    10
    """
    score = cache(score)
    index = values.index(start)
    for step in (1, -1):
        while 0 <= index + step < len(values) and score(values[index + step]) < score(values[index]):
            index += step
    return values[index]


def _joined(values: Anomalies, names: Sequence[str]) -> Values:
    """Anomalies of some modalities side by side, (n, D)."""
    days, size = len(values[names[0]]), sum(values[n].shape[1:].numel() for n in names)

    def read(rows: Any) -> Tensor:
        return torch.cat([values[n][rows].flatten(1) for n in names], 1)

    whole = all(isinstance(values[n], Tensor) for n in names) and fits(days, [size])
    return read(slice(None)) if whole else Days(read, days, [size])


def _observed(model: Model, train: Anomalies, a: Tensor) -> dict[str, Tensor | RidgeSums]:
    """Observed values (n, P) of modalities on training days, except states observed cell by cell; sums of large ones."""
    found: dict[str, Tensor | RidgeSums] = {}
    h = model.operators
    for name in sorted({n for group in model.recipe.experiment.sets.values() for n in group}):
        if name in model.states and name not in h:
            continue
        y = daywise(train[name], h[name] if name in h else lambda part: part.flatten(1))
        y = over(y, lambda part: part) if fits(len(y), y.shape[1:]) else y
        found[name] = y if isinstance(y, Tensor) else RidgeSums(a, y)
    return found


def _operators(
    model: Model,
    observed: Mapping[str, Tensor | RidgeSums],
    a: Tensor,
    penalty: float,
    years: Sequence[np.ndarray] = (),
) -> Linear:
    """Ridge operators of observed modalities, except states observed cell by cell.

    Of modalities with a bias, residuals are less their mean over each of `years` in the directions of the bias.
    """
    operators, errors = {}, {}
    for name, y in observed.items():
        if isinstance(y, RidgeSums):
            operators[name] = y.operator(penalty)
            errors[name] = floored(y.residual_squares(operators[name]), y.seen)
            continue
        operators[name] = ridge(a, y, penalty)
        residual = y - a @ operators[name].mT
        if years and name in model.prior.biases and name not in model.operators:
            shape = model.layouts[name].shape
            for rows in years:
                part = residual[rows].reshape(-1, *shape)
                residual[rows] = over(without_bias(part, model.layouts[name]), lambda x: x.flatten(1))
        full = residual.shape[1] <= (DENSE_UP_TO if name in model.operators else _FULL_UP_TO)
        errors[name] = residual_covariance(residual, floor=1e-2) if full else residual_variance(residual)
    return operators, errors


def networks_of(model: Model, fields: Fields) -> Networks:
    """Points and climatological spread of the states and of modalities that measure them, one per channel."""
    used = {m for group in model.recipe.data.direct.values() for m in group} | set(model.states)
    index = fields.part(model.recipe.data.train)
    # neighbouring days add little to a standard deviation
    train = anomalies(model.codec, fields, index[:: max(1, len(index) // 700)])
    found = {}
    for name in sorted(used):
        values = daywise(train[name], lambda part: part.flatten(2))
        count = total(values, lambda part, _: torch.isfinite(part).sum(0)).clamp(min=1)
        square = total(values, lambda part, _: torch.nan_to_num(part).square().sum(0))
        std = (square / count).sqrt().clamp(min=1e-3)
        found[name] = [Network(model.layouts[name].points(), channel) for channel in std]
    return found


def regressors(model: Model, values: Anomalies, names: Sequence[str]) -> Tensor:
    """Observed values of modalities (n, *S) as rows, 0 where missing."""
    h = model.operators
    seen = [over(values[n], lambda x, n=n: h[n](x) if n in h else x.flatten(1)) for n in names]  # type: ignore[misc]
    return torch.nan_to_num(torch.cat(seen, 1))


def retrained_ridge(
    model: Model,
    train: Anomalies,
    validation: Anomalies,
    names: Sequence[str],
    years: Sequence[np.ndarray] = (),
) -> dict[str, tuple[Tensor, Tensor]]:
    """A regression of each state variable on one set of modalities, fitted for that set alone.

    A regression has no prior of the weather from which a bias of its regressors is told, so that it has none of the
    year: the biases of years are in the residuals of years left out, and so in its standard deviation.

    Args:
        model: Trained model.
        train: Training anomalies by modality, (n, *S).
        validation: Validation anomalies by modality, for the penalty and the spread.
        names: Names of the modalities in the set.
        years: Rows of training days of each year, which are left out in turn for penalty and spread in place of the
            validation days; none if empty.

    Returns:
        Operator (D, P) and standard deviation (D) by state variable, standardized.
    """
    found = {}
    y, y_validation = (regressors(model, x, names) for x in (train, validation))
    for name in model.states:
        truth, own = (over(x[name], lambda part: part.flatten(1)) for x in (validation, train))
        trials = []
        for penalty in (10.0, 30.0, 100.0, 300.0, 1000.0):
            operator = ridge(y, own, penalty)
            square = (truth - y_validation @ operator.mT).square()
            if years:
                square = torch.cat([_left_out(y, own, rows, penalty) for rows in years])
            trials.append((float(torch.nanmean(square)), operator, torch.nanmean(square, 0).sqrt()))
        _, operator, std = min(trials, key=lambda trial: trial[0])
        found[name] = (operator, std)
    return found


def _left_out(y: Tensor, own: Tensor, rows: np.ndarray, penalty: float) -> Tensor:
    """Squared errors (n, D) on some days of the ridge regression of the other days."""
    rest = np.setdiff1d(np.arange(len(y)), rows)
    operator = ridge(y[rest], torch.nan_to_num(own[rest]), penalty)
    return (own[rows] - y[rows] @ operator.mT).square()


def at_channel(
    networks: Networks, seen: Mapping[str, Tensor], channel: int
) -> tuple[dict[str, Network], dict[str, Tensor]]:
    """Points and values of modalities (T, *S) with any observation, on one channel or their last."""
    at, values = {}, {}
    for m, value in seen.items():
        x = value[:, min(channel, value.shape[1] - 1)].flatten(1)
        network, used = networks[m][min(channel, len(networks[m]) - 1)], torch.isfinite(x).any(0)
        at[m], values[m] = Network(network.points[used], network.std[used]), x[:, used]
    return at, values


def fit_interpolation(
    model: Model, networks: Networks, name: str, seen: Mapping[str, Tensor], truth: Tensor
) -> AnomalyInterp:
    """Length and error ratios on validation days, from the middle channel (T, *S)."""
    channel = truth.shape[1] // 2
    weights = model.layouts[name].weights().flatten()
    return AnomalyInterp.fit(
        networks[name][channel],
        truth[:, channel].flatten(1),
        weights,
        *at_channel(networks, seen, channel),
    )
