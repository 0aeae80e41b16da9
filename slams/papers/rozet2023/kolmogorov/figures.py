"""Pictures of the Kolmogorov flow: vorticity of truths, estimates and events; errors and spectra."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from slams.core.geometry.torus import clockwise_vorticity
from slams.evaluation.figures.style import BLACK, COLOURS, ICE_AND_FIRE, dress, heading, new_figure
from slams.evaluation.intervals import log_normal_limits
from slams.papers.rozet2023.kolmogorov.problem import FlowProcess
from slams.papers.rozet2023.outcome import SDAOutcome

_RANGE, _POWER = 1.25, 0.8  # of vorticity in grid units; the power brings out what is weak
_COLOURS = LinearSegmentedColormap.from_list("ice and fire", ICE_AND_FIRE)


def image(field: Tensor) -> NDArray[Any]:
    """Signed power of a field (n, n) with x to the right and y up."""
    scaled = (field / _RANGE).clamp(-1, 1)
    return (scaled.sign() * scaled.abs() ** _POWER).mT.numpy()


def panel(process: FlowProcess, found: Mapping[str, SDAOutcome]) -> Figure:
    """Observations, and of every method the mean, draws, their standard deviation and the error, at one state.

    Args:
        process: Observing network.
        found: Outcomes by method.
    """
    event = process.value is not None
    names = [name for name in found if not (event and name in ("climatology", "4D-Var"))]
    when = _moment(process)
    figure = new_figure(11.0, 1.75 * (len(names) + 1) + 0.5)
    axes = figure.subplots(len(names) + 1, 6, squeeze=False)
    first = found[names[0]].example
    _top(axes[0], process, first, when, event)
    for row, name in zip(axes[1:], names, strict=True):
        e = found[name].example
        truth = clockwise_vorticity(e["truth"][when])
        mean = clockwise_vorticity(e["mean"][when])
        draws = [clockwise_vorticity(x[when]) for x in e["draws"][:2]]
        single = not bool(torch.isfinite(e["std"]).all())
        _picture(row[0], mean, "mean" if not single else "estimate")
        row[0].set_ylabel(name.replace(" / ", "\n"), fontsize=8)
        for k in range(2):
            if single or k >= len(draws):
                row[1 + k].set_axis_off()
            else:
                _picture(row[1 + k], draws[k], f"draw {k + 1}")
        if event:
            for axis in row[3:]:
                axis.set_axis_off()
            continue
        _picture(row[3], mean - truth, "mean - truth")
        speed = (e["mean"][when] - e["truth"][when]).square().sum(0).sqrt()
        _size(row[4], speed, "error of velocity")
        if single:
            row[5].set_axis_off()
        else:
            _size(row[5], e["std"][when].square().sum(0).sqrt(), "std of velocity")
    heading(figure, f"{process.title}; state {when + 1} of {process.length}, vorticity in grid units")
    return figure


def _moment(process: FlowProcess) -> int:
    """A state between two observed ones where there is one; of an event the last observed state."""
    steps = process.steps
    if process.value is not None:
        return steps[-1]
    between = [k for k in range(process.length) if k not in steps]
    return between[len(between) // 2] if between else process.length // 2


def _top(row: Sequence[Axes], process: FlowProcess, e: Mapping[str, Tensor], when: int, event: bool) -> None:
    """The truth and the latest observation before the moment."""
    for axis in row:
        axis.set_axis_off()
    if not event:
        row[0].set_axis_on()
        _picture(row[0], clockwise_vorticity(e["truth"][when]), "truth")
    k = max([step for step in process.steps if step <= when], default=process.steps[0])
    value = e["seen"][k]
    if process.has("loop") or value.ndim < 2:
        return
    names = ("seen",) if value.ndim == 2 else ("seen u", "seen v")
    for axis, field, name in zip(row[1:], value.reshape(-1, *value.shape[-2:]), names, strict=False):
        axis.set_axis_on()
        limit = 1.0 if process.has("saturate") else 3.0
        axis.imshow(field.mT.numpy(), origin="lower", cmap=_COLOURS, vmin=-limit, vmax=limit)
        _bare(axis, f"{name}, state {k + 1}")


def again(draw: Tensor, solved: Tensor, error: Tensor, persistence: Tensor, apart: float) -> Figure:
    """A draw, the flow resimulated from its first state, and their difference.

    Args:
        draw: A draw, (L, 2, n, n); its first states are shown.
        solved: Resimulated states, (K, 2, n, n).
        error: Root mean square difference at each of the K steps.
        persistence: The same for persistence of the first state.
        apart: The same for unrelated states.
    """
    shown = sorted({0, len(solved) // 3, 2 * len(solved) // 3, len(solved) - 1})
    figure = new_figure(11.0, 4.6)
    grid = figure.add_gridspec(2, len(shown) + 2)
    for column, k in enumerate(shown):
        for row, (states, name) in enumerate(((draw, "draw"), (solved, "solver"))):
            _picture(
                figure.add_subplot(grid[row, column]),
                clockwise_vorticity(states[k]),
                f"{name}, state {k + 1}",
            )
    axis = figure.add_subplot(grid[:, len(shown) :])
    steps = np.arange(1, len(error) + 1)
    axis.plot(steps, error.numpy(), "o-", color=COLOURS[0], label="draw against solver")
    axis.plot(steps, persistence.numpy(), "o-", color=COLOURS[1], label="persistence")
    axis.axhline(apart, color=BLACK, linestyle="--", linewidth=1.0, label="unrelated states")
    axis.legend(frameon=False, fontsize=8)
    dress(axis, "state", "root mean square difference of velocity", "")
    return figure


def strip(draw: Tensor, count: int = 12) -> Figure:
    """States of a draw (L, 2, n, n) along its way."""
    steps = np.linspace(0, len(draw) - 1, count).round().astype(int)
    columns = count // 2
    figure = new_figure(11.0, 4.3)
    for axis, k in zip(figure.subplots(2, columns).ravel(), steps, strict=True):
        _picture(axis, clockwise_vorticity(draw[int(k)]), f"state {k + 1}")
    return figure


def sweep(strides: Mapping[str, int], outcomes: Mapping[str, Mapping[str, SDAOutcome]]) -> Figure:
    """Error of every method against the distance of observed points, with 95 % intervals."""
    figure = new_figure(11.0, 4.2)
    left, right = figure.subplots(1, 2)
    names = list(dict.fromkeys(name for found in outcomes.values() for name in found))
    for k, name in enumerate(names):
        labels = sorted(
            (label for label in strides if name in outcomes[label]), key=lambda label: strides[label]
        )
        x = [strides[label] for label in labels]
        style = {"color": COLOURS[k % len(COLOURS)], "linewidth": 2.2 if "/" in name else 1.4, "label": name}
        each = [outcomes[label][name].scores["squared_error"] for label in labels]
        value = np.array([float(e.mean().sqrt()) for e in each])
        ends = np.array([log_normal_limits(e).sqrt().tolist() for e in each]).T
        left.errorbar(
            x, value, np.nan_to_num(np.abs(ends - value)), marker="o", markersize=4, capsize=2, **style
        )
        right.plot(
            x,
            [float(outcomes[label][name].scores["crps"].mean()) for label in labels],
            "o-",
            markersize=4,
            **style,
        )
    for axis, title in ((left, "error of the mean"), (right, "crps")):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(list(strides.values()), [str(n) for n in strides.values()])
        dress(axis, "distance of observed points [cells]", f"{title} [units of velocity]", "")
    right.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def spectra(outcomes: Mapping[str, Mapping[str, SDAOutcome]]) -> Figure:
    """Kinetic energy of draws by wavenumber, one panel a process."""
    columns = min(4, len(outcomes))
    rows = -(-len(outcomes) // columns)
    figure = new_figure(11.0, 2.7 * rows + 0.4)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    names = list(dict.fromkeys(name for found in outcomes.values() for name in found))
    for axis, (label, found) in zip(axes, outcomes.items(), strict=False):
        truth = None
        for name, outcome in found.items():
            own, truth = outcome.example["energy"]
            colour = COLOURS[names.index(name) % len(COLOURS)]
            axis.loglog(range(1, 32), own[1:32].numpy(), color=colour, linewidth=1.3, label=name)
        if truth is not None:
            axis.loglog(range(1, 32), truth[1:32].numpy(), color=BLACK, linewidth=1.6, label="truth")
            axis.set_ylim(float(truth[31]) / 30, float(truth.max()) * 5)
        dress(axis, "wavenumber", "energy", label)
    for axis in axes[len(outcomes) :]:
        axis.set_axis_off()
    axes[0].legend(frameon=False, fontsize=6)
    return figure


def _picture(axis: Axes, field: Tensor, title: str) -> None:
    axis.imshow(image(field), origin="lower", cmap=_COLOURS, vmin=-1, vmax=1)
    _bare(axis, title)


def _size(axis: Axes, field: Tensor, title: str) -> None:
    axis.imshow(field.mT.numpy(), origin="lower", cmap="magma", vmin=0, vmax=2)
    _bare(axis, title)


def _bare(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
