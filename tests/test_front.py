"""The front door: names of `import slams`, the first example, and seeds that never share a stream."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import slams


@pytest.mark.parametrize("name", slams.__all__)
def test_every_name_is_there(name):
    """Each name is the object of its package, under its own name or as a module."""
    found = getattr(slams, name)
    assert getattr(found, "__name__", name).rpartition(".")[2] == name and name in dir(slams)


@pytest.mark.slow  # mypy reads torch, which takes a minute without its cache
def test_a_type_checker_resolves_the_names(tmp_path):
    """From outside the package, and reports one that does not exist."""
    (tmp_path / "user.py").write_text(
        "import slams\n"
        "method: slams.Filter = slams.ETKF(slams.Lorenz96(8), inflation=1.02)\n"
        "reveal_type((slams.ETKF, slams.bench, slams.open_run, slams.FunctionModel, slams.operators.Stride))\n"
        "slams.ETFK\n"
    )
    root = str(Path(slams.__file__).parent.parent)
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file=",
        "--cache-dir",
        str(tmp_path / "cache"),
        "user.py",
    ]
    environment = {**os.environ, "MYPYPATH": root, "PYTHONPATH": root}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    found = [line for line in done.stdout.splitlines() if line.startswith("user.py")]
    assert len(found) == 2 and 'has no attribute "ETFK"' in found[1], done.stdout + done.stderr
    for part in ("dynamics: slams.systems.base.Dynamics", "BenchTable", "Run", "FunctionModel", "Stride"):
        assert part in found[0]


def test_import_loads_nothing_heavy():
    """torch alone takes seconds."""
    code = "import sys, slams; print(sorted({'torch', 'numpy', 'xarray', 'matplotlib', 'rich'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_told_with_the_nearest():
    with pytest.raises(AttributeError, match=r"no attribute 'ETFK'; did you mean slams\.ETKF\?"):
        _ = slams.ETFK


def test_the_old_place_names_the_new_ones():
    with pytest.raises(ModuleNotFoundError, match=r"slams\.pipeline .* slams\.twin .* slams\.papers"):
        importlib.import_module("slams.experiments.twin")


def test_equal_seeds_share_no_stream():
    """With one seed for everything, first members don't lie near the truth, nor do errors repeat its draws.

    The distance of two independent draws of N(0, 1)^40 is 8.9 +- 0.9; 4 is more than 5 standard deviations below.
    """
    linear = slams.LinearGaussian(0.9 * torch.eye(40), 0.19 * torch.eye(40), torch.zeros(40), torch.eye(40))
    twin = slams.Twin(linear, steps=3, noise=1.0, seed=0)
    posterior = slams.FreeRun(linear).assimilate(twin.observations, 20, rng=0)
    distance = (posterior.samples[:, 0] - twin.truth[0]).norm(dim=-1)
    assert float(distance.min()) > 4
    errors = twin.observations["observation"].value[0] - twin.truth[0]
    assert float((errors - twin.truth[0]).norm()) > 4


def test_a_twin_is_what_its_seed_says():
    one, same, other = (slams.Twin(slams.Lorenz96(8), steps=5, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.truth, same.truth) and not torch.equal(one.truth, other.truth)
    fresh = slams.Twin(slams.Lorenz96(8), steps=5, seed=None)
    again = slams.Twin(slams.Lorenz96(8), steps=5, seed=fresh.seed)
    assert one.truth.shape == (6, 8) and torch.equal(fresh.truth, again.truth)


def test_noise_is_a_standard_deviation():
    """Errors of std 3 at 8000 values: the estimate errs by 0.024, six of which are 0.14."""
    twin = slams.Twin(slams.Lorenz96(40), steps=199, noise=3.0)
    errors = twin.observations["observation"].value - twin.truth
    assert float(errors.std()) == pytest.approx(3.0, abs=0.14)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "steps >= 1"),
        ({"steps": 5, "noise": 0.0}, "positive standard deviation"),
        ({"steps": 5, "stride": 2, "operator": torch.sin}, "give one of them"),
        ({"steps": 5, "truth": slams.Lorenz96(6)}, "same state in both"),
    ],
)
def test_bad_settings_of_a_twin_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        slams.Twin(slams.Lorenz96(8), **settings)


def test_a_class_instead_of_a_model_is_refused():
    with pytest.raises(TypeError, match=r"got the class Lorenz96; wrap a function|got the class Lorenz96"):
        slams.Twin(slams.Lorenz96, steps=5)


def test_the_first_example_runs_as_written():
    """The lines of README: an ETKF follows a truth seen at every second variable."""
    twin = slams.Twin(slams.Lorenz96(), stride=2, noise=1.0, steps=200, seed=0)
    posterior = slams.ETKF(twin.model, inflation=1.02).assimilate(twin.observations, members=32, rng=1)
    table = slams.evaluate(posterior, twin.truth)
    assert 0.2 < table["rmse"].value < 1.6  # without observations 3.6
    assert "rmse" in str(table) and "ETKF" in repr(posterior)
    dataset = posterior.to_dataset()
    assert dict(dataset.sizes) == {"time": 201, "member": 32, "site": 40}
    np.testing.assert_array_equal(dataset["state"].isel(member=3), posterior.samples[3])
    np.testing.assert_allclose(dataset["time"][:3], [0, 0.05, 0.1])
    assert dataset.attrs["method"] == "ETKF" and "'inflation.factor': 1.02" in dataset.attrs["settings"]
    assert (dataset.attrs["seed"], dataset.attrs["version"]) == ("1", slams.__version__)


def test_fields_have_the_coordinates_of_their_geometry():
    """Axes of a flow are (channel, y, x), cells one apart; replicates come first; moments have no members."""
    flow = slams.KolmogorovFlow(16, 100.0, 0.1)
    twin = slams.Twin(flow, steps=2, noise=0.1, replicates=2)
    posterior = slams.FreeRun(flow).assimilate(twin.observations, 3, rng=0, keep="moments")
    dataset = posterior.to_dataset()
    assert dataset["mean"].dims == ("replicate", "time", "channel", "y", "x") and "state" not in dataset
    np.testing.assert_array_equal(dataset["x"], np.arange(16))
    assert dataset["y"].attrs["axis"] == "Y"
    np.testing.assert_array_equal(dataset["mean"][1, 2, 0, 5, 7], posterior.mean[1, 2, 0, 5, 7])


def test_scores_alone_have_nothing_to_label():
    lorenz = slams.Lorenz63()
    twin = slams.Twin(lorenz, steps=3, noise=1.0)
    posterior = slams.FreeRun(lorenz).assimilate(twin.observations, 3, rng=0, keep="scores")
    with pytest.raises(ValueError, match="keep='members'"):
        posterior.to_dataset()
