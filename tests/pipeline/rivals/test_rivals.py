"""Rivals in the results of a run on a small planet."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from slams.config import PRESSURE_LEVELS
from slams.core.console import Console
from slams.core.settings import build
from slams.core.stages import Stages
from slams.data.planet import preceding_days, simulate_archive
from slams.evaluation.tables import read_metrics
from slams.pipeline import run as running
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.inputs.observe import columns
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, RivalRecipe, from_tree, to_tree
from slams.pipeline.results import run_report
from slams.pipeline.results.scoring import Part, Test
from slams.pipeline.rivals import observed
from slams.pipeline.rivals import run as rivals_run
from slams.pipeline.rivals.observed import check_rivals, history
from slams.pipeline.rivals.planet import climatology
from slams.pipeline.rivals.tune import tune_rivals
from slams.systems import MoistQG

YEARS = (2001, 2003, 2005)


def small_planet() -> MoistQG:
    return MoistQG(truncation=5, latitudes=8, longitudes=16)


def no_figures(view, without):
    """They take seconds a page, and are tested elsewhere."""
    return {}


def preceding(year: int, count: int):
    return preceding_days(small_planet(), YEARS, year, count, levels=PRESSURE_LEVELS[::-1])


def recipe_of(folder: Path) -> Recipe:
    files = {"t": "era5_t_*.nc", "rain": "precip.*.nc", "olr": "olr.*.nc"}
    modalities = {
        "t": {"variable": "t", "role": "state", "units": "K", "error_std": 0.5},
        "rain": {"variable": "precip", "role": "observation", "units": "mm", "transform": "log1p"},
        "olr": {"variable": "olr", "role": "observation"},
    }
    return from_tree(
        {
            "name": "small",
            "out": str(folder / "run"),
            "planet": {"years": YEARS, "folder": str(folder)},
            "data": {
                "store": str(folder / "store"),
                "harmonics": 0,
                "train": ["2001-01-01", "2001-12-31"],
                "validation": ["2003-01-01", "2003-12-31"],
                "test": ["2005-01-01", "2005-12-31"],
                "modalities": {n: {"files": str(folder / files[n]), **m} for n, m in modalities.items()},
                "direct": {"t": ["t"]},
            },
            "latent": {"channels": 4, "hidden": 4, "fit": {"steps": 2, "every": 2}},
            "prior": {"patterns": 10, "hidden": [4], "blocks": 1, "fit": {"steps": 2, "every": 2}},
            "assimilation": {"members": 4, "steps": 2},
            "experiment": {
                "sets": {"columns": ["t"], "all": ["t", "rain", "olr"]},
                "share": 0.2,
                "windows": 2,
                "rival": {
                    "members": 10,
                    "spinup": 3,
                    "lag": 2,
                    "errors": {"t": 0.0, "rain": 0.5, "olr": 6.0},
                    "half_widths": {"t": 5000.0, "rain": 4000.0, "olr": 4000.0},
                },
            },
        }
    )


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Recipe:
    """A run without rivals, trained and tested in seconds."""
    folder = tmp_path_factory.mktemp("small")
    simulate_archive(small_planet(), folder, YEARS, days=45)
    recipe = recipe_of(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "_make_planet", lambda recipe, console: None)
        patch.setattr(run_report, "figures_of", no_figures)
        running.run(recipe, console=Console(quiet=True))
    return recipe


@pytest.fixture(autouse=True)
def short_climate(monkeypatch):
    """Five chains of ten days in place of a year."""

    def short(system, *, seed, progress):
        states = climatology(system, seed=seed, spinup=10, length=1)
        states = states.repeat(46, 1, 1, 1, 1)
        states[:, :, -1] = 8.0 * torch.arange(46)[:, None, None, None]
        return states

    monkeypatch.setattr(rivals_run, "climatology", short)


def with_rivals(recipe: Recipe, *names: str, **settings) -> Recipe:
    e = recipe.experiment
    return replace(recipe, experiment=replace(e, rivals=names, rival=replace(e.rival, **settings)))


def test_rows_join_the_table_and_the_report(small, monkeypatch):
    """Other rows stay as they are, nothing of the run is done again, and a second call only reads."""
    monkeypatch.setattr(running, "_make_planet", lambda recipe, console: None)
    monkeypatch.setattr(rivals_run, "MoistQG", small_planet)
    monkeypatch.setattr(run_report, "figures_of", no_figures)
    out = Path(small.out)
    before = {name: (out / name).stat().st_mtime_ns for name in ("analysis.nc", "denoiser.safetensors")}
    rows = read_metrics(out / "metrics.csv")
    recipe = with_rivals(small, "letkf", "letkf_half_resolution", sets=("all",))
    running.run(recipe, console=Console(quiet=True))
    after = read_metrics(out / "metrics.csv")
    names = {row["method"] for row in after} - {row["method"] for row in rows}
    assert names == {
        "letkf",
        "letkf_smoother",
        "letkf_half_resolution",
        "letkf_half_resolution_smoother",
    }
    assert [row for row in after if row["method"] not in names] == rows
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    page = (out / "report.html").read_text()
    assert "Rivals that know the equations" in page and "letkf_smoother" in page
    monkeypatch.setattr(rivals_run, "cycle", None)  # a call would fail
    running.run(recipe, console=Console(quiet=True))
    assert read_metrics(out / "metrics.csv") == after


@pytest.fixture(scope="module")
def trained(small):
    """Model and fields of the run, as a test of all of its days."""
    fields = load_fields(small)
    model = Model.load(Path(small.out))
    return model, fields


def test_of(trained, recipe: Recipe) -> Test:
    model, fields = trained
    return Test(Model(model.codec, model.prior, recipe), None, fields)


test_of.__test__ = False


def test_resumed_equals_uninterrupted(small, trained, tmp_path, monkeypatch):
    """Chunks of a long trajectory: a run that is killed in the second goes on to the same scores, bit for bit."""
    monkeypatch.setattr(rivals_run, "CHUNK", 15)
    recipe = with_rivals(small, "letkf", sets=("columns",))
    recipe = replace(recipe, experiment=replace(recipe.experiment, windows=0))
    test, console = test_of(trained, recipe), Console(quiet=True)

    def rivals(name: str) -> rivals_run.Rivals:
        return rivals_run.Rivals(test, Stages(tmp_path / name), small_planet())

    whole = rivals("whole")
    whole.run(["perfect"], console)
    calls, original = [], rivals_run.cycle

    def killed(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments, **keywords)

    monkeypatch.setattr(rivals_run, "cycle", killed)
    with pytest.raises(KeyboardInterrupt):
        rivals("killed").run(["perfect"], console)
    assert rivals("killed").finished()[0].keys() == []
    rivals("killed").run(["perfect"], console)
    assert len(calls) == 4  # three chunks, one of them twice
    one, other = (rivals(name).finished() for name in ("whole", "killed"))
    for x, y in zip(one[0].pack()[0].values(), other[0].pack()[0].values(), strict=True):
        assert torch.equal(x, y)
    assert one[0].keys() and [c.cycled for c in one[1]] == [c.cycled for c in other[1]]
    assert list(whole.after("perfect", "columns")) == ["2005-01-15", "2005-01-30", "2005-02-14"]


def test_history_has_the_errors_and_cells_of_the_test(small, trained):
    """Days of the archive, then those simulated again; the same date has the same noise in every history."""
    model, fields = trained
    row = int(fields.part(small.data.test)[0])
    short = history(model, fields, row + 5, preceding, ("t", "rain", "olr"), 3)
    assert short.first.astype(str) == "2005-01-03"
    assert torch.equal(short.values["olr"], fields.values["olr"][row + 2 : row + 5])
    seen = torch.isfinite(short.values["t"])
    cells = columns(model.layouts["t"], small.experiment.share, small.seed)
    assert torch.equal(seen[0, 0].flatten().nonzero().flatten(), cells)
    noise = (short.values["t"] - fields.values["t"][row + 2 : row + 5])[seen]
    assert abs(float(noise.std()) - 0.5) < 6 * 0.5 / (2 * len(noise)) ** 0.5  # one false alarm in 5e8
    long = history(model, fields, row + 5, preceding, ("t",), 8)
    assert long.first.astype(str) == "2004-12-29" and len(long.values["t"]) == 8
    assert torch.equal(long.values["t"][-3:].nan_to_num(), short.values["t"].nan_to_num())


def test_days_before_the_archive_lead_to_its_first(small, trained):
    """The chain simulated again reaches 1 January at the archive's temperature, exactly in the file's float32."""
    _, fields = trained
    row = int(fields.part(small.data.test)[0])
    temperature, rain, radiation, first = preceding(2005, 4)
    torch.testing.assert_close(first, fields.values["t"][row], rtol=0, atol=1e-3)
    assert temperature.shape[0] == rain.shape[0] == radiation.shape[0] == 4
    assert float((temperature[-1] - first).abs().max()) > 0.05
    with pytest.raises(ValueError, match="2007"):
        preceding(2007, 4)


def test_the_test_gives_rivals_its_own_observations(small, trained):
    """Values on the days of a window are those of the run's own method, in physical units."""
    recipe = with_rivals(small, "letkf")
    test = test_of(trained, recipe)
    seen = test.observed_in(Part("all", [], ("t", "olr"), main=True))
    before = history(test.model, test.fields, int(test.rows[1][0]), preceding, ("t", "olr"), 2)
    dates = test.dates[test.slices[1]]
    found = observed.instruments(test.model, before, seen[1], dates)
    truth = test.truth["t"][test.slices[1]]
    noise = (found["t"].values[2:] - truth)[torch.isfinite(seen[1]["t"])]
    assert abs(float(noise.std()) - 0.5) < 6 * 0.5 / (2 * len(noise)) ** 0.5
    torch.testing.assert_close(
        found["olr"].values[2:], test.fields.values["olr"][test.rows[1]], rtol=0, atol=1e-3
    )
    assert found["t"].std == pytest.approx(0.5) and found["olr"].std == pytest.approx(6.0)


def test_tuning_ends_with_the_best_trial(small, trained, tmp_path):
    """Its first trial are the settings of the recipe; an interrupted search goes on from its log."""
    model, fields = trained
    e = with_rivals(small, "letkf", sets=("columns",), trials=2, members=4).experiment
    found = tune_rivals(model, None, e, fields, tmp_path, Console(quiet=True), small_planet())
    trials = json.loads((tmp_path / "trials.json").read_text())["trials"]["letkf"]
    assert len(trials) == 2 and trials[0]["settings"]["rtps"] == e.rival.rtps
    chosen = min(trials, key=lambda trial: trial["score"])["settings"]
    assert found.rtps == pytest.approx(chosen["rtps"], rel=0.01)
    tuned = yaml.safe_load((tmp_path / "tuned.yaml").read_text())["experiment"]["rival"]
    assert build(RivalRecipe, tuned) == found
    again = tune_rivals(
        model, None, e, fields, tmp_path, Console(quiet=True), None
    )  # no trial is left to run
    assert again == found


def test_unknown_names_are_refused_with_the_nearest(small):
    tree = to_tree(small)
    tree["experiment"]["rivals"] = ["letkf_smother"]
    with pytest.raises(ValueError, match="did you mean experiment.rivals.letkf_smoother"):
        from_tree(tree)
    tree["experiment"]["rivals"] = ["letkf"]
    tree["experiment"]["rival"]["sets"] = ["colums"]
    with pytest.raises(ValueError, match="did you mean experiment.rival.sets.columns"):
        from_tree(tree)
    with pytest.raises(ValueError, match="members >= 2"):
        with_rivals(small, "letkf", members=1)


def test_recipes_that_rivals_cannot_run_are_refused(small):
    """Before any work: no planet, no setting for a modality, an operator in place of cells."""
    recipe = with_rivals(small, "letkf")
    check_rivals(recipe)
    with pytest.raises(ValueError, match="no planet.years"):
        check_rivals(replace(recipe, planet=replace(recipe.planet, years=())))
    with pytest.raises(ValueError, match="experiment.rival.errors has no value for 'olr'"):
        check_rivals(with_rivals(small, "letkf", errors={"t": 0.0, "rain": 0.5}))
    tree = to_tree(recipe)
    tree["assimilation"]["operators"] = {"t": {"kind": "stride", "step": 2}}
    with pytest.raises(ValueError, match="through an operator"):
        check_rivals(from_tree(tree))
    with pytest.raises(ValueError, match="planet's grid"):
        rivals_run.Rivals(test_of_grid(small), Stages(Path(small.out) / "none"), MoistQG())


def test_of_grid(small: Recipe) -> Test:
    return test_of((Model.load(Path(small.out)), load_fields(small)), small)


test_of_grid.__test__ = False
