"""Figures of twin experiments: error and spread in time, ranks of the truth, published numbers beside ours."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from slams.evaluation.figures import style
from slams.evaluation.figures.style import array

_POINTS = 400  # more would hide each other
_OF_STATUS = {"PASS": (style.COLOURS[2], "o"), "FAIL": (style.COLOURS[1], "X"), "INFO": (style.GREY, "o")}


def error_and_spread(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    dt: float = 1.0,
    burn_in: float = 0.0,
    title: str = "",
) -> Figure:
    """Root mean square error of the mean, and spread, along the run; one panel a method, one scale for all.

    Both are root mean squares over state and replicates, and over as many steps as 400 points of a curve stand for.

    Args:
        curves: Squared error and variance by method, each (L) or (B, L).
        dt: Model time between two steps.
        burn_in: Unscored model time, shaded.
        title: Title of the figure.
    """
    figure, axes = _grid(len(curves))
    drawn = []
    for axis, (name, pair) in zip(axes, curves.items(), strict=False):
        for values, colour, line, label in zip(
            pair, style.COLOURS, ("-", "--"), ("error", "spread"), strict=False
        ):
            y = _thinned(values)
            x = (np.arange(len(y)) + 0.5) * dt * _length(values) / len(y)
            axis.plot(x, y, line, color=colour, linewidth=1.4, label=label)
            drawn.append(y)
        if burn_in > 0:
            axis.axvspan(0, burn_in, color=style.SHADE, linewidth=0, zorder=0)
        style.dress(axis, "model time", "", name)
    _one_scale(axes[: len(curves)], np.concatenate(drawn) if drawn else np.zeros(0))
    figure.supylabel("root mean square [unit of the state]", fontsize=style.LABEL)
    style.legend_below(figure, *axes[0].get_legend_handles_labels(), columns=2)
    style.heading(figure, title)
    return figure


def rank_grid(ranks: Mapping[str, tuple[ArrayLike, int]], *, title: str = "") -> Figure:
    """Rank histograms of many methods; flat if an ensemble is calibrated, U-shaped if it is too narrow.

    Args:
        ranks: Ranks of the truth (any shape, NaN ignored) and number of members, by method.
        title: Title of the figure.
    """
    figure, axes = _grid(len(ranks))
    for axis, (name, (values, size)) in zip(axes, ranks.items(), strict=False):
        rank = array(values).ravel()
        rank = rank[np.isfinite(rank)]
        # ranks of large ensembles are joined into bins of equal width in rank
        bins = min(size + 1, 20)
        counts, fair = (
            np.histogram((each + 0.5) / (size + 1), bins=bins, range=(0.0, 1.0))[0]
            for each in (rank, np.arange(size + 1))
        )
        share = counts / max(counts.sum(), 1) / (fair / fair.sum())
        axis.bar(
            (np.arange(bins) + 0.5) / bins, share, width=1 / bins, color=style.COLOURS[0], edgecolor="white"
        )
        axis.axhline(1, color=style.INK, linewidth=1, linestyle="--")
        axis.set(xlim=(0, 1), ylim=(0, max(1.6, min(float(share.max(initial=0)) * 1.08, 6.0))))
        style.dress(axis, f"rank of the truth / {size + 1}", "", name)
    figure.supylabel("frequency / that of a calibrated ensemble", fontsize=style.LABEL)
    style.heading(figure, title)
    return figure


def against_published(
    rows: Sequence[Mapping[str, float | str]], *, title: str = "", label: str = "RMSE"
) -> Figure:
    """Our numbers with their intervals on the expected band, row by row.

    Args:
        rows: Rows with row, expected, low, high, value, lower, upper and status, as in rows.csv; those of status INFO
            have no band.
        title: Title of the figure.
        label: Label of the numbers.
    """
    figure = style.new_figure(8.6, 0.36 * len(rows) + 1.5)
    axis = figure.subplots()
    for k, row in enumerate(rows):
        low, high, value = float(row["low"]), float(row["high"]), float(row["value"])
        colour, marker = _OF_STATUS[str(row["status"]).split(" ")[0]]
        if row["status"] != "INFO":
            low = low if np.isfinite(low) else min(value, high) / 2  # a bound from above only
            axis.barh(k, high - low, left=low, height=0.62, color=style.BAND, edgecolor="none")
        axis.plot([float(row["expected"])] * 2, [k - 0.31, k + 0.31], color=style.COLOURS[0], linewidth=1.6)
        bounds = [[value - _or(row["lower"], value)], [_or(row["upper"], value) - value]]
        axis.errorbar(value, k, xerr=np.abs(bounds), fmt=marker, color=colour, capsize=3)
    axis.set_yticks(range(len(rows)), [str(row["row"]) for row in rows])
    axis.invert_yaxis()
    values = array([float(row["value"]) for row in rows])
    if np.isfinite(values).all():
        style.log_if_wide(axis.set_xscale, values)
    style.dress(
        axis,
        f"{label}: band and expected number (blue), ours with its 95 % interval (grey: shown only)",
        "",
        "",
    )
    style.heading(figure, textwrap.fill(title, 90))
    return figure


def _grid(count: int) -> tuple[Figure, list[Axes]]:
    """Panels in rows of at most four."""
    figure, axes = style.panel_grid(count, 3.3, 2.3, columns=4, margins=(0.6, 0.6))
    for axis in axes:
        axis.xaxis.set_major_locator(MaxNLocator(4))
    return figure, axes


def _one_scale(axes: Sequence[Axes], values: np.ndarray) -> None:
    """Common limits of all panels, with every value; on a logarithmic axis at most five decades."""
    values = values[np.isfinite(values)]
    if not values.size or values.max() <= 0:
        return
    positive = values[values > 0]
    wide = positive.max() > 10 * np.quantile(positive, 0.05)
    low = max(positive.min() / 1.2, positive.max() * 1e-5) if wide else 0.0
    for axis in axes:
        if wide:
            axis.set_yscale("log")
            style.plain_log(axis.yaxis)
        axis.set_ylim(low, values.max() * (1.2 if wide else 1.05))


def _length(values: ArrayLike) -> int:
    return int(array(values).shape[-1])


def _thinned(values: ArrayLike) -> np.ndarray:
    """Root mean square over replicates and over runs of steps, at most 400 numbers."""
    flat = array(values)
    flat = flat.reshape(-1, flat.shape[-1]).mean(0)
    run = max(1, len(flat) // _POINTS)
    cut = flat[: len(flat) // run * run].reshape(-1, run)
    return np.sqrt(cut.mean(1))


def _or(value: float | str, other: float) -> float:
    """A bound, or what stands for one that is missing."""
    number = float(value) if value != "" else other
    return other if np.isnan(number) else number
