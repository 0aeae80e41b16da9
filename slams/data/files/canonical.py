"""Files opened lazily, and a variable of them with canonical names, order and direction of axes."""

import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files import axes, station_days, stations
from slams.data.files.convention import Convention
from slams.data.safety import refuse_pickles

# short names of the variables that weather files call by a long name as well
_LONG_NAMES = {
    "t": "temperature",
    "z": "geopotential",
    "q": "specific_humidity",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "w": "vertical_velocity",
    "t2m": "2m_temperature",
    "tp": "total_precipitation",
    "msl": "mean_sea_level_pressure",
}


def aliases(variable: str) -> tuple[str, ...]:
    """Other names of a variable: the long for the short one and the reverse.

    >>> aliases("t"), aliases("temperature"), aliases("precip")
    (('temperature',), ('t',), ())
    """
    return tuple(b for pair in _LONG_NAMES.items() for a, b in (pair, pair[::-1]) if a == variable)


def open_dataset(path: Path, conventions: Iterable[Convention] = ()) -> xr.Dataset:
    """Open a file or folder lazily: netCDF, zarr, a format of an archive's own, or a table of observations.

    Args:
        path: File or folder.
        conventions: Archives whose own formats it may have.

    Returns:
        What it holds; only the header and the coordinates have been read (a table is read whole).

    Raises:
        ValueError: If it can't be opened, or asks for a pickle to be loaded.
    """
    try:
        if path.is_dir():
            refuse_pickles(path)
            dataset: xr.Dataset = xr.open_zarr(path, chunks=None, consolidated=(path / ".zmetadata").exists())
            return dataset
        for convention in conventions:
            if (opener := convention.raw(path)) is not None:
                return opener(path)
        if path.suffix == ".parquet":
            return station_days.daily_dataset(stations.read_table(path))
        dataset = xr.open_dataset(path)
        if stations.is_table(dataset):
            dataset.close()
            return station_days.daily_dataset(stations.read_table(path))
        return dataset
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InvalidValueError(
            f"{path} can't be opened ({error}); it may be cut short or of a format xarray has no engine for: "
            "write or fetch it again, or convert it to netCDF."
        ) from error


def find_variable(dataset: xr.Dataset, names: tuple[str, ...], path: Path, owner: str) -> str:
    """Name of the wanted variable in a file.

    Args:
        dataset: The open file.
        names: Possible names, the user's first.
        path: The file, for the message.
        owner: Who asks, for the message.

    Returns:
        The name in the file.

    Raises:
        ValueError: If it isn't there; the nearest name is suggested.
    """
    for name in names:
        if name in dataset.variables:
            return name
    available = sorted(map(str, dataset.data_vars))
    near = difflib.get_close_matches(names[0], available, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}?" if near else "correct `variable` of the modality."
    raise InvalidValueError(f"{path} has no variable {names[0]!r} ({owner}); it has {available}: {hint}")


def canonical(dataset: xr.Dataset, name: str, kind: str, label: str, subject: str) -> xr.DataArray:
    """Canonical names, order and direction of the axes; as lazy as the variable was.

    Args:
        dataset: The open file.
        name: Name of the variable in it.
        kind: "grid" or "stations".
        label: Name of the result.
        subject: Name of the variable in messages.

    Returns:
        (time[, level], lat, lon) with lat descending and lon ascending, or (time[, level], station); level in
        hPa in the file's order; attributes source_name, units, long_name, standard_name.

    Raises:
        ValueError: If there is no time, a dimension means nothing here, or latitudes are impossible.
    """
    source = dataset[name]
    if "expver" in source.dims:
        source = join_expver(source)
    extra = [dim for dim in source.dims if source.sizes[dim] == 1 and _is_extra(dataset, str(dim), kind)]
    found = axes.recognise(dataset, source.squeeze(extra, drop=True), kind, subject)
    array = source.squeeze(extra).reset_coords(drop=True)
    array = array.drop_vars([str(coord) for coord in array.coords])
    array = _label(array, found, kind, subject, source.dims)
    if np.abs(array.lat.values).max() > 90.001:
        raise InvalidValueError(
            f"{subject}: latitudes reach {np.abs(array.lat.values).max():g}; expected -90 to 90 degrees "
            "north."
        )
    if kind == "grid":
        array = _sort(_sort(array, "lat", -1), "lon", 1)
    array = array.transpose("time", *(("level",) if "level" in array.dims else ()), ...)
    if kind == "grid":
        array = array.transpose(..., "lat", "lon")
    array = array.rename(label).drop_encoding()  # int16 packing must not come back when the array is written
    names = ("long_name", "standard_name", "units_metadata")
    kept = {key: str(source.attrs[key]) for key in names if key in source.attrs}
    array.attrs = {"source_name": name, "units": str(source.attrs.get("units", "")), **kept}
    return array


def join_expver(array: xr.DataArray) -> xr.DataArray:
    """Join final (expver 1) and preliminary (expver 5) fields of old CDS files, point by point.

    Args:
        array: With a dimension `expver`.

    Returns:
        The array without it.
    """
    order = np.argsort([int(version) for version in array["expver"].values], kind="stable")
    joined = array.isel(expver=int(order[0]), drop=True)
    for position in order[1:]:
        joined = joined.fillna(array.isel(expver=int(position), drop=True))
    return joined.assign_attrs(array.attrs)


def _label(
    array: xr.DataArray, found: axes.Found, kind: str, subject: str, all_dims: tuple[object, ...]
) -> xr.DataArray:
    """Rename the dimensions after their roles and give them their coordinates."""
    dims = {
        dim: role
        for role, (dim, _) in found.items()
        if dim is not None and (role not in ("lat", "lon") or kind == "grid")
    }
    left = [str(dim) for dim in array.dims if dim not in dims]
    if "time" not in found or found["time"][1] is None or left:
        what = f"dimensions {left} that mean nothing here" if left else "no time"
        raise InvalidValueError(
            f"{subject} has {what} (all: {all_dims}); expected (time[, level], lat, lon) or (time[, level], "
            "station): select one entry of the others, and give each field its date."
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
            in_pascal = str(variable.attrs.get("units", "")).lower() == "pa"
            values = np.asarray(values, dtype=float) / (100.0 if in_pascal else 1.0)
        if dim is None:
            array = array.expand_dims({role: np.atleast_1d(values)})
        else:
            array = array.assign_coords({role: (dims[dim], values)})
    return array


def _sort(array: xr.DataArray, axis: str, direction: int) -> xr.DataArray:
    """Sort along an axis; as a slice where that does, which reads a file in one piece."""
    order = np.argsort(direction * array[axis].values, kind="stable")
    ahead = np.arange(order.size)
    if np.array_equal(order, ahead):
        return array
    if np.array_equal(order, ahead[::-1]):
        return array.isel({axis: slice(None, None, -1)})
    return array.isel({axis: order})


def _is_extra(dataset: xr.Dataset, dim: str, kind: str) -> bool:
    """Whether a dimension of length one carries no information; a lone station may lie on a dimension of any name."""
    if kind == "stations":
        return dim in ("number", "expver", "realization", "member", "height", "surface")
    coordinate = dataset.variables.get(dim)
    return axes.role_by_name(dim) is None and (coordinate is None or axes.role_of(dim, coordinate) is None)


def calendar_days(stamps: xr.DataArray, subject: str) -> np.ndarray:
    """Calendar days of time stamps, of any calendar.

    Args:
        stamps: datetime64 or cftime values.
        subject: Name of the variable in messages.

    Returns:
        datetime64[D]; a day of another calendar keeps its label.

    Raises:
        ValueError: If stamps are missing or no dates, or a day doesn't exist in the standard calendar.
    """
    values = np.atleast_1d(stamps.values)
    if np.issubdtype(values.dtype, np.datetime64):
        if np.isnat(values).any():
            raise InvalidValueError(
                f"{subject}: {int(np.isnat(values).sum())} time stamps are missing; remove those fields."
            )
        return values.astype("datetime64[D]")
    if values.dtype != object or not all(hasattr(stamp, "calendar") for stamp in values):
        raise InvalidValueError(
            f"{subject}: the time axis holds {values.dtype} values without a date; give it units such as "
            "'days since 1900-01-01'."
        )
    try:
        return np.array([f"{s.year:04d}-{s.month:02d}-{s.day:02d}" for s in values], dtype="datetime64[D]")
    except ValueError as error:
        raise InvalidValueError(
            f"{subject}: calendar {values[0].calendar!r} has days that don't exist ({error}); convert it, "
            "e.g. with xarray's convert_calendar('standard', align_on='year')."
        ) from error
