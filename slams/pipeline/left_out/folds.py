"""Folds: an autoencoder and a closed form for each training season, fitted without it."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.days import Days
from slams.core.errors import InvalidValueError
from slams.core.stages import Stage, Stages, digest
from slams.data.windows import window_starts
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.left_out.residuals import Residuals, residuals_of
from slams.pipeline.model import codec as codecs
from slams.pipeline.model import prior as priors
from slams.pipeline.model.bias import FEWEST, bias_sizes, years_of
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.calibrate import learnt_prior
from slams.pipeline.model.closed_form import chooses, closed_form, within
from slams.pipeline.model.codec import Anomalies, MultimodalCodec, anomalies
from slams.pipeline.model.learn_codec import train_codec
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import LearntPrior
from slams.pipeline.recipe import PriorRecipe, Recipe
from slams.pipeline.recipe_amounts import AmountsRecipe

FOLDER = "leave_out"  # in the folder of the run; what is in it follows from the run's data and may be deleted
_VERSION = 1


@dataclass(frozen=True)
class Fold:
    """A fit without one season, and that season.

    Attributes:
        name: First day of the season.
        rows: Rows of the season's days among the fields' days.
        dates: Those days.
        model: Autoencoder and closed form of the other seasons, with their yearly biases; no network.
        fields: Fields without the season.
        values: Anomalies of the season by modality, standardized as the fold's autoencoder does, (n, *S).
    """

    name: str
    rows: np.ndarray
    dates: np.ndarray
    model: Model
    fields: Fields
    values: Anomalies

    @property
    def starts(self) -> Tensor:
        """First day of each window of the season."""
        return window_starts(self.dates, self.model.recipe.prior.window)

    @cached_property
    def residuals(self) -> Residuals:
        """Residuals of the fold's decoders on the season."""
        return residuals_of(self.model, self.values)


def seasons(recipe: Recipe, fields: Fields) -> list[np.ndarray]:
    """Rows of each training season or year that is left out in turn; stretches below two windows never are.

    Raises:
        ValueError: If there are fewer than four.
    """
    index = fields.part(recipe.data.train)
    least = 2 * recipe.prior.window
    found = [index[rows] for rows in years_of(fields.dates[index]) if len(rows) >= least]
    if len(found) < FEWEST:
        raise InvalidValueError(
            f"leaving out one season at a time needs at least {FEWEST} training seasons (stretches of consecutive days, "
            f"or calendar years) of {least} days, but data.train has {len(found)}; make data.train longer, or set "
            "prior.leave_out: false."
        )
    return found


def without(fields: Fields, rows: np.ndarray) -> Fields:
    """Fields without some days, whose climate is to be estimated anew."""
    kept = np.setdiff1d(np.arange(len(fields.dates)), rows)
    values = {
        n: x.rows(kept) if isinstance(x, Days) else x[torch.from_numpy(kept)]
        for n, x in fields.values.items()
    }
    return Fields(fields.dates[kept], values, fields.layouts, fields.report)


def fold_recipe(recipe: Recipe, out: Path) -> Recipe:
    """The recipe of a fold: without a network of the prior and decoders of amounts.

    Its autoencoder is trained for as many steps as were best on validation days for that of the run in `out`.
    """
    p, usual = recipe.prior, PriorRecipe()
    prior = replace(
        usual,
        window=p.window,
        patterns=p.patterns,
        fraction=p.fraction,
        shrink=p.shrink,
        hidden=(8,),
        blocks=1,
    )
    assimilation = replace(recipe.assimilation, method="guided" if recipe.assimilation.method else "")
    experiment = replace(recipe.experiment, leave_out=False)
    history, fit = out / "history.json", recipe.latent.fit
    rows = json.loads(history.read_text()).get("autoencoder") if history.exists() else None
    if rows:
        best = min(rows, key=lambda row: row[2])[0]
        fit = replace(fit, steps=max(best, 1))
    latent = replace(recipe.latent, fit=fit)
    return replace(
        recipe,
        latent=latent,
        prior=prior,
        amounts=AmountsRecipe(),
        assimilation=assimilation,
        experiment=experiment,
    )


def fit_folds(
    recipe: Recipe, fields: Fields, out: Path, inputs: Any, console: Console, device: torch.device
) -> list[Fold]:
    """Fit without each season in turn, or read the fits that are finished.

    Args:
        recipe: Recipe of the run.
        fields: Fields of all days.
        out: Folder of the run; the fits are in its folder "leave_out".
        inputs: Inputs of the run's autoencoder (`slams.pipeline.train.stages_of`).
        console: Console for the progress.
        device: Device of the networks.

    Raises:
        ValueError: If there are fewer than four seasons.
    """
    left, own = seasons(recipe, fields), fold_recipe(recipe, out)
    stages, found = Stages(out / FOLDER, console.say), []
    for number, rows in enumerate(left):
        name = str(fields.dates[rows[0]])
        folder, rest = out / FOLDER / name, without(fields, rows)
        sets = recipe.experiment.sets
        key = [
            inputs,
            own.latent.fit,
            own.prior,
            sets,
            recipe.experiment.share,
            own.assimilation.operators,
            name,
        ]
        stage = Stage(f"fold {name}", key, _VERSION)
        files = [f"{name}/{file}" for file in (codecs.FILE_NAME, priors.FILE_NAME)]
        if stages.done(stage, files):
            console.reused(f"fit without {name}")
        else:
            console.say(f"fit {number + 1} of {len(left)}: without the season from {name}")
            folder.mkdir(parents=True, exist_ok=True)
            _fit(own, rest, (fields, rows), folder, console, digest(stage.key), device)
            for leftover in folder.glob("resume_*.pt"):
                leftover.unlink()
            stages.finish(stage, files)
        found.append(_opened(own, fields, rest, rows, folder, device))
    return found


def _opened(
    recipe: Recipe, fields: Fields, rest: Fields, rows: np.ndarray, folder: Path, device: torch.device
) -> Fold:
    codec = MultimodalCodec.load(folder / codecs.FILE_NAME)
    codec.recipe = recipe  # what changes no fit may differ from the stored one's
    model = Model(codec, LearntPrior.load(codec, folder / priors.FILE_NAME)).on(device)
    dates = fields.dates[rows]
    return Fold(str(dates[0]), rows, dates, model, rest, anomalies(codec, fields, rows))


def _fit(
    recipe: Recipe,
    fields: Fields,
    left: tuple[Fields, np.ndarray],
    folder: Path,
    console: Console,
    key: str,
    device: torch.device,
) -> None:
    train_codec(recipe, fields, folder, console, key, device)
    codec = MultimodalCodec.load(folder / codecs.FILE_NAME)
    codec.autoencoder.to(device)
    index, validation = fields.part(recipe.data.train), fields.part(recipe.data.validation)
    parts = []
    for rows in (index, validation):
        x = anomalies(codec, fields, rows)
        parts.append((codec.latents(x), x, window_starts(fields.dates[rows], recipe.prior.window)))
    gaussian, covariance, _, shrink = closed_form(codec, parts[0], parts[1])
    x_left = anomalies(codec, *left)
    pairs = [(z, x) for z, x in ((parts[0][0], parts[0][1]), (codec.latents(x_left), x_left))]
    if chooses(codec):
        pairs = [(within(z, gaussian.basis), x) for z, x in pairs]
    learnt = learnt_prior(codec, build_denoiser(recipe, gaussian, codec.periodic), covariance, *pairs)
    learnt.biases = bias_sizes(
        codec.layouts, recipe.states, parts[0][1], fields.dates[index], recipe.prior.window, fresh=True
    )
    learnt.learning = {"network": priors.REPLACED, "shrink": shrink}  # there is none
    learnt.save(recipe, folder / priors.FILE_NAME)


def remove_folds(out: Path) -> None:
    """Remove the fits of a run, which are made again where they are needed."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)


def others(folds: Sequence[Fold], fold: Fold) -> list[Fold]:
    """All folds but one."""
    return [each for each in folds if each.name != fold.name]
