"""The report of a run: tables, gains, figures."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from matplotlib.figure import Figure

from slams.core.errors import InvalidValueError
from slams.evaluation.figures import plots
from slams.evaluation.precipitation import THRESHOLDS
from slams.evaluation.report import Block, Fact, Picture, Section, Table, Verbatim, write_report
from slams.evaluation.scores import Gain
from slams.evaluation.tables import wide
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.learning import learning_notes
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import to_tree
from slams.pipeline.results.comparisons import comparison_table
from slams.pipeline.results.figures import Rows, View, calibration_facts, figures_of, save_figures
from slams.pipeline.results.joint import PART
from slams.pipeline.results.outcome import Outcome
from slams.pipeline.results.scoring import BLOCK
from slams.pipeline.results.window_scores import in_unit

_GAINS = "1 - exp(mean log ratio of the errors of a window), with Student's t, over independent windows"
_WORTH = (
    "score of the analysis over that of another method in the same windows, minus 1, in percent with its 95 % interval; "
    "negative is better. no_network: our sampler with the same noise, without the prior's network; latent_gaussian: "
    "the exact posterior of the latent prior's closed form; gaussian: that of the states' own patterns; of amounts, "
    "clipped: the codec's own decoder in place of the stochastic one, and censored_gaussian: a Gaussian censored at zero"
)
_GAUSSIANS = ("no_network", "latent_gaussian", "gaussian")
_ANALYSES = ("analysis", *_GAUSSIANS, "interpolation", "ridge")  # methods that use the observations of a set
_METHODS = ("analysis", *_GAUSSIANS, "interpolation", "climatology", "reconstruction", "prior")


def write_summary(
    model: Model,
    baselines: Baselines,
    fields: Fields,
    outcome: Outcome,
    rows: Rows,
    out: Path,
    further: Sequence[Section] = (),
) -> None:
    """Write figures as PNG in out/figures and one self-contained page out/report.html, with further sections."""
    recipe = model.recipe
    views = [_view(model, outcome, rows, name) for name in model.states]
    sections = [Section("Gain from each modality", [Table(gains(model, outcome), _GAINS)])]
    main = list(recipe.experiment.sets)[-1]
    worth = {name: comparison_table(rows, name, main) for name in recipe.analysed}
    tables = [Table(lines, f"{name}: {_WORTH}") for name, lines in worth.items() if lines]
    if tables:
        sections.append(Section("What the network is worth", tables))
    for view in views:
        figures = figures_of(view, without="series")
        save_figures(out / "figures", figures)
        sections.append(_section(model, view, figures))
    for name in recipe.amounts.variables:
        sections.append(_amount_section(model, outcome, rows, out, name))
    sections += further
    for name in recipe.experiment.withhold:
        table = wide(rows, variable=name, part="withheld", metrics=("rmse", "bias", "crps"))
        note = f"{name} at the stations withheld; interpolated fields without their mean bias of the training days"
        sections.append(Section(f"{name}, withheld", [Table(table, note)]))
    losses = _losses(out)
    if losses is not None:
        save_figures(out / "figures", {"training": losses})
        caption = "Training and validation loss of each network"
        sections.append(Section("Training", [Picture(losses, caption)]))
    notes = learning_notes(model, out)
    if notes:
        sections.append(Section("What training did not learn", notes))
    settings = {
        "observation error factors": model.prior.factors,
        "spread factors": model.prior.inflation,
        "spread factors of the Gaussians": baselines.spreads,
        "closed-form Gaussian": baselines.settings,
        "interpolation": {
            " / ".join(k): [v.length, dict(v.ratios)] for k, v in baselines.interpolators.items()
        },
    }
    if model.prior.learning:
        settings["network and closed form on validation days"] = model.prior.learning
    texts = {
        "days of each modality": fields.report.text(),
        "tuned on the validation part": yaml.safe_dump(settings),
        "recipe": yaml.safe_dump(to_tree(recipe), sort_keys=False),
    }
    sections.append(Section("Data and settings", [Verbatim(text, name) for name, text in texts.items()]))
    facts = [fact for view in views[:2] for fact in _facts(view)]
    span = f"{outcome.dates[0]} to {outcome.dates[-1]}, {len(outcome.dates)} days analysed"
    write_report(out / "report.html", f"Assimilation test: {recipe.name}", facts, sections, subtitle=span)


def _view(model: Model, outcome: Outcome, rows: Rows, name: str) -> View:
    layout, known = model.layouts[name], {row["method"] for row in rows if row["variable"] == name}
    direct = model.recipe.data.direct.get(name, ())
    # stations show more than a grid on a map of the variable
    seen = sorted(direct, key=lambda n: model.layouts[n].is_grid and n != name)
    points = [
        (model.layouts[n], in_unit(model, n, outcome.observed[n])) for n in seen if n in outcome.observed
    ]
    return View(
        name,
        layout,
        layout.units,
        outcome.dates,
        in_unit(model, name, outcome.truth[name]),
        in_unit(model, name, outcome.members[name]),
        outcome.scores,
        rows,
        [method for method in _METHODS if method in known],
        points[0] if points else None,
        coastlines=not model.recipe.planet.years,
        land=_land(model),
    )


def _section(model: Model, view: View, figures: dict[str, Figure]) -> Section:
    label, names = list(model.recipe.experiment.sets.items())[-1]
    own = [row for row in view.rows if row["variable"] == view.name]
    blocks: list[Block] = [
        f"Main set of observations: {label} ({', '.join(names)}). Other sets are named behind a colon. Scores are "
        f"area-weighted over time and space, in {view.units}; intervals are 95 % over n independent windows (those "
        f"that begin less than {BLOCK} days after the first of them, or whose successive scores are correlated, are "
        "one). 'reconstruction' is the "
        "autoencoder's error with everything observed: the lower bound of any latent analysis on average.",
        Table(wide(view.rows, variable=view.name), f"{view.name}, all points"),
    ]
    for part in ("observed", "withheld"):
        if any(row["part"] == part for row in own):
            table = wide(view.rows, variable=view.name, part=part, metrics=("rmse", "crps"))
            blocks += [Table(table, f"{view.name}, {part} points")] if table else []
    return Section(view.name, [*blocks, *(Picture(f, k.replace("_", " ")) for k, f in figures.items())])


def _amount_section(model: Model, outcome: Outcome, rows: Rows, out: Path, name: str) -> Section:
    """Scores of an amount where it is not observed, its reliability, and its rank correlations with other variables."""
    blocks: list[Block] = []
    if name not in model.states:  # those of a state variable have a section of their own
        note = (
            f"{name} [{model.layouts[name].units}] in the sets that do not observe it, named behind a colon"
        )
        blocks.append(Table(wide(rows, variable=name), note))
    parts = dict.fromkeys(
        row["part"] for row in rows if row["variable"] == name and row["part"].startswith(PART)
    )
    for part in parts:
        metrics = ("rank_correlation", "rank_correlation_truth", "rank_correlation_error")
        note = f"rank correlation of {name} {part}, over the cells and days of a window"
        blocks.append(Table(wide(rows, variable=name, part=part, metrics=metrics), note))
    scored = outcome.scores.keys()
    methods = [m for m, v, p in scored if v == name and p == "all"]
    wanted = [m for m in methods if m.partition(":")[0] in ("analysis", "censored_gaussian")]
    bins = {m: outcome.scores.total(m, "reliability", variable=name).sum(0) for m in wanted}
    if bins:
        units = model.layouts[name].units
        curves = {
            f"above {threshold:g} {units}": {m: each[k].numpy() for m, each in bins.items()}
            for k, threshold in enumerate(THRESHOLDS)
        }
        figure = plots.reliability_diagram(curves)
        save_figures(out / "figures", {f"reliability_{name}": figure})
        blocks.append(Picture(figure, "Observed frequency against forecast probability"))
    return Section(name if name not in model.states else f"{name}, as an amount", blocks)


def gains(model: Model, outcome: Outcome) -> list[dict[str, str]]:
    """Relative gain in RMSE of each set over the sets it contains, and of shuffled dates over none.

    The gain is over the best analysis of the smaller set, whichever method has it, and where that is another method, also
    over the smaller set's own analysis. A method that lacks values at some cells is named and not compared.
    """
    sets = model.recipe.experiment.sets
    first, last = next(iter(sets)), list(sets)[-1]
    pairs = [
        (large, small) for small, few in sets.items() for large, many in sets.items() if set(few) < set(many)
    ]
    if model.recipe.experiment.shuffled:
        pairs.append(("shuffled dates", first))
    rows, known = [], dict.fromkeys(key[:2] for key in outcome.scores.keys())  # noqa: SIM118 - not a mapping
    for variable in model.states:
        methods = [str(name) for name, of in known if of == variable]
        for large, small in pairs:
            tail = "" if small == last else f":{small}"
            one = "analysis" if large == last else f"analysis:{large}"
            what = f"{last}, dates shuffled" if large == "shuffled dates" else large
            best = ""
            for other in _ranked(outcome, variable, methods, tail):
                if best and other != f"analysis{tail}":
                    continue
                name = other.removesuffix(tail)
                try:
                    gain = outcome.scores.paired_gain(one, other, variable=variable)
                except InvalidValueError:  # a method without values at cells that others have
                    rows.append(_gain_row(variable, f"{what} over {small}", f"{name} (on other cells)", None))
                    continue
                best = best or other
                name += " (the best)" if other == best else ""
                rows.append(_gain_row(variable, f"{what} over {small}", name, gain))
    return rows


def _ranked(outcome: Outcome, variable: str, methods: Sequence[str], tail: str) -> list[str]:
    """Methods that analysed a set, by their RMSE; `tail` is ":SET", or empty for the main set."""
    names = [f"{name}{tail}" for name in _ANALYSES if f"{name}{tail}" in methods]
    return sorted(names, key=lambda name: outcome.scores.value(name, "rmse", variable=variable))


def _gain_row(variable: str, what: str, other: str, gain: Gain | None) -> dict[str, str]:
    return {
        "variable": variable,
        "comparison": what,
        "analysis compared with": other,
        "gain in RMSE": "–" if gain is None else f"{gain.mean:+.1%}",
        "95 % interval": "–" if gain is None else f"{gain.lower:+.1%} to {gain.upper:+.1%}",
        "windows": "–" if gain is None else str(gain.n),
    }


def _facts(view: View) -> list[Fact]:
    name, units, error = view.name, view.units, view.value("analysis", "rmse")
    trivial = [method for method in ("climatology", "interpolation", "prior") if method in view.methods]
    least, best = min((view.value(method, "rmse"), method) for method in trivial)
    floor = view.value("reconstruction", "rmse")
    share = f"{floor / error:.2f} of the analysis"
    facts = [
        Fact(f"{name}: RMSE", f"{error:.3f} {units}", f"{error / least:.2f} of {best} ({least:.3f})"),
        Fact(f"{name}: reconstruction floor", f"{floor:.3f} {units}", share, floor <= error / 2),
    ]
    if len(view.members) == 1:  # without spread and CRPS
        return facts
    crps = view.value("analysis", "crps") / view.value("gaussian", "crps")
    note = "below 1 is better"
    return [
        *facts,
        *calibration_facts(view),
        Fact(f"{name}: CRPS / closed-form Gaussian", f"{crps:.3f}", note, crps <= 1.05),
    ]


def _land(model: Model) -> np.ndarray | None:
    """Land mask from the rain gauges, for the outline of the planet's continents."""
    for name, layout in model.layouts.items():
        present = model.codec.statistics[name].present
        if model.recipe.planet.years and layout.is_grid and not bool(present.all()):
            return present[0].numpy()
    return None


def _losses(out: Path) -> Figure | None:
    path = out / "history.json"
    if not path.exists():
        return None
    curves = {}
    for name, rows in json.loads(path.read_text()).items():
        trained = [row for row in rows if row[1] is not None]  # the first row is from before the first step
        curves[name] = ([row[:2] for row in trained], [[row[0], row[2]] for row in trained])
    return plots.loss_curves(curves)
