"""`slams reproduce` of ensemble filters on surface quasi-geostrophic turbulence: truths, runs, bars, figures."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams import config
from slams.core.console import Console
from slams.core.stages import claim, file_stem
from slams.evaluation.intervals import mean_interval
from slams.evaluation.tables import console_table
from slams.papers.bao2024_sqg.figures import by_method, pages
from slams.papers.bao2024_sqg.methods import LIDS, TRIVIAL, Problem, difference
from slams.papers.bao2024_sqg.methods import run as run_method
from slams.papers.bao2024_sqg.plan import Plan, Tree, plain, read_plan
from slams.papers.bao2024_sqg.problem import climate, ensembles_near, first_ensembles, model, truths
from slams.papers.reproduce import Verdict, write_rows
from slams.twin.benchmark import rows_of, strided
from slams.twin.benchmark import write_rows as write_metrics
from slams.twin.experiment import Result

_CONSOLE = ("rmse", "spread_skill", "crps", "coverage90", "divergence_rate", "cpu_seconds")
_LID = ("rmse", "spread", "spread_skill", "crps", "coverage90")


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """All experiments of a plan; the same call goes on where it stopped.

    Args:
        path: The plan.
        folder: Of the results: rows.csv, report.html, figures, and metrics.csv of each experiment.
        overrides: Such as "grid=full", "truths=8" or "only=arctan".
        console: Where progress is shown.
        train: Not used: nothing is trained.

    Returns:
        A verdict for each bar whose runs were made, and the error of each run.
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    truth, states = _states(plan, console)
    problems: dict[str, Problem] = {}
    outcomes: dict[str, dict[str, Result]] = {}
    tables: dict[str, list[Tree]] = {}
    verdicts: list[Verdict] = []
    for name in plan.chosen:
        problem = problems[name] = _problem(plan, name, truth, states)
        outcomes[name] = _runs(plan, name, problem, folder / name, console)
        tables[name] = [row for label, result in outcomes[name].items() for row in table_rows(result, label)]
        write_metrics(folder / name / "metrics.csv", tables[name])
        verdicts += judge(plan, name, outcomes[name])
        write_rows(folder / "rows.csv", verdicts)
        console.rich.print(console_table(by_method(tables[name], _CONSOLE), title=name))
    lines = [_line(verdict) for verdict in verdicts if verdict.status != "INFO"]
    with console.bar("figures and report", 1) as advance:
        pages(folder, plan, problems, outcomes, tables, lines)
        advance(1, "")
    if lines:
        console.rich.print(console_table(lines, title="bars"))
    passed = sum(verdict.status == "PASS" for verdict in verdicts)
    console.say(f"{passed} of {len(lines)} rows within their band: {folder.resolve()}")
    return verdicts


def judge(plan: Plan, name: str, found: Mapping[str, Result]) -> list[Verdict]:
    """The bars of one experiment, and for information the error of every run.

    A run that was lost has no number, and a bar on it is missed.
    """
    verdicts = []
    for bar in plan.bars:
        if bar.experiment != name:
            continue
        values = torch.full((plan.truths,), math.inf)
        if bar.run in found and (not bar.against or bar.against in found):
            one = found[bar.run]
            values = (
                difference(one, found[bar.against], bar.metric) if bar.against else one.scores[bar.metric]
            )
        value, lower, upper = _interval(values)
        status = "PASS" if bar.low <= value <= bar.high else "FAIL"
        row = f"{name}: {bar.run}" + (f" - {bar.against}" if bar.against else "")
        verdicts.append(Verdict(row, bar.metric, math.nan, bar.low, bar.high, value, lower, upper, status))
    nothing = (math.nan,) * 3
    for label, result in found.items():
        for metric in ("rmse", *(f"rmse_{lid}" for lid in LIDS)):
            numbers = _interval(result.scores[metric])
            verdicts.append(Verdict(f"{name}: {label}", metric, *nothing, *numbers, "INFO"))
    return verdicts


def table_rows(result: Result, label: str) -> list[Tree]:
    """Rows of metrics.csv, with level "all", "lower" and "upper"."""
    origin = "trivial" if label in TRIVIAL else "published" if "published" in label else "plan"
    rows: list[Tree] = rows_of(result, origin)
    for lid in LIDS:
        here = replace(result, scores={key: result.scores[f"{key}_{lid}"] for key in _LID})
        rows += [{**row, "level": lid} for row in rows_of(here, origin) if row["metric"] in _LID]
    return rows


def _problem(plan: Plan, name: str, truth: Tensor, states: Tensor) -> Problem:
    """An experiment's truths and what every method begins with."""
    part = plan.experiments[name]
    if part.near:
        first = ensembles_near(truth, plan.seeds, plan.members, part.near)
    else:
        first = first_ensembles(states, plan.seeds, plan.members)
    seen = truth[:, : plan.burn_in + plan.cycles]
    return Problem(model(plan.archive.size), part.sensors, seen, first, states, plan.seeds, plan.burn_in)


def _states(plan: Plan, console: Console) -> tuple[Tensor, Tensor]:
    """Truths and climate, from disk or simulated."""
    size, digest = plan.archive.size, hashlib.sha256(repr(plan.archive).encode()).hexdigest()[:8]
    folder = config.DATA_DIR / f"surface_qg_{size}_{digest}"
    states = climate(folder, plan.archive, console)
    return truths(folder, plan.archive, plan.seeds, console), states


def _runs(plan: Plan, name: str, problem: Problem, folder: Path, console: Console) -> dict[str, Result]:
    """Every run of an experiment; one that cannot go on is told and left out."""
    facts = plain(plan, name)
    claim(folder / "setup.json", facts)
    found = {}
    for label, given in plan.experiments[name].runs.items():
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
                advance(0, f"lost: {error}")
                continue
            advance(0, f"rmse {float(found[label].scores['rmse'].mean()):.3f} K")
    return found


def _interval(values: Tensor) -> tuple[float, float, float]:
    if not bool(torch.isfinite(values).all()):
        return math.inf, math.nan, math.nan
    return mean_interval(values.tolist())


def _line(verdict: Verdict) -> dict[str, Any]:
    return {
        "row": verdict.row,
        "metric": verdict.metric,
        "bar": f"{verdict.low:g} … {verdict.high:g}",
        "ours": f"{verdict.value:.3f} [{verdict.lower:.3f}, {verdict.upper:.3f}]",
        "status": verdict.status,
    }
