"""Detection of time, level, latitude, longitude and station dimensions, independent of their names."""

import re
from collections.abc import Hashable, Iterable

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError

Found = dict[str, tuple[str | None, xr.Variable | None]]

_NAMES = {
    "time": set(["time", "times", "date", "dates", "day", "days"]),
    "level": set(["level", "levels", "lev", "plev", "pressure", "p", "isobaric"]),
    "lat": set(["lat", "lats", "latitude", "latitudes", "xlat"]),
    "lon": set(["lon", "lons", "long", "longitude", "longitudes", "xlong"]),
    "station": set(
        ["station", "stations", "stn", "site", "sites", "location", "point", "points", "gauge", "gauges"]
    ),
}
_STANDARD_NAMES = {"time": "time", "air_pressure": "level", "latitude": "lat", "longitude": "lon"}
_AXES = {"T": "time", "Z": "level", "Y": "lat", "X": "lon"}
_PROJECTED = {"x", "y", "xc", "yc", "rlat", "rlon", "easting", "northing"}
_NAMING = {"station", "stn", "site", "name", "id", "identifier", "wmo", "icao", "ghcn", "code", "platform"}
_PRESSURE = {"hpa", "millibar", "millibars", "mb", "mbar", "pa"}


def role_of(name: Hashable, variable: xr.Variable) -> str | None:
    """Kind of a coordinate variable, by its attributes first and its name second.

    Args:
        name: Name of the variable.
        variable: The variable; its values are looked at for dates only.

    Returns:
        "time", "level", "lat", "lon", "station" or None.

    >>> role_of("isobaricInhPa", xr.Variable("x", [500.0]))
    'level'
    """
    attributes = {str(key): str(value).strip() for key, value in variable.attrs.items()}
    units, standard = attributes.get("units", "").lower(), attributes.get("standard_name", "").lower()
    if (
        np.issubdtype(variable.dtype, np.datetime64)
        or variable.attrs.get("calendar")
        or "calendar" in variable.encoding
    ):
        return "time"
    if standard in _STANDARD_NAMES:
        return _STANDARD_NAMES[standard]
    if standard.startswith(("projection", "grid_")):
        return None  # metres of a map, degrees of a rotated pole: neither latitude nor longitude
    if re.fullmatch(r"degrees?_?(north|n|south|s)", units):
        return "lat"
    if re.fullmatch(r"degrees?_?(east|e|west|w)", units):
        return "lon"
    if units in _PRESSURE:
        return "level"
    if attributes.get("axis", "").upper() in _AXES and units not in {"m", "km"}:
        return _AXES[attributes["axis"].upper()]
    return role_by_name(name)


def role_by_name(name: Hashable) -> str | None:
    """Kind of a dimension by its name alone: `lat_o`, `valid_time`, `isobaric3`, `stn`."""
    tokens = {token for token in re.split(r"[^a-z]+", str(name).lower()) if token}
    if any(token.startswith("isobaric") for token in tokens):
        return "level"
    return next((role for role, names in _NAMES.items() if tokens & names), None)


def recognise(dataset: xr.Dataset, array: xr.DataArray, kind: str, subject: str) -> Found:
    """Find the axes of a variable.

    Args:
        dataset: The file, whose other variables may carry the coordinates.
        array: The variable.
        kind: "grid" or "stations".
        subject: Name of the variable in messages.

    Returns:
        For each of time, level, lat, lon (and station) that was found: its dimension (None for a scalar) and
        its values. The latitude and longitude of stations share the dimension of `station`.

    Raises:
        ValueError: If two dimensions claim one role, or latitude, longitude or stations can't be found.
    """
    found: Found = {}
    unknown: list[str] = []
    for dim in map(str, array.dims):
        role, coordinate = _role_of_dim(dataset, dim)
        if kind == "stations" and role in ("lat", "lon"):
            role = "station"  # a station dimension may be indexed by one of its coordinates
        if role is None:
            unknown.append(dim)
        elif role in found:
            raise InvalidValueError(
                f"{subject}: dimensions {found[role][0]!r} and {dim!r} both look like {role}; rename one "
                "of them."
            )
        else:
            found[role] = dim, coordinate
    if kind == "stations":
        _find_stations(dataset, array, found, unknown, subject)
    else:
        _find_by_values(dataset, found, unknown)
        _require_grid(array, found, subject)
    for role in ("time", "level"):
        if role not in found:
            scalar = _scalar(dataset, array, role)
            if scalar is not None:
                found[role] = None, dataset.variables[scalar]
    return found


def _role_of_dim(dataset: xr.Dataset, dim: str) -> tuple[str | None, xr.Variable | None]:
    """Role and coordinate of one dimension; without a variable of its name, another on it may identify it."""
    if dim in dataset.variables:
        return role_of(dim, dataset.variables[dim]), dataset.variables[dim]
    by_name = role_by_name(dim)
    if by_name == "station":
        return by_name, None
    for name, variable in dataset.variables.items():
        if variable.dims == (dim,) and name in dataset.coords:
            role = role_of(name, variable)
            if role in ("time", "level", "lat", "lon") and by_name in (None, role):
                return role, variable
    return by_name, None


def _find_stations(
    dataset: xr.Dataset, array: xr.DataArray, found: Found, unknown: list[str], subject: str
) -> None:
    """Add the station dimension and the latitude and longitude on it to `found`."""
    if "station" not in found:
        if len(unknown) != 1:
            raise InvalidValueError(
                f"{subject} has the dimensions {array.dims}, none of which looks like stations; rename one "
                "to 'station', or declare kind='grid'."
            )
        found["station"] = unknown[0], dataset.variables.get(unknown.pop())
    dim = found["station"][0]
    for role in ("lat", "lon"):
        candidates = [v for n, v in dataset.variables.items() if v.dims == (dim,) and role_of(n, v) == role]
        if not candidates and any(
            dim in v.dims and role_of(n, v) == role for n, v in dataset.variables.items()
        ):
            raise InvalidValueError(
                f"{subject}: the {role} of each station changes along another dimension; a moving platform is no "
                "station: write a table of reports (docs/observations.md), or select the times at one place."
            )
        if len(candidates) != 1:
            raise InvalidValueError(
                f"{subject}: expected one variable with the {role} of each station on dimension {dim!r}, "
                f"found {len(candidates)} among {sorted(map(str, dataset.variables))}; name it 'stn_{role}'."
            )
        found[role] = dim, candidates[0]


def _find_by_values(dataset: xr.Dataset, found: Found, unknown: list[str]) -> None:
    """Add latitude and longitude to `found` by monotone values: only a longitude goes beyond 90."""
    missing = [role for role in ("lat", "lon") if role not in found]
    candidates = [
        dim
        for dim in unknown
        if dim in dataset.variables
        and _monotone(dataset.variables[dim].values)
        and not _projected(dim, dataset.variables[dim])
    ]
    if len(candidates) != len(missing) or not missing:
        return
    reach = {dim: float(np.abs(dataset.variables[dim].values).max()) for dim in candidates}
    candidates.sort(key=lambda dim: reach[dim])
    fits = missing == ["lon"] or reach[candidates[0]] <= 90
    if reach[candidates[-1]] <= 360 and fits and (len(missing) == 1 or reach[candidates[1]] > 90):
        for role, dim in zip(missing, candidates, strict=True):
            found[role] = dim, dataset.variables[dim]
            unknown.remove(dim)


def _require_grid(array: xr.DataArray, found: Found, subject: str) -> None:
    """Check that a variable is on a regular grid of latitude and longitude."""
    for role in ("lat", "lon"):
        if role not in found or found[role][1] is None:
            hint = (
                "declare kind='stations'"
                if "station" in found
                else f"name its dimension and coordinate '{role}'"
            )
            raise InvalidValueError(
                f"{subject} has the dimensions {array.dims}, among which no "
                f"{'latitude' if role == 'lat' else 'longitude'} with values was found; {hint} (rotated, "
                "projected and curvilinear grids must be regridded first)."
            )


def _projected(name: str, variable: xr.Variable) -> bool:
    """Whether a dimension may be one of a map projection, whose values are no degrees."""
    standard, unit = (str(variable.attrs.get(key, "")).lower() for key in ("standard_name", "units"))
    return (
        name.lower() in _PROJECTED
        or standard.startswith(("projection", "grid_"))
        or not re.fullmatch(r"|1|deg\w*", unit)
    )


def _monotone(values: np.ndarray) -> bool:
    """Whether values are numbers that only rise or only fall."""
    if values.ndim != 1 or values.size < 2 or not np.issubdtype(values.dtype, np.number):
        return False
    steps = np.diff(values.astype(float))
    return bool((steps > 0).all() or (steps < 0).all())


def _scalar(dataset: xr.Dataset, array: xr.DataArray, role: str) -> Hashable | None:
    """Name of a scalar coordinate of the given role, as in stores of one day each."""
    names: Iterable[Hashable] = [*array.coords, *dataset.variables]
    for name in names:
        variable = dataset.variables[name]
        if variable.ndim == 0 and role_of(name, variable) == role:
            return name
    return None


def name_of(dataset: xr.Dataset, variable: xr.Variable) -> str:
    """Name of one of a dataset's own variables."""
    return next((str(name) for name, each in dataset.variables.items() if each is variable), "")


def with_lone_station(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """A file of one station with a station dimension, where its place is a scalar or a grid of one point.

    Args:
        dataset: The file.
        name: Name of the variable in it.
    """
    array = dataset[name]
    roles = {str(dim): _role_of_dim(dataset, str(dim))[0] for dim in array.dims}
    point = [dim for dim, role in roles.items() if role in ("lat", "lon") and array.sizes[dim] == 1]
    if len(point) == 2:
        dataset = dataset.isel(dict.fromkeys(point, 0))
        array = dataset[name]
    places = [_scalar(dataset, array, role) for role in ("lat", "lon")]
    others = [dim for dim, role in roles.items() if dim in array.dims and role not in ("time", "level")]
    if None in places or any(array.sizes[dim] > 1 or roles[dim] == "station" for dim in others):
        return dataset
    along = {n: ("station", [dataset[n].item()], dataset[n].attrs) for n in places if n is not None}
    series = dataset[name].reset_coords(drop=True).expand_dims(station=1, axis=-1).variable
    return dataset.drop_vars(list(along)).assign({name: series} | along)


def station_names(dataset: xr.Dataset, dim: str) -> np.ndarray | None:
    """Names of the stations along a dimension: its timeseries_id, a variable called so, or the dimension's own values.

    Numbers that only count the stations are no names.

    Args:
        dataset: The file.
        dim: The dimension.

    Returns:
        Text, None if there are none.
    """
    known = {
        str(n): v for n, v in dataset.variables.items() if v.dims == (dim,) and v.dtype.kind in "iufOUST"
    }
    ranked = sorted(
        (n for n in known if n == dim or _names_stations(n, known[n])),
        key=lambda n: (known[n].attrs.get("cf_role") != "timeseries_id", n == dim),
    )
    for name in ranked:
        names = np.array([_as_text(value) for value in known[name].values.tolist()], dtype=str)
        counted = [list(map(str, range(first, first + names.size))) for first in (0, 1)]
        if any(names) and names.tolist() not in counted:
            return names
    return None


def _names_stations(name: str, variable: xr.Variable) -> bool:
    words = set(re.split(r"[^a-z]+", name.lower()))
    text = variable.dtype.kind in "OUST"
    return variable.attrs.get("cf_role") == "timeseries_id" or bool(text and words & _NAMING)


def _as_text(value: object) -> str:
    """A name as text; a number without a fraction."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    return f"{value:.12g}" if isinstance(value, float) else str(value).strip()
