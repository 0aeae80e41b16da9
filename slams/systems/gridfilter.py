"""Exact filter of one variable on a grid: the reference for bimodal posteriors."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.systems.flow import Flow
from slams.systems.linear import ObservationSequence


class GridPosterior(NamedTuple):
    """Exact marginals p(x_k | y_0..k) on a grid.

    Attributes:
        points: Grid points, (G).
        density: Density at the points, (*B, L, G); its sum times the grid step is 1.
        mean: Posterior mean, (*B, L, 1).
        variance: Posterior variance, (*B, L, 1).
    """

    points: Tensor
    density: Tensor
    mean: Tensor
    variance: Tensor


def grid_filter(
    system: Flow,
    observations: ObservationSequence,
    *,
    flips: float | None = None,
    low: float = -3.0,
    high: float = 3.0,
    count: int = 1200,
) -> GridPosterior:
    """Bayes' rule and Chapman and Kolmogorov's integral by the midpoint rule.

    p(x_k | y_0..k-1) = int [(1 - f) N(x_k; m(x'), s^2) + f N(-x_k; m(x'), s^2)] p(x' | y_0..k-1) dx',

    with m the system's step without noise, s^2 = noise^2 dt and f the probability that a step ends in a change of sign.
    The midpoint rule is exact to rounding for smooth densities that vanish at the ends, if the step is below s.

    Args:
        system: System of one variable, with noise.
        observations: Observations, values (*B, L, O).
        flips: Probability f; None for the `flip_chance` of a `DoubleWell`, 0 for other systems.
        low: Lower end of the grid, in units of the state.
        high: Upper end of the grid.
        count: Number of grid points.

    Raises:
        ValueError: If the system has more than one variable or no noise, the grid is too coarse for its noise, `flips` is
            not in [0, 1], or the grid is not symmetric with flips.

    Source:
        Särkkä (2013), Bayesian Filtering and Smoothing, eqs. 4.11 and 4.12.
    """
    flips = float(getattr(system, "flip_chance", 0.0)) if flips is None else flips
    width = system.noise * math.sqrt(system.dt)
    step = (high - low) / count
    if system.state_shape != (1,) or not width > 0:
        raise InvalidValueError(
            f"the grid is for one variable with noise, got a state of shape {system.state_shape} and noise "
            f"{system.noise}; use a particle filter otherwise."
        )
    if not 0 <= flips <= 1 or not step < width:
        raise InvalidValueError(
            f"needs 0 <= flips <= 1 and a grid step below the noise of a step, {width:g}; got {flips} and {step:g}; "
            "take more points."
        )
    if flips and low != -high:
        raise InvalidValueError(
            f"changes of sign need a grid that is symmetric about 0, got {low} to {high}."
        )
    points = low + step * (torch.arange(count, dtype=torch.float64) + 0.5)
    # row i: transition from point i; mass beyond the grid is dropped by normalisation
    ahead = _normal(points, system.mean(points[:, None])[:, 0], width) * step
    ahead = (1 - flips) * ahead + flips * ahead.flip(-1) if flips else ahead
    assert system.start is not None
    mean, spread = system.start.mean.double(), float(system.start.root)
    p = _normal(points, mean.reshape(1), max(spread, step))[0]
    densities = []
    for k in range(observations.steps):
        if k:
            p = p @ ahead
        seen = observations.step(k)
        if seen is not None:
            misfit = seen.whiten(seen.innovation(points[:, None], members=True), members=True)
            p = (p.log() - 0.5 * misfit.square().sum(-1)).softmax(-1)
        p = p / p.sum(-1, keepdim=True)
        densities.append(p / step)
    density = torch.stack(torch.broadcast_tensors(*densities), -2)
    mean = (density * points).sum(-1, keepdim=True) * step
    variance = (density * (points - mean).square()).sum(-1, keepdim=True) * step
    return GridPosterior(points, density, mean, variance)


def _normal(x: Tensor, mean: Tensor, std: float) -> Tensor:
    """N(x; mean, std^2): (G), (M) -> (M, G)."""
    return torch.exp(-0.5 * ((x - mean[:, None]) / std) ** 2) / (std * math.sqrt(2 * math.pi))
