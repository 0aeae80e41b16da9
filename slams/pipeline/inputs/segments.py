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


def seen_on(segment: Segment, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values (n, *S) of the record on the days of a segment, (T, *S), NaN on days without a record."""
    return {
        name: torch.where((segment.rows >= 0).reshape(-1, *[1] * (x.ndim - 1)), x[segment.rows], torch.nan)
        for name, x in values.items()
    }
