"""Draws in parts: bounded rows, the same posterior."""

from dataclasses import replace

import pytest
import torch

from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.pipeline.model import draws
from slams.pipeline.model.draws import rows_at_once, trajectory_draws, window_draws
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import AssimilationRecipe, Recipe

MEMBERS, WINDOWS = 60, 4


@pytest.fixture
def model(world) -> Model:
    return Model.load(world.run)


def with_rows(model: Model, rows: int) -> Model:
    """A bound on rows, and the rows that went through the network."""
    settings = replace(model.recipe.assimilation, rows=rows, members=MEMBERS)
    return Model(model.codec, model.prior, replace(model.recipe, assimilation=settings))


def seen(model: Model, *lead: int) -> dict[str, torch.Tensor]:
    rng = fork(0, "seen")
    return {n: torch.randn(*lead, *model.layouts[n].shape, generator=rng) for n in ("coarse", "stn")}


@pytest.mark.parametrize("rows", [7, 130])
def test_draws_in_parts_are_of_the_same_posterior(model: Model, rows: int) -> None:
    """Parts of members, and of two windows. Means of 60 draws each differ by less than 6 standard errors.

    216 means are compared: one of a right sampler exceeds 6 in about 1 of 2 million tests.
    """
    found, widest = {}, {}
    for bound in (0, rows):
        bounded, widest[bound] = with_rows(model, bound), 0

        def count(module, args, bound=bound) -> None:
            widest[bound] = max(widest[bound], args[0].shape[:-2].numel())

        with torch.no_grad():
            denoiser = bounded.prior.denoiser  # its network is not called where it was left out
            handles = [m.register_forward_pre_hook(count) for m in (denoiser, denoiser.gaussian)]
            units: list[int] = []
            found[bound] = window_draws(
                bounded,
                seen(model, WINDOWS, 3),
                members=MEMBERS,
                rng=fork(1, "draws"),
                progress=units.append,
            )
            for handle in handles:
                handle.remove()
        assert sum(units) == model.recipe.assimilation.steps
    whole, parts = found.values()
    assert whole.shape == parts.shape == (MEMBERS, WINDOWS, 3, *model.prior.gaussian.event)
    assert widest[rows] <= rows < widest[0] == MEMBERS * WINDOWS
    error = (whole.var(0) + parts.var(0)).div(MEMBERS).sqrt()
    assert float(((whole.mean(0) - parts.mean(0)) / error).abs().max()) < 6


def test_trajectories_in_parts_are_of_the_same_posterior(model: Model) -> None:
    """Parts of three members of 10 days; 6 standard errors, as above."""
    with torch.no_grad():
        whole, parts = (
            trajectory_draws(with_rows(model, rows), seen(model, 10), rng=fork(1, "draws"))
            for rows in (0, 30)
        )
    assert whole.shape == parts.shape
    error = (whole.var(0) + parts.var(0)).div(MEMBERS).sqrt()
    assert float(((whole.mean(0) - parts.mean(0)) / error).abs().max()) < 6


def test_the_bound_follows_from_the_memory_of_a_window(model: Model, monkeypatch) -> None:
    assert rows_at_once(model) > 1000  # a tiny model needs no bound
    monkeypatch.setattr(draws, "_SAMPLING", 10 * draws.window_bytes(model))
    assert rows_at_once(model) == 10 and rows_at_once(with_rows(model, 3)) == 3


def test_a_negative_bound_is_refused() -> None:
    with pytest.raises(InvalidValueError, match="assimilation.rows"):
        Recipe(assimilation=AssimilationRecipe(rows=-1))
