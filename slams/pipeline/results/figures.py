"""Figures of one variable beside its truth, in the reports of a run and of an evaluation.

A figure is a function of `View`; its line in `FIGURES` puts it into the reports.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from slams.data.windows import runs
from slams.evaluation import Scores, power_spectrum, radial_spectrum
from slams.evaluation.figures import maps, plots
from slams.evaluation.figures.style import save_figure
from slams.evaluation.metrics import errors_shown
from slams.evaluation.report import Fact
from slams.evaluation.tables import scores_by_method
from slams.pipeline.inputs.layout import Layout

Rows = Sequence[Mapping[str, Any]]  # of metrics.csv: making their intervals takes a while, so it is done once
_SERIES = 120  # days of a time series that are still distinguishable


@dataclass
class View:
    """A variable of an analysis beside its truth.

    Attributes:
        name: Name of the modality.
        layout: Layout of its values.
        units: Units of the values.
        dates: Common days of analysis and truth, (T).
        truth: Truth (T, *S), NaN where missing.
        members: Members of the analysis, (N, T, *S).
        scores: Scores of all methods.
        rows: Rows of metrics.csv.
        methods: Names of the shown methods.
        points: Observations of the same quantity: layout and values (T, *S').
        withheld: Mask of unobserved values (T, *S); None if none of this variable was observed.
        coastlines: Whether to draw the Earth's coastlines.
        land: Land mask (H, W), for an outline.
    """

    name: str
    layout: Layout
    units: str
    dates: np.ndarray
    truth: Tensor
    members: Tensor
    scores: Scores
    rows: Rows
    methods: Sequence[str]
    points: tuple[Layout, Tensor] | None = None
    withheld: Tensor | None = None
    coastlines: bool = True
    land: np.ndarray | None = None

    @property
    def level(self) -> int:
        """Index of the middle channel."""
        return len(self.layout.levels()) // 2

    def value(self, method: str, metric: str, **where: Any) -> float:
        """A score of this variable."""
        return self.scores.value(method, metric, variable=self.name, **where)


def figures_of(view: View, *, without: str) -> dict[str, Figure]:
    """The figures that the variable has, by "VARIABLE_NAME"; a report leaves out the one called `without`."""
    made = {f"{view.name}_{name}": draw(view) for name, draw in FIGURES.items() if name != without}
    return {name: figure for name, figure in made.items() if figure is not None}


def save_figures(folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write figures as PNG files, atomically."""
    for name, figure in figures.items():
        save_figure(figure, folder / f"{name}.png")


def calibration_facts(view: View) -> list[Fact]:
    """Facts on the calibration of the analysis: spread against error."""
    skill, cover = view.value("analysis", "spread_skill"), view.value("analysis", "coverage90")
    return [
        Fact(f"{view.name}: spread / skill", f"{skill:.2f}", "1 is calibrated", 0.8 <= skill <= 1.25),
        Fact(f"{view.name}: 90 % interval covers", f"{cover:.0%}", "", 0.8 <= cover <= 0.97),
    ]


def _maps(view: View) -> Figure | None:
    """Maps of the middle day with truth, on the middle level."""
    if not view.layout.is_grid:
        return None
    days = torch.isfinite(view.truth).flatten(1).any(1).nonzero().flatten()
    day, level = int(days[len(days) // 2]) if len(days) else 0, view.level
    mean = view.members[:, day, level].mean(0)
    spread = view.members[:, day, level].std(0).numpy() if len(view.members) > 1 else None
    points = None
    if view.points is not None:
        layout, values = view.points
        value = values[day, min(level, values.shape[1] - 1)].flatten().numpy()
        finite = np.isfinite(value)
        at = layout.points().numpy()[finite]
        points = (at[:, 0], at[:, 1], value[finite])
    height = f" at {view.layout.levels()[level]} hPa" if view.layout.levels() else ""
    truth = view.truth[day, level]
    lat, lon = (np.array(view.layout.coords[axis]) for axis in ("lat", "lon"))
    return maps.maps(
        truth.numpy(), None, mean.numpy(), spread, (mean - truth).numpy(), lat, lon,
        f"{view.name}{height}, {view.dates[day]}", view.units,
        coastlines=view.coastlines, points=points, land=view.land,
    )  # fmt: skip


def _profiles(view: View) -> Figure | None:
    levels = view.layout.levels()
    if not levels:
        return None
    curves = {
        m: [view.value(m, "rmse", level=level) for level in levels] for m in view.methods if m != "prior"
    }
    return maps.profiles([float(level) for level in levels], curves, units=view.units)


def _series(view: View) -> Figure:
    """Time series of the longest run of days, at the station most often withheld or as an area mean."""
    run = max(runs(view.dates), key=lambda s: s.stop - s.start)
    run = slice(run.start, min(run.stop, run.start + _SERIES))
    level, withheld = view.level, view.withheld
    truth, members = view.truth[run, level].flatten(1), view.members[:, run, level].flatten(2)
    if view.layout.is_grid:
        known = torch.isfinite(truth) & torch.isfinite(members).all(0)
        weight = torch.where(known, view.layout.weights().flatten(), 0.0)
        weight = weight / weight.sum(1, keepdim=True)  # a day without truth becomes NaN, which is not drawn
        truth = (weight * truth.nan_to_num()).sum(1)
        members = (weight * members.nan_to_num()).sum(2)
        title = f"{view.name}, area mean"
    else:
        candidates = torch.isfinite(truth).float()
        if withheld is not None:
            candidates = candidates + 2 * candidates * withheld[run, level]
        station = int(candidates.sum(0).argmax())
        hidden = withheld is not None and bool(withheld[run, level, station].all())
        truth, members = truth[:, station], members[:, :, station]
        title = f"{view.name}, station {station}{' (withheld)' if hidden else ''}"
    low_high = np.quantile(members.numpy(), [0.05, 0.95], axis=0)
    bands = {"analysis": (low_high[0], low_high[1])} if len(members) > 1 else None
    curves = {"analysis": members.mean(0).numpy(), "truth": truth.numpy()}
    return plots.time_series(
        view.dates[run], curves, bands=bands, label=view.name, units=view.units, title=title
    )


def _ranks(view: View) -> Figure | None:
    if len(view.members) < 2:
        return None
    counts = view.scores.ranks("analysis", variable=view.name)
    chi2, p, count = view.scores.flatness("analysis", variable=view.name)
    notes = f"chi-square {chi2:.0f}, p {p:.2g}; effective sample of {count:.0f} independent truths"
    return plots.rank_histogram(counts, title=view.name, notes=notes)


def _spectra(view: View) -> Figure:
    layout, centre = view.layout, view.truth.mean(0)
    fields = {
        "truth": view.truth - centre,
        "a member": view.members[:8] - centre,
        "analysis mean": view.members.mean(0) - centre,
    }
    curves = {}
    for name, field in fields.items():
        lat = torch.tensor(layout.coords["lat"])
        k, power = power_spectrum(field, lat) if layout.is_global else radial_spectrum(field)
        curves[name] = (np.asarray(k), np.asarray(power).reshape(-1, len(k)).mean(0))
    wavenumber = "zonal wavenumber" if layout.is_global else "wavenumber"
    return plots.spectra(curves, units=view.units, wavenumber=wavenumber, title=view.name)


def _methods(view: View) -> Figure:
    where = {"variable": view.name, "level": "all", "part": "all"}
    bars = {
        metric.label: scores_by_method(view.rows, metric.name, methods=view.methods, **where)
        for metric in errors_shown(row["metric"] for row in view.rows)
    }
    return plots.bars(bars, title=f"{view.name} [{view.units}]")


FIGURES: dict[str, Callable[[View], Figure | None]] = {
    "maps": _maps,
    "profiles": _profiles,
    "series": _series,
    "ranks": _ranks,
    "spectra": _spectra,
    "methods": _methods,
}
