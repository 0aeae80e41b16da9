import threading
import tracemalloc

import numpy as np
import pytest
import xarray as xr

from slams.data.files.periods import RAIN_DAY
from slams.data.processing.process import process
from slams.data.processing.regrid import Grid, Regridder
from slams.data.store.manifest import read_manifest
from slams.data.store.statistics import Statistics
from slams.data.store.store import FieldStore
from slams.data.store.writer import locked

SOURCE = Grid(90 - 7.5 / 2 - 7.5 * np.arange(24), 3.75 + 7.5 * np.arange(48))
TARGET = Grid(90 - 15.0 * np.arange(13), 15.0 * np.arange(24))


class Files:
    """An archive of plain netCDF files."""

    name, variables, period = "plain", ("rain",), RAIN_DAY
    method, transforms = {"rain": "conservative"}, {"rain": ("none", "log1p")}

    def open(self, path, variable):
        dataset = xr.open_dataset(path, chunks={"time": 50})
        array = dataset[variable]
        array.set_close(dataset.close)
        return array


def rain(first, last, seed=0, step="D"):
    """Land everywhere but in a box; the same day has the same field in whatever file."""
    days = np.arange(
        np.datetime64(first), np.datetime64(last) + np.timedelta64(1, "D"), dtype="datetime64[D]"
    )
    values = np.stack(
        [
            np.random.default_rng([seed, int(day.astype(int))]).gamma(0.5, 4.0, (24, 48)).astype(np.float32)
            for day in days
        ]
    )
    values[:, 8:15, 10:22] = np.nan
    coords = {"time": days.astype("datetime64[ns]"), "lat": SOURCE.lat, "lon": SOURCE.lon}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), "rain", {"units": "mm/day"})


def write(folder, *arrays):
    folder.mkdir(exist_ok=True)
    paths = []
    for k, array in enumerate(arrays):
        paths.append(folder / f"{k}.nc")
        array.to_netcdf(paths[-1], engine="netcdf4")
    return paths


def run(paths, out, **settings):
    return process(Files(), paths, out, **{"grid": TARGET, **settings})


def content(path):
    """Every byte of a folder."""
    return {
        str(file.relative_to(path)): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.suffix != ".lock"
    }


def untimed(folder):
    manifest = read_manifest(folder)
    return {
        key: [{k: v for k, v in row.items() if k != "date"} for row in rows] for key, rows in manifest.items()
    }


@pytest.fixture
def three_years(tmp_path):
    spans = [("2000-01-01", "2000-12-31"), ("2001-01-01", "2001-12-31"), ("2002-01-01", "2002-04-10")]
    return write(tmp_path / "raw", *(rain(*span) for span in spans))


def test_a_store_holds_each_day_regridded_with_its_time_bounds(three_years, tmp_path):
    done = run(three_years, tmp_path / "out")
    store = FieldStore(done.store)
    raw = rain("2000-01-01", "2002-04-10")
    assert np.array_equal(store.dates, raw.time.values.astype("datetime64[D]"))
    expected = Regridder(SOURCE, TARGET)(raw.values)[0].astype(np.float32)
    assert np.array_equal(store.read().values, expected, equal_nan=True)
    assert (store.bounds[:, 1] - store.bounds[:, 0] == np.timedelta64(24, "h")).all()
    assert np.array_equal(store.bounds[:, 0].astype("datetime64[D]"), store.dates)
    store.verify()
    with xr.open_zarr(done.store) as opened:
        assert opened.time.attrs["bounds"] == "time_bnds" and opened.time_bnds.dtype.kind == "M"
        assert opened.rain.attrs["cell_methods"] == "time: sum area: mean"
    assert done.partial == {2002: 100}
    assert "2002: 100 of 365 days" in done.text()


def test_a_second_run_changes_nothing(three_years, tmp_path):
    run(three_years, tmp_path / "out")
    before = content(tmp_path / "out")
    again = run(three_years, tmp_path / "out")
    assert again.added == {} and content(tmp_path / "out") == before


def test_years_that_come_one_by_one_give_the_bytes_of_those_that_come_together(three_years, tmp_path):
    run(three_years, tmp_path / "together")
    for k in range(3):
        run(three_years[: k + 1], tmp_path / "apart")
    assert content(tmp_path / "apart" / "rain.zarr") == content(tmp_path / "together" / "rain.zarr")
    assert untimed(tmp_path / "apart") == untimed(tmp_path / "together")


def test_a_partial_year_is_completed_when_the_rest_arrives(three_years, tmp_path):
    run(three_years, tmp_path / "out")
    longer = write(tmp_path / "later", *(rain(f"{y}-01-01", f"{y}-12-31") for y in (2000, 2001, 2002)))
    done = run(longer, tmp_path / "out")
    assert done.added == {2002: 265} and not done.partial
    whole = FieldStore(run(longer, tmp_path / "whole").store)
    store = FieldStore(done.store)
    assert store.fingerprint == whole.fingerprint
    assert store.attrs["statistics"] == whole.attrs["statistics"]


def test_days_that_come_late_find_their_place(three_years, tmp_path):
    run(three_years[1:], tmp_path / "out")
    gap = write(tmp_path / "gap", rain("2001-01-01", "2001-12-31").drop_isel(time=[40, 41, 200]))
    run(gap, tmp_path / "gapped")
    whole = FieldStore(run(three_years, tmp_path / "whole").store)
    done = run(three_years, tmp_path / "out")
    assert done.added == {2000: 366}
    store = FieldStore(done.store)
    assert store.fingerprint == whole.fingerprint
    assert store.attrs["statistics"] == whole.attrs["statistics"]
    assert run(three_years[1:2], tmp_path / "gapped").added == {2001: 3}
    assert np.array_equal(FieldStore(tmp_path / "gapped" / "rain.zarr").years, [2001])
    assert run(three_years[1:2], tmp_path / "gapped").added == {}


def test_days_without_a_value_are_gaps_and_not_zeros(tmp_path):
    array = rain("2001-01-01", "2001-03-01")
    array[10], array[40:] = np.nan, np.nan
    paths = write(tmp_path / "raw", array)
    done = run(paths, tmp_path / "out")
    store = FieldStore(done.store)
    assert store.dates.size == 39 and len(done.empty) == 21
    assert np.datetime64("2001-01-11") not in store.dates
    before = content(tmp_path / "out")
    assert run(paths, tmp_path / "out").added == {} and content(tmp_path / "out") == before


def test_several_records_a_day_are_averaged_by_date(tmp_path):
    """The record of 3 January 12 UTC is missing: that day is a gap, and no other day moves."""
    array = rain("2001-01-01", "2001-02-19")
    twice = np.arange("2001-01-01", "2001-01-26", 12, dtype="datetime64[h]").astype("datetime64[ns]")
    passes = array.assign_coords(time=twice)
    paths = write(tmp_path / "raw", passes.drop_isel(time=5))
    done = run(paths, tmp_path / "out", method="linear")
    store = FieldStore(done.store)
    assert done.incomplete == 1 and store.dates.size == 24
    mean = passes.values.reshape(25, 2, 24, 48).astype(float).mean(1).astype(np.float32)
    expected = Regridder(SOURCE, TARGET, "linear")(np.delete(mean, 2, axis=0))[0]
    np.testing.assert_allclose(store.read().values, expected, rtol=1e-6)


def test_statistics_are_those_of_the_training_years(three_years, tmp_path):
    """Against numpy on everything at once, in float64."""
    done = run(three_years, tmp_path / "out", training=(2000, 2001))
    store = FieldStore(done.store)
    values = store.read(store.dates[store.dates < np.datetime64("2002-01-01")]).values.astype(float)
    weights = np.broadcast_to(TARGET.area, values.shape)[np.isfinite(values)]
    for transform, seen in (("none", values), ("log1p", np.log1p(values))):
        mean = np.average(seen[np.isfinite(seen)], weights=weights)
        std = np.average((seen[np.isfinite(seen)] - mean) ** 2, weights=weights) ** 0.5
        statistics = store.attrs["climatology"][transform]
        np.testing.assert_allclose([statistics["mean"], statistics["std"]], [mean, std], rtol=1e-10)
        assert statistics["years"] == [2000, 2001]
        late = Statistics.of_store(store.attrs, transform).over(2002, 2002)
        later = seen_of(store, transform)
        np.testing.assert_allclose(late.mean, np.average(later[0], weights=later[1]), rtol=1e-10)


def seen_of(store, transform):
    values = store.read(store.dates[store.dates >= np.datetime64("2002-01-01")]).values.astype(float)
    there = np.isfinite(values)
    seen = np.log1p(values) if transform == "log1p" else values
    return seen[there], np.broadcast_to(TARGET.area, values.shape)[there]


def test_only_the_years_asked_for_are_processed(three_years, tmp_path):
    done = run(three_years, tmp_path / "out", years=[2001, 2007])
    assert FieldStore(done.store).years == [2001] and done.absent == [2007]
    with pytest.raises(ValueError, match="hold 2000 to 2002, asked was 1950 to 1951"):
        run(three_years, tmp_path / "out", years=[1950, 1951])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda a: a.isel(time=[0, 2, 1]), "times must rise strictly, but 2001-01-02"),
        (lambda a: a.isel(time=[0, 1, 1]), "times must rise strictly, but 2001-01-02"),
    ],
)
def test_bad_times_are_named(tmp_path, change, message):
    paths = write(tmp_path / "raw", change(rain("2001-01-01", "2001-01-10")))
    with pytest.raises(ValueError, match=message):
        run(paths, tmp_path / "out")


def test_files_that_overlap_and_stores_of_another_kind_are_refused(three_years, tmp_path):
    more = write(tmp_path / "more", rain("2001-12-30", "2002-01-02"))
    with pytest.raises(ValueError, match=r"4 days lie in two files, the first 2001-12-30 in .*1\.nc"):
        run([*three_years, *more], tmp_path / "out")
    assert not (tmp_path / "out" / "rain.zarr").exists()
    run(three_years[:1], tmp_path / "out")
    with pytest.raises(ValueError, match="was made with.*conservative.*asked is.*linear"):
        run(three_years, tmp_path / "out", method="linear")
    with pytest.raises(ValueError, match="no variable|holds rain"):
        run(three_years, tmp_path / "out", variable="snow")


def test_two_runs_at_once_take_turns(three_years, tmp_path):
    """The second waits for the first, and finds its days."""
    path, done = tmp_path / "out" / "rain.zarr", []
    waiting = threading.Thread(target=lambda: done.append(run(three_years[:2], tmp_path / "out")))
    with locked(path):
        waiting.start()
        run(three_years[:1], tmp_path / "out")
        assert not done
    waiting.join()
    assert done[0].added == {2001: 365} and FieldStore(path).years == [2000, 2001]


def test_a_cluster_gives_the_same_bytes(three_years, tmp_path):
    distributed = pytest.importorskip("distributed")
    run(three_years[:2], tmp_path / "here")
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None
    ) as cluster:
        run(three_years[:2], tmp_path / "there", scheduler=cluster.scheduler_address)
    assert content(tmp_path / "here" / "rain.zarr") == content(tmp_path / "there" / "rain.zarr")


def test_many_years_need_no_more_memory_than_few(tmp_path):
    """Peak of what Python and numpy hold. Two more years have 21 MB of fields; what may differ is how full the
    last shard (7.4 MB) was when a year began, which is at its most in the third year of the five."""
    paths = write(tmp_path / "raw", *(rain(f"{year}-01-01", f"{year}-03-31") for year in range(2001, 2006)))
    run(paths[:1], tmp_path / "first", grid="1.5deg")  # imports and caches
    peaks = []
    for count in (3, 5):
        tracemalloc.start()
        run(paths[:count], tmp_path / str(count), grid="1.5deg")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 4e6, peaks
