"""The report of a run: tables, gains, figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure

from slams.evaluation import power_spectrum, radial_spectrum
from slams.evaluation.figures import maps, plots
from slams.evaluation.figures.style import save_figure
from slams.evaluation.metrics import errors_shown
from slams.evaluation.report import Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.tables import scores_by_method, wide
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import to_tree
from slams.pipeline.results.outcome import Outcome

Rows = list[dict[str, Any]]  # of metrics.csv: making them draws the bootstrap, so it is done once


def write_summary(
    model: Model, baselines: Baselines, fields: Fields, outcome: Outcome, rows: Rows, out: Path
) -> None:
    """Figures as PNG in out/figures and one self-contained page out/report.html."""
    recipe = model.recipe
    label, names = list(recipe.experiment.sets.items())[-1]
    sections = []
    figures: dict[str, Figure] = {}
    for variable in model.states:
        units = _units(model, variable)
        figures |= _figures(model, outcome, rows, variable, units)
        blocks: list[str | Table | Picture | Verbatim] = [
            f"Main set of observations: {label} ({', '.join(names)}). Other sets are named behind a colon. Scores are "
            f"area-weighted over time and space, in {units}; intervals are 95 % over windows. 'reconstruction' is the "
            "autoencoder's own error with everything seen: no latent analysis can beat it on average."
        ]
        blocks.append(Table(wide(rows, variable=variable), f"{variable}, all points"))
        for part in ("observed", "withheld"):
            some = (
                wide(rows, variable=variable, part=part, metrics=("rmse", "crps"))
                if _has(rows, variable, part)
                else []
            )
            if some:
                blocks.append(Table(some, f"{variable}, {part} points"))
        blocks += [Picture(f, _caption(k)) for k, f in figures.items() if k.startswith(f"{variable}_")]
        sections.append(Section(f"{variable}", blocks))
    for name in recipe.experiment.withhold:
        table = wide(rows, variable=name, part="withheld", metrics=("rmse", "bias", "crps"))
        note = f"{name} at the stations withheld; interpolated fields without their mean bias of the training days"
        sections.append(Section(f"{name}, withheld", [Table(table, note)]))
    sections.insert(
        0, Section("What each modality adds", [Table(gains(model, outcome), "paired over windows")])
    )
    losses = _losses(out)
    if losses is not None:
        figures["training"] = losses
        sections.append(
            Section("Training", [Picture(losses, "Training and validation loss of each network")])
        )
    settings = {
        "observation error factors": model.prior.factors,
        "spread factor": model.prior.inflation,
        "closed-form Gaussian": baselines.settings,
        "interpolation": {
            " / ".join(k): [v.length, dict(v.ratios)] for k, v in baselines.interpolators.items()
        },
    }
    sections.append(
        Section(
            "Data and settings",
            [
                Verbatim(fields.report.text(), "days of each modality"),
                Verbatim(yaml.safe_dump(settings), "tuned on the validation part"),
                Verbatim(yaml.safe_dump(to_tree(recipe), sort_keys=False), "recipe"),
            ],
        )
    )
    for name, figure in figures.items():
        save_figure(figure, out / "figures" / f"{name}.png")
    facts = [fact for variable in model.states[:2] for fact in _facts(model, outcome, rows, variable)]
    span = f"{outcome.dates[0]} to {outcome.dates[-1]}, {len(outcome.dates)} days analysed"
    write_report(out / "report.html", f"Assimilation test: {recipe.name}", facts, sections, subtitle=span)


def gains(model: Model, outcome: Outcome) -> list[dict[str, str]]:
    """Relative gain in RMSE of each set over the sets it contains, and of shuffled dates over none."""
    sets = model.recipe.experiment.sets
    last = list(sets)[-1]
    methods = {label: "analysis" if label == last else f"analysis:{label}" for label in sets}
    pairs = [
        (small, large) for small, few in sets.items() for large, many in sets.items() if set(few) < set(many)
    ]
    table = []
    for variable in model.states:
        for small, large in pairs:
            gain = outcome.scores.paired_gain(methods[large], methods[small], variable=variable)
            table.append(_gain_row(variable, f"{large} over {small}", gain))
        if model.recipe.experiment.shuffled:
            gain = outcome.scores.paired_gain(
                "analysis:shuffled dates", methods[next(iter(sets))], variable=variable
            )
            table.append(_gain_row(variable, f"{last}, dates shuffled, over {next(iter(sets))}", gain))
    return table


def _gain_row(variable: str, what: str, gain) -> dict[str, str]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    return {
        "variable": variable,
        "comparison": what,
        "gain in RMSE": f"{gain.mean:+.1%}",
        "95 % interval": f"{gain.lower:+.1%} to {gain.upper:+.1%}",
        "windows": str(gain.n),
    }


def _facts(model: Model, outcome: Outcome, rows: Rows, variable: str) -> list[Fact]:
    def value(method: str, metric: str) -> float:
        return outcome.scores.value(method, metric, variable=variable)

    def known(method: str) -> bool:
        return any(row["method"] == method and row["variable"] == variable for row in rows)

    error = value("analysis", "rmse")
    trivial = {m: value(m, "rmse") for m in ("climatology", "interpolation", "prior") if known(m)}
    best = min(trivial, key=lambda m: trivial[m])
    units = _units(model, variable)
    floor = value("reconstruction", "rmse")
    skill, cover = value("analysis", "spread_skill"), value("analysis", "coverage90")
    crps = value("analysis", "crps") / value("gaussian", "crps")
    return [
        Fact(
            f"{variable}: RMSE",
            f"{error:.3f} {units}",
            f"{error / trivial[best]:.2f} of {best} ({trivial[best]:.3f})",
        ),
        Fact(
            f"{variable}: reconstruction floor",
            f"{floor:.3f} {units}",
            f"{floor / error:.2f} of the analysis",
            floor <= error / 2,
        ),
        Fact(f"{variable}: spread / skill", f"{skill:.2f}", "1 is calibrated", 0.8 <= skill <= 1.25),
        Fact(f"{variable}: 90 % interval covers", f"{cover:.0%}", "", 0.8 <= cover <= 0.97),
        Fact(f"{variable}: CRPS / closed-form Gaussian", f"{crps:.3f}", "below 1 is better", crps <= 1.05),
    ]


def _units(model: Model, variable: str) -> str:
    return model.recipe.modalities[variable].transformed.label(model.layouts[variable].units)


def _has(rows: list[dict], variable: str, part: str) -> bool:
    return any(r["variable"] == variable and r["part"] == part for r in rows)


def _caption(key: str) -> str:
    return key.replace("_", " ")


def _figures(model: Model, outcome: Outcome, rows: Rows, variable: str, units: str) -> dict[str, Figure]:
    layout = model.layouts[variable]
    truth, members = outcome.truth[variable], outcome.members[variable]
    level = len(layout.levels()) // 2
    day = truth.shape[0] // 2
    mean = members.mean(0)
    spread = members.std(0) if len(members) > 1 else torch.zeros_like(mean)
    lat, lon = np.array(layout.coords["lat"]), np.array(layout.coords["lon"])
    title = f"{variable}{' at ' + layout.levels()[level] + ' hPa' if layout.levels() else ''}, {outcome.dates[day]}"
    seen, points = _seen(model, outcome, variable, day, level)
    found = {
        f"{variable}_maps": maps.maps(
            truth[day, level].numpy(),
            seen,
            mean[day, level].numpy(),
            spread[day, level].numpy(),
            (mean - truth)[day, level].numpy(),
            lat,
            lon,
            title,
            units,
            coastlines=not model.recipe.planet.years,
            points=points,
            land=_land(model),
        )
    }
    methods = ("analysis", "gaussian", "interpolation", "climatology", "reconstruction")
    if layout.levels():
        curves = {
            m: [outcome.scores.value(m, "rmse", variable=variable, level=lev) for lev in layout.levels()]
            for m in methods
        }
        found[f"{variable}_profiles"] = maps.profiles(
            [float(x) for x in layout.levels()], curves, units=units
        )
    counts = outcome.scores.ranks("analysis", variable=variable)
    chi2, p, count = outcome.scores.flatness("analysis", variable=variable)
    notes = f"chi-square {chi2:.0f}, p {p:.2g}; effective sample of {count:.0f} independent truths"
    found[f"{variable}_ranks"] = plots.rank_histogram(counts, title=variable, notes=notes)
    found[f"{variable}_spectra"] = _spectra(model, outcome, variable, units)
    shown = (*methods, "prior")
    where = {"variable": variable, "level": "all", "part": "all"}
    bars = {
        metric.label: scores_by_method(rows, metric.name, methods=shown, **where)
        for metric in errors_shown(row["metric"] for row in rows)
    }
    found[f"{variable}_methods"] = plots.bars(bars, title=variable)
    return found


def _seen(
    model: Model, outcome: Outcome, variable: str, day: int, level: int
) -> tuple[np.ndarray | None, tuple[np.ndarray, np.ndarray, np.ndarray] | None]:
    """What the main set saw of the variable's own kind: a field, or points."""
    direct = model.recipe.data.direct.get(variable, ())
    for name in sorted(direct, key=lambda n: model.layouts[n].is_grid and n != variable):
        if name not in outcome.observed:
            continue
        value = outcome.observed[name][day, min(level, outcome.observed[name].shape[1] - 1)].flatten().numpy()
        at = model.layouts[name].points().numpy()
        here = np.isfinite(value)
        return None, (at[here, 0], at[here, 1], value[here])
    return None, None


def _land(model: Model) -> np.ndarray | None:
    """Where rain gauges are, for the outline of the planet's continents."""
    for name, layout in model.layouts.items():
        present = model.codec.statistics[name].present
        if model.recipe.planet.years and layout.is_grid and not bool(present.all()):
            return present[0].numpy()
    return None


def _spectra(model: Model, outcome: Outcome, variable: str, units: str) -> Figure:
    layout = model.layouts[variable]
    truth, members = outcome.truth[variable], outcome.members[variable][:8]
    anomaly = truth - truth.mean(0)
    centre = truth.mean(0)
    fields: Mapping[str, torch.Tensor] = {
        "truth": anomaly,
        "a member": members - centre,
        "analysis mean": outcome.members[variable].mean(0) - centre,
    }
    lat = torch.tensor(layout.coords["lat"])
    curves = {}
    for name, field in fields.items():
        k, power = power_spectrum(field, lat) if layout.is_global else radial_spectrum(field)
        curves[name] = (np.asarray(k), np.asarray(power).reshape(-1, len(k)).mean(0))
    wavenumber = "zonal wavenumber" if layout.is_global else "wavenumber"
    return plots.spectra(curves, units=units, wavenumber=wavenumber, title=variable)


def _losses(out: Path) -> Figure | None:
    path = out / "history.json"
    if not path.exists():
        return None
    curves = {}
    for name, rows in json.loads(path.read_text()).items():
        trained = [row for row in rows if row[1] is not None]  # the first row is from before the first step
        curves[name] = ([row[:2] for row in trained], [[row[0], row[2]] for row in trained])
    return plots.loss_curves(curves)
