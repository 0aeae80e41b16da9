"""Amounts: the law of their draws, their decoders in files, and a run that analyses rain where it is not observed."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
import xarray as xr

from slams.core.codec import TRANSFORMS
from slams.core.console import Console
from slams.core.geometry.waves import space_time_normal
from slams.core.stages import Stage, Stages
from slams.evaluation.tables import read_metrics
from slams.networks.censored import CensoredNormal, GridTrunk
from slams.pipeline import run as experiment
from slams.pipeline.assimilate import assimilate
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model import calibrate_amounts, learn_amounts
from slams.pipeline.model.amount_days import AmountDays
from slams.pipeline.model.amounts import AmountDecoder, AmountScale, Noise, season
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from tests.pipeline.conftest import tiny_recipe, weather

GRID = Layout(
    ("lat", "lon"), {"lat": (60.0, 20.0, -20.0, -60.0), "lon": tuple(60.0 * i for i in range(6))}, "mm", "r"
)


LOG = TRANSFORMS["log1p"]


def test_a_root_of_the_amount_and_its_transform_are_inverse():
    scale, y = AmountScale(LOG), torch.tensor([0.0, 0.3, 2.0, 5.0, torch.nan])
    torch.testing.assert_close(scale.of(y)[:4], torch.expm1(y[:4]).sqrt())
    torch.testing.assert_close(scale.values(scale.of(y)), y, equal_nan=True)
    assert scale.values(torch.tensor([-1.0])).tolist() == [0.0]
    old = AmountScale(LOG, None)
    torch.testing.assert_close(old.values(torch.tensor([-1.0, 2.0])), torch.tensor([0.0, 2.0]))


@pytest.mark.parametrize("power", [None, 0.5])
def test_draws_have_the_distribution_of_their_network(power, rng):
    """Randomized probability transforms of 2000 members at one cell are uniform: one false alarm in 1e4 for each."""
    trunk = GridTrunk(3, (2, 2, 3), (1, 4, 6), observed=2, hidden=8)
    torch.nn.init.normal_(trunk.last.weight, std=0.3, generator=rng)
    network = CensoredNormal(trunk, torch.full((1, 4, 6), 0.4), torch.full((1, 4, 6), 0.5))
    decoder = AmountDecoder(network, GRID, ("rain",), AmountScale(LOG, power), Noise(3000.0, 1.0, 0.2, 1.1))
    z = torch.randn(1, 2, 2, 2, 3, generator=rng).expand(2000, -1, -1, -1, -1)
    phase, seen = torch.tensor([0.1, 0.4]), {"rain": torch.randn(2, 1, 4, 6, generator=rng)}
    location, scale = decoder.parameters(z[:1], phase, seen)
    draws = decoder.draws(z, phase, seen, rng=rng)
    assert float(draws.min()) == 0.0 and bool((draws > 0).any())
    for day, row, column in ((0, 0, 0), (1, 2, 5)):
        at = (day, 0, row, column)
        m, s, x = location[0][at], scale[0][at], decoder.scale.of(draws[:, *at])
        dry = torch.special.ndtr(-m / s)
        wet = torch.special.ndtr((x - m) / s)
        pit = torch.where(x > 0, wet, dry * torch.rand(len(x), generator=rng))
        assert scipy.stats.kstest(pit.numpy(), "uniform").pvalue > 1e-4


def test_neighbouring_cells_and_days_of_a_member_are_alike(rng):
    """Correlation of ζ over 4000 members, against its own law within 0.15: waves and members err by less than 0.03."""
    network = CensoredNormal(
        GridTrunk(3, (2, 2, 3), (1, 4, 6), hidden=8), torch.full((1, 4, 6), 0.5), torch.ones(1, 4, 6)
    )
    decoder = AmountDecoder(network, GRID, (), AmountScale(LOG), Noise(8000.0, 2.0, 0.0))
    z = torch.zeros(4000, 2, 2, 2, 3)
    wet = (decoder.draws(z, torch.tensor([0.1, 0.1]), rng=rng) > 0).float()[:, :, 0]
    near = np.corrcoef(wet[:, 0, 1, 0], wet[:, 0, 1, 1])[0, 1]
    later = np.corrcoef(wet[:, 0, 1, 0], wet[:, 1, 1, 0])[0, 1]
    chord = 2 * 6371 * np.sin(np.radians(30)) * np.cos(np.radians(20))
    for found, correlation in ((near, np.exp(-chord / 8000)), (later, np.exp(-0.5))):
        assert found == pytest.approx(2 / np.pi * np.arcsin(correlation), abs=0.15)  # of two signs


def test_a_day_kept_of_a_trajectory_has_its_neighbours(rng):
    """As a filter keeps the last day: its decoding is that along the whole trajectory."""
    trunk = GridTrunk(3, (2, 2, 3), (1, 4, 6), observed=2, hidden=8)
    torch.nn.init.normal_(trunk.last.weight, std=0.3, generator=rng)
    network = CensoredNormal(trunk, torch.full((1, 4, 6), 0.4), torch.full((1, 4, 6), 0.5))
    decoder = AmountDecoder(network, GRID, ("rain",), AmountScale(LOG))
    z, phase = torch.randn(2, 4, 2, 2, 3, generator=rng), torch.linspace(0, 0.3, 4)
    seen = torch.randn(4, 1, 4, 6, generator=rng)
    whole = decoder.parameters(z, phase, {"rain": seen})
    for kept in (slice(3, None), slice(1, 3)):
        found = decoder.parameters(z, phase[kept], {"rain": seen[kept]}, kept)
        for one, other in zip(found, whole, strict=True):
            torch.testing.assert_close(one, other[:, kept])


@pytest.mark.parametrize(("length", "nugget"), [(2000.0, 0.0), (250.0, 0.6)])
def test_means_over_areas_tell_smooth_noise_from_rough(length, nugget, monkeypatch):
    """80 windows of planted noise and no other: the correlation chosen at 800 km is the nearer of the two."""
    lat, lon = torch.meshgrid(torch.arange(-60.0, 61, 10), torch.arange(0.0, 360, 15), indexing="ij")
    points = torch.stack([lat.flatten(), lon.flatten()], 1)
    truth = torch.stack(
        [space_time_normal(points, 3, 1, length=length, time=1.0, nugget=nugget, rng=k)[0] for k in range(80)]
    )
    blank = torch.zeros(8, *truth.shape)
    scale = AmountScale(LOG)
    windows = calibrate_amounts.CalibrationWindows(
        blank + 2, blank + 1, scale.values(truth + 2), points, torch.ones(len(points)), 0
    )
    monkeypatch.setattr(calibrate_amounts.CalibrationWindows, "of", lambda *_: windows)
    days = SimpleNamespace(model=SimpleNamespace(recipe=SimpleNamespace(seed=0)))
    decoder = AmountDecoder(
        CensoredNormal(torch.nn.Identity(), torch.full((1, 1), 0.5), torch.ones(1, 1)), GRID, (), scale
    )
    found = calibrate_amounts.calibrated(decoder, days, [], "rain").noise
    at = [
        (1 - n.nugget) * np.exp(-800 / n.length)
        for n in (found, Noise(2000.0, 1.0, 0.0), Noise(250.0, 1.0, 0.6))
    ]
    assert (abs(at[0] - at[1]) < abs(at[0] - at[2])) == (length == 2000.0)


def test_networks_of_training_have_the_days_and_the_stride_of_the_recipe(tmp_path):
    tree = to_tree(tiny_recipe(tmp_path / "a.nc", tmp_path / "store"))
    tree["experiment"]["every"] = 2
    tree["assimilation"]["operators"] = {"coarse": {"kind": "stride", "step": 2}}
    recipe = from_tree(tree)
    layout = replace(GRID, coords={**GRID.coords})
    days = object.__new__(AmountDays)
    days.model = SimpleNamespace(recipe=recipe, layouts={"coarse": layout})
    hidden = days.network(torch.Generator().manual_seed(0), ["coarse"])["coarse"]
    assert hidden.shape == (recipe.prior.window, 1, 4, 6)
    assert bool(hidden[1].all()) and not bool(hidden[0, :, ::2, ::2].any()) and bool(hidden[0, :, 1].all())


def test_decoders_of_an_earlier_prior_are_gone_while_new_ones_train(done, monkeypatch, tmp_path):
    """An interrupted training leaves no file, so that the run opens without decoders instead of with others'."""
    path = tmp_path / "amounts.safetensors"
    path.write_bytes(b"of another prior")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(learn_amounts, "train_amounts", interrupted)
    with pytest.raises(KeyboardInterrupt):
        learn_amounts.kept_amounts(
            Model.load(done[0]), None, Stages(tmp_path), Stage("amounts", "new"), Console(quiet=True), None
        )
    assert not path.exists()


def test_seasons_return_after_a_year():
    torch.testing.assert_close(season(torch.tensor([0.25])), season(torch.tensor([1.25])), atol=1e-5, rtol=0)


def rainy(archive: Path, folder: Path) -> Recipe:
    """Rain is an observation, seen by one set of two, and analysed."""
    tree = to_tree(tiny_recipe(archive, folder / "store"))
    tree["data"]["modalities"]["rain"]["role"] = "observation"
    tree["data"]["direct"] = {}
    tree["amounts"] = {"variables": ["rain"], "hidden": 8, "fit": {"steps": 20, "batch": 8, "every": 10}}
    tree["experiment"] = {"sets": {"dry": ["coarse", "stn"], "wet": ["coarse", "stn", "rain"]}, "windows": 0}
    tree["out"] = str(folder / "run")
    return from_tree(tree)


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, Path]:
    """A finished run, and the file of its data."""
    folder = tmp_path_factory.mktemp("rain")
    weather(260).to_netcdf(folder / "archive.nc")
    return experiment.run(
        rainy(folder / "archive.nc", folder), console=Console(quiet=True)
    ), folder / "archive.nc"


def test_rain_is_scored_in_every_set_that_does_not_observe_it(done):
    rows = [row for row in read_metrics(done[0] / "metrics.csv") if row["variable"] == "rain"]
    methods = {row["method"] for row in rows}
    wanted = {"analysis:dry", "clipped:dry", "censored_gaussian:dry", "no_network:dry", "climatology"}
    assert wanted <= methods and "analysis" not in methods and "censored_gaussian" not in methods
    found = {row["metric"]: row["value"] for row in rows if row["method"] == "analysis:dry"}
    scores = {"rmse", "crps", "crps_log1p", "brier1", "brier5", "fss1", "crps_3x3", "variogram"}
    assert scores | {"rank_correlation"} <= set(found)
    assert -1 <= found["rank_correlation"] <= 1
    assert 0 < found["brier1"] < 1 and found["crps_log1p"] < found["crps"]


def test_analysed_rain_is_in_the_analysis_with_a_point_mass_at_zero(done):
    with xr.open_dataset(done[0] / "analysis.nc") as file, xr.open_dataset(done[0] / "truth.nc") as truth:
        rain = file["rain"].values
        assert {"temp", "rain"} <= set(truth.data_vars)
    assert rain.min() == 0 and (rain == 0).mean() > 0.05 and (rain > 0).mean() > 0.05


def test_new_observations_get_rain_too_and_a_run_opens_with_its_decoders(done, tmp_path):
    model = Model.load(done[0])
    assert set(model.prior.amounts) == {"rain"}
    path = assimilate(
        done[0], [str(done[1])], tmp_path / "new.nc", modalities=["coarse", "stn"],
        dates="2001-07-20..2001-07-29", console=Console(quiet=True),
    )  # fmt: skip
    with xr.open_dataset(path) as file:
        assert file["rain"].shape[0] == 10 and float(file["rain"].min()) == 0
        assert "amounts.safetensors" in file.attrs["sha256"]


def test_without_steps_draws_are_clipped(done):
    model = Model.load(done[0])
    tree = to_tree(model.recipe)
    tree["amounts"]["fit"]["steps"] = 0
    assert from_tree(tree).analysed == ["temp", "rain"]


def test_a_variable_without_a_bound_is_refused():
    tree = to_tree(tiny_recipe(Path("a.nc"), Path("store")))
    tree["amounts"] = {"variables": ["temp"]}
    with pytest.raises(ValueError, match="no bound"):
        from_tree(tree)
