"""The generative ensemble Kalman filter beside tuned rivals where the model's forcing is wrong, cell by cell."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from slams.core.console import Console
from slams.core.files import atomic
from slams.core.settings import unknown
from slams.core.stages import file_stem
from slams.evaluation.evaluate import mean_interval
from slams.evaluation.figures.style import COLOURS, dress, heading, new_figure
from slams.evaluation.tables import console_table
from slams.papers.reproduce import Verdict, write_rows
from slams.twin.benchmark import rows_of, run_with_bar
from slams.twin.benchmark import write_rows as write_metrics
from slams.twin.experiment import Result
from slams.twin.generator import FILE, GeneratorSettings, train_generator
from slams.twin.report import write_pages
from slams.twin.runner import Runner
from slams.twin.setup import Setup, setup

METRIC = "rmse_a"
_GENERATORS = ("GenerativeEnKF", "PseudoEnKF")
_TRUTHS = 8
_SECONDS = 2.0  # of processor time that an analysis may take


@dataclass(frozen=True)
class Line:
    """One method of the table.

    Attributes:
        method: As in `slams.twin.methods`.
        settings: The same in every cell, whatever was tuned there.
        tuned: Name under which the cells hold the others, chosen on other truths; none if empty.
        rival: Whether ours must not have a larger error.
        extra: Whether it is left out unless everything is asked for.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: str = ""
    rival: bool = False
    extra: bool = False


@dataclass(frozen=True)
class Cell:
    """A forcing of the truth and a network of observations.

    Attributes:
        forcing: F of the truth.
        stride: Every so many-th variable is seen.
        tuned: Settings by name.
    """

    forcing: float
    stride: int
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of its folder and in tables."""
        return f"F{self.forcing:g}_every_{self.stride}"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        title: What it is.
        source: Where it is from.
        setup: Of every cell, forcing and stride left out.
        ours: Label of the line that is judged.
        lines: By label.
        cells: All of them.
        quick: Names of those that are run unless everything is asked for.
        exact: Where the model is right, what our error must not exceed, by name of the cell.
    """

    title: str
    source: str
    setup: Mapping[str, Any]
    ours: str
    lines: Mapping[str, Line]
    cells: Sequence[Cell]
    quick: Sequence[str]
    exact: Mapping[str, float]

    def setup_of(self, cell: Cell, overrides: Sequence[str]) -> Setup:
        """The set-up of a cell."""
        observe = {**self.setup.get("observe", {}), "operator": "stride", "step": cell.stride}
        if cell.stride == 1:
            observe |= {"operator": "identity", "step": 2}
        truth = {**self.setup.get("truth", {}), "forcing": float(cell.forcing)}
        return setup({"replicates": _TRUTHS, **self.setup, "truth": truth, "observe": observe}, overrides)


def read_plan(path: Path) -> Plan:
    """A plan from its file.

    Raises:
        ValueError: If a key is unknown (the nearest is named).
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    known = [f.name for f in dataclasses.fields(Plan)]
    for key in tree:
        if key not in known:
            raise ValueError(f"{path.name}: {unknown('key', key, known)}")
    lines = {label: Line(**values) for label, values in tree.pop("lines").items()}
    cells = [Cell(c.pop("forcing"), c.pop("stride"), c) for c in tree.pop("cells")]
    plan = Plan(lines=lines, cells=cells, **tree)
    names = [cell.name for cell in cells]
    for name in (*plan.quick, *plan.exact):
        if name not in names:
            raise ValueError(f"{path.name}: {unknown('cell', name, names)}")
    if plan.ours not in lines:
        raise ValueError(f"{path.name}: {unknown('line', plan.ours, lines)}")
    return plan


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Runs, tables and figures of all cells; the same call goes on where it stopped.

    Args:
        path: The plan.
        folder: Of the results.
        overrides: "grid=full" for all cells and lines, "cell=NAME" for one; others are of the set-ups.
        console: Where progress is shown.
        train: Whether to train the generator anew, into the folder, instead of using shipped weights.

    Returns:
        Verdicts: where the model is wrong, truth by truth our error less each rival's must be 0 or less on average;
        where it is right, our error at most a bound; the processor time of an analysis at most 2 s.

    Raises:
        ValueError: If a cell, a grid or a setting is unknown (the nearest is named).
    """
    plan = read_plan(path)
    console.say(f"{plan.title} ({plan.source})")
    asked = [text for text in overrides if text.startswith(("grid=", "cell="))]
    rest = [text for text in overrides if text not in asked]
    full = "grid=full" in asked
    names = [text.removeprefix("cell=") for text in asked if text.startswith("cell=")]
    for what, known in (("grid", ["quick", "full"]), ("cell", [c.name for c in plan.cells])):
        for name in (text.removeprefix(f"{what}=") for text in asked if text.startswith(f"{what}=")):
            if name not in known:
                raise ValueError(unknown(what, name, known))
    cells = [c for c in plan.cells if (c.name in names if names else full or c.name in plan.quick)]
    setups = [plan.setup_of(cell, rest) for cell in cells]  # before anything is trained
    weights = _weights(folder, train, console)
    found: dict[str, dict[str, Result]] = {}
    verdicts: list[Verdict] = []
    for cell, made in zip(cells, setups, strict=True):
        runner = Runner(made, folder / cell.name)
        found[cell.name] = _run_cell(plan, cell, runner, weights, full, console)
        verdicts = [v for c in cells if c.name in found for v in judge(plan, c, found[c.name])]
        verdicts += won(plan, cells, found)
        write_rows(folder / "rows.csv", verdicts)
    for name, figure in (
        ("error", error_figure(cells, found, title=plan.title)),
        ("gain", gain_figure(plan, cells, found)),
    ):
        with atomic(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=120)
    _show(plan, cells, found, verdicts, console, folder)
    return verdicts


def settings_of(line: Line, cell: Cell, weights: Path | None) -> dict[str, Any]:
    """Settings of a line in a cell."""
    made = {**(cell.tuned.get(line.tuned, {}) if line.tuned else {}), **line.settings}
    if weights is not None and line.method in _GENERATORS:
        made["weights"] = str(weights)
    return made


def judge(plan: Plan, cell: Cell, results: Mapping[str, Result]) -> list[Verdict]:
    """Rows of one cell."""
    verdicts = []
    ours = results[plan.ours].scores
    for label, result in results.items():
        value, lower, upper = mean_interval(result.scores[METRIC].tolist())
        bound = plan.exact.get(cell.name, math.nan) if label == plan.ours else math.nan
        status = "INFO" if math.isnan(bound) else "PASS" if value <= bound else "FAIL"
        low = math.nan if math.isnan(bound) else -math.inf
        verdicts.append(
            Verdict(f"{cell.name} {label}", METRIC, math.nan, low, bound, value, lower, upper, status)
        )
    wrong = cell.forcing != _believed(results)
    for label in results:
        if plan.lines[label].rival and wrong:
            apart = mean_interval((ours[METRIC] - results[label].scores[METRIC]).tolist())
            status = "PASS" if apart[0] <= 0 else "FAIL"
            row = f"{cell.name} {plan.ours} less {label}"
            verdicts.append(Verdict(row, METRIC, math.nan, -math.inf, 0.0, *apart, status))
    spent = float(ours["cpu_seconds"].mean())
    status = "PASS" if spent <= _SECONDS else "FAIL"
    row = f"{cell.name} {plan.ours}"
    verdicts.append(
        Verdict(row, "cpu_seconds", math.nan, -math.inf, _SECONDS, spent, math.nan, math.nan, status)
    )
    return verdicts


def won(plan: Plan, cells: Sequence[Cell], found: Mapping[str, Mapping[str, Result]]) -> list[Verdict]:
    """In how many cells with a wrong model ours has the smaller mean error than each rival, and than all."""
    wrong = [found[c.name] for c in cells if c.name in found and c.forcing != _believed(found[c.name])]
    rivals = [label for label, line in plan.lines.items() if line.rival]

    def mean(results: Mapping[str, Result], label: str) -> float:
        return float(results[label].scores[METRIC].mean())

    beaten = {r: [mean(results, plan.ours) < mean(results, r) for results in wrong] for r in rivals}
    beaten["all rivals"] = [all(each) for each in zip(*beaten.values(), strict=True)]
    nothing = (math.nan,) * 3
    return [
        Verdict(
            f"cells won against {label}, of {len(wrong)}",
            "count",
            *nothing,
            sum(each),
            math.nan,
            math.nan,
            "INFO",
        )
        for label, each in beaten.items()
    ]


def error_figure(
    cells: Sequence[Cell], found: Mapping[str, Mapping[str, Result]], *, title: str = ""
) -> Figure:
    """Error of every method against the truth's forcing, with 95 % intervals, a panel a stride."""
    strides = sorted({cell.stride for cell in cells})
    labels = list(dict.fromkeys(label for results in found.values() for label in results))
    figure = new_figure(3.6 * len(strides) + 0.6, 4.2)
    for axis, stride in zip(figure.subplots(1, len(strides), squeeze=False)[0], strides, strict=True):
        here = sorted((cell for cell in cells if cell.stride == stride), key=lambda cell: cell.forcing)
        for k, label in enumerate(labels):
            there = [cell for cell in here if label in found.get(cell.name, {})]
            spans = [mean_interval(found[cell.name][label].scores[METRIC].tolist()) for cell in there]
            if spans:
                value = torch.tensor(spans).nan_to_num()
                half = (value[:, 2] - value[:, 1]) / 2
                axis.errorbar(
                    [cell.forcing for cell in there],
                    value[:, 0].numpy(),
                    yerr=half.abs().numpy(),
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
        dress(axis, "forcing of the truth", "RMSE of the mean" if stride == strides[0] else "", _told(stride))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, frameon=False, fontsize=8, loc="outside lower center", ncols=4)
    heading(figure, title)
    return figure


def gain_figure(plan: Plan, cells: Sequence[Cell], found: Mapping[str, Mapping[str, Result]]) -> Figure:
    """Error of the model as it is estimated along the run, beside the true one."""
    strides = sorted({cell.stride for cell in cells})
    forcings = sorted({cell.forcing for cell in cells})
    figure = new_figure(3.6 * len(strides) + 0.8, 3.8)
    for axis, stride in zip(
        figure.subplots(1, len(strides), squeeze=False, sharey=True)[0], strides, strict=True
    ):
        for cell in (cell for cell in cells if cell.stride == stride):
            result = found[cell.name][plan.ours]
            numbers = result.posterior.diagnostics.get("model_error")
            if numbers is None:
                continue
            settled = int(result.setup["burn_in"]) // 4
            y = numbers.mean(0)[settled:].numpy()
            time = (torch.arange(len(y)) + settled).numpy() * result.dt
            colour = COLOURS[forcings.index(cell.forcing) % len(COLOURS)]
            axis.plot(time, y, color=colour, linewidth=1.2, label=f"F = {cell.forcing:g}")
            true = result.dt * (cell.forcing - _believed(found[cell.name]))
            axis.axhline(true, color=colour, linewidth=0.8, linestyle=":", zorder=0)
        dress(
            axis, "model time", "error of the model in a step" if stride == strides[0] else "", _told(stride)
        )
    handles = {
        label: h for axis in figure.axes for h, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), frameon=False, fontsize=8, loc="outside right upper")
    heading(figure, "Estimated error of the model, mean over sites and truths; dotted: the true one")
    return figure


def _believed(results: Mapping[str, Result]) -> float:
    """The model's forcing in a cell."""
    return float(next(iter(results.values())).setup["model"]["forcing"])


def _told(stride: int) -> str:
    return "all variables seen" if stride == 1 else f"1 in {stride} seen"


def _weights(folder: Path, train: bool, console: Console) -> Path | None:
    """Weights that were trained into the folder; None for those that are shipped."""
    own = folder / "weights"
    if train:
        train_generator(own, GeneratorSettings(), console)
    return own / FILE if (own / FILE).exists() else None


def _run_cell(  # noqa: PLR0913
    plan: Plan, cell: Cell, runner: Runner, weights: Path | None, full: bool, console: Console
) -> dict[str, Result]:
    """All lines of a cell; metrics.csv and report as those of `slams bench`."""
    results = {}
    for label, line in plan.lines.items():
        if line.extra and not full:
            continue
        stem = file_stem(label)
        result = run_with_bar(
            runner, console, line.method, settings_of(line, cell, weights), cell.name, stem, metric=METRIC
        )
        results[label] = dataclasses.replace(result, method=label)
    assert runner.folder is not None
    rows = [row for label, result in results.items() for row in rows_of(result, _origin(plan.lines[label]))]
    write_metrics(runner.folder / "metrics.csv", rows)
    write_pages(runner.folder, runner.setup, list(results.values()), rows)
    return results


def _origin(line: Line) -> str:
    return "tuned" if line.tuned else "default"


def _show(  # noqa: PLR0913
    plan: Plan, cells: Sequence[Cell], found: Mapping[str, Mapping[str, Result]], verdicts: Sequence[Verdict],
    console: Console, folder: Path,
) -> None:  # fmt: skip
    lines = []
    for cell in cells:
        scores = {label: r.scores[METRIC].mean() for label, r in found[cell.name].items()}
        lines.append({"cell": cell.name} | {label: f"{float(value):.3f}" for label, value in scores.items()})
    console.rich.print(console_table(lines, title=f"{METRIC}, means over truths"))
    for verdict in verdicts:
        if verdict.metric == "count":
            console.say(f"{verdict.row}: {verdict.value:g}")
    judged = [verdict for verdict in verdicts if verdict.status != "INFO"]
    passed = sum(verdict.status == "PASS" for verdict in judged)
    console.say(f"{passed} of {len(judged)} rows within their bound: {folder.resolve()}")
