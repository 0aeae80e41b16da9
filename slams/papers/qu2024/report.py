"""Tables and figures in the published layout, and one page."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.evaluation.figures import style
from slams.evaluation.figures.cartography import draw_map
from slams.evaluation.metrics import METRICS
from slams.evaluation.report import Block, Fact, Picture, Section, Table, write_report
from slams.evaluation.tables import console_table
from slams.papers.qu2024.archive import Truths
from slams.papers.qu2024.plan import Qu2024Plan
from slams.papers.qu2024.scores import ALL, FRAMES, Outcome
from slams.papers.table import Verdict, line, passed, write_lines

KINDS = ("coarse", "noise", "sparse")
_VARIED = {
    "coarse": "side of a block [cells]",
    "noise": "error [standard deviations]",
    "sparse": "distance [cells]",
}
_EXPLAINED = (
    "W1 compares the histograms of all values of a level, so that a field turned half round the globe has the score of "
    "the field itself, and climatology, drawn cell by cell without any observation, has a small one. The RMSE beside it "
    "shows both."
)


def table_of(
    outcomes: Sequence[Outcome], method: str, metric: str, part: str = FRAMES
) -> list[dict[str, str]]:
    """One line a model, one column a setting: means over levels and trajectories."""
    lines: dict[str, dict[str, str]] = {}
    for outcome in outcomes:
        values = outcome.values.get((method, part, metric))
        if values is not None:
            row = lines.setdefault(outcome.model, {"model": outcome.model})
            row[outcome.setting] = f"{float(values[:, 0].mean()):.3f}"
    return list(lines.values())


def methods_of(outcome: Outcome, metrics: Sequence[str], part: str = FRAMES) -> list[dict[str, str]]:
    """One line a method, one column a metric: means over levels and trajectories of one outcome."""
    lines: dict[str, dict[str, str]] = {}
    for (method, of, metric), values in outcome.values.items():
        if of == part and metric in metrics:
            value = float(values[:, 0].mean())
            lines.setdefault(method, {"method": method})[metric] = "" if math.isnan(value) else f"{value:.3f}"
    return list(lines.values())


def comparison(
    outcomes: Sequence[Outcome], methods: Sequence[str], part: str = FRAMES
) -> list[dict[str, str]]:
    """Right mode: one line a setting and method, RMSE with its interval over trajectories, and other scores."""
    lines = []
    for outcome in outcomes:
        for method in methods:
            if (method, part, "rmse") not in outcome.values:
                continue
            mean = {m: outcome.values[method, part, m][:, 0] for m in ("rmse", "crps", "spread_skill", "w1")}
            value, low, high = METRICS["rmse"].interval(mean["rmse"].tolist())
            lines.append(
                {
                    "setting: method": f"{outcome.setting}: {method}",
                    "RMSE [K]": f"{value:.3f} [{low:.2f}, {high:.2f}]",
                }
                | {m: f"{float(mean[m].mean()):.3f}" for m in ("crps", "spread_skill", "w1")}
            )
    return lines


def downward(levels: Sequence[str]) -> list[str]:
    """Names of pressure levels from the top of the atmosphere to the ground, as published."""
    return sorted(levels, key=float)


def write_published(
    plan: Qu2024Plan, outcomes: Sequence[Outcome], levels: Sequence[str], folder: Path
) -> None:
    """`MODEL/wasserstein_{coarse,noise,sparse}.csv`: levels from top to bottom, a column a setting, no index.

    Args:
        plan: The plan.
        outcomes: Outcomes, of which those of published mode are written.
        levels: Names of the levels [hPa] in the order of the scores.
        folder: Folder of the results.
    """
    order = [list(levels).index(level) for level in downward(levels)]
    for model in plan.models:
        own = {o.setting: o for o in outcomes if o.mode == "published" and o.model == model}
        for kind in KINDS:
            columns = {
                f"{s.value:g}": own[s.name].values["sample", FRAMES, "w1"].mean(0)[1:][order].tolist()
                for s in plan.chosen
                if s.kind == kind and s.name in own
            }
            if columns:
                rows = [
                    dict(zip(columns, (f"{v:.6g}" for v in each), strict=True))
                    for each in zip(*columns.values(), strict=True)
                ]
                (folder / model).mkdir(parents=True, exist_ok=True)
                write_lines(folder / model / f"wasserstein_{kind}.csv", rows)


def bar_figure(plan: Qu2024Plan, outcomes: Sequence[Outcome], method: str, metric: str, title: str) -> Figure:
    """The published bar figure: a panel a kind, groups of settings, a bar a model; lines are reconstructions."""
    kinds = [kind for kind in KINDS if any(s.kind == kind for s in plan.chosen)]
    figure = style.new_figure(2 + 3 * len(kinds), 3.4)
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    models = [m for m in plan.models if any(o.model == m for o in outcomes)]
    width = 0.8 / max(len(models), 1)
    for axis, kind in zip(axes, kinds, strict=True):
        settings = [s for s in plan.chosen if s.kind == kind]
        for k, model in enumerate(models):
            for place, setting in enumerate(settings):
                outcome = next((o for o in outcomes if (o.model, o.setting) == (model, setting.name)), None)
                if outcome is None or (method, FRAMES, metric) not in outcome.values:
                    continue
                at = place + (k - (len(models) - 1) / 2) * width
                value = float(outcome.values[method, FRAMES, metric][:, 0].mean())
                colour = style.COLOURS[k]
                axis.bar(at, value, width, color=colour, label=model if place == 0 else None)
                floor = outcome.values.get(("reconstruction", FRAMES, metric))
                if floor is not None:
                    low = float(floor[:, 0].mean())
                    axis.plot([at - width / 2, at + width / 2], [low, low], color=style.INK, linewidth=1.2)
        axis.set_xticks(range(len(settings)), [f"{s.value:g}" for s in settings])
        style.dress(axis, _VARIED[kind], METRICS[metric].label if axis is axes[0] else "", kind)
    if any(axis.patches for axis in axes):  # beside the panels, where no bar is behind it
        handles, labels = next(axis for axis in axes if axis.patches).get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize="small")
    style.heading(figure, title)
    return figure


def panel_figure(outcome: Outcome, truths: Truths, level: str) -> Figure:
    """The published panels: truth, its observed values, sample and residual of three frames, on one scale.

    Observed is the truth under the setting's operator; the pseudo-observation of a latent model is one of its latent.

    Args:
        outcome: Outcome of published mode.
        truths: Test trajectories.
        level: Name of the level [hPa].

    Raises:
        ValueError: If there is no such level.
    """
    if level not in truths.levels:
        raise InvalidValueError(unknown("level", level, truths.levels))
    number = truths.levels.index(level)
    truth, observed, sample = (
        outcome.example[name][:, number].float() for name in ("truth", "observed", "sample")
    )
    rows: Mapping[str, Tensor] = {
        "truth": truth, "observed": observed, "sample": sample, "residual": sample - truth,
    }  # fmt: skip
    figure = style.new_figure(3.4 * len(truth) + 0.8, 7.0)
    axes = figure.subplots(len(rows), len(truth), squeeze=False)
    colours: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -2, "vmax": 2}
    image: Any = None
    for line_of, (name, fields) in zip(axes, rows.items(), strict=True):
        for axis, field in zip(line_of, fields, strict=True):
            image = draw_map(axis, field, truths.lat, truths.lon, colours=colours, coast=False)
            axis.set_title(name, fontsize="small")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.6, label="published units")
    style.heading(figure, f"{outcome.model} {outcome.setting}, {level} hPa")
    return figure


def extreme_figure(folder: Path, models: Sequence[str], kind: str, levels: Sequence[str]) -> Figure:
    """The published figure of one kind, from `MODEL/wasserstein_KIND.csv`: W1 by level at the last setting.

    A panel a level; the line is the pixel model, bars are the others.

    Args:
        folder: Folder of the results.
        models: Names of the models.
        kind: One of `KINDS`.
        levels: Names of the levels [hPa], in any order.

    Raises:
        FileNotFoundError: If a model has no such file.
    """
    columns = {}
    for model in models:
        with open(folder / model / f"wasserstein_{kind}.csv", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        last = list(rows[0])[-1]
        columns[model] = [float(row[last]) for row in rows]
    across = -(-len(levels) // 2)
    figure = style.new_figure(11, 4.6)
    axes = figure.subplots(2, across, sharey=True, squeeze=False).flatten()
    others = [model for model in models if model != "sda_0"]
    for level, (axis, name) in enumerate(zip(axes, downward(levels), strict=False)):
        for place, model in enumerate(others):
            axis.bar(place, columns[model][level], color=style.COLOURS[place])
        if "sda_0" in columns:
            axis.axhline(columns["sda_0"][level], color=style.INK, linestyle="--", linewidth=1.2)
        axis.set_xticks(range(len(others)), others, fontsize="x-small")
        style.dress(axis, "", "W1" if level % across == 0 else "", f"{name} hPa")
    style.heading(figure, f"{kind} = {last}: W1 by level, line: sda_0")
    return figure


def write_pages(
    plan: Qu2024Plan, outcomes: Sequence[Outcome], verdicts: Sequence[Verdict], truths: Truths, folder: Path
) -> None:
    """report.html and its figures."""
    sections = []
    published = [o for o in outcomes if o.mode == "published"]
    right = [o for o in outcomes if o.mode == "right"]
    if published:
        bars = bar_figure(plan, published, "sample", "w1", "W1 in published units, mean over levels")
        style.save_figure(bars, folder / "figures" / "wasserstein.png")
        blocks: list[Block] = [_EXPLAINED, Picture(bars, "W1 of one sample; lines: reconstruction")]
        for metric in ("w1", "rmse"):
            for method in ("sample", "sample elsewhere", "climatology", "reconstruction"):
                blocks.append(Table(table_of(published, method, metric), f"{metric} of {method}"))
        last = {o.model: o for o in published}
        for outcome in last.values():
            panels = panel_figure(outcome, truths, truths.levels[len(truths.levels) // 2])
            blocks.append(Picture(panels, f"{outcome.model}, {outcome.setting}"))
        sections.append(Section("Published mode", blocks))
    if right:
        bars = bar_figure(plan, right, "analysis", "rmse", "RMSE on frames [K], mean over levels")
        style.save_figure(bars, folder / "figures" / "rmse.png")
        blocks = [Picture(bars, "RMSE of the ensemble mean; lines: reconstruction")]
        for metric in ("rmse", "crps"):
            for method in ("analysis", "latent_gaussian", "gaussian", "interpolation", "climatology"):
                blocks.append(Table(table_of(right, method, metric), f"{metric} of {method} on frames [K]"))
        for outcome in right:
            if len(outcome.values) > 60:  # with auxiliary modalities
                caption = f"{outcome.model} {outcome.setting}: all methods, {ALL}"
                blocks.append(
                    Table(
                        methods_of(outcome, ("rmse", "crps", "spread_skill", "coverage90_fair"), ALL), caption
                    )
                )
        sections.append(Section("Right mode", blocks))
    judged = [v for v in verdicts if v.judged]
    sections.append(Section("Bars", [Table([line(v) for v in verdicts], highlight=None)]))
    facts = [
        Fact("trajectories", f"{plan.trajectories} of {plan.length} days"),
        Fact("models x settings", f"{len(plan.models)} x {len(plan.settings)}"),
        Fact("bars passed", f"{passed(judged)} of {len(judged)}", good=passed(judged) == len(judged)),
    ]
    write_report(folder / "report.html", plan.title, facts, sections, subtitle=plan.source)


def show_outcomes(outcomes: Sequence[Outcome], console: Console) -> None:
    """Tables of both modes on the console."""
    for mode, method, metric in (
        ("published", "sample", "w1"),
        ("right", "analysis", "rmse"),
        ("right", "analysis", "crps"),
    ):
        rows = table_of([o for o in outcomes if o.mode == mode], method, metric)
        if rows:
            console.rich.print(console_table(rows, title=f"{mode} mode, {metric} of {method}"))
