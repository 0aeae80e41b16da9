"""The closed form of a prior, with as many patterns as help on validation days."""

import torch
from torch import Tensor, nn

from slams.core.days import Values, daywise, over
from slams.diffusion.denoiser import (
    NetworkDenoiser,
    WindowGaussian,
    shrink_for,
    shrunk,
    window_lags,
)
from slams.diffusion.schedule import VPCosine
from slams.pipeline.model.calibrate import closed_form_score, learnt_prior
from slams.pipeline.model.codec import Anomalies, MultimodalCodec
from slams.pipeline.model.model import Model

MOST = 400  # patterns, where a recipe states no number
_NEAR = 1.003  # of the best score

Part = tuple[Values, Anomalies, Tensor]


def closed_form(
    codec: MultimodalCodec, train: Part, validation: Part
) -> tuple[WindowGaussian, Tensor, int, float]:
    """The Gaussian over windows of latents.

    Patterns that hold the noise of instruments instead of the weather let observations be explained by that noise, and
    their residuals vanish on the days of the fit. Where the recipe leaves the number of patterns of a vector latent open,
    it is the least whose closed-form posterior on validation windows has a CRPS, summed over the sets of observations,
    within 0.3 % of the best. Where the recipe leaves the shrinkage open, it is the one that denoises validation windows
    best (`slams.diffusion.denoiser.shrink_for`).

    Args:
        codec: Trained codec with its recipe.
        train: Latents (n, *Z), anomalies, and first days of windows, of training days.
        validation: The same of validation days.

    Returns:
        The Gaussian, the covariance of its coefficients (L K, L K), the number of patterns there were to choose from,
        and the shrinkage.
    """
    prior, (z, _, starts) = codec.recipe.prior, train
    basis, lags, remainder = window_lags(
        z, starts, prior.window, fraction=prior.fraction, most=prior.patterns or MOST
    )
    shrink, schedule = prior.shrink, VPCosine()
    if shrink is None:
        windows = validation[2][:: max(1, len(validation[2]) // 128), None] + torch.arange(prior.window)
        fresh = over(validation[0], lambda part: part.flatten(1) @ basis)[windows].flatten(1)
        shrink = shrink_for(lags, fresh, schedule, rng=codec.recipe.seed)
    covariance = shrunk(lags, shrink).to(z.dtype)
    whole = basis.shape[1]
    if chooses(codec):
        counts = sorted({max(1, round(whole * 0.8**step)) for step in range(28)})
        scores = [_score(codec, *leading(basis, covariance, k), train, validation) for k in counts]
        enough = next(k for k, score in zip(counts, scores, strict=True) if score <= _NEAR * min(scores))
        basis, covariance = leading(basis, covariance, enough)
        remainder = 0.0  # of the latents within the patterns
    return WindowGaussian(basis, covariance, remainder, z.shape[1:], schedule), covariance, whole, shrink


def chooses(codec: MultimodalCodec) -> bool:
    """Whether the number of patterns is chosen on validation days."""
    recipe = codec.recipe
    return not recipe.prior.patterns and recipe.latent.kind == "vector" and bool(recipe.experiment.sets)


def leading(basis: Tensor, covariance: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The first patterns (D, k), and the covariance of their coefficients (L k, L k)."""
    patterns = basis.shape[1]
    length = len(covariance) // patterns
    blocks = covariance.reshape(length, patterns, length, patterns)[:, :count, :, :count]
    return basis[:, :count], blocks.reshape(length * count, length * count)


def within(z: Values, basis: Tensor) -> Values:
    """Latents (n, *Z) projected onto patterns."""
    return daywise(z, lambda part: (part.flatten(1) @ basis @ basis.mT).reshape(part.shape))


def _score(codec: MultimodalCodec, basis: Tensor, covariance: Tensor, train: Part, validation: Part) -> float:
    gaussian = WindowGaussian(basis, covariance, 0.0, train[0].shape[1:], VPCosine())
    parts = [(within(z, basis), x) for z, x, _ in (train, validation)]
    prior = learnt_prior(codec, NetworkDenoiser(gaussian, nn.Identity()), covariance, *parts)
    score = closed_form_score(Model(codec, prior), validation[1], validation[2])
    return sum(score(names) for names in codec.recipe.experiment.sets.values())
