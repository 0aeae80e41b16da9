"""Map axes: fields on latitude and longitude, shipped coastlines, observation points."""

import functools
import importlib.resources
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import ArrayLike

from slams.core.errors import InvalidValueError
from slams.evaluation.figures import style
from slams.evaluation.figures.style import Array, array

Points = tuple[ArrayLike, ArrayLike, ArrayLike]


@functools.cache
def coastlines() -> tuple[Array, ...]:
    """Coastlines of the Earth as polylines (n, 2) of longitude in [-180, 180] and latitude [degree].

    Source:
        Natural Earth 1:110m land, version 4.1.0, public domain.
    """
    with importlib.resources.files("slams.evaluation").joinpath("coastline.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        points = np.stack([stored["lon"], stored["lat"]], 1).astype(np.float64)
    gaps = np.flatnonzero(np.isnan(points[:, 0]))
    return tuple(piece[~np.isnan(piece[:, 0])] for piece in np.split(points, gaps))


def edges(centres: ArrayLike) -> Array:
    """Cell edges (n + 1) half-way between centres (n), continued by half a cell at both ends."""
    c = array(centres)
    half = np.diff(c) / 2 if len(c) > 1 else np.ones(1)
    return np.concatenate([[c[0] - half[0]], c[:-1] + half[: len(c) - 1], [c[-1] + half[-1]]])


def extent(lat: ArrayLike, lon: ArrayLike) -> tuple[float, float, float, float]:
    """West, east, south, north of a grid's cells [degree]; cells end at the poles."""
    west_east, south_north = edges(lon), edges(lat)
    return (
        float(west_east.min()),
        float(west_east.max()),
        float(max(south_north.min(), -90.0)),
        float(min(south_north.max(), 90.0)),
    )


def aspect(lat: ArrayLike, lon: ArrayLike) -> float:
    """Length of a degree of latitude over one of longitude: 1 for the globe, true to shape for a region."""
    west, east, south, north = extent(lat, lon)
    if east - west > 300:
        return 1.0
    return float(1 / max(np.cos(np.deg2rad((south + north) / 2)), 0.2))


def draw_map(
    axis: Axes,
    field: ArrayLike | None,
    lat: ArrayLike,
    lon: ArrayLike,
    *,
    colours: dict[str, Any],
    coast: bool,
    points: Points | None = None,
    land: ArrayLike | None = None,
) -> Any:
    """Draw a field and points on one axis.

    Args:
        axis: Axis to draw on.
        field: Values (H, W), NaN where missing (light grey); None for points alone.
        lat: Latitudes (H) [degree].
        lon: Longitudes (W) [degree].
        colours: Keywords of the colour scale: cmap, vmin, vmax.
        coast: Whether to draw the Earth's coastlines.
        points: Latitudes, longitudes and values of points, each (P); NaN values are not drawn.
        land: Land fraction or mask (H, W), whose 0.5 contour is drawn.

    Returns:
        The drawn mappable, for a colour bar.

    Raises:
        ValueError: If the field is not (H, W).
    """
    west, east, south, north = extent(lat, lon)
    shape = (len(array(lat)), len(array(lon)))
    values = np.full(shape, np.nan) if field is None else array(field)
    if values.shape != shape:
        raise InvalidValueError(f"field has shape {values.shape}, but lat and lon are of lengths {shape}.")
    axis.set_facecolor(style.MISSING)
    rows = np.clip(edges(lat), -90, 90)
    image: Any = axis.pcolormesh(edges(lon), rows, np.ma.masked_invalid(values), rasterized=True, **colours)
    if coast:
        lines = [line + np.array([shift, 0]) for shift in (-360, 0, 360) for line in coastlines()]
        near = [p for p in lines if p[:, 0].max() > west and p[:, 0].min() < east]
        axis.add_collection(LineCollection(near, colors=style.INK, linewidths=0.7), autolim=False)
    if land is not None:
        axis.contour(array(lon), array(lat), array(land), levels=[0.5], colors=style.INK, linewidths=0.6)
    if points is not None:
        image = _draw_points(axis, points, west, colours)
    axis.set(xlim=(west, east), ylim=(south, north))
    axis.set_aspect(aspect(lat, lon), adjustable="box")
    _graticule(axis, east - west > 300)
    return image


def _draw_points(axis: Axes, points: Points, west: float, colours: dict[str, Any]) -> Any:
    """Dots, the smaller the more there are; returns the mappable."""
    lat, lon, value = (array(each).ravel() for each in points)
    seen = ~np.isnan(value)
    size = float(np.clip(2500 / max(seen.sum(), 1), 9, 60))
    x, y = west + (lon[seen] - west) % 360, lat[seen]
    return axis.scatter(
        x, y, c=value[seen], s=size, edgecolors=style.INK, linewidths=0.4, zorder=3, **colours
    )


def _graticule(axis: Axes, globe: bool) -> None:
    """Degrees with hemisphere letters, few enough not to touch."""
    axis.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 3, 6, 9, 10] if globe else [1, 2, 5, 10]))
    axis.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 3, 6, 10] if globe else [1, 2, 5, 10]))
    axis.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: _degrees((value + 180) % 360 - 180, "E", "W"))
    )
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _degrees(value, "N", "S")))
    axis.tick_params(labelsize=style.SMALL, length=2.5, color=style.FRAME)
    axis.spines[:].set(color=style.FRAME, linewidth=0.6)


def _degrees(value: float, positive: str, negative: str) -> str:
    """A coordinate as text with its hemisphere."""
    letter = "" if value in (0, -180) else (positive if value > 0 else negative)
    return f"{abs(value):g}°{letter}"


def common_range(
    fields: Sequence[ArrayLike | None], *, symmetric: bool, clip: float = 0.5
) -> tuple[float, float]:
    """Colour limits that fields share: percentiles, so that one extreme cell doesn't bleach the map.

    Args:
        fields: Arrays of any shapes, NaN where missing; None is passed over.
        symmetric: Whether the limits lie evenly around 0.
        clip: Percentage cut off at each end.
    """
    values = np.concatenate([array(f).ravel() for f in fields if f is not None] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    if values.size == 0:
        return (-1.0, 1.0) if symmetric else (0.0, 1.0)
    low, high = (float(v) for v in np.percentile(values, [clip, 100 - clip]))
    if symmetric:
        high = max(abs(low), abs(high))
        low = -high
    return (low, high) if high > low else (low - 0.5, high + 0.5)
