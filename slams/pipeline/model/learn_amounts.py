"""Training of the decoders of amounts on posterior draws of the closed form, and their calibration."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from slams.assimilation.baseline.draws import CoefficientPosterior
from slams.core.console import Console
from slams.core.geometry.distance import great_circle
from slams.core.geometry.waves import space_time_normal
from slams.core.random import normal
from slams.core.stages import Stage, Stages
from slams.data.windows import window_starts
from slams.evaluation.metrics import fair_crps
from slams.networks.censored import exceedance, pair_score
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.observe import columns
from slams.pipeline.model.amounts import (
    FILE_NAME,
    AmountDecoder,
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
from slams.pipeline.model.codec import Anomalies, anomalies
from slams.pipeline.model.model import Model

_NETWORKS, _WINDOWS = 32, 96  # of training: random networks of observations, and windows seen through each
_HELD_OUT = 24  # validation windows of each set
_THRESHOLDS = 16  # of the score
_MEMBERS = 12  # of the calibration
_FACTORS = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6)
_LENGTHS, _NUGGETS = (100.0, 250.0, 500.0, 1000.0, 2000.0, 4000.0), (0.0, 0.2, 0.5)
_TIMES = (0.3, 0.7, 1.5, 3.0, 6.0)
_RANKS = (1, 2, 4, 8, 16)  # of the neighbours whose differences fix the correlation in space


Loss = Callable[[nn.Module, torch.Generator], Tensor]
Optimize = Callable[[nn.Module, str, Loss, Callable[[nn.Module], float]], None]


@dataclass(frozen=True)
class Posteriors:
    """Draws of windows seen through one network of observations.

    Attributes:
        coefficients: (N, W, L, K).
        rows: Days of each window, (W, L).
        hidden: Masks of unobserved values by observed modality, (*S).
    """

    coefficients: Tensor
    rows: Tensor
    hidden: Mapping[str, Tensor]


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
    source = _Source(model, fields, model.recipe.data.train)
    held_out = _Source(model, fields, model.recipe.data.validation)
    sets = list(model.recipe.experiment.sets.values()) or [tuple(model.layouts)]
    with console.bar("posterior draws for the decoders", _NETWORKS + len(sets)) as advance:
        bank, rng = [], seeded(model.recipe, "draws")
        amounts = model.recipe.amounts.variables
        unseen = [names for names in sets if not set(amounts) & set(names)] or sets  # where they are wanted
        for number in range(_NETWORKS):
            hidden = source.network(rng, unseen[number // 2 % len(unseen)] if number % 2 == 0 else None)
            bank.append(source.draws(hidden, _WINDOWS, 2, rng))
            advance(1, ", ".join(hidden))
        held = {}
        for names in sets:
            held[names] = held_out.draws(held_out.network(rng, names), _HELD_OUT, _MEMBERS, rng)
            advance(1, ", ".join(names))
    found = {}
    for name in model.recipe.amounts.variables:
        layouts, lower = model.layouts, model.recipe.modalities[name].transformed.lower
        assert lower is not None
        climate = climate_of(source.physical(name), lower)
        torch.manual_seed(model.recipe.seed)
        network = build(model.recipe, layouts, name, model.codec.autoencoder.event, climate=climate)
        own = [each for names, each in held.items() if name not in names] or list(held.values())
        loss, validate = _objective(source, held_out, bank, own, name)
        optimize(network, f"decoder of {name}", loss, validate)
        decoder = AmountDecoder(network, layouts[name], readable(model.recipe, layouts, name))
        with console.bar(f"calibrating draws of {name}", 1) as advance:
            decoder = calibrated(decoder, held_out, own, name)
            advance(1, str(decoder.noise))
        found[name] = decoder
    return found


class _Source:
    """Days of one part of the data, with posterior draws of their latents.

    Args:
        model: Trained model.
        fields: Fields of all days.
        span: First and last day.
    """

    def __init__(self, model: Model, fields: Fields, span: tuple[str, str]) -> None:
        self.model = model
        self.index = fields.part(span)
        self.values: Anomalies = anomalies(model.codec, fields, self.index)
        self.fields = fields
        self.phase = phase_of(fields.dates[self.index])
        self.starts = window_starts(fields.dates[self.index], model.recipe.prior.window)
        self.errors, self.operators = model.errors(), model.jacobians()
        gaussian = copy.deepcopy(model.prior.gaussian).cpu()
        self.basis, self.remainder = gaussian.basis, float(gaussian.remainder)
        self.posterior = CoefficientPosterior(gaussian)

    def physical(self, name: str) -> Tensor:
        """Values of a modality on these days, after the transform."""
        return self.model.codec.masked(name, self.fields.values[name][torch.from_numpy(self.index)])

    def network(self, rng: torch.Generator, names: Sequence[str] | None) -> dict[str, Tensor]:
        """Masks of unobserved values: of a set of the recipe, or of a random network if None.

        A state variable is seen in columns, 1 to 50 % of them where random; an observation everywhere, or where random at
        1 to 100 % of its points. Amounts themselves are rarely among random ones: where they are seen, little is left to
        learn.
        """
        recipe, layouts = self.model.recipe, self.model.layouts
        known = list(dict.fromkeys(n for group in recipe.experiment.sets.values() for n in group)) or list(
            layouts
        )
        chance = torch.rand(len(known), 3, generator=rng).tolist()
        often = {name: 0.15 if name in recipe.amounts.variables else 0.7 for name in known}
        chosen = names or [n for n, c in zip(known, chance, strict=True) if c[0] < often[n]] or known[:1]
        found = {}
        for name in chosen:
            seed = int(torch.randint(2**31, (), generator=rng))
            _, whole, size = chance[known.index(name)]
            state, layout = name in recipe.states, layouts[name]
            share = recipe.experiment.share if state else 1.0
            if names is None and (state or whole < 0.5):
                share = 10 ** (-2 + (1.7 if state else 2.0) * size)
            hidden = torch.ones(layout.weights().shape, dtype=torch.bool)
            if share == 1 or name in recipe.assimilation.operators:
                hidden[:] = False
            elif layout.is_grid:
                hidden.view(-1)[columns(layout, share, seed)] = False
            else:
                some = torch.randperm(len(hidden), generator=rng)[: max(1, round(share * len(hidden)))]
                hidden[some] = False
            found[name] = hidden.expand(layout.shape)
        return found

    def draws(
        self, hidden: Mapping[str, Tensor], windows: int, members: int, rng: torch.Generator
    ) -> Posteriors:
        """Posterior draws of random windows, of evenly spaced ones if there are fewer than ten times as many."""
        model, length = self.model, self.model.recipe.prior.window
        if len(self.starts) > 10 * windows:
            starts = self.starts[torch.randint(len(self.starts), (windows,), generator=rng)]
        else:
            count = min(windows, len(self.starts))
            starts = self.starts[torch.linspace(0, len(self.starts) - 1, count).long()]
        rows = starts[:, None] + torch.arange(length)
        seen = {}
        for name, mask in hidden.items():
            x, error = self.values[name][rows], model.recipe.modalities[name].error_std
            if name in model.states and error is not None:
                x = x + error / model.codec.statistics[name].std * normal(x.shape, like=x, rng=rng)
            seen[name] = x.masked_fill(mask, torch.nan)
        observations = model.seen(seen, self.errors)
        operators = {name: self.operators[name] for name in seen}
        return Posteriors(self.posterior.draws(observations, operators, members, rng=rng), rows, hidden)

    def latents(self, coefficients: Tensor, rng: torch.Generator) -> Tensor:
        """Latents (*B, *Z) of coefficients (*B, K), with the remainder outside the patterns."""
        noise = self.remainder**0.5 * normal((*coefficients.shape[:-1], len(self.basis)), rng=rng)
        flat = (coefficients - noise @ self.basis) @ self.basis.mT + noise
        return flat.unflatten(-1, self.model.codec.autoencoder.event)

    def seen(self, each: Posteriors, rows: Tensor) -> dict[str, Tensor]:
        """Observed anomalies (n, *S) on some days."""
        return {n: self.values[n][rows].masked_fill(mask, torch.nan) for n, mask in each.hidden.items()}


def _objective(
    source: _Source, held_out: _Source, bank: Sequence[Posteriors], held: Sequence[Posteriors], name: str
) -> tuple[Loss, Callable[[nn.Module], float]]:
    """Loss of a random pair of draws on random windows, and the score of validation windows."""
    model = source.model
    batch, layout = model.recipe.amounts.fit.batch, model.layouts[name]
    names, around = readable(model.recipe, model.layouts, name), neighbours(model.recipe.prior.window)
    truth, truth_held = source.physical(name), held_out.physical(name)
    top = float(torch.nan_to_num(truth[:: max(1, len(truth) // 500)]).amax())
    lower = model.recipe.modalities[name].transformed.lower or 0.0
    threshold = lower + (top - lower) * torch.linspace(0, 1, _THRESHOLDS) ** 1.5
    weight = layout.weights()

    def score(
        module: nn.Module,
        days: _Source,
        y: Tensor,
        each: Posteriors,
        windows: Tensor,
        day: int,
        rng: torch.Generator,
    ) -> Tensor:
        rows = each.rows[windows, day]
        z = days.latents(each.coefficients[:2, windows][:, :, around[day]], rng).flatten(0, 1)
        fields = observed_fields(names, days.seen(each, rows), layout, len(rows))
        fields = None if fields is None else torch.cat([fields, fields])
        location, scale = module(z, season(days.phase[rows]).repeat(2, 1), fields)
        c = threshold.reshape(-1, *[1] * location.ndim)
        first, second = exceedance(location, scale, c).chunk(2, 1)
        return pair_score(first, second, y[rows], threshold, weight)

    def loss(module: nn.Module, rng: torch.Generator) -> Tensor:
        each = bank[int(torch.randint(len(bank), (), generator=rng))]
        windows = torch.randint(len(each.rows), (batch,), generator=rng)
        day = int(torch.randint(each.rows.shape[1], (), generator=rng))
        return score(module, source, truth, each, windows, day, rng)

    def validate(module: nn.Module) -> float:
        rng = seeded(model.recipe, "validation")
        with torch.no_grad():
            parts = [
                score(
                    module,
                    held_out,
                    truth_held,
                    each,
                    torch.arange(len(each.rows)),
                    each.rows.shape[1] // 2,
                    rng,
                )
                for each in held
            ]
        return float(torch.stack(parts).mean())

    return loss, validate


@torch.no_grad()
def calibrated(decoder: AmountDecoder, days: _Source, held: Sequence[Posteriors], name: str) -> AmountDecoder:
    """The decoder with the spread and the correlations that score best on validation windows.

    The factor on the scale has the best fair CRPS; length and nugget the best variogram score of pairs of neighbours, and
    the time that of successive days.
    """
    rng, layout, lower = seeded(days.model.recipe, "calibration"), decoder.layout, decoder.network.lower
    centre, width, target = _of_first_channel(decoder, days, held, name, rng)
    known = (torch.isfinite(target).float().mean((0, 1)) > 0.5).nonzero().squeeze(-1)
    centre, width, target = centre[..., known], width[..., known], target[..., known]
    points = layout.points()[known]
    count, windows, length = centre.shape[:3]

    def drawn(noise: Tensor, factor: float, day: slice) -> Tensor:
        return (centre[:, :, day] + factor * width[:, :, day] * noise).clamp(min=lower)

    white = normal(centre.shape, like=centre, rng=rng)
    weight = layout.weights().flatten()[known]
    factor = min(
        _FACTORS,
        key=lambda f: float((weight * fair_crps(drawn(white, f, slice(None)), target)).nanmean()),
    )
    noise = replace(decoder.noise, factor=factor)
    pairs = neighbouring_pairs(points, rng)
    middle = slice(length // 2, length // 2 + 1)

    def of_space(setting: tuple[float, float]) -> float:
        field = space_time_normal(
            points, 1, count * windows, length=setting[0], time=1.0, nugget=setting[1],
            rng=seeded(days.model.recipe, "space"),
        ).reshape(count, windows, 1, -1)  # fmt: skip
        x = drawn(field, factor, middle)
        return variogram_of_pairs(
            x[..., pairs[:, 0]], x[..., pairs[:, 1]], *(target[:, middle][..., p] for p in pairs.T)
        )

    best = min(((a, b) for a in _LENGTHS for b in _NUGGETS), key=of_space)
    noise = replace(noise, length=best[0], nugget=best[1])
    some = torch.randperm(len(points), generator=rng)[:300]

    def of_time(time: float) -> float:
        field = space_time_normal(
            points[some], length, count * windows, length=noise.length, time=time, nugget=noise.nugget,
            rng=seeded(days.model.recipe, "time"),
        ).reshape(count, windows, length, -1)  # fmt: skip
        x = (centre[..., some] + factor * width[..., some] * field).clamp(min=lower)
        return variogram_of_pairs(x[:, :, 1:], x[:, :, :-1], target[:, 1:, some], target[:, :-1, some])

    return AmountDecoder(
        decoder.network, layout, decoder.observed, replace(noise, time=min(_TIMES, key=of_time))
    )


def _of_first_channel(
    decoder: AmountDecoder, days: _Source, held: Sequence[Posteriors], name: str, rng: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Location and scale (N, W, L, P) of the members of validation windows, and their truth (W, L, P)."""
    truth = days.physical(name)
    location, scale, y = list[Tensor](), list[Tensor](), list[Tensor]()
    for each in held:
        z = days.latents(each.coefficients, rng)
        for window, rows in enumerate(each.rows):
            pair = decoder.parameters(z[:, window], days.phase[rows], days.seen(each, rows))
            for kept, part in zip((location, scale), pair, strict=True):
                kept.append(part[:, :, 0].flatten(2))
            y.append(truth[rows][:, 0].flatten(1))
    return torch.stack(location, 1), torch.stack(scale, 1), torch.stack(y)


def variogram_of_pairs(first: Tensor, second: Tensor, one: Tensor, other: Tensor) -> float:
    """Mean of (|y_i - y_j|^1/2 - mean |x_i - x_j|^1/2)² over pairs, members (N, *B) and truth (*B)."""
    return float(((one - other).abs().sqrt() - (first - second).abs().sqrt().mean(0)).square().nanmean())


def neighbouring_pairs(points: Tensor, rng: torch.Generator, count: int = 300) -> Tensor:
    """Indices of points and of their 1st, 2nd, 4th, 8th and 16th nearest neighbours, (n, 2)."""
    some = torch.randperm(len(points), generator=rng)[:count]
    order = great_circle(points[some], points).argsort(1)
    ranks = [rank for rank in _RANKS if rank < len(points)]
    return torch.cat([torch.stack([some, order[:, rank]], 1) for rank in ranks])
