"""Laws of what a test sees, and of a run from files to a report that is done once."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr

from slams.core.console import Console
from slams.core.settings import override
from slams.evaluation import Scores, window_statistics
from slams.evaluation.tables import read_metrics
from slams.pipeline import run as experiment
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.observe import columns, observe
from slams.pipeline.model import learn_codec
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.results.outcome import Outcome
from slams.pipeline.results.run_report import gains
from tests.pipeline.conftest import tiny_recipe, weather

GRID = Layout(
    ("level", "lat", "lon"),
    {
        "level": (500.0, 850.0),
        "lat": tuple(80.0 - 20 * i for i in range(9)),
        "lon": tuple(30.0 * i for i in range(12)),
    },
    "K",
    "t",
)
STATIONS = Layout(("station",), {"lat": (1.0, 2.0, 3.0, 4.0), "lon": (0.0,) * 4}, "degC", "s")
LAYOUTS = {"t": GRID, "quiet": GRID, "s": STATIONS, "o": GRID}
WINDOWS, L, DAYS = 6, 3, 40


def recipe(**experiment_settings) -> Recipe:
    modality = {"files": "a.nc", "variable": "a"}
    return from_tree(
        {
            "seed": 3,
            "data": {
                "modalities": {
                    "t": {**modality, "role": "state", "error_std": 0.5},
                    "quiet": {**modality, "role": "state"},
                    "s": {**modality, "role": "observation", "kind": "stations", "error_std": 0.5},
                    "o": {**modality, "role": "observation"},
                }
            },
            "experiment": {"share": 0.1, **experiment_settings},
        }
    )


@pytest.fixture
def fields(rng) -> dict[str, torch.Tensor]:
    """Anomalies of all days."""
    return {name: torch.randn(DAYS, *layout.shape, generator=rng) for name, layout in LAYOUTS.items()}


@pytest.fixture
def days() -> torch.Tensor:
    return 5 * torch.arange(WINDOWS)[:, None] + torch.arange(L)


STD = {name: torch.full((1, 1, 1), 2.0) for name in LAYOUTS}


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_columns_are_the_share_of_the_cells_and_repeat_with_the_seed(share):
    """Distinct, sorted, at least one."""
    chosen = columns(GRID, share, 0)
    assert len(chosen) == round(share * 108) and chosen.unique().tolist() == chosen.tolist()
    assert torch.equal(chosen, columns(GRID, share, 0))
    assert share == 1 or not torch.equal(chosen, columns(GRID, share, 1))
    assert len(columns(GRID, 1e-6, 0)) == 1


def test_columns_are_drawn_by_area():
    """One column of 2000 seeds falls on a row of latitudes with its share of the area: 5 standard errors."""
    rows = torch.tensor([int(columns(GRID, 1e-6, seed)) // 12 for seed in range(2000)])
    area = GRID.weights().sum(1) / GRID.weights().sum()
    error = (area * (1 - area) / 2000).sqrt()
    found = torch.bincount(rows, minlength=9) / 2000
    assert bool(((found - area).abs() < 5 * error).all())


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_of_nothing_or_more_than_all_is_refused(share):
    with pytest.raises(ValueError, match=f"experiment.share must be in .* got {share}"):
        columns(GRID, share, 0)


def test_a_state_is_seen_in_columns_and_an_observation_as_it_is(fields, days):
    """All levels of a column, the same columns on every day; without std nothing is added."""
    seen = observe(LAYOUTS, recipe(), fields, ["t", "s", "o"], days=days)
    assert list(seen) == ["t", "s", "o"] and seen["t"].shape == (WINDOWS, L, 2, 9, 12)
    here = torch.isfinite(seen["t"])
    expected = torch.zeros(108, dtype=torch.bool)
    expected[columns(GRID, 0.1, 3)] = True
    assert torch.equal(here, expected.reshape(9, 12).expand_as(here))
    assert torch.equal(seen["t"][here], fields["t"][days][here])
    assert torch.equal(seen["s"], fields["s"][days]) and torch.equal(seen["o"], fields["o"][days])


def test_noise_is_the_instruments_of_states_only(fields, days):
    """error_std / std is 0.25: of about 400 values, 5 standard errors; repeated by the recipe's seed."""
    names = ["t", "quiet", "s"]
    first, again = (observe(LAYOUTS, recipe(share=1.0), fields, names, days=days, std=STD) for _ in range(2))
    noise = first["t"] - fields["t"][days]
    assert abs(float(noise.std()) / 0.25 - 1) < 5 / (2 * noise.numel()) ** 0.5
    assert abs(float(noise.mean())) < 5 * 0.25 / noise.numel() ** 0.5
    assert torch.equal(first["t"], again["t"])
    assert torch.equal(first["quiet"], fields["quiet"][days])  # no error is stated
    assert torch.equal(first["s"], fields["s"][days])  # measured already


def test_the_noise_of_a_modality_does_not_depend_on_the_others(fields, days):
    alone = observe(LAYOUTS, recipe(), fields, ["t"], days=days, std=STD)["t"]
    together = observe(LAYOUTS, recipe(), fields, ["s", "quiet", "t"], days=days, std=STD)["t"]
    assert torch.equal(alone.nan_to_num(9.0), together.nan_to_num(9.0))


def test_shuffling_gives_every_window_the_observations_of_another_and_leaves_states(fields, days):
    plain, shuffled = (
        observe(LAYOUTS, recipe(), fields, ["t", "s", "o"], days=days, std=STD, shuffled=flag)
        for flag in (False, True)
    )
    assert torch.equal(plain["t"].nan_to_num(9.0), shuffled["t"].nan_to_num(9.0))
    for name in ("s", "o"):
        pairs = [
            [torch.equal(shuffled[name][w], plain[name][v]) for v in range(WINDOWS)] for w in range(WINDOWS)
        ]
        source = [row.index(True) for row in pairs]
        assert sorted(source) == list(range(WINDOWS))  # whole windows, each used once
        assert all(w != v for w, v in enumerate(source))


@pytest.mark.parametrize("shape", ["windows", "trajectory"])
def test_only_every_fourth_day_is_observed_from_the_first_on(fields, days, shape):
    """Of states, stations and gridded observations; the days that are observed are as without the setting."""
    days = torch.arange(11) if shape == "trajectory" else 3 * torch.arange(WINDOWS)[:, None] + torch.arange(9)
    names = ["t", "s", "o"]
    plain, seen = (
        observe(LAYOUTS, recipe(every=every), fields, names, days=days, std=STD) for every in (1, 4)
    )
    for name in names:
        time = days.ndim - 1
        length = days.shape[-1]
        kept = [k for k in range(length) if k % 4 == 0]
        left = [k for k in range(length) if k % 4]
        assert bool(torch.isnan(seen[name].index_select(time, torch.tensor(left))).all())
        one, other = (x[name].index_select(time, torch.tensor(kept)).nan_to_num(9.0) for x in (seen, plain))
        assert torch.equal(one, other)
    with pytest.raises(ValueError, match="experiment.every is a number of days, got 0"):
        recipe(every=0)


def test_withheld_stations_are_missing_and_the_others_untouched(fields, days):
    seen = observe(LAYOUTS, recipe(), fields, ["s"], days=days, withhold={"s": [0, 2], "o": [1]})["s"]
    assert bool(torch.isnan(seen[..., [0, 2]]).all())
    assert torch.equal(seen[..., [1, 3]], fields["s"][days][..., [1, 3]])
    assert bool(torch.isfinite(fields["s"]).all())  # of the caller


@pytest.mark.parametrize("station", [4, -1])
def test_a_station_that_is_not_there_is_told(station, fields, days):
    with pytest.raises(ValueError, match=rf"withhold\.s names station {station}, but there are 4 \(numbered"):
        observe(LAYOUTS, recipe(), fields, ["s"], days=days, withhold={"s": [station]})


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Recipe, Path]:
    """A run of the tiny world, from files to a report."""
    folder = tmp_path_factory.mktemp("done")
    weather(260).to_netcdf(folder / "archive.nc")
    tree = to_tree(tiny_recipe(folder / "archive.nc", folder / "store"))
    recipe = from_tree(override(tree, [f"out={folder / 'run'}", "experiment.withhold={}"]))
    return recipe, experiment.run(recipe, console=Console(quiet=True))


def test_a_run_leaves_what_the_documentation_names(done):
    _, out = done
    names = {"recipe.yaml", "codec.safetensors", "denoiser.safetensors", "history.json", "metrics.csv"}
    assert names | {"analysis.nc", "truth.nc", "report.html"} <= {p.name for p in out.iterdir()}
    assert read_metrics(out / "metrics.csv")
    assert set(json.loads((out / "history.json").read_text())) >= {"autoencoder", "prior"}
    assert not [p.name for p in out.iterdir() if "partial" in p.name or p.name.startswith("resume_")]


def test_the_truth_that_is_scored_is_what_was_read(done):
    """A dry day is exactly dry: a rounding error below zero is outside every interval of draws that end at zero."""
    recipe, out = done
    first, last = recipe.data.test
    with xr.open_dataset(recipe.data.modalities["rain"]["files"]) as archive:
        expected = archive["rain"].sel(time=slice(first, last)).values
    with xr.open_dataset(out / "truth.nc") as truth:
        found = truth["rain"].values.squeeze()
    assert (expected == 0).mean() > 0.2
    np.testing.assert_array_equal(found == 0, expected == 0)


@pytest.mark.parametrize("name", ["baselines.safetensors", "analysis.nc", "truth.nc", "metrics.csv"])
@pytest.mark.parametrize("kept", [0, 100])
def test_a_test_whose_file_is_gone_or_cut_short_is_done_again(name, kept, done, tmp_path, monkeypatch):
    """Nothing is trained again, and the scores are the same."""
    recipe, out = done
    copy = Path(shutil.copytree(out, tmp_path / "run"))
    (copy / name).write_bytes((out / name).read_bytes()[:kept])
    if not kept:
        (copy / name).unlink()
    monkeypatch.setattr(experiment, "write_summary", lambda *arguments: None)
    monkeypatch.setattr(learn_codec, "fit", None)
    experiment.run(from_tree(override(to_tree(recipe), [f"out={copy}"])), console=Console(quiet=True))
    assert (copy / name).stat().st_size == (out / name).stat().st_size
    assert (copy / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()


def test_a_run_that_is_done_is_reused_as_a_whole(done, monkeypatch):
    """Nothing is trained, analysed or written again."""
    recipe, out = done
    before = {p: p.read_bytes() for p in out.iterdir() if p.is_file() and p.name != "recipe.yaml"}

    def refused(*arguments, **settings):
        raise AssertionError("done already")

    for module, name in ((learn_codec, "fit"), (experiment, "test"), (experiment, "write_tree")):
        monkeypatch.setattr(module, name, refused)
    assert experiment.run(recipe, console=Console(quiet=True)) == out
    assert {p: p.read_bytes() for p in before} == before


def test_a_report_that_is_gone_is_written_again(done, tmp_path, monkeypatch):
    recipe, out = done
    copy = Path(shutil.copytree(out, tmp_path / "run"))
    (copy / "report.html").unlink()
    monkeypatch.setattr(learn_codec, "fit", None)
    experiment.run(from_tree(override(to_tree(recipe), [f"out={copy}"])), console=Console(quiet=True))
    assert (copy / "report.html").stat().st_size > 10_000


def test_one_member_leaves_spread_crps_and_coverage_empty(done, tmp_path):
    recipe, out = done
    copy = Path(shutil.copytree(out, tmp_path / "run"))
    one = from_tree(override(to_tree(recipe), [f"out={copy}", "assimilation.members=1"]))
    experiment.run(one, console=Console(quiet=True))
    found = {
        row["metric"]: row["value"]
        for row in read_metrics(copy / "metrics.csv")
        if row["method"] == "analysis"
    }
    assert np.isfinite(float(found["rmse"])) and (copy / "report.html").exists()
    assert not {"crps", "spread", "spread_skill", "coverage90"} & set(found)


def test_gains_are_over_the_best_analysis_of_the_smaller_set(done, monkeypatch):
    """Of a Gaussian that is better than the network, and of the network itself."""
    recipe, _ = done
    sets = {"few": ("stn",), "both": ("coarse", "stn")}
    scores = Scores()
    errors = {
        "analysis": 1.0,
        "analysis:few": 4.0,
        "gaussian:few": 2.0,
        "interpolation:few": 3.0,
        "ridge:few": 1.5,  # without a value in one cell
        "climatology": 0.5,
    }
    for method, error in errors.items():
        for window in range(4):
            members = torch.full((3, 1, 1, 2), error * (1 + 0.1 * window))
            truth = torch.tensor([[[0.0, torch.nan if method == "ridge:few" else 0.0]]])
            statistics = window_statistics(members, truth, torch.ones(1, 2))
            scores.add(method, "temp", str(window), statistics)
    settings = replace(recipe, experiment=replace(recipe.experiment, sets=sets, shuffled=False))
    model = SimpleNamespace(recipe=settings, states=["temp"])
    rows = gains(model, Outcome(scores, np.array([])))
    found = {row["analysis compared with"]: row["gain in RMSE"] for row in rows}
    assert found == {
        "ridge (on other cells)": "–",
        "gaussian (the best)": "+50.0%",
        "analysis": "+75.0%",
    }
    assert {row["comparison"] for row in rows} == {"both over few"}


def test_a_single_member_goes_through_the_whole_test(done, tmp_path):
    """It has an error, but no spread, CRPS or coverage; Gaussians have theirs; the prior is as large as the ensemble."""
    recipe, out = done
    copy = Path(shutil.copytree(out, tmp_path / "run"))
    settings = [f"out={copy}", "assimilation.members=1"]
    experiment.run(from_tree(override(to_tree(recipe), settings)), console=Console(quiet=True))
    rows = read_metrics(copy / "metrics.csv")
    found = {
        method: {row["metric"] for row in rows if row["method"] == method} for method in ("analysis", "prior")
    }
    assert found["analysis"] == found["prior"] == {"rmse", "bias", "w1"}
    gaussian = {row["metric"] for row in rows if row["method"] == "latent_gaussian"}
    assert gaussian >= {"rmse", "rmse_inf", "crps", "spread_skill", "coverage90_fair"}
    with xr.open_dataset(copy / "analysis.nc") as analysis:
        assert analysis.sizes["member"] == 1
    assert "Assimilation test" in (copy / "report.html").read_text()
    assert not [row for row in rows if " vs " in row["method"]]
