"""The common looks of all figures: colours, fonts, resolution, labels, grids, legends, axes of dates."""

import io
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import ArrayLike, NDArray

from slams.core.files import atomic

Array = NDArray[np.float64]
Content = TypeVar("Content")

DPI = 120
HEADING, TITLE, LABEL, NOTE, SMALL, TINY = 13, 11, 10, 9, 8, 7.5  # font sizes [pt]

BLACK = "#000000"  # the truth
INK = "#202020"  # lines and text on a coloured ground
FRAME = "#808080"
REFERENCE = "#606060"  # lines to compare with
GREY = "#777777"
PALE = "#b0b0b0"
GRID = "#e6e6e6"
SHADE = "#eeeeee"  # burn-in
MISSING = "#dcdcdc"
MISSING_DARK = "#c8c8c8"
MUTED = "#9db4c4"  # bars beside the first
BAND = "#d5e6f2"
RED_DOT = "#c04030"  # observations on a blue ground
# ice to fire through black: hue shows the sign, lightness the size
ICE_AND_FIRE = (
    *("#d8f3ff", "#7cc4f0", "#3b7dd8", "#2a3f8f", "#10101c"),
    *("#7d2236", "#d2452f", "#f59a4a", "#fff0c9"),
)
# Okabe & Ito (2008): distinguishable with colour vision deficiency.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#7F7F7F",
    "#000000",
    "#8C564B",
    "#BCBD22",
)


def new_figure(width: float, height: float) -> Figure:
    """An empty white figure with a constrained layout."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, sharp enough for print."""
    page = io.BytesIO()
    figure.savefig(page, dpi=DPI, format="png")
    return page.getvalue()


def save_figure(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a PNG file atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        file.write(png(figure))


def array(values: ArrayLike) -> Array:
    """Numbers of any origin, tensors on a device included, as float64."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
    return np.asarray(values, dtype=np.float64)


def panel_grid(
    count: int, width: float, height: float, *, columns: int, least: float = 0.0, margins: tuple[float, float]
) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most `columns`; those beyond `count` are hidden.

    Args:
        count: Number of panels.
        width: Width of a panel [inch].
        height: Height of a panel [inch].
        columns: Largest number of panels in a row.
        least: Least width of all columns [inch].
        margins: Width and height around the panels [inch].
    """
    columns = max(1, min(count, columns))
    rows = max(1, -(-count // columns))
    figure = new_figure(max(width * columns, least) + margins[0], height * rows + margins[1])
    axes = list(figure.subplots(rows, columns, squeeze=False).ravel())
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes


def panels_in_row(
    named: Mapping[str, Content], width: float, height: float, *, margin: float = 0.0
) -> tuple[Figure, list[tuple[Axes, str, Content]]]:
    """Panels side by side, and for each its axes, name and content.

    Args:
        named: Contents by name.
        width: Width of a panel [inch]; the figure has at least 6.
        height: Height of the figure [inch].
        margin: Width beside the panels [inch].
    """
    figure = new_figure(max(width * len(named) + margin, 6), height)
    axes = figure.subplots(1, max(len(named), 1), squeeze=False)[0]
    return figure, [(axis, name, each) for axis, (name, each) in zip(axes, named.items(), strict=False)]


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, width and label of each curve; the truth is black and takes no colour from the others."""
    ordered = sorted(names, key=lambda name: name == "truth")
    return {
        name: {
            "color": BLACK if name == "truth" else COLOURS[k % len(COLOURS)],
            "linewidth": 2.2 if name in ("truth", "analysis") else 1.5,
            "label": name,
        }
        for k, name in enumerate(ordered)
    }


def dress(axis: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Labels, a pale grid, and no frame on top and right."""
    axis.set_xlabel(xlabel, fontsize=LABEL)
    axis.set_ylabel(ylabel, fontsize=LABEL)
    axis.set_title(title, fontsize=TITLE)
    axis.grid(True, color=GRID, linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=NOTE, color=FRAME)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(FRAME)


def heading(figure: Figure, title: str, notes: str = "") -> None:
    """Title of a figure of several panels."""
    text = "\n".join(filter(None, (title, notes)))
    if text:
        figure.suptitle(text, fontsize=TITLE)


def legend(axis: Axes, count: int) -> None:
    """Inside where a few curves leave room, else beside the axes."""
    if count > 5:
        axis.legend(frameon=False, fontsize=NOTE, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    elif count:
        axis.legend(frameon=False, fontsize=NOTE)


def date_axis(axis: Axes, when: ArrayLike) -> None:
    """Dates short enough not to overlap."""
    if np.issubdtype(np.asarray(when).dtype, np.datetime64):
        locator = mdates.AutoDateLocator(minticks=3, maxticks=9)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))


def log_if_wide(set_scale: Callable[[str], None], values: Array) -> None:
    """A logarithmic axis where the values are positive and span more than a decade."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        set_scale("log")


def legend_below(figure: Figure, *what: Any, columns: int, **keywords: Any) -> None:
    """One legend for all panels, below them: handles and labels, or `handles=`."""
    figure.legend(*what, frameon=False, fontsize=NOTE, loc="outside lower center", ncols=columns, **keywords)


def colour_bar(figure: Figure, image: Any, axis: Axes, label: str, **keywords: Any) -> Any:
    """A colour bar without a frame."""
    bar = figure.colorbar(image, ax=axis, **keywords)
    bar.set_label(label, fontsize=NOTE)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)
    return bar


def plain_log(axis: Any, digits: str = "g") -> None:
    """Plain numbers at the major ticks of a logarithmic `axis.xaxis` or `axis.yaxis`, none at the minor ones."""
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:{digits}}"))
    axis.set_minor_formatter(NullFormatter())
