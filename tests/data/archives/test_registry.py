"""A source of one's own is one class: commands, recipes, stores and `verify` take it as they take the others."""

import numpy as np
import pytest
import xarray as xr

from slams.cli import main
from slams.data import archives, planet
from slams.data.archives import ARCHIVES, REGISTRY, SOURCES, Archive, Quantity, register
from slams.data.files.modality import Modality
from slams.data.files.periods import DAILY_MEAN
from slams.data.files.read import read
from slams.data.store import FieldStore
from slams.pipeline.inputs.fields import _standing
from tests.data.server import serving

LAT, LON = np.linspace(88.5, -88.5, 60), np.arange(0.0, 360.0, 3.0)


class Snow(Archive):
    """Depth of snow: everything that the package needs to know of a new daily source."""

    name = "snow"
    quantities = (
        Quantity(
            "snow",
            "m",
            (0.0, 30.0),
            "conservative",
            DAILY_MEAN,
            "depth of snow",
            "surface_snow_thickness",
            aliases=("sd",),
        ),
    )
    negative_is_missing = True
    url, file, first_year = "https://example.org", "sd.{year}.nc", 1990  # the folder is given by --out


@pytest.fixture
def snow():
    register(Snow(), "depth of snow")
    yield REGISTRY["snow"]
    for table in (SOURCES, REGISTRY, ARCHIVES):
        del table["snow"]


def write(path, year=2001, count=5, highest=3.0):
    values = np.random.default_rng(year).uniform(0, highest, size=(count, 60, 120)).astype("f4")
    values[:, 10, 20:30] = -1.0
    days = np.datetime64(f"{year}-01-01", "ns") + np.arange(count) * np.timedelta64(1, "D")
    coords = {"time": days, "lat": LAT, "lon": LON}
    xr.DataArray(values, coords, ("time", "lat", "lon"), "sd", {"units": "m"}).to_netcdf(path)
    return np.where(values < 0, np.nan, values)


def test_a_source_of_ones_own_is_fetched_processed_listed_and_verified(tmp_path, snow, capsys):
    values = write(tmp_path / "sd.2001.nc")
    with serving() as server:
        server.put("sd.2001.nc", (tmp_path / "sd.2001.nc").read_bytes())
        words = ["--source", server.url, "--years", "2001", "--out", str(tmp_path / "snow")]
        assert main(["data", "snow", *words]) == 0
    store = FieldStore(tmp_path / "snow" / "snow.zarr")
    assert store.units == "m" and store.years == [2001] and store.bounds is not None
    field = store.read(store.dates[:1])
    assert float(field.max()) <= np.nanmax(values[0]) and float(field.min()) >= 0
    assert main(["data", "verify", str(tmp_path / "snow")]) == 0
    with pytest.raises(SystemExit):
        main(["data", "--help"])
    assert "depth of snow" in capsys.readouterr().out


def test_a_recipe_reads_it_by_the_conventions_that_the_class_states(tmp_path, snow):
    values = write(tmp_path / "sd.nc")
    for settings in ({"source": "snow"}, {}):
        array = read(Modality("depth", (str(tmp_path / "sd.nc"),), "sd", "observation", **settings))
        np.testing.assert_array_equal(array.values, values)
    np.testing.assert_array_equal(snow.open(tmp_path / "sd.nc", "snow").values, values)


def test_a_source_without_a_folder_of_stores_leaves_those_of_others_found(snow, tmp_path):
    missing = Modality(
        "rain", (str(tmp_path / ARCHIVES["cpc"].folder.name / "precip.zarr"),), "precip", "state"
    )
    with pytest.raises(FileNotFoundError, match="slams data cpc"):
        _standing(missing)


def test_its_valid_range_and_its_header_are_tested_as_those_of_any_archive(tmp_path, snow):
    write(tmp_path / "deep.nc", highest=300.0)
    with pytest.raises(ValueError, match=r"snow snow in .* runs from .*, expected 0 to 30"):
        snow.open(tmp_path / "deep.nc", "snow").load()
    xr.Dataset({"rain": ("time", [1.0])}).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(ValueError, match="isn't a file of the archive 'snow'.*expected snow"):
        snow.check(tmp_path / "other.nc")
    assert [item.url for item in snow.items([1999, 1998])] == [
        "https://example.org/sd.1998.nc",
        "https://example.org/sd.1999.nc",
    ]
    with pytest.raises(ValueError, match="has the years 1990 to"):
        snow.items([1989])


def test_a_name_is_taken_once(snow):
    with pytest.raises(ValueError, match="there is a source 'snow' already"):
        register(Snow())


def test_each_line_of_the_registry_says_what_its_class_says():
    """The command line reads the lines alone."""
    assert list(SOURCES) == list(REGISTRY) and list(ARCHIVES) == ["era5", "cpc", "olr"]
    for name, archive in REGISTRY.items():
        assert archive.name == name
        assert (name in ARCHIVES) == isinstance(archive, Archive) == SOURCES[name].gridded
    listed = SOURCES["era5"].options["variables"].removeprefix("of ").partition(" (")[0]
    assert listed.split(", ") == list(ARCHIVES["era5"].variables)


def test_former_paths_lead_to_the_same_objects():
    from slams.data.planet.archive import simulate_archive
    from slams.data.store.store import FieldStore as there

    assert FieldStore is there and planet.simulate_archive is simulate_archive
    with pytest.raises(AttributeError, match="no attribute 'ERA6'"):
        _ = archives.ERA6
