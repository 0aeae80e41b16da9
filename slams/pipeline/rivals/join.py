"""The rows of rivals joined to the tables and the report of a trained run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import xarray as xr
import yaml
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.settings import plain
from slams.core.stages import Stages
from slams.evaluation import Scores
from slams.evaluation.report import Section, Table, Verbatim
from slams.evaluation.tables import read_metrics, write_metrics
from slams.pipeline.baselines.file import FILE_NAME, load_baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import ExperimentRecipe
from slams.pipeline.recipe_rivals import RIVALS
from slams.pipeline.results.comparisons import comparisons
from slams.pipeline.results.outcome import Outcome, load_scores
from slams.pipeline.results.run_report import write_summary
from slams.pipeline.results.scoring import Test
from slams.pipeline.rivals.run import Cost, Rivals
from slams.pipeline.rivals.tune import tune_rivals
from slams.pipeline.train import FILES, stages_of
from slams.systems.flows.quasigeostrophic import MoistQG

FOLDER = "rivals"  # in the folder of the run


def join_rivals(
    model: Model,
    experiment: ExperimentRecipe,
    fields: Fields,
    out: Path,
    console: Console,
    system: MoistQG | None = None,
) -> None:
    """Run the rivals that are not stored yet, and write metrics.csv and report.html with the rows of all that are.

    With `experiment.rival.trials` their settings are tuned instead, and nothing is joined.

    Args:
        model: Trained model.
        experiment: Experiment with the rivals and their settings; else that of the model's recipe.
        fields: Fields of all days.
        out: Folder of the run, whose test is finished.
        console: Console for the progress.
        system: The planet; that of the archive if None.
    """
    stages, report = Stages(out, console.say), stages_of(model.recipe, fields, out)["report"]
    baselines = load_baselines(model, out / FILE_NAME)
    if experiment.rival.trials:
        tune_rivals(model, baselines, experiment, fields, out / FOLDER, console, system)
        return
    model = Model(model.codec, model.prior, replace(model.recipe, experiment=experiment))
    test = Test(model, baselines, fields)
    rivals = Rivals(test, Stages(out / FOLDER, console.say), system)
    rivals.run(list(dict.fromkeys(RIVALS[name][0] for name in experiment.rivals)), console)
    scores, costs = rivals.finished()
    for cost in costs:
        console.say(
            f"LETKF, {cost.model.replace('_', ' ')}, {cost.label}: {cost.seconds / cost.analysed:.1f} CPU s per analysed "
            f"day, {cost.seconds / cost.cycled:.1f} per day of the cycle"
        )
    own = load_scores(stages, report)
    if own is None:
        rows = [
            row for row in read_metrics(out / "metrics.csv") if row["method"].partition(":")[0] not in RIVALS
        ]
        write_metrics(out / "metrics.csv", [*rows, *scores.rows()])
        console.say(
            "report.html is without the rivals: this run's test kept no scores to compare with; remove metrics.csv and "
            "train again for a report with them"
        )
    else:
        own.unpack(*scores.pack())
        rows = [dict(row) for row in (*own.rows(), *comparisons(model.recipe, own))]
        rows += left_out_rows(out)
        write_metrics(out / "metrics.csv", rows)
        section = _section(model, own, costs)
        outcome = Outcome(own, test.dates, test.truth, *stored_analysis(model, out), baselines.interpolators)
        write_summary(model, baselines, fields, outcome, rows, out, [section])
    stages.finish(report, (*FILES["report"], "report.html"))


def left_out_rows(out: Path) -> list[dict[str, Any]]:
    """Rows of the test on seasons left out (`slams.pipeline.left_out.join`) in the table of a run."""
    return [row for row in read_metrics(out / "metrics.csv") if row["method"].startswith("left_out:")]


def stored_analysis(model: Model, out: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Members (N, T, *S) and observed values (T, *S) of the main set, as the analysis file of the run has them."""

    def tensor(dataset: xr.Dataset, variable: str, name: str) -> Tensor:
        values = model.recipe.modalities[name].transformed.forward(dataset[variable].values)
        tensor = torch.from_numpy(values)
        return (
            tensor
            if "level" in model.layouts[name].dims
            else tensor.unsqueeze(tensor.ndim - (2 if model.layouts[name].is_grid else 1))
        )

    names, members, observed = list(model.recipe.experiment.sets.values())[-1], {}, {}
    with xr.open_datatree(out / "analysis.nc") as tree:
        root = tree.to_dataset()
        for name in model.states:
            members[name] = tensor(root, model.layouts[name].source_name, name).movedim(1, 0)
        for name in names:
            group = f"observed_{name}" if f"observed_{name}" in tree.children else name
            dataset = tree.children[group].to_dataset(inherit=False)
            observed[name] = tensor(dataset, "observation", name)
            if name not in members:
                members[name] = tensor(dataset, "value", name).movedim(1, 0)
    return members, observed


def _section(model: Model, scores: Scores, costs: Sequence[Cost]) -> Section:
    """What the rivals cost, and how the analysis compares with them."""
    e, variable = model.recipe.experiment, model.states[0]
    known, rows = {method for method, _, _ in scores.keys()}, []  # noqa: SIM118 - no mapping
    for label in e.sets:
        tail = "" if label == list(e.sets)[-1] else f":{label}"
        for row in RIVALS:
            if f"{row}{tail}" in known:
                rows.append(_compared(scores, variable, label, f"analysis{tail}", f"{row}{tail}"))
    cost = [
        {
            "model": each.model.replace("_", " "),
            "set": each.label,
            "CPU s per analysed day": f"{each.seconds / each.analysed:.1f}",
            "per day of the cycle": f"{each.seconds / each.cycled:.2f}",
            "days of the cycle": str(each.cycled),
        }
        for each in costs
    ]
    text = (
        f"A LETKF of {e.rival.members} members cycles the planet's own equations, or wrong ones, through up to "
        f"{e.rival.spinup} days before each window, which the analysis does not use, and through the window. The filter "
        "uses the observations up to each day, the smoother also those of the window's later days."
    )
    gains = Table(
        rows,
        "relative gain of the analysis over each rival, paired by window; negative where the rival is better",
    )
    settings = Verbatim(
        yaml.safe_dump(plain(e.rival), sort_keys=False), "settings, chosen on validation days"
    )
    return Section("Rivals that know the equations", [text, gains, Table(cost, "computing time"), settings])


def _compared(scores: Scores, variable: str, label: str, one: str, other: str) -> dict[str, str]:
    found = {"set": label, "rival": other.partition(":")[0]}
    for metric in ("rmse", "crps"):
        try:
            gain = scores.paired_gain(one, other, metric, variable=variable)
        except InvalidValueError:  # a rival without values at cells that the analysis has
            continue
        found |= {
            f"gain in {metric.upper()}": f"{gain.mean:+.1%}",
            f"{metric.upper()}, 95 %": f"{gain.lower:+.1%} to {gain.upper:+.1%}",
        }
    return found
