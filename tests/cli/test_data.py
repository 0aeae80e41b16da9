"""The data commands end to end on small archives with true headers, and a training from their stores."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
import yaml
import zarr
from safetensors.torch import load_file

from slams.cli import main
from slams.config import PRESSURE_LEVELS
from slams.core.settings import override
from slams.data.archives import REGISTRY
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.data.processing.process import process
from slams.data.processing.regrid import Grid
from slams.data.store.store import FieldStore
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.inputs.named_files import match
from slams.pipeline.recipe import from_tree, load, to_tree
from tests.data import archive_files as files
from tests.data.server import serving

ROOT = Path(__file__).resolve().parents[2]
FIRST, DAYS, LEVELS = np.datetime64("2000-12-20"), 24, (500, 850)
DATES = FIRST + np.arange(DAYS)


def amplitude(day: np.datetime64) -> float:
    """What drives temperature on a day at 00 UTC, and the rain and radiation of the day before."""
    return float(np.sin(2.1 * int((day - FIRST).astype(int))))


def temperature(day: np.datetime64) -> np.ndarray:
    lat, lon = np.deg2rad(files.ERA5_LAT)[:, None], np.deg2rad(files.ERA5_LON)
    return np.stack(
        [250 + 20 * k + 30 * np.cos(lat) + 8 * amplitude(day) * np.cos(lat + lon) for k in (0, 1)]
    )


def rain(day: np.datetime64) -> np.ndarray:
    """Of the day that ends where the next state is; the Pacific is missing."""
    lat, lon = np.deg2rad(files.CPC_LAT)[:, None], np.deg2rad(files.CPC_LON)
    field = 4 + 3 * amplitude(day + 1) * np.cos(lat + lon)
    return np.where((np.rad2deg(lon) > 170) & (np.rad2deg(lon) < 230), np.nan, field)


def radiation(day: np.datetime64) -> np.ndarray:
    lat, lon = np.deg2rad(files.OLR_LAT)[:, None], np.deg2rad(files.OLR_LON)
    return 240 - 30 * amplitude(day + 1) * np.cos(lat + lon)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for each source; rain in yearly files, radiation in one."""
    root = tmp_path_factory.mktemp("sources")
    for name in ("era5", "cpc", "olr", "stations"):
        (root / name).mkdir()
    for day in DATES:
        files.chaosbench_day(root / "era5", day, {"t": temperature(day)}, levels=LEVELS)
    for year in (2000, 2001):
        days = DATES[DATES.astype("datetime64[Y]") == np.datetime64(str(year))]
        files.cpc_psl(root / "cpc" / f"precip.{year}.nc", days, np.stack([rain(day) for day in days]))
    files.olr(root / "olr" / "olr.day.mean.nc", DATES, np.stack([radiation(day) for day in DATES]))
    hours = FIRST + np.arange(72) * np.timedelta64(1, "h")
    lines = [files.isd_line(hour, 3.0 + 0.1 * k, 1.0, 1012.0) for k, hour in enumerate(hours)]
    files.isd(root / "stations" / "024130-99999-2000.gz", lines)
    return root


@pytest.fixture(scope="module")
def data(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of all sources: rain and radiation by HTTP, the others from folders."""
    out = tmp_path_factory.mktemp("stores")
    with serving() as archive:
        for path in (*(sources / "cpc").iterdir(), *(sources / "olr").iterdir()):
            archive.put(path.name, path.read_bytes())
        for name, folder in (("cpc", "cpc"), ("olr", "noaa")):
            words = ["--source", archive.url, "--years", "2000-2001", "--out", str(out / folder)]
            assert main(["data", name, *words]) == 0
    for name in ("era5", "stations"):
        assert main(["data", name, "--source", str(sources / name), "--out", str(out / name)]) == 0
    return out


@pytest.fixture(scope="module")
def coarse(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same on a grid of 15 degrees, 13 rows from pole to pole, where training takes seconds."""
    out = tmp_path_factory.mktemp("coarse")
    grid = Grid(90.0 - 15.0 * np.arange(13), 15.0 * np.arange(24))
    for name, folder, variable in (("era5", "era5", "t"), ("cpc", "cpc", "precip"), ("olr", "noaa", "olr")):
        paths = REGISTRY[name].obtain([], sources / name, out / folder)
        process(REGISTRY[name], paths, out / folder, variable=variable, grid=grid)
    return out


def test_a_folder_on_a_drive_is_a_source_and_a_file_on_it_an_observation(sources, tmp_path, monkeypatch):
    """`--source C:/data` and `NAME=C:/data/x.nc`, here names in the working folder."""
    monkeypatch.chdir(tmp_path)
    Path("C:").mkdir()
    shutil.copytree(sources / "cpc", "C:/rain")
    assert main(["data", "cpc", "--source", "C:/rain", "--years", "2000", "--out", "D:/stores"]) == 0
    assert FieldStore("D:/stores/precip.zarr").years == [2000]
    shutil.copy("C:/rain/precip.2001.nc", "C:/x.nc")
    found = match(["rain=C:/x.nc"], {"rain": "precip"}, ["rain"])
    assert found["rain"].files == ["C:/x.nc"] and found["rain"].variable == "precip"


@pytest.fixture
def copy(data: Path, tmp_path: Path) -> Path:
    """Stores that a test may damage."""
    return Path(shutil.copytree(data, tmp_path / "data"))


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix not in (".lock", ".png")
    }


def test_values_of_the_stores_are_those_of_the_archives(data: Path) -> None:
    """Temperature as it is; rain and radiation, smooth fields, to what regridding makes of a wave of 360 degrees."""
    day = DATES[3]
    t = FieldStore(data / "era5" / "t.zarr").read([day])[0]
    np.testing.assert_allclose(t.values, temperature(day), rtol=1e-6)
    lat, lon = np.deg2rad(t.lat.values)[:, None], np.deg2rad(t.lon.values)
    wave = amplitude(day + 1) * np.cos(lat + lon)
    olr = FieldStore(data / "noaa" / "olr.zarr").read([day])[0]
    np.testing.assert_allclose(olr.values, 240 - 30 * wave, atol=30 * (np.deg2rad(2.5) ** 2) / 8 * 2 + 0.01)
    wet = FieldStore(data / "cpc" / "precip.zarr").read([day])[0]
    # a coastal cell is the mean of its valid part, whose centre lies elsewhere
    inner = np.ix_(np.abs(t.lat.values) < 80, (t.lon.values < 167) | (t.lon.values > 233))
    assert np.isnan(wet.sel(lon=slice(172, 228))).all() and wet.sel(lon=slice(0, 168)).notnull().all()
    error = (wet.values - (4 + 3 * wave))[inner]
    assert np.max(np.abs(error)) < 3 * (np.deg2rad(1.5) ** 2) / 8 * 2 + 1e-3


def test_a_second_run_does_nothing(copy: Path, sources: Path) -> None:
    """Every byte of every file stays, manifest and history too."""
    before = content(copy)
    with serving() as archive:
        for path in (sources / "cpc").iterdir():
            archive.put(path.name, path.read_bytes())
        for name in ("era5", "stations"):
            assert main(["data", name, "--source", str(sources / name), "--out", str(copy / name)]) == 0
        assert main(["data", "cpc", "--offline", "--years", "2000-2001", "--out", str(copy / "cpc")]) == 0
        assert archive.requests == []
    assert content(copy) == before


def test_offline_uses_what_is_there_and_names_the_rest(sources: Path, tmp_path: Path, capsys) -> None:
    with serving() as archive:
        archive.put("precip.2000.nc", (sources / "cpc" / "precip.2000.nc").read_bytes())
        words = ["data", "cpc", "--source", archive.url, "--out", str(tmp_path)]
        assert main([*words, "--years", "2000"]) == 0
        shutil.rmtree(tmp_path / "precip.zarr")
        count = len(archive.requests)
        assert main([*words, "--years", "2000-2001", "--offline"]) == 1
        assert len(archive.requests) == count
    assert "precip.2001.nc" in capsys.readouterr().err
    assert FieldStore(tmp_path / "precip.zarr").years == [2000]


@pytest.mark.parametrize(
    ("script", "source", "store"),
    [("process_cpc.py", "cpc", "precip.zarr"), ("process_noaa.py", "olr", "olr.zarr")],
)
def test_scripts_are_the_commands(
    script: str, source: str, store: str, sources: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    """From another folder, with the same options."""
    monkeypatch.chdir(tmp_path)
    words = ["--source", str(sources / source), "--years", "2001", "--out", "here"]
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert left.value.code == 0
    assert FieldStore(tmp_path / "here" / store).years == [2001]
    assert "run again when the rest is there" in capsys.readouterr().out


def test_a_year_asked_for_that_no_file_has_is_an_error(sources: Path, tmp_path: Path, capsys) -> None:
    """What is there is processed, and the exit code tells a script that it isn't all."""
    words = ["data", "olr", "--source", str(sources / "olr"), "--out", str(tmp_path), "--years", "2001-2002"]
    assert main(words) == 1
    assert "2002" in capsys.readouterr().err
    assert FieldStore(tmp_path / "olr.zarr").years == [2001]


def test_wrong_words_are_told(tmp_path: Path, sources: Path, capsys) -> None:
    for words, said in (
        (["cpc", "--years", "2001-1999", "--source", str(sources / "cpc")], "earlier to a later"),
        (["cpc", "--years", "nineteen", "--source", str(sources / "cpc")], "looks like 2000-2015"),
        (["cpc", "--years", "1850", "--source", "https://127.0.0.1:9"], "1979 to"),
        (["era5", "--variables", "x", "--source", str(sources / "era5")], "no variable 'x'"),
        (["cpc", "--source", "ftp://127.0.0.1/x"], "http"),
        (["cpc", "--source", str(sources / "olr")], "holds nothing of the archive 'cpc'"),
        (["cpc", "--source", str(sources / "cpc"), "--grid", "2deg"], "2deg"),
    ):
        assert main(["data", *words, "--out", str(tmp_path / "out")]) == 1
        assert said in capsys.readouterr().err
    for action in ("status", "verify"):
        assert main(["data", action, str(tmp_path / "nothing")]) == 1
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert main(["data", action, str(tmp_path / "empty")]) == 1
        assert "nothing" in capsys.readouterr().err or action


def test_status_says_what_is_there(data: Path, tmp_path: Path, capsys) -> None:
    picture = tmp_path / "coverage.png"
    assert main(["data", "status", str(data), "--json", "--figure", str(picture)]) == 0
    found = json.loads(capsys.readouterr().out)
    stores = {store["variable"]: store for store in found["stores"]}
    assert set(stores) == {"t", "precip", "olr"}
    assert stores["precip"]["years"] == {"2000": 12, "2001": 12} and stores["precip"]["missing"] == 0
    assert stores["t"]["levels"] == [500, 850] and stores["t"]["units"] == "K"
    assert 200 < stores["t"]["lowest"] < stores["t"]["highest"] < 320
    assert found["files"]["cpc"][0] == 2 and list(found["tables"]) == ["stations/observations.nc"]
    assert picture.stat().st_size > 5000


def test_status_names_gaps(copy: Path, capsys) -> None:
    store = FieldStore(copy / "era5" / "t.zarr")
    array = store.read()
    FieldStore.create(copy / "era5" / "t.zarr", array.isel(time=np.r_[0:5, 9:24]))
    assert main(["data", "status", str(copy), "--json"]) == 0
    t = next(s for s in json.loads(capsys.readouterr().out)["stores"] if s["variable"] == "t")
    assert t["gaps"] == [[str(DATES[5]), str(DATES[8])]] and t["missing"] == 4


def test_sound_data_pass(data: Path, capsys) -> None:
    assert main(["data", "verify", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (
        found["faults"] == [] and found["read"] == 3 + 1 + 2 + 1 + 1 + DAYS
    )  # stores, table, files of rain, radiation, stations, ERA5


def changed_byte(root: Path) -> None:
    path = max((root / "cpc" / "precip.zarr").rglob("c/*/*/*"), key=lambda file: file.stat().st_size)
    body = bytearray(path.read_bytes())
    body[len(body) // 3] ^= 1
    path.write_bytes(body)


def changed_file(root: Path) -> None:
    path = root / "cpc" / "precip.2000.nc"
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)


def shorter_file(root: Path) -> None:
    path = root / "noaa" / "olr.day.mean.nc"
    path.write_bytes(path.read_bytes()[:-1])


def array_of(root: Path, name: str) -> zarr.Array:
    return zarr.open_group(root / "era5" / "t.zarr", mode="r+", use_consolidated=False)[name]


def flipped_axis(root: Path) -> None:
    lat = array_of(root, "lat")
    lat[:] = lat[:][::-1]


def duplicate_time(root: Path) -> None:
    array_of(root, "time")[4] = array_of(root, "time")[3]


def wrong_unit(root: Path) -> None:
    path = root / "era5" / "t.zarr" / "zarr.json"
    path.write_text(path.read_text().replace('"units": "K"', '"units": "degC"'))
    path = root / "era5" / "t.zarr" / "t" / "zarr.json"
    path.write_text(path.read_text().replace('"units": "K"', '"units": "degC"'))


def header_of_one_array(root: Path) -> None:
    path = root / "era5" / "t.zarr" / "t" / "zarr.json"
    path.write_text(path.read_text().replace('"units": "K"', '"units": "degC"'))


def impossible_values(root: Path) -> None:
    store = FieldStore(root / "era5" / "t.zarr")
    FieldStore.create(store.path, store.read() - 200)


def empty_day(root: Path) -> None:
    store = FieldStore(root / "noaa" / "olr.zarr")
    array = store.read()
    array[7] = np.nan
    FieldStore.create(store.path, array)


def impossible_report(root: Path) -> None:
    path = root / "stations" / "observations.nc"
    with netCDF4.Dataset(path, "r+") as file:
        file["value"][5] = 9999.0


def lost_store(root: Path) -> None:
    shutil.rmtree(root / "cpc" / "precip.zarr")


def lost_root(root: Path) -> None:
    (root / "cpc" / "precip.zarr" / "zarr.json").unlink()


def torn_header(root: Path) -> None:
    path = root / "noaa" / "olr.zarr" / "lat" / "zarr.json"
    path.write_text(path.read_text()[:40])


def foreign_manifest(root: Path) -> None:
    (root / "noaa" / "manifest.json").write_text('"mine"')


FAULTS = {
    changed_byte: ("precip.zarr", ("checksum", "can't be read")),
    changed_file: ("precip.2000.nc", ("checksum",)),
    shorter_file: ("olr.day.mean.nc", ("bytes",)),
    flipped_axis: ("t.zarr", ("north to south",)),
    duplicate_time: ("t.zarr", ("twice",)),
    wrong_unit: ("t.zarr", ("'degC', expected 'K'",)),
    header_of_one_array: ("t.zarr", ("header of 't'",)),
    impossible_values: ("t.zarr", ("expected 150 to 350",)),
    empty_day: ("olr.zarr", ("without a value",)),
    impossible_report: ("observations.nc", ("better than they are",)),
    lost_store: ("precip.zarr", ("not there",)),
    lost_root: ("precip.zarr", ("isn't a complete store",)),
    torn_header: ("olr.zarr", ("isn't readable",)),
    foreign_manifest: ("manifest.json", ("isn't a manifest",)),
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_verify_finds_the_fault_and_its_place(fault, copy: Path, capsys) -> None:
    """Exit 1, and a sentence that names the file and what is wrong with it."""
    where, said = FAULTS[fault]
    folders = {"precip": "cpc", "t": "era5", "observations": "stations"}
    fault(copy)
    assert main(["data", "verify", str(copy / folders.get(where.split(".")[0], "noaa")), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert any(where in text and any(word in text for word in said) for text in faults), faults


def small(name: str, data: Path, tmp_path: Path, **settings: str):
    """A shipped recipe on the tiny stores: a few steps, two levels."""
    words = {
        "data.modalities.t.files": str(data / "era5" / "t.zarr"),
        "data.modalities.t.levels": "[500, 850]",
        "data.store": str(tmp_path / "store"),
        "data.train": "[2000-12-21, 2001-01-03]",
        "data.validation": "[2001-01-04, 2001-01-08]",
        "data.test": "[2001-01-09, 2001-01-12]",
        "latent.fit.steps": "6",
        "latent.fit.batch": "2",
        "latent.fit.every": "6",
        "seed": "0",
        **settings,
    }
    tree = to_tree(load(ROOT / "slams" / "configs" / f"{name}.yaml"))
    tree = override(tree, [f"{key}={value}" for key, value in words.items()])
    for modality, path in (("rain", "cpc/precip.zarr"), ("olr", "noaa/olr.zarr")):
        if modality in tree["data"]["modalities"]:
            tree["data"]["modalities"][modality]["files"] = str(data / path)
    return tree


def test_recipes_read_the_stores_where_they_are_and_match_the_rain_day(data: Path, tmp_path: Path) -> None:
    """Rain and radiation of the day before a state; the published recipe says so in its report."""
    fields = load_fields(from_tree(small("convae_2", data, tmp_path)))
    assert fields.dates[0] == FIRST + 1 and len(fields.dates) == DAYS - 1
    assert fields.layouts["rain"].lag == fields.layouts["olr"].lag == -1 and fields.layouts["t"].lag == 0
    assert "end of the rain day" in fields.report.text()
    drive = np.array([amplitude(day) for day in fields.dates])
    for name, sign in (("t", 1), ("rain", 1), ("olr", -1)):
        series = torch.nan_to_num(fields.values[name][:, 0, 60, 0]).numpy()
        assert sign * np.corrcoef(series, drive)[0, 1] > 0.97, name  # rain as log(1 + mm)
    assert not (tmp_path / "store").exists()
    by_date = load_fields(from_tree(small("convae_2", data, tmp_path, **{"data.match": "date"})))
    assert by_date.layouts["rain"].lag == 0 and len(by_date.dates) == DAYS


def test_files_read_by_their_lag_are_those_of_the_training(data: Path, tmp_path: Path) -> None:
    """What `assimilate` reads later of the same rain carries the dates of the states."""
    from slams.pipeline.inputs.fields import read_file

    recipe = from_tree(small("convae_1", data, tmp_path))
    fields = load_fields(recipe)
    days, values = read_file(recipe.modalities["rain"], fields.layouts["rain"], dates=fields.dates[3:6])
    np.testing.assert_array_equal(days, fields.dates[3:6])
    torch.testing.assert_close(values, fields.values["rain"][3:6], equal_nan=True)


def test_stations_of_the_table_are_a_modality(data: Path) -> None:
    array = read(
        Modality(
            "stn",
            (str(data / "stations" / "observations.nc"),),
            "temperature",
            "observation",
            kind="stations",
        ),
        allow_empty_days=True,
    )
    assert array.dims == ("time", "station") and array.time.values[0] == FIRST


def test_published_recipes_train_in_order_from_the_stores(coarse: Path, tmp_path: Path, monkeypatch) -> None:
    """convae_2, then lsda_2 on its latent: the codec is taken bit for bit, and a test period is analysed."""
    from slams import config
    from slams.core.console import Console
    from slams.pipeline.run import run

    monkeypatch.setattr(config, "LOG_DIR", tmp_path / "logs")
    monkeypatch.chdir(tmp_path)
    quick = {
        "prior.window": "3",
        "prior.hidden": "[4, 4, 4]",
        "prior.blocks": "1",
        "prior.patterns": "6",
        "prior.fit.steps": "2",
        "prior.fit.batch": "1",
        "prior.fit.every": "2",
        "assimilation": "{members: 2, steps: 2}",
        "experiment": "{sets: {both: [t, rain]}, share: 0.05, windows: 1, spacing: 3}",
    }
    with pytest.raises(FileNotFoundError, match="slams train convae_2"):
        run(from_tree(small("lsda_2", coarse, tmp_path, **quick)), console=Console(quiet=True))
    run(from_tree(small("convae_2", coarse, tmp_path)), console=Console(quiet=True))
    out = run(from_tree(small("lsda_2", coarse, tmp_path, **quick)), console=Console(quiet=True))
    first, second = (load_file(tmp_path / "logs" / n / "codec.safetensors") for n in ("convae_2", "lsda_2"))
    assert all(torch.equal(first[key], second[key]) for key in first) and set(first) == set(second)
    analysis = xr.open_dataset(out / "analysis.nc")
    assert analysis["t"].shape[-3:] == (2, 13, 24) and np.isfinite(analysis["t"]).all()
    assert "end of the rain day" in (out / "report.html").read_text()
    wrong = small("lsda_2", coarse, tmp_path, **quick, **{"data.harmonics": "1"})
    with pytest.raises(ValueError, match="other data"):
        run(from_tree(wrong), console=Console(quiet=True))


def test_pixel_space_is_believed_without_an_autoencoder(coarse: Path, tmp_path: Path, monkeypatch) -> None:
    """sda_0: the latent is the standardized state, and an analysis of everything seen is what was seen."""
    from slams import config
    from slams.core.console import Console
    from slams.pipeline.model.model import Model
    from slams.pipeline.run import run

    monkeypatch.setattr(config, "LOG_DIR", tmp_path / "logs")
    quick = {
        "prior.window": "3",
        "prior.hidden": "[4, 4, 4]",
        "prior.blocks": "1",
        "prior.patterns": "6",
        "prior.fit.steps": "2",
        "prior.fit.batch": "1",
        "experiment": "{sets: {}}",
    }
    out = run(from_tree(small("sda_0", coarse, tmp_path, **quick)), console=Console(quiet=True))
    model = Model.load(out)
    x = torch.randn(4, 2, 13, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.codec.decode(model.codec.encode({"t": x}), "t"), x, rtol=1e-5, atol=1e-5)
    history = json.loads((out / "history.json").read_text())
    assert set(history) == {"prior"}


def test_levels_of_the_shipped_recipes_are_the_published_ones() -> None:
    for path in (ROOT / "slams" / "configs").glob("*_[012].yaml"):
        tree = yaml.safe_load(path.read_text())
        assert tuple(tree["data"]["modalities"]["t"]["levels"]) == PRESSURE_LEVELS
