"""Observation errors: error covariances of the decoders, calibrated on the validation part."""

import copy
import math
from collections.abc import Callable, Sequence
from functools import cache, lru_cache

import torch
from torch import Tensor

from slams.assimilation.baseline.bias import stacked
from slams.assimilation.baseline.gaussian import (
    ClosedFormGaussian,
    Evidence,
    floored,
    normal_crps,
    residual_covariance,
    residual_variance,
)
from slams.core.console import Console
from slams.core.days import Days, Values, daywise, every, fits, memory_stride, over, total
from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import NetworkDenoiser
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.bias import bias_priors
from slams.pipeline.model.codec import Anomalies, MultimodalCodec
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import LearntPrior, operators_on_patterns

FACTORS = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
DENSE_UP_TO = 512  # values of a modality: beyond it a full error covariance is neither estimated nor stored
_SCORED = 600  # points of the state in the score of a calibration
CLASSES = 10  # of decoded rain, equally frequent


@torch.no_grad()
def learnt_prior(
    codec: MultimodalCodec,
    denoiser: NetworkDenoiser,
    covariance: Tensor,
    train: tuple[Values, Anomalies],
    validation: tuple[Values, Anomalies],
) -> LearntPrior:
    """Linearized decoders on the patterns, and residual covariances of patterns and decoders.

    Observation errors come from training days, inflated to the residuals of validation days; the residuals added
    to draws come from validation days.

    Args:
        codec: Trained codec with its recipe.
        denoiser: Trained denoiser.
        covariance: Covariance of the Gaussian's coefficients over a window, (L K, L K).
        train: Latents (n, *Z) and anomalies of training days.
        validation: Latents and anomalies of validation days.
    """
    recipe, (z, x_train), (z_validation, x_validation) = codec.recipe, train, validation
    stride = max(1, len(z) // 1800)  # more days cost memory, not accuracy
    z, x_train = every(z, stride), {name: every(x, stride) for name, x in x_train.items()}
    basis = denoiser.gaussian.basis.cpu()
    a = over(z, lambda part: part.flatten(1) @ basis)
    inside = daywise(z_validation, lambda part: (part.flatten(1) @ basis @ basis.mT).reshape(part.shape))
    operators, errors, residuals, samples = {}, {}, {}, {}
    profiles: dict[str, Tensor] = {}
    for name, layout in codec.layouts.items():
        modality = recipe.modalities[name]
        operators[name], decoded = operators_on_patterns(codec, basis, a, name)
        residual = difference(x_train[name], decoded)
        fresh = difference(x_validation[name], decoder_output(codec, inside, name))
        variance, square = moments(residual)
        ratio = max(1.0, float(moments(fresh)[1] / square))
        full = is_dense(codec, name)
        errors[name] = (residual_covariance(over(residual, Tensor.float)) if full else variance) * ratio
        output = decoder_output(codec, z_validation, name)
        residuals[name] = moments(difference(x_validation[name], output))[0]
        if modality.transformed.lower is not None:
            rows = slice(None, None, memory_stride(difference(x_validation[name], output)))
            some = output[rows].flatten(1)
            unresolved = x_validation[name][rows].flatten(1) - some
            if torch.isfinite(unresolved).sum() > 10 * CLASSES:
                profiles[name] = profile(some, unresolved, residuals[name])
        if layout.is_grid:
            samples[name] = fresh[:: max(1, len(fresh) // 64)].reshape(-1, *layout.shape)
    statistics = {"covariance": covariance, "coefficients": a}
    return LearntPrior(denoiser, operators, errors, residuals, profiles, samples, statistics)


def decoder_output(codec: MultimodalCodec, z: Values, name: str) -> Values:
    """Output of a decoder; of latents or outputs too large for memory still to be computed."""
    shape = codec.layouts[name].shape
    z = z if fits(len(z), shape) or not isinstance(z, Tensor) else Days.of(z)
    return daywise(z, lambda part: codec.decode(part, name))


def is_dense(codec: MultimodalCodec, name: str) -> bool:
    """Whether a modality's error has a full covariance."""
    return codec.layouts[name].size <= DENSE_UP_TO and codec.recipe.modalities[name].role == "observation"


def difference(x: Values, y: Values) -> Values:
    """x - y (n, P) of anomalies (n, *S)."""
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return (x - y).flatten(1)
    return Days(lambda rows: (x[rows] - y[rows]).flatten(1), len(x), [x.shape[1:].numel()])


def moments(residual: Values) -> tuple[Tensor, Tensor]:
    """`residual_variance` of each column (P), and the mean of the squares of all that is known."""
    if isinstance(residual, Tensor):
        return residual_variance(residual), torch.nanmean(residual**2)

    squares, seen = square_sums(residual)
    return floored(squares, seen), squares.sum() / seen.sum()


def square_sums(residual: Values) -> Tensor:
    """Sum of the squares of each column of residuals (n, P), and the number of its known values, (2, P)."""

    def sums(part: Tensor, rows: slice) -> Tensor:
        return torch.stack([torch.nan_to_num(part).square().sum(0), torch.isfinite(part).sum(0).float()])

    return total(residual, sums)


def profile(decoded: Tensor, residual: Tensor, whole: Tensor) -> Tensor:
    """Variance of a residual as a function of the decoded value, for bounded variables such as rain.

    Args:
        decoded: Decoded values (n, P).
        residual: Residuals (n, P), NaN where unknown.
        whole: Variance of each column's residual (P).

    Returns:
        Mean decoded value of classes of equal frequency, rising, and the mean of residual² / variance in each: (2, K).
    """
    seen = torch.isfinite(residual)
    value, ratio = decoded[seen], (residual.square() / whole)[seen]
    groups = value.argsort().tensor_split(CLASSES)
    return torch.stack([torch.stack([x[rows].mean() for rows in groups]) for x in (value, ratio)])


def calibrate_errors(model: Model, validation: Anomalies, starts: Tensor, console: Console) -> None:
    """Choose a factor for each modality's error covariance, on the validation part (see `choose_factors`)."""
    if not model.recipe.experiment.sets:
        return
    model.prior.factors = dict.fromkeys(sorted(model.prior.errors), 1.0)  # calibrating twice changes nothing
    choose_factors(model, closed_form_score(model, validation, starts), console)


def choose_factors(model: Model, score: Callable[[Sequence[str]], float], console: Console) -> None:
    """Choose a factor for each modality's error covariance, `LearntPrior.factors`.

    Residuals of different modalities are dependent and training residuals are too small; the factor
    with the best CRPS of the closed-form posterior, one modality after another over all sets it is in, corrects
    for both.

    Args:
        model: Model, whose factors are all 1.
        score: Score of a set of modalities with the model's present factors, lower is better.
        console: Console for the progress.
    """
    recipe, sets, prior = model.recipe, model.recipe.experiment.sets, model.prior
    names = sorted({n for group in sets.values() for n in group})
    known: dict[tuple[tuple[str, float], ...], float] = {}

    def relative(group: Sequence[str]) -> float:
        """Log of the score, so that a set counts by its relative gain, not by the size of its errors."""
        key = tuple((name, prior.factors[name]) for name in sorted(group))
        if key not in known:
            known[key] = math.log(score(group))
        return known[key]

    with console.bar("calibrating observation errors", 2 * len(names)) as advance:
        for name in names * 2:  # twice: the best factor of one depends on the others'
            users = [group for group in sets.values() if name in group]
            trials = {}
            stated = name not in model.states and recipe.modalities[name].error_std is not None
            for factor in FACTORS[1:] if stated else FACTORS:  # no error is below the instrument's
                prior.factors[name] = factor
                trials[factor] = sum(relative(group) for group in users)
            prior.factors[name] = min(trials, key=lambda f: trials[f])
            advance(1, ", ".join(f"{n} x {f:g}" for n, f in prior.factors.items() if f != 1))


def season_windows(starts: Tensor, length: int) -> Tensor:
    """Days (W, L) of up to 48 windows that do not overlap, of all first days of windows of a season."""
    return starts[:: max(length, -(-len(starts) // 48)), None] + torch.arange(length)


def closed_form_score(
    model: Model, validation: Anomalies, starts: Tensor, *, bias: bool = False
) -> Callable[[Sequence[str]], float]:
    """Mean CRPS of the closed-form posterior on validation windows, as a function of the observed modalities.

    What a modality's values say is computed once and rescaled by its factor, unless its instrument's error is stated,
    which no factor changes.

    Args:
        model: Model whose factors may change between calls.
        validation: Anomalies of validation days.
        starts: First day of each validation window; up to about 48 of them are scored.
        bias: Whether the biases of the modalities, common to all days, are estimated with the state (see
            `slams.pipeline.model.bias`). Then the windows do not overlap.

    Raises:
        ValueError: If no point of the states has values on half of the days.
    """
    recipe, prior, states = model.recipe, model.prior, model.states
    biases, length = bias_priors(model) if bias else {}, recipe.prior.window
    rows = starts[:: max(1, len(starts) // 48), None] + torch.arange(length)
    if bias:
        rows = season_windows(starts, length)
    decode = torch.cat([prior.operators[n] for n in states])
    target = torch.cat([validation[n][rows].flatten(2) for n in states], -1)
    scored = (torch.isfinite(target).float().mean((0, 1)) > 0.5).nonzero().squeeze(-1)
    if not len(scored):
        raise InvalidValueError(
            f"no point of {', '.join(states)} has values on half of the validation days, so that nothing can be "
            "calibrated; choose another data.validation."
        )
    # a subset of the points is as informative as all of them
    scored = scored[:: max(1, len(scored) // _SCORED)]
    rest = torch.cat([prior.errors[n] for n in states])[scored]  # states have variances, no full covariance
    closed = ClosedFormGaussian(copy.deepcopy(prior.gaussian).cpu(), decode[scored], rest)
    target, jacobians = target[..., scored], model.jacobians()
    single = {name: error / prior.factors[name] for name, error in model.errors().items()}

    @cache
    def values(name: str) -> dict[str, Tensor]:
        return observe(model.layouts, recipe, {name: validation[name]}, [name], days=rows)

    @lru_cache(maxsize=2 * len(single))  # that of the last factor, and of the one on trial
    def evidence(name: str, factor: float) -> Evidence:
        operator = recipe.assimilation.operators.get(name)
        stated = recipe.modalities[name].error_std is not None or (
            operator is not None and bool(operator.std)
        )
        if factor != 1 and not stated:
            return evidence(name, 1.0).scaled(factor)
        seen = model.seen(values(name), {name: factor * single[name]})
        directions = jacobians[name]
        if biases:
            directions = torch.cat([directions, stacked(biases, name, len(directions))], 1)
        return Evidence.of(seen[name], directions)

    def score(names: Sequence[str]) -> float:
        found = [evidence(name, prior.factors[name]) for name in names]
        share = min((biases[name].share for name in names if name in biases), default=1.0)
        mean, std = closed.given(found, closed.biases_given(found, biases, share) if biases else None)
        return float(normal_crps(target - mean, std).nanmean())

    return score
