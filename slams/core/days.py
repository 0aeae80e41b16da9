"""Values of more days than memory holds: read and computed a few days at a time, under one budget."""

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from slams.core.files import atomic

# the one budget: bytes of an array that may be in memory as a whole; processes hold some ten such arrays at most
IN_MEMORY = int(os.environ.get("SLAMS_IN_MEMORY", str(1 << 29)))
PIECE = IN_MEMORY // 8  # bytes of the pieces in which larger arrays are processed


class Days:
    """Values of many days (n, *S) that are read or computed when rows are taken: `days[rows]` is a tensor (…, *S).

    It stands where a tensor of all days would be larger than `IN_MEMORY`. Rows are a slice, or integers or a mask, in a
    tensor or an array of any shape. No other operation of tensors exists, so that nothing takes all days by accident;
    `parts`, `over` and `total` go through them in pieces.

    Args:
        read: Function of row numbers (k), which may repeat, to values (k, *S).
        count: Number of days n.
        event: Shape *S of a day.
    """

    def __init__(self, read: Callable[[np.ndarray], Tensor], count: int, event: Sequence[int]) -> None:
        self._read = read
        self.shape = torch.Size((count, *event))
        self.ndim = len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """Of what is read."""
        return torch.float32

    def __len__(self) -> int:
        """Number of days."""
        return int(self.shape[0])

    def __getitem__(self, rows: Any) -> Tensor:
        """Values of some days."""
        index = np.arange(len(self))[rows if isinstance(rows, slice) else np.asarray(rows)]
        return self._read(index.reshape(-1)).reshape(*index.shape, *self.shape[1:])

    @classmethod
    def of(cls, x: Tensor) -> "Days":
        """The days of a tensor (n, *S)."""
        return cls(lambda rows: x[torch.from_numpy(rows)], len(x), x.shape[1:])

    @classmethod
    def of_file(cls, path: str | Path) -> "Days":
        """The days of a .npy file of float32 (n, *S); only the rows taken are read, and none stay in memory."""
        mapped = np.load(path, mmap_mode="r", allow_pickle=False)
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - open as long as the days are
        return cls(_Rows(file, int(mapped.offset), mapped.shape[1:]), mapped.shape[0], mapped.shape[1:])

    def rows(self, index: Any) -> "Days":
        """Some of the days, in the order of `index`: a slice, or integers (k)."""
        kept = np.arange(len(self))[index if isinstance(index, slice) else np.asarray(index)]
        return Days(lambda rows: self._read(kept[rows]), len(kept), self.shape[1:])

    def map(self, function: Callable[[Tensor, Tensor], Tensor]) -> "Days":
        """function(values, rows) of the days, which treats every day alone.

        Args:
            function: Function of values (k, *S) and their row numbers (k) to values (k, *S').
        """
        some = function(self[:1], torch.zeros(1, dtype=torch.int64))

        def read(rows: np.ndarray) -> Tensor:
            return function(self._read(rows), torch.from_numpy(rows))

        return Days(read, len(self), some.shape[1:])


Values = Tensor | Days


class _Rows:
    """Rows of an open file, stretches of consecutive ones in one read."""

    def __init__(self, file: BinaryIO, offset: int, event: Sequence[int]) -> None:
        self.file, self.offset, self.event = file, offset, tuple(event)

    def __call__(self, rows: np.ndarray) -> Tensor:
        out = np.empty((len(rows), *self.event), np.float32)
        size = 4 * int(np.prod(self.event))
        edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
        for first, last in zip(edges[:-1], edges[1:], strict=True):
            if first < last:
                self.file.seek(self.offset + int(rows[first]) * size)
                left = memoryview(out[first:last]).cast("B")  # type: ignore[arg-type]
                while left:  # the system reads 2 GB at most
                    got = self.file.readinto(left)  # type: ignore[attr-defined]
                    if not got:
                        raise OSError(f"{self.file.name} ends before row {int(rows[last - 1])}.")
                    left = left[got:]
        return torch.from_numpy(out)


class DaysWriter:
    """A temporary file to which days are appended; it is removed with the days (TMPDIR sets the disk)."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - open as long as the days are
        self._count, self._event = 0, tuple[int, ...]()

    def append(self, part: Tensor) -> None:
        """Append days (k, *S)."""
        _write(self._file, part)
        self._count, self._event = self._count + len(part), tuple(part.shape[1:])

    def days(self) -> Days:
        """The days appended so far."""
        return Days(_Rows(self._file, 0, self._event), self._count, self._event)


def write_days(path: Path, parts: Iterable[Tensor], count: int, event: Sequence[int]) -> None:
    """Write days to a .npy file of float32, atomically and one part after another.

    Args:
        path: The file.
        parts: Consecutive days (k, *S).
        count: Their number.
        event: Shape *S of a day.
    """
    with atomic(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (count, *event)}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            _write(file, part)


def _write(file: Any, part: Tensor) -> None:
    left = memoryview(np.ascontiguousarray(part.numpy(), np.float32)).cast("B")  # type: ignore[arg-type]
    while left:  # an unbuffered file may write a part
        left = left[file.write(left) :]


def fits(count: int, event: Sequence[int]) -> bool:
    """Whether float32 values (count, *event) may be in memory as a whole."""
    return 4 * count * int(np.prod(event)) <= IN_MEMORY


def slices(x: Values) -> Iterator[slice]:
    """Consecutive rows of pieces that may be in memory: all at once of a tensor."""
    step = len(x)
    if isinstance(x, Days):
        step = max(1, PIECE // (4 * int(np.prod(x.shape[1:]))))
    return (slice(first, min(first + step, len(x))) for first in range(0, len(x), max(1, step)))


def rows_in_memory(event: Sequence[int]) -> int:
    """Number of float32 values of a shape that may be in memory."""
    return max(1, IN_MEMORY // (4 * int(np.prod(event))))


def memory_slices(x: Values) -> Iterator[slice]:
    """Consecutive rows of the largest pieces that may be in memory."""
    step = rows_in_memory(x.shape[1:])
    return (slice(first, min(first + step, len(x))) for first in range(0, len(x), step))


def parts(x: Values) -> Iterator[Tensor]:
    """Consecutive pieces of days (k, *S); a tensor is one piece."""
    return (x[rows] for rows in slices(x)) if isinstance(x, Days) else iter([x])


def over(x: Values, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function of each piece, one after another: small results (n, …) of many days."""
    found = [function(part) for part in parts(x)]
    return found[0] if len(found) == 1 else torch.cat(found)


def total(x: Values, function: Callable[[Tensor, slice], Tensor]) -> Tensor:
    """Sum of function(piece, its rows) over the pieces."""
    found: Tensor | None = None
    for rows in slices(x):
        own = function(x if isinstance(x, Tensor) else x[rows], rows)
        found = own if found is None else found + own
    assert found is not None
    return found


def mean_of(x: Values, axes: Sequence[int]) -> Tensor:
    """x.mean(axes), where the days are among the axes; of `Days` summed in double precision."""
    if isinstance(x, Tensor):
        return x.mean(list(axes))
    count = torch.Size([x.shape[axis] for axis in axes]).numel()
    return (total(x, lambda part, rows: part.double().sum(list(axes))) / count).float()


def daywise(x: Values, function: Callable[[Tensor], Tensor]) -> Values:
    """function(x), which treats every day alone: at once of a tensor, when rows are taken of `Days`."""
    return function(x) if isinstance(x, Tensor) else x.map(lambda part, rows: function(part))


def every(x: Values, stride: int) -> Values:
    """x[::stride], still to be read if x is."""
    return x[::stride] if isinstance(x, Tensor) else x.rows(slice(None, None, stride))


def memory_stride(x: Values) -> int:
    """Distance of days of which as many are in x as may be in memory; 1 of a tensor."""
    return max(1, -(-4 * x.shape.numel() // IN_MEMORY)) if isinstance(x, Days) else 1
