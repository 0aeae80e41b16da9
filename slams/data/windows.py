"""Days and windows of days: joined by date, never across a gap."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from slams.core.errors import InvalidValueError
from slams.data.store.mapped import MappedField, MappedWindow, map_store
from slams.data.store.store import FieldStore

_DAY = np.timedelta64(1, "D")


def runs(dates: np.ndarray) -> list[slice]:
    """Stretches of consecutive days.

    Args:
        dates: Days, rising strictly.

    Returns:
        Slices that together cover all positions.

    Raises:
        ValueError: If the dates don't rise strictly.

    >>> runs(np.array(["2000-02-28", "2000-02-29", "2000-03-02"], dtype="datetime64[D]"))
    [slice(0, 2, None), slice(2, 3, None)]
    """
    days = _days(dates, "dates")
    if not days.size:
        return []
    edges = [0, *(np.flatnonzero(np.diff(days) != _DAY) + 1).tolist(), days.size]
    return [slice(start, stop) for start, stop in zip(edges[:-1], edges[1:], strict=True)]


def window_starts(dates: np.ndarray, length: int, stride: int = 1) -> Tensor:
    """Positions at which a window of consecutive days starts.

    A run of n days holds n - length + 1 windows at stride 1; every run starts anew.

    Args:
        dates: Days, rising strictly.
        length: Days of a window.
        stride: Days between the starts of two windows of a run.

    Returns:
        Rising positions, int64; empty if no run is long enough.

    Raises:
        ValueError: If length or stride is below 1, or the dates don't rise strictly.
    """
    if length < 1 or stride < 1:
        raise InvalidValueError(
            f"a window needs a length and a stride of at least 1 day, got {length} and {stride}."
        )
    starts = [
        torch.arange(run.start, run.stop - length + 1, stride)
        for run in runs(dates)
        if run.stop - run.start >= length
    ]
    return torch.cat(starts) if starts else torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class GapRow:
    """Coverage of one modality: its days and gaps.

    Args:
        name: The modality.
        first: Its first day.
        last: Its last day.
        days: Number of its days.
        gaps: Missing periods between its first and last day, as pairs of first and last missing day.
        unused: Days it holds that another modality lacks.
    """

    name: str
    first: np.datetime64
    last: np.datetime64
    days: int
    gaps: tuple[tuple[np.datetime64, np.datetime64], ...]
    unused: int

    @property
    def missing(self) -> int:
        """Number of missing days between the first and the last."""
        return sum(int((last - first) / _DAY) + 1 for first, last in self.gaps)


@dataclass(frozen=True)
class GapReport:
    """Days kept and dropped in joining modalities by date.

    Args:
        rows: One for each modality.
        days: Number of days all have.
        runs: Number of runs of consecutive days among these.
        rule: Rule that assigns records to days.
    """

    rows: tuple[GapRow, ...]
    days: int
    runs: int
    rule: str = ""
    left_out: tuple[str, ...] = ()

    def text(self) -> str:
        """The report in one line for each modality and one for their join."""
        width = max(len(row.name) for row in self.rows)
        lines = []
        for row in self.rows:
            line = f"{row.name:<{width}}  {row.first} to {row.last}: {row.days} days"
            if row.gaps:
                first, last = max(row.gaps, key=lambda gap: gap[1] - gap[0])
                line += f", {len(row.gaps)} gaps ({row.missing} days; the longest {first} to {last})"
            if row.unused:
                line += f", {row.unused} days unused because another modality lacks them"
            lines.append(line)
        return "\n".join(
            [
                *lines,
                f"{'in common':<{width}}  {self.days} days in {self.runs} runs; no window crosses from one "
                "to another",
                *([self.rule] if self.rule else []),
                *self.left_out,
            ]
        )


def common_dates(dates: Mapping[str, np.ndarray]) -> tuple[np.ndarray, GapReport]:
    """Days that all modalities have.

    Args:
        dates: Days of each modality, rising strictly.

    Returns:
        The common days (datetime64[D]) and a report of gaps.

    Raises:
        ValueError: If there are none, or dates don't rise strictly.
    """
    if not dates:
        raise InvalidValueError("no modality was given; expected the dates of at least one.")
    days = {name: _days(values, f"dates of {name!r}") for name, values in dates.items()}
    common = next(iter(days.values()))
    for values in days.values():
        common = np.intersect1d(common, values, assume_unique=True)
    if not common.size:
        spans = "; ".join(
            f"{n}: {d[0]} to {d[-1]}, {d.size} days" if d.size else f"{n}: no day" for n, d in days.items()
        )
        raise InvalidValueError(
            f"the modalities have no day in common ({spans}); give files that overlap, or leave a modality "
            "out."
        )
    rows = tuple(GapRow(n, d[0], d[-1], d.size, find_gaps(d), d.size - common.size) for n, d in days.items())
    return common, GapReport(rows, int(common.size), len(runs(common)))


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of consecutive days, the same days in every modality.

    Give it to `torch.utils.data.DataLoader` as it is, with any number of workers and `shuffle=True`.

    Args:
        tensors: (T, *S) of each modality, all on `dates`; `from_stores` reads from disk instead.
        dates: Days (T), rising strictly.
        length: Days of a window, L.
        stride: Days between the starts of two windows of a run.

    Raises:
        ValueError: If a tensor has another number of days, or no run of days is as long as a window.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], dates: np.ndarray, length: int, stride: int = 1
    ) -> None:
        days = _days(dates, "dates")
        for name, tensor in tensors.items():
            if tensor.shape[:1] != (days.size,):
                raise InvalidValueError(
                    f"{name!r} has shape {tuple(tensor.shape)}, expected {days.size} days first; "
                    "join by date before."
                )
        self.tensors = dict(tensors)
        self.mapped: dict[str, MappedField] = {}
        self.rows: dict[str, np.ndarray] = {}
        self._find_windows(days, length, stride)

    def _find_windows(self, dates: np.ndarray, length: int, stride: int) -> None:
        self.dates, self.length = dates, length
        self.report: GapReport | None = None
        self.starts = window_starts(dates, length, stride)
        if not len(self.starts):
            longest = max((run.stop - run.start for run in runs(dates)), default=0)
            raise InvalidValueError(
                f"no window of {length} days fits: the longest run of consecutive days has {longest}; "
                "shorten the window or add data."
            )

    @classmethod
    def from_stores(
        cls,
        stores: Mapping[str, FieldStore],
        length: int,
        *,
        span: tuple[str, str] | None = None,
        lags: Mapping[str, int] | None = None,
        stride: int = 1,
        cache: Path | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> "WindowDataset":
        """Windows of days that all stores have, read from memory-mapped copies of the stores.

        Args:
            stores: Stores by modality.
            length: Days of a window, L.
            span: First and last day wanted; all if None.
            lags: Days from a date to the label of the record that belongs to it, as `matching_lags` gives it; 0 where not
                named.
            stride: Days between the starts of two windows of a run.
            cache: Folder of the copies; by default `cache` beside each store.
            say: Prints a line: which days are missing where, and size and building time of new copies.

        Returns:
            The windows; `report` lists the days of each modality.

        Raises:
            ValueError: If the stores have no day in common, or no run of common days is as long as a window.
        """
        shifts = {name: np.timedelta64((lags or {}).get(name, 0), "D") for name in stores}
        dates, report = common_dates({name: store.dates - shifts[name] for name, store in stores.items()})
        say(report.text())
        if span is not None:
            first, last = (np.datetime64(day, "D") for day in span)
            within = dates[(dates >= first) & (dates <= last)]
            if not within.size:
                raise InvalidValueError(
                    f"no day that all stores have lies from {first} to {last}; they have {dates[0]} to {dates[-1]}."
                )
            dates = within
        dataset = cls({}, dates, length, stride)
        dataset.mapped = {
            name: map_store(store, cache and cache / store.path.parent.name, say)
            for name, store in stores.items()
        }
        dataset.rows = {n: np.searchsorted(store.dates, dates + shifts[n]) for n, store in stores.items()}
        dataset.report = report
        return dataset

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Each modality on the days of one window, (L, *S)."""
        window = self.__getitems__([index])[0]
        if self.mapped:
            return {name: view.clone() for name, view in window.items()}
        return window

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Tensor]]:
        """Windows of a batch, as views: what a loader calls, which copies them into the batch."""
        windows: list[dict[str, Tensor]] = []
        for index in indices:
            start = int(self.starts[index])
            if self.mapped:
                # consecutive days are consecutive rows, in every store
                rows = {name: int(rows[start]) for name, rows in self.rows.items()}
                windows.append(MappedWindow(self.mapped, rows, self.length))
            else:
                windows.append({n: x[start : start + self.length] for n, x in self.tensors.items()})
        return windows

    def days(self, index: int) -> np.ndarray:
        """The days of one window, (L)."""
        start = int(self.starts[index])
        return self.dates[start : start + self.length]


def _days(dates: np.ndarray, subject: str) -> np.ndarray:
    """Dates as datetime64[D], checked."""
    days = np.atleast_1d(np.asarray(dates, dtype="datetime64[D]"))
    wrong = np.flatnonzero(np.diff(days) < _DAY)
    if wrong.size:
        at = int(wrong[0])
        raise InvalidValueError(
            f"{subject} must rise strictly, but {days[at + 1]} follows {days[at]}; sort them and remove "
            "repeated days."
        )
    return days


def find_gaps(days: np.ndarray) -> tuple[tuple[np.datetime64, np.datetime64], ...]:
    """First and last missing day of each gap.

    Args:
        days: Rising strictly, datetime64[D].

    Returns:
        Pairs of days.
    """
    ends = np.flatnonzero(np.diff(days) != _DAY)
    return tuple((days[end] + _DAY, days[end + 1] - _DAY) for end in ends)
