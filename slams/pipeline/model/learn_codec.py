"""Training of the codec, and of any module whose progress is kept."""

import copy
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.days import every
from slams.core.files import write_text
from slams.networks.autoencoder import MultimodalAutoencoder
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.large import fit_statistics
from slams.pipeline.model import codec as codecs
from slams.pipeline.model.codec import Anomalies, MultimodalCodec, anomalies
from slams.pipeline.recipe import FitSettings, Recipe
from slams.training.fit import fit


def train_codec(
    recipe: Recipe, fields: Fields, out: Path, console: Console, key: str, device: torch.device
) -> None:
    """Train the codec of a recipe on the training days, and write it to `out`.

    Args:
        recipe: Recipe of the run.
        fields: Fields of all days.
        out: Folder of the codec, its checkpoint and history.json.
        console: Console for the progress.
        key: Digest of the inputs, in the name of the checkpoint.
        device: Device of the autoencoder.
    """
    train_days = fields.part(recipe.data.train)
    phase = phase_of(fields.dates[train_days])
    weights = {name: layout.weights() for name, layout in fields.layouts.items()}
    statistics = {
        name: fields.statistics.get(name)
        or fit_statistics(x, train_days, phase, recipe.data.harmonics, weights[name])
        for name, x in fields.values.items()
    }
    torch.manual_seed(recipe.seed)  # layers draw their first weights from the global generator
    codec = MultimodalCodec(recipe, fields.layouts, statistics)
    x_train = anomalies(codec, fields, train_days)
    x_validation = anomalies(codec, fields, fields.part(recipe.data.validation))
    coder, names = codec.autoencoder, codec.autoencoder.names
    if isinstance(coder, MultimodalAutoencoder):
        present = {name: each.present for name, each in statistics.items()}
        kept = coder.start(x_train, _patch_weights(recipe, weights), present)
        console.say(f"principal components keep {kept:.1%} of the weighted variance in {coder.event}")
    settings = recipe.latent.fit
    coder.to(device)
    whole, whole_validation = codec.complete(x_train), codec.complete(x_validation)
    area = {name: weight.to(device) for name, weight in weights.items()}

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        days = torch.randint(len(phase), (settings.batch,), generator=rng)
        batch = {m: x[days].to(device) for m, x in x_train.items()}
        if not isinstance(module, MultimodalAutoencoder):
            return module.loss(batch)  # type: ignore[operator]
        subset = [m for m in names if float(torch.rand((), generator=rng)) < 0.5] or list(names)
        inputs = {m: x[days].to(device) for m, x in whole.items()}
        return module.loss(batch, names, area, inputs) + 0.25 * module.loss(batch, subset, area, inputs)

    def validate(module: nn.Module) -> float:
        with torch.no_grad():
            if not isinstance(module, MultimodalAutoencoder):
                return _in_parts(module, {m: every(x, 4) for m, x in x_validation.items()}, device)
            subset = {m: x[::4].to(device) for m, x in x_validation.items()}
            inputs = {m: x[::4].to(device) for m, x in whole_validation.items()}
            total = float(module.loss(subset, names, area, inputs))
            without = [[m for m in names if m != dropped] for dropped in names]
            drops = [float(module.loss(subset, others, area, inputs)) for others in without if others]
            return total + 0.25 * sum(drops) / max(len(drops), 1)

    def reconstruction(module: nn.Module) -> float:
        with torch.no_grad():
            subset, inputs = (
                {m: x[::4].to(device) for m, x in each.items()} for each in (x_validation, whole_validation)
            )
            return float(module.loss(subset, names, area, inputs))  # type: ignore[operator]

    if any(parameter.requires_grad for parameter in coder.parameters()):
        untrained = copy.deepcopy(coder.state_dict())
        before = reconstruction(coder) if isinstance(coder, MultimodalAutoencoder) else math.inf
        fit_kept(coder, loss, validate, settings, recipe, "autoencoder", out, key, console)
        if isinstance(coder, MultimodalAutoencoder):
            codec.learning = {"loss": [before, reconstruction(coder)]}
            if codec.learning["loss"][1] >= before:  # what encodes a subset better may decode the whole worse
                coder.load_state_dict(untrained)
    z = codec.latents(x_train)
    coder.eval().standardize(z.to(device) if isinstance(z, Tensor) else z)
    codec.save(out / codecs.FILE_NAME)


def _in_parts(module: nn.Module, fields: Anomalies, device: torch.device) -> float:
    """Loss of many days, a few at a time, for memory at full resolution."""
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


def fit_kept(
    module: nn.Module,
    loss: Callable[[nn.Module, torch.Generator], Tensor],
    validate: Callable[[nn.Module], float],
    settings: FitSettings,
    recipe: Recipe,
    name: str,
    out: Path,
    key: str,
    console: Console,
) -> None:
    """Train a module in place, resumed from its checkpoint in `out`, and append its losses to history.json there."""
    checkpoint, path = out / f"resume_{name}_{key}.pt", out / "history.json"
    with console.bar(f"training the {name}", settings.steps) as advance:
        history = fit(
            module, loss, validate, settings,
            seed=recipe.seed, name=name, checkpoint=checkpoint, progress=advance,
        )  # fmt: skip
    rows = json.loads(path.read_text()) if path.exists() else {}
    # a first row has no training loss
    rows[name] = [[step, None if step == 0 else train, valid] for step, train, valid in history.rows]
    write_text(path, json.dumps(rows))
