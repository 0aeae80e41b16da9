"""Bars, tables and the page of a reproduction on the Kolmogorov flow."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from torch import Tensor

from slams.core.console import Console
from slams.core.files import atomic
from slams.core.random import fork
from slams.evaluation.evaluate import mean_interval
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import console_table
from slams.papers.reproduce import Verdict
from slams.papers.rozet2023.kolmogorov import figures
from slams.papers.rozet2023.kolmogorov.plan import FlowPlan
from slams.papers.rozet2023.kolmogorov.resimulate import resimulated

Tree = dict[str, Any]
_RESAMPLES = 2000
_BAND = 0.15  # of the stated error, for the residual
_SPREAD_SKILL = (0.7, 1.4)
_SHORT = (
    "method",
    "rmse",
    "crps",
    "spread_skill",
    "residual",
    "cpu_seconds",
)  # of results.csv on the terminal
_FINE = 128  # cells along a side on which events are simulated again


class Judged(Protocol):
    """See `sda_kolmogorov.Outcome`."""

    @property
    def scores(self) -> Mapping[str, Tensor]:
        """One number a truth by name."""

    @property
    def example(self) -> Mapping[str, Tensor]:
        """Of the first truth."""

    @property
    def evaluations(self) -> float:
        """Of the network."""

    @property
    def seconds(self) -> float:
        """Of processor time."""


def judge(plan: FlowPlan, label: str, found: Mapping[str, Judged]) -> list[Verdict]:
    """The bars of one process: residual, gain over rivals, spread against skill; others are told of, not judged.

    A gain is the mean over truths of the difference of root mean square errors, and passes where its 95 % interval
    (Student's t, paired) lies below 0. Intervals of the residual and of spread / skill are those of resampled truths.
    """
    process, verdicts = plan.processes[label], []
    for name in (n for n in plan.work.runs if n in found):
        own, row = found[name].scores, f"{label} {name}"
        held = plan.judged and name == plan.main and process.value is None
        low, high = (1 - _BAND) * process.std, (1 + _BAND) * process.std
        published = plan.residual.get(label, math.nan)
        residual = bootstrap(lambda s: s["misfit"].mean(-1).sqrt(), own)
        verdicts.append(_verdict(row, "residual", residual, low, high, held, published))
        if process.value is not None:
            continue
        error = own["squared_error"].sqrt()
        for rival in ("interpolation", "climatology"):
            if rival in found:
                gain = mean_interval((error - found[rival].scores["squared_error"].sqrt()).tolist())
                good = gain[2] < 0
                status = ("PASS" if good else "FAIL") if held else "INFO"
                metric = f"rmse_minus_{rival}"
                verdicts.append(Verdict(row, metric, math.nan, -math.inf, 0.0, *gain, status))
        ratio = bootstrap(lambda s: (s["variance"].mean(-1) / s["squared_error"].mean(-1)).sqrt(), own)
        verdicts.append(_verdict(row, "spread_skill", ratio, *_SPREAD_SKILL, held))
        for metric, value in (("rmse", root(own)), ("crps", mean_interval(own["crps"].tolist()))):
            verdicts.append(Verdict(row, metric, math.nan, math.nan, math.nan, *value, "INFO"))
    return verdicts


def _verdict(
    row: str, metric: str, value: tuple[float, float, float], low: float, high: float, held: bool,
    published: float = math.nan,
) -> Verdict:  # fmt: skip
    status = ("PASS" if low <= value[0] <= high else "FAIL") if held else "INFO"
    return Verdict(row, metric, published, low, high, *value, status)


def bootstrap(
    statistic: Callable[[Mapping[str, Tensor]], Tensor], scores: Mapping[str, Tensor]
) -> tuple[float, float, float]:
    """A number of all truths, the last axis, and its 95 % interval by resampling them; NaN bounds for fewer than two."""
    value, count = float(statistic(scores)), len(scores["misfit"])
    if count < 2:
        return value, math.nan, math.nan
    rows = torch.randint(count, (_RESAMPLES, count), generator=fork(0, "bootstrap"))
    again = statistic({key: x[rows] for key, x in scores.items()})
    low, high = again.quantile(again.new_tensor([0.025, 0.975])).tolist()
    return value, low, high


def root(scores: Mapping[str, Tensor]) -> tuple[float, float, float]:
    """Root of the mean squared error over all truths, with its interval."""
    return bootstrap(lambda s: s["squared_error"].mean(-1).sqrt(), scores)


def line(plan: FlowPlan, label: str, name: str, outcome: Judged) -> Tree:
    """A row of results.csv."""
    s, event = outcome.scores, plan.processes[label].value is not None
    value, low, high = root(s)
    numbers: Tree = {
        "rmse": value,
        "lower": low,
        "upper": high,
        "crps": float(s["crps"].mean()),
        "spread_skill": float((s["variance"].mean() / s["squared_error"].mean()).sqrt()),
        "coverage90": float(s["coverage90"].mean()),
        "residual": float(s["misfit"].mean().sqrt()),
        "spectral": float(s["spectral"].mean()),
    }
    if event:  # no truth has to do with it
        numbers |= dict.fromkeys(("rmse", "lower", "upper", "crps", "spread_skill", "coverage90"), math.nan)
    shown = {key: "" if math.isnan(x) else f"{x:.4g}" for key, x in numbers.items()}
    return {
        "process": label,
        "method": name,
        "truths": len(s["misfit"]),
        **shown,
        "std": plan.processes[label].std,
        "evaluations": f"{outcome.evaluations:g}",
        "cpu_seconds": f"{outcome.seconds:.1f}",
    }


def write_table(path: Path, plan: FlowPlan, outcomes: Mapping[str, Mapping[str, Judged]]) -> None:
    """Every method on every process, whole or not at all."""
    lines = [line(plan, label, name, o) for label, found in outcomes.items() for name, o in found.items()]
    if not lines:
        return
    with atomic(path) as temporary:
        text = "\n".join(",".join(str(value) for value in row.values()) for row in lines)
        temporary.write_text(",".join(lines[0]) + "\n" + text + "\n", encoding="utf-8")


def show(
    plan: FlowPlan, outcomes: Mapping[str, Mapping[str, Judged]], verdicts: Sequence[Verdict],
    console: Console, folder: Path,
) -> None:  # fmt: skip
    """Tables on the terminal."""
    for label, found in outcomes.items():
        rows = [{k: line(plan, label, n, o)[k] for k in _SHORT} for n, o in found.items()]
        title = f"{label}: {plan.processes[label].title}, errors of {plan.processes[label].std:g}"
        console.rich.print(console_table(rows, title=title))
    judged = [verdict for verdict in verdicts if verdict.status != "INFO"]
    if judged:
        console.rich.print(console_table([_plain(verdict) for verdict in judged], title="bars"))
        passed = sum(verdict.status == "PASS" for verdict in judged)
        console.say(f"{passed} of {len(judged)} rows within their band: {folder.resolve()}")
    else:
        console.say(
            f"{plan.work.truths} truths are too few for verdicts; grid=reduced judges: {folder.resolve()}"
        )


def _plain(verdict: Verdict) -> Tree:
    return {
        "row": verdict.row,
        "metric": verdict.metric,
        "published": "" if math.isnan(verdict.expected) else f"{verdict.expected:g}",
        "bar": "" if math.isnan(verdict.low) else f"{verdict.low:.3g} … {verdict.high:.3g}",
        "ours": f"{verdict.value:.3g} [{verdict.lower:.3g}, {verdict.upper:.3g}]",
        "status": verdict.status,
    }


_WORDS = (
    "rmse: of the mean over draws (of climatology, gaussian and 4D-Var: of their own mean or minimum), "
    "root of the mean over truths, states, channels and points, with the 95 % interval of resampled "
    "truths. crps is fair; of a method with one draw it is the mean absolute error. spread_skill is "
    "sqrt((N + 1) / N mean variance) / rmse. coverage90 counts truths between the 5 % and 95 % quantiles "
    "of the draws, which calibrated ensembles of N hold in 0.9 (N - 1) / (N + 1) of the cases. residual "
    "is the root mean square of y - h(x) over draws, which for draws of the posterior is the error's std. "
    "spectral is the mean over wavenumbers 1 to 21 of |log10| of the ratio of kinetic energy to the "
    "truth's. evaluations are those of the network for one draw, a backward pass counted as two."
)
_RIVALS = (
    "climatology: other trajectories, around the mean flow. persistence: the latest observed frame, "
    "interpolated in space. interpolation: anomalies joined by lines in space and time. gaussian: optimal "
    "interpolation in space and time, the posterior of a Gaussian of trajectories in closed form (non- "
    "linear sensors linearized anew). 4D-Var: weak constraint, with the solver on 64 x 64 cells, whose "
    "truncation and lack of what is below the cells is what its model error stands for; its first guess "
    "is that of gaussian."
)


def write_pages(
    folder: Path, plan: FlowPlan, outcomes: Mapping[str, Mapping[str, Judged]], verdicts: Sequence[Verdict]
) -> None:
    """Figures as files, and the report with them inside."""
    made: list[tuple[str, str, Any]] = []
    for label, found in outcomes.items():
        process = plan.processes[label]
        made.append((f"panel_{label}", f"{label}: {process.title}", figures.panel(process, found)))
        if process.value is not None and plan.main in found:
            draws = found[plan.main].example["draws"]
            again = resimulated(draws[:, : min(8, process.length)], _FINE)
            made.append(
                (
                    f"again_{label}",
                    f"{label}: a draw's states, and those that the solver makes of its first on {_FINE} x {_FINE} cells",
                    figures.again(draws[0], again.states[0], again.error, again.persistence, again.apart),
                )
            )
            if process.has("loop"):
                made.append((f"strip_{label}", f"{label}: a draw along its way", figures.strip(draws[0])))
    sweep = {label: outcomes[label] for label in outcomes if label.startswith("stride")}
    if len(sweep) > 1:
        strides = {label: plan.processes[label].setting("stride") for label in sweep}
        made.append(("sweep", "Error against the distance of observed points", figures.sweep(strides, sweep)))
    fields = {label: found for label, found in outcomes.items() if plan.processes[label].value is None}
    if fields:
        made.append(
            ("spectra", "Kinetic energy by wavenumber, draws against truths", figures.spectra(fields))
        )
    for name, _, figure in made:
        with atomic(folder / "figures" / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=110)
    judged = [verdict for verdict in verdicts if verdict.status != "INFO"]
    passed = sum(verdict.status == "PASS" for verdict in judged)
    tables = [
        Table(
            [line(plan, label, name, o) for name, o in found.items()],
            f"{label}: {plan.processes[label].title}",
            plan.main,
        )
        for label, found in outcomes.items()
    ]
    bars = [
        Table(
            [_plain(v) for v in judged or verdicts],
            "Bars" if judged else "Bars, too few truths to judge",
            None,
        )
    ]
    write_report(
        folder / "report.html",
        plan.title,
        [
            Fact("truths", str(plan.work.truths), f"{plan.work.samples} draws each"),
            Fact(
                "bars",
                f"{passed} / {len(judged)}" if judged else "not judged",
                good=passed == len(judged) or None,
            ),
            Fact("setting of all rows", plan.main, "net / sampler / guidance"),
        ],
        [
            Section("Bars", [*bars, plan.source]),
            Section("Scores", [*tables, _WORDS, _RIVALS]),
            *(Section(title, [Picture(figure, title)]) for _, title, figure in made),
            Section("Set-up", [Verbatim(yaml.safe_dump(_tree(plan), sort_keys=False), "the work")]),
        ],
    )


def _tree(plan: FlowPlan) -> Tree:
    work = plan.work
    return {
        "truths": work.truths,
        "samples": work.samples,
        "processes": {name: str(plan.processes[name]) for name in work.processes},
        "samplers": {name: str(value) for name, value in plan.samplers.items()},
        "guidances": {name: dict(value) for name, value in plan.guidances.items()},
        "main": plan.main,
    }
