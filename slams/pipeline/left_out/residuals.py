"""Residuals of decoders on seasons that their fits did not see, pooled over seasons."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import floored, residual_covariance
from slams.core.days import daywise, every, memory_stride, over
from slams.pipeline.model.bias import without_bias
from slams.pipeline.model.calibrate import (
    CLASSES,
    decoder_output,
    difference,
    is_dense,
    profile,
    square_sums,
)
from slams.pipeline.model.closed_form import chooses, within
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import LearntPrior

_SAMPLES = 64


@dataclass(frozen=True)
class Residuals:
    """Residuals of one fold on the season it left out, by modality; those of the patterns are without the year's bias.

    Attributes:
        dense: Of the patterns, of modalities with a full error covariance, (n, P).
        squares: Of the patterns, of the others: sums of squares, and numbers of values, (2, P).
        unresolved: Of the whole latent, such sums, (2, P).
        bounded: Of the whole latent, of bounded variables: decoded values and residuals (n, P) of some days.
        samples: Of the patterns, of grids, on some days, (n, *S).
    """

    dense: dict[str, Tensor]
    squares: dict[str, Tensor]
    unresolved: dict[str, Tensor]
    bounded: dict[str, tuple[Tensor, Tensor]]
    samples: dict[str, Tensor]


@torch.no_grad()
def residuals_of(model: Model, values: Anomalies) -> Residuals:
    """Residuals of a model's decoders on days that it did not see.

    Where the biases of modalities are modelled, the mean residual of the days in each direction of a bias is taken out
    of the residual of the patterns: it is the bias, not an error of single days.

    Args:
        model: Model with `LearntPrior.biases`.
        values: Anomalies of the days of one season, (n, *S).
    """
    codec, recipe, basis = model.codec, model.recipe, model.prior.gaussian.basis.cpu()
    z = codec.latents(values)
    inside = within(z, basis)
    z = inside if chooses(codec) else z
    found = Residuals({}, {}, {}, {}, {})
    for name, layout in codec.layouts.items():
        decoded = decoder_output(codec, inside, name)
        fresh = daywise(difference(values[name], decoded), lambda part, s=layout.shape: part.reshape(-1, *s))  # type: ignore[misc]
        if recipe.assimilation.bias and name in model.prior.biases:
            fresh = without_bias(fresh, layout)
        flat = daywise(fresh, lambda part: part.flatten(1))
        if is_dense(codec, name):
            found.dense[name] = over(flat, Tensor.float)
        else:
            found.squares[name] = square_sums(flat)
        output = decoder_output(codec, z, name)
        residual = difference(values[name], output)
        found.unresolved[name] = square_sums(residual)
        if recipe.modalities[name].transformed.lower is not None:
            rows = slice(None, None, memory_stride(residual))
            some = output[rows].flatten(1)
            found.bounded[name] = some, values[name][rows].flatten(1) - some
        if layout.is_grid:
            found.samples[name] = every(fresh, max(1, len(fresh) // _SAMPLES))[:]
    return found


def pool(prior: LearntPrior, seasons: Sequence[Residuals]) -> None:
    """Set the error covariances of a prior, and the residuals of its decoders, to those of seasons left out.

    Args:
        prior: Prior whose `errors`, `residuals`, `profiles` and `samples` are replaced.
        seasons: Residuals of each season.
    """
    for name in prior.errors:
        if name in seasons[0].dense:
            prior.errors[name] = residual_covariance(torch.cat([each.dense[name] for each in seasons]))
        else:
            prior.errors[name] = floored(*sum(each.squares[name] for each in seasons))  # type: ignore[misc]
        prior.residuals[name] = floored(*sum(each.unresolved[name] for each in seasons))  # type: ignore[misc]
    prior.profiles = {}
    for name in seasons[0].bounded:
        decoded, residual = (
            torch.cat(parts) for parts in zip(*(each.bounded[name] for each in seasons), strict=True)
        )
        if torch.isfinite(residual).sum() > 10 * CLASSES:
            prior.profiles[name] = profile(decoded, residual, prior.residuals[name])
    for name in seasons[0].samples:
        whole = torch.cat([each.samples[name] for each in seasons])
        prior.samples[name] = whole[:: max(1, len(whole) // _SAMPLES)]
