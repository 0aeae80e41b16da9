"""The common looks of all figures: colours, labels, grids, legends, axes of dates."""

from collections.abc import Iterable
from typing import Any

import matplotlib.dates as mdates
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import ArrayLike

from slams.evaluation.figures.cartography import Array

# Okabe & Ito (2008): told apart by the colour-blind too.
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
    """An empty white figure whose parts keep out of each other's way."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def panels_in_row(figure: Figure, count: int) -> list[Axes]:
    """Panels side by side."""
    return list(figure.subplots(1, max(count, 1), squeeze=False)[0])[:count]


def line_styles(names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour, width and label of each curve; the truth is black and takes no colour from the others."""
    ordered = sorted(names, key=lambda name: name == "truth")
    return {
        name: {
            "color": "#000000" if name == "truth" else COLOURS[k % len(COLOURS)],
            "linewidth": 2.2 if name in ("truth", "analysis") else 1.5,
            "label": name,
        }
        for k, name in enumerate(ordered)
    }


def dress(axis: Axes, xlabel: str, ylabel: str, title: str) -> None:
    """Labels, a pale grid, and no frame on top and right."""
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.set_title(title, fontsize=11)
    axis.grid(True, color="#e6e6e6", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=9, color="#808080")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#808080")


def heading(figure: Figure, title: str, notes: str = "") -> None:
    """Title of a figure of several panels."""
    text = "\n".join(filter(None, (title, notes)))
    if text:
        figure.suptitle(text, fontsize=11)


def legend(axis: Axes, count: int) -> None:
    """Inside where a few curves leave room, else beside the axes."""
    if count > 5:
        axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    elif count:
        axis.legend(frameon=False, fontsize=9)


def date_axis(axis: Axes, when: ArrayLike) -> None:
    """Dates short enough not to overlap."""
    if np.issubdtype(np.asarray(when).dtype, np.datetime64):
        locator = mdates.AutoDateLocator(minticks=3, maxticks=9)
        axis.xaxis.set_major_locator(locator)
        axis.xaxis.set_major_formatter(mdates.ConciseDateFormatter(locator))


def log_if_wide(axis: Axes, values: Array) -> None:
    """A logarithmic axis where the values are positive and span more than a decade."""
    finite = values[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        axis.set_yscale("log")
