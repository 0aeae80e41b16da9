"""Errors from seasons left out: planted biases of years, coverage of new years, resumed fits, too few seasons."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.settings import override
from slams.evaluation.tables import read_metrics
from slams.pipeline.baselines.members import LatentGaussian
from slams.pipeline.inputs.fields import Fields, load_fields
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.inputs.observe import observe
from slams.pipeline.left_out.folds import FOLDER, fit_folds, seasons, without
from slams.pipeline.left_out.residuals import pool
from slams.pipeline.model.bias import bias_sizes, without_bias
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.exact import latent_gaussian
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.run import run
from slams.pipeline.train import stages_of, train
from tests.pipeline.conftest import tiny_recipe, weather
from tests.pipeline.test_train import Killed, Trap, assert_same, content

QUIET = Console(quiet=True)
DAYS, TRAINED, FRESH = 50, 8, 12
GRID = Layout(("lat", "lon"), {"lat": (40.0, 42.0), "lon": (0.0, 2.0)}, "K", "grid")
STATIONS = Layout(("station",), {"lat": (40.0, 41.0), "lon": (0.0, 1.0)}, "K", "stn")


def with_settings(recipe: Recipe, *settings: str) -> Recipe:
    return from_tree(override(to_tree(recipe), settings))


def winters(count: int, days: int = DAYS) -> np.ndarray:
    first = np.arange(count) * 365
    return np.datetime64("1950-12-01") + (first[:, None] + np.arange(days)).flatten()


def test_the_size_of_a_bias_is_without_the_sampling_of_its_mean(rng):
    """Five days of error variance 1 leave .2 in the mean of a year, which is the size of the bias itself. Of 300 years
    the variance of .4 is found with a standard deviation of .033, of which 4 are allowed."""
    years, days = 300, 5
    state = torch.randn(years * days, 1, 2, 2, generator=rng)
    bias = 0.2**0.5 * torch.randn(years, 1, 1, generator=rng).repeat_interleave(days, 0)
    noise = torch.randn(years * days, 1, 2, generator=rng)
    train = {"state": state, "stn": state.mean((2, 3))[..., None] + bias + noise}
    layouts = {"state": GRID, "stn": STATIONS}
    raw, found = (
        bias_sizes(layouts, ["state"], train, winters(years, days), 3, fresh=fresh)["stn"]
        for fresh in (False, True)
    )
    assert raw["shared"] + raw["own"] == pytest.approx(0.4, abs=0.13)
    assert found["shared"] + found["own"] == pytest.approx(0.2, abs=0.13)
    assert found["shared"] + found["own"] < raw["shared"] + raw["own"] - 0.1


def test_the_mean_of_a_year_is_taken_out_in_the_directions_of_the_bias(rng):
    """Of a grid the mean of all cells, of stations that of each; patterns that the bias lacks stay."""
    x = torch.randn(40, 1, 2, 2, generator=rng)
    fixed = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    gone = without_bias(x - x.mean() + 3.0 + fixed, GRID)
    torch.testing.assert_close(gone, without_bias(x - x.mean(), GRID) + fixed)
    stations = torch.randn(40, 1, 2, generator=rng)
    stations[::3, :, 0] = torch.nan
    gone = without_bias(stations + torch.tensor([5.0, -2.0]), STATIONS)
    assert torch.nanmean(gone, 0).abs().max() < 1e-5


def seasonal(years: int, planted: float) -> xr.Dataset:
    """The weather of conftest in winters, with a bias of each modality in each year: standard deviation `planted`."""
    rng = np.random.default_rng(7)
    whole = weather(years * DAYS)
    for name in ("coarse", "stn"):
        bias = planted * rng.standard_normal(years).repeat(DAYS)
        extra = bias.reshape(-1, *[1] * (whole[name].ndim - 1)).astype("f4")
        whole[name].values[:] = whole[name].values + extra
    dates = np.datetime64("2001-12-01") + (np.arange(years)[:, None] * 365 + np.arange(DAYS)).flatten()
    return whole.assign_coords(time=dates.astype("datetime64[ns]"))


def recipe_of(folder: Path, planted: float) -> Recipe:
    years = TRAINED + 1 + FRESH
    archive = folder / "winters.nc"
    seasonal(years, planted).to_netcdf(archive)
    tree = to_tree(tiny_recipe(archive, folder / "store"))
    day = [np.datetime64("2001-12-01") + 365 * year for year in range(years + 1)]
    tree["data"] |= {
        "train": [str(day[0]), str(day[TRAINED] - 1)],
        "validation": [str(day[TRAINED]), str(day[TRAINED + 1] - 1)],
        "test": [str(day[TRAINED + 1]), str(day[years] - 1)],
    }
    tree["experiment"] |= {"sets": {"coarse": ["coarse"], "both": ["coarse", "stn"]}, "withhold": {}}
    return from_tree(override(tree, ["prior.leave_out=true"]))


@pytest.fixture(scope="module")
def left_out(tmp_path_factory) -> tuple[Recipe, Fields, Path]:
    """A run that left out each of eight winters, with biases of 2 K, in a world of deviations of 3 K."""
    folder = tmp_path_factory.mktemp("left_out")
    recipe = recipe_of(folder, 2.0)
    fields = load_fields(recipe)
    (folder / "run").mkdir()
    train(recipe, fields, folder / "run", QUIET)
    return recipe, fields, folder / "run"


def coverage(model: Model, fields: Fields, label: str) -> float:
    """Share of true temperatures of the test's winters within the 90 % interval of the exact closed form."""
    recipe, inside = model.recipe, []
    index = fields.part(recipe.data.test)
    for rows in np.split(index, FRESH):
        values = anomalies(model.codec, fields, rows)
        names = recipe.experiment.sets[label]
        seen = observe(model.layouts, recipe, values, names, days=torch.arange(len(rows)))
        method = LatentGaussian.__new__(LatentGaussian)
        method.model, (method.closed, method.present) = model, latent_gaussian(model)
        method.operators, method.errors = model.jacobians(), model.errors()
        mean, std = method.exact(seen, composed=True)
        factor = model.prior.inflation[label]
        std = (factor**2 * (std.square() - method.closed.rest) + method.closed.rest).sqrt()
        truth = torch.cat([values[n].flatten(1) for n in model.states], 1)[:, method.present]
        known = int(model.codec.statistics["temp"].present.sum())
        inside.append(((truth - mean).abs() <= 1.645 * std)[:, :known].float())
    return float(torch.cat(inside).mean())


def test_planted_biases_are_in_their_size_and_not_counted_twice(left_out):
    """Eight draws of a variance have a relative deviation of 50 %: a factor of 3 is allowed. The error of the grid has
    the planted noise of .5 K and what the decoders don't resolve: without the bias's 4 K^2, which would be most of it."""
    recipe, _, out = left_out
    model = Model.load(out)
    std = float(model.codec.statistics["coarse"].std.mean())
    size = model.prior.biases["coarse"]
    found = (size["shared"] + size["own"]) * std**2
    assert 4 / 3 < found < 4 * 3
    assert float(model.prior.errors["coarse"].diagonal().mean()) * std**2 < 2.0


def test_new_years_are_covered_as_the_left_out_ones(left_out, tmp_path):
    """Twelve new winters with biases of their own, grid alone: between .8 and .97; calibrated on the one validation
    winter, and with no bias modelled, it is lower by more than .1."""
    recipe, fields, out = left_out
    found = coverage(Model.load(out), fields, "coarse")
    plain = with_settings(recipe, "prior.leave_out=false", "assimilation.bias=false")
    train(plain, fields, tmp_path, QUIET)
    before = coverage(Model.load(tmp_path), fields, "coarse")
    assert 0.8 < found < 0.97 and before < found - 0.1


def test_folds_are_of_the_other_seasons_alone(left_out):
    """Their climate too: a season that was never seen may change as it likes."""
    recipe, fields, out = left_out
    rows = seasons(recipe, fields)[2]
    rest = without(fields, rows)
    assert len(rest.dates) == len(fields.dates) - DAYS and not rest.statistics
    assert not np.isin(fields.dates[rows], rest.dates).any()
    folds = fit_folds(
        recipe, fields, out, stages_of(recipe, fields, out)["codec"].inputs, QUIET, torch.device("cpu")
    )
    assert [fold.name for fold in folds] == [str(fields.dates[each[0]]) for each in seasons(recipe, fields)]
    # the residuals of seasons pooled are the mean of their own, of which each counts by its days
    fold = folds[0]
    pool(fold.model.prior, [each.residuals for each in folds])
    pooled = fold.model.prior.errors["temp"].clone()
    parts = []
    for each in folds:
        pool(fold.model.prior, [each.residuals])
        parts.append(fold.model.prior.errors["temp"])
    torch.testing.assert_close(pooled, torch.stack(parts).mean(0), rtol=1e-3, atol=1e-5)


def test_killed_in_a_fold_it_resumes_to_the_same(left_out, tmp_path):
    recipe, fields, out = left_out
    with pytest.raises(Killed):
        train(recipe, fields, tmp_path, Trap("training the autoencoder", 45))
    done = json.loads((tmp_path / FOLDER / ".stages.json").read_text())
    assert 0 < len(done) < TRAINED
    train(recipe, fields, tmp_path, QUIET)
    assert_same(out, tmp_path)
    for name in done:
        season = name.removeprefix("fold ")
        for file in ("codec.safetensors", "denoiser.safetensors"):
            assert content(out / FOLDER / season / file) == content(tmp_path / FOLDER / season / file)


def test_too_few_seasons_name_the_remedy(left_out):
    recipe, fields, _ = left_out
    short = replace(recipe, data=replace(recipe.data, train=("2001-12-01", "2004-03-01")))
    with pytest.raises(
        InvalidValueError, match=r"data.train has 3; make data.train longer, or set prior.leave_out"
    ):
        seasons(short, fields)


@pytest.mark.parametrize(
    ("setting", "remedy"),
    [
        ("experiment.leave_out=true", "prior.leave_out: true"),
        ("latent.trained=other", "latent.trained empty"),
    ],
)
def test_settings_that_contradict_are_refused(setting, remedy, tmp_path):
    recipe = tiny_recipe(tmp_path / "none.nc", tmp_path)
    own = [] if setting.startswith("experiment") else ["prior.leave_out=true"]
    with pytest.raises(ValueError, match=remedy):
        with_settings(recipe, setting, *own)


def test_every_season_is_tested_by_the_fit_without_it(left_out, tmp_path):
    """Coverage of the left-out winters near .9, mean errors inside most intervals (5 to 8 of 8), and the same rows of a
    run that was started again."""
    recipe, _, out = left_out
    shutil.copytree(out, tmp_path / "run")
    whole = with_settings(
        recipe,
        "experiment.leave_out=true",
        f"out={tmp_path / 'run'}",
        "assimilation.steps=2",
        "experiment.windows=0",
    )
    run(whole, console=QUIET)
    rows = read_metrics(tmp_path / "run" / "metrics.csv")
    own = [row for row in rows if row["method"] == "left_out:both" and row["variable"] == "temp"]
    found = {row["metric"]: row["value"] for row in own if row["part"] == "all"}
    assert 0.8 < found["coverage90_fair"] < 0.98 and 5 <= found["mean_errors_inside"] <= 8
    assert len({row["part"] for row in own}) == TRAINED + 1
    (tmp_path / "run" / FOLDER / "season_2003-12-01.safetensors").unlink()
    run(whole, console=QUIET)
    assert str(read_metrics(tmp_path / "run" / "metrics.csv")) == str(rows)  # NaN equals itself as text
