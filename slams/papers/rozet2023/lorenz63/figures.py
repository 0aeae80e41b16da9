"""Figures of the smoothing problem: quality against cost, and draws beside the truth."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from torch import Tensor

from slams.evaluation.figures.style import BLACK, COLOURS, dress, heading, new_figure
from slams.papers.rozet2023.lorenz63.problem import Lorenz63Problem
from slams.papers.rozet2023.outcome import SDAOutcome

_PANELS = (
    ("w1", "Wasserstein-1 to the smoother"),
    ("log_prior", "E log p(x_2:L | x_1) [nats]"),
    ("log_likelihood", "E log p(y | x) [nats]"),
)
_SHOWN = 32
_MARKS = "os^Dv"


def quality_figure(
    outcomes: Mapping[str, Mapping[str, SDAOutcome]], floor: str, *, title: str = ""
) -> Figure:
    """Median scores against network evaluations, one row a process, one panel a score.

    Colours are nets and guidances, marks samplers; lines join samplers that differ in the number behind their name.

    Args:
        outcomes: Outcomes by process and method.
        floor: Method drawn as a dashed line.
        title: Title of the figure.
    """
    figure = new_figure(11.0, 3.2 * len(outcomes) + 1.8)
    axes = figure.subplots(len(outcomes), len(_PANELS), squeeze=False)
    styles = _styles([run for found in outcomes.values() for run in _learnt(found)])
    for row, (label, found) in zip(axes, outcomes.items(), strict=True):
        for axis, (metric, name) in zip(row, _PANELS, strict=True):
            dress(axis, "network evaluations a draw", name, label)
            _panel(axis, found, floor, metric, styles)
    lines = {line.get_label(): line for axis in axes.ravel() for line in axis.get_lines()}
    figure.legend(
        list(lines.values()), list(lines), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    heading(figure, title)
    return figure


def _learnt(found: Mapping[str, SDAOutcome]) -> dict[str, SDAOutcome]:
    return {run: outcome for run, outcome in found.items() if outcome.evaluations > 0}


def _group(run: str) -> tuple[str, str]:
    """Net and guidance of a run, and its sampler without the number behind the name."""
    net, sampler, guidance = (part.strip() for part in run.split("/"))
    return f"{net}, {guidance}", sampler.rstrip("0123456789")


def _styles(runs: Sequence[str]) -> dict[tuple[str, str], dict[str, Any]]:
    """Colour and mark of each group."""
    groups = list(dict.fromkeys(_group(run) for run in runs))
    guided, samplers = (list(dict.fromkeys(group[i] for group in groups)) for i in (0, 1))
    return {
        (guide, sampler): {
            "color": COLOURS[guided.index(guide) % len(COLOURS)],
            "marker": _MARKS[samplers.index(sampler) % len(_MARKS)],
        }
        for guide, sampler in groups
    }


def _panel(
    axis: Axes, found: Mapping[str, SDAOutcome], floor: str, metric: str, styles: Mapping[tuple[str, str], dict[str, Any]]
) -> None:  # fmt: skip
    level = float(found[floor].scores[metric].nanquantile(0.5))
    axis.axhline(level, color=BLACK, linestyle="--", linewidth=1.0, label=floor)
    values = [level]
    for group, style in styles.items():
        points = sorted(
            (outcome.evaluations, float(outcome.scores[metric].nanquantile(0.5)))
            for run, outcome in _learnt(found).items()
            if _group(run) == group
        )
        x, y = [point[0] for point in points], [point[1] for point in points]
        axis.plot(x, y, markersize=5, linewidth=1.2, label=", ".join(group), **style)
        values += y
    if metric != "w1":
        axis.set_ylim(max(min(values) - 2, level - 60), max(values) + 3)
    else:
        axis.set_yscale("log")
        _plain_ticks(axis.yaxis)
    if styles:
        axis.set_xscale("log")
        _plain_ticks(axis.xaxis)


def _plain_ticks(scale: Axis) -> None:
    """1, 2, 5, 10, ... in numbers."""
    scale.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    scale.set_major_formatter("{x:g}")
    scale.set_minor_formatter(NullFormatter())


def trajectory_figure(problem: Lorenz63Problem, draws: Mapping[str, Tensor]) -> Figure:
    """The observed coordinate of draws for the first truth, with truth and observations; one panel a method.

    Args:
        problem: Problem with its observations.
        draws: Normalised draws (N, L, 3) by method.
    """
    columns = 3
    rows = -(-len(draws) // columns)
    figure = new_figure(11.0, 1.9 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    seen = problem.observations["a"].value[0, :, 0]
    for axis, (name, samples) in zip(axes, draws.items(), strict=False):
        axis.plot(samples[:_SHOWN, :, 0].mT.numpy(), color=COLOURS[0], linewidth=0.5, alpha=0.4)
        axis.plot(problem.truth[0, :, 0].numpy(), color=BLACK, linewidth=1.3)
        axis.plot(seen.numpy(), "o", color=COLOURS[1], markersize=3)
        axis.set_ylim(-3.2, 3.2)
        dress(axis, "", "", name)
    for axis in axes[len(draws) :]:
        axis.set_visible(False)
    return figure
