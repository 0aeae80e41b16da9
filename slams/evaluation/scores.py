"""Scores: statistics of many windows, gathered and turned into rows of metrics.csv with intervals."""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.renamed import renamed
from slams.evaluation.intervals import (
    independent,
    log_normal_limits,
    mean_interval,
)
from slams.evaluation.metrics import metrics_of, named
from slams.evaluation.series import Change, Gain, Series, limits, means, pooled
from slams.evaluation.tables import COLUMNS
from slams.evaluation.windows import Statistics, effective_count, rank_flatness

Row = dict[str, str | float | int]

_LEAST = 0.01  # of the mean, as which a smaller score counts in a gain: 0 has no logarithm


class Scores:
    """Scores with 95 % intervals from statistics of windows.

    A score is a function of sums over windows; its interval follows from their scatter and the metric's law
    (`slams.evaluation.intervals`). What counts are independent windows. Windows whose names begin with a date are in
    order of time: those less than `apart` days after the first of them are one, and where successive scores are
    correlated (`independent`) so are as many as that correlation lasts. Windows with other names are independent.

    Args:
        apart: Days within which windows are one.
        resamples: No longer used.
        seed: No longer used.
    """

    def __init__(self, *, apart: int = 0, resamples: int | None = None, seed: int | None = None) -> None:
        if resamples is not None or seed is not None:
            warnings.warn(
                "intervals are no longer resampled; `resamples` and `seed` of Scores are accepted until version 0.4.",
                FutureWarning,
                stacklevel=2,
            )
        self.apart = apart
        self._series: dict[tuple[str, str, str], Series] = {}

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
        series = self._series.setdefault((method, variable, part), Series(names, {}))
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

    def repeat(self, method: str, other: str, variables: Sequence[str]) -> None:
        """Add the windows of a method again as those of another one that is the same.

        Args:
            method: Method with windows.
            other: Name of the other one.
            variables: Variables that are added.
        """
        for (name, variable, part), series in list(self._series.items()):
            if name == method and variable in variables:
                self._series[other, variable, part] = Series(series.levels, dict(series.windows))

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
        """Rows of metrics.csv, for every key, level and metric; scores that don't exist are left out.

        n is the number of independent windows of the score; with fewer than two the interval is NaN.
        """
        rows: list[Row] = []
        for (method, variable, part), series in self._series.items():
            names = ("all", *series.levels) if len(series.levels) > 1 else ("all",)
            sums, stretches = series.stacked(), series.stretches(self.apart)
            whole = means({name: each.sum(0) for name, each in sums.items()})
            sums = {name: torch.stack([each[at].sum(0) for at in stretches]) for name, each in sums.items()}
            for metric in metrics_of("fields", "amounts"):
                if any(each.key not in sums for each in metric.parts):
                    continue
                value = metric.value(whole)
                for column, name in enumerate(names):
                    if not torch.isnan(value[column]):
                        own = {key: each[sums["weight"][:, column] > 0, column] for key, each in sums.items()}
                        own = pooled(metric, own) if series.dated else own
                        numbers = (float(value[column]), *limits(metric, own), len(own["weight"]))
                        place = (method, variable, name, part, metric.name)
                        rows.append(dict(zip(COLUMNS, (*place, *numbers), strict=True)))
        return rows

    def value(
        self, method: str, metric: str, *, variable: str, part: str = "all", level: float | str = "all"
    ) -> float:
        """One score over all windows."""
        sums = self._sums(method, variable, part, level)
        return float(named(metric).value(means({name: each.sum() for name, each in sums.items()})))

    def per_window(
        self, method: str, metric: str, *, variable: str, part: str = "all", level: float | str = "all"
    ) -> dict[Hashable, float]:
        """One score of each window that has scored cells."""
        sums = self._sums(method, variable, part, level)
        values = named(metric).value(means(sums))
        windows = self._series[method, variable, part].windows
        return {
            window: float(v)
            for window, v, weight in zip(windows, values, sums["weight"], strict=True)
            if weight > 0
        }

    def ranks(self, method: str, *, variable: str, part: str = "all", level: float | str = "all") -> Tensor:
        """Rank histogram (N + 1): the weight at each rank of the truth among the members, all windows."""
        return self._ranks(method, variable, part, level).sum(0)

    def total(self, method: str, key: str, *, variable: str, part: str = "all") -> Tensor:
        """Sum of a statistic over all windows, of each channel (C, ...), such as the "reliability" of amounts.

        Raises:
            ValueError: If there is no such method, variable or part.
        """
        series, _ = self._find(method, variable, part, "all")
        return torch.stack([window[key] for window in series.windows.values()]).sum(0)

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
        """Weight at each rank in each stretch of windows (n, N + 1)."""
        series, column = self._find(method, variable, part, level)
        each = [window["ranks"] for window in series.windows.values()]
        ranks = torch.stack(
            [torch.stack([each[k] for k in at]).sum(0) for at in series.stretches(self.apart)]
        )
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

        The gain is 1 - exp(mean over windows of log (score_a / score_b)), with Student's t for that mean. A score below
        1 % of its mean over windows counts as that.

        Args:
            a: Name of the tested method.
            b: Name of the reference method.
            metric: Name of a score that is better when lower, such as rmse, crps or w1.
            variable: Name of the variable.
            part: Name of the part of the cells.
            level: Name of the level, or "all".

        Returns:
            The gain; its interval is NaN with fewer than two independent windows, and it is where a mean score is not
            positive.

        Raises:
            ValueError: If the methods were not scored on the same cells of the same windows.
        """
        if named(metric).better != "lower":
            known = ", ".join(m.name for m in metrics_of("fields", "amounts") if m.better == "lower")
            raise InvalidValueError(
                f"a gain needs a score that is better when smaller ({known}), got {metric!r}."
            )
        self._check_pairs(a, b, variable, part, level)
        logs = []
        for method in (a, b):
            logs.append(_logs(named(metric).value(means(self._together(method, variable, part, level)))))
        ratios, series = logs[0] - logs[1], self._find(a, variable, part, level)[0]
        count = independent(ratios.tolist()) if series.dated else len(ratios)
        mean, lower, upper = mean_interval([float(each.mean()) for each in ratios.tensor_split(count)])
        return Gain(-math.expm1(mean), -math.expm1(upper), -math.expm1(lower), count)

    def paired_change(
        self,
        a: str,
        b: str,
        metric: str = "rmse_inf",
        *,
        variable: str,
        part: str = "all",
        level: float | str = "all",
    ) -> Change:
        """Relative change of a score from method `b` to `a`: score_a / score_b - 1 over all windows, negative if better.

        The scores are those of tables. Windows are joined as for a gain; the interval is that of the ratio of two means
        of paired log-normal values (`log_normal_limits`).

        Args:
            a: Name of the tested method.
            b: Name of the reference method.
            metric: Name of a score that is a root or mean of one positive statistic, such as rmse, rmse_inf or crps.
            variable: Name of the variable.
            part: Name of the part of the cells.
            level: Name of the level, or "all".

        Returns:
            The change; its interval is NaN with fewer than two independent windows.

        Raises:
            ValueError: If the score is of another kind, or the methods were not scored on the same cells of the same
                windows.
        """
        score = named(metric)
        if score.law != "log-normal" or len(score.parts) != 1 or score.of:
            known = [m.name for m in metrics_of("fields") if m.law == "log-normal" and not m.of]
            raise InvalidValueError(f"a change needs a positive score ({', '.join(known)}), got {metric!r}.")
        self._check_pairs(a, b, variable, part, level)
        key, sums = score.parts[0].key, [self._together(name, variable, part, level) for name in (a, b)]
        logs = [_logs(score.value(means(each))) for each in sums]
        dated = self._find(a, variable, part, level)[0].dated
        count = independent((logs[0] - logs[1]).tolist()) if dated else len(logs[0])
        x, y, weight = (
            torch.stack([some.sum() for some in each.tensor_split(count)])
            for each in (sums[0][key], sums[1][key], sums[0]["weight"])
        )
        limits = log_normal_limits(x / weight, y / weight, weight)
        ratio, low, high = score.finish(torch.cat([(x.sum() / y.sum())[None], limits])).tolist()
        return Change(ratio - 1, low - 1, high - 1, count)

    def _together(self, method: str, variable: str, part: str, level: float | str) -> Statistics:
        """Sums of each stretch of windows that has scored cells, (n)."""
        series, sums = (
            self._find(method, variable, part, level)[0],
            self._sums(method, variable, part, level),
        )
        stretches = series.stretches(self.apart)
        together = {name: torch.stack([each[at].sum(0) for at in stretches]) for name, each in sums.items()}
        return {name: each[together["weight"] > 0] for name, each in together.items()}

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

    def _find(self, method: str, variable: str, part: str, level: float | str) -> tuple[Series, int]:
        """A series and the column of a level in `Series.stacked`."""
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


def _label(level: float | str) -> str:
    """A level as it stands in metrics.csv."""
    return level if isinstance(level, str) else f"{level:g}"


def _logs(scores: Tensor) -> Tensor:
    """Logarithms of scores, small ones as 1 % of their mean; NaN where the mean is not positive."""
    mean = float(scores.mean())
    return scores.clamp(min=_LEAST * mean).log() if mean > 0 else scores * torch.nan
