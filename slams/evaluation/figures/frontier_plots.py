"""Figures of accuracy against cost, and of accuracy along a factor, one panel a set-up."""

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter
from matplotlib.transforms import Bbox

from slams.evaluation.figures import style

_MARKERS = "osD^vPX<>phd"
_DASHES: tuple[Any, ...] = (":", "--", "-.", (0, (8, 2, 1, 2, 1, 2)), (0, (1, 4)))
_ROOM: dict[str, Any] = {"least": 8.2, "margins": (0.4, 1.3)}
_TOP = 1.8  # times the largest line of reference: methods further off are drawn there, as arrows
_PLACES = ((6, 5), (6, -11), (-6, 5), (-6, -11), (0, 12), (0, -18), (14, 0), (-14, 0), (6, 20), (6, -26))


@dataclass(frozen=True)
class Mark:
    """One point of a panel.

    Attributes:
        method: Name of the method, for colour and shape.
        label: Label, written if it is on the frontier.
        x: Cost, or the factor.
        y: Error.
        low: Lower end of the interval, NaN for none.
        high: Upper end of the interval.
        size: Ensemble size, for the size of the marker.
        front: Whether it is on the frontier.
    """

    method: str
    label: str
    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    size: int | None = None
    front: bool = False


@dataclass(frozen=True)
class Panel:
    """One set-up.

    Attributes:
        title: Title of the set-up.
        marks: Points.
        lines: Errors of reference methods, by name.
        ticks: Names of x = 0, 1, ... for a factor without numbers.
        xlabel: Label of the x axis.
    """

    title: str
    marks: Sequence[Mark]
    lines: Mapping[str, float] = field(default_factory=dict)
    ticks: Sequence[str] = ()
    xlabel: str = ""


def looks(methods: Iterable[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each method; no two share both."""
    return {
        name: (style.COLOURS[k % len(style.COLOURS)], _MARKERS[(k + k // len(style.COLOURS)) % len(_MARKERS)])
        for k, name in enumerate(dict.fromkeys(methods))
    }


def against_cost(
    panels: Sequence[Panel], *, xlabel: str, ylabel: str, styles: Mapping[str, tuple[str, str]]
) -> Figure:
    """Error against cost, both logarithmic, with intervals; the frontier is joined and its points are named.

    Args:
        panels: Panels, one per set-up.
        xlabel: Label of the cost.
        ylabel: Label of the error.
        styles: Styles of the methods, from `looks`.
    """
    figure, axes = style.panel_grid(len(panels), 4.1, 3.5, columns=3, **_ROOM)
    dashes = _dashes(panels)
    for axis, panel in zip(axes, panels, strict=False):
        top = _limits(axis, panel, dashes)
        for mark in panel.marks:
            _draw(axis, mark, styles, top)
        front = sorted((m for m in panel.marks if m.front), key=lambda m: m.x)
        if front:
            axis.step([m.x for m in front], [m.y for m in front], where="post", color=style.PALE, zorder=1)
        costs = [m.x for m in panel.marks if m.x > 0]
        if costs:
            axis.set_xscale("log")
            axis.set_xlim(min(costs) / 3, max(costs) * 3)
        style.dress(axis, xlabel, "", textwrap.fill(panel.title, 46))
        axis.title.set_fontsize(style.NOTE)
    figure.supylabel(ylabel, fontsize=style.LABEL)
    _legend(figure, panels, styles)
    figure.draw_without_rendering()  # labels need the final positions of the points
    for axis, panel in zip(axes, panels, strict=False):
        _name_front(figure, axis, panel)
    return figure


def along_factor(
    panels: Sequence[Panel], *, ylabel: str, styles: Mapping[str, tuple[str, str]], columns: int = 3
) -> Figure:
    """Error of each method along a factor (number, or names in `ticks`), intervals as bars.

    Args:
        panels: Panels, one per group of set-ups.
        ylabel: Label of the error.
        styles: Styles of the methods, from `looks`.
        columns: Number of panels in a row.
    """
    figure, axes = style.panel_grid(len(panels), 4.1, 3.3, columns=columns, **_ROOM)
    dashes = _dashes(panels)
    for axis, panel in zip(axes, panels, strict=False):
        top = _limits(axis, panel, dashes)
        names = sorted({mark.method for mark in panel.marks})
        for k, name in enumerate(names):
            marks = sorted((m for m in panel.marks if m.method == name), key=lambda m: m.x)
            beside = k / max(len(names) - 1, 1) - 0.5  # bars of many methods would hide each other
            places = [m.x + 0.3 * beside if panel.ticks else m.x * 1.12**beside for m in marks]
            colour = styles[name][0]
            axis.plot(places, [min(m.y, top) for m in marks], color=colour, linewidth=1)
            for mark, x in zip(marks, places, strict=True):
                _draw(axis, Mark(**{**vars(mark), "x": x, "size": None}), styles, top)
        if panel.ticks:
            axis.set_xticks(range(len(panel.ticks)), [textwrap.fill(t, 16) for t in panel.ticks])
        else:
            sizes = sorted({m.x for m in panel.marks})
            axis.set_xscale("log")
            axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axis.xaxis.set_minor_formatter(NullFormatter())
        style.dress(axis, panel.xlabel, "", textwrap.fill(panel.title, 46))
        axis.title.set_fontsize(style.NOTE)
    figure.supylabel(ylabel, fontsize=style.LABEL)
    _legend(figure, panels, styles)
    return figure


def _dashes(panels: Sequence[Panel]) -> dict[str, Any]:
    """A dash of its own for every line of reference, the same in all panels."""
    names = dict.fromkeys(name for panel in panels for name in panel.lines)
    return {name: _DASHES[k % len(_DASHES)] for k, name in enumerate(names)}


def _limits(axis: Axes, panel: Panel, dashes: Mapping[str, Any]) -> float:
    """A logarithmic axis that shows every line, and the error at which arrows are drawn."""
    values = [m.y for m in panel.marks if math.isfinite(m.y) and m.y > 0]
    lines = [y for y in panel.lines.values() if math.isfinite(y) and y > 0]
    if not values and not lines:
        return math.inf
    top = _TOP * max(lines) if lines else 1.3 * max(values)
    low = min([*values, *lines]) / 1.35
    axis.set_yscale("log")
    axis.set_ylim(low, top * 1.08)
    decade = [x * 10.0**e for e in range(-6, 7) for x in (1, 2, 3, 5)]
    ticks = [y for y in decade if low <= y <= top * 1.08]
    axis.set_yticks(ticks if len(ticks) > 1 else [low, top])
    style.plain_log(axis.yaxis, ".3g")
    for name, y in panel.lines.items():
        axis.axhline(y, color=style.REFERENCE, linewidth=1, linestyle=dashes[name], zorder=1)
    return top


def _draw(axis: Axes, mark: Mark, styles: Mapping[str, tuple[str, str]], top: float) -> None:
    if not math.isfinite(mark.x):
        return
    colour, shape = styles[mark.method]
    area = 26 + (9 * math.log2(max(mark.size, 5) / 5) if mark.size else 0)
    if not mark.y < top:
        axis.scatter(mark.x, top, s=area, color=colour, marker="$\\uparrow$", zorder=3)
        return
    if math.isfinite(mark.low) and math.isfinite(mark.high):
        low, high = max(mark.low, mark.y * 1e-3), min(mark.high, top)
        bars = [[mark.y - low], [max(high - mark.y, 0.0)]]
        axis.errorbar(
            mark.x, mark.y, yerr=bars, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.6, zorder=2
        )
    edge = style.BLACK if mark.front else "white"
    axis.scatter(
        mark.x, mark.y, s=area, color=colour, marker=shape, edgecolors=edge, linewidths=0.8, zorder=3
    )


def _legend(figure: Figure, panels: Sequence[Panel], styles: Mapping[str, tuple[str, str]]) -> None:
    used = {mark.method for panel in panels for mark in panel.marks}
    handles = [
        Line2D([], [], linestyle="none", marker=shape, color=colour, markeredgecolor="white", label=name)
        for name, (colour, shape) in styles.items()
        if name in used
    ]
    handles += [
        Line2D([], [], color=style.REFERENCE, linewidth=1, linestyle=dash, label=name)
        for name, dash in _dashes(panels).items()
    ]
    if any(mark.front for panel in panels for mark in panel.marks):
        handles.append(
            Line2D([], [], color=style.PALE, marker="o", markeredgecolor=style.BLACK, label="frontier")
        )
    style.legend_below(figure, handles=handles, columns=min(6, len(handles)) or 1)


def _name_front(figure: Figure, axis: Axes, panel: Panel) -> None:
    """Names beside the frontier's points, where they cover least."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    spots = [axis.transData.transform((m.x, m.y)) for m in panel.marks if m.x > 0 and math.isfinite(m.y)]
    taken: list[Bbox] = []
    frame = axis.get_window_extent(renderer)
    for mark in panel.marks:
        if not mark.front or mark.x <= 0:
            continue
        best = None
        for dx, dy in _PLACES:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axis.annotate(
                mark.label,
                (mark.x, mark.y),
                xytext=(dx, dy),
                textcoords="offset points",
                ha=side,
                fontsize=style.TINY,
            )
            box = text.get_window_extent(renderer)
            cost = sum(_overlap(box, other) for other in taken) * 10
            cost += sum(box.x0 - 3 < x < box.x1 + 3 and box.y0 - 3 < y < box.y1 + 3 for x, y in spots) * 30.0
            cost += (box.width * box.height - _overlap(box, frame)) * 20
            if best is None or cost < best[0]:
                if best is not None:
                    best[1].remove()
                best = (cost, text, box)
            else:
                text.remove()
        if best is not None:
            taken.append(best[2])


def _overlap(one: Bbox, other: Bbox) -> float:
    width = min(one.x1, other.x1) - max(one.x0, other.x0)
    height = min(one.y1, other.y1) - max(one.y0, other.y0)
    return float(max(width, 0.0) * max(height, 0.0))
