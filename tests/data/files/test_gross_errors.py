"""Markers and impossible values are missing, counted and told; no record of the real weather is."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.files.gross_errors import possible_range, undeclared
from slams.data.files.modality import Modality
from slams.data.files.read import read

EXTREMES = [  # of the World Meteorological Organization's archive, and of satellites' long-wave radiation
    ("tas", "degC", 56.7),
    ("t2m", "K", 183.95),
    ("tmin", "degF", -128.6),
    ("pr", "mm/day", 1825.0),
    ("tp", "m", 1.825),
    ("pr", "kg m-2 s-1", 1825 / 86400),
    ("rain", "mm", 0.0),
    ("psl", "hPa", 870.0),
    ("msl", "Pa", 108480.0),
    ("olr", "W m-2", 70.0),
    ("rlut", "W m-2", 350.0),
    ("u", "m s-1", 140.0),
    ("z", "m2 s-2", -9000.0),
    ("ta", "K", 130.0),
]


@pytest.mark.parametrize("name, units, value", EXTREMES)
def test_records_of_the_weather_are_possible(name, units, value):
    _, low, high = possible_range({"source_name": f"stn_{name}", "units": units})
    assert low <= value <= high


@pytest.mark.parametrize(
    "name, units, value",
    [
        ("tas", "degC", 99.9),
        ("tas", "degC", -99.0),
        ("air", "K", 373.05),
        ("pr", "mm", -1.0),
        ("tp", "m", 9.999),
        ("psl", "hPa", 1200.0),
        ("olr", "W m-2", -0.02),
        ("q", "g kg-1", 99.0),
        ("anything", "K", -1.0),
    ],
)
def test_values_out_of_any_weather_are_impossible(name, units, value):
    _, low, high = possible_range({"source_name": name, "units": units})
    assert not low <= value <= high


def test_differences_and_unknown_quantities_have_no_range():
    for attrs in ({"units": "K", "long_name": "anomaly"}, {"units": "1"}, {"units": ""}, {"units": "m3 m-3"}):
        assert possible_range({"source_name": "x"} | attrs) is None


def stations(path, values, variable="rain", units="mm", **encoding):
    """Four days at stations, one column a value."""
    days = np.arange("2001-01-01", "2001-01-05", dtype="datetime64[D]").astype("datetime64[ns]")
    count = len(values)
    data = (("time", "station"), np.tile(np.asarray(values, "f4"), (4, 1)), {"units": units})
    place = {"lat": ("station", 2.0 * np.arange(1, count + 1)), "lon": ("station", np.arange(1.0, count + 1))}
    xr.Dataset({variable: data}, {"time": days, **place}).to_netcdf(path, encoding={variable: encoding})
    return Modality("g", (str(path),), variable, "observation", kind="stations")


@pytest.mark.parametrize("marker", [-999.0, -9999.0, 9999.0, -999.9, 99999.0, 1e15, -32767.0])
@pytest.mark.parametrize("units", ["mm", "", "1", "degC", "K"])
def test_a_marker_that_nothing_declares_is_missing_and_told(tmp_path, marker, units):
    with pytest.warns(
        DataWarning, match=r"g: of 12 values are left out: 4 markers .*\(the first .* on 2001-01-01\)"
    ):
        array = read(stations(tmp_path / "s.nc", [5.0, marker, 0.0], "x", units))
    np.testing.assert_array_equal(array.values[0], [5.0, np.nan, 0.0])


def test_two_markers_are_missing():
    values = np.array([1.0, -999.0, 2.0, 9999.0, 3.0, -999.0])
    np.testing.assert_array_equal(undeclared(values), [False, True, False, True, False, True])


@pytest.mark.parametrize(
    "values", [[990.0, 999.0, 1003.0], [0.0, 500.0, 999.0], [-999.0, -1200.0, 300.0], [999.0]]
)
def test_a_value_among_others_is_no_marker(values):
    assert not undeclared(np.array(values)).any()


@pytest.mark.parametrize("marker", [-99.0, -99.9, 99.9, 999.0, -8888.0, -9999999.0])
@pytest.mark.parametrize("share", [0.03, 0.3])
def test_markers_that_come_again_and_again_are_missing(marker, share):
    """However wide the field, and however many there are; the same number once may be an extreme."""
    rng = np.random.default_rng(3)
    values = rng.normal(12, 8, (200, 20)).astype("f4")
    wrong = rng.random(values.shape) < share
    np.testing.assert_array_equal(undeclared(np.where(wrong, np.float32(marker), values)), wrong)
    values[0, 0] = np.sign(marker) * 99.9
    assert not undeclared(values).any()


@pytest.mark.parametrize(("marker", "scale", "offset"), [(-9999, 0.01, 273.15), (32767, 0.01, 477.66)])
def test_markers_may_be_packed_numbers(marker, scale, offset):
    values = np.random.default_rng(4).normal(285, 8, (200, 20)).astype("f4")
    wrong = np.random.default_rng(5).random(values.shape) < 0.3
    marked = np.where(wrong, np.float32(marker * scale + offset), values)
    np.testing.assert_array_equal(undeclared(marked, (scale, offset)), wrong)
    assert not undeclared(marked).any()


def test_impossible_values_are_missing_unless_kept(tmp_path):
    values = [5.0, -3.0, 0.0, 1825.0, 2500.0, *np.linspace(1, 20, 10)]
    wanted = np.where((np.array(values) < 0) | (np.array(values) > 2000), np.nan, values).astype("f4")
    modality = stations(tmp_path / "s.nc", values)
    with pytest.warns(DataWarning, match=r"8 outside -0.1 to 2000 mm, the possible range of rain"):
        np.testing.assert_array_equal(read(modality).values[2], wanted)
    kept = Modality("g", modality.files, "rain", "observation", kind="stations", gross_errors=False)
    np.testing.assert_array_equal(read(kept).values[2], np.float32(values))


def test_values_that_are_mostly_impossible_mean_another_unit(tmp_path):
    with pytest.warns(DataWarning, match="none was left out, since so many mean another unit"):
        array = read(stations(tmp_path / "s.nc", [285.0, 290.0, 280.0], "tas", "degC"))
    assert array.notnull().all()


@pytest.mark.parametrize(
    "attributes, missing",
    [
        ({"valid_range": np.array([0.0, 100.0], "f4")}, [2, 3]),
        ({"valid_min": np.float32(0)}, [2, 3]),
        ({"valid_max": np.float32(5)}, [3, 5]),  # -999 is a marker beside it
        ({"valid_min": np.float32(-100), "valid_max": np.float32(5)}, [3, 5]),
        ({"missing_value": "-99, -999"}, [2, 3]),
        ({"missing_value": np.array([-99, -999], "f4")}, [2, 3]),
        ({"missing_value": np.float32(-99), "_FillValue": np.float32(-999)}, [2, 3]),
    ],
)
def test_declared_ranges_and_markers_are_obeyed(tmp_path, attributes, missing):
    array = read_raw(tmp_path / "d.nc", "f4", [1, 2, -99, -999, 5, 6], attributes)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(array)), missing)


PACKED = {"scale_factor": 0.01, "add_offset": 327.65}


@pytest.mark.parametrize(
    "attributes",
    [
        {"missing_value": np.int16(32766)},
        {"missing_value": np.float32(655.31)},
        {"missing_value": "32766"},
        {"valid_range": np.array([0, 500], "f4")},  # unpacked units, by type
        {"valid_range": np.array([-32765, 17235], "i2")},  # packed units, by type
        {"valid_range": np.array([0, 500], "i2")},  # unpacked units in spite of their type
        {"valid_range": np.array([0, 500], "f4"), "missing_value": np.int16(32766)},
        {"_FillValue": np.int16(32766), "valid_max": np.float32(500)},
    ],
)
def test_packed_values_obey_ranges_in_packed_and_unpacked_units(tmp_path, attributes):
    """What NOAA's files of radiation declare, in units of the packed and of the unpacked values."""
    raw = [-10000, -8000, 32766, -5000, -7000, -9000]
    array = read_raw(tmp_path / "d.nc", "i2", raw, PACKED | attributes)
    wanted = np.array([227.65, 247.65, np.nan, 277.65, 257.65, 237.65])
    np.testing.assert_allclose(array, wanted, rtol=1e-6)


def test_packed_values_without_a_marker_have_that_of_the_library(tmp_path):
    array = read_raw(tmp_path / "d.nc", "i2", [-10000, -8000, -32767, -5000, -7000, -9000], PACKED)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(array)), [2])


def read_raw(path, dtype, values, attributes):
    """The first day of six stored values with attributes as given."""
    with netCDF4.Dataset(path, "w") as file:
        for name, size in (("time", 2), ("lat", 2), ("lon", 3)):
            file.createDimension(name, size)
            axis = file.createVariable(name, "f8", (name,))
            axis[:] = np.arange(size)
        file["time"].units = "days since 2001-01-01"
        attributes = dict(attributes)
        fill = attributes.pop("_FillValue", None)
        variable = file.createVariable("x", dtype, ("time", "lat", "lon"), fill_value=fill)
        variable.set_auto_maskandscale(False)
        variable.setncatts(attributes | {"units": "1"})
        variable[:] = np.tile(np.asarray(values, dtype).reshape(2, 3), (2, 1, 1))
    array = read(Modality("x", (str(path),), "x", "observation"), allow_empty_days=True)
    return array.values[0, ::-1].ravel()  # stored from the south


@pytest.mark.parametrize(
    "values", [[999.0, 1003.5], [999.0, 999.0, 999.0, 1000.0, 1001.0], [99.9, 99.9, 99.9, 98.0, 99.0]]
)
def test_values_near_a_marker_by_its_own_size_are_kept(values):
    """Pressure of few stations at sea level, and saturated air."""
    assert not undeclared(np.array(values)).any()


def test_a_field_of_values_as_large_as_markers_is_kept():
    assert not undeclared(np.linspace(2e10, 9e10, 5000)).any()


def test_humidity_as_a_fraction_is_relative():
    name, low, high = possible_range({"source_name": "relative_humidity", "units": "1"})
    assert (name, low, high) == ("relative humidity", pytest.approx(-0.3), pytest.approx(2.0))
