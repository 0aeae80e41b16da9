"""Draws of the latent of many windows or trajectories, a bounded number at once."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from slams.assimilation.score.latent import Latent
from slams.core.days import IN_MEMORY
from slams.pipeline.model.bias import bias_draws, without_biases
from slams.pipeline.model.model import Model

_SAMPLING = 4 * IN_MEMORY  # bytes of the networks' and decoders' outputs while samples are drawn

Progress = Callable[[int], None]


def window_bytes(model: Model) -> int:
    """Memory of one window of one member while it is denoised and decoded, about [bytes].

    Measured for the published networks: the U-Net holds 7 times its widest layer, 55 times with the gradient of guidance
    "sda", and the decoders with theirs 100 values a cell of the latent and 4 times their output each day.
    """
    recipe, event = model.recipe, model.prior.gaussian.event
    cells = torch.Size(event[1:]).numel()
    layers = 55 if recipe.assimilation.guidance == "sda" else 7
    network = layers * cells * recipe.prior.hidden[0]
    decoders = 100 * cells + 4 * sum(layout.size for layout in model.layouts.values())
    return 4 * (network + recipe.prior.window * decoders)


def windows_in_memory(model: Model) -> int:
    """Windows of members that the memory for sampling holds."""
    return max(1, _SAMPLING // window_bytes(model))


def rows_at_once(model: Model) -> int:
    """Windows of members drawn at once: `assimilation.rows`, or as many as the memory for sampling holds."""
    return model.recipe.assimilation.rows or windows_in_memory(model)


def window_draws(
    model: Model,
    seen: Mapping[str, Tensor],
    *,
    members: int,
    rng: torch.Generator,
    progress: Progress | None = None,
    offsets: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """Draws for windows, each with its own observations; in parts of windows or members beyond `rows_at_once`.

    Args:
        model: Trained model.
        seen: Observed anomalies (W, L, *S) by modality.
        members: Ensemble size N.
        rng: Generator of the draws; parts have other noise than all at once.
        progress: Callback with 1 after each step of the sampler.
        offsets: Biases of each member (N, prod(O)) by modality; drawn for these windows if None.

    Returns:
        (N, W, L, *Z).
    """
    count, days = next(iter(seen.values())).shape[:2]
    if offsets is None:
        offsets = bias_draws(model, seen, False, rng=rng, members=members)
    rows = max(1, rows_at_once(model) * model.recipe.prior.window // max(days, model.recipe.prior.window))
    windows, some = max(1, min(count, rows // members)), min(members, rows)
    sda = model.sda(trajectories=days != model.recipe.prior.window)
    parts = [slice(first, first + windows) for first in range(0, count, windows)]
    groups = [slice(first, first + some) for first in range(0, members, some)]
    step = _shared(progress, len(parts) * len(groups))
    found = []
    for part in parts:
        whole, drawn = model.observations({n: value[part] for n, value in seen.items()}), []
        for group in groups:
            own = {n: value[group] for n, value in offsets.items()}
            observations = without_biases(sda, whole, own).pullback(model.decoders)
            drawn.append(sda.windows(observations, len(range(members)[group]), rng=rng, progress=step))
        found.append(_joined(drawn, 0))
    return _joined(found, 1)


def trajectory_draws(
    model: Model, seen: Mapping[str, Tensor], *, rng: torch.Generator, progress: Progress | None = None
) -> Tensor:
    """Draws along a trajectory composed of windows, (N, T, *Z); in parts of members beyond `rows_at_once`.

    Args:
        model: Trained model.
        seen: Observed anomalies (T, *S) by modality.
        rng: Generator of the draws; parts have other noise than all at once.
        progress: Callback with 1 after each step of the sampler.
    """
    members, days = model.recipe.assimilation.members, len(next(iter(seen.values())))
    offsets, sda = bias_draws(model, seen, True, rng=rng), model.sda()
    some = max(1, min(members, rows_at_once(model) // days))
    groups, found = [slice(first, first + some) for first in range(0, members, some)], []
    step = _shared(progress, len(groups))
    for group in groups:
        own = {n: value[group] for n, value in offsets.items()}
        observations = without_biases(sda, model.observations(seen), own)
        method, count = Latent(sda, model.decoders), len(range(members)[group])
        drawn = method.assimilate(observations, count, rng=rng, progress=step).samples
        assert drawn is not None
        found.append(drawn)
    return _joined(found, 0)


def _joined(parts: list[Tensor], axis: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _shared(progress: Progress | None, parts: int) -> Progress | None:
    """A callback that counts a unit when as many have come as there are parts."""
    if progress is None or parts == 1:
        return progress
    given, waiting = progress, [0]

    def step(units: int) -> None:
        waiting[0] += units
        given(waiting[0] // parts)
        waiting[0] %= parts

    return step
