"""Accuracy against cost: Pareto-optimal methods, and methods tied with the best."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

ALARM = 0.05  # probability that the truly best method is called worse than another

Errors = Mapping[int, float]  # by seed of the truth


def pareto(costs: Sequence[float], errors: Sequence[float]) -> list[bool]:
    """Pareto optimality: whether no other has at most this cost and error, and less of one.

    Non-finite values are never on the frontier; of equals all are.

    Args:
        costs: Cost of each method.
        errors: Error of each method.

    >>> pareto([1, 2, 3, 2], [3.0, 1.0, 2.0, 1.0])
    [True, True, False, True]
    """
    pairs = list(zip(costs, errors, strict=True))
    kept = [False] * len(pairs)
    least = math.inf
    order = sorted(
        (k for k, pair in enumerate(pairs) if all(map(math.isfinite, pair))), key=pairs.__getitem__
    )
    for k in order:
        before = [j for j in order if kept[j] and pairs[j] == pairs[k]]
        kept[k] = pairs[k][1] < least or bool(before)
        least = min(least, pairs[k][1])
    return kept


def mean_error(errors: Errors) -> float:
    """Mean over truths; infinite where one is not finite."""
    values = [x if math.isfinite(x) else math.inf for x in errors.values()]
    return math.fsum(values) / len(values) if values else math.inf


def tied_with_best(methods: Mapping[str, Errors], *, alarm: float = ALARM) -> set[str]:
    """Methods whose error is not significantly larger than the smallest, the best included.

    Of K methods, one is worse if its error, minus that of the method of smallest mean, exceeds t standard errors of
    their paired difference over their common truths; t is the (1 - alarm / (K - 1)) quantile of Student's law. So
    the probability of excluding the truly best method is at most `alarm` for any K. Methods without two
    truths in common are compared unpaired, by Welch's test; one of a single truth is never called tied.

    Args:
        methods: Errors by seed, by method.
        alarm: Probability of a false alarm.

    Source:
        Hsu (1981), doi:10.1214/aos/1176345582, with Bonferroni's bound for the joint law.

    >>> truths = range(8)
    >>> sorted(tied_with_best({"a": {s: 1 + s for s in truths}, "b": {s: 1.1 + s for s in truths}}))
    ['a']
    """
    if not methods:
        return set()
    best = min(methods, key=lambda name: mean_error(methods[name]))
    share = alarm / max(len(methods) - 1, 1)
    tied = {name for name in methods if name != best and not worse(methods[name], methods[best], share)}
    return {best} | tied


def worse(one: Errors, other: Errors, alarm: float) -> bool:
    """Whether the first mean error is larger than the second, at one-sided level `alarm`.

    Args:
        one: First errors by seed.
        other: Second errors by seed.
        alarm: Probability of a false alarm for equal means.
    """
    if not math.isfinite(mean_error(one)):
        return True
    common = sorted(set(one) & set(other))
    if len(common) > 1:
        difference = np.array([one[seed] - other[seed] for seed in common])
        error, freedom = difference.std(ddof=1) / math.sqrt(len(common)), float(len(common) - 1)
        mean = float(difference.mean())
    elif min(len(one), len(other)) > 1:
        pair = [np.array(list(each.values())) for each in (one, other)]
        parts = [x.var(ddof=1) / len(x) for x in pair]
        error, mean = math.sqrt(sum(parts)), float(pair[0].mean() - pair[1].mean())
        small = sum(part**2 / (len(x) - 1) for part, x in zip(parts, pair, strict=True))
        freedom = sum(parts) ** 2 / small if small else math.inf
    else:
        return True
    return bool(mean > scipy.stats.t.isf(alarm, freedom) * error) if error else mean > 0
