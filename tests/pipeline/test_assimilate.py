"""`slams assimilate`: a moved run on files that training never saw."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from slams.core.console import Console
from slams.core.errors import DataWarning
from slams.pipeline.assimilate import assimilate
from slams.pipeline.baselines.file import FILE_NAME, load_baselines, save_baselines
from slams.pipeline.baselines.members import ClosedForm
from slams.pipeline.evaluate import scored
from slams.pipeline.inputs.segments import segments_of
from slams.pipeline.model.model import Model

QUIET = Console(quiet=True)
NAMES = ["a", "b", "c", "d", "e"]


@pytest.fixture(scope="module")
def named(world, tmp_path_factory):
    """The run as if its stations had had names, and the new file with them."""
    folder = tmp_path_factory.mktemp("named")
    model = Model.load(world.run)
    model.codec.layouts["stn"] = replace(model.layouts["stn"], names=tuple(NAMES))
    model.save(folder)
    with xr.open_dataset(world.new) as dataset:
        dataset.load().assign_coords(station=NAMES).to_netcdf(folder / "new.nc")
    return replace(world, run=folder, new=folder / "new.nc")


def root(path: Path) -> xr.Dataset:
    """The states of an analysis, in memory."""
    engine = {"engine": "zarr", "consolidated": False} if path.suffix == ".zarr" else {}
    with xr.open_datatree(path, **engine) as tree:
        return tree.to_dataset().load()


def group(path: Path, name: str) -> xr.Dataset:
    """One group of an analysis, in memory."""
    with xr.open_dataset(path, group=name) as dataset:
        return dataset.load()


def changed(world, path: Path, change) -> Path:
    """A copy of the new file with something changed."""
    with xr.open_dataset(world.new) as dataset:
        change(dataset.load()).to_netcdf(path)
    return path


def test_moved_run_without_its_training_data_analyses_every_day(world, tmp_path):
    """Layout of the file, missing where training was missing, truth inside the ensemble's reach."""
    path = assimilate(world.run, [str(world.new)], tmp_path / "a.nc", console=QUIET)
    analysis, truth = root(path), xr.open_dataset(world.new)
    assert analysis["temp"].dims == ("time", "member", "lat", "lon")
    assert analysis["temp"].dtype == np.float32 and analysis["temp"].attrs["units"] == "degC"
    np.testing.assert_array_equal(analysis.time.values, truth.time.values)
    assert analysis["temp"][..., 0, 0].isnull().all() and analysis["temp"][..., 1:, :].notnull().all()
    error = analysis["temp"].mean("member").values - truth["temp"].values
    spread = (truth["temp"] - truth["temp"].mean("time")).std().item()
    assert np.sqrt(np.nanmean(error**2)) < 0.4 * spread
    assert (analysis["rain"] >= 0).all()
    stations = group(path, "stn")
    assert stations["value"].dims == ("time", "member", "station") and stations["observed"].dtype == bool
    np.testing.assert_array_equal(stations["observed"].values, truth["stn"].notnull().values)
    np.testing.assert_allclose(stations["observation"].values, truth["stn"].values, atol=1e-4)
    assert {"recipe", "versions", "seed", "sha256", "observations"} <= set(analysis.attrs)


def test_seed_alone_sets_the_draws(world, tmp_path):
    """Same seed: the same file to the last bit; another: other members."""
    first, again, other = (
        root(
            assimilate(world.run, [str(world.new)], tmp_path / f"{i}.nc", seed=seed, members=3, console=QUIET)
        )
        for i, seed in enumerate((4, 4, 5))
    )
    xr.testing.assert_identical(first, again)
    assert not first["temp"].equals(other["temp"])


def test_truth_in_the_file_is_never_read(world, tmp_path):
    """Permuting the states in time changes nothing."""
    rng = np.random.default_rng(1)

    def permute(dataset):
        for name in ("temp", "rain"):
            dataset[name] = (dataset[name].dims, rng.permutation(dataset[name].values), dataset[name].attrs)
        return dataset

    permuted = changed(world, tmp_path / "permuted.nc", permute)
    honest, blind = (
        assimilate(
            world.run, [str(f)], tmp_path / f"{f.stem}_out.nc", members=2, baselines=True, console=QUIET
        )
        for f in (world.new, permuted)
    )
    for name in ("temp", "rain"):
        np.testing.assert_array_equal(root(honest)[name].values, root(blind)[name].values)
    gaussian = [group(p, "baseline_gaussian")["temp"].values for p in (honest, blind)]
    np.testing.assert_array_equal(*gaussian)


def test_named_state_is_observed(world, tmp_path):
    """NAME=FILE reads a state; then the analysis is nearer to it and a reconstruction is written."""
    path = assimilate(
        world.run, [str(world.new), f"temp={world.new}"], tmp_path / "a.nc", baselines=True, console=QUIET
    )
    blind = assimilate(world.run, [str(world.new)], tmp_path / "b.nc", console=QUIET)
    truth = xr.open_dataset(world.new)["temp"].values
    near, far = (np.nanmean((root(p)["temp"].mean("member").values - truth) ** 2) for p in (path, blind))
    assert near < far
    again = group(path, "reconstruction")["temp"]
    assert again.shape[1] == 1 and np.nanmean((again.values[:, 0] - truth) ** 2) < 0.1 * np.nanvar(truth)


def test_withheld_stations_have_no_influence(world, tmp_path):
    """Nonsense at a withheld station gives the same analysis; at another it doesn't."""

    def spoil(dataset):
        dataset["stn"][:, 1] += 30
        return dataset

    spoilt = changed(world, tmp_path / "spoilt.nc", spoil)

    def analysis(file: Path, *settings: str) -> np.ndarray:
        out = tmp_path / f"{file.stem}{len(settings)}_out.nc"
        return root(assimilate(world.run, [str(file)], out, members=2, overrides=settings, console=QUIET))[
            "temp"
        ].values

    np.testing.assert_array_equal(
        analysis(world.new, "withhold.stn=[1]"), analysis(spoilt, "withhold.stn=[1]")
    )
    assert not np.array_equal(analysis(world.new), analysis(spoilt), equal_nan=True)
    assert not group(tmp_path / "new1_out.nc", "stn")["observed"][:, 1].any()


def test_gaps_and_lone_days_are_analysed_as_if_alone(world, tmp_path):
    """Every day is there, and the run before the gap doesn't feel what follows."""
    days = [0, 1, 2, 3, 10, 20, 21]
    gappy = changed(world, tmp_path / "gappy.nc", lambda d: d.isel(time=days))
    start = changed(world, tmp_path / "start.nc", lambda d: d.isel(time=days[:4]))
    whole, part = (
        root(assimilate(world.run, [str(f)], tmp_path / f"{f.stem}_out.nc", members=400, console=QUIET))[
            "temp"
        ]
        for f in (gappy, start)
    )
    assert whole.sizes["time"] == 7 and bool(whole[:, :, 1:].notnull().all())
    # means of two sets of 400 draws: six standard errors of their difference
    difference = (whole[:4].mean("member") - part.mean("member")).values
    bound = 6 * np.sqrt(2 / 400) * whole[:4].std("member").values
    assert (np.abs(difference) <= bound)[..., 1:, :].all()


def test_long_runs_in_pieces_cover_every_day_once():
    """Kept days are a partition, margins never leave the run, no segment crosses a gap."""
    dates = np.datetime64("2000-01-01") + np.r_[0:95, 100:101, 110:112]
    segments = segments_of(dates, 3, 30)
    assert torch.cat([p.days for p in segments]).tolist() == list(range(98))
    for segment in segments:
        real = segment.rows[segment.rows >= 0]
        assert 3 <= len(segment.rows) <= 30
        assert (np.diff(dates[real.numpy()]).astype(int) == 1).all()


@pytest.mark.parametrize("names", [["stn"], ["coarse"]])
def test_subset_of_modalities_equals_a_file_with_only_these(world, tmp_path, names):
    """--modalities and an absent variable are the same thing."""
    only = changed(world, tmp_path / "only.nc", lambda d: d[names])
    chosen = assimilate(
        world.run, [str(world.new)], tmp_path / "a.nc", members=2, modalities=names, console=QUIET
    )
    absent = assimilate(world.run, [str(only)], tmp_path / "b.nc", members=2, console=QUIET)
    np.testing.assert_array_equal(root(chosen)["temp"].values, root(absent)["temp"].values)


def test_zarr_holds_what_netcdf_holds(world, tmp_path):
    one, two = (
        assimilate(
            world.run,
            [str(world.new)],
            tmp_path / name,
            members=2,
            dates="2001-07-25..2001-08-01",
            console=QUIET,
        )
        for name in ("a.nc", "a.zarr")
    )
    assert root(one).sizes["time"] == 8
    xr.testing.assert_equal(root(one), root(two))


def test_baselines_survive_their_file(world, tmp_path):
    """Saved and loaded, the closed form gives the same numbers; groups have the layout of the root."""
    model = Model.load(world.run)
    baselines = load_baselines(model, world.run / FILE_NAME)
    save_baselines(baselines, tmp_path / FILE_NAME)
    again = load_baselines(model, tmp_path / FILE_NAME)
    seen = {"stn": torch.randn(5, 1, 5, generator=torch.Generator().manual_seed(0))}
    for one, two in zip(
        ClosedForm(model, baselines).moments(seen)["temp"],
        ClosedForm(model, again).moments(seen)["temp"],
        strict=True,
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0, equal_nan=True)
    path = assimilate(world.run, [str(world.new)], tmp_path / "a.nc", baselines=True, console=QUIET)
    for name in ("climatology", "prior", "gaussian", "interpolation"):
        held = group(path, f"baseline_{name}")["temp"]
        assert held.shape == root(path)["temp"].shape and bool(held[..., 1:, :].notnull().all())


def test_failed_write_leaves_the_old_analysis(world, tmp_path, monkeypatch):
    """Neither half a file nor a leftover."""
    path = assimilate(world.run, [str(world.new)], tmp_path / "a.nc", members=2, console=QUIET)
    before = path.read_bytes()

    def broken(self, target, *args, **kwargs):
        Path(target).write_bytes(b"half")
        raise RuntimeError("killed")

    monkeypatch.setattr(xr.DataTree, "to_netcdf", broken)
    with pytest.raises(RuntimeError, match="killed"):
        assimilate(world.run, [str(world.new)], path, members=2, seed=1, console=QUIET)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (["nothing.nc"], {}, "no file matches"),
        (["NEW"], {"members": 0}, "at least one member"),
        (["NEW"], {"overrides": ["assimilation.members=0"]}, "at least one member"),
        (["NEW"], {"overrides": ["assimilation.steps=0"]}, "one step"),
        (["NEW"], {"overrides": ["assimilation.stesp=3"]}, "did you mean assimilation.steps"),
        (["NEW"], {"overrides": ["latent.channels=3"]}, "is not adjustable in a trained run"),
        (["NEW"], {"overrides": ["withhold.stn=[7]"]}, "station 7, but there are 5"),
        (["NEW"], {"overrides": ["withhold.coarse=[0]"]}, "only stations"),
        (["NEW"], {"modalities": ["radar"]}, "no modality"),
        (["NEW"], {"dates": "1990-01-01..1990-02-01"}, "no day from 1990-01-01"),
        (["NEW"], {"dates": "yesterday"}, "dates look like"),
        (["stm=NEW"], {}, "did you mean stn"),
        (["stn=EMPTY"], {}, "no variable stn"),
        (["EMPTY"], {}, "holds none of coarse, stn"),
        (["SHIFTED"], {}, "doesn't lie on the grid"),
    ],
)
def test_wrong_input_is_told(world, tmp_path, arguments, settings, message):
    changed(world, tmp_path / "empty.nc", lambda d: d[["rain"]])
    changed(world, tmp_path / "shifted.nc", lambda d: d[["coarse"]].assign_coords(lat=d.lat + 0.5))
    files = {"NEW": world.new, "EMPTY": tmp_path / "empty.nc", "SHIFTED": tmp_path / "shifted.nc"}
    for key, file in files.items():
        arguments = [a.replace(key, str(file)) for a in arguments]
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        assimilate(world.run, arguments, tmp_path / "a.nc", console=QUIET, **settings)
    assert not (tmp_path / "a.nc").exists()


def test_folder_without_a_run_is_told(world, tmp_path):
    with pytest.raises(FileNotFoundError, match="no trained run"):
        assimilate(tmp_path, [str(world.new)], tmp_path / "a.nc", console=QUIET)


def in_unit(dataset, name, unit, scale=1.0, offset=0.0):
    """A variable in another unit; NaN stays missing."""
    values = (dataset[name].values.astype("f8") * scale + offset).astype("f4")
    dataset[name] = (dataset[name].dims, values, {"units": unit})
    return dataset


def test_observations_in_another_unit_give_the_same_analysis(world, tmp_path):
    """Kelvin and Fahrenheit for a training in Celsius; float32 at 300 K keeps 3e-5 K."""
    before = root(assimilate(world.run, [str(world.new)], tmp_path / "a.nc", members=4, console=QUIET))
    other = changed(
        world,
        tmp_path / "other.nc",
        lambda d: in_unit(in_unit(d, "coarse", "Kelvin", 1.0, 273.15), "stn", "degrees F", 1.8, 32.0),
    )
    after = root(assimilate(world.run, [str(other)], tmp_path / "b.nc", members=4, console=QUIET))
    np.testing.assert_allclose(after["temp"].values, before["temp"].values, atol=2e-3)
    wrong = changed(world, tmp_path / "wrong.nc", lambda d: in_unit(d, "coarse", "hPa"))
    with pytest.raises(ValueError, match="'coarse'.*in 'hPa', from which 'degC' can't be reached"):
        assimilate(world.run, [str(wrong)], tmp_path / "c.nc", members=2, console=QUIET)


def test_stations_are_known_by_name_and_place_and_any_subset_will_do(named, tmp_path):
    """Shuffled, re-surveyed by 0.01 degrees, joined by one without a place: the same analysis; one absent is missing."""
    before = assimilate(
        named.run, [str(named.new)], tmp_path / "a.nc", members=4, modalities=["stn"], console=QUIET
    )
    assert group(before, "stn")["station"].values.tolist() == NAMES
    with xr.open_dataset(named.new) as file:
        whole = file.load()[["stn"]]
    order = [4, 2, 0, 3, 1]
    other = whole.isel(station=order)
    other = other.assign_coords(stn_lat=other.stn_lat + 0.01)
    nowhere = other.isel(station=[0]).assign_coords(
        station=["X"], stn_lat=("station", [np.nan]), stn_lon=("station", [np.nan])
    )
    joined = xr.concat([nowhere, other], "station")
    joined.to_netcdf(tmp_path / "other.nc")
    with pytest.warns(DataWarning) as warned:
        after = assimilate(
            named.run,
            [str(tmp_path / "other.nc")],
            tmp_path / "b.nc",
            members=4,
            modalities=["stn"],
            console=QUIET,
        )
    told = " ".join(str(each.message) for each in warned)
    assert "X at nan N nan E" in told and "5 stations have moved" in told
    xr.testing.assert_equal(root(after), root(before))
    whole.isel(station=order[1:]).to_netcdf(tmp_path / "less.nc")
    with pytest.warns(DataWarning, match="1 of 5 stations aren't in the file and are missing: e "):
        less = assimilate(named.run, [str(tmp_path / "less.nc")], tmp_path / "c.nc", members=4, console=QUIET)
    observed = group(less, "stn")["observed"]
    np.testing.assert_array_equal(observed.sum("time") > 0, [True, True, True, True, False])


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_names_of_stations_serve_the_evaluation(named, tmp_path, suffix):
    """A truth in another order scores as the file itself."""
    path = assimilate(named.run, [str(named.new)], tmp_path / f"a{suffix}", members=4, console=QUIET)
    with xr.open_dataset(named.new) as file:
        file.load()[["stn"]].isel(station=[4, 2, 0, 3, 1]).to_netcdf(tmp_path / "truth.nc")
    one, other = (
        [row["value"] for row in scored(path, [f"stn={truth}"], console=QUIET).rows]
        for truth in (named.new, tmp_path / "truth.nc")
    )
    np.testing.assert_array_equal(one, other)


def test_stations_without_names_are_known_by_place(world, tmp_path):
    before = assimilate(
        world.run, [str(world.new)], tmp_path / "a.nc", members=4, modalities=["stn"], console=QUIET
    )
    assert "station" not in group(before, "stn").coords
    shuffled = changed(world, tmp_path / "other.nc", lambda d: d[["stn"]].isel(station=[4, 2, 0, 3, 1]))
    after = assimilate(world.run, [str(shuffled)], tmp_path / "b.nc", members=4, console=QUIET)
    xr.testing.assert_equal(root(after), root(before))


def test_a_file_of_other_settings_is_replaced_only_on_request(world, tmp_path):
    """A repeated command replaces its own file; one that asks for something else, or of another run, does not."""
    new, path = [str(world.new)], tmp_path / "a.nc"
    settings = {"dates": "2001-07-20..2001-07-24", "members": 2, "console": QUIET}
    assimilate(world.run, new, path, **settings)
    assimilate(world.run, new, path, **settings)
    before = path.read_bytes()
    for other, message in (
        ({"members": 3}, "another settings"),
        ({"dates": "2001-07-20..2001-07-23"}, "another settings"),
        ({"modalities": ["stn"]}, "another observations"),
        ({"overrides": ["withhold.stn=[1]"]}, "another observations"),
        ({"overrides": ["data.modalities.stn.error_std=2.0"]}, "another observations"),
        ({"baselines": True}, "another settings"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*--overwrite"):
            assimilate(world.run, new, path, **settings | other)
        assert path.read_bytes() == before
    retrained = Path(shutil.copytree(world.run, tmp_path / "retrained"))
    model = Model.load(retrained)
    model.prior.inflation = 1.25
    model.save(retrained)
    with pytest.raises(ValueError, match="another run.*--overwrite"):
        assimilate(retrained, new, path, **settings)
    assimilate(world.run, new, path, **settings | {"members": 3}, overwrite=True)
    assert root(path).sizes["member"] == 3


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_what_is_no_analysis_is_replaced_only_on_request(suffix, world, tmp_path):
    path = tmp_path / f"a{suffix}"
    other = xr.Dataset({"x": ("time", [1.0])})
    other.to_netcdf(path) if suffix == ".nc" else other.to_zarr(path)
    with pytest.raises(ValueError, match="another run|is no analysis"):
        assimilate(world.run, [str(world.new)], path, members=2, console=QUIET)
    (tmp_path / "b.nc").write_bytes(b"notes")
    with pytest.raises(ValueError, match=r"b\.nc is there and is no analysis; .*--overwrite"):
        assimilate(world.run, [str(world.new)], tmp_path / "b.nc", members=2, console=QUIET)
