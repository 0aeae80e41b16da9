"""One entry is all a new metric needs: it is computed, written, shown and named everywhere."""

import csv
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import xarray as xr

from slams.core.console import Console
from slams.evaluation import METRICS, Metric, Scores, evaluate, register, window_statistics
from slams.evaluation.figures.style import new_figure
from slams.evaluation.metrics import errors_shown, named, shown
from slams.evaluation.tables import read_metrics, wide
from slams.evaluation.windows import gaussian_window_statistics
from slams.pipeline.evaluate import evaluate as evaluate_file
from slams.pipeline.results.figures import FIGURES
from slams.twin.benchmark import bench


@pytest.fixture
def mae():
    """The mean absolute error of the ensemble mean, from outside the package."""
    yield register(
        Metric(
            "mae",
            lambda samples, truth: (samples.mean(0) - truth).abs(),
            gaussian=lambda mean, std, truth: (mean - truth).abs(),
            label="mean absolute error",
            dimensional=True,
        )
    )
    del METRICS["mae"]


@pytest.fixture
def files(tmp_path):
    """An analysis of 20 days and its truth."""
    rng = np.random.default_rng(0)
    coords = {"time": np.datetime64("2001-01-01", "ns") + np.arange(20) * np.timedelta64(1, "D")}
    grid = {"lat": [41.0, 40.0, 39.0], "lon": [0.0, 1.0, 2.0, 3.0]}
    truth = rng.standard_normal((20, 3, 4))
    members = truth[:, None] + rng.standard_normal((20, 5, 3, 4))
    facts = {"units": "K", "source_name": "t", "source_modality": "t"}
    analysis = xr.Dataset(
        {"t": (("time", "member", "lat", "lon"), members, facts)}, coords | grid, {"recipe": "test"}
    )
    analysis.to_netcdf(tmp_path / "analysis.nc")
    xr.Dataset({"t": (("time", "lat", "lon"), truth, {"units": "K"})}, coords | grid).to_netcdf(
        tmp_path / "truth.nc"
    )
    error = np.abs(members.mean(1) - truth)
    area = np.cos(np.deg2rad(grid["lat"]))[None, :, None]
    return tmp_path, float(np.average(error, weights=np.broadcast_to(area, error.shape)))


def test_a_metric_from_outside_is_in_the_table_of_a_bench(mae, tmp_path):
    table = bench(
        "linear", methods=["EnKF"], replicates=2, cycles=10, burn_in=2, overrides=["truth.size=4"], out=tmp_path
    )  # fmt: skip
    assert "mae" in table.lines[0]
    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "EnKF"]
    mean = {row["metric"]: float(row["value"]) for row in rows if not row["replicate"]}
    assert 0 < mean["mae"] < mean["rmse"]
    assert '<th scope="col" class="number">mae</th>' in (tmp_path / "report.html").read_text()


def test_a_metric_from_outside_is_in_the_evaluation_of_a_file(mae, files):
    folder, expected = files
    evaluate_file(folder / "analysis.nc", [str(folder / "truth.nc")], folder / "report", Console(quiet=True))
    rows = read_metrics(folder / "report" / "metrics.csv")
    (row,) = [row for row in rows if row["metric"] == "mae"]
    assert row["value"] == pytest.approx(expected, rel=1e-6) and row["lower"] < row["value"] < row["upper"]
    assert "mae" in wide(rows, variable="t")[0]
    assert "mae</th>" in (folder / "report" / "report.html").read_text()


def test_a_figure_from_outside_is_in_the_report(files, monkeypatch):
    folder, _ = files
    monkeypatch.setitem(FIGURES, "own", lambda view: new_figure(2, 2))
    evaluate_file(folder / "analysis.nc", [str(folder / "truth.nc")], folder / "report", Console(quiet=True))
    drawn = {path.stem for path in (folder / "report" / "figures").iterdir()}
    assert {"t_own", "t_maps", "t_series", "t_ranks", "t_methods"} == drawn
    assert 'alt="t own"' in (folder / "report" / "report.html").read_text()


def test_a_metric_from_outside_names_itself(mae):
    assert named("mae").axis("K") == "mean absolute error [K]"
    assert mae in errors_shown(METRICS) and "mae" in shown(METRICS, "console")
    table = evaluate(torch.ones(4, 6, 2), torch.zeros(6, 2))
    assert table["mae"].value == 1.0 and "mae" in str(table)


def test_a_metric_from_outside_has_gains_and_a_gaussian_form(mae):
    scores, truth = Scores(), torch.zeros(3, 1, 4)
    for window in range(3):
        for name, error in (("near", 1.0), ("far", 2.0)):
            statistics = window_statistics(truth[None] + error, truth, torch.ones(4))
            scores.add(name, "t", window, statistics)
    assert scores.paired_gain("near", "far", "mae", variable="t").mean == pytest.approx(0.5)
    gaussian = gaussian_window_statistics(truth + 1, torch.ones_like(truth), truth, torch.ones(4))
    assert float(gaussian["mae"] / gaussian["weight"]) == 1.0


def test_a_statistic_may_be_of_any_dtype(monkeypatch):
    """Fields are scored in float64; indicators come as float32, integers or truth values."""
    own = Metric("own", lambda samples, truth: (samples > truth).float().mean(0))
    monkeypatch.setitem(METRICS, "own", own)
    monkeypatch.setitem(METRICS, "any", Metric("any", lambda samples, truth: (samples > truth).any(0)))
    truth = torch.zeros(1, 4, dtype=torch.float64)
    members = torch.stack([truth - 1, truth + 1, truth + 2, truth + 3])
    statistics = window_statistics(members, truth, torch.ones(4))
    assert bool((statistics["own"] / statistics["weight"] == 0.75).all())
    assert bool((statistics["any"] / statistics["weight"] == 1.0).all())


def test_metrics_without_a_gaussian_form_are_left_out_of_gaussian_methods(monkeypatch):
    monkeypatch.setitem(METRICS, "own", Metric("own", lambda samples, truth: samples.amax(0) - truth))
    truth = torch.zeros(3, 1, 4)
    scores = Scores()
    scores.add("g", "t", 0, gaussian_window_statistics(truth, torch.ones_like(truth), truth, torch.ones(4)))
    names = {row["metric"] for row in scores.rows()}
    assert "rmse" in names and "own" not in names


def test_names_that_are_taken_or_unknown_are_refused():
    with pytest.raises(ValueError, match="exists already"):
        register(Metric("rmse", lambda samples, truth: truth))
    with pytest.raises(ValueError, match="exists already"):
        register(Metric("mine", lambda samples, truth: truth, key="covered"))
    with pytest.raises(ValueError, match="did you mean crps"):
        evaluate(torch.zeros(4, 6, 2), torch.zeros(6, 2), metrics=["crsp"])
    with pytest.raises(ValueError, match="cpu_seconds can't be computed from members"):
        evaluate(torch.zeros(4, 6, 2), torch.zeros(6, 2), metrics=["cpu_seconds"])


@dataclass
class Kept:
    """What of a posterior was kept."""

    samples: torch.Tensor | None = None
    mean: torch.Tensor | None = None
    variance: torch.Tensor | None = None
    diagnostics: dict[str, torch.Tensor] = field(default_factory=dict)


def test_a_posterior_is_scored_as_its_members_are():
    samples, truth = torch.randn(3, 8, 5, 2), torch.randn(3, 5, 2)
    whole = evaluate(samples, truth, batch=1)
    for diagnostics in ({"innovation": torch.ones(3, 5)}, {}):
        assert dict(evaluate(Kept(samples, diagnostics=diagnostics), truth)) == dict(whole)


def test_moments_are_scored_as_a_normal():
    """The RMSE is that of the members; the spread that of the variance; the CRPS of a normal that is right 1/√π."""
    samples, truth = torch.randn(3, 8, 5, 2), torch.randn(3, 5, 2)
    kept = Kept(None, samples.mean(1), samples.var(1), {"innovation": torch.ones(3, 5)})
    table, members = evaluate(kept, truth), evaluate(samples, truth, batch=1)
    assert table["rmse"].value == pytest.approx(members["rmse"].value, rel=1e-6)
    assert table["spread"].value == pytest.approx(members["spread"].value / (9 / 8) ** 0.5, rel=1e-6)
    truth = torch.special.ndtri((torch.arange(40000, dtype=torch.float64) + 0.5) / 40000)[:, None]
    table = evaluate(Kept(None, torch.zeros_like(truth), torch.ones_like(truth)), truth)
    assert table["crps"].value == pytest.approx(torch.pi**-0.5, abs=1e-4)
    assert table["coverage90"].value == pytest.approx(0.9, abs=1e-4)


def test_what_is_no_posterior_or_kept_nothing_is_refused():
    truth = torch.zeros(5, 2)
    with pytest.raises(TypeError, match="takes a posterior or its members"):
        evaluate(np.zeros((4, 5, 2)), truth)
    with pytest.raises(ValueError, match='keep="members"'):
        evaluate(Kept(), truth)
    with pytest.raises(ValueError, match="ambiguous; pass `batch`"):
        evaluate(Kept(torch.zeros(4, 4, 5, 2)), torch.zeros(4, 5, 2))


def test_a_table_prints_itself_and_is_a_mapping():
    table = evaluate(torch.randn(3, 8, 5, 2), torch.randn(3, 5, 2), batch=1)
    lines = str(table).splitlines()
    assert "95 % interval" in lines[0] and len(lines) == len(table) + 2
    assert list(table) == list(table.to_dataframe().index) and float(table["rmse"]) == table["rmse"].value
    assert (
        table.to_dataframe().loc["crps", "value"] == table["crps"].value and "<table" in table._repr_html_()
    )
    with pytest.raises(KeyError, match="it has rmse"):
        table["rsme"]
    assert "95 %" not in str(evaluate(torch.randn(8, 5, 2), torch.randn(5, 2)))


def test_pooled_metrics_compare_all_values_of_a_replicate():
    """Members that are the truth in another order have the same distribution."""
    truth = torch.arange(12.0).reshape(6, 2)
    table = evaluate(truth.flip(0)[None].repeat(3, 1, 1), truth, metrics=["w1", "rmse"])
    assert table["w1"].value == pytest.approx(0, abs=1e-6) and table["rmse"].value > 1


def test_metrics_of_earlier_versions_are_read_under_their_new_names(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(
        "method,variable,level,part,metric,value,lower,upper,n\nEnKF,state,all,all,rmse_a,0.2,,,4\n"
    )
    with pytest.warns(FutureWarning, match="rmse_time_mean"):
        (row,) = read_metrics(path)
    assert row["metric"] == "rmse_time_mean" and row["value"] == 0.2


def test_sums_kept_by_earlier_versions_are_read():
    scores = Scores()
    statistics = window_statistics(torch.randn(4, 3, 1, 5), torch.randn(3, 1, 5), torch.ones(5))
    scores.add("m", "t", "2001-01-01", statistics)
    tensors, index = scores.pack()
    old = {"predictive_variance": "variance", "covered": "hits", "covered_fair": "hits_fair"}
    tensors = {k.replace(name, old.get(name, name)): x for k, x in tensors.items() for name in [k[2:]]}
    again = Scores()
    with pytest.warns(FutureWarning, match="covered"):
        again.unpack(tensors, index)
    assert [r["value"] for r in again.rows()] == [r["value"] for r in scores.rows()]
