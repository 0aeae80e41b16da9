"""Windows of one method and variable, and the intervals of their scores."""

import re
from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
import torch

from slams.evaluation.intervals import independent, jackknife_limits, log_normal_limits
from slams.evaluation.metrics import Metric
from slams.evaluation.windows import Statistics

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Gain:
    """Relative gain of one method over another, paired by window, its 95 % interval, and the number of windows."""

    mean: float
    lower: float
    upper: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether the interval lies above zero."""
        return self.lower > 0


@dataclass(frozen=True)
class Change:
    """Relative change of a score from one method to another, paired by window, its 95 % interval, and the windows."""

    value: float
    lower: float
    upper: float
    n: int


@dataclass
class Series:
    """The windows of one (method, variable, part): each maps a statistic to (C,) sums."""

    levels: tuple[str, ...]
    windows: dict[Hashable, Statistics]

    @property
    def dated(self) -> bool:
        """Whether the names of all windows begin with a date, so that their order in time is known."""
        return all(_DATE.match(str(name)) for name in self.windows)

    def stretches(self, apart: int) -> list[list[int]]:
        """Positions of windows that begin less than `apart` days after the first of them, in order of time."""
        if not self.dated:
            return [[k] for k in range(len(self.windows))]
        days = np.array([str(name)[:10] for name in self.windows], "datetime64[D]")
        found: list[list[int]] = []
        for k in np.argsort(days, kind="stable").tolist():
            if found and int((days[k] - days[found[-1][0]]).astype(int)) < apart:
                found[-1].append(k)
            else:
                found.append([k])
        return found

    def stacked(self) -> Statistics:
        """Statistics (n, 1 + C): the pool of all levels, then each; (n, 1) if there is one level."""
        columns = {}
        for name in next(iter(self.windows.values())):
            each = torch.stack([window[name] for window in self.windows.values()])
            if each.ndim == 2:  # others, such as ranks, are histograms
                pooled = each.sum(1, keepdim=True)
                columns[name] = torch.cat([pooled, each], 1) if each.shape[1] > 1 else pooled
        return columns


def means(sums: Statistics) -> Statistics:
    """Weighted sums to means."""
    return {name: each / sums["weight"] for name, each in sums.items()}


def pooled(metric: Metric, sums: Statistics) -> Statistics:
    """Sums over stretches of windows that are independent by the scores of the windows, given in order of time."""
    count = independent(metric.value(means(sums)).tolist())
    return {
        name: torch.stack([some.sum() for some in each.tensor_split(count)]) for name, each in sums.items()
    }


def limits(metric: Metric, sums: Statistics) -> tuple[float, float]:
    """Ends of the interval of a score from the sums of independent windows (n)."""
    first, *second = (part.key for part in metric.parts)
    if metric.law == "log-normal" and len(second) < 2:
        each = means(sums)
        below = each[second[0]] if second else None
        ends = log_normal_limits(each[first], below, sums["weight"])
        found = metric.value({first: ends} | dict.fromkeys(second, torch.ones_like(ends)))
    else:
        total = {name: each.sum() for name, each in sums.items()}
        left_out = {name: total[name] - each for name, each in sums.items()}
        value, others = (metric.value(means(each)) for each in (total, left_out))
        found = jackknife_limits(value, others, metric.law)
    low, high = found.sort().values.tolist()
    return low, high
