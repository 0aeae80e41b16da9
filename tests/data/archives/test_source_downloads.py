"""Sources that are more than a list of files: the Climate Data Store, ChaosBench's archive, a zarr on the web."""

import contextlib
import functools
import http.server
import json
import threading
import zipfile

import numpy as np
import pytest
import xarray as xr

from slams.data.archives import ARCHIVES, cds, published
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.data.store.manifest import read_manifest
from tests.data import archive_files as files

ERA5 = ARCHIVES["era5"]
SMALL = {"lat": np.array([90.0, 45, 0, -45, -90]), "lon": 45.0 * np.arange(8)}


def temperatures(count, seed=0):
    return np.random.default_rng(seed).normal(250, 10, size=(count, 10, 5, 8)).astype("f4")


@pytest.fixture
def serve():
    """A folder over HTTP, and the paths that were asked for."""
    with contextlib.ExitStack() as stack:

        def start(folder):
            asked = []

            class Handler(http.server.SimpleHTTPRequestHandler):
                def log_message(self, *args):
                    asked.append(self.path)

            server = http.server.ThreadingHTTPServer(
                ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
            )
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            return f"http://127.0.0.1:{server.server_port}", asked

        yield start


# The Climate Data Store


class Service:
    """Stands for cdsapi's client: writes the file that was asked for."""

    def __init__(self, fault=None):
        self.asked, self.fault = [], fault

    def retrieve(self, name, request, target):
        self.asked.append(request)
        if self.fault is not None:
            raise self.fault
        assert name == "reanalysis-era5-pressure-levels" and request["time"] == ["00:00"]
        stamps = [f"{request['year'][0]}-{request['month'][0]}-{day}" for day in request["day"]]
        values = temperatures(len(stamps), seed=int(request["month"][0]))
        files.cds_new(target, np.array(stamps, "datetime64[D]"), "t", values, **SMALL)


def test_without_credentials_the_message_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("CDSAPI_RC", "CDSAPI_URL", "CDSAPI_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        ValueError, match=r"credentials.*cds\.climate\.copernicus\.eu.*licence.*\.cdsapirc.*CDSAPI_KEY"
    ):
        ERA5.obtain([2020], "cds", tmp_path / "data", variables=["t"])
    assert not (tmp_path / "data").exists()


def test_a_month_is_asked_for_once_and_read_by_its_levels(tmp_path):
    service = Service()
    for _ in range(2):
        paths = cds.retrieve([2020], tmp_path, ["t"], ERA5.check, make_client=lambda: service)
    assert len(service.asked) == 12 and len(service.asked[1]["day"]) == 29
    assert service.asked[0]["pressure_level"] == [str(level) for level in files.LEVELS]
    array = ERA5.open(paths[1], "t")
    assert array.sizes["time"] == 29 and array.level.values.tolist() == list(files.LEVELS)
    np.testing.assert_array_equal(array.values, temperatures(29, seed=2)[:, ::-1])
    rows = read_manifest(tmp_path)["files"]
    assert len(rows) == 12 and all("reanalysis-era5-pressure-levels" in row["url"] for row in rows)
    assert cds.retrieve([2020], tmp_path, ["t"], ERA5.check, offline=True, make_client=None) == paths


def test_a_refusal_leaves_nothing_and_says_why_and_offline_names_what_is_missing(tmp_path):
    fault = RuntimeError("403 required licences not accepted")
    with pytest.raises(OSError, match=r"refused temperature of 2020-01 \(403 required.*accept the licence"):
        cds.retrieve([2020], tmp_path, ["t"], ERA5.check, make_client=lambda: Service(fault))
    assert not list(tmp_path.rglob("*.nc"))
    with pytest.raises(
        FileNotFoundError, match=r"12 files.*the first is cds/era5_t_202001\.nc; run without --offline"
    ):
        cds.retrieve([2020], tmp_path, ["t"], ERA5.check, offline=True)


# ChaosBench's archive


def chaosbench_zip(folder, days):
    stores = folder / "stores"
    values = temperatures(len(days))
    for day, field in zip(days, values, strict=True):
        files.chaosbench_day(stores, day, {"t": field}, **SMALL)
    with zipfile.ZipFile(folder / "era5_chunks.zip", "w") as archive:
        for file in sorted(stores.rglob("*")):
            if file.is_file():
                archive.write(file, f"era5/{file.relative_to(stores)}")
    return values


@pytest.mark.parametrize("over", ["http", "folder", "file"])
def test_days_of_the_wanted_years_are_unpacked_from_the_archive(tmp_path, serve, over):
    source, out = tmp_path / "mirror", tmp_path / "data"
    source.mkdir()
    values = chaosbench_zip(source, ["2015-12-31", "2016-01-01", "2016-01-02"])
    where = {
        "http": serve(source)[0] if over == "http" else None,
        "folder": source,
        "file": source / "era5_chunks.zip",
    }
    paths = ERA5.obtain([2016], where[over], out)
    assert sorted(path.name for path in paths) == [f"era5_full_1.5deg_2016010{i}.zarr" for i in (1, 2)]
    for path, truth in zip(sorted(paths), values[1:], strict=True):
        np.testing.assert_array_equal(ERA5.open(path, "t").values[0], truth)
    assert not list(out.rglob("*20151231*"))


# A zarr on the web


def test_only_the_chunks_of_the_wanted_moments_and_variables_travel(tmp_path, serve):
    stamps = np.datetime64("2019-12-30T00", "h") + 6 * np.arange(16)
    fields = {"t": temperatures(16), "q": np.full((16, 10, 5, 8), 0.005, "f4")}
    turned = {name: values[..., ::-1, :] for name, values in fields.items()}
    path = files.weatherbench(tmp_path / "wb.zarr", stamps, turned, lat=SMALL["lat"][::-1], lon=SMALL["lon"])
    whole = json.loads((path / ".zmetadata").read_text())
    whole["metadata"]["temperature/.zarray"]["fill_value"] = 0.0
    (path / ".zmetadata").write_text(json.dumps(whole))
    address, asked = serve(tmp_path)
    paths = ERA5.obtain([2020], f"{address}/wb.zarr", tmp_path / "data", variables=["t"])
    chunks = [name for name in asked if "/temperature/" in name]
    assert len(chunks) == 2 and not any(
        "specific_humidity" in name for name in asked
    )  # 1 and 2 January, 00 UTC
    assert np.isnan(ERA5.open(paths[0], "t").sel(time="2019").values).all()  # not fetched: missing, no zeros
    array = ERA5.open(paths[0], "t").sel(time=slice("2020", None))
    assert array.time.values.astype("datetime64[h]").tolist() == stamps[[8, 12]].tolist()
    np.testing.assert_array_equal(array.values, fields["t"][[8, 12]])
    again = len(asked)
    ERA5.obtain([2020], f"{address}/wb.zarr", tmp_path / "data", variables=["t"])
    assert not [
        name for name in asked[again:] if "/temperature/" in name
    ]  # complete: nothing is fetched twice
    with pytest.raises(ValueError, match="no record at 00 UTC in 1999"):
        ERA5.obtain([1999], f"{address}/wb.zarr", tmp_path / "data", variables=["t"])
    with pytest.raises(ValueError, match="no variable w or vertical_velocity; it has"):
        ERA5.obtain([2020], f"{address}/wb.zarr", tmp_path / "data", variables=["w"])


@pytest.mark.parametrize(
    "change, what",
    [
        (
            lambda entries: entries.update(
                {
                    "../../out/.zarray": entries["level/.zarray"],
                    "../../out/.zattrs": {"_ARRAY_DIMENSIONS": ["../../out"]},
                }
            ),
            "refused",
        ),
        (lambda entries: entries["temperature/.zarray"].update(filters=[{"id": "pickle"}]), "pickle"),
        (lambda entries: entries["time/.zarray"].update(shape=[10**12], chunks=[1]), "chunks, more than"),
    ],
)
def test_metadata_of_a_hostile_zarr_neither_leaves_the_folder_nor_runs_nor_fills_memory(
    tmp_path, serve, change, what
):
    source, out = tmp_path / "mirror", tmp_path / "data"
    path = files.weatherbench(
        source / "wb.zarr",
        files.days_from("2020-01-01", 1),
        {"t": temperatures(1)},
        lat=SMALL["lat"][::-1],
        lon=SMALL["lon"],
    )
    whole = json.loads((path / ".zmetadata").read_text())
    change(whole["metadata"])
    (path / ".zmetadata").write_text(json.dumps(whole))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match=what):
        ERA5.obtain([2020], f"{serve(source)[0]}/wb.zarr", out, variables=["t"])
    assert sorted(tmp_path.iterdir()) in (before, sorted([*before, out]))


# The published layout


def field(name, count=2, levels=True):
    dims = ("time", "level", "lat", "lon") if levels else ("time", "lat", "lon")
    values = temperatures(count)[:, :] if levels else temperatures(count)[:, 0]
    if not levels:
        values[:, 2, 3] = np.nan
    coords = {
        "time": files.days_from("2016-02-28", count).astype("datetime64[ns]"),
        "lat": SMALL["lat"],
        "lon": SMALL["lon"],
    }
    coords |= {"level": np.array(files.LEVELS, "f8")} if levels else {}
    units = {"t": "K", "precip": "mm/day", "olr": "W m-2"}[name]
    return xr.DataArray(values, coords, dims, name, {"units": units})


@pytest.mark.parametrize(
    "name, folder, stem",
    [
        ("t", "era5", "era5_full_1.5deg_"),
        ("precip", "cpc/precip", "cpc_precip_1.5deg_"),
        ("olr", "noaa/olr", "noaa_olr_1.5deg_"),
    ],
)
def test_the_published_layout_is_written_and_read_back(tmp_path, name, folder, stem):
    array = field(name, levels=name == "t")
    for _ in range(2):  # a second run replaces whole days
        paths = published.write_published([array], tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        f"{folder}/{stem}{day}.zarr" for day in ("20160228", "20160229")
    ]
    with xr.open_zarr(paths[0]) as dataset:  # as the published code opens it
        assert dataset["time"].ndim == 0
        if name == "t":
            assert dataset["t"].dims == ("level", "latitude", "longitude")
            assert dataset["latitude"].values[0] == 90 and dataset["level"].values.tolist() == list(
                files.LEVELS
            )
    back = read(Modality("m", (str(tmp_path / folder / f"{stem}*.zarr"),), name, "observation"))
    np.testing.assert_array_equal(back.values, array.values)
    assert back.attrs["units"] == array.attrs["units"]
    np.testing.assert_array_equal(back.time, array.time)


def test_modalities_are_not_mixed_in_one_daily_store(tmp_path):
    with pytest.raises(ValueError, match=r"got \['t', 'olr'\]"):
        published.write_published([field("t"), field("olr", levels=False)], tmp_path)
    with pytest.raises(ValueError, match="don't have the same days"):
        published.write_published([field("t"), field("t", 3).rename("q")], tmp_path)


def test_climatologies_are_taken_by_parameter_in_any_order(tmp_path):
    params = [f"{name}-{level}" for name in "zqtuvw" for level in files.LEVELS]
    mean, sigma = np.arange(60.0), np.arange(60.0) + 100
    path = files.climatology(tmp_path / "climatology_era5.zarr", params, mean, sigma)
    chosen = published.read_climatology(path, ["t-850", "t-10"])
    assert chosen["mean"].values.tolist() == [27, 20] and chosen["sigma"].values.tolist() == [127, 120]
    with pytest.raises(ValueError, match="no parameter t-851; it has z-10"):
        published.read_climatology(path, ["t-851"])
    whole = published.read_climatology(path)
    again = published.write_climatology(whole["mean"], whole["sigma"], "era5", tmp_path / "out")
    assert again == tmp_path / "out" / "climatology" / "climatology_era5.zarr"
    xr.testing.assert_equal(published.read_climatology(again), whole)
    day = files.chaosbench_day(tmp_path, "2020-01-01", {"t": temperatures(1)[0]}, **SMALL)
    with pytest.raises(ValueError, match="isn't a climatology"):
        published.read_climatology(day)
