"""One recipe from scratch to a report."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml

from slams import config
from slams.core.console import Console
from slams.core.files import write_text
from slams.core.processes import processors
from slams.core.stages import Stages
from slams.data.planet.archive import simulate_archive
from slams.evaluation.metrics import shown
from slams.evaluation.tables import console_table, read_metrics, wide, write_metrics
from slams.pipeline.baselines.file import FILE_NAME, save_baselines
from slams.pipeline.baselines.fit import Baselines, fit_gaussian
from slams.pipeline.baselines.spread import calibrate_gaussians
from slams.pipeline.inputs.checks import check_fields, check_headers, check_settings
from slams.pipeline.inputs.fields import Fields, load_fields
from slams.pipeline.left_out.baselines import left_out_baselines
from slams.pipeline.left_out.calibrate import take_errors
from slams.pipeline.left_out.folds import fit_folds
from slams.pipeline.left_out.join import join_left_out
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, to_tree
from slams.pipeline.recipe_rivals import RivalRecipe
from slams.pipeline.results.analysis_file import analysis_tree, provenance, write_tree, write_truth
from slams.pipeline.results.comparisons import comparison_table, comparisons
from slams.pipeline.results.outcome import Outcome, save_scores
from slams.pipeline.results.run_report import write_summary
from slams.pipeline.results.scoring import test
from slams.pipeline.rivals.join import join_rivals
from slams.pipeline.rivals.observed import check_rivals
from slams.pipeline.train import FILES, stages_of, train
from slams.systems.flows.quasigeostrophic import MoistQG


def run(recipe: Recipe, *, console: Console | None = None) -> Path:
    """Run data, training, assimilation, scores and report; finished stages are reused.

    Args:
        recipe: Recipe; `recipe.out` is the folder, by default logs/NAME.
        console: Console for the progress.

    Returns:
        The folder of the run.
    """
    console = console or Console()
    start = time.monotonic()
    out = Path(recipe.out) if recipe.out else config.LOG_DIR / recipe.name
    check_settings(recipe, out, console.say)
    check_rivals(recipe)
    whole, recipe = recipe, _without_rivals(recipe)  # which are no input of any other stage
    out.mkdir(parents=True, exist_ok=True)
    if recipe.planet.years:
        _make_planet(recipe, console)
    check_headers(recipe)
    fields = load_fields(recipe, console.say)
    console.say(fields.report.text())
    check_fields(recipe, fields, out, console.say)
    model = train(recipe, fields, out, console)
    write_text(out / "recipe.yaml", yaml.safe_dump(to_tree(whole), sort_keys=False))
    if model is not None and recipe.experiment.sets:
        _test(model, fields, out, console)
        if whole.experiment.rivals:
            join_rivals(model, whole.experiment, fields, out, console)
        if whole.experiment.leave_out:
            join_left_out(model, fields, out, console)
        rows = read_metrics(out / "metrics.csv")
        for variable in model.recipe.analysed:
            metrics = shown((row["metric"] for row in rows), "console")
            table = wide(rows, variable=variable, metrics=metrics, interval=False)
            title = f"{variable} [{model.layouts[variable].units}]"
            console.rich.print(console_table(table, title=title, wrap=False))
            worth = comparison_table(rows, variable, list(recipe.experiment.sets)[-1])
            if worth:
                title = f"what the network is worth for {variable}: change of scores [%], 95 % interval"
                console.rich.print(console_table(worth, title=title, wrap=False))
        console.say(f"report: {(out / 'report.html').resolve()}")
    ended = f"; the autoencoder is in {out}" if model is None else ""
    console.say(f"{(time.monotonic() - start) / 60:.1f} minutes{ended}")
    return out


def _without_rivals(recipe: Recipe) -> Recipe:
    experiment = replace(recipe.experiment, rivals=(), rival=RivalRecipe(), leave_out=False)
    return replace(recipe, experiment=experiment)


def _make_planet(recipe: Recipe, console: Console) -> None:
    years = recipe.planet.years
    system = MoistQG()
    days = 425 * len(years)
    with console.bar("simulating the planet", days) as advance:
        last = [0]

        def progress(done: int, total: int) -> None:
            advance(int(done * days / total) - last[0], "")
            last[0] = int(done * days / total)

        simulate_archive(
            system,
            recipe.planet.folder,
            list(years),
            seed=recipe.seed,
            workers=processors(),
            progress=progress,
        )


def _test(model: Model, fields: Fields, out: Path, console: Console) -> None:
    """Write scores, files and report, unless they exist already."""
    stages, stage = Stages(out, console.say), stages_of(model.recipe, fields, out)["report"]
    if stages.done(stage, FILES["report"]):
        console.reused("scores and report")
        return
    baselines = _baselines(model, fields, out, console)
    outcome = test(model, baselines, fields, console, stages, stage)
    save_baselines(baselines, out / FILE_NAME)
    label, names = list(model.recipe.experiment.sets.items())[-1]
    with console.bar("writing files", 1) as advance:
        _write(model, outcome, out, label, names)
        rows = [dict(row) for row in (*outcome.scores.rows(), *comparisons(model.recipe, outcome.scores))]
        write_metrics(out / "metrics.csv", rows)
        save_scores(stages, stage, outcome.scores)
        write_summary(model, baselines, fields, outcome, rows, out)
        advance(1, "")
    stages.finish(stage, (*FILES["report"], "report.html"))
    for part in out.glob("resume_test_*"):
        part.unlink()


def _baselines(model: Model, fields: Fields, out: Path, console: Console) -> Baselines:
    """Baselines fitted on training days, calibrated on the same days as the analysis."""
    if model.recipe.prior.leave_out:
        inputs = stages_of(model.recipe, fields, out)["codec"].inputs
        folds = fit_folds(model.recipe, fields, out, inputs, console, model.device)
        take_errors(folds, model.prior.factors)
        return left_out_baselines(model, folds, fields, console)
    with console.bar("fitting the baselines", 1) as advance:
        baselines = fit_gaussian(model, fields)
        calibrate_gaussians(model, baselines, fields)
        advance(1, json.dumps(baselines.settings))
    return baselines


def _write(model: Model, outcome: Outcome, out: Path, label: str, names: tuple[str, ...]) -> None:
    states = {name: outcome.members[name] for name in model.recipe.analysed}
    observed = {name: (outcome.members[name], torch.isfinite(outcome.observed[name])) for name in names}
    tree = analysis_tree(
        model,
        outcome.dates,
        states,
        observed,
        provenance(model, out, {label: list(names)}, model.recipe.seed),
        observations={name: outcome.observed[name] for name in names},
    )
    write_tree(tree, out / "analysis.nc")
    write_truth(out / "truth.nc", model, outcome.dates, outcome.truth)
