"""One function, one figure: arrays in, a matplotlib Figure out; no pyplot, no global state, no window."""

from collections.abc import Mapping, Sequence

import matplotlib.dates as mdates
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import ArrayLike

from slams.evaluation.figures.cartography import (
    MISSING,
    Array,
    array,
)
from slams.evaluation.figures.style import (
    COLOURS,
    date_axis,
    dress,
    heading,
    legend,
    line_styles,
    log_if_wide,
    new_figure,
    panels_in_row,
)


def rank_histogram(
    counts: ArrayLike | Mapping[str, ArrayLike], *, title: str = "", notes: str = ""
) -> Figure:
    """How often the truth takes each rank among the members; flat if the ensemble is calibrated.

    Args:
        counts: Counts or weights per rank (N + 1); or such by name, one panel each.
        title: Title of the figure.
        notes: A line below the title, such as the chi-square.
    """
    named = counts if isinstance(counts, Mapping) else {"": counts}
    figure = new_figure(max(4.2 * len(named), 6), 3.6)
    for k, (axis, (name, each)) in enumerate(
        zip(panels_in_row(figure, len(named)), named.items(), strict=True)
    ):
        share = array(each)
        share = share / max(share.sum(), np.finfo(float).tiny) * len(share)
        axis.bar(
            np.arange(1, len(share) + 1), share, width=1.0, color=COLOURS[0], edgecolor="white", linewidth=0.6
        )
        axis.axhline(1, color="#202020", linewidth=1, linestyle="--")
        axis.set(xlim=(0.5, len(share) + 0.5), ylim=(0, max(1.6, float(share.max()) * 1.08)))
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        dress(axis, "rank of the truth", "frequency / uniform" if k == 0 else "", name)
    heading(figure, title, notes)
    return figure


def loss_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, label: str = "loss") -> Figure:
    """Training and validation loss of each model, one panel a model.

    Args:
        curves: Rows of (step, loss) by model: training (n, 2) and validation (m, 2), either may be empty.
        label: Name of the loss.
    """
    figure = new_figure(max(4.8 * len(curves), 6), 3.7)
    for k, (axis, (name, pair)) in enumerate(
        zip(panels_in_row(figure, len(curves)), curves.items(), strict=True)
    ):
        train, valid = (array(each).reshape(-1, 2) for each in pair)
        for rows, colour, kind in ((train, COLOURS[0], "training"), (valid, COLOURS[1], "validation")):
            if len(rows):
                axis.plot(
                    rows[:, 0],
                    rows[:, 1],
                    color=colour,
                    linewidth=1.6,
                    label=kind,
                    marker="." if len(rows) < 3 else None,
                )
        log_if_wide(axis, np.concatenate([train[:, 1], valid[:, 1]]))
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        dress(axis, "step", label if k == 0 else "", name)
        axis.legend(frameon=False, fontsize=9)
    return figure


def spectra(
    curves: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    units: str = "K",
    wavenumber: str = "zonal wavenumber",
    title: str = "",
) -> Figure:
    """Power against wavenumber, both logarithmic; the mean (wavenumber 0) is left out.

    Args:
        curves: Wavenumbers (K) and power (K) by name; "truth" is drawn black.
        units: Units of the field, whose square is the power's.
        wavenumber: What the wavenumbers are.
        title: Title of the figure.
    """
    figure = new_figure(6.8, 4.6)
    axis = figure.subplots()
    styles = line_styles(curves)
    for name, pair in curves.items():
        number, power = (array(each).ravel() for each in pair)
        keep = (number > 0) & (power > 0)
        axis.loglog(number[keep], power[keep], **styles[name])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    dress(axis, wavenumber, f"power [{units}²]", title)
    legend(axis, len(curves))
    return figure


def bars(
    scores: Mapping[str, Mapping[str, Sequence[float]]],
    *,
    title: str = "",
    target: Mapping[str, float | Mapping[str, float]] | None = None,
) -> Figure:
    """Scores of methods with their intervals, one panel a score, methods from top to bottom.

    The first method is darker. Scores that are positive and span more than a factor of 8 are dots on a logarithmic
    axis, where a bar would have no beginning.

    Args:
        scores: By score (with its units, the panel's label), then by method: (value, lower, upper); NaN for
            none.
        title: Title of the figure.
        target: Value of a score to mark with a line, such as 0.9 for coverage; or one for each method.
    """
    methods = list(dict.fromkeys(method for each in scores.values() for method in each))
    figure = new_figure(max(3.6 * len(scores) + 1.2, 6), max(0.36 * len(methods) + 1.5, 2.6))
    for k, (axis, (score, values)) in enumerate(
        zip(panels_in_row(figure, len(scores)), scores.items(), strict=True)
    ):
        centres = array([float(v[0]) for v in values.values()])
        centres = centres[np.isfinite(centres)]
        wide = bool(centres.size) and 0 < 8 * centres.min() < centres.max()
        if wide:
            axis.set_xscale("log")
        goals = target.get(score, {}) if target else {}
        for row, method in enumerate(methods):
            value, low, high = (float(v) for v in values.get(method, (np.nan,) * 3))
            if np.isnan(value):
                continue
            colour = COLOURS[0] if row == 0 else "#9db4c4"
            if wide:
                axis.plot(value, row, "o", markersize=8, color=colour)
            else:
                axis.barh(row, value, height=0.66, color=colour)
            goal = goals.get(method) if isinstance(goals, Mapping) else goals
            if goal is not None:
                axis.plot(
                    [goal, goal], [row - 0.5, row + 0.5], color=COLOURS[1], linewidth=1.4, linestyle="--"
                )
            if np.isfinite(low) and np.isfinite(high):
                ends = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.errorbar(value, row, xerr=ends, color="#202020", linewidth=1.1, capsize=2.5)
        axis.set_yticks(range(len(methods)), methods if k == 0 else [""] * len(methods))
        axis.set_ylim(len(methods) - 0.5, -0.5)
        if wide:
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        else:
            axis.xaxis.set_major_locator(MaxNLocator(5))
        dress(axis, score, "", "")
        axis.grid(False, axis="y")
    heading(figure, title)
    return figure


def time_series(
    dates: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    bands: Mapping[str, tuple[ArrayLike, ArrayLike]] | None = None,
    points: ArrayLike | None = None,
    label: str = "",
    units: str = "",
    title: str = "",
) -> Figure:
    """Values against time, with bands of uncertainty and the observations as dots.

    Args:
        dates: Times (L), datetime64 or numbers.
        curves: Values (L) by name; "truth" is drawn black.
        bands: Lower and upper bounds (L) of some of the curves, shaded.
        points: Observed values (L), NaN where there are none.
        label: Name of the quantity.
        units: Its units.
        title: Title of the figure.
    """
    figure = new_figure(9.5, 3.8)
    axis = figure.subplots()
    when = np.asarray(dates)
    styles = line_styles(curves)
    for name, values in curves.items():
        axis.plot(when, array(values), **styles[name])
        if bands and name in bands:
            low, high = (array(bound) for bound in bands[name])
            axis.fill_between(when, low, high, color=styles[name]["color"], alpha=0.18, linewidth=0)
    if points is not None:
        axis.plot(when, array(points), "o", color="#202020", markersize=3.5, label="observations", zorder=4)
    dress(axis, "", f"{label} [{units}]" if units else label, title)
    date_axis(axis, when)
    legend(axis, len(curves) + (points is not None))
    return figure


def coverage_by_modality(dates: ArrayLike, presence: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Which modality has data when: one row each, darker where more is there, grey where nothing is.

    Args:
        dates: Times (T), datetime64 or numbers, in order.
        presence: Fraction present in [0, 1], or bool, (T) by modality.
        title: Title of the figure.
    """
    when = np.asarray(dates)
    figure = new_figure(10, 0.42 * len(presence) + 1.5)
    axis = figure.subplots()
    days = mdates.date2num(when) if np.issubdtype(when.dtype, np.datetime64) else when.astype(float)
    step = float(np.min(np.diff(days))) if len(days) > 1 else 1.0
    # Each date fills one step and no more, so that a season without files shows as a gap.
    slots = np.round((days - days[0]) / step).astype(int)
    table = np.full((len(presence), slots[-1] + 1), np.nan)
    for row, values in enumerate(presence.values()):
        share = array(values)
        table[row, slots] = np.where(share > 0, share, np.nan)
    axis.set_facecolor(MISSING)
    left, right = days[0] - step / 2, days[0] + (table.shape[1] - 0.5) * step
    image = axis.imshow(
        np.ma.masked_invalid(table),
        aspect="auto",
        interpolation="nearest",
        extent=(left, right, len(presence) - 0.5, -0.5),
        cmap="Blues",
        vmin=-0.35,
        vmax=1.0,
    )
    axis.set_yticks(range(len(presence)), list(presence))
    axis.hlines(np.arange(0.5, len(presence) - 1), left, right, colors="white", linewidth=2)
    bar = figure.colorbar(image, ax=axis, pad=0.01, boundaries=np.linspace(0, 1, 101), ticks=[0, 0.5, 1])
    bar.set_label("fraction present", fontsize=9)
    bar.ax.tick_params(labelsize=8)
    bar.outline.set_visible(False)
    if np.issubdtype(when.dtype, np.datetime64):
        axis.xaxis_date()
    dress(axis, "", "", title)
    date_axis(axis, when)
    axis.grid(False)
    return figure


def correlations(
    matrix: ArrayLike,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    title: str = "",
    label: str = "correlation",
) -> Figure:
    """A table of correlations, coloured from -1 to 1 and written out.

    Args:
        matrix: Correlations (R, K), NaN where there is none.
        rows: Names of the rows (R).
        columns: Names of the columns (K).
        title: Title of the figure.
        label: Name of the colour scale.
    """
    values: Array = array(matrix)
    if values.shape != (len(rows), len(columns)):
        raise ValueError(
            f"matrix has shape {values.shape}, but there are {len(rows)} rows and {len(columns)} columns."
        )
    figure = new_figure(max(0.62 * len(columns) + 3.2, 5), 0.42 * len(rows) + 1.9)
    axis = figure.subplots()
    axis.set_facecolor(MISSING)
    image = axis.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 else "#202020"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8, color=colour)
    axis.set_xticks(
        range(len(columns)), columns, rotation=35 if max(map(len, columns)) > 5 else 0, ha="center"
    )
    axis.set_yticks(range(len(rows)), rows)
    bar = figure.colorbar(image, ax=axis, pad=0.02)
    bar.set_label(label, fontsize=9)
    bar.outline.set_visible(False)
    dress(axis, "", "", title)
    axis.grid(False)
    return figure
