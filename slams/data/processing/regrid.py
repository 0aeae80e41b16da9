"""Regridding by coordinates: area means and linear interpolation, with missing values."""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import xarray as xr
from scipy import sparse

from slams.core.errors import InvalidValueError

Method = Literal["conservative", "linear"]

_WHOLE = 1e-3  # degrees: coordinates are read as float32, whose rounding is 2e-5


@dataclass(frozen=True, eq=False)
class Grid:
    """Centres and edges of cells in latitude and longitude [degrees].

    An edge lies midway between two centres; at the ends half a step further, but never beyond a pole. So the
    polar rows of a grid that holds the poles are half as high as the others, as they are for ERA5. Centres
    may come in either direction and in either convention of longitude.

    Args:
        lat: Centres (rows), rising or falling strictly.
        lon: Centres (columns), rising strictly, less than a turn.

    Raises:
        ValueError: If there are fewer than 2 of one, they don't run strictly, or leave the sphere.
    """

    lat: np.ndarray
    lon: np.ndarray

    def __post_init__(self) -> None:
        """Validate the fields and convert to float64."""
        for name in ("lat", "lon"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
                raise InvalidValueError(
                    f"{name} of a grid must be a line of at least 2 finite values, got shape {values.shape}."
                )
            steps = np.diff(values)
            if not ((steps > 0).all() or (name == "lat" and (steps < 0).all())):
                raise InvalidValueError(
                    f"{name} of a grid must run strictly in one direction, got {values[0]:g} to "
                    f"{values[-1]:g} with {np.unique(np.sign(steps)).size} directions; sort the field first."
                )
        if np.abs(self.lat).max() > 90 + _WHOLE or self.lon[-1] - self.lon[0] > 360 - _WHOLE:
            raise InvalidValueError(
                f"a grid with lat {self.lat[0]:g}..{self.lat[-1]:g} and lon {self.lon[0]:g}.."
                f"{self.lon[-1]:g} leaves the sphere or repeats a meridian; drop the rows or columns."
            )

    @classmethod
    def named(cls, name: str) -> "Grid":
        """A grid of this project.

        Args:
            name: "1.5deg", ERA5's own 121 x 240 points from 90 N 0 E with both poles; "1.5deg-published", the
                120 x 240 blocks that the published system forms of 3 x 3 CPC cells, from 89.25 N 0.75 E.

        Returns:
            The grid.

        Raises:
            ValueError: If no grid has this name.

        >>> Grid.named("1.5deg")
        Grid(121 x 240, lat 90..-90, lon 0..358.5)
        """
        if name not in _NAMED:
            raise InvalidValueError(f"there is no grid {name!r}; expected one of {', '.join(_NAMED)}.")
        north, west, rows = _NAMED[name]
        return cls(north - 1.5 * np.arange(rows), west + 1.5 * np.arange(240))

    @classmethod
    def of(cls, array: xr.DataArray | xr.Dataset) -> "Grid":
        """The grid that an array lies on.

        Args:
            array: With coordinates lat and lon.

        Returns:
            The grid.
        """
        return cls(array["lat"].values, array["lon"].values)

    def __repr__(self) -> str:
        """Size and corners."""
        lat, lon = self.lat, self.lon
        return f"Grid({lat.size} x {lon.size}, lat {lat[0]:g}..{lat[-1]:g}, lon {lon[0]:g}..{lon[-1]:g})"

    def same(self, other: "Grid") -> bool:
        """Whether all centres agree within 0.001 degrees, in the same order.

        Args:
            other: Another grid.

        Returns:
            True if values can be taken over as they are.
        """
        return all(
            a.size == b.size and bool((np.abs(a - b) < _WHOLE).all())
            for a, b in ((self.lat, other.lat), (self.lon, other.lon))
        )

    @cached_property
    def lat_edges(self) -> np.ndarray:
        """Southern and northern edge of each row, (rows, 2)."""
        bounds = np.clip(_edges(self.lat), -90.0, 90.0)
        return np.sort(np.stack([bounds[:-1], bounds[1:]], axis=1), axis=1)

    @cached_property
    def lon_edges(self) -> np.ndarray:
        """Western and eastern edge of each column, (columns, 2); the last meets the first on a full circle."""
        if not self.periodic:
            bounds = _edges(self.lon)
            return np.stack([bounds[:-1], bounds[1:]], axis=1)
        turn = np.concatenate([[self.lon[-1] - 360.0], self.lon, [self.lon[0] + 360.0]])
        middles = (turn[1:] + turn[:-1]) / 2
        return np.stack([middles[:-1], middles[1:]], axis=1)

    @cached_property
    def periodic(self) -> bool:
        """Whether the longitudes are periodic: no gap, at the seam or inside, is wider than 1.5 of the median step."""
        steps = np.diff(self.lon, append=self.lon[0] + 360.0)
        return bool(steps.max() <= 1.5 * np.median(steps))

    @cached_property
    def area(self) -> np.ndarray:
        """Area of each cell as a part of the sphere, (rows, columns); a global grid sums to 1."""
        height = _sine_difference(self.lat_edges[:, 0], self.lat_edges[:, 1]) / 2
        width = (self.lon_edges[:, 1] - self.lon_edges[:, 0]) / 360.0
        return np.outer(height, width)


_NAMED = {"1.5deg": (90.0, 0.0, 121), "1.5deg-published": (89.25, 0.75, 120)}


class Regridder:
    """Values of one grid on another, by weights made once.

    Both methods are separable, value = (A (m v) B^T) / (A m B^T), with m = 1 where a source value is there and
    0 where it is missing, A the weights of latitude and B those of longitude; all in float64.

    conservative: A and B hold the parts of a target cell that source cells cover, by area on the sphere. The
    value is the mean over the covered, valid part of the cell, and value x fraction x area summed over the
    target is the area integral of the valid source. Block means, where cells nest, weighted by area.

    linear: between the four centres around. The meridians meet: on a full circle, a target nearer to the pole
    than the last row uses the pole, where the mean of the last rows along the circle is continued linearly.
    Beyond the edge of a regional grid there's nothing.

    Args:
        source: Source grid.
        target: Target grid.
        method: Area means (rain, anything that adds up) or interpolation (smooth fields at points).
        threshold: The least part of a cell (or weight of interpolation) that must be valid; less is missing.
            A half keeps the area of land as it is; 0 takes any valid part, however small.

    Raises:
        ValueError: If the method isn't known or the threshold isn't in [0, 1].
    """

    def __init__(
        self, source: Grid, target: Grid, method: Method = "conservative", threshold: float = 0.5
    ) -> None:
        if method not in get_args(Method):
            raise InvalidValueError(
                f"method of regridding must be one of {', '.join(get_args(Method))}, got {method!r}."
            )
        if not 0 <= threshold <= 1:
            raise InvalidValueError(f"threshold must be a part of a cell in 0..1, got {threshold}.")
        self.source, self.target, self.method, self.threshold = source, target, method, threshold
        if method == "conservative":
            self._caps: tuple[np.ndarray, ...] = ()
            self._lat, self._lon = _overlap_lat(source, target), _overlap_lon(source, target)
        else:
            self._caps = tuple(_cap(source.lat, pole) for pole in _missing_poles(source, target))
            self._lat = _linear_lat(np.concatenate([source.lat, _missing_poles(source, target)]), target.lat)
            self._lon = _linear_lon(source, target.lon)

    def __call__(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values on the target grid.

        Args:
            values: (..., lat, lon) on the source grid; NaN where missing.

        Returns:
            Values (..., lat, lon) in float64, NaN where less than the threshold is valid; and the part of each
            cell (weight of interpolation) that is valid, 0..1, of the same shape.

        Raises:
            ValueError: If the last two axes aren't those of the source grid.
        """
        rows, columns = self.source.lat.size, self.source.lon.size
        if values.shape[-2:] != (rows, columns):
            raise InvalidValueError(
                f"values of shape {values.shape} aren't on the source grid {self.source}."
            )
        shape = (*values.shape[:-2], self.target.lat.size, self.target.lon.size)
        regridded, fraction = np.empty(shape), np.empty(shape)
        mask: np.ndarray | None = None
        part, enough = np.empty((0, 0)), np.empty((0, 0), dtype=bool)
        for field, out, valid in zip(
            values.reshape(-1, rows, columns),
            regridded.reshape(-1, *shape[-2:]),
            fraction.reshape(-1, *shape[-2:]),
            strict=True,
        ):
            whole = self._with_caps(field.astype(np.float64)) if self._caps else field
            missing = np.isnan(whole)
            if mask is None or not np.array_equal(mask, missing):  # a mask of land stays for months
                mask, part = missing, self._apply(1.0 - missing)
                enough = part >= max(self.threshold - 1e-9, 1e-12)  # a half is a half despite rounding
            valid[...], out[...] = part, np.nan
            np.divide(self._apply(np.where(missing, 0.0, whole)), part, out=out, where=enough)
        return regridded, fraction

    def _apply(self, field: np.ndarray) -> np.ndarray:
        """A field B^T; the transposes keep the rows that a sparse product runs along contiguous."""
        half = np.ascontiguousarray((self._lat @ field).T)
        weighted: np.ndarray = (self._lon @ half).T
        return weighted

    def _with_caps(self, field: np.ndarray) -> np.ndarray:
        """A row at each pole that the source lacks: its value can't depend on longitude."""
        rows = [field]
        for weights in self._caps:
            known = np.isfinite(field).any(axis=1) | (weights == 0)
            means = (
                [np.nanmean(field[i]) * weights[i] for i in np.flatnonzero(weights)]
                if known.all()
                else [np.nan]
            )
            rows.append(np.full((1, field.shape[1]), np.sum(means)))
        return np.concatenate(rows) if len(rows) > 1 else field


def regrid(
    array: xr.DataArray, target: Grid, method: Method = "conservative", threshold: float = 0.5
) -> xr.DataArray:
    """An array on another grid.

    Args:
        array: (..., lat, lon).
        target: Target grid.
        method: Method, as in `Regridder`.
        threshold: Threshold, as in `Regridder`.

    Returns:
        float64, with the coordinate `fraction` (..., lat, lon), the valid part of each cell.

    Raises:
        ValueError: If lat and lon aren't the last axes, or method or threshold isn't known.
    """
    if array.dims[-2:] != ("lat", "lon"):
        raise InvalidValueError(f"expected an array with lat and lon last, got {array.dims}; transpose it.")
    values, fraction = Regridder(Grid.of(array), target, method, threshold)(array.values)
    coords = {name: c for name, c in array.coords.items() if not {"lat", "lon"} & set(c.dims)}
    coords |= {"lat": target.lat, "lon": target.lon, "fraction": (array.dims, fraction)}
    return xr.DataArray(values, coords, array.dims, array.name, array.attrs)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Midpoints, and at the ends half a step more."""
    middles = (centres[1:] + centres[:-1]) / 2
    return np.concatenate([[2 * centres[0] - middles[0]], middles, [2 * centres[-1] - middles[-1]]])


def _sine_difference(south: np.ndarray, north: np.ndarray) -> np.ndarray:
    """sin(north) - sin(south), without the cancellation that a thin row at the pole would suffer."""
    south, north = np.deg2rad(south), np.deg2rad(north)
    difference: np.ndarray = 2 * np.cos((north + south) / 2) * np.sin((north - south) / 2)
    return difference


def _overlap_lat(source: Grid, target: Grid) -> sparse.csr_array:
    """Part of each target row that each source row covers, by area."""
    south = np.maximum(target.lat_edges[:, None, 0], source.lat_edges[None, :, 0])
    north = np.minimum(target.lat_edges[:, None, 1], source.lat_edges[None, :, 1])
    covered = np.where(north - south > 1e-9, _sine_difference(south, north), 0.0)
    return sparse.csr_array(covered / _sine_difference(*target.lat_edges.T)[:, None])


def _overlap_lon(source: Grid, target: Grid) -> sparse.csr_array:
    """Part of each target column that each source column covers, around the circle."""
    covered = np.zeros((target.lon.size, source.lon.size))
    offset = 360.0 * np.round((target.lon.mean() - source.lon.mean()) / 360.0)
    for turn in (offset - 360.0, offset, offset + 360.0):
        west = np.maximum(target.lon_edges[:, None, 0], source.lon_edges[None, :, 0] + turn)
        east = np.minimum(target.lon_edges[:, None, 1], source.lon_edges[None, :, 1] + turn)
        covered += np.where(east - west > 1e-9, east - west, 0.0)
    return sparse.csr_array(covered / np.diff(target.lon_edges, axis=1))


def _missing_poles(source: Grid, target: Grid) -> list[float]:
    """Poles that a target row needs and the source, a full circle that comes within a row of it, lacks."""
    if not source.periodic:
        return []
    step = np.abs(np.diff(source.lat)).max()
    poles = []
    for pole in (90.0, -90.0):
        last = np.abs(source.lat - pole).min()
        if _WHOLE < last <= step + _WHOLE and np.abs(target.lat - pole).min() < last:
            poles.append(pole)
    return poles


def _cap(lat: np.ndarray, pole: float) -> np.ndarray:
    """Weights of the rows' means at a pole: the line through the two nearest."""
    near, next_ = np.argsort(np.abs(lat - pole))[:2]
    weights = np.zeros(lat.size)
    slope = (pole - lat[near]) / (lat[near] - lat[next_])
    weights[near], weights[next_] = 1 + slope, -slope
    return weights


def _linear_lat(have: np.ndarray, want: np.ndarray) -> sparse.csr_array:
    """Weights of the rows around each latitude; none beyond the last row."""
    order = np.argsort(have)
    return _between(have[order], want, order, have.size)


def _linear_lon(source: Grid, want: np.ndarray) -> sparse.csr_array:
    """Weights of the columns around each longitude, across the seam of a full circle."""
    lon = source.lon
    size = lon.size
    columns = np.arange(size)
    if source.periodic:
        lon, columns = np.append(lon, lon[0] + 360.0), np.append(columns, 0)
        turned = lon[0] + np.mod(want - lon[0], 360.0)
    else:
        middle = (lon[0] + lon[-1]) / 2
        turned = want - 360.0 * np.round((want - middle) / 360.0)
    return _between(lon, turned, columns, size)


def _between(have: np.ndarray, want: np.ndarray, columns: np.ndarray, size: int) -> sparse.csr_array:
    """Linear weights between rising points."""
    want = np.where(np.abs(want - have[0]) < _WHOLE / 10, have[0], want)
    want = np.where(np.abs(want - have[-1]) < _WHOLE / 10, have[-1], want)
    inside = np.flatnonzero((want >= have[0]) & (want <= have[-1]))
    left = np.clip(np.searchsorted(have, want[inside], side="right") - 1, 0, have.size - 2)
    right_weight = (want[inside] - have[left]) / (have[left + 1] - have[left])
    rows = np.concatenate([inside, inside])
    cells = np.concatenate([columns[left], columns[left + 1]])
    weights = np.concatenate([1 - right_weight, right_weight])
    matrix = sparse.coo_array((weights, (rows, cells)), shape=(want.size, size)).tocsr()
    matrix.eliminate_zeros()
    return matrix
