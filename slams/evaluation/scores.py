"""Scores: statistics of many windows, gathered and turned into rows of metrics.csv with intervals."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.renamed import renamed
from slams.evaluation.intervals import mean_interval
from slams.evaluation.metrics import metrics_of, named
from slams.evaluation.tables import COLUMNS
from slams.evaluation.windows import Statistics, effective_count, rank_flatness

Row = dict[str, str | float | int]

_BOUNDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


@dataclass(frozen=True)
class Gain:
    """Mean relative gain of one method over another, paired by window, with two 95 % intervals."""

    mean: float
    lower: float
    upper: float
    bootstrap_lower: float
    bootstrap_upper: float
    n: int

    @property
    def significant(self) -> bool:
        """Whether both intervals lie above zero."""
        return self.lower > 0 and self.bootstrap_lower > 0


@dataclass
class _Series:
    """The windows of one (method, variable, part): each maps a statistic to (C,) sums."""

    levels: tuple[str, ...]
    windows: dict[Hashable, Statistics]

    def stacked(self) -> Statistics:
        """Statistics (n, 1 + C): the pool of all levels, then each; (n, 1) if there is one level."""
        columns = {}
        for name in next(iter(self.windows.values())):
            if name != "ranks":
                each = torch.stack([window[name] for window in self.windows.values()])
                pooled = each.sum(1, keepdim=True)
                columns[name] = torch.cat([pooled, each], 1) if each.shape[1] > 1 else pooled
        return columns


class Scores:
    """Scores with 95 % intervals from statistics of windows.

    A score is a function of sums over windows, so its interval is the percentile bootstrap of the windows
    (which must be far enough apart to be independent): the same resamples for every method of equal n.

    Args:
        resamples: Bootstrap resamples.
        seed: Seed of the resampling, so that a table is the same each time it is made.
    """

    def __init__(self, *, resamples: int = 1000, seed: int = 0) -> None:
        if resamples < 1:
            raise InvalidValueError(f"resamples must be at least 1, got {resamples}.")
        self.resamples, self.seed = resamples, seed
        self._series: dict[tuple[str, str, str], _Series] = {}

    def add(
        self,
        method: str,
        variable: str,
        window: Hashable,
        statistics: Statistics,
        *,
        part: str = "all",
        levels: Sequence[float | str] | None = None,
    ) -> None:
        """Add one window.

        Args:
            method: Name of the method.
            variable: Name of the variable.
            window: Name of the window (its first date); methods are paired by it.
            statistics: Statistics of `window_statistics` or `gaussian_window_statistics`.
            part: Name of the part of the cells.
            levels: Names of the channels; 0, 1, … if None. A single channel is reported as level "all" only.

        Raises:
            ValueError: If the window was added before, or its levels or members differ from the earlier
                windows'.
        """
        channels = len(statistics["weight"])
        names = tuple(_label(level) for level in (range(channels) if levels is None else levels))
        if len(names) != channels or len(set(names)) != channels:
            raise InvalidValueError(
                f"{len(names)} levels {names} for {channels} channels of {variable}; name each, once."
            )
        series = self._series.setdefault((method, variable, part), _Series(names, {}))
        where = f"{method}, {variable}, {part}"
        if window in series.windows:
            raise InvalidValueError(f"window {window} of {where} was added before; each window counts once.")
        if series.levels != names:
            raise InvalidValueError(
                f"window {window} of {where} has levels {names}, earlier ones {series.levels}."
            )
        first = next(iter(series.windows.values()), statistics)
        if first["ranks"].shape != statistics["ranks"].shape:
            raise InvalidValueError(
                f"window {window} of {where} has {statistics['ranks'].shape[1]} ranks, earlier ones "
                f"{first['ranks'].shape[1]}; score every window with the same number of members."
            )
        series.windows[window] = {name: value.detach().cpu().double() for name, value in statistics.items()}

    def pack(self) -> tuple[dict[str, Tensor], list[list[Any]]]:
        """All statistics as tensors (windows, ...), and their labels as JSON lists.

        Names of windows have to be text.
        """
        tensors, index = {}, []
        for number, (key, series) in enumerate(self._series.items()):
            index.append([*key, list(series.levels), list(series.windows)])
            for name in next(iter(series.windows.values())):
                each = [window[name] for window in series.windows.values()]
                tensors[f"{number}.{name}"] = torch.stack(each)
        return tensors, index

    def unpack(self, tensors: Mapping[str, Tensor], index: Sequence[Sequence[Any]]) -> None:
        """Add the output of `pack`, bit for bit."""
        for number, (method, variable, part, levels, windows) in enumerate(index):
            own = {k.partition(".")[2]: x for k, x in tensors.items() if k.startswith(f"{number}.")}
            own = renamed("window statistic", own)
            for row, window in enumerate(windows):
                statistics = {name: x[row] for name, x in own.items()}
                self.add(method, variable, window, statistics, part=part, levels=levels)

    def keys(self) -> list[tuple[str, str, str]]:
        """The (method, variable, part) gathered so far, in order of arrival."""
        return list(self._series)

    def rows(self) -> list[Row]:
        """Rows of metrics.csv, for every key, level and metric; scores that don't exist are left out."""
        rows: list[Row] = []
        for (method, variable, part), series in self._series.items():
            names = ("all", *series.levels) if len(series.levels) > 1 else ("all",)
            sums = series.stacked()
            windows = (sums["weight"] > 0).sum(0)
            draws = self._draws(len(series.windows))
            whole = _means({name: each.sum(0) for name, each in sums.items()})
            resampled = _means({name: draws @ each for name, each in sums.items()})
            for metric in metrics_of("fields"):
                if any(each.key not in sums for each in metric.parts):
                    continue
                value = metric.value(whole)
                bounds = torch.nanquantile(metric.value(resampled), _BOUNDS, dim=0)
                if len(series.windows) < 2:
                    bounds = torch.full_like(bounds, torch.nan)
                for column, name in enumerate(names):
                    if not torch.isnan(value[column]):
                        numbers = (float(value[column]), *bounds[:, column].tolist(), int(windows[column]))
                        place = (method, variable, name, part, metric.name)
                        rows.append(dict(zip(COLUMNS, (*place, *numbers), strict=True)))
        return rows

    def value(
        self, method: str, metric: str, *, variable: str, part: str = "all", level: float | str = "all"
    ) -> float:
        """One score over all windows."""
        sums = self._sums(method, variable, part, level)
        return float(named(metric).value(_means({name: each.sum() for name, each in sums.items()})))

    def per_window(
        self, method: str, metric: str, *, variable: str, part: str = "all", level: float | str = "all"
    ) -> dict[Hashable, float]:
        """One score of each window that has scored cells."""
        sums = self._sums(method, variable, part, level)
        values = named(metric).value(_means(sums))
        windows = self._series[method, variable, part].windows
        return {
            window: float(v)
            for window, v, weight in zip(windows, values, sums["weight"], strict=True)
            if weight > 0
        }

    def ranks(self, method: str, *, variable: str, part: str = "all", level: float | str = "all") -> Tensor:
        """Rank histogram (N + 1): the weight at each rank of the truth among the members, all windows."""
        return self._ranks(method, variable, part, level).sum(0)

    def flatness(
        self, method: str, *, variable: str, part: str = "all", level: float | str = "all"
    ) -> tuple[float, float, float]:
        """Flatness of the rank histogram.

        Args:
            method: Name of the method.
            variable: Name of the variable.
            part: Name of the part of the cells.
            level: Name of the level; all pooled if "all".

        Returns:
            χ², its p-value, and the number of independent truths both rest on (see `effective_count`).
        """
        ranks = self._ranks(method, variable, part, level)
        count = effective_count(ranks)
        return *rank_flatness(ranks.sum(0), independent=count), count

    def _ranks(self, method: str, variable: str, part: str, level: float | str) -> Tensor:
        """Weight at each rank in each window (n, N + 1)."""
        series, column = self._find(method, variable, part, level)
        ranks = torch.stack([window["ranks"] for window in series.windows.values()])
        return ranks.sum(1) if column == 0 else ranks[:, column - 1]

    def paired_gain(
        self,
        a: str,
        b: str,
        metric: str = "rmse",
        *,
        variable: str,
        part: str = "all",
        level: float | str = "all",
    ) -> Gain:
        """Relative gain of method `a` over `b`, paired by window.

        The gain of a window is 1 - score_a / score_b; its mean gets a 95 % interval by Student's t and
        another by the bootstrap.

        Args:
            a: Name of the tested method.
            b: Name of the reference method.
            metric: Name of a score that is better when lower, such as rmse, crps or w1.
            variable: Name of the variable.
            part: Name of the part of the cells.
            level: Name of the level, or "all".

        Returns:
            The gain; intervals are NaN with fewer than two windows.

        Raises:
            ValueError: If the methods were not scored on the same cells of the same windows.
        """
        if named(metric).better != "lower":
            known = ", ".join(each.name for each in metrics_of("fields") if each.better == "lower")
            raise InvalidValueError(
                f"a gain needs a score that is better when smaller ({known}), got {metric!r}."
            )
        first, second = (
            self.per_window(method, metric, variable=variable, part=part, level=level) for method in (a, b)
        )
        self._check_pairs(a, b, variable, part, level)
        gains = torch.tensor([1 - first[window] / second[window] for window in first], dtype=torch.float64)
        n = len(gains)
        resampled = (
            torch.quantile(self._draws(n) @ gains / n, _BOUNDS) if n > 1 else torch.full((2,), torch.nan)
        )
        mean, lower, upper = mean_interval(gains.tolist())
        return Gain(mean, lower, upper, float(resampled[0]), float(resampled[1]), n)

    def _check_pairs(self, a: str, b: str, variable: str, part: str, level: float | str) -> None:
        """Raise an error for a comparison on different cells, which would favour omission of difficult ones."""
        weights = []
        for method in (a, b):
            total = self._sums(method, variable, part, level)["weight"]
            windows = self._series[method, variable, part].windows
            weights.append({w: float(v) for w, v in zip(windows, total, strict=True) if v > 0})
        first, second = weights
        if not first or first.keys() != second.keys():
            lonely = sorted(map(str, first.keys() ^ second.keys()))[:5]
            raise InvalidValueError(
                f"{a} and {b} share not all windows of {variable} ({part}); only in one: {lonely}."
            )
        for window, weight in first.items():
            if not np.isclose(weight, second[window], rtol=1e-6):
                raise InvalidValueError(
                    f"{a} and {b} were scored on different cells in window {window} of {variable} ({part}): "
                    f"weights {weight:.6g} and {second[window]:.6g}; score the same cells."
                )

    def _find(self, method: str, variable: str, part: str, level: float | str) -> tuple[_Series, int]:
        """A series and the column of a level in `_Series.stacked`."""
        if (method, variable, part) not in self._series:
            raise InvalidValueError(f"no scores of {method}, {variable}, {part}; there are {self.keys()}.")
        series = self._series[method, variable, part]
        names = ("all", *series.levels)
        if _label(level) not in names:
            raise InvalidValueError(f"{variable} has no level {level}; there are {', '.join(names)}.")
        column = names.index(_label(level))
        return series, column if len(series.levels) > 1 else 0

    def _sums(self, method: str, variable: str, part: str, level: float | str) -> Statistics:
        """Sums of each window, (n), for one level."""
        series, column = self._find(method, variable, part, level)
        return {name: each[:, column] for name, each in series.stacked().items()}

    def _draws(self, count: int) -> Tensor:
        """Number of occurrences of each of `count` windows in each resample, (resamples, count)."""
        rng = torch.Generator().manual_seed(self.seed)
        chosen = torch.randint(count, (self.resamples, count), generator=rng)
        draws = torch.zeros(self.resamples, count, dtype=torch.float64)
        return draws.scatter_add_(1, chosen, torch.ones_like(draws))


def _label(level: float | str) -> str:
    """A level as it stands in metrics.csv."""
    return level if isinstance(level, str) else f"{level:g}"


def _means(sums: Statistics) -> Statistics:
    """Weighted sums to means."""
    return {name: each / sums["weight"] for name, each in sums.items()}
