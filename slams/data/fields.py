"""From the files of a modality to one labelled array: the only place that knows how archives differ."""

import difflib
import glob
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr

from slams.core.files import atomic
from slams.data import axes, cpc, era5, olr, units
from slams.data.grids import align, describe
from slams.data.modality import Modality

__all__ = ["align", "describe", "find", "read", "write_netcdf"]

_ARCHIVES: dict[str, ModuleType] = {"era5": era5, "cpc": cpc, "olr": olr}
_IMPOSSIBLE = 1e19  # fill values (1e20, 9.97e36) that no attribute declares are beyond any physical field


def read(
    modality: Modality, dates: np.ndarray | None = None, *, allow_empty_days: bool = False
) -> xr.DataArray:
    """The field of a modality in physical units, before its transform.

    Time stamps keep their calendar day and lose the hour. A day of a calendar without leap years keeps its
    label, so that 29 February is a gap there; a day that doesn't exist (30 February) is refused.

    Args:
        modality: What to read.
        dates: Days wanted (anything that becomes datetime64[D]); those that the files hold are returned. None
            reads all.
        allow_empty_days: Accept days without any value, as when no station reported.

    Returns:
        float32, (time[, level], lat, lon) with lat descending and lon ascending in the file's own convention,
        or (time[, level], station) with coordinates lat and lon; level in hPa; NaN where missing; attributes
        source_name, units.

    Raises:
        FileNotFoundError: If a path or glob matches nothing; similar names are listed.
        ValueError: If variable, levels or units aren't there, times are unsorted or repeated, files disagree
            on their grid, a day is empty, or no day of `dates` is there.
    """
    paths = find(modality.files)
    wanted = None if dates is None else np.unique(np.asarray(dates, dtype="datetime64[D]"))
    parts, spans = [], []
    for path in paths:
        part, span = _read_file(path, modality, wanted)
        spans.append(span)
        if part.sizes["time"]:
            parts.append((path, part))
    if not parts:
        first, last = min(span[0] for span in spans), max(span[1] for span in spans)
        asked = "at least one" if wanted is None or not wanted.size else f"{wanted[0]} to {wanted[-1]}"
        raise ValueError(
            f"modality {modality.name!r} has no day in common with the dates asked for: its files hold "
            f"{first} to {last}, asked "
            f"were {asked}; change the dates or add files."
        )
    array = _join(parts, modality)
    if not allow_empty_days:
        _refuse_empty_days(array, modality, paths)
    return array


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
            raise FileNotFoundError(_not_found(path))
        found.update(dict.fromkeys(matches))
    return list(found)


def write_netcdf(
    dataset: xr.Dataset | xr.DataTree | xr.DataArray,
    path: str | os.PathLike[str],
    encoding: Mapping[str, Any] | None = None,
) -> Path:
    """Write a netCDF-4 file atomically: a kill, an interrupt or a full disk leaves what was there.

    Args:
        dataset: A dataset, or a tree of them for a file with groups.
        path: The file.
        encoding: As of `xarray.Dataset.to_netcdf`.

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
    """What to say when nothing matches: the names nearest to it, or the part of the path that exists."""
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


def _open(path: Path) -> xr.Dataset:
    """Open a file lazily; what can't be opened is named."""
    try:
        if path.is_dir():
            dataset: xr.Dataset = xr.open_zarr(path, chunks=None, consolidated=(path / ".zmetadata").exists())
            return dataset
        return xr.open_dataset(path)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{path} can't be opened ({error}); it may be cut short or of a format xarray has no engine "
            "for: write or fetch it "
            "again, or convert it to netCDF."
        ) from error


def _read_file(
    path: Path, modality: Modality, wanted: np.ndarray | None
) -> tuple[xr.DataArray, tuple[str, str]]:
    """The part of one file that is wanted, canonical, and the first and last day the file holds."""
    subject = f"modality {modality.name!r}, variable {modality.variable!r} in {path}"
    with _open(path) as dataset:
        name = _variable(dataset, modality, path)
        archive = _archive(dataset, name, modality)
        array = _canonical(dataset, name, modality, subject)
        days = _days(array.time, subject)
        backwards = np.flatnonzero(np.diff(days) < np.timedelta64(0))
        if backwards.size:
            first = int(backwards[0])
            raise ValueError(
                f"{subject}: times aren't sorted, {days[first + 1]} follows {days[first]} "
                f"({backwards.size} such steps); sort "
                "the file, e.g. with xarray's dataset.sortby('time')."
            )
        span = (str(days[0]), str(days[-1])) if days.size else ("nothing", "nothing")
        if wanted is not None:
            array = array.isel(time=np.flatnonzero(np.isin(days, wanted)))
        array = _select_levels(array, modality, subject).load()
    values = array.values.astype(np.float64) if array.dtype.kind in "iu" else array.values
    if np.isposinf(values).any() or np.isneginf(values).any():
        raise ValueError(
            f"{subject} holds infinite values; mark missing values as NaN and write the file again."
        )
    array = array.copy(data=np.where(np.abs(values) < _IMPOSSIBLE, values, np.nan))
    if archive is not None and array.sizes["time"]:
        array = archive.decode(array, days[-1])
    array = array.assign_coords(time=_days(array.time, subject))
    _refuse_repeated_days(array.time.values, [path] * array.sizes["time"], modality)
    return _convert(array, modality, subject).astype(np.float32), span


def _variable(dataset: xr.Dataset, modality: Modality, path: Path) -> str:
    """Name of the wanted variable in a file."""
    for name in (modality.variable, *era5.aliases(modality.variable)):
        if name in dataset.variables:
            return name
    available = sorted(map(str, dataset.data_vars))
    near = difflib.get_close_matches(modality.variable, available, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}?" if near else "correct `variable` of the modality."
    raise ValueError(
        f"{path} has no variable {modality.variable!r} (modality {modality.name!r}); it has {available}: "
        f"{hint}"
    )


def _archive(dataset: xr.Dataset, name: str, modality: Modality) -> ModuleType | None:
    """The conventions that apply to a file."""
    if modality.source != "auto":
        return _ARCHIVES[modality.source]
    return next((archive for archive in _ARCHIVES.values() if archive.recognises(dataset, name)), None)


def _canonical(dataset: xr.Dataset, name: str, modality: Modality, subject: str) -> xr.DataArray:
    """Canonical names, order and direction of the axes; still lazy."""
    source = dataset[name]
    if "expver" in source.dims:
        source = era5.join_expver(source)
    extra = [
        dim for dim in source.dims if source.sizes[dim] == 1 and _is_extra(dataset, str(dim), modality.kind)
    ]
    found = axes.recognise(dataset, source.squeeze(extra, drop=True), modality.kind, subject)
    array = source.squeeze(extra).reset_coords(drop=True)
    array = array.drop_vars([str(coord) for coord in array.coords])
    dims = {
        dim: role
        for role, (dim, _) in found.items()
        if dim is not None and (role not in ("lat", "lon") or modality.kind == "grid")
    }
    left = [str(dim) for dim in array.dims if dim not in dims]
    if "time" not in found or found["time"][1] is None or left:
        what = f"dimensions {left} that mean nothing here" if left else "no time"
        raise ValueError(
            f"{subject} has {what} (all: {source.dims}); expected (time[, level], lat, lon) or (time[, "
            "level], station): select "
            "one entry of the others, and give each field its date."
        )
    array = array.rename(dims)
    for role, (dim, variable) in found.items():
        if (
            variable is None
            or role == "station"
            and (variable.ndim != 1 or variable.dtype.kind not in "iufOUST")
        ):
            continue
        values = variable.values
        if role == "level":
            values = np.asarray(values, dtype=float) / (
                100.0 if str(variable.attrs.get("units", "")).lower() == "pa" else 1.0
            )
        if dim is None:
            array = array.expand_dims({role: np.atleast_1d(values)})
        else:
            array = array.assign_coords({role: (dims[dim], values)})
    if np.abs(array.lat.values).max() > 90.001:
        raise ValueError(
            f"{subject}: latitudes reach {np.abs(array.lat.values).max():g}; expected -90 to 90 degrees "
            "north."
        )
    if modality.kind == "grid":
        array = array.isel(
            lat=np.argsort(-array.lat.values, kind="stable"), lon=np.argsort(array.lon.values, kind="stable")
        )
    array = array.transpose("time", *(("level",) if "level" in array.dims else ()), ...)
    if modality.kind == "grid":
        array = array.transpose(..., "lat", "lon")
    array = array.rename(
        modality.name
    ).drop_encoding()  # int16 packing must not come back when the array is written
    kept = {key: str(source.attrs[key]) for key in ("long_name", "standard_name") if key in source.attrs}
    array.attrs = {"source_name": name, "units": str(source.attrs.get("units", "")), **kept}
    return array


def _is_extra(dataset: xr.Dataset, dim: str, kind: str) -> bool:
    """Whether a dimension of length one says nothing; a lone station may lie on a dimension of any name."""
    if kind == "stations":
        return dim in ("number", "expver", "realization", "member", "height", "surface")
    coordinate = dataset.variables.get(dim)
    return axes.role_by_name(dim) is None and (coordinate is None or axes.role_of(dim, coordinate) is None)


def _days(stamps: xr.DataArray, subject: str) -> np.ndarray:
    """Calendar days of time stamps, of any calendar."""
    values = np.atleast_1d(stamps.values)
    if np.issubdtype(values.dtype, np.datetime64):
        if np.isnat(values).any():
            raise ValueError(
                f"{subject}: {int(np.isnat(values).sum())} time stamps are missing; remove those fields."
            )
        return values.astype("datetime64[D]")
    if values.dtype != object or not all(hasattr(stamp, "calendar") for stamp in values):
        raise ValueError(
            f"{subject}: the time axis holds {values.dtype} values without a date; give it units such as "
            "'days since 1900-01-01'."
        )
    try:
        return np.array([f"{s.year:04d}-{s.month:02d}-{s.day:02d}" for s in values], dtype="datetime64[D]")
    except ValueError as error:
        raise ValueError(
            f"{subject}: calendar {values[0].calendar!r} has days that don't exist ({error}); convert it, "
            "e.g. with xarray's "
            "convert_calendar('standard', align_on='year')."
        ) from error


def _select_levels(array: xr.DataArray, modality: Modality, subject: str) -> xr.DataArray:
    """The levels asked for, by label."""
    if modality.levels is None:
        return array
    if "level" not in array.dims:
        raise ValueError(
            f"{subject} has no level, but levels {modality.levels} were asked for; leave `levels` out."
        )
    available = array.level.values
    positions = []
    for level in modality.levels:
        nearest = int(np.abs(available - level).argmin())
        if abs(available[nearest] - level) > 1e-3 * level:
            raise ValueError(
                f"{subject} has no level {level:g} hPa; the nearest is {available[nearest]:g}, available are "
                f"{[float(f'{value:g}') for value in available]}."
            )
        positions.append(nearest)
    return array.isel(level=positions).assign_coords(level=list(modality.levels))


def _convert(array: xr.DataArray, modality: Modality, subject: str) -> xr.DataArray:
    """Values in the unit asked for."""
    if modality.units is None:
        return array
    scale, offset = units.conversion(array.attrs.get("units"), modality.units, subject)
    converted = array if (scale, offset) == (1.0, 0.0) else array.astype(np.float64) * scale + offset
    return converted.assign_attrs(array.attrs | {"units": modality.units})


def _join(parts: list[tuple[Path, xr.DataArray]], modality: Modality) -> xr.DataArray:
    """Files one after the other in time, all on the grid of the first."""
    parts.sort(key=lambda part: part[1].time.values[0])
    _, first = parts[0]
    aligned = [first]
    for path, part in parts[1:]:
        same = all(
            part.sizes[dim] == first.sizes[dim] for dim in first.dims if dim != "time" and dim in part.dims
        )
        if part.dims != first.dims or not same or part.attrs["units"] != first.attrs["units"]:
            raise ValueError(
                f"modality {modality.name!r}: {path} holds {describe(part)} {dict(part.sizes)} in "
                f"{part.attrs['units']!r}, but "
                f"{parts[0][0]} holds {describe(first)} {dict(first.sizes)} in {first.attrs['units']!r}; "
                "give them to two modalities, "
                "or regrid one."
            )
        aligned.append(align(part, first))
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
    """Two fields on one day are hours of a day, or files that overlap."""
    days = times.astype("datetime64[D]")
    repeated = np.flatnonzero(np.diff(days) == np.timedelta64(0))
    if not repeated.size:
        return
    one, two = owners[repeated[0]], owners[repeated[0] + 1]
    where = f"in {one}" if one == two else f"in {one} and {two}"
    names = ", ".join(str(day) for day in days[repeated[:3]])
    raise ValueError(
        f"modality {modality.name!r}: {repeated.size} days come more than once "
        f"({names}{', ...' if repeated.size > 3 else ''}) "
        f"{where}; average to one field a day (xarray: resample(time='1D').mean()), or name files that "
        "don't overlap."
    )


def _refuse_empty_days(array: xr.DataArray, modality: Modality, paths: list[Path]) -> None:
    """A day (or a level of it) without a single value is a fault of the file, not weather."""
    space = [dim for dim in array.dims if dim not in ("time", "level")]
    empty = array.isnull().all(space)
    if "level" in empty.dims:
        empty = empty.any("level")
    days = array.time.values[empty.values].astype("datetime64[D]")
    if days.size:
        names = ", ".join(map(str, days[:5])) + (", ..." if days.size > 5 else "")
        raise ValueError(
            f"modality {modality.name!r} has {days.size} days without a single value ({names}), in "
            f"{', '.join(map(str, paths[:3]))}"
            f"{', ...' if len(paths) > 3 else ''}; leave these days out of the dates, mend the file, or "
            "read it with "
            "allow_empty_days=True if nothing was seen then."
        )
