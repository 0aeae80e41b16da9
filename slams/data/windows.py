"""Days and windows of days: joined by date, never across a gap."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

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
        raise ValueError(
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
    """What one modality holds, and what it lacks.

    Args:
        name: The modality.
        first: Its first day.
        last: Its last day.
        days: Number of its days.
        gaps: Missing stretches between its own first and last day: first and last missing day of each.
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
    """What joining modalities by date kept and lost.

    Args:
        rows: One for each modality.
        days: Number of days all have.
        runs: Number of stretches of consecutive days among these.
    """

    rows: tuple[GapRow, ...]
    days: int
    runs: int

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
        raise ValueError("no modality was given; expected the dates of at least one.")
    days = {name: _days(values, f"dates of {name!r}") for name, values in dates.items()}
    common = next(iter(days.values()))
    for values in days.values():
        common = np.intersect1d(common, values, assume_unique=True)
    if not common.size:
        spans = "; ".join(
            f"{n}: {d[0]} to {d[-1]}, {d.size} days" if d.size else f"{n}: no day" for n, d in days.items()
        )
        raise ValueError(
            f"the modalities have no day in common ({spans}); give files that overlap, or leave a modality "
            "out."
        )
    rows = tuple(GapRow(n, d[0], d[-1], d.size, _gaps(d), d.size - common.size) for n, d in days.items())
    return common, GapReport(rows, int(common.size), len(runs(common)))


class WindowDataset(Dataset[dict[str, Tensor]]):
    """Windows of consecutive days, the same days in every modality.

    Args:
        tensors: (T, *S) of each modality, all on `dates`.
        dates: Days (T), rising strictly.
        length: Days of a window, L.
        stride: Days between the starts of two windows of a run.

    Raises:
        ValueError: If a tensor has another number of days, or no run of days is as long as a window.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], dates: np.ndarray, length: int, stride: int = 1
    ) -> None:
        self.dates = _days(dates, "dates")
        self.tensors, self.length = dict(tensors), length
        for name, tensor in self.tensors.items():
            if tensor.shape[:1] != (self.dates.size,):
                raise ValueError(
                    f"{name!r} has shape {tuple(tensor.shape)}, expected {self.dates.size} days first; "
                    "join by date before."
                )
        self.starts = window_starts(self.dates, length, stride)
        if not len(self.starts):
            longest = max((run.stop - run.start for run in runs(self.dates)), default=0)
            raise ValueError(
                f"no window of {length} days fits: the longest run of consecutive days has {longest}; "
                "shorten the window or add data."
            )

    def __len__(self) -> int:
        """Number of windows."""
        return len(self.starts)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Each modality on the days of one window, (L, *S)."""
        start = int(self.starts[index])
        return {name: tensor[start : start + self.length] for name, tensor in self.tensors.items()}

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
        raise ValueError(
            f"{subject} must rise strictly, but {days[at + 1]} follows {days[at]}; sort them and remove "
            "repeated days."
        )
    return days


def _gaps(days: np.ndarray) -> tuple[tuple[np.datetime64, np.datetime64], ...]:
    """First and last missing day of each gap."""
    ends = np.flatnonzero(np.diff(days) != _DAY)
    return tuple((days[end] + _DAY, days[end + 1] - _DAY) for end in ends)
