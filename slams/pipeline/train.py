"""From fields to a model: autoencoder, prior, observation errors. Each stage is kept and reused."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.device import computing_device
from slams.core.files import write_text
from slams.core.random import fork
from slams.data.windows import window_starts
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.networks.autoencoder import MultimodalAutoencoder
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.large import fit_statistics
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.calibrate import calibrate, errors
from slams.pipeline.model.model import (
    Anomalies,
    Codec,
    Model,
    anomalies,
    load_belief,
    load_codec,
    save_belief,
    save_codec,
)
from slams.pipeline.model.other_runs import codec_digest, take_codec
from slams.pipeline.recipe import FitSettings, Recipe, to_tree
from slams.training.fit import History, fit


class Ledger:
    """Which stages of a run are done, and from which inputs.

    Args:
        path: File of the ledger.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def done(self, stage: str, key: str) -> bool:
        """Whether the stage was finished from the same inputs."""
        return bool(self.rows.get(stage) == key)

    def finish(self, stage: str, key: str) -> None:
        """Note that it was."""
        self.rows[stage] = key
        write_text(self.path, json.dumps(self.rows, indent=1))


def digest(*parts: Any) -> str:
    """A short name for inputs that JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def train(recipe: Recipe, fields: Fields, out: Path, console: Console) -> Model | None:
    """Train what is not trained yet.

    Args:
        recipe: Settings.
        fields: All days.
        out: Folder of the run.
        console: Where progress is shown.

    Returns:
        The model; `out` holds its weights and history.json. None where the recipe ends with the autoencoder.
    """
    ledger = Ledger(out / ".stages.json")
    tree = to_tree(recipe)
    device = computing_device(recipe.device)
    operators_of(recipe, fields.places)  # one that cannot be is told before hours of training
    if device.type != "cpu":
        console.say(f"networks compute on {device.type}")
    data = {k: v for k, v in tree["data"].items() if k not in ("store", "test", "direct")}
    sizes = {
        name: [list(x.shape), float(torch.nan_to_num(x[::97]).double().sum())]
        for name, x in fields.values.items()
    }
    key = digest(data, tree["latent"], tree["seed"], sizes, str(fields.dates[0]), str(fields.dates[-1]))
    if recipe.latent.trained:
        key = digest(key, codec_digest(recipe.latent.trained))
    codec = _codec(recipe, fields, out, console, ledger, key, device)
    if recipe.until == "codec":
        _remove_resumes(out)
        return None
    codec.autoencoder.to(device)
    key = digest(key, tree["prior"])
    calibration = digest(key, recipe.experiment.sets, recipe.experiment.share, tree["assimilation"])
    if ledger.done("prior", key):
        belief = load_belief(codec, out / "denoiser.safetensors")
        console.reused("prior")
    else:
        _train_belief(recipe, codec, fields, out, console, key)
        ledger.finish("prior", key)
        belief = load_belief(codec, out / "denoiser.safetensors")
    model = Model(codec, belief).on(device)
    if not ledger.done("calibration", calibration):
        held = fields.part(recipe.data.validation)
        starts = window_starts(fields.dates[held], recipe.prior.window)
        calibrate(model, anomalies(codec, fields, held), starts, console)
        save_belief(belief, recipe, out / "denoiser.safetensors")
        ledger.finish("calibration", calibration)
    _remove_resumes(out)
    return model


def _remove_resumes(out: Path) -> None:
    for leftover in out.glob("resume_*.pt"):
        leftover.unlink()


def _codec(
    recipe: Recipe,
    fields: Fields,
    out: Path,
    console: Console,
    ledger: Ledger,
    key: str,
    device: torch.device,
) -> Codec:
    """The codec of this run: kept, taken from another run, or trained now."""
    path = out / "codec.safetensors"
    if ledger.done("codec", key):
        codec = load_codec(path)
        if to_tree(codec.recipe) != to_tree(recipe):  # the settings of later stages travel with the codec
            codec.recipe = recipe
            save_codec(codec, path)
        console.reused("autoencoder")
        return codec
    if recipe.latent.trained:
        save_codec(take_codec(recipe, fields.places), path)
        console.say(f"autoencoder: taken from {recipe.latent.trained}")
    else:
        _train_codec(recipe, fields, out, console, key, device)
    ledger.finish("codec", key)
    # what goes on is what is on disk: rounding depends on how numbers lie in memory, and a resumed run reads them
    return load_codec(path)


def _train_codec(
    recipe: Recipe, fields: Fields, out: Path, console: Console, key: str, device: torch.device
) -> None:
    train_days = fields.part(recipe.data.train)
    phase = phase_of(fields.dates[train_days])
    weights = {name: place.weights() for name, place in fields.places.items()}
    statistics = {
        name: fit_statistics(x, train_days, phase, recipe.data.harmonics, weights[name])
        for name, x in fields.values.items()
    }
    torch.manual_seed(recipe.seed)  # layers draw their first weights from the global generator
    codec = Codec(recipe, fields.places, statistics)
    given = anomalies(codec, fields, train_days)
    held = anomalies(codec, fields, fields.part(recipe.data.validation))
    coder, names = codec.autoencoder, codec.autoencoder.names
    if isinstance(coder, MultimodalAutoencoder):
        kept = coder.start(given, _patch_weights(recipe, weights))
        console.say(f"principal components keep {kept:.1%} of the weighted variance in {coder.event}")
    settings = recipe.latent.fit
    coder.to(device)
    area = {name: weight.to(device) for name, weight in weights.items()}

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        days = torch.randint(len(phase), (settings.batch,), generator=rng)
        batch = {m: x[days].to(device) for m, x in given.items()}
        if not isinstance(module, MultimodalAutoencoder):
            return module.loss(batch)  # type: ignore[operator]
        some = [m for m in names if float(torch.rand((), generator=rng)) < 0.5] or list(names)
        return module.loss(batch, names, area) + 0.25 * module.loss(batch, some, area)

    def validate(module: nn.Module) -> float:
        with torch.no_grad():
            if not isinstance(module, MultimodalAutoencoder):
                return _in_parts(module, {m: x[::4] for m, x in held.items()}, device)
            some = {m: x[::4].to(device) for m, x in held.items()}
            total = float(module.loss(some, names, area))
            left = [[m for m in names if m != dropped] for dropped in names]
            drops = [float(module.loss(some, given, area)) for given in left if given]
            return total + 0.25 * sum(drops) / max(len(drops), 1)

    if any(parameter.requires_grad for parameter in coder.parameters()):
        history = _fit(coder, loss, validate, settings, recipe, "autoencoder", out, key, console)
        _remember(out, "autoencoder", history)
    coder.eval().standardize(codec.encode(given).to(device))
    save_codec(codec, out / "codec.safetensors")


def _in_parts(module: nn.Module, fields: Anomalies, device: torch.device) -> float:
    """Loss of many days, a few at a time: at full resolution all of them are more than memory has."""
    count = len(next(iter(fields.values())))
    total = 0.0
    for start in range(0, count, 32):
        part = {m: x[start : start + 32].to(device) for m, x in fields.items()}
        total += float(module.loss(part)) * len(next(iter(part.values())))  # type: ignore[operator]
    return total / count


def _patch_weights(recipe: Recipe, weights: Mapping[str, Tensor]) -> Tensor | None:
    if recipe.latent.kind == "vector":
        return None
    weight = next(iter(weights.values()))
    return nn.functional.avg_pool2d(weight[None], recipe.latent.patch).flatten()


def _fit(
    module: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    validate: Callable[[nn.Module], float],
    settings: FitSettings,
    recipe: Recipe,
    name: str,
    out: Path,
    key: str,
    console: Console,
) -> History:
    with console.bar(f"training the {name}", settings.steps) as advance:
        return fit(
            module,
            loss,
            validate,
            settings,
            seed=recipe.seed,
            name=name,
            checkpoint=out / f"resume_{name}_{key}.pt",
            progress=advance,
        )


def _remember(out: Path, name: str, history: History) -> None:
    path = out / "history.json"
    rows = json.loads(path.read_text()) if path.exists() else {}
    # a first row has no training loss
    rows[name] = [[step, None if step == 0 else train, valid] for step, train, valid in history.rows]
    write_text(path, json.dumps(rows))


def _train_belief(
    recipe: Recipe, codec: Codec, fields: Fields, out: Path, console: Console, key: str
) -> None:
    index = fields.part(recipe.data.train)
    held_index = fields.part(recipe.data.validation)
    given, held = anomalies(codec, fields, index), anomalies(codec, fields, held_index)
    z, z_held = latents(codec, out, given), codec.encode(held)
    length, prior = recipe.prior.window, recipe.prior
    starts = window_starts(fields.dates[index], length)
    held_starts = window_starts(fields.dates[held_index], length)
    with console.bar("closed form of the prior", 1) as advance:
        gaussian = WindowGaussian.fit(
            z, starts, length, VPCosine(), fraction=prior.fraction, most=prior.patterns, shrink=prior.shrink
        )
        advance(1, f"{gaussian.basis.shape[1]} patterns")
    torch.manual_seed(recipe.seed)
    periodic = next(iter(fields.places.values())).is_global
    device = codec.device
    denoiser = build_denoiser(recipe, gaussian, periodic).to(device)
    steps = torch.arange(length)
    some = held_starts[:: max(1, len(held_starts) // 64)]
    sample = z_held[some[:, None] + steps].to(device)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        rows = starts[torch.randint(len(starts), (prior.fit.batch,), generator=rng)]
        return module.loss(z[rows[:, None] + steps].to(device), rng=rng)  # type: ignore[operator]

    def validate(module: nn.Module) -> float:
        with torch.no_grad():
            return float(module.loss(sample, rng=fork(recipe.seed, "validation noise")))  # type: ignore[operator]

    history = _fit(denoiser, loss, validate, prior.fit, recipe, "prior", out, key, console)
    _remember(out, "prior", history)
    belief = errors(recipe, codec, denoiser, z, given, z_held, held)
    save_belief(belief, recipe, out / "denoiser.safetensors")


def latents(codec: Codec, out: Path, given: Anomalies) -> Tensor:
    """Training latents, encoded once and kept beside the run; made again if the codec changed."""
    path = out / "latents.npy"
    mark = out / "latents.json"
    key = hashlib.sha256((out / "codec.safetensors").read_bytes()).hexdigest()
    if not (path.exists() and mark.exists() and mark.read_text() == key):
        mark.unlink(missing_ok=True)  # half-written latents must not pass for those of the mark
        np.save(path, codec.encode(given).numpy())
        write_text(mark, key)
    return torch.from_numpy(np.load(path, mmap_mode="c"))
