"""Methods in one cell, a forcing of the truth and an observing network, and the bounds on their errors."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from slams.core.console import Console
from slams.core.stages import file_stem
from slams.evaluation.metrics import METRICS
from slams.papers.asahi2023_l96.plan import METRIC, ModelErrorCell, ModelErrorPlan
from slams.papers.table import Bar, Verdict, difference, info, judge, judge_truths, lost_by
from slams.twin.benchmark import rows_of, run_with_bar, write_rows
from slams.twin.experiment import Result
from slams.twin.report import write_pages
from slams.twin.runner import Runner

_SECONDS = 2.0  # of processor time that an analysis may take

Results = Mapping[str, Result]


def run_cell(
    plan: ModelErrorPlan, cell: ModelErrorCell, folder: Path, weights: Path | None, console: Console
) -> dict[str, Result]:
    """Results of all lines of a cell; metrics.csv and report as those of `slams bench`."""
    runner, results, rows = Runner(plan.setup_of(cell), folder), {}, []
    for label, line in plan.methods.items():
        result = run_with_bar(
            runner, console, line.method, line.settings_in(cell, weights), cell.name, file_stem(label),
            metric=METRIC,
        )  # fmt: skip
        results[label] = dataclasses.replace(result, method=label)
        rows += rows_of(results[label], "tuned" if line.tuned else "default")
    write_rows(folder / "metrics.csv", rows)
    write_pages(folder, runner.setup, list(results.values()), rows)
    return results


def judge_cell(plan: ModelErrorPlan, cell: ModelErrorCell, results: Results) -> list[Verdict]:
    """Rows of one cell.

    Where the model is wrong, replicate by replicate our error less each rival's must be 0 or less on average; where it
    is right, our error at most a bound; the processor time of an analysis at most 2 s.
    """
    verdicts, ours = [], results[plan.ours].scores
    for label, result in results.items():
        bound = plan.bound(cell, label)
        bar = Bar(f"{cell.name} {label}", METRIC, math.nan if math.isnan(bound) else -math.inf, bound)
        lost = lost_by(result.scores)
        verdicts.append(judge_truths(bar, result.scores[METRIC], lost, law=METRICS[METRIC].law))
    for rival in plan.rivals if plan.excess(cell) else ():
        theirs, bar = results[rival].scores, Bar(f"{cell.name} {plan.ours} less {rival}", METRIC, high=0.0)
        verdicts.append(judge_truths(bar, difference(ours[METRIC], theirs[METRIC]), lost_by(ours, theirs)))
    spent = (float(ours["cpu_seconds"].mean()), math.nan, math.nan)
    verdicts.append(judge(Bar(f"{cell.name} {plan.ours}", "cpu_seconds", high=_SECONDS), spent))
    return verdicts


def won(plan: ModelErrorPlan, found: Mapping[str, Results]) -> list[Verdict]:
    """Number of cells with a wrong model in which our mean error is smaller than each rival's, and than all."""
    wrong = [found[cell.name] for cell in plan.chosen if cell.name in found and plan.excess(cell)]

    def mean(results: Results, label: str) -> float:
        return float(results[label].scores[METRIC].mean())

    beaten = {r: [mean(results, plan.ours) < mean(results, r) for results in wrong] for r in plan.rivals}
    beaten["all rivals"] = [all(each) for each in zip(*beaten.values(), strict=True)]
    return [
        info(f"cells won against {label}, of {len(wrong)}", "count", sum(each))
        for label, each in beaten.items()
    ]
