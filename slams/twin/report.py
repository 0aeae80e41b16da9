"""Figures and report of a benchmark."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from slams.evaluation.figures import plots
from slams.evaluation.figures.style import save_figure
from slams.evaluation.figures.twin_plots import error_and_spread, rank_grid
from slams.evaluation.metrics import METRICS, shown
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import scores_by_method, text
from slams.twin.experiment import Result
from slams.twin.methods import METHODS
from slams.twin.scores import KERNEL
from slams.twin.setup import Setup

_TRUTHFUL = (
    "Scores are taken at the observed steps after the burn-in. rmse and spread are square roots of means over time "
    "and state; spread is sqrt((N + 1) / N · mean variance); rmse_time_mean is the time mean of the spatial "
    "root mean square error and spread_time_mean that of the spatial root mean variance, as papers on these systems "
    "have them; crps "
    "is fair; coverage90 is the fraction of truths between the 5 % and 95 % quantiles of the members, which a "
    "calibrated ensemble of N reaches in 0.9 (N - 1) / (N + 1) of the cases: 0.74 of 10, 0.86 of 40, 0.90 of many. "
    "Intervals are 95 % over truths, which are independent: log-normal for errors, spreads, their ratio and costs, by "
    "Student's t of the logit for shares, exact binomial for divergence_rate."
)
_DIVERGED = (
    "A method has diverged at a step if the mean over about 50 analyses of the squared innovations is more than twice "
    "what forecast and observation error allow, or the mean is not finite; diverged_fraction is the share of such steps "
    "among those from the 100th analysis on (in a shorter run: the last one), divergence_rate the share of truths with "
    "more than a tenth of them. A method that reports no growing error of its own, such as persistence or nudging, "
    "has diverged by that measure although nothing broke."
)
_COST = (
    "model_calls: states advanced by one step, per step and truth; derivatives of the tendency, which the extended "
    "filter takes with frozen=true, are in cpu_seconds alone. network_calls: inputs passed through a network, per step "
    "and truth, a backward pass counted as two. cpu_seconds: of one truth and step, on this machine, all truths at "
    "once, scoring left out."
)
_KERNEL = (
    "kernel: share of the analyses in which EnSF chose a single Gaussian and took the operator as linear. Its analysis "
    "then has mean and covariance of the ETKF's (with localization: the LETKF's)."
)
_JUMPING = (
    "recovery: steps from a jump of the truth to the other sign until the mean has it, 0 where the analysis at the jump "
    "does, up to the next jump where it never does; recovered_in_2: share of jumps with at most 2."
)
_ORACLE = (
    "Climatology, OptInterp and ThreeDVar are given mean and covariance of the truth's own long run: an oracle. "
    "Persistence is the latest observation, raw; where everything is observed at every step its score is that of the "
    "observations. Settings are published (of the papers on this set-up), tuned (chosen by slams tune on other "
    "truths, the same number of trials for every method) or default; elsewhere: for another truth, model or survey "
    "of this system than the one in this table."
)


def overview(
    rows: Sequence[Mapping[str, Any]], metrics: Sequence[str] | None = None, *, interval: bool = True
) -> list[dict[str, str]]:
    """One line per method, means with optional intervals, the smallest error first.

    Args:
        rows: Rows of metrics.csv.
        metrics: Names of the columns; those of the main table of a report if None.
        interval: Whether to print the 95 % intervals.
    """
    if metrics is None:
        metrics = [m for m in shown((row["metric"] for row in rows), "console", "report") if m != KERNEL]
    table: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        if row["replicate"] == "":
            table.setdefault((row["method"], row["settings"]), {})[row["metric"]] = row

    def order(key: tuple[str, str]) -> float:
        value = float(table[key]["rmse"]["value"])
        return float("inf") if math.isnan(value) else value

    lines = []
    for key in sorted(table, key=order):
        line = {"method": key[0], "settings": key[1]}
        for metric in metrics:
            line[metric] = _cell(table[key].get(metric), interval)
        note = kernel_note(float(table[key].get(KERNEL, {"value": 0.0})["value"]))
        lines.append(line | ({"kernel": note} if note else {}))
    return lines


def kernel_note(share: float) -> str:
    """Label of a row of EnSF of which this share of analyses are the ETKF's; nothing below half a percent.

    >>> kernel_note(0.98), kernel_note(0.0)
    ('EnSF = ETKF here (98 % of analyses)', '')
    """
    return f"EnSF = ETKF here ({100 * share:.0f} % of analyses)" if share >= 0.005 else ""


def write_pages(
    folder: Path, setup: Setup, results: Sequence[Result], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Figures as files, and the report with them inside.

    Args:
        folder: Folder of the benchmark.
        setup: Set-up of the benchmark.
        results: Results of the methods.
        rows: Rows of metrics.csv.
    """
    figures = _figures(results, rows, setup)
    for name, (figure, _) in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    best = overview(rows)[0]
    diverged = [line["method"] for line in overview(rows, ("divergence_rate",)) if _share(line) > 0]
    diverged = [name for name in diverged if name not in METHODS or METHODS[name].kind != "trivial"]
    table = Table(overview(rows), "Means over truths; click a header to sort", highlight=best["method"])
    further = shown((row["metric"] for row in rows), "further")
    more = Table(overview(rows, further), "Further scores and costs")
    settings = [
        {"method": r.method, **{k: str(v) for k, v in r.settings.items()}} for r in results if r.settings
    ]
    write_report(
        folder / "report.html",
        f"Methods on {setup.system}",
        [
            Fact("best", best["method"], f"RMSE {best['rmse']}"),
            Fact("truths", str(setup.replicates), f"seeds from {setup.seed}"),
            Fact("analyses of each", str(setup.cycles), f"after {setup.burn_in} of burn-in"),
            Fact("diverged", str(len(diverged)), ", ".join(diverged) or "no method", good=not diverged),
        ],
        [
            Section(
                "Scores",
                [
                    table,
                    _ORACLE,
                    _TRUTHFUL,
                    _DIVERGED,
                    _COST,
                    *([_JUMPING] if "recovery" in further else []),
                    *([_KERNEL] if any(row["metric"] == KERNEL for row in rows) else []),
                    more,
                ],
            ),
            *(Section(title, [Picture(figure, title)]) for figure, title in figures.values()),
            Section(
                "Set-up",
                [
                    Table(settings, "Settings of the methods", highlight=None),
                    Verbatim(yaml.safe_dump(setup.plain(), sort_keys=False), "the experiment"),
                ],
            ),
        ],
    )


def _figures(
    results: Sequence[Result], rows: Sequence[Mapping[str, Any]], setup: Setup
) -> dict[str, tuple[Figure, str]]:
    curves, ranks = {}, {}
    ordered = [line["method"] for line in overview(rows)]
    for result in sorted(results, key=lambda each: ordered.index(each.method)):
        numbers = result.posterior.diagnostics
        curves[result.method] = (numbers["squared_error"], numbers["predictive_variance"])
        if "rank" in numbers:
            scored = numbers["rank"][..., list(result.scored)]
            ranks[result.method] = (scored, int(result.settings.get("members", 1)))
    sizes = {r.method: int(r.settings["members"]) for r in results if "members" in r.settings}
    means = [row for row in rows if row["replicate"] == ""]
    scores, target = {}, {}
    for metric in (METRICS[name] for name in shown((row["metric"] for row in rows), "console")):
        if metric.parts:
            ideal = metric.better if isinstance(metric.better, float) else None
            label = metric.axis("unit of the state") + ("\n(dashes: calibrated)" if ideal else "")
            scores[label] = scores_by_method(means, metric.name, methods=ordered)
            if metric.name == "coverage90":  # coverage of a calibrated ensemble of N
                target[label] = {name: 0.9 * (n - 1) / (n + 1) for name, n in sizes.items()}
            if ideal:
                target[label] = dict.fromkeys(ordered, ideal) | target.get(label, {})
    dt = results[0].dt
    time = error_and_spread(curves, dt=dt, burn_in=dt * setup.observe.every * setup.burn_in)
    return {
        "scores": (plots.bars(scores, target=target), "Scores with their 95 % intervals"),
        "time": (time, "Error of the mean (line) and spread (dashes) along the run, all truths"),
        "ranks": (rank_grid(ranks), "Ranks of the truth among the members: flat if calibrated"),
    }


def _cell(row: Mapping[str, Any] | None, interval: bool) -> str:
    if row is None:
        return "–"
    value, low, high = (float(row[name]) for name in ("value", "lower", "upper"))
    if not interval or math.isnan(low) or low == high:
        return text(value)
    return f"{text(value)} [{text(low)}, {text(high)}]"


def _share(line: Mapping[str, str]) -> float:
    cell = line["divergence_rate"].split(" ")[0]
    return 0.0 if cell == "–" else float(cell)
