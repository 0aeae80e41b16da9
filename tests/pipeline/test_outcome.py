"""A test killed between its sets goes on where it stopped, and ends with the same files."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.torch import load_file

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.console import Console
from slams.core.settings import override
from slams.core.stages import Stage, Stages
from slams.evaluation import Scores, window_statistics
from slams.evaluation.tables import read_metrics, scores_by_method, wide
from slams.pipeline import run as experiment
from slams.pipeline.baselines.file import FILE_NAME, load_baselines
from slams.pipeline.baselines.members import ClosedForm
from slams.pipeline.baselines.spread import calibrate_gaussians
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model.codec import anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.model.spread import WIDEST, spread_windows
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.results import scoring as score
from slams.pipeline.results.comparisons import comparison_table
from slams.pipeline.results.outcome import Outcome
from tests.pipeline.conftest import tiny_recipe, weather
from tests.pipeline.test_train import Killed, Trap

QUIET = Console(quiet=True)


@pytest.fixture(scope="module", autouse=True)
def _without_figures() -> Iterator[None]:
    """They take most of the time of a tiny run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "write_summary", lambda *arguments: None)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Recipe, Path]:
    """An undisturbed run of three sets, shuffled dates and withheld stations."""
    folder = tmp_path_factory.mktemp("outcome")
    weather(260).to_netcdf(folder / "archive.nc")
    settings = [
        "experiment.sets={coarse: [coarse], stn: [stn], both: [coarse, stn]}",
        "experiment.shuffled=true",
        f"out={folder / 'run'}",
    ]
    recipe = from_tree(override(to_tree(tiny_recipe(folder / "archive.nc", folder / "store")), settings))
    experiment.run(recipe, console=QUIET)
    return recipe, folder / "run"


@pytest.fixture
def analysed(monkeypatch) -> list[int]:
    """One entry for every set whose posterior was drawn."""
    calls: list[int] = []
    posterior = score.posterior

    def watched(*arguments, **settings):
        calls.append(1)
        return posterior(*arguments, **settings)

    monkeypatch.setattr(score, "posterior", watched)
    return calls


# units: 6 of the references, 12 of each of three sets (without the idle network drawn once), 6 shuffled, 6 withheld
@pytest.mark.parametrize(("kills", "left"), [([8], 5), ([20, 32], 3), ([50], 1)])
def test_a_killed_test_goes_on_with_the_next_set_and_ends_with_the_same_files(
    kills, left, done, tmp_path, analysed
):
    """Scores, members, what was observed and tuned: to the last bit; sets done before are not drawn again."""
    recipe, whole = done
    mine = from_tree(override(to_tree(recipe), [f"out={tmp_path / 'run'}"]))
    for after in kills:
        with pytest.raises(Killed):
            experiment.run(mine, console=Trap("assimilating test windows", after))
        assert list((tmp_path / "run").glob("resume_test_*"))
        analysed.clear()
    out = experiment.run(mine, console=QUIET)
    assert len(analysed) == left
    assert (out / "metrics.csv").read_bytes() == (whole / "metrics.csv").read_bytes()
    for name in ("analysis.nc", "truth.nc"):
        one, other = (experiment_values(folder / name) for folder in (out, whole))
        assert one.keys() == other.keys()
        for key, value in one.items():
            torch.testing.assert_close(value, other[key], rtol=0, atol=0, equal_nan=True)
    one, other = (load_file(folder / "baselines.safetensors") for folder in (out, whole))
    assert all(torch.equal(one[key].nan_to_num(), other[key].nan_to_num()) for key in one)
    assert not list(out.glob("resume_*"))


def test_without_a_network_that_corrects_nothing_the_analysis_is_the_same(done):
    """Equal noise for both: to the last digit, in every set. The training of so small a world leaves the network out."""
    _, out = done
    rows = read_metrics(out / "metrics.csv")
    for label in (":coarse", ":stn", ""):
        for variable in ("temp", "rain"):
            one, other = (
                [repr({**row, "method": ""}) for row in rows
                 if (row["method"], row["variable"], row["part"]) == (f"{name}{label}", variable, "all")]
                for name in ("analysis", "no_network")
            )  # fmt: skip
            assert one == other and len(one) > 5


def test_every_set_has_the_latent_gaussian(done):
    """Its error is near the analysis, whose prior and errors it shares: their means differ by sampling alone."""
    _, out = done
    rows = read_metrics(out / "metrics.csv")
    for label in (":coarse", ":stn", ":shuffled dates", ""):
        value = scores_by_method(rows, "rmse_inf", variable="temp", part="all")
        assert value[f"latent_gaussian{label}"][0] == pytest.approx(value[f"analysis{label}"][0], rel=0.15)


def test_the_analysis_is_compared_in_every_set(done):
    """As in metrics.csv: the change is that of the scores; without a correction the network is worth nothing."""
    _, out = done
    rows = read_metrics(out / "metrics.csv")
    for label in (":coarse", ":stn", ""):
        for other in ("no_network", "latent_gaussian", "gaussian"):
            for metric in ("rmse_inf", "crps"):
                own = scores_by_method(rows, metric, variable="temp", part="all", level="all")
                (row,) = [
                    row
                    for row in rows
                    if (row["method"], row["variable"], row["metric"])
                    == (f"analysis vs {other}{label}", "temp", f"{metric}_change")
                ]
                expected = own[f"analysis{label}"][0] / own[f"{other}{label}"][0] - 1
                assert row["value"] == pytest.approx(expected, abs=1e-5)
                assert row["n"] > 1 and row["lower"] <= row["value"] <= row["upper"]
                assert other != "no_network" or row["lower"] == row["upper"] == 0.0
    table = comparison_table(rows, "temp", "both")
    assert len(table) == 3 * 2  # other methods, scores
    (line,) = [x for x in table if (x["compared with"], x["change of"]) == ("gaussian", "crps")]
    (row,) = [
        x
        for x in rows
        if (x["method"], x["variable"], x["metric"]) == ("analysis vs gaussian:stn", "temp", "crps_change")
    ]
    assert line["stn"].startswith(f"{100 * row['value']:+.1f} (") and {"coarse", "both"} <= line.keys()
    assert not [line for line in wide(rows, variable="temp") if " vs " in line["method"]]


def test_the_spread_of_the_gaussians_is_that_of_their_error_on_validation_days(done):
    """Predicted and actual squared error of a Gaussian that was too narrow agree, unless the factor is at a bound."""
    recipe, out = done
    model, fields = Model.load(out), load_fields(recipe)
    fitted = load_baselines(model, out / FILE_NAME)
    assert fitted.spreads.keys() == {"gaussian", "latent_gaussian"}
    assert all(each.keys() == recipe.experiment.sets.keys() for each in fitted.spreads.values())
    fitted.gaussian.rest *= 0.5
    calibrate_gaussians(model, fitted, fields)
    validation = anomalies(model.codec, fields, fields.part(recipe.data.validation))
    rows = spread_windows(torch.arange(len(validation["temp"]) - 2), 3)
    inside = 0
    for label, names in recipe.experiment.sets.items():
        seen = observe(model.layouts, recipe, validation, names, days=rows)
        moments = ClosedForm(model, fitted).moments(seen, composed=False)
        predicted = actual = 0.0
        for name, (mean, std) in moments.items():
            area, error = model.layouts[name].weights(), validation[name][rows] - mean
            actual += float((area * error.square()).nansum())
            predicted += float((area * std.square() * torch.isfinite(error)).nansum())
        if 1.0 < fitted.spreads["gaussian"][label] < WIDEST:
            inside += 1
            assert predicted == pytest.approx(actual, rel=1e-3)
    assert inside


def experiment_values(path: Path) -> dict[str, torch.Tensor]:
    """All numbers of an analysis."""
    with xr.open_datatree(path) as tree:
        return {
            f"{node.path}/{name}": torch.from_numpy(x.values.astype(float))
            for node in tree.subtree
            for name, x in node.data_vars.items()
            if x.dtype.kind in "fib"
        }


def test_a_part_is_kept_whole_and_that_of_another_test_is_not_taken(tmp_path):
    """The key stands for the weights, the fields and every setting of the test."""
    dates = np.array(["2001-01-01", "2001-01-02"], dtype="datetime64[D]")
    draw = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(0))
    found = Outcome(Scores(), dates, members={"t": draw})
    found.scores.add(
        "analysis", "t", "2001-01-01", window_statistics(draw, draw[0], torch.ones(3)), levels=(1, 2, 3.5)
    )
    found.interpolators["both", "t"] = AnomalyInterp(300.0, {"stn": 0.1}, 1.5)
    stages = Stages(tmp_path)
    stages.save(Stage("resume_test_0", "a"), *found.pack())
    kept = stages.load(Stage("resume_test_0", "a"))
    assert kept is not None
    again = Outcome(Scores(), dates)
    again.unpack(*kept)
    assert torch.equal(again.members["t"], draw) and again.interpolators == found.interpolators
    assert repr(again.scores.rows()) == repr(found.scores.rows())
    assert again.scores.keys() == found.scores.keys()
    assert stages.load(Stage("resume_test_0", "b")) is None
