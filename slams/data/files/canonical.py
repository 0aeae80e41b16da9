"""A variable of an open file with canonical names, order and direction of axes, and the days of its stamps."""

import difflib
import re
from datetime import timedelta
from pathlib import Path

import cftime
import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files import axes, coordinates

_DAY = np.timedelta64(86400, "s")

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
        ValueError: If there is no time or it counts months, a dimension means nothing here, values or coordinates are
            text, or latitudes are impossible.
    """
    dataset = axes.with_lone_station(dataset, name) if kind == "stations" else dataset
    source = dataset[name]
    if source.dtype.kind not in "iuf":
        raise InvalidValueError(
            f"{subject} holds values of type {source.dtype}; expected numbers: convert the variable, and write missing "
            "values as NaN."
        )
    if "expver" in source.dims:
        source = join_expver(source)
    extra = [dim for dim in source.dims if source.sizes[dim] == 1 and _is_extra(dataset, str(dim), kind)]
    found = axes.recognise(dataset, source.squeeze(extra, drop=True), kind, subject)
    array = source.squeeze(extra).reset_coords(drop=True)
    array = array.drop_vars([str(coord) for coord in array.coords])
    array = _label(array, found, kind, subject, dataset, source.dims)
    refuse_long_periods(calendar_days(array.time, subject), subject, dataset, found["time"][1])
    if kind == "grid":
        array = _on_grid(array, subject)
    else:
        array = _at_stations(array, axes.station_names(dataset, str(found["station"][0])), subject)
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
    array: xr.DataArray,
    found: axes.Found,
    kind: str,
    subject: str,
    dataset: xr.Dataset,
    all_dims: tuple[object, ...],
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
        if variable is None or role == "station":
            continue
        values = rounded_stamps(variable) if role == "time" else variable.values
        if role in ("lat", "lon", "level") and variable.dtype.kind not in "iuf":
            raise InvalidValueError(
                f"{subject}: the {role} of its points is of type {variable.dtype}; expected numbers: convert it, e.g. "
                "with xarray's astype(float), and write the file again."
            )
        if role in ("lat", "lon"):
            values = coordinates.degrees(variable, role, subject)
        elif role == "level":
            pressure = coordinates.pressure(variable, axes.name_of(dataset, variable), subject)
            if pressure is None:
                array = array if dim is None else array.isel({role: 0}, drop=True)
                continue
            values = pressure
        if dim is None:
            array = array.expand_dims({role: np.atleast_1d(values)})
        else:
            array = array.assign_coords({role: (dims[dim], values)})
    return array


def _on_grid(array: xr.DataArray, subject: str) -> xr.DataArray:
    """Latitudes from north to south, longitudes from west to east without a seam."""
    for role in ("lat", "lon"):
        coordinates.check_line(array[role].values, role, subject)
    array = _taken(array, "lat", np.argsort(-array.lat.values, kind="stable"))
    order, line = coordinates.region(array.lon.values, subject)
    return _taken(array, "lon", order).assign_coords(lon=line)


def _at_stations(array: xr.DataArray, names: np.ndarray | None, subject: str) -> xr.DataArray:
    """Stations with a place, under their names if the file has them."""
    kept = coordinates.placed(array.lat.values, array.lon.values, names, subject)
    array = array if names is None else array.assign_coords(station=("station", names))
    return _taken(array, "station", kept)


def _taken(array: xr.DataArray, axis: str, order: np.ndarray) -> xr.DataArray:
    """Entries of an axis; as a slice where that does, which reads a file in one piece."""
    ahead = np.arange(array.sizes[axis])
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
    values = np.atleast_1d(rounded_stamps(stamps.variable))
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


def rounded_stamps(variable: xr.Variable) -> np.ndarray:
    """Time stamps without errors of rounding, such as 23:59:59.99 for the midnight after it.

    Stamps are rounded to whole seconds, and to midnight where that is nearer than the resolution of the file's 32 bits,
    or where all stamps lie within a minute of midnight on both sides of it.

    Args:
        variable: datetime64 or cftime values; others are returned as they are.
    """
    values = variable.values
    dated = np.issubdtype(values.dtype, np.datetime64)
    if not values.size or not (dated or isinstance(values.flat[0], cftime.datetime)):
        return values
    if dated:
        days = values.astype("datetime64[D]")
        seconds = (values - days) / np.timedelta64(1, "s")
    else:
        days = np.vectorize(lambda s: s.replace(hour=0, minute=0, second=0, microsecond=0), otypes=[object])(
            values
        )
        seconds = np.vectorize(lambda s, day: (s - day).total_seconds(), otypes=[float])(values, days)
    whole = np.rint(seconds)
    past = np.where(seconds > 43200, seconds - 86400, seconds)  # NaN of a missing stamp compares false
    scattered = (np.abs(past) <= 60).all() and (past < 0).any() and (past >= 0).any()
    whole = np.where(
        np.abs(past) <= (60 if scattered else _resolution(variable)), np.where(past < 0, 86400, 0), whole
    )
    if dated:
        shift = np.where(np.isnan(whole), 0, whole).astype("timedelta64[s]")
        return (days.astype("datetime64[s]") + shift).astype(values.dtype)
    return np.asarray(days + np.vectorize(lambda s: timedelta(seconds=s), otypes=[object])(whole))


def _resolution(variable: xr.Variable) -> float:
    """Seconds between neighbouring stamps of the file's type, where that is 32 bits wide; else half a second."""
    kind = variable.encoding.get("dtype")
    if kind is None or np.dtype(kind) != np.float32:
        return 0.5
    numbers = np.asarray(xr.conventions.encode_cf_variable(variable).values, dtype=np.float32)
    unit = str(variable.encoding.get("units", "")).split(" ")[0].rstrip("s").lower()
    seconds = {
        "second": 1.0,
        "sec": 1.0,
        "minute": 60.0,
        "min": 60.0,
        "hour": 3600.0,
        "hr": 3600.0,
        "h": 3600.0,
    }
    return max(0.5, float(np.spacing(np.abs(numbers).max())) * seconds.get(unit, 86400.0))


def refuse_long_periods(
    days: np.ndarray, subject: str, dataset: xr.Dataset | None = None, time: xr.Variable | None = None
) -> None:
    """Check that values stand for days, and not for months or years.

    Args:
        days: Days of the stamps, datetime64[D].
        subject: Name of the variable in messages.
        dataset: The file, whose bounds of time and attributes say how long the periods are.
        time: Its time coordinate.

    Raises:
        ValueError: If bounds are further apart than a day and a half, or all steps are those of months or years.
    """
    steps = np.diff(np.unique(days)).astype(int)
    regular = all(28 <= step <= 31 for step in steps) or all(step in (365, 366) for step in steps)
    found = f"steps of {steps.min()} to {steps.max()} days" if steps.size > 1 and regular else ""
    if dataset is not None and time is not None:
        attributes = {**time.encoding, **time.attrs}
        bounds = dataset.variables.get(attributes.get("bounds"))
        if bounds is not None and bounds.size and bounds.shape[-1] == 2 and bounds.dtype.kind in "MO":
            length = np.timedelta64((bounds.values[..., 1] - bounds.values[..., 0]).ravel()[0], "s") / _DAY
            found = f"bounds of time {length:g} days apart" if length > 1.5 else found
        frequency = str(dataset.attrs.get("frequency", ""))
        if frequency in ("mon", "yr", "monC") or re.match(
            r"\d{4}-0[1-9]|000[1-9]-", str(attributes.get("delta_t", ""))
        ):
            found = f"the attribute {'frequency' if frequency else 'delta_t'} of longer means"
    if found:
        raise InvalidValueError(
            f"{subject} holds means of months or other long periods ({found}), which aren't days; give daily fields."
        )
