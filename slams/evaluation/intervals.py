"""Intervals of 95 %: of means, ratios, shares and medians of independent values, for every table that prints one.

A metric names the law of its values (`Law`):

- "log-normal": positive values, such as squared errors of windows. Their mean is so skewed that Student's t, meant to
  cover 95 %, covers 77 to 94 % of cases where the error scatters by 60 to 15 %.
- "share": values in [0, 1]; Student's t of the logit.
- "rate": values 0 or 1; exact binomial.
- "any": all others; Student's t, with the jackknife's standard error where the score is not a mean.
"""

import math
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Literal

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError

Interval = tuple[float, float, float]  # estimate, lower and upper bound
Law = Literal["log-normal", "share", "rate", "any"]

_FLOOR = (
    0.1  # of the mean, as which smaller values count: how near to 0 they are says nothing about large ones
)
_ALARM = (
    1.6448536269514722  # normal quantile of 0.95: windows are called dependent by chance in one series of 20
)
_FEW = 6  # values, below which generalized limits lie orders of magnitude apart
_NODES = 24, 8  # of the quadrature over variance and slope: limits to 1.5 % of their distance
_HALVINGS = 45


def interval(values: Sequence[float], law: Law = "any") -> Interval:
    """Mean of independent values and its 95 % interval; NaN bounds for fewer than two, or where one is not finite.

    Args:
        values: Values of independent replicates.
        law: Law of the values, see above.

    >>> interval([1.0])
    (1.0, nan, nan)
    >>> interval([2.0, 2.0, 2.0], "log-normal")
    (2.0, 2.0, 2.0)
    """
    x = torch.tensor(list(values), dtype=torch.float64)
    if not len(x):
        return math.nan, math.nan, math.nan
    if law == "rate" and len(x) and bool(torch.isfinite(x).all()):
        return share_interval(int(x.sum()), len(x))
    limits = log_normal_limits(x) if law == "log-normal" else jackknife_limits(x.mean(), without_each(x), law)
    low, high = limits.tolist()
    return float(x.mean()), low, high


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of values of any sign, such as differences, and its interval by Student's t."""
    return interval(values)


def median_interval(values: Sequence[float]) -> Interval:
    """Median and an interval of order statistics of at least 95 %; NaN bounds for fewer than six values.

    Infinite values count as the largest.
    """
    x = sorted(values)
    count = len(x)
    median = (x[(count - 1) // 2] + x[count // 2]) / 2
    below = int(scipy.stats.binom.ppf(0.025, count, 0.5))
    if count < 6 or below < 1:
        return median, math.nan, math.nan
    return median, x[below - 1], x[count - below]


def share_interval(successes: int, count: int) -> Interval:
    """A share and its exact 95 % interval.

    Source:
        Clopper & Pearson (1934), doi:10.1093/biomet/26.4.404.

    >>> [round(x, 3) for x in share_interval(0, 16)]
    [0.0, 0.0, 0.206]
    """
    beta = scipy.stats.beta.ppf
    low = 0.0 if successes == 0 else float(beta(0.025, successes, count - successes + 1))
    high = 1.0 if successes == count else float(beta(0.975, successes + 1, count - successes))
    return successes / count, low, high


def log_normal_limits(x: Tensor, below: Tensor | None = None, weights: Tensor | None = None) -> Tensor:
    """Limits of the mean of positive values, or of the ratio of the means of such values x and y, paired.

    With d = log x - log y and a = log x + log y jointly normal, log (E x / E y) = E d + b var(d) / 2, b the slope of a on
    d (1 for a single mean, y = 1). Its generalized limits are quantiles of

        mean(d) - Z s (n - 1)^1/2 / (U n^1/2) + (b - T se(b)) s^2 (n - 1) / (2 U^2),

    with s the standard deviation of d, Z normal, U^2 chi-square of n - 1 and T Student's of n - 2 degrees of freedom. Of
    fewer than six values they are modified Cox limits, mean(d) + b s^2 / 2 ± t (s^2 / n + v / 4)^1/2, v the variance of
    the sample covariance of a and d. Values below a tenth of their mean, zeros among them, count as that. The limits
    are widened to hold the ratio of the sample means, which is what tables print. A mean that is 0 or negative has limits
    by Student's t.

    Args:
        x: Independent values (n, *B).
        below: Values y (n, *B); 1 if None.
        weights: Weights of the values (n), non-negative, equal if None; n of the formulas is (Σ w)² / Σ w².

    Returns:
        Lower and upper limit, (2, *B); NaN for fewer than two values, or where one is not finite.

    Raises:
        ValueError: If weights are negative or of another number.

    Source:
        Krishnamoorthy & Mathew (2003), doi:10.1016/S0378-3758(02)00153-2, for a single mean; Olsson (2005),
        doi:10.1080/10691898.2005.11910638, for Cox's limits.

    >>> log_normal_limits(torch.full((8,), 2.0))
    tensor([2., 2.], dtype=torch.float64)
    """
    x = x.double()
    weights = x.new_ones(len(x)) if weights is None else weights.double()
    if weights.shape != x.shape[:1] or bool((weights < 0).any()):
        raise InvalidValueError(
            f"need a non-negative weight for each of {len(x)} values, got {weights.tolist()}."
        )
    share = (weights / weights.sum()).reshape(-1, *[1] * (x.ndim - 1))
    y = torch.ones_like(x) if below is None else below.double()
    over, under = (share * x).sum(0), (share * y).sum(0)
    value, count = over / under, 1 / float(share.square().sum())
    if not count > 2 - 1e-9:
        return torch.full((2, *value.shape), math.nan, dtype=x.dtype)
    up, down = torch.maximum(x, _FLOOR * over).log(), torch.maximum(y, _FLOOR * under).log()
    limits = _limits(up - down, up + down, share, count).exp()
    limits = torch.stack([torch.minimum(limits[0], value), torch.maximum(limits[1], value)])
    limits = torch.where(((x / y) == x[:1] / y[:1]).all(0), value, limits)  # equal ones to the last digit
    good = torch.isfinite(x).all(0) & torch.isfinite(y).all(0) & (over > 0) & (under > 0)
    plain = jackknife_limits(value, without_each(x, weights) / without_each(y, weights))
    return torch.where(good, limits, plain)


def jackknife_limits(value: Tensor, left_out: Tensor, law: Law = "any") -> Tensor:
    """Limits of a score by Student's t with the jackknife's standard error; of a mean those of its values.

    Shares have them on the scale of the logit; a share of 0 or 1 has those of as many independent trials.

    Args:
        value: The score, (*B).
        left_out: The score without each of the independent values, (n, *B).
        law: "share", or "any".

    Returns:
        Lower and upper limit, (2, *B); NaN for fewer than two values, or where one is not finite.

    Source:
        Efron & Stein (1981), doi:10.1214/aos/1176345462.
    """
    count = len(left_out)
    if count < 2:
        return torch.full((2, *value.shape), math.nan, dtype=value.dtype)
    error = ((count - 1) / count * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * torch.stack([-error, error])
    if law != "share":
        return value + half
    share = torch.where(value.isfinite(), value.clamp(0, 1), math.nan)
    limits = torch.sigmoid(torch.logit(share) + half / (share * (1 - share)))
    most = share_interval(0, count)[2]
    limits = torch.where(share == 0, torch.stack([share, share + most]), limits)
    return torch.where(share == 1, torch.stack([share - most, share]), limits)


def without_each(x: Tensor, weights: Tensor | None = None) -> Tensor:
    """Weighted mean of values without each of them, (n, *B) to (n, *B)."""
    weights = x.new_ones(len(x)) if weights is None else weights
    weights = weights.reshape(-1, *[1] * (x.ndim - 1))
    return ((weights * x).sum(0) - weights * x) / (weights.sum(0) - weights)


def independent(series: Sequence[float]) -> int:
    """Number of independent stretches of a series in order of time.

    r is the lag-one correlation of the ranks of the values. Where it is larger than chance explains, at a one-sided level
    of 5 %, r > (1.645 (n - 2)^1/2 - 1) / (n - 1), the decorrelation time is (1 + r) / (1 - r) steps, and a stretch is
    twice as long, so that its mean hardly depends on the next one's; at least two stretches are left. Dependence weaker
    than that, about 1.6 / n^1/2, cannot be seen in n values.

    Args:
        series: Scores of successive windows (n).

    Returns:
        Number of stretches.

    Source:
        Anderson (1942), doi:10.1214/aoms/1177731638, for the law of r; Bayley & Hammersley (1946), doi:10.2307/2983560,
        for the number.

    >>> independent([1.0, 3.0, 2.0, 4.0, 1.5, 3.5]), independent([1.0, 1.1, 1.2, 1.3, 3.0, 3.1, 3.2, 3.3])
    (6, 2)
    """
    count = len(series)
    if count < 4 or len(set(series)) < 2:
        return count
    ranks = scipy.stats.rankdata(series)
    ranks -= ranks.mean()
    r = float(ranks[1:] @ ranks[:-1] / (ranks @ ranks))
    if not r > (_ALARM * math.sqrt(count - 2) - 1) / (count - 1):  # also where a score is NaN
        return count
    return max(int(count * (1 - r) / (1 + r) / 2), 2)


def _limits(d: Tensor, a: Tensor, share: Tensor, count: float) -> Tensor:
    """Limits of E d + cov(a, d) / 2, (2, *B), from values (n, *B) with their shares of the weight."""
    centre, d = (share * d).sum(0), d - (share * d).sum(0)
    a = a - (share * a).sum(0)
    square, cross = (share * d * d).sum(0), (share * d * a).sum(0)
    b = torch.where(square > 0, cross / square, 0.0)
    rest = (share * (a - b * d).square()).sum(0)
    variance = square * count / (count - 1)
    if count < _FEW - 1e-9:
        t = float(scipy.stats.t.ppf(0.975, count - 1))
        product = (square * (share * a * a).sum(0) + cross**2) * (count / (count - 1)) ** 2 / (count - 1)
        half = t * (variance / count + product / 4).sqrt()
        return centre + b * variance / 2 + torch.stack([-half, half])
    slope = torch.where(square > 0, rest / (square * (count - 2)), 0.0).sqrt()
    return centre + _quantiles((0.025, 0.975), variance, b, slope, count)


def _quantiles(levels: Sequence[float], variance: Tensor, b: Tensor, slope: Tensor, count: float) -> Tensor:
    """Quantiles (P, *B) of the generalized pivot, less mean(d), by halving an interval that holds them."""
    scale, t, share = _pivots(count, bool((slope > 0).any()))
    s, b, slope = (each.unsqueeze(-1) for each in (variance.sqrt(), b, slope))
    scale, t, share = (each.to(variance) for each in (scale, t, share))
    shift = (b - t * slope) * s**2 / (2 * scale)
    spread = (s / (scale * count).sqrt()).clamp(min=1e-300)
    high = (20 * (s + (b.abs() + 4 * slope) * s**2)).squeeze(-1)
    high = high.expand(len(levels), *high.shape)
    low, p = -high, high.new_tensor(levels).reshape(-1, *[1] * (high.ndim - 1))
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        below = torch.special.ndtr((middle.unsqueeze(-1) - shift) / spread) @ share < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@lru_cache
def _pivots(count: float, several: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes U^2 / (n - 1) and T of the quadrature, of one T unless `several`, and their probabilities."""
    (chi, wide), (student, narrow) = (_nodes(n) for n in (_NODES[0], _NODES[1] if several else 1))
    scale = torch.from_numpy(scipy.stats.chi2.ppf(chi, count - 1) / (count - 1))
    t = torch.from_numpy(scipy.stats.t.ppf(student, count - 2))
    share = torch.from_numpy(np.outer(wide, narrow).ravel())
    return scale.repeat_interleave(len(student)), t.repeat(len(chi)), share


@cache
def _nodes(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of a quadrature over probabilities, denser towards 0 and 1."""
    x, weight = np.polynomial.legendre.leggauss(count)
    angle = np.pi / 4 * (x + 1)
    weight = weight * np.pi / 4 * np.sin(2 * angle)
    return np.sin(angle) ** 2, weight / weight.sum()
