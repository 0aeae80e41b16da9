"""A store's fields as one raw array that all processes share through the page cache: reading at the speed of memory."""

import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info
from torch.utils.data._utils.collate import default_collate_fn_map

from slams.core.days import write_days
from slams.core.errors import InvalidValueError
from slams.data.store.store import FieldStore

_BLOCK_BYTES = 1 << 26
_PAGE = 1024  # values of float32


class MappedField:
    """The fields of one store, float32 (T, *S), in store order of days, NaN where missing.

    Slices are views of the file: nothing is read before it is used, and changing one changes neither the file
    nor what other processes see. Sent to another process, only the path travels.

    Args:
        path: A `.npy` file written by `map_store`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        # "c": private to the process, so that torch may treat it as writable without touching the file
        self.array: np.ndarray = np.load(self.path, mmap_mode="c", allow_pickle=False)
        self.shape = self.array.shape

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, key: Any) -> np.ndarray:
        return self.array[key]

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    @property
    def nbytes(self) -> int:
        """Size of the file [bytes]."""
        return int(self.array.nbytes)


class MappedWindow(dict[str, Tensor]):
    """One window as views of mapped fields, with their places in the files.

    Torch's default collation in a worker process then sends places instead of values, and the process that trains copies
    them out of the page cache: shared memory between processes is several times slower, and small in containers.

    Args:
        fields: Fields by modality.
        rows: First row of each.
        length: Number of rows.
    """

    def __init__(self, fields: dict[str, MappedField], rows: dict[str, int], length: int) -> None:
        super().__init__(
            {
                name: torch.from_numpy(field[rows[name] : rows[name] + length])
                for name, field in fields.items()
            }
        )
        self.places = {name: (str(field.path), rows[name], length) for name, field in fields.items()}
        default_collate_fn_map.setdefault(MappedWindow, _collate)


class _Batch:
    """A batch under way from a worker: places, which become tensors where they arrive."""

    def __init__(self, windows: Sequence[MappedWindow]) -> None:
        self.places = [window.places for window in windows]

    def __reduce__(self) -> tuple[Callable[..., dict[str, Tensor]], tuple[Any, ...]]:
        return _arrive, (self.places,)


def _arrive(places: list[dict[str, tuple[str, int, int]]]) -> dict[str, Tensor]:
    views = [
        {
            name: torch.from_numpy(_opened(path)[row : row + length])
            for name, (path, row, length) in each.items()
        }
        for each in places
    ]
    return {name: torch.stack([view[name] for view in views]) for name in views[0]}


def _collate(windows: Sequence[MappedWindow], *, collate_fn_map: Any = None) -> dict[str, Tensor] | _Batch:
    if get_worker_info() is None:
        return {name: torch.stack([window[name] for window in windows]) for name in windows[0]}
    for window in windows:
        for view in window.values():
            view.flatten()[::_PAGE].sum()  # a value a page brings them all from disk
    return _Batch(windows)


@lru_cache(maxsize=64)
def _opened(path: str) -> MappedField:
    return MappedField(Path(path))


def map_store(
    store: FieldStore, folder: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> MappedField:
    """The memory-mapped copy of a store, made where there is none and made again where the store has changed.

    Args:
        store: The store.
        folder: Folder of the copies; by default `cache` beside the store. It can be deleted at any time.
        say: Prints a line: size and building time of a copy that is made.

    Returns:
        The fields.

    Raises:
        ValueError: If the store's fingerprint is none.
        OSError: If the disk is full.
    """
    folder = folder or store.path.parent / "cache"
    if not re.fullmatch("[0-9a-f]{64}", store.fingerprint):  # it becomes part of a file name
        raise InvalidValueError(
            f"{store.path} has no valid fingerprint; remove it and process its files again."
        )
    # the fingerprint in the name: who still reads an older copy goes on with it
    path = folder / f"{store.path.stem}-{store.fingerprint[:12]}.npy"
    if not path.exists():
        begin = time.monotonic()
        _write(store, path)
        seconds = time.monotonic() - begin
        for older in folder.glob(f"{store.path.stem}-{'[0-9a-f]' * 12}.npy"):
            if older != path:
                with suppress(PermissionError):  # Windows keeps what another process still reads
                    older.unlink(missing_ok=True)
        say(f"{path}: {path.stat().st_size / 1e9:.3g} GB for fast reading, made in {seconds:.1f} s")
    return MappedField(path)


def _write(store: FieldStore, path: Path) -> None:
    """Copy a store in blocks of days."""
    days = store.dates
    event = store.read(days[:1]).shape[1:]
    step = max(1, _BLOCK_BYTES // max(1, 4 * int(np.prod(event))))
    blocks = (store.read(days[first : first + step]).values for first in range(0, days.size, step))
    write_days(path, map(torch.from_numpy, blocks), days.size, event)
