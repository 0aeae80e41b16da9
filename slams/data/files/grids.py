"""Grids and stations by their coordinates: put one array on the points of another."""

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError

_TOLERANCE = 1e-3  # degrees: float32 rounding of coordinates is 2e-5, the finest grids here are 0.1


def align(array: xr.DataArray, reference: xr.DataArray | xr.Dataset) -> xr.DataArray:
    """Put an array on the coordinates of another, by label and never by position.

    A flipped latitude or another convention of longitude (0 to 360, -180 to 180) is a matter of labels.
    Nothing is
    interpolated: every point of the reference must be a point of the array within 0.001 degrees.

    Args:
        array: Array as returned by `read`.
        reference: With the coordinates lat and lon wanted (and level, where both have it).

    Returns:
        The array at the points of the reference, with the reference's coordinates.

    Raises:
        ValueError: If a point of the reference isn't there; both grids are named.
    """
    subject = (
        f"{array.name!r} doesn't lie on the grid of {getattr(reference, 'name', None) or 'the reference'!r}"
    )
    grids = f"it has {describe(array)}; expected {describe(reference)}; regrid it, or change the grid"
    if ("station" in array.dims) != ("station" in reference.dims):
        raise InvalidValueError(f"{subject}: {grids}.")
    pairs: list[tuple[str, np.ndarray]] = []
    if "station" in array.dims:
        lat = np.abs(_values(array, "lat")[None] - _values(reference, "lat")[:, None])
        pairs.append(("station", np.maximum(lat, _angle(_values(array, "lon"), _values(reference, "lon")))))
    else:
        pairs.append(("lat", np.abs(_values(array, "lat")[None] - _values(reference, "lat")[:, None])))
        pairs.append(("lon", _angle(_values(array, "lon"), _values(reference, "lon"))))
    if "level" in array.dims and "level" in reference.dims:
        pairs.append(("level", np.abs(_values(array, "level")[None] - _values(reference, "level")[:, None])))
    for dim, distance in pairs:
        if (distance.min(axis=1) > _TOLERANCE).any():
            worst = int(distance.min(axis=1).argmax())
            at = _values(reference, "lat" if dim == "station" else dim)[worst]
            raise InvalidValueError(f"{subject}: nothing there at {dim} {at:g}. In full, {grids}.")
        array = array.isel({dim: distance.argmin(axis=1)})
    names = [
        name
        for name in ("lat", "lon", "level", "station")
        if name in array.coords and name in reference.coords
    ]
    return array.assign_coords({name: (reference[name].dims, reference[name].values) for name in names})


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
