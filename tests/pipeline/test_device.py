"""Networks on another device than the data: nothing is left behind, and the numbers are those of the CPU."""

import dataclasses
from pathlib import Path

import pytest
import torch

from slams.core.console import Console
from slams.core.device import computing_device
from slams.core.settings import override
from slams.pipeline import assimilate as later
from slams.pipeline import train as stages
from slams.pipeline.assimilate import assimilate
from slams.pipeline.inputs.fields import Fields, load_fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model import learn_codec
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import decoded, posterior
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.train import train
from tests.elsewhere import ELSEWHERE, Elsewhere
from tests.pipeline.conftest import tiny_recipe, weather
from tests.pipeline.test_assimilate import root
from tests.pipeline.test_train import content

QUIET = Console(quiet=True)
WEIGHTS = ("codec.safetensors", "denoiser.safetensors")
pytestmark = pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")


@dataclasses.dataclass
class Tiny:
    """A recipe, its fields and what they train on the CPU."""

    recipe: Recipe
    fields: Fields
    out: Path


def gridded(recipe: Recipe) -> Recipe:
    """The same with a gridded latent, of the two fields on one grid."""
    tree = to_tree(recipe)
    del tree["data"]["modalities"]["coarse"], tree["data"]["modalities"]["stn"]
    tree["data"]["modalities"]["rain"]["role"] = "observation"
    tree["data"]["modalities"]["temp"]["error_std"] = 0.5
    tree["data"]["direct"] = {"temp": ["temp"]}
    tree["latent"] |= {"kind": "grid", "channels": 3, "patch": 2, "hidden": 4}
    tree["prior"] |= {"hidden": [4]}
    tree["experiment"] |= {"sets": {"both": ["temp", "rain"]}, "share": 0.3, "withhold": {}}
    return from_tree(tree)


@pytest.fixture(scope="module", params=["vector", "grid"])
def tiny(request, tmp_path_factory) -> Tiny:
    folder = tmp_path_factory.mktemp("device")
    weather(260).to_netcdf(folder / "archive.nc")
    recipe = tiny_recipe(folder / "archive.nc", folder / "store")
    recipe = gridded(recipe) if request.param == "grid" else recipe
    recipe = from_tree(override(to_tree(recipe), ["device=cpu"]))
    fields = load_fields(recipe)
    (folder / "run").mkdir()
    train(recipe, fields, folder / "run", QUIET)
    return Tiny(recipe, fields, folder / "run")


def drawn(model: Model, tiny: Tiny, compose_windows: bool) -> list[torch.Tensor]:
    """Members of everything that the first set sees, in three windows or along a trajectory."""
    values = anomalies(model.codec, tiny.fields, tiny.fields.part(tiny.recipe.data.test))
    names = tiny.recipe.experiment.sets["both"]
    days = torch.arange(9) if compose_windows else torch.arange(9).reshape(3, 3)
    seen = observe(model.layouts, tiny.recipe, values, names, days=days)
    each = [seen] if compose_windows else [{n: v[i] for n, v in seen.items()} for i in range(3)]
    rng = torch.Generator().manual_seed(3)
    z = posterior(model, each, compose_windows, rng=rng)
    return [decoded(model, x, name, torch.linspace(0, 1, x.shape[1]), rng=rng) for x in z for name in values]


def test_training_elsewhere_gives_the_weights_of_the_cpu(tiny, tmp_path, monkeypatch):
    """Autoencoder, prior and calibration; the pretended device computes as the CPU, so every bit agrees."""
    monkeypatch.setattr(stages, "computing_device", lambda setting: ELSEWHERE)
    with Elsewhere() as device:
        model = train(tiny.recipe, tiny.fields, tmp_path, QUIET)
        assert model.device == model.codec.device == ELSEWHERE
    assert device.products["there"] > 1000
    for name in WEIGHTS:
        assert content(tmp_path / name) == content(tiny.out / name), name


@pytest.mark.parametrize("guidance", ["covariance", "sda", "published"])
@pytest.mark.parametrize("compose_windows", [False, True])
def test_draws_elsewhere_are_those_of_the_cpu(tiny, guidance, compose_windows):
    """Encoding, guided sampling and decoding; what comes back is on the CPU."""
    model = Model.load(tiny.out)
    recipe = from_tree(override(to_tree(model.recipe), [f"assimilation.guidance={guidance}"]))
    model = Model(model.codec, model.prior, recipe)
    if guidance == "sda":  # which knows only diagonal errors here
        model.prior.errors = {n: e.diagonal() if e.ndim == 2 else e for n, e in model.prior.errors.items()}
    expected = drawn(model, tiny, compose_windows)
    with Elsewhere() as device:
        model.on(ELSEWHERE)
        device.products["here"] = 0
        found = drawn(model, tiny, compose_windows)
    assert device.products["there"] > 50 and device.products["here"] < 20
    for one, other in zip(expected, found, strict=True):
        assert type(other) is torch.Tensor
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


def test_assimilate_elsewhere_writes_what_the_cpu_writes(world, tmp_path, monkeypatch):
    settings = {"members": 3, "dates": "2001-07-25..2001-08-05", "baselines": True, "console": QUIET}
    expected = assimilate(
        world.run, [str(world.new)], tmp_path / "a.nc", overrides=["device=cpu"], **settings
    )
    monkeypatch.setattr(later, "computing_device", lambda setting: ELSEWHERE)
    with Elsewhere() as device:
        found = assimilate(world.run, [str(world.new)], tmp_path / "b.nc", **settings)
    assert device.products["there"] > 50
    assert root(found)["temp"].equals(root(expected)["temp"])


def test_the_device_is_no_part_of_what_was_trained(tiny, tmp_path, monkeypatch):
    """Changing it trains nothing again, and a run of a machine with a GPU opens on one without."""

    def refused(*arguments, **settings):
        raise AssertionError("trained already")

    monkeypatch.setattr(learn_codec, "fit", refused)
    recipe = from_tree(override(to_tree(tiny.recipe), ["device=auto"]))
    assert train(recipe, tiny.fields, tiny.out, QUIET).recipe.device == "auto"
    assert later.configure(from_tree(override(to_tree(recipe), ["device=cuda"]))).device == "auto"


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert computing_device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="torch finds no GPU here; set device=cpu"):
        computing_device("cuda")
    with pytest.raises(ValueError, match="device is 'auto', 'cpu' or 'cuda', got 'gpu'"):
        from_tree({"device": "gpu"})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_numbers_of_the_cpu_up_to_rounding(tiny, tmp_path):
    """Draws of one model within 1 % of their spread: 6 steps amplify rounding of 1e-6 by far less than 1e4."""
    model = Model.load(tiny.out)
    expected = drawn(model, tiny, True)
    found = drawn(model.on(torch.device("cuda")), tiny, True)
    for one, other in zip(expected, found, strict=True):
        scale = torch.nan_to_num(one).std()
        assert float(torch.nan_to_num(one - other).abs().max()) < 1e-2 * float(scale)
    recipe = from_tree(override(to_tree(tiny.recipe), ["device=cuda"]))
    assert train(recipe, tiny.fields, tmp_path, QUIET).device.type == "cuda"
