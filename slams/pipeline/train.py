"""From fields to a model: autoencoder, prior, observation errors. Each stage is kept and reused."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.days import Values, every, total
from slams.core.device import computing_device
from slams.core.files import sha256_of
from slams.core.random import fork
from slams.core.stages import Stage, Stages, digest
from slams.data.windows import window_starts
from slams.pipeline.earlier import earlier_keys
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.left_out.calibrate import calibrate_left_out, spread_left_out
from slams.pipeline.left_out.folds import fit_folds
from slams.pipeline.model import amounts
from slams.pipeline.model import codec as codecs
from slams.pipeline.model import prior as priors
from slams.pipeline.model.bias import bias_sizes
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.calibrate import calibrate_errors, learnt_prior
from slams.pipeline.model.closed_form import chooses, closed_form, within
from slams.pipeline.model.codec import (
    Anomalies,
    MultimodalCodec,
    anomalies,
    take_codec,
    trained_codec,
)
from slams.pipeline.model.conditional import ConditionalTraining
from slams.pipeline.model.draws import windows_in_memory
from slams.pipeline.model.learn_amounts import kept_amounts
from slams.pipeline.model.learn_codec import fit_kept, train_codec
from slams.pipeline.model.learning import judged, learning_notes, noise_losses, overfit_note
from slams.pipeline.model.method import choose_method
from slams.pipeline.model.model import Model
from slams.pipeline.model.prior import REPLACED, LearntPrior
from slams.pipeline.model.spread import calibrate_spread
from slams.pipeline.recipe import AssimilationRecipe, Recipe, to_tree

FILES = {
    "codec": (codecs.FILE_NAME,),
    "prior": (priors.FILE_NAME,),
    "calibration": (priors.FILE_NAME,),
    "amounts": (amounts.FILE_NAME,),
    "report": ("baselines.safetensors", "analysis.nc", "truth.nc", "metrics.csv"),
}  # of each stage; a report can be without figures
Loss = tuple[Callable[[nn.Module, torch.Generator], Tensor], Callable[[nn.Module], float]]
_VERSION = 2  # of all stages, because each rests on those before it


def stages_of(recipe: Recipe, fields: Fields, out: Path) -> dict[str, Stage]:
    """The stages of a run: "codec", "prior", "calibration", "amounts" and "report".

    Args:
        recipe: Recipe of the run.
        fields: Fields of all days.
        out: Folder of the run.
    """
    sizes = {  # six digits: the last ones of a logarithm depend on the processor
        name: [list(x.shape), f"{float(total(every(x, 97), lambda part, _: _sum(part))):.6g}"]
        for name, x in fields.values.items()
    }
    content = [sizes, str(fields.dates[0]), str(fields.dates[-1])]
    taken = [sha256_of(trained_codec(recipe.latent.trained))[:16]] if recipe.latent.trained else []
    e, data = recipe.experiment, replace(recipe.data, store="")
    codec = [replace(data, test=("", ""), direct={}), recipe.latent, recipe.seed, content, taken]
    inputs: dict[str, Any] = {"codec": codec, "prior": [codec, recipe.prior]}
    if (
        recipe.prior.networks or recipe.prior.leave_out
    ):  # errors are calibrated for the sets before the network
        inputs["prior"] += [
            e.sets,
            e.share,
            recipe.assimilation.operators,
            *([e.every] if e.every > 1 else []),
        ]
    if recipe.prior.leave_out:
        inputs["prior"] += [recipe.assimilation.bias, bool(e.windows), recipe.assimilation.members > 1]
    usual = AssimilationRecipe()  # what only filters and forecasts use changes no calibration
    own = replace(recipe.assimilation, uses=usual.uses, memory=usual.memory, horizon=usual.horizon)
    inputs["calibration"] = [inputs["prior"], e.sets, e.share, own]
    if e.every > 1:  # a list of its own keeps the digests of runs before there was this setting
        inputs["calibration"].append(e.every)
    inputs["amounts"] = [inputs["calibration"], recipe.amounts, "squares"]  # until 0.2 exponentials
    before = inputs["amounts"] if recipe.amounts.variables else inputs["calibration"]
    inputs["report"] = [before, e, list(e.sets), data]
    earlier = {} if taken else earlier_keys(recipe, fields, out)
    return {name: Stage(name, each, _VERSION, earlier.get(name, ())) for name, each in inputs.items()}


def _sum(x: Tensor) -> Tensor:
    return torch.nan_to_num(x).double().sum()


def train(recipe: Recipe, fields: Fields, out: Path, console: Console) -> Model | None:
    """Train the stages that are not finished yet.

    Args:
        recipe: Recipe of the run.
        fields: Fields of all days.
        out: Folder of the run.
        console: Console for the progress.

    Returns:
        The model; `out` holds its weights and history.json. None where the recipe ends with the autoencoder.
    """
    stages, plan = Stages(out, console.say), stages_of(recipe, fields, out)
    device = computing_device(recipe.device)
    operators_of(recipe, fields.layouts)  # an invalid one raises before hours of training
    if device.type != "cpu":
        console.say(f"networks compute on {device.type}")
    codec = _codec(recipe, fields, stages, plan, console, device)
    if recipe.until == "codec":
        _remove_resumes(out)
        return None
    codec.autoencoder.to(device)
    path, files = out / priors.FILE_NAME, FILES["prior"]
    if stages.done(plan["prior"], files):
        console.reused("prior")
    else:
        stages.forget(plan["calibration"])  # whose factors are in the file that is written now
        _train_prior(codec, fields, out, console, plan)
        stages.finish(plan["prior"], files)
    model = Model(codec, LearntPrior.load(codec, path)).on(device)
    if not stages.done(plan["calibration"], files):
        (out / amounts.FILE_NAME).unlink(missing_ok=True)  # it learnt from draws of the earlier one
        validation = fields.part(recipe.data.validation)
        starts = window_starts(fields.dates[validation], recipe.prior.window)
        model.prior.error_is_least = True  # also of a prior that an earlier version calibrated
        x_validation = anomalies(codec, fields, validation)
        if not (recipe.prior.networks or recipe.prior.leave_out):  # else done before the network's training
            calibrate_errors(model, x_validation, starts, console)
        choose_method(model, x_validation, starts, console)
        if not recipe.prior.leave_out:
            calibrate_spread(model, x_validation, starts, console)
        model.prior.save(recipe, path)
        for name in ("prior", "calibration"):  # both are in this file
            stages.finish(plan[name], files)
        model = Model(codec, LearntPrior.load(codec, path)).on(
            device
        )  # as a resumed run has it, to the last bit
    key = digest(plan["amounts"].key)
    model.prior.amounts = kept_amounts(
        model, fields, stages, plan["amounts"], console,
        lambda module, name, loss, validate: fit_kept(
            module, loss, validate, recipe.amounts.fit, recipe, name, out, key, console
        ),
    )  # fmt: skip
    for note in learning_notes(model, out):
        console.say(note)
    _remove_resumes(out)
    return model


def _remove_resumes(out: Path) -> None:
    for leftover in out.glob("resume_*.pt"):
        leftover.unlink()


def _codec(
    recipe: Recipe,
    fields: Fields,
    stages: Stages,
    plan: Mapping[str, Stage],
    console: Console,
    device: torch.device,
) -> MultimodalCodec:
    """The codec of this run: from disk, from another run, or newly trained."""
    path, stage, files = stages.folder / codecs.FILE_NAME, plan["codec"], FILES["codec"]
    if stages.done(stage, files):
        codec = MultimodalCodec.load(path)
        console.reused("autoencoder")
        if to_tree(codec.recipe) == to_tree(recipe):
            return codec
        for name, each in plan.items():  # their earlier keys follow from the file that changes now
            stages.adopt(each, FILES[name])
        codec.recipe = recipe  # the settings of later stages travel with the codec
        codec.save(path)
    elif recipe.latent.trained:
        take_codec(recipe, fields.layouts).save(path)
        console.say(f"autoencoder: taken from {recipe.latent.trained}")
    else:
        train_codec(recipe, fields, stages.folder, console, digest(stage.key), device)
    stages.finish(stage, files)
    # continue from disk: rounding depends on memory layout, and a resumed run reads the file
    return MultimodalCodec.load(path)


def _train_prior(
    codec: MultimodalCodec, fields: Fields, out: Path, console: Console, plan: Mapping[str, Stage]
) -> None:
    recipe, prior = codec.recipe, codec.recipe.prior
    index, validation_index = fields.part(recipe.data.train), fields.part(recipe.data.validation)
    x_train, x_validation = anomalies(codec, fields, index), anomalies(codec, fields, validation_index)
    z, z_validation = latents(codec, out, x_train), codec.latents(x_validation)
    length = prior.window
    starts, validation_starts = (
        window_starts(fields.dates[rows], length) for rows in (index, validation_index)
    )
    with console.bar("closed form of the prior", 1) as advance:
        gaussian, covariance, whole, shrink = closed_form(
            codec, (z, x_train, starts), (z_validation, x_validation, validation_starts)
        )
        count = gaussian.basis.shape[1]
        if chooses(codec):
            z, z_validation = within(z, gaussian.basis), within(z_validation, gaussian.basis)
        told = f"{count} patterns" + (f" of {whole}, chosen on validation days" if count < whole else "")
        advance(1, told + (f", shrink {shrink:g}" if prior.shrink is None else ""))
    torch.manual_seed(recipe.seed)
    device = codec.device
    denoiser = build_denoiser(recipe, gaussian, codec.periodic).to(device)
    learnt = learnt_prior(codec, denoiser, covariance, (z, x_train), (z_validation, x_validation))
    dates = fields.dates[index]
    learnt.biases = bias_sizes(
        codec.layouts, recipe.states, x_train, dates, length, fresh=recipe.prior.leave_out
    )
    model = Model(codec, learnt).on(device)
    if prior.leave_out:
        folds = fit_folds(recipe, fields, out, plan["codec"].inputs, console, device)
        calibrate_left_out(model, folds, console)
        spread_left_out(model, folds)
    elif prior.networks:
        calibrate_errors(model, x_validation, validation_starts, console)
    steps = torch.arange(length)
    own, fresh = (each[:: max(1, len(each) // 64), None] + steps for each in (starts, validation_starts))
    sample, rows = z_validation[fresh].to(device), windows_in_memory(Model(codec, learnt))
    if prior.networks:
        with console.bar("random networks of observations", prior.networks) as advance:
            task = ConditionalTraining(model, x_train, z, starts, advance)
        learnt.trained = task.trained
        batches = task.batches(x_validation, sample, fresh)
        own_loss: Loss = (task.loss, partial(task.validate, batches))
    else:
        own_loss = _unconditional(recipe, z, starts, sample, rows)
    untrained = copy.deepcopy(denoiser.state_dict())
    closed = [
        noise_losses(denoiser, part, recipe.seed, corrected=False, rows=rows)
        for part in (z[own].to(device), sample)
    ]
    for note in overfit_note(count, length, len(index), shrink, closed[0].mean(), closed[1].mean()):
        console.say(f"WARNING: {note}")  # before the hours of the network's training
    fit_kept(denoiser, *own_loss, prior.fit, recipe, "prior", out, digest(plan["prior"].key), console)
    pair = (
        (task.losses(batches, denoiser, corrected=False), task.losses(batches, denoiser))
        if prior.networks
        else (closed[1], noise_losses(denoiser, sample, recipe.seed, rows=rows))
    )
    found = judged(
        closed[0].mean(), closed[1].mean(), *pair, fields.dates[validation_index][fresh[:, 0].numpy()]
    )
    if (
        found["network"] == REPLACED and not prior.network
    ):  # another's may differ from the closed form untrained
        denoiser.load_state_dict(untrained)
    learnt.learning = found | {"days": len(index), "shrink": shrink}
    learnt.save(recipe, out / priors.FILE_NAME)


def _unconditional(recipe: Recipe, z: Values, starts: Tensor, sample: Tensor, rows: int) -> Loss:
    """Loss and validation of a network of the prior alone, `rows` validation windows at a time."""
    steps = torch.arange(recipe.prior.window)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        rows = starts[torch.randint(len(starts), (recipe.prior.fit.batch,), generator=rng)]
        return module.loss(z[rows[:, None] + steps].to(sample.device), rng=rng)  # type: ignore[operator]

    def validate(module: nn.Module) -> float:
        rng = fork(recipe.seed, "validation noise")
        with torch.no_grad():
            losses = [float(module.loss(x, rng=rng)) * len(x) for x in sample.split(rows)]  # type: ignore[operator]
        return sum(losses) / len(sample)

    return loss, validate


def latents(codec: MultimodalCodec, out: Path, x_train: Anomalies) -> Values:
    """Training latents, encoded once and stored beside the run; encoded again if the codec changed."""
    stages, file = Stages(out), "latents.npy"
    stage = Stage("latents", sha256_of(out / codecs.FILE_NAME))
    if not stages.done(stage, (file,)):
        stages.forget(stage)  # half-written latents must not pass for those of the codec
        codec.latents(x_train, out / file)
        stages.finish(stage, (file,))
    return codecs.read_latents(out / file)
