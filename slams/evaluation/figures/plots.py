"""One function, one figure: arrays in, a matplotlib Figure out; no pyplot, no global state, no window."""

from collections.abc import Mapping, Sequence

import matplotlib.dates as mdates
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike

from slams.core.errors import InvalidValueError
from slams.evaluation.figures import style
from slams.evaluation.figures.style import Array, array


def rank_histogram(
    counts: ArrayLike | Mapping[str, ArrayLike], *, title: str = "", notes: str = ""
) -> Figure:
    """Rank histogram of the truth among the members; flat if the ensemble is calibrated.

    Args:
        counts: Counts or weights per rank (N + 1), or several by name, one panel each.
        title: Title of the figure.
        notes: A line below the title, such as the chi-square.
    """
    named = counts if isinstance(counts, Mapping) else {"": counts}
    figure, panels = style.panels_in_row(named, 4.2, 3.6)
    for k, (axis, name, each) in enumerate(panels):
        share = array(each)
        share = share / max(share.sum(), np.finfo(float).tiny) * len(share)
        x, colour = np.arange(1, len(share) + 1), style.COLOURS[0]
        axis.bar(x, share, width=1.0, color=colour, edgecolor="white", linewidth=0.6)
        axis.axhline(1, color=style.INK, linewidth=1, linestyle="--")
        axis.set(xlim=(0.5, len(share) + 0.5), ylim=(0, max(1.6, float(share.max()) * 1.08)))
        axis.xaxis.set_major_locator(MaxNLocator(8, integer=True))
        style.dress(axis, "rank of the truth", "frequency / uniform" if k == 0 else "", name)
    style.heading(figure, title, notes)
    return figure


def reliability_diagram(curves: Mapping[str, Mapping[str, ArrayLike]], *, title: str = "") -> Figure:
    """Observed frequency against forecast probability of events; on the diagonal if probabilities are reliable.

    Args:
        curves: By event, one panel each, and by method the bins (B, 3): weight, and its sums with the forecast
            probability and with the event; bins with less than a thousandth of the weight are not drawn.
        title: Title of the figure.
    """
    figure, panels = style.panels_in_row(curves, 4.2, 4.0)
    for k, (axis, name, methods) in enumerate(panels):
        axis.plot([0, 1], [0, 1], color=style.INK, linewidth=1, linestyle="--")
        for (method, bins), colour in zip(methods.items(), style.COLOURS, strict=False):
            weight, forecast, event = array(bins).T
            some = weight > 1e-3 * weight.sum()
            axis.plot(
                forecast[some] / weight[some], event[some] / weight[some],
                color=colour, linewidth=1.6, marker=".", label=method,
            )  # fmt: skip
        axis.set(xlim=(0, 1), ylim=(0, 1))
        style.dress(axis, "forecast probability", "observed frequency" if k == 0 else "", name)
        style.legend(axis, len(methods))
    style.heading(figure, title)
    return figure


def loss_curves(curves: Mapping[str, tuple[ArrayLike, ArrayLike]], *, label: str = "loss") -> Figure:
    """Training and validation loss of each model, one panel a model.

    Args:
        curves: Rows of (step, loss) by model: training (n, 2) and validation (m, 2), either may be empty.
        label: Name of the loss.
    """
    figure, panels = style.panels_in_row(curves, 4.8, 3.7)
    for k, (axis, name, pair) in enumerate(panels):
        both = [array(each).reshape(-1, 2) for each in pair]
        for rows, colour, kind in zip(both, style.COLOURS, ("training", "validation"), strict=False):
            if len(rows):
                dots = "." if len(rows) < 3 else None
                axis.plot(*rows.T, color=colour, linewidth=1.6, label=kind, marker=dots)
        style.log_if_wide(axis.set_yscale, np.concatenate(both)[:, 1])
        axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        style.dress(axis, "step", label if k == 0 else "", name)
        style.legend(axis, 2)
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
        wavenumber: Label of the wavenumber axis.
        title: Title of the figure.
    """
    figure = style.new_figure(6.8, 4.6)
    axis = figure.subplots()
    styles = style.line_styles(curves)
    for name, pair in curves.items():
        number, power = (array(each).ravel() for each in pair)
        keep = (number > 0) & (power > 0)
        axis.loglog(number[keep], power[keep], **styles[name])
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    style.plain_log(axis.xaxis)
    style.dress(axis, wavenumber, f"power [{units}²]", title)
    style.legend(axis, len(curves))
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
    height = max(0.36 * len(methods) + 1.5, 2.6)
    figure, panels = style.panels_in_row(scores, 3.6, height, margin=1.2)
    for k, (axis, score, values) in enumerate(panels):
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
            colour = style.COLOURS[0] if row == 0 else style.MUTED
            if wide:
                axis.plot(value, row, "o", markersize=8, color=colour)
            else:
                axis.barh(row, value, height=0.66, color=colour)
            goal = goals.get(method) if isinstance(goals, Mapping) else goals
            if goal is not None:
                span = row - 0.5, row + 0.5
                axis.plot([goal, goal], span, "--", color=style.COLOURS[1], linewidth=1.4)
            if np.isfinite(low) and np.isfinite(high):
                ends = [[max(value - low, 0)], [max(high - value, 0)]]
                axis.errorbar(value, row, xerr=ends, color=style.INK, linewidth=1.1, capsize=2.5)
        axis.set_yticks(range(len(methods)), methods if k == 0 else [""] * len(methods))
        axis.set_ylim(len(methods) - 0.5, -0.5)
        if wide:
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            style.plain_log(axis.xaxis)
        else:
            axis.xaxis.set_major_locator(MaxNLocator(5))
            if (
                centres.size and 0 < 3 * centres.max() < axis.get_xlim()[1]
            ):  # intervals of two or three values
                axis.set_xlim(right=3 * centres.max())
        style.dress(axis, score, "", "")
        axis.grid(False, axis="y")
    style.heading(figure, title)
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
        units: Units of the quantity.
        title: Title of the figure.
    """
    figure = style.new_figure(9.5, 3.8)
    axis = figure.subplots()
    when = np.asarray(dates)
    styles = style.line_styles(curves)
    for name, values in curves.items():
        axis.plot(when, array(values), **styles[name])
        if bands and name in bands:
            low, high = (array(bound) for bound in bands[name])
            axis.fill_between(when, low, high, color=styles[name]["color"], alpha=0.18, linewidth=0)
    if points is not None:
        axis.plot(when, array(points), "o", color=style.INK, markersize=3.5, label="observations", zorder=4)
    style.dress(axis, "", f"{label} [{units}]" if units else label, title)
    style.date_axis(axis, when)
    style.legend(axis, len(curves) + (points is not None))
    return figure


def coverage_by_modality(dates: ArrayLike, presence: Mapping[str, ArrayLike], *, title: str = "") -> Figure:
    """Data coverage in time, one row per modality, darker with more data, grey without.

    Args:
        dates: Times (T), datetime64 or numbers, in order.
        presence: Fraction present in [0, 1], or bool, (T) by modality.
        title: Title of the figure.
    """
    when = np.asarray(dates)
    figure = style.new_figure(10, 0.42 * len(presence) + 1.5)
    axis = figure.subplots()
    days = mdates.date2num(when) if np.issubdtype(when.dtype, np.datetime64) else when.astype(float)
    step = float(np.min(np.diff(days))) if len(days) > 1 else 1.0
    # Each date fills one step and no more, so that a season without files shows as a gap.
    slots = np.round((days - days[0]) / step).astype(int)
    table = np.full((len(presence), slots[-1] + 1), np.nan)
    for row, values in enumerate(presence.values()):
        share = array(values)
        table[row, slots] = np.where(share > 0, share, np.nan)
    axis.set_facecolor(style.MISSING)
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
    shades = {"boundaries": np.linspace(0, 1, 101), "ticks": [0, 0.5, 1]}
    style.colour_bar(figure, image, axis, "fraction present", pad=0.01, **shades)
    if np.issubdtype(when.dtype, np.datetime64):
        axis.xaxis_date()
    style.dress(axis, "", "", title)
    style.date_axis(axis, when)
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
        raise InvalidValueError(
            f"matrix has shape {values.shape}, but there are {len(rows)} rows and {len(columns)} columns."
        )
    figure = style.new_figure(max(0.62 * len(columns) + 3.2, 5), 0.42 * len(rows) + 1.9)
    axis = figure.subplots()
    axis.set_facecolor(style.MISSING)
    image = axis.imshow(np.ma.masked_invalid(values), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            colour = "white" if abs(value) > 0.6 else style.INK
            axis.text(
                column, row, f"{value:.2f}", ha="center", va="center", fontsize=style.SMALL, color=colour
            )
    axis.set_xticks(
        range(len(columns)), columns, rotation=35 if max(map(len, columns)) > 5 else 0, ha="center"
    )
    axis.set_yticks(range(len(rows)), rows)
    style.colour_bar(figure, image, axis, label, pad=0.02)
    style.dress(axis, "", "", title)
    axis.grid(False)
    return figure
