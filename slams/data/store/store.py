"""One modality on disk, read by date: zarr in chunks of days, and a manifest beside it."""

import difflib
import errno
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from slams.core.errors import DataWarning, InvalidValueError, MissingFileError
from slams.core.files import atomic
from slams.data.files.opening import open_dataset, reading, refuse_absent_chunks
from slams.data.files.periods import years_of
from slams.data.store.manifest import write_manifest
from slams.data.store.writer import Standing, Writer, locked, publish, repair, running_hash, scratch, seal

__all__ = ["FieldStore", "write_manifest"]

Part = xr.DataArray | xr.Dataset


class FieldStore:
    """One modality on disk.

    The folder is an ordinary zarr that xarray opens, `manifest.json` beside it lists all stores of its
    folder.

    Args:
        path: The folder, by custom `NAME.zarr`.

    Raises:
        FileNotFoundError: If it doesn't exist.
        ValueError: If it isn't a whole store.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).expanduser()
        if not self.path.is_dir():
            siblings = (
                [p.name for p in self.path.parent.glob("[!.]*.zarr")] if self.path.parent.is_dir() else []
            )
            near = (
                difflib.get_close_matches(self.path.name, siblings, n=3, cutoff=0.3)
                or siblings[:3]
                or ["no store"]
            )
            raise MissingFileError(
                f"there is no store {self.path}; its folder holds {', '.join(near)}. Create it, or correct "
                "it."
            )
        try:
            # format 3: what a folder of the older one says of its filters would be run on reading
            self._group = zarr.open_group(self.path, mode="r", zarr_format=3)
            self.attrs: dict[str, Any] = dict(self._group.attrs)
            self.variable = str(self.attrs["variable"])
            self.fingerprint = str(self.attrs["fingerprint"])
            if not re.fullmatch("[0-9a-f]{64}", self.fingerprint):  # others make file names of it
                raise InvalidValueError(f"its fingerprint is {self.fingerprint[:80]!r}")
        except (OSError, ValueError, KeyError) as error:
            raise InvalidValueError(
                f"{self.path} isn't a complete store of this package ({error}); remove it and create it "
                "again."
            ) from error

    def __repr__(self) -> str:
        """Name, size and dates."""
        span = f"{self.dates[0]} to {self.dates[-1]}"
        return f"FieldStore({str(self.path)!r}: {self.variable} {self.shape}, {span})"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        arrays: Part | Iterable[Part],
        attrs: Mapping[str, Any] | None = None,
    ) -> "FieldStore":
        """Write a store; one that stands there is replaced only when the new one is whole.

        Args:
            path: The folder.
            arrays: (time, ...) as `fields.read` returns, or several of them in order of time, which are never
                in memory together. A dataset brings `time_bnds` (time, bnds) with its field.
            attrs: More attributes for the store, such as `url`; looked at when the last array is written.

        Returns:
            The new store.

        Raises:
            ValueError: If there's nothing to write, times don't rise strictly, or the parts differ in grid or
                name.
            OSError: If the disk is full.
        """
        target = Path(path).expanduser()
        with atomic(target) as temporary:
            writer = Writer(temporary)
            for part in _parts(arrays):
                writer.append(part)
            writer.finish(attrs or {})
        write_manifest(target.parent)
        return cls(target)

    @classmethod
    def append(
        cls,
        path: str | os.PathLike[str],
        arrays: Part | Iterable[Part],
        attrs: Mapping[str, Any] | None = None,
    ) -> "FieldStore":
        """Add later days to a store, all of them or none; a store that isn't there is created.

        The content depends on the days alone, not on how many appends brought them, and holds no time of
        day: a run after a kill leaves what an undisturbed one leaves.

        Args:
            path: The folder.
            arrays: Arrays as in `create`, all after the store's last day.
            attrs: Attributes to add or replace; looked at when the last array is written.

        Returns:
            The longer store.

        Raises:
            ValueError: If times don't rise strictly from the last day there, or the grid isn't the store's.
            OSError: If the disk is full; the store is as it was.
        """
        target = Path(path).expanduser()
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target):
            if not target.exists():
                return cls.create(target, arrays, attrs)
            repair(target)
            old = cls(target)
            writer = Writer(scratch(target), old._standing())
            try:
                for part in _parts(arrays):
                    writer.append(part)
                writer.finish({**old.attrs, **(attrs or {})})
                publish(writer.path, target)
            except BaseException as error:
                repair(target)
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise OSError(
                        errno.ENOSPC,
                        f"the disk is full, {target} could not be made longer (what was there before is "
                        "untouched): free some space, and run again",
                    ) from error
                raise
        write_manifest(target.parent)
        return cls(target)

    def _standing(self) -> Standing:
        """The state that an append starts from."""
        if "chain" not in self.attrs:
            raise InvalidValueError(
                f"{self.path} was written by an earlier version and can't be appended to; remove it and create "
                "it again."
            )
        shard = int(self._data.shards[0])
        whole = self.dates.size // shard * shard
        tail = np.asarray(self._data[whole:], dtype=np.float32)
        return Standing(
            self.read(self.dates[:1]),
            self.dates,
            self.bounds,
            shard,
            tail,
            bytes.fromhex(self.attrs["chain"]),
        )

    def _array(self, name: str) -> Any:
        return self._group[name]

    @property
    def _data(self) -> Any:
        return self._array(self.variable)

    @cached_property
    def dates(self) -> np.ndarray:
        """Days in the store, datetime64[D], rising; a `DataWarning` tells of chunks that read as missing.

        Raises:
            ValueError: If coordinates lack chunks, or can't be read.
        """
        with open_dataset(self.path) as dataset:
            absent = refuse_absent_chunks(
                self.path, dataset, self.variable, f"{self.variable} in {self.path}"
            )
        if absent:
            warnings.warn(f"{absent}.", DataWarning, stacklevel=2)
        return np.asarray(self._array("time")[:]).astype("datetime64[D]")

    @cached_property
    def bounds(self) -> np.ndarray | None:
        """Start and end of the time each day's value stands for, (T, 2), datetime64[s]; None if unknown."""
        if "time_bnds" not in self._group:
            return None
        seconds = np.rint(np.asarray(self._array("time_bnds")[:]) * 86400.0).astype(np.int64)
        return seconds.astype("datetime64[s]")

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the data, (time[, level], lat, lon) or (time[, level], station)."""
        return tuple(self._data.shape)

    @property
    def units(self) -> str:
        """Unit of the values."""
        return str(self._data.attrs.get("units", ""))

    @property
    def years(self) -> list[int]:
        """Calendar years that have a day."""
        return np.unique(years_of(self.dates)).tolist()

    def read(self, dates: np.ndarray | None = None) -> xr.DataArray:
        """The fields of some days, in the order asked for.

        Args:
            dates: Days, anything that becomes datetime64[D]; None reads all.

        Returns:
            float32, (time[, level], lat, lon) or (time[, level], station), as was written.

        Raises:
            KeyError: If a day isn't there; the first few are named.
        """
        days = self.dates
        wanted = days if dates is None else np.atleast_1d(np.asarray(dates, dtype="datetime64[D]"))
        positions = np.searchsorted(days, wanted).clip(max=days.size - 1)
        missing = wanted[days[positions] != wanted]
        if missing.size:
            raise KeyError(
                f"{self.path} lacks {missing.size} of the {wanted.size} days asked for "
                f"({', '.join(map(str, missing[:5]))}...); it holds {days.size} days, {days[0]} to "
                f"{days[-1]}: ask only for days in `.dates`, or create the store anew."
            )
        values = self._take(positions)
        coords = {
            name: (tuple(self._array(name).metadata.dimension_names), _plain(self._array(name)[:]))
            for name in self._group.array_keys()
            if name not in (self.variable, "time", "time_bnds")
        }
        dims = tuple(self._data.metadata.dimension_names)
        attrs = {key: value for key, value in self._data.attrs.items() if key != "coordinates"}
        return xr.DataArray(values, {"time": wanted, **coords}, dims, self.variable, attrs)

    def _take(self, positions: np.ndarray) -> np.ndarray:
        """Fields at positions: one slice per run of consecutive ones."""
        shape = (positions.size, *self._data.shape[1:])
        values = np.empty(shape, dtype=np.float32)
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        for start, stop in zip([0, *breaks], [*breaks, positions.size], strict=True):
            with reading(f"{self.variable} in {self.path}"):
                values[start:stop] = self._data[int(positions[start]) : int(positions[stop - 1]) + 1]
        return values

    def verify(self) -> None:
        """Read everything and compare with the fingerprint.

        Raises:
            ValueError: If the content isn't what was written.
        """
        if "chain" not in self.attrs:
            raise InvalidValueError(
                f"{self.path} was written by an earlier version, whose checksum isn't kept; create it again."
            )
        state, step = b"", int(self._data.shards[0])
        for start in range(0, self.dates.size, step):
            state = running_hash(state, np.asarray(self._data[start : start + step], dtype=np.float32))
        found = seal(state, self.read(self.dates[:1]), self.dates)
        if found != self.fingerprint:
            raise InvalidValueError(
                f"{self.path} has changed since it was written ({found[:12]}, expected "
                f"{self.fingerprint[:12]}); create it again."
            )


def _parts(arrays: Part | Iterable[Part]) -> Iterable[Part]:
    """One part, or several."""
    return [arrays] if isinstance(arrays, (xr.DataArray, xr.Dataset)) else arrays


def _plain(values: np.ndarray) -> np.ndarray:
    """Strings in the dtype of netCDF and pandas."""
    return values if values.dtype.kind in "iuf" else np.array(values.tolist(), dtype=str)
