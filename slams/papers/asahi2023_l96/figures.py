"""Figures of the study of a wrong forcing: errors of all methods, and the estimated model error."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from slams.evaluation.figures.style import COLOURS, dress, heading, new_figure
from slams.evaluation.metrics import METRICS
from slams.papers.asahi2023_l96.plan import METRIC, ModelErrorCell, ModelErrorPlan
from slams.twin.experiment import Result

Found = Mapping[str, Mapping[str, Result]]


def error_figure(plan: ModelErrorPlan, found: Found) -> Figure:
    """Error of every method against the truth's forcing, with 95 % intervals, a panel a stride."""
    labels = list(dict.fromkeys(label for results in found.values() for label in results))
    strides = len({cell.stride for cell in plan.chosen})
    figure = new_figure(3.6 * strides + 0.6, 4.2)
    for axis, cells in _panels(figure, plan.chosen):
        for k, label in enumerate(labels):
            there = [cell for cell in cells if label in found.get(cell.name, {})]
            spans = [
                METRICS[METRIC].interval(found[cell.name][label].scores[METRIC].tolist()) for cell in there
            ]
            if spans:
                value = torch.tensor(spans)
                axis.errorbar(
                    [cell.forcing for cell in there],
                    value[:, 0].numpy(),
                    yerr=(value[:, 1:] - value[:, :1]).abs().nan_to_num().mT.numpy(),
                    color=COLOURS[k % len(COLOURS)],
                    linestyle="-" if k < len(COLOURS) else "--",
                    marker="o",
                    markersize=3,
                    capsize=2,
                    linewidth=1.2,
                    label=label,
                )
        axis.set_yscale("log")
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(NullFormatter())
        _dress(axis, cells[0].stride, "forcing of the truth", "RMSE of the mean")
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    heading(figure, plan.title)
    return figure


def model_error_figure(plan: ModelErrorPlan, found: Found) -> Figure:
    """Estimated model error along the run, beside the true one."""
    forcings = sorted({cell.forcing for cell in plan.chosen})
    strides = len({cell.stride for cell in plan.chosen})
    figure = new_figure(3.6 * strides + 0.8, 3.8)
    for axis, cells in _panels(figure, plan.chosen, sharey=True):
        for cell in cells:
            result = found[cell.name][plan.ours]
            numbers = result.posterior.diagnostics.get("model_error")
            if numbers is None:
                continue
            settled = int(result.setup["burn_in"]) // 4
            y = numbers.mean(0)[settled:].numpy()
            time = (torch.arange(len(y)) + settled).numpy() * result.dt
            colour = COLOURS[forcings.index(cell.forcing) % len(COLOURS)]
            axis.plot(time, y, color=colour, linewidth=1.2, label=f"F = {cell.forcing:g}")
            true = result.dt * plan.excess(cell)
            axis.axhline(true, color=colour, linewidth=0.8, linestyle=":", zorder=0)
        _dress(axis, cells[0].stride, "model time", "error of the model in a step")
    handles = {
        label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc="outside right upper")
    heading(figure, "Estimated error of the model, mean over sites and truths; dotted: the true one")
    return figure


def _panels(
    figure: Figure, cells: Sequence[ModelErrorCell], *, sharey: bool = False
) -> Iterator[tuple[Axes, list[ModelErrorCell]]]:
    """A panel for each stride, and its cells by forcing."""
    strides = sorted({cell.stride for cell in cells})
    axes = figure.subplots(1, len(strides), squeeze=False, sharey=sharey)[0]
    for axis, stride in zip(axes, strides, strict=True):
        yield axis, sorted((cell for cell in cells if cell.stride == stride), key=lambda cell: cell.forcing)


def _dress(axis: Axes, stride: int, x: str, y: str) -> None:
    """Labels of a panel; the first one names the quantity."""
    first = axis.get_subplotspec().is_first_col()  # type: ignore[union-attr]
    title = "all variables observed" if stride == 1 else f"1 in {stride} observed"
    dress(axis, x, y if first else "", title)
