"""Exact filters of systems that have one, with the scores of other methods."""

import torch
from torch import Tensor

from slams.assimilation.baseline.gaussian import normal_crps
from slams.core.errors import InvalidValueError
from slams.observation.observation import Observations
from slams.systems.base import Dynamics
from slams.systems.doublewell import DoubleWell
from slams.systems.gridfilter import GridPosterior, grid_filter
from slams.systems.linear import LinearGaussian
from slams.twin.scores import wrong_sign

Numbers = dict[str, Tensor]

_QUANTILE = 1.6448536269514722  # of 0.95
_POINTS = 600  # of the grid from -3 to 3: a tenth of the noise of a step


def has_exact(model: Dynamics) -> bool:
    """Whether a model has an exact filter."""
    return isinstance(model, (LinearGaussian, DoubleWell))


def exact(model: Dynamics, truth: Tensor, observations: Observations) -> tuple[str, Tensor, Tensor, Numbers]:
    """Exact filter of the methods' model, with the smallest expected error.

    Args:
        model: Linear-Gaussian model (Kalman filter) or `DoubleWell` (density integrated on a grid).
        truth: Truths, (B, L, *S).
        observations: Observations of the truths.

    Returns:
        Name of the filter; mean and variance (B, L, *S); diagnostics of every step, (B, L), as of `TwinScores`.

    Raises:
        ValueError: If the model has no exact filter.
    """
    if isinstance(model, LinearGaussian):
        filtered = model.filter(observations)
        mean, variance = filtered.mean, filtered.cov.diagonal(dim1=-2, dim2=-1)
        error, std = mean - truth, variance.sqrt()
        numbers = {
            "crps": normal_crps(error, std).mean(-1),
            "covered": (error.abs() <= _QUANTILE * std).to(truth).mean(-1),
        }
        name, calls = "Kalman", 1 + truth.shape[-1]
    elif isinstance(model, DoubleWell):
        posterior = grid_filter(model, observations, count=_POINTS)
        mean, variance = posterior.mean, posterior.variance
        error = mean - truth
        numbers = _of_density(posterior, truth[..., 0]) | wrong_sign(mean, truth)
        name, calls = "grid filter", _POINTS
    else:
        raise InvalidValueError(
            f"only linear-Gaussian models and the double well have an exact filter, not {type(model).__name__}."
        )
    numbers |= {
        "squared_error": error.square().mean(-1),
        "variance": variance.mean(-1),
        "predictive_variance": variance.mean(-1),
        "model_calls": torch.full(truth.shape[:2], float(calls), dtype=truth.dtype),
    }
    return name, mean, variance, numbers


def _of_density(posterior: GridPosterior, truth: Tensor) -> Numbers:
    """CRPS, int (F(x) - 1{x >= truth})^2 dx, and whether the truth lies between the quantiles of 5 and 95 %, (B, L)."""
    step = posterior.points[1] - posterior.points[0]
    cdf = (posterior.density.cumsum(-1) - posterior.density / 2) * step
    above = (posterior.points >= truth.unsqueeze(-1)).to(cdf)
    place = torch.searchsorted(posterior.points, truth.unsqueeze(-1).contiguous()).clamp(
        max=len(posterior.points) - 1
    )
    at = cdf.gather(-1, place).squeeze(-1)
    return {
        "crps": (cdf - above).square().sum(-1) * step,
        "covered": ((at >= 0.05) & (at <= 0.95)).to(truth),
    }
