"""Intervals of 95 % of a mean, a median and a share, from independent values."""

import math
from collections.abc import Sequence

import scipy.stats
import torch

Interval = tuple[float, float, float]  # estimate, lower and upper bound


def mean_interval(values: Sequence[float]) -> Interval:
    """Mean of independent values and its 95 % interval by Student's t; NaN bounds for fewer than two.

    >>> mean_interval([1.0])
    (1.0, nan, nan)
    """
    x = torch.tensor(list(values), dtype=torch.float64)
    count, mean = len(x), float(x.mean())
    if count < 2:
        return mean, math.nan, math.nan
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * float(x.std()) / count**0.5
    return mean, mean - half, mean + half


def bounded_interval(values: Sequence[float]) -> Interval:
    """`mean_interval` of shares, its bounds clipped to [0, 1], which Student's t does not respect."""
    mean, low, high = mean_interval(values)
    return (mean, max(low, 0.0), min(high, 1.0)) if math.isfinite(low + high) else (mean, low, high)


def median_interval(values: Sequence[float]) -> Interval:
    """Median and an interval of order statistics of at least 95 %; NaN bounds for fewer than six values."""
    x = sorted(values)
    count = len(x)
    median = float(torch.tensor(x, dtype=torch.float64).quantile(0.5))
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


def rate_interval(values: Sequence[float]) -> Interval:
    """`share_interval` of the ones among values that are 0 or 1."""
    return share_interval(int(sum(values)), len(values))
