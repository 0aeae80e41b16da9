"""A record of days with gaps, cut into segments that are analysed one by one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.data.windows import runs


@dataclass(frozen=True)
class Segment:
    """Consecutive days analysed together, some as margins and some without a record.

    Attributes:
        rows: Row of the record of each day, -1 without a record, (T).
        keep: Days of the T whose analysis is kept.
    """

    rows: Tensor
    keep: slice

    @property
    def days(self) -> Tensor:
        """Rows of the record that this segment analyses."""
        return self.rows[self.keep]


def segments_of(dates: np.ndarray, length: int, longest: int) -> list[Segment]:
    """Segments that together analyse every day once and never cross a gap.

    A run shorter than a window is padded on both sides with days without observations. One longer than
    `longest` is cut, and each part gets a window of its neighbours' days on either side, whose analysis is
    dropped.

    Args:
        dates: Days, strictly increasing.
        length: Number of days of a window.
        longest: Largest number of days of a segment, above 3 windows.

    Returns:
        Segments in order.

    Raises:
        ValueError: If `longest` leaves no room between the margins.

    >>> day = np.array(["2000-01-01"], dtype="datetime64[D]")
    >>> segments_of(day, 3, 30)[0].rows.tolist()
    [-1, 0, -1]
    """
    if longest <= 3 * length:
        raise InvalidValueError(
            f"segments of {longest} days are too short for margins of {length} days on either side."
        )
    found = []
    for run in runs(dates):
        size = run.stop - run.start
        if size <= longest:
            lacking = max(0, length - size)
            before = (lacking + 1) // 2
            rows = torch.full((size + lacking,), -1)
            rows[before : before + size] = torch.arange(run.start, run.stop)
            found.append(Segment(rows, slice(before, before + size)))
            continue
        parts = -(-size // (longest - 2 * length))
        ends = np.linspace(run.start, run.stop, parts + 1).round().astype(int).tolist()
        for first, last in zip(ends[:-1], ends[1:], strict=True):
            start, stop = max(run.start, first - length), min(run.stop, last + length)
            found.append(Segment(torch.arange(start, stop), slice(first - start, last - start)))
    return found


def past_segments(dates: np.ndarray, memory: int) -> list[Segment]:
    """For each day the days up to it, of which it alone is kept: a filter.

    Args:
        dates: Days, strictly increasing.
        memory: Number of days of each segment; those without a record are days without observations.

    >>> days = np.array(["2000-01-01", "2000-01-03"], dtype="datetime64[D]")
    >>> [segment.rows.tolist() for segment in past_segments(days, 3)]
    [[-1, -1, 0], [0, -1, 1]]
    """
    days = dates.astype("datetime64[D]").astype(int)
    return [Segment(rows_of(days, day - memory + 1, memory), slice(memory - 1, memory)) for day in days]


def rows_of(days: np.ndarray, first: int, count: int) -> Tensor:
    """Row of the record of each of some consecutive days, -1 without a record, (count).

    Args:
        days: Days of the record as numbers, strictly increasing.
        first: First of the days.
        count: Number of days.
    """
    wanted = first + np.arange(count)
    rows = np.searchsorted(days, wanted)
    found = days[np.minimum(rows, len(days) - 1)] == wanted
    return torch.from_numpy(np.where(found, rows, -1))


def seen_on(segment: Segment, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values (n, *S) of the record on the days of a segment, (T, *S), NaN on days without a record."""
    return {
        name: torch.where((segment.rows >= 0).reshape(-1, *[1] * (x.ndim - 1)), x[segment.rows], torch.nan)
        for name, x in values.items()
    }
