"""Settings of the rivals chosen on validation days."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from slams.core.console import Console
from slams.core.files import write_text
from slams.core.settings import plain
from slams.core.stages import Stages
from slams.evaluation.tuning import Range, TrialLog, best, search
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import ExperimentRecipe
from slams.pipeline.recipe_rivals import RivalRecipe
from slams.pipeline.results.scoring import Test
from slams.pipeline.rivals.run import Rivals
from slams.systems.flows.quasigeostrophic import MoistQG

TRIALS, SETTINGS = "trials.json", "tuned.yaml"
_WINDOWS, _SPINUP = 3, 6  # of a trial: errors have settled within 30 % after six days


def tune_rivals(
    model: Model,
    baselines: Baselines,
    experiment: ExperimentRecipe,
    fields: Fields,
    out: Path,
    console: Console,
    system: MoistQG | None = None,
) -> RivalRecipe:
    """Try settings with the perfect model on windows of the validation part, and write the best to out/tuned.yaml.

    A trial's score is the filter's CRPS, the mean over the rivals' sets. Searched are the relaxation, the half-widths,
    and the errors of representativeness that are not 0, each within a factor of 4 of the recipe's. Trials are kept in
    trials.json, and a search that was interrupted goes on.

    Args:
        model: Trained model.
        baselines: Fitted baselines of the run.
        experiment: Experiment with the settings to begin with and the number of trials.
        fields: Fields of all days.
        out: Folder of the rivals.
        console: Console for the progress.
        system: The planet; that of the archive if None.

    Returns:
        The settings of the best trial.
    """
    recipe, start = model.recipe, replace(experiment.rival, trials=0)
    data = replace(recipe.data, test=recipe.data.validation)
    labels = start.sets or tuple(experiment.sets)
    log = TrialLog(out / TRIALS, {"rival": plain(start), "sets": labels, "seed": recipe.seed})

    def score(values: Mapping[str, Any]) -> float:
        settings = replace(_with(start, values), spinup=min(_SPINUP, start.spinup))
        e = replace(experiment, windows=_WINDOWS, rival=settings)
        other = Model(model.codec, model.prior, replace(recipe, data=data, experiment=e))
        rivals = Rivals(Test(other, baselines, fields), Stages(out), system)
        rivals.run(["perfect"], Console(quiet=True))
        scores, main = rivals.finished()[0], list(e.sets)[-1]
        names = ["letkf" if label == main else f"letkf:{label}" for label in labels]
        return sum(scores.value(name, "crps", variable=recipe.states[0]) for name in names) / len(names)

    with console.bar("tuning the LETKF on validation days", experiment.rival.trials) as advance:
        trials = search(
            log, "letkf", _space(start), _values(start), score, experiment.rival.trials,
            advance=lambda units, value: advance(units, f"CRPS {value:.4f}"),
        )  # fmt: skip
    found = _with(start, best(trials)["settings"])
    write_text(out / SETTINGS, yaml.safe_dump({"experiment": {"rival": plain(found)}}, sort_keys=False))
    console.say(f"best settings of {len(trials)} trials, to be put into the recipe: {out / SETTINGS}")
    return found


def _space(start: RivalRecipe) -> dict[str, Range]:
    space = {"rtps": Range(0.0, 0.95)}
    for key in ("half_widths", "errors"):
        for name, value in getattr(start, key).items():
            if value > 0:
                space[f"{key}.{name}"] = Range(value / 4, 4 * value, "log")
    return space


def _values(start: RivalRecipe) -> dict[str, float]:
    values = {f"{key}.{n}": v for key in ("half_widths", "errors") for n, v in getattr(start, key).items()}
    return {"rtps": start.rtps, **{key: value for key, value in values.items() if value > 0}}


def _with(start: RivalRecipe, values: Mapping[str, Any]) -> RivalRecipe:
    """Settings with searched values in their place, to three digits."""
    tree = {"rtps": start.rtps, "half_widths": dict(start.half_widths), "errors": dict(start.errors)}
    for key, value in values.items():
        group, _, name = key.partition(".")
        number = float(f"{value:.3g}")
        if name:
            tree[group][name] = number  # type: ignore[index]
        else:
            tree[group] = number
    return replace(start, **tree)  # type: ignore[arg-type]
