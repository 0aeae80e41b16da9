"""`slams evaluate`: an analysis file against truth."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from slams.core.console import Console
from slams.evaluation.tables import read_metrics
from slams.pipeline.assimilate import assimilate
from slams.pipeline.evaluate import evaluate

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def analysis(world, tmp_path_factory) -> Path:
    """With baselines and two stations withheld."""
    path = tmp_path_factory.mktemp("analysis") / "a.nc"
    settings = ["withhold.stn=[0,4]"]
    return assimilate(world.run, [str(world.new)], path, baselines=True, overrides=settings, console=QUIET)


@pytest.fixture(scope="module")
def report(world, analysis, tmp_path_factory) -> Path:
    """Its evaluation."""
    folder = tmp_path_factory.mktemp("report")
    evaluate(analysis, [str(world.new)], folder, QUIET)
    return folder


def value(report: Path, method: str, variable: str, metric: str, part: str = "all") -> float:
    """One score of metrics.csv."""
    (found,) = [
        row["value"]
        for row in read_metrics(report / "metrics.csv")
        if (row["method"], row["variable"], row["metric"], row["part"]) == (method, variable, metric, part)
    ]
    return found


@pytest.mark.parametrize("method", ["analysis", "climatology", "gaussian", "interpolation", "prior"])
def test_rmse_is_that_computed_by_hand(world, analysis, report, method):
    """Root of the area-weighted mean of the squared error of the mean; float32 sets the tolerance."""
    name = None if method == "analysis" else f"baseline_{method}"
    mean = xr.open_dataset(analysis, group=name)["temp"].mean("member").values
    truth = xr.open_dataset(world.new)["temp"]
    weight = np.cos(np.deg2rad(truth["lat_o"].values))[None, :, None] * np.isfinite(truth.values)
    by_hand = np.sqrt(np.nansum(weight * (mean - truth.values) ** 2) / weight.sum())
    assert value(report, method, "temp", "rmse") == pytest.approx(by_hand, rel=1e-5)


def test_withheld_stations_are_scored_apart(world, analysis, report):
    """Each part by hand; what was seen is nearer than what was not."""
    mean = xr.open_dataset(analysis, group="stn")["value"].mean("member").values
    error = (mean - xr.open_dataset(world.new)["stn"].values) ** 2
    withheld, observed = np.nanmean(error[:, [0, 4]]) ** 0.5, np.nanmean(error[:, [1, 2, 3]]) ** 0.5
    assert value(report, "analysis", "stn", "rmse", "withheld") == pytest.approx(withheld, rel=1e-5)
    assert value(report, "analysis", "stn", "rmse", "observed") == pytest.approx(observed, rel=1e-5)
    assert observed < withheld


def test_logarithmic_variable_is_scored_in_the_unit_of_the_file(world, analysis, report):
    """Bias of rain in mm, not of its logarithm."""
    mean = xr.open_dataset(analysis)["rain"].mean("member").values
    truth = xr.open_dataset(world.new)["rain"]
    weight = np.broadcast_to(np.cos(np.deg2rad(truth["lat_o"].values))[None, :, None], truth.shape)
    by_hand = (weight * (mean - truth.values)).sum() / weight.sum()
    assert value(report, "analysis", "rain", "bias") == pytest.approx(by_hand, rel=1e-3)
    assert "log(1 + x)" in (report / "report.html").read_text()


def test_windows_of_the_intervals_are_fifteen_days(report):
    """Sixty days are four windows."""
    rows = read_metrics(report / "metrics.csv")
    assert {row["n"] for row in rows if row["variable"] == "temp"} == {4}


def test_report_holds_figures_for_people(report):
    figures = {p.name for p in (report / "figures").glob("*.png")}
    assert {"temp_maps.png", "temp_ranks.png", "temp_series.png", "stn_series.png"} <= figures
    assert all((report / "figures" / name).stat().st_size > 5000 for name in figures)


def test_zarr_scores_as_netcdf_does(world, analysis, report, tmp_path):
    path = tmp_path / "a.zarr"
    assimilate(world.run, [str(world.new)], path, overrides=["withhold.stn=[0,4]"], console=QUIET)
    evaluate(path, [f"temp={world.new}"], tmp_path / "report", QUIET)
    rows = read_metrics(tmp_path / "report" / "metrics.csv")
    assert {row["variable"] for row in rows} == {"temp"}
    expected = value(report, "analysis", "temp", "crps")
    assert value(tmp_path / "report", "analysis", "temp", "crps") == pytest.approx(expected, rel=1e-6)


def test_wrong_truth_is_told(world, analysis, tmp_path):
    with xr.open_dataset(world.new) as dataset:
        truth = dataset.load()
    truth.assign_coords(time=truth.time + np.timedelta64(4000, "D")).to_netcdf(tmp_path / "late.nc")
    truth.assign_coords(lat_o=truth.lat_o + 0.5).to_netcdf(tmp_path / "shifted.nc")
    truth[["temp"]].rename(temp="humidity").to_netcdf(tmp_path / "other.nc")
    for file, message in (
        ("late.nc", "no day in common"),
        ("shifted.nc", "doesn't lie on the grid"),
        ("other.nc", "holds none of temp"),
        ("absent.nc", "no file matches"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            evaluate(analysis, [str(tmp_path / file)], tmp_path / "report", QUIET)
    assert not (tmp_path / "report").exists()


def test_file_that_is_no_analysis_is_told(world, tmp_path):
    with pytest.raises(ValueError, match="is no analysis"):
        evaluate(world.new, [str(world.new)], tmp_path / "report", QUIET)


def test_truth_in_another_unit_gives_the_same_scores(world, analysis, report, tmp_path):
    """Rain in metres, temperature in kelvin: converted to the unit of the analysis."""
    with xr.open_dataset(world.new) as dataset:
        truth = dataset.load()
    truth["rain"] = (truth["rain"].dims, truth["rain"].values / np.float32(1000), {"units": "m"})
    truth["temp"] = (truth["temp"].dims, truth["temp"].values + np.float32(273.15), {"units": "K"})
    truth.to_netcdf(tmp_path / "truth.nc")
    folder = evaluate(analysis, [str(tmp_path / "truth.nc")], tmp_path / "report", QUIET).parent
    for variable in ("rain", "temp"):
        found, before = (value(f, "analysis", variable, "rmse") for f in (folder, report))
        assert found == pytest.approx(before, rel=1e-4)
