"""`slams reproduce` of ensemble filters on surface quasi-geostrophic turbulence: truths, runs, bars, figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from slams import config
from slams.core.console import Console
from slams.core.stages import claim, digest, file_stem
from slams.evaluation.intervals import Law
from slams.evaluation.metrics import METRICS
from slams.evaluation.tables import console_table
from slams.papers.bao2024_sqg.archive import climate, model, truths
from slams.papers.bao2024_sqg.figures import by_method, pages
from slams.papers.bao2024_sqg.methods import LIDS, TRIVIAL
from slams.papers.bao2024_sqg.methods import run as run_method
from slams.papers.bao2024_sqg.plan import BY_LID, SQGPlan, read_plan
from slams.papers.bao2024_sqg.problem import SQGProblem, ensembles_near, first_ensembles
from slams.papers.table import Bar, Verdict, difference, judge_truths, lost_by, show, write_rows
from slams.twin.benchmark import Row, rows_of, strided
from slams.twin.benchmark import write_rows as write_metrics
from slams.twin.experiment import Result

_CONSOLE = ("rmse", "spread_skill", "crps", "coverage90", "divergence_rate", "cpu_seconds")

Found = Mapping[str, Result]


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Run all experiments of a plan; the same call resumes an interrupted run.

    Args:
        path: File of the plan.
        folder: Folder of the results: rows.csv, report.html, figures, and metrics.csv of each experiment.
        overrides: Overrides such as "size=full", "replicates=8" or "only=arctan".
        console: Console for the progress.
        train: Unused: nothing is trained.

    Returns:
        A verdict for each bar on these runs, and the error of each run.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    truth, states = _states(plan, console)
    problems: dict[str, SQGProblem] = {}
    outcomes: dict[str, dict[str, Result]] = {}
    tables: dict[str, list[Row]] = {}
    verdicts: list[Verdict] = []
    for name in plan.chosen:
        problem = problems[name] = _problem(plan, name, truth, states)
        outcomes[name] = _runs(plan, name, problem, folder / name, console)
        tables[name] = [row for label, result in outcomes[name].items() for row in table_rows(result, label)]
        write_metrics(folder / name / "metrics.csv", tables[name])
        verdicts += judge_experiment(plan, name, outcomes[name])
        write_rows(folder / "rows.csv", verdicts)
        console.rich.print(console_table(by_method(tables[name], _CONSOLE), title=name))
    with console.bar("figures and report", 1) as advance:
        pages(folder, plan, problems, outcomes, tables, verdicts)
        advance(1, "")
    show(console, verdicts, folder)
    return verdicts


def judge_experiment(plan: SQGPlan, name: str, found: Found) -> list[Verdict]:
    """Verdicts on the bars of one experiment and, for information, the error of every run.

    A diverged run has no number and fails its bars.
    """
    verdicts = []
    for bar in (bar for bar in plan.bars if bar.case == name):
        values, lost, law = torch.full((plan.replicates,), math.inf), None, _law(bar.metric)
        if {bar.row, bar.against or bar.row} <= set(found):
            own = found[bar.row].scores
            values, lost = own[bar.metric], lost_by(own)
            if bar.against:
                other, law = found[bar.against].scores, "any"
                values, lost = difference(values, other[bar.metric]), lost_by(own, other)
        row = f"{name}: {bar.row}" + (f" - {bar.against}" if bar.against else "")
        verdicts.append(judge_truths(replace(bar, row=row), values, lost, law=law))
    for label, result in found.items():
        for metric in ("rmse", *(f"rmse_{lid}" for lid in LIDS)):
            bar = Bar(f"{name}: {label}", metric, math.nan, math.nan)
            verdicts.append(judge_truths(bar, result.scores[metric], law=_law(metric)))
    return verdicts


def table_rows(result: Result, label: str) -> list[Row]:
    """Rows of metrics.csv, with level "all", "lower" and "upper"."""
    origin = "trivial" if label in TRIVIAL else "published" if "published" in label else "plan"
    rows: list[Row] = rows_of(result, origin)
    for lid in LIDS:
        of_lid = replace(result, scores={key: result.scores[f"{key}_{lid}"] for key in BY_LID})
        rows += [{**row, "level": lid} for row in rows_of(of_lid, origin) if row["metric"] in BY_LID]
    return rows


def _problem(plan: SQGPlan, name: str, truth: Tensor, states: Tensor) -> SQGProblem:
    """Truths, observations and first ensembles of an experiment."""
    part = plan.experiments[name]
    if part.near:
        first = ensembles_near(truth, plan.seeds, plan.members, part.near)
    else:
        first = first_ensembles(states, plan.seeds, plan.members)
    seen = truth[:, : plan.burn_in + plan.cycles]
    return SQGProblem(model(plan.archive.size), part.sensors, seen, first, states, plan.seeds, plan.burn_in)


def _states(plan: SQGPlan, console: Console) -> tuple[Tensor, Tensor]:
    """Truths and climate, from disk or simulated."""
    folder = config.DATA_DIR / f"surface_qg_{plan.archive.size}_{digest(plan.archive)[:8]}"
    states = climate(folder, plan.archive, console)
    return truths(folder, plan.archive, plan.seeds, console), states


def _runs(plan: SQGPlan, name: str, problem: SQGProblem, folder: Path, console: Console) -> dict[str, Result]:
    """Every run of an experiment; a failed one is reported and omitted."""
    facts = plan.facts(name)
    claim(folder / "setup.json", facts)
    found = {}
    for label, given in plan.experiments[name].methods.items():
        settings = {key: value for key, value in given.items() if key != "method"}
        stem = folder / "runs" / file_stem(label)
        claim(Path(f"{stem}.json"), given)
        steps = problem.truth.shape[1]
        with console.bar(f"{name} {label}", steps) as advance:
            try:
                found[label] = run_method(
                    problem, given["method"], settings, seed=plan.seed, checkpoint=Path(f"{stem}.safetensors"),
                    label=label, plain=facts, progress=strided(advance, steps, every=5),
                )  # fmt: skip
            except FloatingPointError as error:
                advance(0, f"failed: {error}")
                continue
            advance(0, f"rmse {float(found[label].scores['rmse'].mean()):.3f} K")
    return found


def _law(metric: str) -> Law:
    """Law of a metric over truths, also of that of one lid."""
    return METRICS[metric.removesuffix("_lower").removesuffix("_upper")].law
