import errno
import json
import os
import signal
import subprocess
import sys

import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

from slams.core import files
from slams.core.errors import DataWarning, InvalidValueError
from slams.core.files import atomic, write_text
from slams.data.files.modality import Modality
from slams.data.files.read import days_of, write_netcdf
from slams.data.store.store import FieldStore


def field(count=5, first="2000-02-27", shape=(3, 4), name="t2m", seed=0):
    values = np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)
    values[0, 0, 0] = np.nan
    time_axis = np.datetime64(first, "D") + np.arange(count)
    coords = {"time": time_axis, "lat": np.linspace(60, 40, shape[0]), "lon": np.linspace(0, 30, shape[1])}
    return xr.DataArray(values, coords, ("time", "lat", "lon"), name, {"units": "K", "source_name": "t2m"})


def names(folder):
    return sorted(entry.name for entry in folder.iterdir() if entry.suffix != ".lock")


def test_store_gives_back_what_was_written_on_any_days_in_any_order(tmp_path):
    original = field(900, shape=(5, 7))  # two chunks
    store = FieldStore.create(tmp_path / "t2m.zarr", original)
    days = original.time.values.astype("datetime64[D]")
    assert np.array_equal(store.dates, days)
    xr.testing.assert_identical(store.read(), original)
    for pick in ([3], [0, 1, 2], [899, 4, 5, 510, 511, 512, 513], [7, 7]):
        assert np.array_equal(store.read(days[pick]).values, original.values[pick], equal_nan=True)
        assert np.array_equal(store.read(days[pick]).time.values.astype("datetime64[D]"), days[pick])


def test_store_is_a_zarr_that_xarray_opens(tmp_path):
    FieldStore.create(tmp_path / "t2m.zarr", field())
    with xr.open_zarr(tmp_path / "t2m.zarr", consolidated=False) as opened:
        assert np.array_equal(opened.t2m.values, field().values, equal_nan=True)
        assert np.array_equal(
            opened.time.values.astype("datetime64[D]"), field().time.values.astype("datetime64[D]")
        )


def test_stations_keep_their_places(tmp_path):
    coords = {
        "time": np.arange(3).astype("datetime64[D]"),
        "lat": ("station", [41.5, 40.0]),
        "lon": ("station", [2.0, -3.0]),
    }
    coords["station"] = ["Barcelona", "Madrid"]
    original = xr.DataArray(np.arange(6, dtype=np.float32).reshape(3, 2), coords, ("time", "station"), "tas")
    read = FieldStore.create(tmp_path / "tas.zarr", original).read()
    assert read.lat.values.tolist() == [41.5, 40.0] and read.lat.dims == ("station",)
    assert read.station.values.tolist() == ["Barcelona", "Madrid"]
    assert read.station.dtype.kind == "U"
    with xr.open_zarr(tmp_path / "tas.zarr", consolidated=False) as opened:
        assert {"lat", "lon"} <= set(opened.tas.coords)


def test_an_unwritten_chunk_reads_as_missing_not_as_zero(tmp_path):
    original = field(shape=(2, 2))
    original[2] = np.nan
    FieldStore.create(tmp_path / "t2m.zarr", original)
    assert np.isnan(zarr.open_group(tmp_path / "t2m.zarr", mode="r")["t2m"].fill_value)
    assert np.isnan(FieldStore(tmp_path / "t2m.zarr").read(original.time.values[2:3]).values).all()


@pytest.mark.parametrize("name", ["lat", "lon", "time"])
def test_a_store_without_a_chunk_of_a_coordinate_is_refused(tmp_path, name):
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    (store.path / name / "c" / "0").unlink()
    with pytest.raises(
        InvalidValueError, match=f"coordinate '{name}' of .*t2m.zarr: 1 of 1 chunks aren't there"
    ):
        FieldStore(store.path).read()
    with pytest.raises(InvalidValueError, match="chunks aren't there"):  # from the header, before training
        days_of(Modality("t2m", (str(store.path),), "t2m", "state"))


def test_a_store_without_a_chunk_of_values_tells_it(tmp_path):
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    next(path for path in (store.path / "t2m" / "c").rglob("*") if path.is_file()).unlink()
    with pytest.warns(DataWarning, match=r"t2m in .*t2m.zarr: 1 of 1 chunks aren't there.*read as missing"):
        assert np.isnan(FieldStore(store.path).read().values).all()


def test_a_store_that_does_not_decode_is_named(tmp_path):
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    shard = next(path for path in (store.path / "t2m" / "c").rglob("*") if path.is_file())
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(InvalidValueError, match=r"t2m in .*t2m.zarr can't be read to its end"):
        FieldStore(store.path).read()


def test_fingerprint_depends_on_content_and_not_on_how_it_came(tmp_path):
    original = field(40)
    whole = FieldStore.create(tmp_path / "a.zarr", original).fingerprint
    parts = (original.isel(time=slice(i, i + 7)) for i in range(0, 40, 7))
    assert FieldStore.create(tmp_path / "b.zarr", parts).fingerprint == whole
    changed = [original.copy(data=np.where(np.arange(4) == 3, original.values + 1e-3, original.values))]
    changed += [
        original.assign_coords(time=original.time + np.timedelta64(1, "D")),
        original.assign_coords(lon=original.lon + 1),
    ]
    changed += [original.assign_attrs(units="degC"), original.rename("other")]
    seals = {FieldStore.create(tmp_path / "c.zarr", one).fingerprint for one in changed}
    assert len(seals | {whole}) == 6


def test_verify_notices_a_changed_value(tmp_path):
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    store.verify()
    zarr.open_group(store.path, mode="r+")["t2m"][1, 1, 1] = 5.0
    with pytest.raises(ValueError, match="has changed since it was written"):
        FieldStore(store.path).verify()


def test_manifest_lists_every_store_of_the_folder(tmp_path):
    FieldStore.create(tmp_path / "b.zarr", field(), {"url": "https://example.org/b.nc"})
    a = FieldStore.create(tmp_path / "a.zarr", field(3))
    rows = json.loads((tmp_path / "manifest.json").read_text())["stores"]
    assert [row["path"] for row in rows] == ["a.zarr", "b.zarr"]
    assert set(rows[0]) == {"path", "url", "date", "size", "sha256", "version"}
    assert rows[0]["sha256"] == a.fingerprint and rows[1]["url"] == "https://example.org/b.nc"


def test_a_day_that_is_not_there_is_named(tmp_path):
    store = FieldStore.create(tmp_path / "t2m.zarr", field())
    with pytest.raises(KeyError, match=r"2001-01-01.*2000-02-27 to 2000-03-02"):
        store.read(np.array(["2000-02-28", "2001-01-01"], dtype="datetime64[D]"))


@pytest.mark.parametrize(
    "parts, message",
    [
        ([], "nothing to write"),
        ([field(2, "2000-01-05"), field(2, "2000-01-01")], "2000-01-01 follows 2000-01-06"),
        ([field(2, "2000-01-01"), field(2, "2000-01-02")], "2000-01-02 follows 2000-01-02"),
        (
            [field(2), field(2, "2001-01-01").assign_coords(lon=[1, 2, 3, 4])],
            "isn't on the grid of the first",
        ),
        ([field(2), field(2, "2001-01-01").assign_attrs(units="degC")], "isn't on the grid of the first"),
    ],
)
def test_a_refused_store_leaves_the_old_one_and_nothing_else(tmp_path, parts, message):
    old = FieldStore.create(tmp_path / "t2m.zarr", field(seed=7)).fingerprint
    with pytest.raises(ValueError, match=message):
        FieldStore.create(tmp_path / "t2m.zarr", parts)
    assert names(tmp_path) == ["manifest.json", "t2m.zarr"]
    FieldStore(tmp_path / "t2m.zarr").verify()
    assert FieldStore(tmp_path / "t2m.zarr").fingerprint == old


def test_a_missing_store_names_its_neighbours(tmp_path):
    FieldStore.create(tmp_path / "precip.zarr", field())
    with pytest.raises(FileNotFoundError, match=r"precip\.zarr"):
        FieldStore(tmp_path / "precipe.zarr")


def test_half_a_store_is_refused(tmp_path):
    zarr.open_group(tmp_path / "half.zarr", mode="w").create_array("t", shape=(3,), dtype="float32")
    with pytest.raises(ValueError, match="isn't a complete store"):
        FieldStore(tmp_path / "half.zarr")


class Boom(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Boom])
@pytest.mark.parametrize("folder", [False, True])
def test_an_interrupted_write_leaves_the_old_content_and_nothing_else(tmp_path, error, folder):
    target = tmp_path / "result.nc"
    if folder:
        target.mkdir()
        (target / "part").write_text("old")
    else:
        target.write_text("old")
    with pytest.raises(error), atomic(target) as temporary:
        if folder:
            temporary.mkdir()
            (temporary / "part").write_text("half")
        else:
            temporary.write_text("half")
        raise error
    assert names(tmp_path) == ["result.nc"]
    assert (target / "part" if folder else target).read_text() == "old"


@pytest.mark.parametrize("exchange", [True, False], ids=["exchange", "two renames"])
def test_a_folder_is_replaced_as_a_whole(tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    target = tmp_path / "store"
    for content in ("first", "second"):
        with atomic(target) as temporary:
            temporary.mkdir()
            (temporary / content).write_text(content)
    assert names(tmp_path) == ["store"] and names(target) == ["second"]


def test_a_write_of_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was written"), atomic(tmp_path / "a"):
        pass


def test_a_full_disk_is_told_with_the_remedy(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with (
        pytest.raises(OSError, match=r"disk is full.*a\.txt.*free some space") as caught,
        atomic(tmp_path / "a.txt") as temporary,
    ):
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.errno == errno.ENOSPC
    assert names(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_a_nameless_error_of_a_library_on_a_full_disk_is_told_too(tmp_path, monkeypatch):
    usage = files.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: usage._replace(free=4096))
    monkeypatch.setattr(
        xr.Dataset,
        "to_netcdf",
        lambda self, path, **kw: (_ for _ in ()).throw(RuntimeError("NetCDF: HDF error")),
    )
    with pytest.raises(OSError, match="disk is full"):
        write_netcdf(field().to_dataset(), tmp_path / "a.nc")
    assert names(tmp_path) == []


def test_other_errors_keep_their_type(tmp_path):
    with pytest.raises(PermissionError, match="no"), atomic(tmp_path / "a"):
        raise PermissionError("no")


KILLED = """
import sys, time
from slams.core.files import atomic
with atomic(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_write_leaves_the_old_file_and_the_next_write_cleans_up(tmp_path, root):
    target = tmp_path / "a.nc"
    target.write_bytes(b"old")
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(target)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert child.stdout.readline() == b"writing\n"
    other = len(names(tmp_path))
    write_text(tmp_path / "a.nc.txt", "another file is no reason to touch a write that goes on")
    assert len(names(tmp_path)) == other + 1
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.glob("[!.]*.nc")] == ["a.nc"]
    write_text(target, "new")
    assert names(tmp_path) == ["a.nc", "a.nc.txt"] and target.read_text() == "new"


def test_a_write_under_way_elsewhere_is_left_alone(tmp_path):
    with atomic(tmp_path / "a.txt") as slow:
        slow.write_text("slow")
        write_text(tmp_path / "a.txt", "quick")
        assert slow.exists()
    assert (tmp_path / "a.txt").read_text() == "slow"


def test_netcdf_is_written_with_groups_and_read_by_another_library(tmp_path):
    tree = xr.DataTree.from_dict({"/": field().to_dataset(), "/stn": field(name="seen").to_dataset()})
    path = write_netcdf(tree, tmp_path / "deep" / "a.nc")
    with netCDF4.Dataset(path) as opened:
        assert np.array_equal(opened["t2m"][:].filled(np.nan), field().values, equal_nan=True)
        assert opened["stn"]["seen"].shape == (5, 3, 4)
    assert names(path.parent) == ["a.nc"]


def test_an_interrupt_inside_the_netcdf_library_leaves_nothing(tmp_path, monkeypatch):
    def stop(self, path, **keywords):
        path.write_bytes(b"\x89HDF")
        raise KeyboardInterrupt

    monkeypatch.setattr(xr.Dataset, "to_netcdf", stop)
    with pytest.raises(KeyboardInterrupt):
        write_netcdf(field().to_dataset(), tmp_path / "a.nc")
    assert names(tmp_path) == []


def test_chunks_let_a_window_be_read_without_the_year(tmp_path):
    """A field of 80 KiB: a chunk is a few days, a shard at least a month of them."""
    day = np.zeros((40, 10, 32, 64), dtype=np.float32)
    coords = {
        "time": np.arange(40).astype("datetime64[D]"),
        "level": np.arange(10.0),
        "lat": np.arange(32.0),
        "lon": np.arange(64.0),
    }
    store = FieldStore.create(
        tmp_path / "t.zarr", xr.DataArray(day, coords, ("time", "level", "lat", "lon"), "t")
    )
    array = zarr.open_group(store.path, mode="r")["t"]
    assert array.chunks[0] <= 7 and array.shards[0] >= 32
