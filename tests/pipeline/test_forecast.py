"""`slams forecast` and filtering: days behind the last observation, and analyses of the past alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import slams
from slams.assimilation.baseline.trajectory import ClosedFormTrajectory
from slams.cli import main
from slams.core.console import Console
from slams.core.random import fork
from slams.evaluation.tables import read_metrics
from slams.observation.observation import Observations
from slams.pipeline.baselines.file import FILE_NAME, save_baselines
from slams.pipeline.baselines.fit import fit_gaussian
from slams.pipeline.forecast import forecast
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.model.bias import biases_in
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import posterior as drawn
from slams.pipeline.results import lead_scores
from slams.pipeline.results.lead_scores import persistence
from slams.pipeline.train import train
from tests.diffusion.test_trajectory_gaussian import H, K, T, observed, posterior, window_gaussian
from tests.pipeline.conftest import tiny_recipe, weather

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def run(world):
    return slams.open_run(world.run)


@pytest.fixture(scope="module")
def new(world):
    with xr.open_dataset(world.new) as dataset:
        return dataset.load()


def test_forecast_lies_behind_the_last_observation(world, run, tmp_path):
    """The command's file and the call's tree are one: layout of the analysis, lead, units, truth within reach."""
    path = forecast(world.run, [str(world.new)], tmp_path / "f.nc", days=3, start="2001-08-10", console=QUIET)
    tree = run.forecast(world.new, days=3, start="2001-08-10")
    with xr.open_datatree(path) as written:
        xr.testing.assert_equal(tree.to_dataset(), written.to_dataset().load())
        assert written["stn"]["observed"].values.sum() == 0 and written["stn"]["observation"].isnull().all()
        assert written["stn"]["value"].dims == ("time", "member", "station")
        assert written.attrs["start"] == "2001-08-10"
    assert tree["temp"].dims == ("time", "member", "lat", "lon") and tree["temp"].attrs["units"] == "degC"
    assert tree["lead"].values.tolist() == [1, 2, 3] and tree["lead"].attrs["units"] == "days"
    first = np.datetime64("2001-08-11")
    np.testing.assert_array_equal(tree["time"].values.astype("datetime64[D]"), first + np.arange(3))
    assert tree["temp"][..., 1:, :].notnull().all() and (tree["rain"] >= 0).all()


def test_forecast_uses_nothing_behind_its_start(run, new):
    """Later values, and values missing there, make no difference; values before it do."""

    def temp(dataset: xr.Dataset, **settings: str) -> np.ndarray:
        return run.forecast(dataset, days=2, members=2, **settings)["temp"].values

    later, earlier = new.copy(deep=True), new.copy(deep=True)
    later["stn"][25:] += 30
    earlier["stn"][24] += 1
    start = str(new.time.values[24])[:10]
    base = temp(new, start=start)
    np.testing.assert_array_equal(base, temp(later, start=start))
    np.testing.assert_array_equal(base, temp(new.isel(time=slice(25))))  # the last day is the default
    gone = new.copy(deep=True)
    gone[["stn", "coarse"]] = gone[["stn", "coarse"]].where(gone.time <= new.time[24])
    np.testing.assert_array_equal(base, temp(gone))  # days without values behind it are no observations
    assert not np.array_equal(base, temp(earlier, start=start), equal_nan=True)


def test_forecast_relaxes_to_the_climate(run, new):
    """Spread grows with lead, and signal falls: ratios with 32 members and 6 starts, far beyond chance."""
    signal, spread = [], []
    for k in range(8, 56, 8):
        temp = run.forecast(new.isel(time=slice(k)), days=10, members=32)["temp"]
        anomaly = temp.mean("member") - float(new["temp"].mean())
        signal.append(np.sqrt((anomaly**2).mean(["lat", "lon"])).values)
        spread.append(temp.std("member").mean(["lat", "lon"]).values)
    signal, spread = np.mean(signal, 0), np.mean(spread, 0)
    assert signal[9] < 0.6 * signal[0] and spread[9] > 1.2 * spread[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"days": 20}, r"limited to 15 \(assimilation.horizon\); lower --days"),
        ({"days": 0}, "at least 1 day, got 0"),
        ({"start": "yesterday"}, "such as 1998-02-20, got 'yesterday'"),
        ({"start": "2001-10-30"}, "the 8 days up to it, which have none; give later observations"),
        ({"start": "2001-09-20", "days": 13}, "reaches 16 days beyond the last observation"),
        ({"start": "1999-01-01"}, "have no day from"),
    ],
)
def test_impossible_forecasts_are_refused(run, world, settings, message):
    with pytest.raises(ValueError, match=message):
        run.forecast(world.new, **settings)


def test_horizon_is_a_setting(run, world):
    tree = run.forecast(world.new, days=17, members=2, assimilation__horizon=17)
    assert tree.sizes["time"] == 17


def test_filter_uses_nothing_behind_a_day(world, run, new):
    """Days up to k are the same without those behind; the last one's mean is that of the reanalysis of its memory."""
    whole = run.assimilate(new, only_past=True, members=2, assimilation__memory=5)
    assert whole.sizes["time"] == new.sizes["time"]
    spoilt = new.copy(deep=True)
    spoilt["stn"][30:] += 30
    other = run.assimilate(spoilt, only_past=True, members=2, assimilation__memory=5)
    np.testing.assert_array_equal(whole["temp"][:30], other["temp"][:30])
    assert not np.array_equal(whole["temp"][30], other["temp"][30], equal_nan=True)
    reanalysis = run.assimilate(spoilt, members=2)["temp"]
    assert not np.array_equal(run.assimilate(new, members=2)["temp"][29], reanalysis[29], equal_nan=True)


def test_filter_is_the_last_day_of_its_memory(run, new):
    """Means of 600 members of the filter and of a reanalysis of the 5 days up to it, within 6 standard errors."""
    days = new.isel(time=slice(20, 25))
    one = run.assimilate(days, only_past=True, members=600, assimilation__memory=5)["temp"][-1]
    two = run.assimilate(days, members=600)["temp"][-1]
    bound = 6 * np.sqrt(2 / 600) * two.std("member")
    assert (np.abs(one.mean("member") - two.mean("member")) <= bound).values[1:].all()


def test_baselines_of_a_filter_are_refused(run, world):
    with pytest.raises(ValueError, match="leave one of both out"):
        run.assimilate(world.new, only_past=True, baselines=True)


def test_commands(world, tmp_path, capsys):
    files = ["--observations", str(world.new)]
    assert main(["forecast", str(world.run), *files, "--out", str(tmp_path / "f.nc"), "--members", "2"]) == 0
    a = str(tmp_path / "a.nc")
    command = [
        "assimilate",
        str(world.run),
        *files,
        "--out",
        a,
        "--filter",
        "--dates",
        "2001-08-01..2001-08-04",
    ]
    assert main([*command, "--members", "2"]) == 0
    assert main(["forecast", str(world.run)]) == 1
    assert "either --observations FILE" in capsys.readouterr().err


def test_closed_form_forecast_is_that_of_the_joint_gaussian():
    """Mean and spread of the days behind the observations, each with its own patterns of missing values."""
    both = [observed(list(range(T - 5))), observed([2, 7])]
    values = torch.stack([o["y"].value for o in both])
    record = Observations({"y": replace(both[0]["y"], value=values)})
    decode, rest = torch.eye(K, dtype=torch.float64), torch.full((K,), 0.1, dtype=torch.float64)
    mean, std = ClosedFormTrajectory(window_gaussian(), decode, rest).trajectories(record, {"y": H}, last=6)
    for number, each in enumerate(both):
        expected, covariance = posterior(each["y"].value)
        width = (covariance.diagonal().reshape(T, K) + 0.1).sqrt()
        assert ((mean[number] - expected[-6:]).abs() < 1e-3 * width[-6:]).all()
        torch.testing.assert_close(std[number].double(), width[-6:], rtol=1e-3, atol=0)


def test_damped_persistence_of_an_autoregression(rng):
    """r_l = .8^l and the deviation (1 - .64^l)^1/2, from 4000 starts: six standard errors."""
    x = [torch.randn(4000, 1, 1, 1, generator=rng)]
    for _ in range(3):
        x.append(0.8 * x[-1] + 0.6 * torch.randn(4000, 1, 1, 1, generator=rng))
    truth = torch.stack(x, 1)
    mean, std = persistence(truth, truth, torch.ones(1, 4, 1, 1, 1))
    lead = torch.arange(4)
    expected = 0.8**lead, (1 - 0.64**lead).sqrt()
    for found, exact in zip((mean, std), expected, strict=True):
        assert ((found.flatten() - exact).abs() < 6 / 4000**0.5).all()


def test_scores_by_lead_resume_and_rank_the_methods(tmp_path, monkeypatch):
    """Rows of all methods at all leads, the same after an interruption; the table is reused when nothing changed.

    On a linear world the closed forms are right: at day 1 they beat climatology, and so do the draws.
    """
    weather(260).to_netcdf(tmp_path / "archive.nc")
    recipe, run = tiny_recipe(tmp_path / "archive.nc", tmp_path / "store"), tmp_path / "run"
    run.mkdir()
    fields = load_fields(recipe)
    model = train(recipe, fields, run, QUIET)
    save_baselines(fit_gaussian(model, fields), run / FILE_NAME)
    settings = {
        "days": 2,
        "starts": 20,
        "members": 6,
        "overrides": ["assimilation.memory=4"],
        "console": QUIET,
    }
    drawn, calls = lead_scores.forecast_draws, []

    def interrupted(*given, **named):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return drawn(*given, **named)

    monkeypatch.setattr(lead_scores, "forecast_draws", interrupted)
    with pytest.raises(KeyboardInterrupt):
        lead_scores.forecast_scores(run, **settings)
    rows = read_metrics(lead_scores.forecast_scores(run, **settings))
    assert len(calls) == 4 and not list(run.glob("resume_forecast_*"))  # three batches, the first one once
    lead_scores.forecast_scores(run, **settings)
    assert len(calls) == 4
    crps = {
        (r["method"], r["part"]): r["value"]
        for r in rows
        if r["metric"] == "crps" and r["variable"] == "temp"
    }
    methods = ("forecast", "gaussian", "latent_gaussian", "persistence", "climatology")
    assert set(crps) == {(method, f"day {lead}") for method in methods for lead in range(3)}
    for method in ("forecast", "gaussian", "latent_gaussian", "persistence"):
        assert crps[method, "day 1"] < 0.95 * crps["climatology", "day 1"]
    with pytest.raises(ValueError, match="lower --starts or --days"):
        lead_scores.forecast_scores(run, **settings | {"starts": 50})


def test_filters_and_forecasts_of_a_run_with_biases(world):
    """One bias of all days would let a filter see the future, so that trajectories beyond a window have none."""
    model = Model.load(world.run)
    model.prior.biases = {
        name: {"shared": 0.1, "own": 0.1, "share": 0.5} for name in model.layouts if name not in model.states
    }
    seen = {n: torch.zeros(2, 8, *model.layouts[n].shape) for n in ("coarse", "stn")}
    assert biases_in(model, seen, composed=False) is None
    assert biases_in(model, {n: x[:, :3] for n, x in seen.items()}, composed=False) is not None
    draws = drawn(model, [{n: x[i] for n, x in seen.items()} for i in range(2)], False, rng=fork(0, "draws"))
    assert all(z.shape[1] == 8 and bool(torch.isfinite(z).all()) for z in draws)
