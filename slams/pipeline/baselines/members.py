"""The baselines as ensembles, for files that have the layout of an analysis."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.core.random import fork, normal
from slams.diffusion.trajectory import MarkovBlanket
from slams.pipeline.baselines import fit as analyse
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import phase_of
from slams.pipeline.inputs.operators import operators_of
from slams.pipeline.inputs.segments import Piece, seen_on
from slams.pipeline.model.model import Model

Members = dict[str, Tensor]
Networks = Mapping[str, list[Network]]


def climatology(model: Model, networks: Networks, dates: np.ndarray, seed: int) -> Members:
    """Draws at every point from the climatological normal of training days, (N, T, *S) by state."""
    found = {}
    for name in analyse.state_names(model):
        shape = model.places[name].shape
        std = torch.stack([n.std for n in networks[name]]).reshape(shape)
        zero = torch.zeros(len(dates), *shape)
        found[name] = _draw(model, name, zero, std.expand_as(zero), dates, fork(seed, "climatology", name))
    return found


def interpolation(
    model: Model,
    baselines: Baselines,
    networks: Networks,
    values: Mapping[str, Tensor],
    dates: np.ndarray,
    seed: int,
) -> Members:
    """Draws from the marginals of optimal interpolation; from climatology on days that saw nothing.

    Args:
        model: Trained.
        baselines: With tuned interpolators.
        networks: Points and spreads.
        values: Observed anomalies (T, *S).
        dates: (T).
        seed: Of the draws.

    Returns:
        (N, T, *S) of each state that is measured directly by something observed.
    """
    found, unplaced = {}, operators_of(model.recipe, model.places)
    for name in analyse.state_names(model):
        direct = [
            m
            for m in model.recipe.data.direct.get(name, ())
            if m in values and m in networks and m not in unplaced
        ]
        fitted = _interpolator(baselines, name, direct)
        if fitted is None:
            continue
        some = {m: values[m] for m in direct if m in fitted.ratios}
        days = torch.stack([torch.isfinite(v).flatten(1).any(1) for v in some.values()]).any(0)
        shape = model.places[name].shape
        mean = torch.zeros(len(dates), *shape)
        std = (
            torch.stack([n.std for n in networks[name]]).reshape(shape).repeat(len(dates), *[1] * len(shape))
        )
        if bool(days.any()):
            given = {m: v[days] for m, v in some.items()}
            mean[days], std[days] = analyse.interpolation(model, networks, fitted, name, given)
        found[name] = _draw(model, name, mean, std, dates, fork(seed, "interpolation", name))
    return found


def gaussian(
    model: Model,
    baselines: Baselines,
    values: Mapping[str, Tensor],
    pieces: Sequence[Piece],
    dates: np.ndarray,
    seed: int,
) -> Members:
    """Draws from the marginals of the closed-form Gaussian, (N, T, *S) by state.

    Empty if it has no operator for anything observed.
    """
    baselines = _with_states(model, baselines, values)
    ignored = unknown_to_gaussian(model, baselines, values)
    known = {n: v for n, v in values.items() if n not in ignored}
    if not known:
        return {}
    shapes = {n: (len(dates), *model.places[n].shape) for n in analyse.state_names(model)}
    means, stds = ({n: torch.full(s, torch.nan) for n, s in shapes.items()} for _ in range(2))
    for piece in pieces:
        posterior = analyse.gaussian_posterior(model, baselines, seen_on(piece, known), True)
        for name, (mean, std) in posterior.items():
            means[name][piece.days], stds[name][piece.days] = mean[piece.keep], std[piece.keep]
    return {n: _draw(model, n, means[n], stds[n], dates, fork(seed, "gaussian", n)) for n in shapes}


def unknown_to_gaussian(model: Model, baselines: Baselines, values: Mapping[str, Tensor]) -> list[str]:
    """Observed modalities for which no linear operator was fitted: no set has them, or they were seen otherwise then."""
    sizes = {n: torch.Size(model.places[n].shape).numel() for n in values}
    jacobians = model.jacobians()
    sizes |= {n: len(jacobians[n]) for n in operators_of(model.recipe, model.places) if n in values}
    fitted = {n: len(operator) for n, operator in baselines.operators.items()}
    # a state seen cell by cell has its own rows of the patterns
    states = {n for n in analyse.state_names(model) if n not in operators_of(model.recipe, model.places)}
    return [n for n in values if fitted.get(n, sizes[n] if n in states else 0) != sizes[n]]


def _with_states(model: Model, baselines: Baselines, values: Mapping[str, Tensor]) -> Baselines:
    """Operators of observed states that were in no set: their own rows of the patterns."""
    names = analyse.state_names(model)
    operators, errors = dict(baselines.operators), dict(baselines.errors)
    for name in [n for n in names if n in values and n not in operators]:
        here, rows = baselines.present[analyse.at_full(model, names, name)], baselines.splits[name]
        operators[name] = torch.zeros(len(here), baselines.gaussian.decode.shape[1])
        errors[name] = torch.ones(len(here))
        operators[name][here] = baselines.gaussian.decode[rows]
        errors[name][here] = baselines.gaussian.rest[rows]
    return replace(baselines, operators=operators, errors=errors)


@torch.no_grad()
def prior(
    model: Model, pieces: Sequence[Piece], dates: np.ndarray, seed: int, progress: Callable[[int], None]
) -> Members:
    """Unconditional draws of the latent prior along each run of days, decoded, (N, T, *S) by state."""
    sda, count = model.sda(), model.recipe.assimilation.members
    rng = fork(seed, "prior")
    phase = phase_of(dates)
    found = {n: torch.empty(count, len(dates), *model.places[n].shape) for n in analyse.state_names(model)}
    blanket = MarkovBlanket(sda.denoiser, sda.gaussian.length)
    for piece in pieces:
        noise = normal((count, len(piece.rows), *sda.gaussian.event), like=sda.gaussian.basis, rng=rng)
        z = sda.sampler(blanket, noise, rng=rng, progress=progress)[:, piece.keep]
        for name, members in found.items():
            members[:, piece.days] = analyse.decoded(model, z, name, phase[piece.days], rng=rng)
    return found


@torch.no_grad()
def reconstruction(
    model: Model, given: Mapping[str, Tensor], values: Mapping[str, Tensor], dates: np.ndarray
) -> Members:
    """What the autoencoder makes of everything given, (1, T, *S) of each state given; NaN on other days.

    Args:
        model: Trained.
        given: States, as they are in their files (T, *S), anomalies.
        values: All modalities, the states among them.
        dates: (T).
    """
    z = model.codec.encode(values)
    found = {}
    for name, truth in given.items():
        again = analyse.decoded(model, z[None], name, phase_of(dates), rng=None, residual=False)
        days = torch.isfinite(truth).flatten(1).any(1)
        found[name] = torch.where(days.reshape(-1, *[1] * (truth.ndim - 1)), again, torch.nan)
    return found


def _draw(
    model: Model, name: str, mean: Tensor, std: Tensor, dates: np.ndarray, rng: torch.Generator
) -> Tensor:
    """Members (N, T, *S) from standardized marginals, each point alone."""
    count = model.recipe.assimilation.members
    x = mean + std * normal((count, *mean.shape), like=mean, rng=rng)
    return analyse.possible(model, name, x, phase_of(dates))


def _interpolator(baselines: Baselines, name: str, direct: Sequence[str]) -> AnomalyInterp | None:
    """The fit on the set nearest to what is observed, with the other sets' ratios for what it lacks."""
    fits = [fitted for (_, variable), fitted in baselines.interpolators.items() if variable == name]
    ratios: dict[str, float] = {}
    for fitted in fits:
        ratios.update(fitted.ratios)
    if not set(ratios) & set(direct):
        return None
    nearest = min(fits, key=lambda f: len(set(f.ratios) ^ set(direct)))
    return AnomalyInterp(
        nearest.length, {m: r for m, r in {**ratios, **nearest.ratios}.items() if m in direct}
    )
