"""Analyses of a test: ours and the baselines, for every set of observations, scored side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import (
    ClosedFormGaussian,
    normal_crps,
    residual_covariance,
    residual_variance,
    ridge,
)
from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.core.random import Rng, normal
from slams.data.windows import window_starts
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observations
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.model.model import DENSE_UP_TO, Anomalies, Model, anomalies

_FULL_UP_TO = 4096  # values of a modality: the covariance of more takes gigabytes and hours


def posterior(
    model: Model,
    seen: Sequence[Mapping[str, Tensor]],
    blanket: bool,
    *,
    rng: torch.Generator,
    progress: Callable[[int], None] | None = None,
) -> list[Tensor]:
    """Latent draws for trajectories.

    Args:
        model: Trained.
        seen: Observed anomalies of each trajectory, (T, *S) by name.
        blanket: Whether trajectories are composed of windows; else each is one window and all are drawn at once.
        rng: Generator.
        progress: Called with 1 after each step of the sampler.

    Returns:
        (N, T, *Z) each, on the CPU.
    """
    sda, members = model.sda(), model.recipe.assimilation.members

    def joined(values: Mapping[str, Tensor]) -> Observations:
        if model.recipe.assimilation.guidance == "published":
            return model.published(values)
        return model.observations(values)

    if not blanket:
        stacked = {name: torch.stack([s[name] for s in seen]) for name in seen[0]}
        draws: list[Tensor] = []
        # pieces of eight windows bound the memory of the decoders
        for first in range(0, len(seen), 8):
            piece = joined({name: value[first : first + 8] for name, value in stacked.items()})
            z = sda.windows(piece, members, rng=rng, progress=progress)
            draws += list(z.unbind(1))
    else:
        draws = [
            sda.windows(
                joined(values).windows(model.belief.gaussian.length),
                members,
                blanket=True,
                rng=rng,
                progress=progress,
            )
            for values in seen
        ]
    return [_spread(z, model.belief.inflation).cpu() for z in draws]


def _spread(z: Tensor, factor: float) -> Tensor:
    mean = z.mean(0)
    return mean + factor * (z - mean)


def decoded(
    model: Model, z: Tensor, name: str, phase: Tensor, *, rng: Rng, residual: bool | None = None
) -> Tensor:
    """Physical draws of a modality (N, T, *S) from latent draws (N, T, *Z).

    What the latent cannot hold is added as a draw of the decoder's residual; rain stays non-negative.

    Args:
        model: Trained.
        z: Draws.
        name: Modality.
        phase: Of the year, (T).
        rng: Generator of the residual.
        residual: Whether to add it; the recipe's choice if None.
    """
    x = model.codec.decode(z, name)
    if model.recipe.assimilation.residual if residual is None else residual:
        # member by member, which bounds the memory
        variance = torch.stack([model.belief.unresolved(name, member) for member in x.flatten(2)])
        x = x + variance.sqrt().reshape(x.shape) * normal(x.shape, like=x, rng=rng)
    return possible(model, name, x, phase)


def possible(model: Model, name: str, anomaly: Tensor, phase: Tensor) -> Tensor:
    """Physical values of drawn anomalies (*B, T, *S): rain not below zero, NaN where training never had a value."""
    x = model.codec.physical(name, anomaly, phase)
    if model.recipe.modalities()[name].transform == "log1p":
        x = x.clamp(min=0)
    return torch.where(model.codec.statistics[name].present, x, torch.nan)


@dataclass
class Baselines:
    """The closed forms that every table carries, fitted on training days and tuned on validation days.

    Attributes:
        gaussian: Prior over windows of the state variables' anomalies.
        operators: Linear operator of each modality on its patterns.
        errors: Residual covariance of each.
        interpolators: Optimal interpolation by (set, variable).
        settings: What was tuned, for the report.
    """

    gaussian: ClosedFormGaussian
    operators: dict[str, Tensor]
    errors: dict[str, Tensor]
    present: Tensor
    splits: dict[str, slice]
    interpolators: dict[tuple[str, str], AnomalyInterp] = field(default_factory=dict)
    settings: dict[str, float] = field(default_factory=dict)


def state_names(model: Model) -> list[str]:
    """Names of the state variables."""
    return [n for n, m in model.recipe.modalities().items() if m.role == "state"]


def state_matrix(
    model: Model, values: Anomalies, present: Tensor | None = None
) -> tuple[Tensor, Tensor, dict[str, slice]]:
    """State anomalies as rows, the columns that are present in training, and where each variable's are."""
    names = state_names(model)
    x = torch.cat([values[n].flatten(1) for n in names], 1)
    if present is None:
        present = torch.isfinite(x).float().mean(0) > 0.5
    splits, at = {}, 0
    for n in names:
        size = int(present[at_full(model, names, n)].sum())
        splits[n] = slice(at, at + size)
        at += size
    return torch.nan_to_num(x[:, present]), present, splits


def at_full(model: Model, names: Sequence[str], name: str) -> slice:
    """Where a variable's values are in the full row of the state."""
    sizes = [torch.Size(model.places[n].shape).numel() for n in names]
    first = sum(sizes[: names.index(name)])
    return slice(first, first + sizes[names.index(name)])


def fit_gaussian(model: Model, fields: Fields) -> Baselines:
    """The closed-form Gaussian: EOFs to 99 % plus a remainder, ridge operators with full residual covariance.

    Ridge and inflation of the residual covariances (too small on the days they were fitted) are those with the best
    CRPS on validation windows, over all sets.
    """
    recipe = model.recipe
    index, held_index = fields.part(recipe.data.train), fields.part(recipe.data.validation)
    given, held = anomalies(model.codec, fields, index), anomalies(model.codec, fields, held_index)
    x, present, splits = state_matrix(model, given)
    starts = window_starts(fields.dates[index], recipe.prior.window)
    prior = WindowGaussian.fit(
        x, starts, recipe.prior.window, VPCosine(), fraction=0.99, most=10_000, shrink=0.0
    )
    a = x @ prior.basis
    rest = (x - a @ prior.basis.mT).square().mean(0) + 1e-6
    target, _, _ = state_matrix(model, held, present)
    missing = ~torch.isfinite(torch.cat([held[n].flatten(1) for n in state_names(model)], 1)[:, present])
    target = target.masked_fill(missing, torch.nan)
    held_starts = window_starts(fields.dates[held_index], recipe.prior.window)
    rows = held_starts[:: max(1, len(held_starts) // 32), None] + torch.arange(recipe.prior.window)
    some = torch.arange(0, x.shape[1], max(1, x.shape[1] // 2000))
    part = ClosedFormGaussian(prior, prior.basis[some], rest[some])
    sees = [
        observe(model.places, recipe, held, group, days=rows) for group in recipe.experiment.sets.values()
    ]

    @lru_cache(maxsize=2)  # they are large, and a walk needs two at a time
    def operators(penalty: float) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return _operators(model, given, a, x, prior.basis, rest, present, splits, penalty)

    def errors(penalty: float, inflation: float) -> dict[str, Tensor]:
        states = state_names(model)
        return {n: e if n in states else e * inflation for n, e in operators(penalty)[1].items()}

    def score(penalty: float, inflation: float) -> float:
        total = 0.0
        for seen in sees:
            wide = model.seen(seen, errors(penalty, inflation))
            mean, std = part.windows(wide, operators(penalty)[0])
            total += float(torch.nanmean(normal_crps(target[rows][..., some] - mean, std)))
        return total

    penalty = climb((1.0, 10.0, 30.0, 300.0, 3e3, 3e4, 3e5), 300.0, lambda value: score(value, 10.0))
    inflation = climb((1.0, 3.0, 10.0, 30.0, 100.0), 10.0, lambda value: score(penalty, value))
    return Baselines(
        ClosedFormGaussian(prior, prior.basis, rest),
        operators(penalty)[0],
        errors(penalty, inflation),
        present,
        splits,
        settings={"ridge": penalty, "inflation": inflation},
    )


def climb(values: Sequence[float], start: float, score: Callable[[float], float]) -> float:
    """The value of a rising grid where the score is smallest, walked from `start` as long as it falls.

    >>> climb([1, 3, 10, 30], 3, lambda x: abs(x - 12))
    10
    """
    score = cache(score)
    here = values.index(start)
    for step in (1, -1):
        while 0 <= here + step < len(values) and score(values[here + step]) < score(values[here]):
            here += step
    return values[here]


def _operators(
    model: Model,
    given: Anomalies,
    a: Tensor,
    x: Tensor,
    basis: Tensor,
    rest: Tensor,
    present: Tensor,
    splits: Mapping[str, slice],
    penalty: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Operators of observed modalities by ridge; a state variable's own are its rows of the patterns."""
    operators, errors = {}, {}
    h = operators_of(model.recipe, model.places)
    observed = sorted({n for group in model.recipe.experiment.sets.values() for n in group})
    names = state_names(model)
    for name in observed:
        if name in names and name not in h:
            full = torch.zeros(torch.Size(model.places[name].shape).numel(), basis.shape[1])
            outside = torch.ones(len(full))
            here = present[at_full(model, names, name)]
            full[here], outside[here] = basis[splits[name]], rest[splits[name]]
            operators[name], errors[name] = full, outside
            continue
        y = h[name](given[name]) if name in h else given[name].flatten(1)
        operators[name] = ridge(a, y, penalty)
        left = y - a @ operators[name].mT
        full_covariance = left.shape[1] <= (DENSE_UP_TO if name in h else _FULL_UP_TO)
        errors[name] = residual_covariance(left, floor=1e-2) if full_covariance else residual_variance(left)
    return operators, errors


def gaussian_posterior(
    model: Model, baselines: Baselines, seen: Mapping[str, Tensor], blanket: bool
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and spread of each state variable, standardized, NaN where never seen.

    Args:
        model: Trained.
        baselines: Fitted.
        seen: Anomalies along one trajectory (T, *S) with `blanket`, else of many windows (W, L, *S).
        blanket: Whether windows are composed along a trajectory.

    Returns:
        Pairs (T, *S), or (W, L, *S).
    """
    length = model.recipe.prior.window
    observations = model.seen(seen, baselines.errors)
    if blanket:
        observations = observations.windows(length)
    mean, std = baselines.gaussian.windows(observations, baselines.operators)
    k = length // 2
    if blanket:
        mean, std = (torch.cat([v[0, :k], v[:, k], v[-1, length - k :]]) for v in (mean, std))
    found = {}
    names = state_names(model)
    for name in names:
        shape = model.places[name].shape
        here = baselines.present[at_full(model, names, name)]
        pair = []
        for part in (mean, std):
            full = torch.full((*part.shape[:-1], len(here)), torch.nan)
            full[..., here] = part[..., baselines.splits[name]]
            pair.append(full.reshape(*part.shape[:-1], *shape))
        found[name] = (pair[0], pair[1])
    return found


def regressors(model: Model, values: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """What is seen of modalities (n, *S) as rows, 0 where missing."""
    h = operators_of(model.recipe, model.places)
    seen = [h[n](values[n]) if n in h else values[n].flatten(1) for n in names]
    return torch.nan_to_num(torch.cat(seen, 1))


def retrained_ridge(
    model: Model, given: Anomalies, held: Anomalies, names: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """A regression of each state variable on one set of modalities, fitted for that set alone.

    Args:
        model: Trained; knows the state variables.
        given: Training anomalies.
        held: Validation anomalies, which choose the penalty and give the spread.
        names: The set.

    Returns:
        Operator (D, P) and standard deviation (D) by state variable, standardized.
    """
    found = {}
    y, y_held = (regressors(model, x, names) for x in (given, held))
    for name in state_names(model):
        truth = held[name].flatten(1)
        trials = []
        for penalty in (10.0, 30.0, 100.0, 300.0, 1000.0):
            operator = ridge(y, given[name].flatten(1), penalty)
            square = (truth - y_held @ operator.mT).square()
            trials.append((float(torch.nanmean(square)), operator, torch.nanmean(square, 0).sqrt()))
        _, operator, std = min(trials, key=lambda trial: trial[0])
        found[name] = (operator, std)
    return found


def network_of(model: Model, name: str, values: Tensor) -> list[Network]:
    """Where a modality is seen and its climatological spread there, for each channel."""
    points = model.places[name].points()
    spread = values.flatten(2)
    count = torch.isfinite(spread).sum(0).clamp(min=1)
    std = (torch.nan_to_num(spread).square().sum(0) / count).sqrt().clamp(min=1e-3)
    return [Network(points, std[c]) for c in range(std.shape[0])]


def interpolation(
    model: Model,
    networks: Mapping[str, list[Network]],
    fitted: AnomalyInterp,
    name: str,
    seen: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Optimal interpolation of anomalies to one state variable, mean and spread (T, *S)."""
    shape = model.places[name].shape
    means, stds = [], []
    for channel in range(shape[0]):
        at = {m: networks[m][min(channel, len(networks[m]) - 1)] for m in seen}
        values = {m: v[:, min(channel, v.shape[1] - 1)].flatten(1) for m, v in seen.items()}
        used = {m: torch.isfinite(v).any(0) for m, v in values.items()}
        small = {m: Network(at[m].points[used[m]], at[m].std[used[m]]) for m in values}
        mean, std = fitted.analyse(
            networks[name][channel], small, {m: v[:, used[m]] for m, v in values.items()}
        )
        means.append(mean)
        stds.append(std)
    return torch.stack(means, 1).reshape(-1, *shape), torch.stack(stds, 1).reshape(-1, *shape)


def fit_interpolation(
    model: Model,
    networks: Mapping[str, list[Network]],
    name: str,
    seen: Mapping[str, Tensor],
    truth: Tensor,
) -> AnomalyInterp:
    """Length and error ratios on validation days, from the middle channel (T, *S)."""
    channel = truth.shape[1] // 2
    values = {m: v[:, min(channel, v.shape[1] - 1)].flatten(1) for m, v in seen.items()}
    used = {m: torch.isfinite(v).any(0) for m, v in values.items()}
    at = {m: networks[m][min(channel, len(networks[m]) - 1)] for m in seen}
    small = {m: Network(at[m].points[used[m]], at[m].std[used[m]]) for m in values}
    weights = model.places[name].weights().flatten()
    return AnomalyInterp.fit(
        networks[name][channel],
        truth[:, channel].flatten(1),
        weights,
        small,
        {m: v[:, used[m]] for m, v in values.items()},
    )
