"""Writing a store: whole shards as days come, and the step that makes new days part of it."""

import hashlib
import itertools
import json
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from filelock import FileLock

from slams.core.errors import InvalidValueError
from slams.core.files import flush, remove_leftovers, replace, write_text
from slams.data.safety import contained
from slams.data.store.manifest import processing_version

_CHUNK_BYTES = 1 << 18  # a window of days costs a few chunks, whatever the size of a field
_SHARD_BYTES = 1 << 25
_MAX_CHUNKS_PER_SHARD = 32  # about a dozen files a year for a global field
_TIME_CHUNK = 4096  # days: fixed, so that an append leaves the chunks of old days as they are
_EPOCH = np.datetime64("1970-01-01", "D")
_UNITS = "days since 1970-01-01"
_ROOT = "zarr.json"


@dataclass(frozen=True)
class Standing:
    """Contents of a store before an append.

    Args:
        first: (1, ...) its first day, with all coordinates and attributes.
        days: All its days (T).
        bounds: Start and end of each (T, 2), None if it keeps none.
        shard: Days of a shard.
        tail: The days after the last whole shard (t, ...); their shard is written anew.
        chain: State of the hash over all days.
    """

    first: xr.DataArray
    days: np.ndarray
    bounds: np.ndarray | None
    shard: int
    tail: np.ndarray
    chain: bytes


class Writer:
    """Writes days in order of time to a new zarr, a shard at a time.

    Args:
        path: Folder of the new zarr. With `standing` it holds only what an append changes; see `publish`.
        standing: Contents that the days are appended to.
    """

    def __init__(self, path: Path, standing: Standing | None = None) -> None:
        self.path = path
        self.first: xr.DataArray | None = None
        self.array: Any = None
        self.days: list[np.ndarray] = []
        self.bounds: list[np.ndarray] | None = None
        self.pending: list[np.ndarray] = []
        self.written, self.shard, self.chain = 0, 1, b""
        if standing is not None:
            self._begin(standing.first, standing.shard)
            self.days, self.chain = [standing.days], standing.chain
            self.bounds = None if standing.bounds is None else [standing.bounds]
            self.pending = [standing.tail]
            self.written = standing.days.size - len(standing.tail)

    def append(self, part: xr.DataArray | xr.Dataset) -> None:
        """Add the days of one array, or of a dataset of it and `time_bnds`.

        Args:
            part: (time, ...), days later than all before.

        Raises:
            ValueError: If it has no name or time, times don't rise, or the grid isn't that of the first.
        """
        array, bounds = _split(part)
        if array.name is None or not array.dims or array.dims[0] != "time":
            raise InvalidValueError(
                f"expected a named array with `time` first, got {array.name!r} with {array.dims}."
            )
        days = array.time.values.astype("datetime64[D]")
        known = np.concatenate([*self.days[-1:], days])
        if (np.diff(known) <= np.timedelta64(0)).any():
            wrong = int(np.flatnonzero(np.diff(known) <= np.timedelta64(0))[0])
            raise InvalidValueError(
                f"times of {array.name!r} must rise strictly, but {known[wrong + 1]} follows "
                f"{known[wrong]}; sort them."
            )
        if not days.size:
            return
        if self.first is None:
            self._begin(array)
            self.bounds = None if bounds is None else []
        self._check_same(array)
        if (bounds is None) != (self.bounds is None):
            raise InvalidValueError(
                f"a part of {array.name!r} from {days[0]} has {'no' if bounds is None else 'some'} time "
                "bounds, unlike those before; give all parts bounds, or none."
            )
        self.days.append(days)
        if self.bounds is not None and bounds is not None:
            self.bounds.append(bounds)
        for start in range(0, days.size, self.shard):
            block = _clean(array.isel(time=slice(start, start + self.shard)).values)
            self.chain = running_hash(self.chain, block)
            self.pending.append(block)
            self._flush(whole=True)

    def finish(self, attrs: Mapping[str, Any]) -> None:
        """Write what is pending, the coordinates, and last the root, without which nothing is a store.

        Args:
            attrs: Attributes of the store.

        Raises:
            ValueError: If no array had a day.
        """
        if self.first is None:
            raise InvalidValueError(f"there is nothing to write to {self.path}: no array had a day.")
        self._flush(whole=False)
        days = np.concatenate(self.days)
        group = zarr.open_group(self.path, mode="r+")
        stamps: dict[str, Any] = {"units": _UNITS, "calendar": "proleptic_gregorian", "standard_name": "time"}
        if self.bounds is not None:
            hours = (np.concatenate(self.bounds).astype("datetime64[s]") - _EPOCH) / np.timedelta64(1, "s")
            _add(group, "time_bnds", hours / 86400.0, ("time", "bnds"), {}, (_TIME_CHUNK, 2))
            stamps["bounds"] = "time_bnds"
        _add(group, "time", days.astype(np.int64), ("time",), stamps, (_TIME_CHUNK,))
        for name, coordinate in self.first.coords.items():
            if name != "time" and "time" not in coordinate.dims:
                values = coordinate.values
                plain = values if values.dtype.kind in "iuf" else values.astype(np.dtypes.StringDType())
                _add(group, str(name), plain, coordinate.dims, _described(str(name), coordinate.attrs))
        group.update_attributes(
            {
                **_json(attrs),
                "Conventions": "CF-1.11",
                "variable": str(self.first.name),
                "first_day": str(days[0]),
                "last_day": str(days[-1]),
                "version": processing_version(),
                "chain": self.chain.hex(),
                "fingerprint": seal(self.chain, self.first, days),
            }
        )
        _consolidate(self.path)

    def _begin(self, array: xr.DataArray, shard: int | None = None) -> None:
        """Create the zarr, with chunks for windows of days."""
        day_bytes = max(1, int(np.prod(array.shape[1:])) * 4)
        chunk = int(np.clip(_CHUNK_BYTES // day_bytes, 1, 512))
        self.shard = shard or chunk * int(
            np.clip(_SHARD_BYTES // (chunk * day_bytes), 1, _MAX_CHUNKS_PER_SHARD)
        )
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
            raise InvalidValueError(
                f"a part {array.name!r} {dict(array.sizes)} [{array.attrs.get('units')}] from "
                f"{array.time.values[0]} isn't on the grid of the first, {first.name!r} {dict(first.sizes)} "
                f"[{first.attrs.get('units')}]; align the parts before."
            )

    def _flush(self, *, whole: bool) -> None:
        """Write pending days, whole shards only as long as more may come."""
        count = sum(block.shape[0] for block in self.pending)
        ready = count // self.shard * self.shard if whole else count
        if not ready:
            return
        block = np.concatenate(self.pending)
        self.array.resize((self.written + ready, *block.shape[1:]))
        self.array[self.written : self.written + ready] = block[:ready]
        self.written += ready
        self.pending = [block[ready:].copy()] if ready < count else []


def publish(new: Path, store: Path) -> None:
    """Make what an append has written part of a store.

    Shards move in first: those of new days are beyond the shape in the old root, and a last shard
    that was partial holds its old days unchanged. Then the root, which carries the shapes of all arrays, is
    replaced in one step: before it, readers see the old store, after it the new one.

    Args:
        new: Folder of the `Writer`.
        store: The store.
    """
    flush(new)
    for file in sorted(file for file in new.rglob("*") if file.is_file() and file.name != _ROOT):
        target = store / file.relative_to(new)
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(file, target)
    replace(new / _ROOT, store / _ROOT)
    shutil.rmtree(new)
    repair(store)


def repair(store: Path) -> None:
    """Bring a store in line with its root, which a kill in the middle of an append may have left ahead or behind.

    Args:
        store: The store.
    """
    remove_leftovers(store)
    shutil.rmtree(scratch(store), ignore_errors=True)
    root = json.loads((store / _ROOT).read_text(encoding="utf-8"))
    members = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for name, metadata in members.items():
        text = _text(metadata)
        described = contained(store, f"{name}/{_ROOT}")  # the root may have been written elsewhere
        if described.read_text(encoding="utf-8") != text:
            write_text(described, text)
        length, step = metadata["shape"][0], metadata["chunk_grid"]["configuration"]["chunk_shape"][0]
        for entry in (store / name / "c").glob("*"):
            if entry.name.isdigit() and int(entry.name) * step >= length:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for left in itertools.chain(store.rglob("*.partial"), store.rglob(".*.partial.*")):
        left.unlink(missing_ok=True)


def locked(store: Path) -> FileLock:
    """Hold a store for writing, alone among threads and processes; a kill releases it.

    Args:
        store: The store.

    Returns:
        A context manager, which the thread that holds the store may enter again.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(store.parent / f".{store.stem}.lock", is_singleton=True)


def scratch(store: Path) -> Path:
    """Temporary folder of an append: beside the store, since a rename across file systems isn't atomic.

    Args:
        store: The store.

    Returns:
        A path whose dot keeps it out of globs.
    """
    return store.with_name(f".{store.stem}.append{store.suffix}")


def running_hash(state: bytes, block: np.ndarray) -> bytes:
    """Hash over days, h_k = sha256(h_{k-1} | day k): it can be continued years later from 32 bytes.

    Args:
        state: h before the block, empty at the start.
        block: (days, ...), float32 in C order.

    Returns:
        h after the block.
    """
    for day in block:
        digest = hashlib.sha256(state)
        digest.update(np.ascontiguousarray(day).data)
        state = digest.digest()
    return state


def seal(state: bytes, field: xr.DataArray, days: np.ndarray) -> str:
    """Finish the hash of the data with name, unit, days and coordinates.

    Args:
        state: The chain over all days.
        field: Any days of the field, for all but the days.
        days: All days.

    Returns:
        The fingerprint.
    """
    digest = hashlib.sha256(state)
    digest.update(f"{field.name}|{field.dims}|{field.attrs.get('units')}".encode())
    digest.update(days.astype(np.int64).tobytes())
    for name in sorted(map(str, field.coords)):
        if name != "time":
            values = field[name].values
            numbers = values.dtype.kind in "iuf"
            digest.update(name.encode())
            digest.update(
                values.astype(np.float64).tobytes()
                if numbers
                else "|".join(map(str, values.ravel())).encode()
            )
    return digest.hexdigest()


def _split(part: xr.DataArray | xr.Dataset) -> tuple[xr.DataArray, np.ndarray | None]:
    """The field and its time bounds."""
    if isinstance(part, xr.DataArray):
        return part, None
    names = [name for name in part.data_vars if name != "time_bnds"]
    if len(names) != 1:
        raise InvalidValueError(
            f"expected one field and perhaps time_bnds, got {sorted(map(str, part.data_vars))}."
        )
    return part[names[0]], part["time_bnds"].values if "time_bnds" in part else None


def _clean(values: np.ndarray) -> np.ndarray:
    """float32 in C order with one kind of NaN, so that equal fields have equal bytes."""
    block = np.array(values, dtype=np.float32, order="C")
    block[np.isnan(block)] = np.nan
    return block


def _add(
    group: Any,
    name: str,
    values: np.ndarray,
    dims: tuple[Any, ...],
    attrs: Mapping[Any, Any],
    chunks: tuple[int, ...] | None = None,
) -> None:
    """Add one coordinate to a zarr group."""
    array = group.create_array(
        name,
        shape=values.shape,
        dtype=values.dtype,
        chunks=chunks or tuple(max(1, n) for n in values.shape),
        dimension_names=list(map(str, dims)),
        attributes=_json(attrs),
    )
    array[...] = values


def _described(name: str, attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Default CF attributes of the usual coordinates."""
    usual = {
        "lat": {"units": "degrees_north", "standard_name": "latitude"},
        "lon": {"units": "degrees_east", "standard_name": "longitude"},
        "level": {"units": "hPa", "standard_name": "air_pressure", "positive": "down"},
    }
    return {**usual.get(name, {}), **{str(key): value for key, value in attrs.items()}}


def _consolidate(path: Path) -> None:
    """Put the metadata of all arrays into the root, and every file in the order that makes equal bytes."""
    with warnings.catch_warnings():  # zarr 3's own form, which xarray reads as well
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        zarr.consolidate_metadata(path)
    root = json.loads((path / _ROOT).read_text(encoding="utf-8"))
    (path / _ROOT).write_text(_text(root), encoding="utf-8")
    for name, metadata in root["consolidated_metadata"]["metadata"].items():
        (path / name / _ROOT).write_text(_text(metadata), encoding="utf-8")


def _text(metadata: Any) -> str:
    return json.dumps(metadata, indent=1, sort_keys=True) + "\n"


def _json(attrs: Mapping[Any, Any]) -> dict[str, Any]:
    """Attributes as JSON holds them."""
    return {
        str(key): value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for key, value in attrs.items()
    }
