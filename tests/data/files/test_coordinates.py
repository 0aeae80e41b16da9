"""Coordinates of files: regions across a seam, units of places, and levels that are no pressure."""

import numpy as np
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.files.coordinates import region
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.data.processing.regrid import Grid
from slams.pipeline.inputs.layout import Layout

DAYS = np.array(["2001-01-01", "2001-01-02"], "datetime64[ns]")
LAT = np.arange(50.0, 29, -1)
EAST, NORTH = {"units": "degrees_east"}, {"units": "degrees_north"}


def on_grid(path, lon, lat=LAT, lon_attrs=EAST, lat_attrs=NORTH, names=("lat", "lon")):
    """A field equal to its longitude on the ground, in -180 to 180."""
    ground = (np.asarray(lon) + 180) % 360 - 180
    field = np.broadcast_to(ground, (2, len(lat), len(lon))).astype("f4")
    coords = {"time": DAYS, names[0]: (names[0], lat, lat_attrs), names[1]: (names[1], lon, lon_attrs)}
    xr.Dataset({"t": (("time", *names), field, {"units": "K"})}, coords).to_netcdf(path)
    return read(Modality("air", (str(path),), "t", "state"))


ACROSS = [
    np.r_[np.arange(350.0, 360), np.arange(0.0, 11)],
    np.r_[np.arange(0.0, 11), np.arange(350.0, 360)],
    np.r_[np.arange(170.0, 180), np.arange(-180.0, -169)],
    np.r_[np.arange(-180.0, -169), np.arange(170.0, 180)],
    np.arange(170.0, 191),
    np.arange(350.0, 371),
    np.arange(-190.0, -169),
    np.arange(-10.0, 11),
]


@pytest.mark.parametrize("lon", ACROSS)
def test_a_region_across_a_seam_is_an_open_strip(tmp_path, lon):
    """Twenty-one columns, neighbours on the ground neighbours in the array, its area that of the strip."""
    array = on_grid(tmp_path / "a.nc", lon)
    np.testing.assert_allclose(np.diff(array.lon.values), 1.0, atol=1e-9)
    ground = (array.lon.values + 180) % 360 - 180
    np.testing.assert_allclose(array.values[0, 0], ground, atol=1e-4)
    grid = Grid.of(array)
    strip = (np.sin(np.deg2rad(50.5)) - np.sin(np.deg2rad(29.5))) / 2 * 21 / 360
    assert not grid.periodic and grid.area.sum() == pytest.approx(strip, rel=1e-9)
    assert not Layout.of(array).is_global


@pytest.mark.parametrize(
    "lon", [np.r_[0.0, 345.0:360.0:5.0], np.array([10.0, 350.0]), np.r_[345.0:360:1.5, 0:15.1:1.5]]
)
def test_few_columns_across_greenwich_stay_together(lon):
    _, line = region(lon, "x")
    assert (np.diff(line) > 0).all() and line[-1] - line[0] <= 30.0


@pytest.mark.parametrize(
    "lon", [np.arange(0.0, 361, 30), np.arange(-180.0, 181, 30), np.arange(-30.0, 391, 30)]
)
def test_a_meridian_that_comes_again_is_dropped_and_told(tmp_path, lon):
    with pytest.warns(DataWarning, match="meridians come again after a turn"):
        array = on_grid(tmp_path / "a.nc", lon)
    assert array.lon.size == 12 and Layout.of(array).is_global and Grid.of(array).periodic
    ground = (array.lon.values + 180) % 360 - 180
    np.testing.assert_allclose(np.abs(array.values[0, 0]), np.abs(ground), atol=1e-4)


@pytest.mark.parametrize(
    "lon", [np.arange(0.0, 360, 30), np.arange(-180.0, 180, 30), np.array([0.25, 90, 180, 270, 359.75])]
)
def test_a_circle_keeps_its_convention(lon):
    order, line = region(lon, "x")
    assert np.array_equal(order, np.arange(lon.size)) and np.array_equal(line, lon)


def test_units_of_places_are_converted(tmp_path):
    lon = np.arange(3.0, -18, -1)
    west = on_grid(tmp_path / "a.nc", -lon, lon_attrs={"units": "degrees_west"})
    np.testing.assert_allclose(west.lon.values, np.sort(lon), atol=1e-9)
    south = on_grid(
        tmp_path / "b.nc", np.arange(5.0), lat=np.arange(10.0, 15), lat_attrs={"units": "degrees_south"}
    )
    np.testing.assert_allclose(south.lat.values, -np.arange(10.0, 15), atol=1e-9)
    radians = {"lat_attrs": {"units": "radians"}, "lon_attrs": {"units": "radian"}}
    array = on_grid(tmp_path / "c.nc", np.deg2rad(np.arange(5.0)), np.deg2rad(LAT), **radians)
    np.testing.assert_allclose(array.lon.values, np.arange(5.0), atol=1e-9)
    np.testing.assert_allclose(array.lat.values, LAT, atol=1e-9)


WRONG = [
    ({"lon": np.arange(398.0, 403)}, "longitudes run from 398 to 402"),
    ({"lon": np.array([1.0, 2.0, 400.0])}, "longitudes run from 1 to 400"),
    ({"lon": np.array([1.0, 2.0, -9999.0])}, "marker of missing values"),
    ({"lon": np.array([1.0, 1.0, 2.0])}, "longitude 1 comes more than once"),
    ({"lon": np.array([1.0, np.nan, 2.0])}, r"longitude 1 \(numbered from 0\) of 3 is missing"),
    ({"lon": np.arange(3.0), "lat": np.array([1.0, 1.0])}, "latitude 1 comes more than once"),
    (
        {"lon": np.arange(3.0), "lat": np.array([1.0, np.nan])},
        r"latitude 1 \(numbered from 0\) of 2 is missing",
    ),
    ({"lon": np.arange(3.0), "lat": np.array([100.0, 80.0])}, "latitudes reach 100.*swapped"),
    ({"lon": np.arange(3.0), "lat_attrs": {"units": "m"}}, "latitude is in 'm'.*projection"),
    ({"lon": np.arange(0.0, 3e5, 1e5), "lon_attrs": {"units": "km"}}, "longitude is in 'km'.*projection"),
    (
        {"lon": np.array([0.0, 100.0, 200.0]), "lon_attrs": {}, "lat_attrs": {}, "names": ("y", "x")},
        "regridded first",
    ),
]


@pytest.mark.parametrize("settings, reason", WRONG)
def test_lines_that_are_no_degrees_are_refused_with_the_reason(tmp_path, settings, reason):
    with pytest.raises(ValueError, match=reason):
        on_grid(tmp_path / "a.nc", **settings)


# Levels


def on_levels(path, values, attrs, name="level"):
    """A field equal to the number of its level."""
    field = np.broadcast_to(np.arange(len(values))[None, :, None, None], (2, len(values), 2, 3)).astype("f4")
    coords = {"time": DAYS, name: (name, values, attrs), "lat": [1.0, 0.0], "lon": [0.0, 1.0, 2.0]}
    xr.Dataset({"t": (("time", name, "lat", "lon"), field, {"units": "K"})}, coords).to_netcdf(path)
    return read(Modality("air", (str(path),), "t", "state"))


PRESSURE = [
    ([850.0, 500.0], {}, "level"),
    ([1, 10, 100, 1000], {}, "level"),
    ([85000.0, 50000.0], {"units": "Pa"}, "level"),
    ([85000.0, 50000.0], {"units": "pascals"}, "lev"),
    ([85.0, 50.0], {"units": "kPa"}, "level"),
    ([0.85, 0.5], {"units": "bar"}, "level"),
    ([850.0, 500.0], {"units": "millibars"}, "level"),
    ([85000.0, 50000.0], {"standard_name": "air_pressure"}, "level"),
    ([85000.0, 50000.0], {}, "plev"),
    ([50.0, 10.0], {"long_name": "pressure_level"}, "level"),
    ([50.0, 10.0], {}, "isobaricInhPa"),
    ([500.0, 100.0], {}, "isobaricInPa"),
    ([850.0, 500.0], {"units": "hPa", "positive": "up"}, "level"),
]


@pytest.mark.parametrize("values, attrs, name", PRESSURE)
def test_pressure_is_known_by_unit_or_name(tmp_path, values, attrs, name):
    scale = {"Pa": 0.01, "pascals": 0.01, "kPa": 10.0, "bar": 1000.0}.get(attrs.get("units", ""), 1.0)
    scale = 0.01 if not attrs.get("units") and (max(values) > 1100 or name == "isobaricInPa") else scale
    array = on_levels(tmp_path / "a.nc", values, attrs, name)
    np.testing.assert_allclose(array.level.values, scale * np.asarray(values), rtol=1e-9)


OTHER = [
    ([85000.0, 50000.0], {}, "level"),
    (list(range(1, 138)), {}, "level"),
    (list(range(1, 138)), {"units": "1", "long_name": "model_level_number"}, "level"),
    (list(range(300, 305)), {}, "level"),
    ([10.0, 50.0, 100.0], {}, "level"),
    ([10.0, 50.0, 100.0], {"units": "m", "positive": "up"}, "level"),
    ([500.0, 850.0], {"positive": "up"}, "level"),
    ([5.0, 500.0], {"units": "meters", "axis": "Z", "positive": "down"}, "level"),
    ([5.0, 500.0], {"units": "dbar", "standard_name": "sea_water_pressure"}, "lev"),
    ([5.0, 500.0], {"units": "dbar"}, "level"),
    ([85000.0, 50000.0], {"units": "hPa"}, "level"),
    ([0.9, 0.5], {"units": "1", "long_name": "sigma"}, "level"),
    ([0.9, 0.5], {}, "lev"),
    ([315.0, 330.0], {"units": "K"}, "level"),
    ([992.5, 850.2], {"units": "hPa", "standard_name": "atmosphere_hybrid_sigma_pressure_coordinate"}, "lev"),
    ([500.0, 850.0], {"units": "hPa", "long_name": "hybrid level at midpoints (1000*(A+B))"}, "lev"),
]


@pytest.mark.parametrize("values, attrs, name", OTHER)
def test_levels_that_are_no_pressure_are_refused_with_the_remedy(tmp_path, values, attrs, name):
    with pytest.raises(ValueError, match=r"isn't known to be pressure.*units = 'hPa'.*air_pressure"):
        on_levels(tmp_path / "a.nc", values, attrs, name)


def test_a_single_height_is_left_out_and_told(tmp_path):
    with pytest.warns(DataWarning, match=r"its level 10 \[m\] is no pressure, and is left out"):
        array = on_levels(tmp_path / "a.nc", [10.0], {"units": "m"})
    assert array.dims == ("time", "lat", "lon")
