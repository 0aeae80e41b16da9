"""Maps of fields and vertical profiles."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from slams.evaluation.figures import style
from slams.evaluation.figures.cartography import Points, aspect, common_range, draw_map, extent
from slams.evaluation.figures.style import array


def maps(
    truth: ArrayLike,
    observed: ArrayLike | None,
    mean: ArrayLike,
    spread: ArrayLike | None,
    error: ArrayLike,
    lat: ArrayLike,
    lon: ArrayLike,
    title: str,
    units: str,
    coastlines: bool,
    points: Points | None = None,
    *,
    anomaly: bool = False,
    land: ArrayLike | None = None,
    cmap: str | None = None,
) -> Figure:
    """Truth, observations, analysis mean on one colour scale; below them spread and error.

    Args:
        truth: Truth (H, W) [units], NaN where missing (light grey in all maps).
        observed: Observed field (H, W), NaN where nothing was seen, or None.
        mean: Analysis mean (H, W).
        spread: Standard deviation of the analysis (H, W), or None for a deterministic method.
        error: Analysis mean minus truth (H, W).
        lat: Latitudes (H) [degree].
        lon: Longitudes (W) [degree].
        title: Title with quantity and date.
        units: Units of all five.
        coastlines: Whether to draw the coastlines of the Earth.
        points: Point observations: latitudes, longitudes, values, each (P).
        anomaly: Whether the fields are anomalies, whose colours are then symmetric around 0.
        land: Land mask (H, W) whose outline is drawn, for planets without known coastlines.
        cmap: Colour map of the fields; one that suits anomalies or not, if None.

    Returns:
        Figure of five maps.
    """
    west, east, south, north = extent(lat, lon)
    ratio = min(aspect(lat, lon) * (north - south) / (east - west), 1.6)
    figure = style.new_figure(15, 2 * (4.4 * ratio + 1.15) + 0.5)
    shades = _shades(
        [truth, mean], cmap or ("RdBu_r" if anomaly else "Spectral_r"), symmetric=anomaly, clip=0.5
    )
    panels: list[tuple[str, ArrayLike | None, Points | None, dict[str, Any]]] = [
        ("truth", truth, None, shades),
        ("observations", observed, points, shades),
        ("analysis mean", mean, None, shades),
        (
            "spread (standard deviation)",
            spread,
            None,
            _shades([spread], "viridis", symmetric=False) | {"vmin": 0.0},
        ),
        ("error (analysis mean − truth)", error, None, _shades([error], "RdBu_r", symmetric=True)),
    ]
    if spread is None:
        del panels[3]
    grid = figure.add_gridspec(2, 6)
    below = [slice(1, 3), slice(3, 5)] if spread is not None else [slice(2, 4)]
    places = [grid[0, 0:2], grid[0, 2:4], grid[0, 4:6], *(grid[1, columns] for columns in below)]
    for (name, field, dots, colours), place in zip(panels, places, strict=True):
        axis = figure.add_subplot(place)
        image = draw_map(axis, field, lat, lon, colours=colours, coast=coastlines, points=dots, land=land)
        axis.set_title(name, fontsize=style.TITLE)
        ends = "max" if name.startswith("spread") else "both"
        shape = {"orientation": "horizontal", "shrink": 0.8, "aspect": 32, "pad": 0.02, "extend": ends}
        style.colour_bar(figure, image, axis, units, **shape)
    figure.suptitle(title, fontsize=style.HEADING)
    return figure


def _shades(
    fields: Sequence[ArrayLike | None], cmap: str, *, symmetric: bool, clip: float = 1.0
) -> dict[str, Any]:
    """Keywords of a colour scale that fields share."""
    low, high = common_range(fields, symmetric=symmetric, clip=clip)
    return {"cmap": cmap, "vmin": low, "vmax": high}


def profiles(
    levels: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    label: str = "RMSE",
    units: str = "K",
    intervals: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    title: str = "",
) -> Figure:
    """A score on each pressure level, the ground below.

    Args:
        levels: Pressure (C) [hPa].
        curves: Score (C) of each method.
        label: Name of the score.
        units: Units of the score.
        intervals: Lower and upper bounds (C) of some of the methods, shaded.
        title: Title of the figure.
    """
    figure = style.new_figure(6.4, 5.4)
    axis = figure.subplots()
    height = array(levels)
    styles = style.line_styles(curves)
    for name, values in curves.items():
        axis.plot(array(values), height, marker="o", markersize=4, **styles[name])
        if intervals and name in intervals:
            low, high = (array(bound) for bound in intervals[name])
            axis.fill_betweenx(height, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
    axis.invert_yaxis()
    axis.set_xlim(left=0)
    style.dress(axis, f"{label} [{units}]", "pressure [hPa]", title)
    style.legend(axis, len(curves))
    return figure
