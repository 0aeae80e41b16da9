"""Figures and report of a study of surface quasi-geostrophic turbulence."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator

from slams.evaluation.figures import plots
from slams.evaluation.figures.style import (
    BLACK,
    COLOURS,
    MISSING_DARK,
    SHADE,
    array,
    dress,
    heading,
    new_figure,
    save_figure,
)
from slams.evaluation.figures.twin_plots import rank_grid
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.papers.bao2024_sqg.methods import LIDS, TRIVIAL, spectrum, truth_spectrum
from slams.papers.bao2024_sqg.plan import BY_LID, SQGPlan
from slams.papers.bao2024_sqg.problem import SQGProblem
from slams.papers.table import Verdict, line, passed
from slams.twin.experiment import Result
from slams.twin.report import overview

Row = Mapping[str, Any]
Found = Mapping[str, Result]

_SCORES = ("rmse", "spread", "spread_skill", "crps", "coverage90", "divergence_rate", "cpu_seconds")
_UNITS = {"rmse": "rmse [K]", "crps": "crps [K]", "coverage90": "coverage90; dashes: if calibrated"}
_TOLD = (
    "Means over truths with their 95 % intervals (log-normal; of shares by Student's t of the logit). rmse and spread "
    "are square roots of means over time and state, spread with the factor (N + 1) / N; crps is fair; a calibrated "
    "ensemble of N covers 0.9 (N - 1) / (N + 1) of "
    "the truth between its 5 % and 95 % quantiles. divergence_rate is the share of truths on which the error over the "
    "run exceeds 0.7 standard deviations of the climate. cpu_seconds: of one analysis and forecast of one truth. All "
    "methods begin with the same states of the climate. Climatology and OptimalInterpolation have mean and covariance of "
    "the model's own long run; RawObservation is the observation inverted to a temperature, Persistence that of 12 h "
    "before."
)


def bars(rows: Sequence[Row], title: str, size: int) -> Figure:
    """Scores of all runs, the smallest error first."""
    means = [row for row in rows if row["replicate"] == "" and row["level"] == "all"]
    ordered = [each["method"] for each in by_method(rows, ())]
    table = {(row["metric"], row["method"]): (row["value"], row["lower"], row["upper"]) for row in means}
    scores = {_UNITS[m]: {n: table[m, n] for n in ordered if (m, n) in table} for m in _UNITS}
    return plots.bars(scores, title=title, target={_UNITS["coverage90"]: 0.9 * (size - 1) / (size + 1)})


def in_time(problem: SQGProblem, found: Found, title: str) -> Figure:
    """Error of the mean and spread from analysis to analysis, a panel a lid."""
    figure = new_figure(11, 4.2)
    axes = figure.subplots(1, 2, sharey=True)
    days = array(torch.arange(problem.truth.shape[1]) * problem.system.dt / 24)
    for axis, lid in zip(axes, LIDS, strict=True):
        for k, (name, result) in enumerate(_filters(found).items()):
            numbers = result.posterior.diagnostics
            colour = COLOURS[k % len(COLOURS)]
            for key, style, label in (("squared_error", "-", name), ("predictive_variance", "--", None)):
                curve = array(numbers[f"{key}_{lid}"].nanmean(0).sqrt())
                axis.plot(days, curve, style, color=colour, linewidth=1.4, label=label)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        axis.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: f"{y:g}" if f"{y:g}"[-1] in "25" else ""))
        axis.tick_params(which="minor", labelsize=8)
        axis.axvspan(0, float(days[problem.burn_in]), color=SHADE, linewidth=0, zorder=0)
        dress(
            axis, "time [days]", "error (line), spread (dashes) [K]" if lid == LIDS[0] else "", f"{lid} lid"
        )
    figure.legend(
        *axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=9
    )
    heading(figure, title)
    return figure


def spectra(problem: SQGProblem, found: Found, title: str) -> Figure:
    """Kinetic energy of the truth, of the errors and of the spreads by wavenumber."""
    figure = new_figure(7.6, 4.8)
    axis = figure.subplots()
    truth = truth_spectrum(problem)
    number, limit = torch.arange(len(truth)), (problem.system.size - 1) // 2
    keep = slice(1, limit + 1)
    axis.loglog(array(number[keep]), array(truth[keep]), color=BLACK, linewidth=2.2, label="truth")
    for k, (name, result) in enumerate(_filters(found).items()):
        colour = COLOURS[k % len(COLOURS)]
        for key, style, label in (("error", "-", name), ("spread", "--", None)):
            curve = spectrum(result.posterior, key, result.scored)
            axis.loglog(
                array(number[keep]), array(curve[keep]), style, color=colour, linewidth=1.5, label=label
            )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axis.xaxis.set_minor_formatter(FuncFormatter(lambda x, _: ""))
    dress(axis, "total wavenumber", "kinetic energy: error (line), spread (dashes) [m²/s²]", title)
    axis.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def maps(problem: SQGProblem, found: Found, names: Sequence[str], title: str) -> Figure:
    """The upper lid of the first truth at the last time: truth, observations, analyses and their errors."""
    truth = problem.truth[0, -1, 1]
    seen = problem.sensors.inverse(problem.observations["lids"].value[0, -1]).reshape(
        problem.truth.shape[2:]
    )[1]
    last = {name: found[name].posterior.mean for name in names if name in found}
    means = {name: mean[0, -1, 1] for name, mean in last.items() if mean is not None}
    figure = new_figure(3.5 * (1 + len(means)) + 0.9, 7.0)
    axes = figure.subplots(2, 1 + len(means), squeeze=False)
    largest = float(truth.abs().max())
    errors = {name: mean - truth for name, mean in means.items()}
    worst = max([float(error.abs().quantile(0.99)) for error in errors.values()], default=1.0)
    top = {"truth": truth, **means}
    low = {"observation": seen, **errors}
    side = problem.system.LENGTH / 1e6
    for row, fields in enumerate((top, low)):
        for axis, (name, field) in zip(axes[row], fields.items(), strict=True):
            error = row == 1 and name != "observation"
            limit = worst if error else largest
            shown = axis.imshow(
                array(field).T,
                origin="lower",
                cmap="RdBu_r",
                vmin=-limit,
                vmax=limit,
                extent=(0, side, 0, side),
            )
            axis.set_facecolor(MISSING_DARK)
            axis.set_title(f"{name}, error" if error else name, fontsize=10)
            axis.set_xticks([0, side / 2, side])
            axis.set_yticks([0, side / 2, side])
            axis.tick_params(labelsize=8)
            if name in ("truth", "observation"):
                axis.set_ylabel("y [1000 km]", fontsize=9)
            if row == 1:
                axis.set_xlabel("x [1000 km]", fontsize=9)
            figure.colorbar(shown, ax=axis, shrink=0.8, label="K" if axis is axes[row][-1] else "")
    heading(figure, title)
    return figure


def pages(
    folder: Path, plan: SQGPlan, problems: Mapping[str, SQGProblem], outcomes: Mapping[str, Found],
    tables: Mapping[str, Sequence[Row]], verdicts: Sequence[Verdict],
) -> None:  # fmt: skip
    """Figures as files, and one report with them inside.

    Args:
        folder: Folder of the study.
        plan: Plan of the study.
        problems: Problems by experiment.
        outcomes: Outcomes by experiment and run.
        tables: Rows of metrics.csv by experiment.
        verdicts: Rows of rows.csv.
    """
    judged = [verdict for verdict in verdicts if verdict.judged]
    bars = Table([line(verdict) for verdict in judged], "Differences are those of each truth", highlight=None)
    sections = [Section("Bars", [bars])]
    for name, found in outcomes.items():
        figures = _figures(plan, name, problems[name], found, tables[name])
        for key, figure in figures.items():
            save_figure(figure, folder / "figures" / f"{name}_{key}.png")
        sections.append(_section(plan, name, found, tables[name], figures))
    facts = [
        Fact("truths", str(plan.replicates), f"seeds from {plan.seed}"),
        Fact("grid", f"2 × {plan.archive.size} × {plan.archive.size}", f"{plan.members} members"),
        Fact("analyses of each", str(plan.cycles), f"after {plan.burn_in} of burn-in, 12 h apart"),
        Fact("bars met", f"{passed(judged)} of {len(judged)}", "", good=passed(judged) == len(judged)),
    ]
    write_report(folder / "report.html", plan.title, facts, sections)


def by_method(rows: Sequence[Row], metrics: Sequence[str], level: str = "all") -> list[dict[str, str]]:
    """One line per method, means with intervals, the smallest error first."""
    lines = overview([row for row in rows if row["level"] == level], metrics)
    return [{key: value for key, value in each.items() if key != "settings"} for each in lines]


def _figures(
    plan: SQGPlan, name: str, problem: SQGProblem, found: Found, rows: Sequence[Row]
) -> dict[str, Figure]:
    ranks = {}
    for label, result in _filters(found).items():
        scored = result.posterior.diagnostics["rank"][..., list(result.scored)]
        ranks[label] = (scored, plan.members)
    title = f"{name}: {plan.replicates} truths, {plan.archive.size} x {plan.archive.size} points"
    shown = _compared(plan, name, found)
    return {
        "scores": bars(rows, title, plan.members),
        "time": in_time(problem, found, title),
        "spectra": spectra(problem, found, title),
        "maps": maps(problem, found, shown, f"{name}: the upper lid at the end of the first truth's run"),
        "ranks": rank_grid(ranks, title=title),
    }


def _section(
    plan: SQGPlan, name: str, found: Found, rows: Sequence[Row], figures: Mapping[str, Figure]
) -> Section:
    captions = {
        "scores": "Scores with their 95 % intervals",
        "time": "Error of the mean and spread, root mean squares over truths; the shaded time is not scored",
        "spectra": "Kinetic energy by wavenumber, mean of both lids",
        "maps": "Temperature and its errors",
        "ranks": "Ranks of the truth among the members: flat if calibrated",
    }
    lids = [{"lid": lid, **scores} for lid in LIDS for scores in by_method(rows, BY_LID, lid)]
    settings = [{"method": n, **{k: str(v) for k, v in r.settings.items()}} for n, r in found.items()]
    published = plan.experiments[name].published
    return Section(
        f"Experiment {name}",
        [
            *([f"Published: {published}"] if published else []),
            Table(by_method(rows, _SCORES), "Both lids", highlight=None),
            _TOLD,
            Table(lids, "By lid", highlight=None),
            *(Picture(figures[key], captions[key]) for key in figures),
            Table(settings, "Settings", highlight=None),
            Verbatim(yaml.safe_dump(plan.facts(name), sort_keys=False), "the experiment"),
        ],
    )


def _compared(plan: SQGPlan, name: str, found: Found) -> list[str]:
    """The runs that a bar compares, else the first filters."""
    pairs = [(bar.against, bar.row) for bar in plan.bars if bar.case == name and bar.against in found]
    return list(pairs[0]) if pairs else list(_filters(found))[:2]


def _filters(found: Found) -> dict[str, Result]:
    """Runs of filters, and the free run."""
    return {name: result for name, result in found.items() if name == "FreeRun" or name not in TRIVIAL}
