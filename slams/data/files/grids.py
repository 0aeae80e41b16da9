"""Grids and stations by their coordinates: put one array on the points of another."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.core.geometry.distance import EARTH_RADIUS, Space
from slams.data.files.coordinates import told

_TOLERANCE = 1e-3  # degrees: float32 rounding of coordinates is 2e-5, the finest grids here are 0.1
_NAMED = (
    10.0  # km that a station of one name may have moved: networks round and survey a place in several ways
)
_NEAR = 2.0  # km between two places of one station without that name
_EXACT = 0.15  # km: rounding to a thousandth of a degree


def align(array: xr.DataArray, reference: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Put an array on the coordinates of another, by label and never by position.

    A flipped latitude or another convention of longitude (0 to 360, -180 to 180) is a matter of labels. Nothing is
    interpolated: every line of a grid must be one of the array within 0.001 degrees. Stations are matched by
    `match_stations`; one that the array lacks is missing, NaN, with a DataWarning.

    Args:
        array: Array as returned by `read`.
        reference: With the coordinates lat and lon wanted (and level, where both have it).

    Returns:
        The array at the points of the reference, with the reference's coordinates.

    Raises:
        ValueError: If a line of the reference's grid or all its stations aren't there; both are named.
    """
    subject = (
        f"{array.name!r} doesn't lie on the grid of {getattr(reference, 'name', None) or 'the reference'!r}"
    )
    grids = f"it has {describe(array)}; expected {describe(reference)}; regrid it, or change the grid"
    if ("station" in array.dims) != ("station" in reference.dims):
        raise InvalidValueError(f"{subject}: {grids}.")
    pairs: list[tuple[str, np.ndarray]] = []
    if "station" not in array.dims:
        pairs.append(("lat", np.abs(_values(array, "lat")[None] - _values(reference, "lat")[:, None])))
        pairs.append(("lon", _angle(_values(array, "lon"), _values(reference, "lon"))))
    if "level" in array.dims and "level" in reference.dims:
        pairs.append(("level", np.abs(_values(array, "level")[None] - _values(reference, "level")[:, None])))
    for dim, distance in pairs:
        if (distance.min(axis=1) > _TOLERANCE).any():
            worst = int(distance.min(axis=1).argmax())
            at = _values(reference, dim)[worst]
            raise InvalidValueError(f"{subject}: nothing there at {dim} {at:g}. In full, {grids}.")
        array = array.isel({dim: distance.argmin(axis=1)})
    if "station" in array.dims:
        positions = match_stations(array, reference)
        if (positions < 0).all():
            raise InvalidValueError(
                f"{subject}: nothing there at station {_label(reference, 0)}. In full, {grids}."
            )
        there = xr.DataArray(positions >= 0, dims="station")
        array = array.drop_vars("station", errors="ignore").isel(station=positions.clip(min=0))
        array = array if bool(there.all()) else array.where(there)
    names = [
        name
        for name in ("lat", "lon", "level", "station")
        if name in reference.coords
        and (name in array.coords or name == "station" and "station" in array.dims)
    ]
    return array.assign_coords({name: (reference[name].dims, reference[name].values) for name in names})


def match_stations(
    array: xr.DataArray | xr.Dataset, reference: xr.DataArray | xr.Dataset, *, tell: bool = True
) -> np.ndarray:
    """Position in the array of each station of a reference, -1 where it has none; a station is matched once.

    By name first, where both have names and the places lie within 10 km, the nearest first; then, of what is left, by
    great-circle distance within 2 km, the nearest first and equals in their order.

    Args:
        array: With coordinates lat and lon, and station where its stations have names.
        reference: The stations wanted, likewise.
        tell: Whether to state missing, moved and renamed stations in DataWarnings.
    """
    i, j, apart = _pairs(reference, array)
    wanted, have = _names(reference), _names(array)
    alike = (
        np.zeros(i.size, dtype=bool)
        if wanted is None or have is None
        else (wanted[i] == have[j]) & (wanted[i] != "")
    )
    positions = np.full(_values(reference, "lat").size, -1)
    taken = np.zeros(_values(array, "lat").size, dtype=bool)
    moved, renamed = [], []
    for k in (*np.flatnonzero(alike), *np.flatnonzero(~alike & (apart <= _NEAR))):
        if positions[i[k]] >= 0 or taken[j[k]]:
            continue
        positions[i[k]], taken[j[k]] = j[k], True
        if apart[k] > _EXACT:
            moved.append(f"{_label(reference, i[k])} by {apart[k]:.1f} km")
        if not alike[k] and wanted is not None and have is not None:
            renamed.append(f"{have[j[k]]} for {wanted[i[k]]}")
    missing = [_label(reference, int(k)) for k in np.flatnonzero(positions < 0)]
    if tell and len(missing) < positions.size:
        _tell(array, missing, f"of {positions.size} stations aren't in the file and are missing")
        _tell(array, moved, "stations have moved and are taken for the same")
        _tell(array, renamed, "stations have other names and are known by their place")
    return positions


def all_stations(parts: Sequence[xr.DataArray]) -> xr.Dataset:
    """The stations of several files: those of the first, and then those that each later one adds.

    Args:
        parts: Arrays with stations.

    Returns:
        A dataset with the coordinates lat and lon and, if every part has names, station.
    """
    names = ["lat", "lon", *(["station"] if all(_names(part) is not None for part in parts) else [])]
    found, *others = [xr.Dataset(coords={n: ("station", part[n].values) for n in names}) for part in parts]
    for part in others:
        new = np.setdiff1d(np.arange(part.sizes["station"]), match_stations(part, found, tell=False))
        found = xr.concat([found, part.isel(station=new)], "station") if new.size else found
    return found


def describe(array: xr.DataArray | xr.Dataset) -> str:
    """Description of a grid for messages.

    Args:
        array: With coordinates lat and lon.

    Returns:
        Such as "19 x 29 points, lat 44.5..35.5, lon -9.75..4.25".
    """
    lat, lon = _values(array, "lat"), _values(array, "lon")
    size = f"{lat.size} stations" if "station" in array.dims else f"{lat.size} x {lon.size} points"
    return f"{size}, lat {lat[0]:g}..{lat[-1]:g}, lon {lon[0]:g}..{lon[-1]:g}"


def _values(array: xr.DataArray | xr.Dataset, name: str) -> np.ndarray:
    """A coordinate as float64."""
    return np.atleast_1d(np.asarray(array[name].values, dtype=np.float64))


def _angle(have: np.ndarray, want: np.ndarray) -> np.ndarray:
    """Distance of longitudes [degrees] around the circle, (want, have)."""
    distance: np.ndarray = np.abs((have[None] - want[:, None] + 180.0) % 360.0 - 180.0)
    return distance


def _pairs(
    reference: xr.DataArray | xr.Dataset, array: xr.DataArray | xr.Dataset
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stations of both within 10 km and their distance [km], the nearest first, equals in their order."""
    one, other = (
        torch.from_numpy(np.stack([_values(a, "lat"), _values(a, "lon")], -1)) for a in (reference, array)
    )
    found = list(Space(sphere=EARTH_RADIUS).pairs(one, other, _NAMED))
    i, j, apart = (torch.cat([part[k] for part in found]).numpy() for k in range(3))
    order = np.lexsort((j, i, np.round(apart, 3)))
    return i[order], j[order], apart[order]


def _names(array: xr.DataArray | xr.Dataset) -> np.ndarray | None:
    """Names of stations, None if they have none."""
    if "station" not in array.coords or array["station"].dtype.kind not in "OUST":
        return None
    return array["station"].values.astype(str)


def _label(array: xr.DataArray | xr.Dataset, k: int) -> str:
    """A station for messages."""
    names = _names(array)
    place = f"{_values(array, 'lat')[k]:g} N {_values(array, 'lon')[k]:g} E"
    return place if names is None else f"{names[k]} ({place})"


def _tell(array: xr.DataArray | xr.Dataset, which: list[str], what: str) -> None:
    if which:
        told(
            f"modality {getattr(array, 'name', None)!r}",
            f"{len(which)} {what}: {', '.join(which[:5])}{', ...' if len(which) > 5 else ''}.",
        )
