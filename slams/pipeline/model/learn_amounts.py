"""Training of the decoders of amounts on posterior draws of the closed form."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.stages import Stage, Stages
from slams.networks.censored import exceedance, pair_score
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.model.amount_days import AmountDays, Posteriors
from slams.pipeline.model.amounts import (
    FILE_NAME,
    AmountDecoder,
    AmountScale,
    build,
    climate_of,
    load_amounts,
    neighbours,
    observed_fields,
    readable,
    save_amounts,
    season,
    seeded,
)
from slams.pipeline.model.calibrate_amounts import calibrated
from slams.pipeline.model.model import Model

_NETWORKS, _WINDOWS = 10, 80  # of training: random networks of observations, and windows seen through each
_HELD_OUT, _MEMBERS = 16, 8  # validation windows of each set, and their draws
_THRESHOLDS = 10  # of the score
_AMOUNT = 0.3  # weight of the score of the amount beside that of its transform, in units of their means

Loss = Callable[[nn.Module, torch.Generator], Tensor]
Optimize = Callable[[nn.Module, str, Loss, Callable[[nn.Module], float]], None]


def kept_amounts(
    model: Model, fields: Fields, stages: Stages, stage: Stage, console: Console, optimize: Optimize
) -> dict[str, AmountDecoder]:
    """The decoders of a run, trained unless they are finished; none where the recipe has no amounts or no steps."""
    recipe, path, files = model.recipe, stages.folder / FILE_NAME, (FILE_NAME,)
    if not recipe.amounts.variables or recipe.amounts.fit.steps < 1:
        path.unlink(missing_ok=True)
        return {}
    if stages.done(stage, files):
        console.reused("decoders of amounts")
    else:
        path.unlink(
            missing_ok=True
        )  # those of another prior: an interrupted run opens without, not with them
        save_amounts(train_amounts(model, fields, optimize, console), path)
        stages.finish(stage, files)
    return load_amounts(recipe, model.codec, path)  # as a resumed run has them


def train_amounts(
    model: Model, fields: Fields, optimize: Optimize, console: Console
) -> dict[str, AmountDecoder]:
    """Train a decoder for each amount of the recipe.

    A network is trained on pairs of posterior draws of training windows, seen through random networks of observations and
    the sets of the recipe (`slams.networks.censored.pair_score`), and calibrated on those of validation windows.

    Args:
        model: Trained model with calibrated errors.
        fields: Fields of all days.
        optimize: Function (module, name, loss, validate) that trains a module in place.
        console: Console for the progress.
    """
    source = AmountDays(model, fields, model.recipe.data.train)
    held_out = AmountDays(model, fields, model.recipe.data.validation)
    sets = list(model.recipe.experiment.sets.values()) or [tuple(model.layouts)]
    amounts = model.recipe.amounts.variables
    unseen = [names for names in sets if not set(amounts) <= set(names)] or sets  # where they are wanted
    with console.bar("posterior draws for the decoders", _NETWORKS + len(unseen)) as advance:
        bank, rng = [], seeded(model.recipe, "draws")
        for number in range(_NETWORKS):
            hidden = source.network(rng, unseen[number // 2 % len(unseen)] if number % 2 == 0 else None)
            bank.append(source.draws(hidden, _WINDOWS, 2, rng))
            advance(1, ", ".join(hidden))
        held = {}
        for names in unseen:
            held[names] = held_out.draws(held_out.network(rng, names), _HELD_OUT, _MEMBERS, rng)
            advance(1, ", ".join(names))
    found = {}
    for name in model.recipe.amounts.variables:
        layouts, scale = model.layouts, AmountScale(model.recipe.modalities[name].transformed)
        climate = climate_of(scale.of(source.physical(name)), scale.lower)
        torch.manual_seed(model.recipe.seed)
        event = model.codec.autoencoder.event
        network = build(model.recipe, layouts, name, event, climate=climate, lower=scale.lower)
        own = [each for names, each in held.items() if name not in names] or list(held.values())
        loss, validate = _objective(source, held_out, bank, own, name, scale)
        optimize(network, f"decoder of {name}", loss, validate)
        decoder = AmountDecoder(network, layouts[name], readable(model.recipe, layouts, name), scale)
        with console.bar(f"calibrating draws of {name}", 1) as advance:
            decoder = calibrated(decoder, held_out, own, name)
            advance(1, str(decoder.noise))
        found[name] = decoder
    return found


def _objective(
    source: AmountDays,
    held_out: AmountDays,
    bank: Sequence[Posteriors],
    held: Sequence[Posteriors],
    name: str,
    scale: AmountScale,
) -> tuple[Loss, Callable[[nn.Module], float]]:
    """Loss of a random pair of draws on random windows, and the score of validation windows."""
    model = source.model
    batch, layout = model.recipe.amounts.fit.batch, model.layouts[name]
    names, around = readable(model.recipe, model.layouts, name), neighbours(model.recipe.prior.window)
    truth, truth_held = source.physical(name), held_out.physical(name)
    threshold, step = thresholds(scale, truth)
    truth, truth_held, weight = scale.of(truth), scale.of(truth_held), layout.weights()

    def score(
        module: nn.Module, days: AmountDays, each: Posteriors, windows: Tensor, day: int, rng: torch.Generator
    ) -> Tensor:
        rows, y = each.rows[windows, day], truth if days is source else truth_held
        z = days.latents(each.coefficients[:2, windows][:, :, around[day]], rng).flatten(0, 1)
        fields = observed_fields(names, days.seen(each, windows, day), layout, len(rows))
        fields = None if fields is None else torch.cat([fields, fields])
        location, width = module(z, season(days.phase[rows]).repeat(2, 1), fields)
        c = threshold.reshape(-1, *[1] * location.ndim)
        first, second = exceedance(location, width, c).chunk(2, 1)
        return pair_score(first, second, y[rows], threshold, step, weight)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        each = bank[int(torch.randint(len(bank), (), generator=rng))]
        windows = torch.randint(len(each.rows), (batch,), generator=rng)
        day = int(torch.randint(each.rows.shape[1], (), generator=rng))
        return score(module, source, each, windows, day, rng)

    def validate(module: nn.Module) -> float:
        rng = seeded(model.recipe, "validation")
        with torch.no_grad():
            parts = [
                score(module, held_out, each, torch.arange(len(each.rows)), each.rows.shape[1] // 2, rng)
                for each in held
            ]
        return float(torch.stack(parts).mean())

    return loss, validate


def thresholds(scale: AmountScale, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds of u for the score of pairs, and the measure of each, (K).

    They reach from the bound to the largest amount in training, denser where amounts are small. Their measure is that of
    the transformed amount plus 0.3 times that of the amount itself, each in units of its mean: a logarithm alone hardly
    sees what is added to large amounts, which mean and variance of the members depend on.

    Args:
        scale: Scale u.
        truth: Transformed amounts of training days, NaN where missing.
    """
    some = truth[:: max(1, len(truth) // 1000)]
    some = some[torch.isfinite(some)]
    lower, top = scale.of(some.new_tensor(scale.bound)), scale.of(truth.nan_to_num(scale.bound).amax())
    u = lower + (top - lower) * torch.linspace(0, 1, _THRESHOLDS) ** 1.5
    y = scale.values(u)
    transformed, amount = y - scale.bound, scale.excess(y)
    means = (some - scale.bound).mean(), scale.excess(some).mean()
    measure = transformed + _AMOUNT * amount * float(means[0] / means[1].clamp(min=1e-9))
    step = torch.zeros_like(u)
    step[1:] += measure.diff() / 2
    step[:-1] += measure.diff() / 2
    return u, step
