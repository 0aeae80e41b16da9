"""One modality on disk, read by date: zarr in chunks of days, and a manifest beside it."""

import difflib
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr

from slams.core.files import atomic, write_text

_CHUNK_BYTES = 1 << 18  # a window of days costs a few chunks, whatever the size of a field
_SHARD_BYTES = 1 << 25
_MAX_CHUNKS_PER_SHARD = 32  # about a dozen files a year for a global field
_EPOCH = "days since 1970-01-01"


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
            raise FileNotFoundError(
                f"there is no store {self.path}; its folder holds {', '.join(near)}. Create it, or correct "
                "it."
            )
        try:
            self._group = zarr.open_group(self.path, mode="r")
            self._attrs = dict(self._group.attrs)
            self._name = str(self._attrs["variable"])
            self.fingerprint = str(self._attrs["fingerprint"])
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(
                f"{self.path} isn't a complete store of this package ({error}); remove it and create it "
                "again."
            ) from error

    def __repr__(self) -> str:
        """Name, size and dates."""
        span = f"{self.dates[0]} to {self.dates[-1]}"
        return f"FieldStore({str(self.path)!r}: {self._name} {self._data.shape}, {span})"

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        arrays: xr.DataArray | Iterable[xr.DataArray],
        attrs: Mapping[str, Any] | None = None,
    ) -> "FieldStore":
        """Write a store; one that stands there is replaced only when the new one is whole.

        Args:
            path: The folder.
            arrays: (time, ...) as `fields.read` returns, or several of them in order of time, which are never
                in memory together.
            attrs: More attributes for the store, such as `url`.

        Returns:
            The new store.

        Raises:
            ValueError: If there's nothing to write, times don't rise strictly, or the parts differ in grid or
                name.
            OSError: If the disk is full.
        """
        target = Path(path).expanduser()
        with atomic(target) as temporary:
            writer = _Writer(temporary)
            for array in [arrays] if isinstance(arrays, xr.DataArray) else arrays:
                writer.append(array)
            writer.finish(dict(attrs or {}))
        write_manifest(target.parent)
        return cls(target)

    def _array(self, name: str) -> Any:
        return self._group[name]

    @property
    def _data(self) -> Any:
        return self._array(self._name)

    @cached_property
    def dates(self) -> np.ndarray:
        """Days in the store, datetime64[D], rising."""
        return np.asarray(self._array("time")[:]).astype("datetime64[D]")

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
                f"({', '.join(map(str, missing[:5]))}...); it "
                f"holds {days.size} days, {days[0]} to {days[-1]}: ask only for days in `.dates`, or "
                "create the store anew."
            )
        values = self._take(positions)
        coords = {
            name: (tuple(self._array(name).metadata.dimension_names), _plain(self._array(name)[:]))
            for name in self._group.array_keys()
            if name not in (self._name, "time")
        }
        dims = tuple(self._data.metadata.dimension_names)
        attrs = {key: value for key, value in self._data.attrs.items() if key != "coordinates"}
        return xr.DataArray(values, {"time": wanted, **coords}, dims, self._name, attrs)

    def _take(self, positions: np.ndarray) -> np.ndarray:
        """Fields at positions: one slice per run of consecutive ones."""
        shape = (positions.size, *self._data.shape[1:])
        values = np.empty(shape, dtype=np.float32)
        breaks = np.flatnonzero(np.diff(positions) != 1) + 1
        for start, stop in zip([0, *breaks], [*breaks, positions.size], strict=True):
            if stop > start:
                values[start:stop] = self._data[int(positions[start]) : int(positions[stop - 1]) + 1]
        return values

    def verify(self) -> None:
        """Read everything and compare with the fingerprint.

        Raises:
            ValueError: If the content isn't what was written.
        """
        digest = hashlib.sha256()
        step = self._data.chunks[0]
        for start in range(0, self.dates.size, step):
            digest.update(np.ascontiguousarray(self._data[start : start + step]).tobytes())
        found = _seal(digest, self.read(self.dates[:1]), self.dates)
        if found != self.fingerprint:
            raise ValueError(
                f"{self.path} has changed since it was written ({found[:12]}, expected "
                f"{self.fingerprint[:12]}); create it again."
            )


class _Writer:
    """Appends arrays in time to a new zarr, a shard at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.first: xr.DataArray | None = None
        self.array: Any = None
        self.days: list[np.ndarray] = []
        self.pending: list[np.ndarray] = []
        self.written, self.shard, self.digest = 0, 1, hashlib.sha256()

    def append(self, array: xr.DataArray) -> None:
        """Add the days of one array."""
        if array.name is None or not array.dims or array.dims[0] != "time":
            raise ValueError(
                f"expected a named array with `time` first, got {array.name!r} with {array.dims}."
            )
        days = array.time.values.astype("datetime64[D]")
        known = np.concatenate([*self.days[-1:], days])
        if (np.diff(known) <= np.timedelta64(0)).any():
            wrong = int(np.flatnonzero(np.diff(known) <= np.timedelta64(0))[0])
            raise ValueError(
                f"times of {array.name!r} must rise strictly, but {known[wrong + 1]} follows "
                f"{known[wrong]}; sort them."
            )
        if not days.size:
            return
        if self.first is None:
            self._begin(array)
        self._check_same(array)
        self.days.append(days)
        for start in range(0, days.size, self.shard):
            self.pending.append(_clean(array.isel(time=slice(start, start + self.shard)).values))
            self._flush(whole=True)

    def finish(self, attrs: dict[str, Any]) -> None:
        """Write what is pending, the coordinates, and last the attributes that make a store whole."""
        if self.first is None:
            raise ValueError(f"there is nothing to write to {self.path}: no array had a day.")
        self._flush(whole=False)
        days = np.concatenate(self.days)
        group = zarr.open_group(self.path, mode="r+")
        _add(
            group,
            "time",
            days.astype(np.int64),
            ("time",),
            {"units": _EPOCH, "calendar": "proleptic_gregorian"},
        )
        for name, coordinate in self.first.coords.items():
            if name != "time" and "time" not in coordinate.dims:
                values = coordinate.values
                _add(
                    group,
                    str(name),
                    values if values.dtype.kind in "iuf" else values.astype(np.dtypes.StringDType()),
                    coordinate.dims,
                    coordinate.attrs,
                )
        fingerprint = _seal(self.digest, self.first, days)
        size = sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())
        group.attrs.update(
            {
                **attrs,
                "Conventions": "CF-1.11",
                "variable": str(self.first.name),
                "first_day": str(days[0]),
                "last_day": str(days[-1]),
                "size": size,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "version": _version(),
                "fingerprint": fingerprint,
            }
        )

    def _begin(self, array: xr.DataArray) -> None:
        """Create the zarr, with chunks for windows of days."""
        day_bytes = max(1, int(np.prod(array.shape[1:])) * 4)
        chunk = int(np.clip(_CHUNK_BYTES // day_bytes, 1, 512))
        self.shard = chunk * int(np.clip(_SHARD_BYTES // (chunk * day_bytes), 1, _MAX_CHUNKS_PER_SHARD))
        auxiliary = [str(name) for name in array.coords if name not in array.dims]
        self.array = zarr.open_group(self.path, mode="w", zarr_format=3).create_array(
            str(array.name),
            shape=(0, *array.shape[1:]),
            chunks=(chunk, *array.shape[1:]),
            shards=(self.shard, *array.shape[1:]),
            dtype="float32",
            fill_value=np.nan,  # an unwritten day must not look like zeros
            dimension_names=list(map(str, array.dims)),
            attributes={**_json(array.attrs), **({"coordinates": " ".join(auxiliary)} if auxiliary else {})},
        )
        self.first = array.isel(time=slice(0, 1))

    def _check_same(self, array: xr.DataArray) -> None:
        """Every part lies on the grid of the first."""
        first = self.first
        assert first is not None
        same = array.name == first.name and array.dims == first.dims and array.shape[1:] == first.shape[1:]
        same = same and array.attrs.get("units") == first.attrs.get("units")
        same = same and all(
            name in array.coords and np.array_equal(array[name].values, first[name].values)
            for name in first.coords
            if name != "time"
        )
        if not same:
            raise ValueError(
                f"a part {array.name!r} {dict(array.sizes)} [{array.attrs.get('units')}] from "
                f"{array.time.values[0]} isn't on the grid "
                f"of the first, {first.name!r} {dict(first.sizes)} [{first.attrs.get('units')}]; align the "
                "parts before."
            )

    def _flush(self, *, whole: bool) -> None:
        """Write pending days, whole shards only as long as more may come."""
        count = sum(block.shape[0] for block in self.pending)
        ready = count // self.shard * self.shard if whole else count
        if not ready:
            return
        block = np.concatenate(self.pending)
        self.digest.update(block[:ready].tobytes())
        self.array.resize((self.written + ready, *block.shape[1:]))
        self.array[self.written : self.written + ready] = block[:ready]
        self.written += ready
        self.pending = [block[ready:]] if ready < count else []


def write_manifest(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """List the stores of a folder in its `manifest.json`, from what each says of itself.

    Args:
        folder: Where the stores lie.

    Returns:
        What was written: path, url, date, size [bytes], sha256 and version of each store.
    """
    rows = []
    for path in sorted(Path(folder).glob("[!.]*.zarr")):  # a dot: not finished
        try:
            attrs = dict(zarr.open_group(path, mode="r").attrs)
        except (OSError, ValueError):
            continue  # another program's zarr, such as an older format; not ours to list
        if "fingerprint" in attrs:
            row = {
                "path": path.name,
                "url": attrs.get("url"),
                "date": attrs["created"],
                "size": attrs["size"],
            }
            rows.append(row | {"sha256": attrs["fingerprint"], "version": attrs["version"]})
    write_text(Path(folder) / "manifest.json", json.dumps(rows, indent=2) + "\n")
    return rows


def _clean(values: np.ndarray) -> np.ndarray:
    """float32 in C order with one kind of NaN, so that equal fields have equal bytes."""
    block = np.array(values, dtype=np.float32, order="C")
    block[np.isnan(block)] = np.nan
    return block


def _seal(digest: Any, field: xr.DataArray, days: np.ndarray) -> str:
    """Finish the hash of the data with name, unit, days and coordinates."""
    seal = digest.copy()
    seal.update(f"{field.name}|{field.dims}|{field.attrs.get('units')}".encode())
    seal.update(days.astype(np.int64).tobytes())
    for name in sorted(map(str, field.coords)):
        if name != "time":
            values = field[name].values
            seal.update(name.encode())
            seal.update(
                values.astype(np.float64).tobytes()
                if values.dtype.kind in "iuf"
                else "|".join(map(str, values.ravel())).encode()
            )
    return str(seal.hexdigest())


def _add(group: Any, name: str, values: np.ndarray, dims: tuple[Any, ...], attrs: Mapping[Any, Any]) -> None:
    """Add one coordinate to a zarr group."""
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=tuple(max(1, n) for n in values.shape),
        dimension_names=list(map(str, dims)),
    )
    array[...] = values
    array.attrs.update(_json(attrs))


def _plain(values: np.ndarray) -> np.ndarray:
    """Texts in the type that netCDF and pandas know."""
    return values if values.dtype.kind in "iuf" else np.array(values.tolist(), dtype=str)


def _json(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON holds them."""
    return {
        str(key): value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for key, value in attrs.items()
    }


def _version() -> str:
    """Version of the package, where it's installed."""
    try:
        return version("slams")
    except PackageNotFoundError:
        return "source tree"
