"""Whether data on disk are what was written: checksums, headers, axes, times and ranges."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from slams.core.errors import InvalidValueError
from slams.core.files import sha256_of
from slams.data.archives import REGISTRY
from slams.data.files.stations import quality, read_table
from slams.data.files.units import same
from slams.data.status import changed, data_folders, store_paths
from slams.data.store.manifest import Row, read_manifest
from slams.data.store.store import FieldStore
from slams.data.store.writer import running_hash, seal

Progress = Callable[[str], None]
_DAYS = 32
_AGAIN = "remove it and process the files again"


def verify(folder: Path, progress: Progress = lambda name: None) -> tuple[int, list[str]]:
    """Read everything in a folder and its subfolders, and list what is wrong.

    Args:
        folder: Such as `data`.
        progress: Called with the path that is being read.

    Returns:
        Number of stores and files that were read, and the faults, a sentence each.

    Raises:
        FileNotFoundError: If the folder isn't there.
        ValueError: If it holds nothing to verify.
    """
    faults: list[str] = []
    count = 0
    for path in store_paths(folder):
        progress(str(path))
        faults += store_faults(path)
        count += 1
    for each in data_folders(folder):
        try:
            manifest = read_manifest(each)
        except ValueError as error:
            faults.append(str(error))
            continue
        for table in sorted(each.glob("observations.*")):
            progress(str(table))
            faults += table_faults(table)
            count += 1
        for row in manifest["files"]:
            progress(str(each / row["path"]))
            faults += file_faults(each, row)
            count += 1
        faults += [
            f"{each / row['path']} is in the manifest but not there; process its files again."
            for row in manifest["stores"]
            if not (each / row["path"]).is_dir()
        ]
    if not count and not faults:
        raise InvalidValueError(
            f"{folder} holds nothing that this package wrote; name the folder that holds the data."
        )
    return count, faults


def file_faults(folder: Path, row: Row) -> list[str]:
    """Faults of a fetched file: size, checksum, header.

    Args:
        folder: Folder of the manifest.
        row: Its row.

    Returns:
        Sentences.
    """
    path = folder / row["path"]
    fault = changed(folder, row)
    if fault:
        return [fault]
    if row.get("sha256") and sha256_of(path) != row["sha256"]:
        return [
            f"{path} isn't the file that was fetched (its checksum differs); remove it and fetch it again."
        ]
    if path.suffix not in (".nc", ".zarr"):
        return []  # packed, or a table: its content was tested when it was unpacked or read
    causes = []
    for archive in REGISTRY.values():
        try:
            archive.check(path)
            return []
        except (ValueError, OSError, KeyError) as error:
            causes.append(str(error))
    return [f"{path} has no header of a known source: {causes[0]}"]


def table_faults(path: Path) -> list[str]:
    """Faults of a table of observations: header, positions, repeated reports, implausible values that pass.

    Args:
        path: The table.

    Returns:
        Sentences.
    """
    again = "remove it and run `slams data stations` again"
    try:
        table = read_table(path)
    except (ValueError, OSError, KeyError) as error:
        return [f"{path} can't be read ({error}); {again}."]
    faults = []
    repeated = int(table.duplicated(["time", "station", "level", "variable"]).sum())
    if repeated:
        faults.append(f"{path} has {repeated} reports twice; {again}.")
    if (table["lat"].abs() > 90.001).any() or (table["lon"].abs() > 360.001).any():
        faults.append(f"{path} has stations on no globe; {again}.")
    lowered = quality(table)["qc"].to_numpy() > table["qc"].to_numpy()
    if lowered.any():
        where = table.iloc[int(lowered.argmax())]
        faults.append(
            f"{path} calls {int(lowered.sum())} values better than they are, the first {where['variable']} "
            f"{where['value']:g} at {where['station']}, {where['time']}; {again}."
        )
    return faults


def store_faults(path: Path) -> list[str]:
    """Faults of a store.

    Args:
        path: The store.

    Returns:
        Sentences.
    """
    try:
        store = FieldStore(path)
        first = store.read(store.dates[:1])
    except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
        return [str(error) if str(path) in str(error) else f"{path} can't be read ({error}); {_AGAIN}."]
    faults: list[str] = []
    try:
        for found in (
            _header(path),
            _times(store),
            _axes(store, first),
            _units(store),
            _content(store, first),
        ):
            faults += found
    except (ValueError, OSError, RuntimeError) as error:  # a header or chunk that can't be decoded
        faults.append(f"{path} can't be read to its end ({error}); {_AGAIN}.")
    return faults


def _header(path: Path) -> Iterator[str]:
    """The header of every array, beside the copy in the root that readers see."""
    root = json.loads((path / "zarr.json").read_text(encoding="utf-8"))
    members: dict[str, Any] = (root.get("consolidated_metadata") or {}).get("metadata", {})
    for name, seen in members.items():
        file = path / name / "zarr.json"
        own = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
        if own is None or _without_nothing(own) != _without_nothing(seen):
            yield (
                f"{path}: the header of {name!r} isn't the one in the store's root; process its files again, which mends "
                "what a kill left, or remove it before."
            )


def _without_nothing(header: dict[str, Any]) -> dict[str, Any]:
    """A header without empty keys, which versions of zarr write or leave out."""
    return {key: value for key, value in header.items() if value not in (None, [], {})}


def _times(store: FieldStore) -> Iterator[str]:
    steps = np.diff(store.dates).astype(int)
    if (steps == 0).any():
        day = store.dates[int(np.flatnonzero(steps == 0)[0])]
        yield f"{store.path} has {int((steps == 0).sum())} days twice, the first is {day}; {_AGAIN}."
    if (steps < 0).any():
        day = store.dates[int(np.flatnonzero(steps < 0)[0]) + 1]
        yield f"{store.path}: days don't rise, {day} follows a later one; {_AGAIN}."
    if store.bounds is None:
        return
    if len(store.bounds) != store.dates.size or (store.bounds[:, 1] < store.bounds[:, 0]).any():
        yield f"{store.path}: time_bnds doesn't hold a start and a later end for every day; {_AGAIN}."


def _axes(store: FieldStore, first: Any) -> Iterator[str]:
    wanted = {"lat": ("north to south", -1), "lon": ("west to east", 1), "level": ("top to bottom", 1)}
    for name, (direction, sign) in wanted.items():
        if name not in first.dims:
            continue
        values = first[name].values.astype(float)
        if values.size > 1 and not (sign * np.diff(values) > 0).all():
            yield f"{store.path}: {name} runs from {values[0]:g} to {values[-1]:g}, expected {direction}; {_AGAIN}."
    lat, lon = first["lat"].values.astype(float), first["lon"].values.astype(float)
    if np.abs(lat).max() > 90.001 or lon.max() - lon.min() > 360.001:
        yield f"{store.path}: lat {lat.min():g} to {lat.max():g}, lon {lon.min():g} to {lon.max():g} is on no globe."


def _units(store: FieldStore) -> Iterator[str]:
    quantity = _quantity(store.variable)
    if quantity is not None and not same(store.units, quantity.units):
        yield (
            f"{store.path} is in {store.units!r}, expected {quantity.units!r} of {store.variable!r}; correct the unit if "
            f"only the header is wrong, otherwise {_AGAIN}."
        )


def _quantity(variable: str) -> Any:
    for archive in REGISTRY.values():
        for quantity in getattr(archive, "quantities", ()):
            if quantity.name == variable:
                return quantity
    return None


def _content(store: FieldStore, first: Any) -> Iterator[str]:
    """Every value: fingerprint, range, days without a value."""
    quantity = _quantity(store.variable)
    low, high = quantity.valid_range if quantity is not None else (-np.inf, np.inf)
    state, empty = b"", []
    lowest, highest = np.inf, -np.inf
    for start in range(0, store.dates.size, _DAYS):
        block = np.ascontiguousarray(store.read(store.dates[start : start + _DAYS]).values)
        state = running_hash(state, block)
        seen = np.isfinite(block)
        empty += [start + i for i in np.flatnonzero(~seen.reshape(len(block), -1).any(1))]
        if np.isinf(block).any():
            yield f"{store.path} holds infinite values near {store.dates[start]}; {_AGAIN}."
        if seen.any():
            lowest, highest = min(lowest, float(block[seen].min())), max(highest, float(block[seen].max()))
    if seal(state, first, store.dates) != store.fingerprint:
        yield f"{store.path} has changed since it was written (its checksum differs); {_AGAIN}."
    if empty:
        yield f"{store.path} has {len(empty)} days without a value, the first is {store.dates[empty[0]]}; {_AGAIN}."
    if lowest < low or highest > high:
        yield (
            f"{store.path} runs from {lowest:g} to {highest:g} {store.units}, expected {low:g} to {high:g}; check the "
            f"unit of its files, then {_AGAIN}."
        )
