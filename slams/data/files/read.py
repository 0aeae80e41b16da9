"""Reading of a modality's files to one labelled array, joined by date."""

import difflib
import glob
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from slams.core.errors import DataWarning, InvalidValueError, MissingFileError
from slams.core.files import atomic
from slams.data.archives import ARCHIVES
from slams.data.files import units
from slams.data.files.canonical import (
    aliases,
    calendar_days,
    canonical,
    find_variable,
    refuse_long_periods,
)
from slams.data.files.convention import Convention
from slams.data.files.grids import align, all_stations, describe
from slams.data.files.gross_errors import LeftOut, without_impossible, without_markers
from slams.data.files.modality import Modality
from slams.data.files.opening import open_dataset, reading, refuse_absent_chunks

__all__ = ["VERSION", "align", "describe", "find", "read", "write_netcdf"]

VERSION = 3  # of what files are read as: stores made by an earlier one are made again


def read(
    modality: Modality,
    dates: np.ndarray | None = None,
    *,
    allow_empty_days: bool = False,
    trained: str | None = None,
) -> xr.DataArray:
    """The field of a modality in physical units, before its transform.

    Time stamps keep their calendar day and lose the hour. A day of a calendar without leap years keeps its
    label, so that 29 February is a gap there; a day that doesn't exist (30 February) is refused.

    Args:
        modality: Modality to read.
        dates: Days wanted (anything that becomes datetime64[D]); those that the files hold are returned. None
            reads all.
        allow_empty_days: Accept days without any value, as when no station reported.
        trained: Unit of the training, to which new files are converted; empty if it stated none. A file without a
            unit is taken to have it, with a DataWarning, unless `modality.units` asks for a conversion.

    Returns:
        float32, (time[, level], lat, lon) with lat descending and lon ascending in the file's own convention,
        or (time[, level], station) with coordinates lat and lon; level in hPa; NaN where missing; attributes
        source_name, units, and left_out where values were left out: see `slams.data.files.gross_errors`.

    Raises:
        FileNotFoundError: If a path or glob matches nothing; similar names are listed.
        ValueError: If variable, levels or units aren't there, times are unsorted or repeated, files disagree
            on their grid, a day is empty, or no day of `dates` is there.
    """
    paths = find(modality.files)
    wanted = None if dates is None else np.unique(np.asarray(dates, dtype="datetime64[D]"))
    parts, held, left = [], [], LeftOut()
    for path in paths:
        part, days = _read_file(path, modality, wanted, trained, left)
        held.append(days)
        if part.sizes["time"]:
            parts.append((path, part))
    held_days = np.concatenate(held)
    refuse_long_periods(held_days, f"modality {modality.name!r} in {paths[0]} and the files after it")
    if not parts:
        first, last = (held_days.min(), held_days.max()) if held_days.size else ("nothing", "nothing")
        asked = "at least one" if wanted is None or not wanted.size else f"{wanted[0]} to {wanted[-1]}"
        raise InvalidValueError(
            f"modality {modality.name!r} has no day in common with the dates asked for: its files hold "
            f"{first} to {last}, asked were {asked}; change the dates or add files."
        )
    array = _join(parts, modality)
    if text := left.text(modality.name):
        warnings.warn(f"{text}.", DataWarning, stacklevel=2)
        array.attrs["left_out"] = text
    if not allow_empty_days:
        _refuse_empty_days(array, modality, paths)
    return array


def days_of(modality: Modality) -> np.ndarray:
    """Days that the files of a modality hold, rising, from their headers alone.

    Raises:
        FileNotFoundError: If a path or glob matches nothing; similar names are listed.
        ValueError: If a file can't be opened, lacks the variable, its times, or chunks that would read as numbers.
    """
    found = []
    for path in find(modality.files):
        subject = f"modality {modality.name!r}, variable {modality.variable!r} in {path}"
        with open_dataset(path, ARCHIVES.values()) as dataset:
            names = (modality.variable, *aliases(modality.variable))
            name = find_variable(dataset, names, path, f"modality {modality.name!r}")
            refuse_absent_chunks(path, dataset, name, subject)
            array = canonical(dataset, name, modality.kind, modality.name, subject)
            found.append(calendar_days(array.time, subject))
    return np.unique(np.concatenate(found))


def find(patterns: tuple[str, ...]) -> list[Path]:
    """Files of paths and globs, each once.

    Args:
        patterns: Paths or globs.

    Returns:
        Paths; those of one glob are sorted by name.

    Raises:
        FileNotFoundError: If one matches nothing.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = Path(pattern).expanduser()
        matches = [path] if path.exists() else sorted(map(Path, glob.glob(str(path), recursive=True)))
        if not matches:
            raise MissingFileError(_not_found(path))
        found.update(dict.fromkeys(matches))
    return list(found)


def write_netcdf(
    dataset: xr.Dataset | xr.DataTree | xr.DataArray,
    path: str | os.PathLike[str],
    encoding: Mapping[str, Any] | None = None,
) -> Path:
    """Write a netCDF-4 file atomically: a kill, an interrupt or a full disk keeps the earlier file.

    Args:
        dataset: A dataset, or a tree of them for a file with groups.
        path: The file.
        encoding: Encoding, as in `xarray.Dataset.to_netcdf`.

    Returns:
        The path of the file.

    Raises:
        OSError: If the disk is full.
    """
    target = Path(path).expanduser()
    with atomic(target) as temporary:
        whole = dataset.to_dataset() if isinstance(dataset, xr.DataArray) else dataset
        whole.to_netcdf(temporary, encoding=dict(encoding) if encoding else None, engine="netcdf4")
    return target


def _not_found(path: Path) -> str:
    """Message where nothing matches: the names nearest to it, or the part of the path that exists."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    if folder == path.parent:
        near = difflib.get_close_matches(path.name, names, n=5, cutoff=0.4) or names[:5]
        there = f"the folder holds {', '.join(near)}" if near else "the folder is empty"
    else:
        there = f"the folder {path.parent} doesn't exist either, {folder} does"
    return f"no file matches {path}: {there}. Correct the path, or write the file first."


def _read_file(
    path: Path, modality: Modality, wanted: np.ndarray | None, trained: str | None, left: LeftOut
) -> tuple[xr.DataArray, np.ndarray]:
    """The requested part of one file in canonical form, and all days of the file."""
    subject = f"modality {modality.name!r}, variable {modality.variable!r} in {path}"
    with open_dataset(path, ARCHIVES.values()) as dataset:
        names = (modality.variable, *aliases(modality.variable))
        name = find_variable(dataset, names, path, f"modality {modality.name!r}")
        convention = _convention(dataset, name, modality)
        if absent := refuse_absent_chunks(path, dataset, name, subject):
            warnings.warn(f"{absent}.", DataWarning, stacklevel=3)
        array = canonical(dataset, name, modality.kind, modality.name, subject)
        days = calendar_days(array.time, subject)
        backwards = np.flatnonzero(np.diff(days) < np.timedelta64(0))
        if backwards.size:
            first = int(backwards[0])
            raise InvalidValueError(
                f"{subject}: times aren't sorted, {days[first + 1]} follows {days[first]} ({backwards.size} "
                "such steps); sort the file, e.g. with xarray's dataset.sortby('time')."
            )
        if wanted is not None:
            array = array.isel(time=np.flatnonzero(np.isin(days, wanted)))
        with reading(subject):
            array = _select_levels(array, modality, subject).load()
        source = dataset[name]
    values = array.values.astype(np.float64) if array.dtype.kind in "iu" else array.values
    if np.isposinf(values).any() or np.isneginf(values).any():
        raise InvalidValueError(
            f"{subject} holds infinite values; mark missing values as NaN and write the file again."
        )
    marked = np.abs(values) >= units.IMPOSSIBLE
    if convention is not None and convention.negative_is_missing:
        marked |= values < 0
    array = without_markers(array.copy(data=np.where(marked, np.nan, values)), source, left)
    if convention is not None and array.sizes["time"]:
        array = convention.daily(convention.decode(array, days[-1]))
    array = array.assign_coords(time=calendar_days(array.time, subject))
    _refuse_repeated_days(array.time.values, [path] * array.sizes["time"], modality)
    array = _convert(array, modality, trained, subject).astype(np.float32)
    if modality.gross_errors:
        array = without_impossible(array, subject, left, amount=modality.transformed.lower is not None)
    return array, days


def _convention(dataset: xr.Dataset, name: str, modality: Modality) -> Convention | None:
    """The archive whose conventions a file follows."""
    if modality.source != "auto":
        return ARCHIVES[modality.source]
    return next((archive for archive in ARCHIVES.values() if archive.recognises(dataset, name)), None)


def _select_levels(array: xr.DataArray, modality: Modality, subject: str) -> xr.DataArray:
    """The requested levels, by label."""
    if modality.levels is None:
        return array
    if "level" not in array.dims:
        raise InvalidValueError(
            f"{subject} has no level, but levels {modality.levels} were asked for; leave `levels` out."
        )
    available = array.level.values
    positions = []
    for level in modality.levels:
        nearest = int(np.abs(available - level).argmin())
        if abs(available[nearest] - level) > 1e-3 * level:
            raise InvalidValueError(
                f"{subject} has no level {level:g} hPa; the nearest is {available[nearest]:g}, available are "
                f"{[float(f'{value:g}') for value in available]}."
            )
        positions.append(nearest)
    return array.isel(level=positions).assign_coords(level=list(modality.levels))


def _convert(array: xr.DataArray, modality: Modality, trained: str | None, subject: str) -> xr.DataArray:
    """Values in the unit of the training, else in the requested one."""
    have = array.attrs.get("units")
    want = modality.units if units.is_missing(trained) else trained
    if trained is not None and modality.units is None and units.is_missing(have) != units.is_missing(trained):
        stated = "the file states no unit" if units.is_missing(have) else "the training stated no unit"
        warnings.warn(
            f"modality {modality.name!r}: {stated}, so its values are taken as they are, in {want or have!r}; write the "
            "attribute `units`.",
            DataWarning,
            stacklevel=2,
        )
        return array.assign_attrs(array.attrs | {"units": trained})
    if not want or want == have:
        return array
    scale, offset = units.conversion(have, want, subject, difference=units.is_difference(array.attrs))
    if units.assumes_daily_total(str(have), want):
        warnings.warn(
            f"modality {modality.name!r}: {have!r} becomes {want!r} as the total of a day; where a record is that of "
            "fewer hours, add up the records of each day first.",
            DataWarning,
            stacklevel=2,
        )
    converted = array if (scale, offset) == (1.0, 0.0) else array.astype(np.float64) * scale + offset
    return converted.assign_attrs(array.attrs | {"units": want})


def _join(parts: list[tuple[Path, xr.DataArray]], modality: Modality) -> xr.DataArray:
    """Files one after the other in time, all on the grid of the first."""
    parts.sort(key=lambda part: part[1].time.values[0])
    _, first = parts[0]
    stations = "station" in first.dims and all("station" in part.dims for _, part in parts) and len(parts) > 1
    reference = all_stations([part for _, part in parts]) if stations else first
    aligned = [align(first, reference) if stations else first]
    for path, part in parts[1:]:
        fixed = [dim for dim in first.dims if dim not in ("time", "station") and dim in part.dims]
        same = all(part.sizes[dim] == first.sizes[dim] for dim in fixed)
        alike = units.same(part.attrs["units"], first.attrs["units"])
        if part.dims != first.dims or not same or not alike:
            raise InvalidValueError(
                f"modality {modality.name!r}: {path} holds {describe(part)} {dict(part.sizes)} in "
                f"{part.attrs['units']!r}, but {parts[0][0]} holds {describe(first)} {dict(first.sizes)} in "
                f"{first.attrs['units']!r}; give them to two modalities, or regrid one."
            )
        aligned.append(align(part, reference if stations else first))
    joined = (
        aligned[0]
        if len(aligned) == 1
        else xr.concat(aligned, "time", coords="minimal", compat="override", join="override")
    )
    order = np.argsort(joined.time.values, kind="stable")
    owners = [path for path, part in parts for _ in range(part.sizes["time"])]
    _refuse_repeated_days(joined.time.values[order], [owners[i] for i in order], modality)
    return joined if (order == np.arange(order.size)).all() else joined.isel(time=order)


def _refuse_repeated_days(times: np.ndarray, owners: list[Path], modality: Modality) -> None:
    """Check for repeated days, due to several hours a day or overlapping files."""
    days = times.astype("datetime64[D]")
    repeated = np.flatnonzero(np.diff(days) == np.timedelta64(0))
    if not repeated.size:
        return
    one, two = owners[repeated[0]], owners[repeated[0] + 1]
    where = f"in {one}" if one == two else f"in {one} and {two}"
    names = ", ".join(str(day) for day in days[repeated[:3]])
    raise InvalidValueError(
        f"modality {modality.name!r}: {repeated.size} days come more than once "
        f"({names}{', ...' if repeated.size > 3 else ''}) {where}; average to one field a day (xarray: "
        "resample(time='1D').mean()), or name files that don't overlap."
    )


def _refuse_empty_days(array: xr.DataArray, modality: Modality, paths: list[Path]) -> None:
    """Check for days (or levels of a day) without any value."""
    space = [dim for dim in array.dims if dim not in ("time", "level")]
    empty = array.isnull().all(space)
    if "level" in empty.dims:
        empty = empty.any("level")
    days = array.time.values[empty.values].astype("datetime64[D]")
    if days.size:
        names = ", ".join(map(str, days[:5])) + (", ..." if days.size > 5 else "")
        raise InvalidValueError(
            f"modality {modality.name!r} has {days.size} days without a single value ({names}), in "
            f"{', '.join(map(str, paths[:3]))}{', ...' if len(paths) > 3 else ''}"
            f"{' (' + array.attrs['left_out'] + ')' if 'left_out' in array.attrs else ''}; leave these days out of "
            "the dates, mend the file, or read it with allow_empty_days=True if nothing was seen then."
        )
