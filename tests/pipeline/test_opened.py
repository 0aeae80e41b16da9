"""A trained run in Python: the same analysis as the command's, from files and from labelled arrays."""

import json
import sys

import numpy as np
import pytest
import xarray as xr
from safetensors import safe_open
from safetensors.torch import save_file

import slams
from slams.core import foreign
from slams.core.console import Console
from slams.pipeline.assimilate import assimilate
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.recipe import from_tree, to_tree
from slams.pipeline.train import train
from tests.pipeline.conftest import tiny_recipe, weather

NET = """
import pathlib, torch
from torch import nn
pathlib.Path(__file__).with_name("imported").touch()
class Net(nn.Module):
    def __init__(self, length, event, width=4):
        super().__init__()
        self.last = nn.Linear(2 * event[0], event[0])
        nn.init.zeros_(self.last.weight); nn.init.zeros_(self.last.bias)
    def forward(self, x_t, linear, t):
        return self.last(torch.cat([x_t, linear], -1))
"""


def test_analysis_is_that_of_the_command(world, tmp_path):
    """From a path, a Dataset and DataArrays by modality: the same numbers, laid out as the file."""
    path = assimilate(world.run, [str(world.new)], tmp_path / "a.nc", members=3, console=Console(quiet=True))
    run = slams.open_run(world.run)
    with xr.open_datatree(path) as expected, xr.open_dataset(world.new) as new:
        whole = run.assimilate(world.new, members=3)
        assert set(whole.children) == set(expected.children)
        xr.testing.assert_equal(whole.to_dataset(), expected.to_dataset().load())
        for given in (new, {"coarse": new["coarse"], "stn": new["stn"]}, [new[["coarse"]], new[["stn"]]]):
            again = run.assimilate(given, members=3)
            np.testing.assert_array_equal(again["temp"].values, expected["temp"].values)


def test_any_subset_of_the_modalities_will_do(world):
    run = slams.open_run(world.run)
    with xr.open_dataset(world.new) as new:
        part = run.assimilate(new["coarse"], members=2, dates="2001-07-20..2001-07-25")
        chosen = run.assimilate(new, modalities=["coarse"], members=2, dates="2001-07-20..2001-07-25")
    np.testing.assert_array_equal(part["temp"].values, chosen["temp"].values)
    assert part.sizes["time"] == 6 and "stn" not in part.children


@pytest.mark.parametrize(
    ("observations", "error", "message"),
    [
        (np.zeros(3), TypeError, "label an array with its dates and places"),
        ([], ValueError, "are empty"),
        (xr.DataArray(np.zeros(3), dims="time"), ValueError, "without a name could be any modality"),
        ("nothing.nc", FileNotFoundError, "no file matches"),
    ],
)
def test_other_observations_are_refused(world, observations, error, message):
    with pytest.raises(error, match=message):
        slams.open_run(world.run).assimilate(observations)


def test_settings_that_training_fixed_are_refused(world):
    with pytest.raises(ValueError, match=r"'prior\.window' is not adjustable in a trained run"):
        slams.open_run(world.run).assimilate(world.new, prior__window=5)


def test_a_run_says_what_it_is(world):
    assert "analyses temp" in repr(slams.open_run(world.run))


@pytest.fixture
def foreign_run(tmp_path, monkeypatch):
    """A run whose network is of a package beside the tests."""
    site = tmp_path / "site" / "mynets"
    site.mkdir(parents=True)
    (site / "__init__.py").write_text(NET)
    monkeypatch.syspath_prepend(str(site.parent))
    weather(260).to_netcdf(tmp_path / "archive.nc")
    tree = to_tree(tiny_recipe(tmp_path / "archive.nc", tmp_path / "store"))
    tree["prior"] |= {"network": "mynets:Net", "network_settings": {"width": 8}}
    recipe = from_tree(tree)
    with pytest.raises(PermissionError, match=r"prior\.network asks .* --trust mynets"):
        train(recipe, load_fields(recipe), tmp_path / "untrusted", Console(quiet=True))
    with foreign.trusting(["mynets"]):
        train(recipe, load_fields(recipe), tmp_path / "run", Console(quiet=True))
    del sys.modules["mynets"]
    (site / "imported").unlink()
    yield tmp_path / "run", site
    sys.modules.pop("mynets", None)


def test_opening_imports_a_users_network_only_if_trusted(foreign_run):
    run, site = foreign_run
    with pytest.raises(PermissionError, match=r"trust=\['mynets'\] or --trust mynets"):
        slams.open_run(run)
    assert not (site / "imported").exists()
    opened = slams.open_run(run, trust=["mynets"])
    assert type(opened.model.prior.denoiser.network).__module__ == "mynets"


def test_hostile_metadata_run_nothing(foreign_run, tmp_path):
    """A path put into the weights' metadata is not imported, nor is anything but a network built."""
    run, site = foreign_run
    path = run / "denoiser.safetensors"
    for hostile in ("os:system", "subprocess:Popen", "mynets:Net"):
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            facts = dict(file.metadata())
        recipe = json.loads(facts["recipe"])
        recipe["prior"]["network"] = hostile
        save_file(tensors, path, facts | {"recipe": json.dumps(recipe)})
        with pytest.raises(PermissionError):
            slams.open_run(run)
    recipe["prior"]["network"] = "os:system"
    save_file(tensors, path, facts | {"recipe": json.dumps(recipe)})
    with pytest.raises(TypeError, match="no subclass"):
        slams.open_run(run, trust=["os"])
    assert not (site / "imported").exists()


def test_scores_are_those_of_the_command(world, tmp_path):
    run = slams.open_run(world.run)
    analysis = run.assimilate(world.new, members=4)
    with xr.open_dataset(world.new) as new:
        table = run.evaluate(analysis, new[["temp"]])
        again = run.evaluate(analysis, {"temp": new["temp"]}, report=tmp_path / "report")
    assert table.rows == again.rows and (tmp_path / "report" / "report.html").exists()
    rmse = [r for r in table.rows if (r["metric"], r["method"], r["part"]) == ("rmse", "analysis", "all")]
    error = (analysis["temp"].mean("member") - xr.open_dataset(world.new)["temp"].values) ** 2
    weights = np.cos(np.deg2rad(analysis["lat"]))
    assert rmse[0]["value"] == pytest.approx(float(error.weighted(weights).mean() ** 0.5), rel=1e-5)
    assert "rmse" in str(table) and "analysis" in table._repr_html_()
    with pytest.raises(TypeError, match="is what assimilate returns"):
        run.evaluate(np.zeros(3), world.new)
