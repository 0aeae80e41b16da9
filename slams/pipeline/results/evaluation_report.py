"""Tables and figures of an analysis that was compared with truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from slams.data.windows import runs
from slams.evaluation import Scores
from slams.evaluation.figures import maps, plots
from slams.evaluation.figures.style import save_figure
from slams.evaluation.metrics import errors_shown
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import scores_by_method, wide
from slams.pipeline.inputs.layout import Layout

_SERIES = 120  # days of a time series that can still be told apart


@dataclass
class Verified:
    """A variable of an analysis beside its truth.

    Attributes:
        name: Modality.
        layout: Where its values are.
        transform: What the model saw.
        dates: Days that both have (T).
        truth: (T, *S), NaN where missing.
        members: Of the analysis (N, T, *S).
        points: What was observed of the same quantity: where, and values (T, *S').
        withheld: Which values were not observed (T, *S); None if none of this variable was.
    """

    name: str
    layout: Layout
    transform: str
    dates: np.ndarray
    truth: Tensor
    members: Tensor
    points: tuple[Layout, Tensor] | None = None
    withheld: Tensor | None = None


def write_evaluation(
    folder: Path,
    title: str,
    attributes: Mapping[str, str],
    scores: Scores,
    rows: Sequence[Mapping[str, Any]],
    verified: Sequence[Verified],
) -> Path:
    """Write figures/*.png and report.html.

    Args:
        folder: Where to.
        title: Name of the analysis.
        attributes: Of the analysis file.
        scores: Of all methods.
        rows: The rows of metrics.csv.
        verified: The variables scored.

    Returns:
        The path of the report.
    """
    figures: dict[str, Figure] = {}
    sections, facts = [], []
    for each in verified:
        facts += _facts(each, scores)
        own = _figures(each, scores, rows, earth=attributes.get("planet", "Earth") == "Earth")
        figures |= own
        blocks: list[str | Table | Picture | Verbatim] = [_note(each)]
        for part in parts_shown(rows, each.name):
            table = wide(rows, variable=each.name, part=part)
            if table:
                blocks.append(Table(table, f"{each.name}, {part} points"))
        blocks += [Picture(figure, name.replace("_", " ")) for name, figure in own.items()]
        sections.append(Section(each.name, blocks))
    about = yaml.safe_dump(dict(attributes), sort_keys=False)
    sections.append(Section("Where the analysis comes from", [Verbatim(about, "attributes of the file")]))
    for name, figure in figures.items():
        save_figure(figure, folder / "figures" / f"{name}.png")
    days = np.unique(np.concatenate([each.dates for each in verified]))
    span = f"{days[0]} to {days[-1]}, {len(days)} days with truth"
    write_report(folder / "report.html", f"Evaluation of {title}", facts, sections, subtitle=span)
    return folder / "report.html"


def parts_shown(rows: Sequence[Mapping[str, Any]], variable: str) -> tuple[str, ...]:
    """Parts that a table is made for: where nothing is withheld, "observed" says what "all" says."""
    withheld = any((row["variable"], row["part"]) == (variable, "withheld") for row in rows)
    return ("all", "observed", "withheld") if withheld else ("all",)


def _note(each: Verified) -> str:
    text = (
        f"Scores are area-weighted over time and space, in {each.layout.units or 'the unit of the file'}; "
        "intervals are 95 % over stretches of 15 days. Baselines are scored as ensembles drawn from their "
        "marginals, so that all methods pay alike for their number of members."
    )
    if each.transform == "log1p":
        text += " The model sees log(1 + x) of this variable; it is scored here in the unit of the file."
    return text


def _facts(each: Verified, scores: Scores) -> list[Fact]:
    def value(metric: str) -> float:
        return scores.value("analysis", metric, variable=each.name)

    facts = [
        Fact(f"{each.name}: RMSE", f"{value('rmse'):.3g} {each.layout.units}", f"bias {value('bias'):.2g}")
    ]
    if len(each.members) > 1:
        skill, cover = value("spread_skill"), value("coverage90")
        facts.append(
            Fact(f"{each.name}: spread / skill", f"{skill:.2f}", "1 is calibrated", 0.8 <= skill <= 1.25)
        )
        facts.append(Fact(f"{each.name}: 90 % interval covers", f"{cover:.0%}", "", 0.8 <= cover <= 0.97))
    return facts


def _figures(
    each: Verified, scores: Scores, rows: Sequence[Mapping[str, Any]], *, earth: bool
) -> dict[str, Figure]:
    found = {}
    if each.layout.is_grid:
        found[f"{each.name}_maps"] = _maps(each, earth)
    if each.layout.levels():
        methods = [m for m, variable, part in scores.keys() if (variable, part) == (each.name, "all")]
        curves = {
            m: [scores.value(m, "rmse", variable=each.name, level=level) for level in each.layout.levels()]
            for m in methods
        }
        levels = [float(level) for level in each.layout.levels()]
        found[f"{each.name}_profiles"] = maps.profiles(levels, curves, units=each.layout.units)
    found[f"{each.name}_series"] = _series(each)
    if len(each.members) > 1:
        counts = scores.ranks("analysis", variable=each.name)
        chi2, p, count = scores.flatness("analysis", variable=each.name)
        notes = f"chi-square {chi2:.0f}, p {p:.2g}; effective sample of {count:.0f} independent truths"
        found[f"{each.name}_ranks"] = plots.rank_histogram(counts, title=each.name, notes=notes)
    where = {"variable": each.name, "level": "all", "part": "all"}
    bars = {
        metric.label: scores_by_method(rows, metric.name, **where)
        for metric in errors_shown(row["metric"] for row in rows)
    }
    found[f"{each.name}_methods"] = plots.bars(bars, title=f"{each.name} [{each.layout.units}]")
    return found


def _maps(each: Verified, earth: bool) -> Figure:
    """The day in the middle of those with truth, on the level in the middle."""
    days = torch.isfinite(each.truth).flatten(1).any(1).nonzero().flatten()
    day = int(days[len(days) // 2]) if len(days) else 0
    level = len(each.layout.levels()) // 2
    mean = each.members[:, day, level].mean(0)
    spread = each.members[:, day, level].std(0).numpy() if len(each.members) > 1 else None
    points = None
    if each.points is not None:
        layout, values = each.points
        value = values[day, min(level, values.shape[1] - 1)].flatten().numpy()
        here = np.isfinite(value)
        at = layout.points().numpy()[here]
        points = (at[:, 0], at[:, 1], value[here])
    height = f" at {each.layout.levels()[level]} hPa" if each.layout.levels() else ""
    truth = each.truth[day, level]
    return maps.maps(
        truth.numpy(),
        None,
        mean.numpy(),
        spread,
        (mean - truth).numpy(),
        np.array(each.layout.coords["lat"]),
        np.array(each.layout.coords["lon"]),
        f"{each.name}{height}, {each.dates[day]}",
        each.layout.units,
        coastlines=earth,
        points=points,
    )


def _series(each: Verified) -> Figure:
    """The longest run of days, at the station most often withheld or as an area mean."""
    run = max(runs(each.dates), key=lambda s: s.stop - s.start)
    run = slice(run.start, min(run.stop, run.start + _SERIES))
    level = len(each.layout.levels()) // 2
    truth, members = each.truth[run, level].flatten(1), each.members[:, run, level].flatten(2)
    if each.layout.is_grid:
        weight = torch.where(
            torch.isfinite(truth) & torch.isfinite(members).all(0), each.layout.weights().flatten(), 0.0
        )
        weight = weight / weight.sum(1, keepdim=True)  # a day without truth becomes NaN, which is not drawn
        truth = (weight * truth.nan_to_num()).sum(1)
        members = (weight * members.nan_to_num()).sum(2)
        title = f"{each.name}, area mean"
    else:
        candidates = torch.isfinite(truth).float()
        if each.withheld is not None:
            candidates = candidates + 2 * candidates * each.withheld[run, level]
        station = int(candidates.sum(0).argmax())
        hidden = each.withheld is not None and bool(each.withheld[run, level, station].all())
        truth, members = truth[:, station], members[:, :, station]
        title = f"{each.name}, station {station}{' (withheld)' if hidden else ''}"
    bands = None
    if len(members) > 1:
        low, high = np.quantile(members.numpy(), [0.05, 0.95], axis=0)
        bands = {"analysis": (low, high)}
    curves = {"analysis": members.mean(0).numpy(), "truth": truth.numpy()}
    return plots.time_series(
        each.dates[run], curves, bands=bands, label=each.name, units=each.layout.units, title=title
    )
