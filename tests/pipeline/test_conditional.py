"""A network trained on random networks of observations, and the choice between its draws and guided ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from slams.core.console import Console
from slams.core.random import fork
from slams.data.windows import window_starts
from slams.diffusion.exact.window_posterior import WindowPosterior
from slams.diffusion.guidance.conditional import ConditionalDenoiser
from slams.pipeline.inputs.fields import Fields, load_fields
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.conditional import ConditionalTraining
from slams.pipeline.model.features import ObservationFeatures
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import posterior
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.train import train
from tests.pipeline.conftest import tiny_recipe, weather


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Fields, Path, Model]:
    """The tiny world, its network trained on observations."""
    folder = tmp_path_factory.mktemp("known")
    weather(260).to_netcdf(folder / "archive.nc")
    recipe = tiny_recipe(folder / "archive.nc", folder / "store")
    recipe = replace(recipe, prior=replace(recipe.prior, networks=6, fit=replace(recipe.prior.fit, batch=16)))
    fields = load_fields(recipe)
    (folder / "run").mkdir()
    model = train(recipe, fields, folder / "run", Console(quiet=True))
    assert model is not None
    return recipe, fields, folder / "run", model


def seen_by(model: Model, fields: Fields, names: tuple[str, ...], days: int = 4) -> dict[str, torch.Tensor]:
    index = fields.part(model.recipe.data.test)[: 3 * days]
    values = anomalies(model.codec, fields, index)
    return {n: values[n].unflatten(0, (days, 3)) for n in names}


def test_the_run_knows_what_it_was_trained_on_and_how_it_draws(known):
    recipe, _, run, model = known
    assert set(model.prior.trained) <= set(recipe.modalities) and model.prior.trained
    assert model.method in ("conditional", "guided")
    again = Model.load(run)
    assert again.prior.trained == model.prior.trained and again.prior.method == model.prior.method


def test_draws_know_the_observations_without_a_likelihood(known):
    """The recipe's method wins; draws of the network differ from those of its closed form once it is not idle."""
    _, fields, _, model = known
    recipe = replace(model.recipe, assimilation=replace(model.recipe.assimilation, method="conditional"))
    model = Model(model.codec, model.prior, recipe)
    seen = seen_by(model, fields, ("coarse", "stn"))
    observations = model.observations(seen)
    guided = model.sda().guidance(model.prior.denoiser, observations.pullback(model.decoders))
    assert isinstance(guided, ConditionalDenoiser)
    parts = [{n: v[i] for n, v in seen.items()} for i in range(4)]
    whole = torch.stack(posterior(model, parts, False, rng=fork(0, "draws")))
    off = torch.stack(posterior(model.without_network(), parts, False, rng=fork(0, "draws")))
    assert whole.shape == off.shape == (4, 8, 3, 6) and bool(torch.isfinite(whole).all())
    idle = all(float(p.detach().abs().max()) == 0 for p in model.prior.denoiser.network.last.parameters())
    assert idle == torch.equal(whole, off)


def test_a_modality_it_never_saw_is_guided_on_top(known):
    _, fields, _, model = known
    recipe = replace(model.recipe, assimilation=replace(model.recipe.assimilation, method="conditional"))
    model = Model(model.codec, model.prior, recipe)
    trained, model.prior.trained = model.prior.trained, ["coarse"]
    try:
        observations = model.observations(seen_by(model, fields, ("coarse", "stn")))
        without = model.without_network()
        guidance = without.sda().guidance
    finally:
        model.prior.trained = trained
    x_t, t = torch.randn(5, 4, 3, 6, generator=fork(0, "noise")), torch.tensor(0.5)
    mixed = guidance(without.prior.denoiser, observations.pullback(model.decoders))(x_t, t)
    wanted = WindowPosterior.given(model.prior.gaussian, observations, model.jacobians())(x_t, t)
    # stations are guided through a decoder that is not quite linear
    assert float((mixed - wanted).square().mean().sqrt()) < 0.1 * float(wanted.std())


def test_features_are_zero_where_nothing_is_observed(known):
    _, fields, _, model = known
    seen = seen_by(model, fields, ("coarse",))
    blank = {n: torch.full_like(v, torch.nan) for n, v in seen.items()}
    jacobians = model.jacobians()
    features = ObservationFeatures(model.codec, jacobians)
    for values, empty in ((blank, True), (seen, False)):
        observations = model.seen(values, model.errors())
        post = WindowPosterior.given(model.prior.gaussian, observations, jacobians)
        found = features(observations, post)
        assert found.shape == (4, 3, 6 + 4 * 14)
        assert (float(found.abs().max()) < 1e-5) == empty


def test_random_networks_observe_what_is_usually_there_and_are_the_same_in_every_run(known):
    _, fields, _, model = known
    train_days = fields.part(model.recipe.data.train)
    x = anomalies(model.codec, fields, train_days)
    starts = window_starts(fields.dates[train_days], 3)
    task = ConditionalTraining(model, x, model.codec.encode(x), starts, lambda n, m: None)
    assert task.trained == model.prior.trained
    for network in task.networks:
        assert len(network.windows) and set(network.extra) <= set(network.masks)
        for name, mask in network.masks.items():
            assert bool(mask.any()) and not bool((mask & ~task.usual[name]).any())
    again = ConditionalTraining(model, x, model.codec.encode(x), starts, lambda n, m: None)
    for one, other in zip(task.networks, again.networks, strict=True):
        assert all(torch.equal(one.masks[n], other.masks[n]) for n in one.masks)
        assert np.array_equal(one.windows, other.windows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prior": {"networks": -1}}, "prior.networks must be 0 or more"),
        ({"assimilation": {"method": "conditional"}}, "set prior.networks"),
        ({"assimilation": {"method": "conditonal"}}, "assimilation.method is"),
        ({"prior": {"networks": 4}, "latent": {"kind": "pixel"}}, "latent.kind 'pixel' has one for all"),
        ({"prior": {"networks": 4, "network": "mine:Net"}}, "leave out prior.network"),
    ],
)
def test_recipes_that_cannot_be(changes, message, tmp_path):
    tree = to_tree(tiny_recipe(tmp_path / "a.nc", tmp_path / "store"))
    for part, values in changes.items():
        tree[part] |= values
    with pytest.raises(ValueError, match=message):
        from_tree(tree)
