"""Figures of the smoothing problem: quality against cost, and draws beside the truth."""

from collections.abc import Mapping
from typing import Protocol

from matplotlib.figure import Figure
from torch import Tensor

from slams.evaluation.style import COLOURS, dress, heading, new_figure
from slams.experiments.chain_smoothing import Problem

_PANELS = (
    ("w1", "Wasserstein-1 to the smoother"),
    ("log_prior", "E log p(x_2:L | x_1) [nats]"),
    ("log_likelihood", "E log p(y | x) [nats]"),
)
_SHOWN = 32


class Scored(Protocol):
    """What a method's draws are worth, and what they cost."""

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """One number a truth by name."""

    @property
    def evaluations(self) -> float:
        """Of the network."""


def quality_figure(outcomes: Mapping[str, Mapping[str, Scored]], floor: str, *, title: str = "") -> Figure:
    """Median scores against network evaluations, one row a process, one panel a score; lines join a net's runs.

    Args:
        outcomes: By process and method.
        floor: Method drawn as a dashed line.
        title: Title of the figure.
    """
    figure = new_figure(11.0, 3.2 * len(outcomes) + 0.6)
    axes = figure.subplots(len(outcomes), len(_PANELS), squeeze=False)
    for row, (label, found) in zip(axes, outcomes.items(), strict=True):
        for axis, (metric, name) in zip(row, _PANELS, strict=True):
            level = float(found[floor].scores[metric].nanquantile(0.5))
            axis.axhline(level, color="#000000", linestyle="--", linewidth=1.0, label=floor)
            learnt = {n: o for n, o in found.items() if o.evaluations > 0}
            groups: dict[str, list[tuple[float, float]]] = {}
            for run, outcome in learnt.items():
                net, _, guidance = (part.strip() for part in run.split("/"))
                point = (outcome.evaluations, float(outcome.scores[metric].nanquantile(0.5)))
                groups.setdefault(f"{net}, {guidance}", []).append(point)
            for k, (group, points) in enumerate(groups.items()):
                x, y = zip(*sorted(points), strict=True)
                axis.plot(
                    x, y, "o-", color=COLOURS[k % len(COLOURS)], markersize=4, linewidth=1.2, label=group
                )
            if learnt:
                axis.set_xscale("log")
            if metric == "w1":
                axis.set_yscale("log")
            else:
                values = [y for points in groups.values() for _, y in points]
                axis.set_ylim(max(min([*values, level]) - 2, level - 60), max([*values, level]) + 3)
            dress(axis, "network evaluations a draw", name, label)
    axes[0][0].legend(frameon=False, fontsize=7)
    heading(figure, title)
    return figure


def trajectory_figure(problem: Problem, draws: Mapping[str, Tensor]) -> Figure:
    """The observed coordinate of draws for the first truth, with truth and observations; one panel a method.

    Args:
        problem: What was seen.
        draws: Normalised draws (N, L, 3) by method.
    """
    columns = 3
    rows = -(-len(draws) // columns)
    figure = new_figure(11.0, 1.9 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    seen = problem.observations["a"].value[0, :, 0]
    for axis, (name, samples) in zip(axes, draws.items(), strict=False):
        axis.plot(samples[:_SHOWN, :, 0].mT.numpy(), color=COLOURS[0], linewidth=0.5, alpha=0.4)
        axis.plot(problem.truth[0, :, 0].numpy(), color="#000000", linewidth=1.3)
        axis.plot(seen.numpy(), "o", color=COLOURS[1], markersize=3)
        axis.set_ylim(-3.2, 3.2)
        dress(axis, "", "", name)
    for axis in axes[len(draws) :]:
        axis.set_visible(False)
    return figure
