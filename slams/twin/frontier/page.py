"""The page of `slams frontier`: figures, tables and advice, all from metrics files."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from slams.core.files import atomic
from slams.evaluation.figures.frontier_plots import Mark, Panel, against_cost, along_factor, looks
from slams.evaluation.figures.style import save_figure
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import text
from slams.twin.frontier.advice import (
    FACTORS,
    RULES,
    WORDS,
    Advice,
    advise,
    by_size,
    frugalest,
    level,
    milliseconds,
    overall,
    sweeps,
)
from slams.twin.frontier.cases import COSTS, CaseResults, MethodResult
from slams.twin.report import kernel_note
from slams.twin.scores import KERNEL

COLUMNS = (
    "case",
    "method",
    "settings",
    "rmse",
    "lower",
    "upper",
    "crps",
    "spread_skill",
    "coverage90",
    "divergence_rate",
    *reversed(COSTS),
    "on_frontier",
    "tied_with_best",
)
_AXES = {
    "cpu_seconds": "CPU seconds of an analysis and truth",
    "model_calls": "model steps of one state, an analysis",
    "network_calls": "network calls, an analysis",
}
_TITLES = {
    "cpu_seconds": "Accuracy against CPU time",
    "model_calls": "Accuracy against model calls",
    "network_calls": "Accuracy against network calls",
}
_FIGURE_NOTES = (
    "Errors are roots of mean squares over time and space, mean over truths, in figures as a share of the "
    "climatology's on the same truths (of the unit of the state where a set-up has no climatology); bars are 95 % "
    "intervals over truths, log-normal. Costs are of one truth and one analysis with the model steps that lead to "
    "it: CPU seconds of one thread, all truths at once, scoring left out; model calls are states advanced by one step; "
    "network calls are inputs passed through a network, a backward pass counted as two. The frontier joins methods "
    "that are Pareto-optimal in error and cost. Points on it are named and edged black; larger ensembles are larger; "
    "an arrow is a method whose error lies above the panel."
)
_SETTINGS = (
    "Settings are called tuned where they are the best of as many trials on other truths as every tuned method had; "
    "published, default or starting ones were not chosen on this set-up: a method that has them may do better. "
    "A method has diverged where innovations are larger than its own errors explain; one that reports no growing error, "
    "such as nudging, has diverged by that measure although nothing broke. "
    "Climatology, OptInterp and ThreeDVar are given mean and covariance of the truth's own long run."
)


def write_page(folder: Path, cases: Sequence[CaseResults], *, title: str, passed: Sequence[str] = ()) -> Path:
    """Write report.html, frontier.csv and figures/.

    Args:
        folder: Folder of the page.
        cases: Set-ups with their methods.
        title: Title of the page.
        passed: Omitted folders, with reasons.

    Returns:
        Path of report.html.
    """
    advices = [advise(case) for case in cases]
    write_csv(folder / "frontier.csv", advices)
    pictures = {name: Picture(figure, caption) for name, (figure, caption) in figures(cases).items()}
    for name, picture in pictures.items():
        save_figure(picture.figure, folder / "figures" / f"{name}.png")
    runs = sum(len(case.role("method")) for case in cases)
    used = [advice.use.method for advice in advices if advice.use]
    often = max(dict.fromkeys(used), key=used.count, default="–")
    truths = sorted({len(p.errors) for case in cases for p in case.points})
    facts = [
        Fact("set-ups", str(len(cases)), f"{runs} runs of methods"),
        Fact("truths of each", "–".join(map(str, dict.fromkeys((truths[0], truths[-1]))))),
        Fact("advised most often", often, f"in {used.count(often)} of {len(cases)} set-ups"),
        Fact("nothing beats a trivial row", str(len(cases) - len(used)), "set-ups"),
    ]
    sections = [
        Section("Which method to use when", [*overall(cases), Table(_summary(advices), "A line a set-up")]),
        *(Section(_caption(p), [p]) for p in pictures.values()),
        Section(
            "Rules",
            [RULES, _FIGURE_NOTES, _SETTINGS, *(["Passed over: " + " ".join(passed)] if passed else [])],
        ),
        *(_section(advice) for advice in advices),
    ]
    path = folder / "report.html"
    write_report(path, title, facts, sections)
    return path


def write_csv(path: Path, advices: Sequence[Advice]) -> None:
    """Write frontier.csv: a line a method and set-up; `on_frontier` names the costs by which it is on one."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for case in (advice.case for advice in advices):
            tied = {p.label for p in case.tied}
            fronts = {cost: {p.label for p in case.frontier(cost)} for cost in COSTS}
            for point in (p for role in ("method", "informed", "trivial", "exact") for p in case.role(role)):
                _, lower, upper = point.scores["rmse"]
                numbers = {name: point.value(name) for name in COLUMNS[6:-2]}
                numbers |= {"rmse": point.rmse, "lower": lower, "upper": upper}
                writer.writerow(
                    {
                        "case": case.title,
                        "method": point.label,
                        "settings": _settings(point),
                        **{k: "" if math.isnan(v) else f"{v:.7g}" for k, v in numbers.items()},
                        "on_frontier": " ".join(c for c in COSTS if point.label in fronts[c]),
                        "tied_with_best": int(point.label in tied),
                    }
                )


def figures(cases: Sequence[CaseResults]) -> dict[str, tuple[Figure, str]]:
    """All figures with their captions."""
    styles = looks(sorted({p.family for case in cases for p in case.role("method")}))
    ylabel = "rmse / rmse of the climatology"
    out: dict[str, tuple[Figure, str]] = {}
    for cost in COSTS:
        panels = [_cost_panel(case, cost) for case in cases]
        panels = [panel for panel in panels if panel.marks]
        if panels and any(mark.x > 0 for panel in panels for mark in panel.marks):
            figure = against_cost(panels, xlabel=_AXES[cost], ylabel=ylabel, styles=styles)
            out[cost] = (figure, f"{_TITLES[cost]}: one panel a set-up, 95 % intervals, the frontier joined.")
    sizes = [_size_panel(case) for case in cases]
    sizes = [panel for panel in sizes if len({mark.x for mark in panel.marks}) > 1]
    if sizes:
        figure = along_factor(sizes, ylabel=ylabel, styles=styles)
        out["size"] = (figure, "Accuracy against ensemble size: one panel a set-up.")
    for factor in FACTORS:
        panels = [_factor_panel(factor, group) for name, group in sweeps(cases) if name == factor]
        if panels:
            figure = along_factor(panels, ylabel=ylabel, styles=styles, columns=2)
            caption = f"Accuracy over {WORDS[factor]}: each method at its best size, with 95 % intervals."
            out[factor] = (figure, caption)
    return out


def _mark(case: CaseResults, point: MethodResult, x: float, *, front: bool = False) -> Mark:
    unit = case.climate if math.isfinite(case.climate) else 1.0
    _, low, high = point.scores["rmse"]
    label, y = point.label, point.rmse / unit
    return Mark(point.family, label, x, y, low / unit, high / unit, point.members, front)


def _lines(case: CaseResults) -> dict[str, float]:
    unit = case.climate if math.isfinite(case.climate) else 1.0
    points = sorted(
        [p for role in ("trivial", "exact", "informed") for p in case.role(role)], key=lambda p: p.label
    )
    return {p.label: p.rmse / unit for p in points if math.isfinite(p.rmse)}


def _cost_panel(case: CaseResults, cost: str) -> Panel:
    front = {p.label for p in case.frontier(cost)}
    marks = [_mark(case, p, p.value(cost), front=p.label in front) for p in case.role("method")]
    return Panel(case.title, [mark for mark in marks if mark.x > 0], _lines(case))


def _size_panel(case: CaseResults) -> Panel:
    points = [p for p in case.role("method") if p.members is not None and p.value("spread_skill") != 0]
    several = [p.family for p in points]
    marks = [_mark(case, p, float(p.members or 0)) for p in points if several.count(p.family) > 1]
    return Panel(case.title, marks, _lines(case), xlabel="members")


def _factor_panel(factor: str, group: Sequence[CaseResults]) -> Panel:
    """Each method at its best size; methods that were run on one of the set-ups only are left out."""
    best: dict[str, list[Mark]] = {}
    for k, case in enumerate(group):
        first: dict[str, MethodResult] = {}
        for point in case.role("method"):
            first.setdefault(point.family, point)
        for family, point in first.items():
            best.setdefault(family, []).append(_mark(case, point, float(k)))
    marks = [mark for each in best.values() if len(each) > 1 for mark in each]
    fixed = "; ".join(level(other, group[0]) for other in FACTORS if other != factor)
    title = f"{group[0].setup['system']}, {fixed}"
    lines: dict[str, float] = {"Climatology": 1.0} if math.isfinite(group[0].climate) else {}
    return Panel(title, marks, lines, ticks=[level(factor, case) for case in group])


def _summary(advices: Sequence[Advice]) -> list[dict[str, str]]:
    lines = []
    for advice in advices:
        case, use, best = advice.case, advice.use, advice.best
        frugal = frugalest(case.tied) if case.tied else None
        sizes = [f"N {size}: {p.label}" for size, p in by_size(case)]
        lines.append(
            {
                "set-up": case.title,
                "use": use.label if use else f"{case.floor.label} (trivial)" if case.floor else "–",
                "rmse": _cell(use, "rmse"),
                "CPU": milliseconds(use) if use else "–",
                "spread / rmse": _cell(use, "spread_skill"),
                "most accurate": best.label if best else "–",
                "its rmse": _cell(best, "rmse"),
                "tied": str(len(case.tied)),
                "fewest model calls": frugal.label if frugal else "–",
                "best of a size": ", ".join(sizes) or "–",
            }
        )
    return lines


def _section(advice: Advice) -> Section:
    """Advice and all numbers of one set-up."""
    case = advice.case
    tied = {p.label for p in case.tied}
    fronts = {cost: {p.label for p in case.frontier(cost)} for cost in COSTS}
    short = {"cpu_seconds": "CPU", "model_calls": "model", "network_calls": "network"}
    rows: list[dict[str, Any]] = []
    for point in sorted(case.points, key=lambda p: p.rmse):
        row: dict[str, Any] = {"method": point.label, "settings": point.origin}
        row |= {name: _cell(point, name) for name in ("rmse", "crps", "spread_skill", "coverage90")}
        row |= {"divergence": text(point.value("divergence_rate")), "CPU": milliseconds(point)}
        row |= {name.replace("_", " "): text(point.value(name)) for name in ("model_calls", "network_calls")}
        row |= {
            "on frontier": ", ".join(short[cost] for cost in COSTS if point.label in fronts[cost]) or "–",
            "tied": "yes" if point.label in tied else "–",
        }
        note = kernel_note(point.value(KERNEL))
        row |= {"kernel": note} if note else {}
        rows.append(row)
    used = advice.use.label if advice.use else None
    detail = "\n".join(f"{p.label}: {_settings(p)}" for p in case.points)
    return Section(
        case.title,
        [
            " ".join(advice.sentences),
            Table(rows, "Means over truths with 95 % intervals; costs are per analysis", highlight=used),
            Verbatim(
                f"{detail}\n\n{yaml.safe_dump(dict(case.setup), sort_keys=False)}", "settings and set-up"
            ),
        ],
    )


def _settings(point: MethodResult) -> str:
    values = " ".join(f"{k}={v}" for k, v in point.settings.items())
    return f"{point.origin}: {values}" if values else point.origin


def _cell(point: MethodResult | None, metric: str) -> str:
    if point is None:
        return "–"
    value, low, high = point.scores.get(metric, (math.nan,) * 3)
    return text(value) if math.isnan(low) or low == high else f"{text(value)} [{text(low)}, {text(high)}]"


def _caption(picture: Picture) -> str:
    return picture.caption.split(":")[0]
