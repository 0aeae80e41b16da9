"""Bars, tables and the page of a reproduction on the Kolmogorov flow."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure
from torch import Tensor

from slams.core.console import Console
from slams.core.settings import plain
from slams.evaluation.figures.style import save_figure
from slams.evaluation.intervals import log_normal_limits, mean_interval
from slams.evaluation.metrics import CRPS
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import console_table
from slams.papers.rozet2023.kolmogorov import figures
from slams.papers.rozet2023.kolmogorov.plan import FlowPlan
from slams.papers.rozet2023.kolmogorov.resimulate import resimulate
from slams.papers.rozet2023.outcome import SDAOutcome
from slams.papers.table import Bar, Numbers, Verdict, info, judge, line, passed, show

Found = Mapping[str, SDAOutcome]

_BAND = 0.15  # of the stated error, for the residual
_SPREAD_SKILL = (0.7, 1.4)
_SHORT = ("method", "rmse", "crps", "spread_skill", "residual", "cpu_seconds")  # on the terminal
_FINE = 128  # cells along a side on which events are simulated again


def judge_process(plan: FlowPlan, label: str, found: Found) -> list[Verdict]:
    """Verdicts on one process: residual, gain over rivals, spread against skill; only the main run is judged.

    A gain is the mean over truths of the difference of root mean square errors, and passes where its 95 % interval
    (Student's t, paired) lies below 0. Intervals of the residual and of spread / skill are log-normal.
    """
    process, verdicts = plan.processes[label], []
    for name in (n for n in plan.runs if n in found):
        own, row = found[name].scores, f"{label} {name}"
        applies = plan.judged and name == plan.main and process.value is None
        low, high = (1 - _BAND) * process.std, (1 + _BAND) * process.std
        bar = Bar(row, "residual", low, high, published=plan.residual.get(label, math.nan))
        verdicts.append(judge(bar, root(own["misfit"]), applies=applies))
        if process.value is not None:
            continue
        error = own["squared_error"].sqrt()
        for rival in (r for r in ("interpolation", "climatology") if r in found):
            gain = mean_interval((error - found[rival].scores["squared_error"].sqrt()).tolist())
            verdicts.append(
                judge(Bar(row, f"rmse_minus_{rival}", high=0.0), gain, tested=gain[2], applies=applies)
            )
        ratio = root(own["variance"], own["squared_error"])
        verdicts.append(judge(Bar(row, "spread_skill", *_SPREAD_SKILL), ratio, applies=applies))
        verdicts.append(info(row, "rmse", *root(own["squared_error"])))
        verdicts.append(info(row, "crps", *CRPS.interval(own["crps"].tolist())))
    return verdicts


def root(squares: Tensor, below: Tensor | None = None) -> Numbers:
    """Root of the mean over truths (R), or of the ratio of two such means, with its interval."""
    value = squares.mean() / (1.0 if below is None else below.mean())
    low, high = log_normal_limits(squares, below).sqrt().tolist()
    return float(value.sqrt()), low, high


def lines(plan: FlowPlan, label: str, found: Found) -> list[dict[str, Any]]:
    """Lines of results.csv, one a method."""
    return [_line(plan, label, name, outcome) for name, outcome in found.items()]


def _line(plan: FlowPlan, label: str, name: str, outcome: SDAOutcome) -> dict[str, Any]:
    s, process = outcome.scores, plan.processes[label]
    value, low, high = root(s["squared_error"])
    numbers = {
        "rmse": value,
        "lower": low,
        "upper": high,
        "crps": float(s["crps"].mean()),
        "spread_skill": float((s["variance"].mean() / s["squared_error"].mean()).sqrt()),
        "coverage90": float(s["coverage90"].mean()),
        "residual": float(s["misfit"].mean().sqrt()),
        "spectral": float(s["spectral"].mean()),
    }
    if process.value is not None:  # no truth has to do with it
        numbers |= dict.fromkeys(("rmse", "lower", "upper", "crps", "spread_skill", "coverage90"), math.nan)
    return {
        "process": label,
        "method": name,
        "truths": len(s["misfit"]),
        **{key: "" if math.isnan(x) else f"{x:.4g}" for key, x in numbers.items()},
        "std": process.std,
        "evaluations": f"{outcome.evaluations:g}",
        "cpu_seconds": f"{outcome.seconds:.1f}",
    }


def show_results(
    plan: FlowPlan, outcomes: Mapping[str, Found], verdicts: Sequence[Verdict], console: Console, folder: Path
) -> None:
    """Tables on the terminal."""
    for label, found in outcomes.items():
        rows = [{key: row[key] for key in _SHORT} for row in lines(plan, label, found)]
        title = f"{label}: {plan.processes[label].title}, errors of {plan.processes[label].std:g}"
        console.rich.print(console_table(rows, title=title))
    if any(verdict.judged for verdict in verdicts):
        show(console, verdicts, folder)
    else:
        console.say(
            f"{plan.replicates} truths are too few for verdicts; size=reduced judges: {folder.resolve()}"
        )


_SCORE_NOTES = (
    "rmse: of the mean over draws (of climatology, gaussian and 4D-Var: of their own mean or minimum), "
    "root of the mean over truths, states, channels and points, with its 95 % interval (log-normal). "
    "crps is fair; of a method with one draw it is the mean absolute error. spread_skill is "
    "sqrt((N + 1) / N mean variance) / rmse. coverage90 counts truths between the 5 % and 95 % quantiles "
    "of the draws, which calibrated ensembles of N cover in 0.9 (N - 1) / (N + 1) of the cases. residual "
    "is the root mean square of y - h(x) over draws, which for draws of the posterior is the error's std. "
    "spectral is the mean over wavenumbers 1 to 21 of |log10| of the ratio of kinetic energy to the "
    "truth's. evaluations are those of the network for one draw, a backward pass counted as two."
)
_BASELINE_NOTES = (
    "climatology: other trajectories, around the mean flow. persistence: the latest observed frame, "
    "interpolated in space. interpolation: anomalies, linear in space and time. gaussian: optimal "
    "interpolation in space and time, the posterior of a Gaussian of trajectories in closed form (non- "
    "linear sensors relinearized). 4D-Var: weak constraint, with the solver on 64 x 64 cells; its model "
    "error covers truncation and subgrid scales; its first guess "
    "is that of gaussian."
)


def write_pages(
    folder: Path, plan: FlowPlan, outcomes: Mapping[str, Found], verdicts: Sequence[Verdict]
) -> None:
    """Figures as files, and the report with them inside."""
    made = _figures(plan, outcomes)
    for name, (_, figure) in made.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    judged = [verdict for verdict in verdicts if verdict.judged]
    bars = Table(
        [line(v) for v in judged or verdicts], "Bars" if judged else "Bars, too few truths for verdicts", None
    )
    tables = [
        Table(lines(plan, label, found), f"{label}: {plan.processes[label].title}", plan.main)
        for label, found in outcomes.items()
    ]
    met = f"{passed(judged)} / {len(judged)}" if judged else "not judged"
    facts = [
        Fact("truths", str(plan.replicates), f"{plan.members} draws each"),
        Fact("bars", met, good=passed(judged) == len(judged) or None),
        Fact("setting of all rows", plan.main, "net / sampler / guidance"),
    ]
    sections = [
        Section("Bars", [bars, plan.source]),
        Section("Scores", [*tables, _SCORE_NOTES, _BASELINE_NOTES]),
        *(Section(title, [Picture(figure, title)]) for title, figure in made.values()),
        Section("Set-up", [Verbatim(yaml.safe_dump(_setup(plan), sort_keys=False), "the work")]),
    ]
    write_report(folder / "report.html", plan.title, facts, sections)


def _figures(plan: FlowPlan, outcomes: Mapping[str, Found]) -> dict[str, tuple[str, Figure]]:
    """Titles and figures by the stems of their files."""
    made: dict[str, tuple[str, Figure]] = {}
    for label, found in outcomes.items():
        process = plan.processes[label]
        made[f"panel_{label}"] = f"{label}: {process.title}", figures.panel(process, found)
        if process.value is None or plan.main not in found:
            continue
        draws = found[plan.main].example["draws"]
        again = resimulate(draws[:, : min(8, process.length)], _FINE)
        made[f"again_{label}"] = (
            f"{label}: a draw's states, and those that the solver makes of its first on {_FINE} x {_FINE} cells",
            figures.again(draws[0], again.states[0], again.error, again.persistence, again.apart),
        )
        if process.has("loop"):
            made[f"strip_{label}"] = f"{label}: a draw along its way", figures.strip(draws[0])
    sweep = {label: found for label, found in outcomes.items() if label.startswith("stride")}
    if len(sweep) > 1:
        strides = {label: plan.processes[label].setting("stride") for label in sweep}
        made["sweep"] = "Error against the distance of observed points", figures.sweep(strides, sweep)
    fields = {label: found for label, found in outcomes.items() if plan.processes[label].value is None}
    if fields:
        made["spectra"] = "Kinetic energy by wavenumber, draws against truths", figures.spectra(fields)
    return made


def _setup(plan: FlowPlan) -> dict[str, Any]:
    return {
        "replicates": plan.replicates,
        "members": plan.members,
        "processes": {name: str(plan.processes[name]) for name in plan.labels},
        "samplers": {name: str(value) for name, value in plan.samplers.items()},
        "guidances": plain(plan.guidances),
        "main": plan.main,
    }
