"""Files written by hand with netCDF4 or xarray: nothing of the reader has a part in the expected values."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.files import axes
from slams.data.files.modality import Modality
from slams.data.files.read import read

LAT, LON = [50.0, 45.0, 40.0], [0.0, 5.0, 10.0, 15.0]


def grid(
    path,
    *,
    first="2000-02-27",
    count=4,
    lat=LAT,
    lon=LON,
    variable="tas",
    units="K",
    dims=("time", "lat", "lon"),
    values=None,
):
    """A plain file whose value at (day, lat, lon) is day + lat + lon / 100."""
    day = np.arange(count, dtype=float)
    if values is None:
        values = day[:, None, None] + np.asarray(lat)[None, :, None] + np.asarray(lon)[None, None, :] / 100
    coords = {
        dims[0]: np.datetime64(first, "ns") + (day * 86400e9).astype("timedelta64[ns]"),
        dims[1]: list(lat),
        dims[2]: list(lon),
    }
    array = xr.DataArray(values, coords, dims, variable, {"units": units} if units else {})
    array.to_netcdf(path)
    return str(path)


def modality(*paths, variable="tas", **settings):
    return Modality("air", tuple(map(str, paths)), variable, **({"role": "observation"} | settings))


def expected(lat=LAT, lon=LON, count=4):
    return (
        np.arange(count)[:, None, None]
        + np.asarray(lat)[None, :, None]
        + np.asarray(lon)[None, None, :] / 100
    )


def days(*texts):
    return np.array(texts, dtype="datetime64[D]")


def test_a_plain_file_is_read_as_it_stands(tmp_path):
    array = read(modality(grid(tmp_path / "a.nc")))
    assert array.dims == ("time", "lat", "lon") and array.dtype == np.float32
    assert array.name == "air" and array.attrs["source_name"] == "tas" and array.attrs["units"] == "K"
    np.testing.assert_allclose(array.values, expected(), rtol=1e-6)
    assert (
        array.time.values.astype("datetime64[D]").tolist()
        == days("2000-02-27", "2000-02-28", "2000-02-29", "2000-03-01").tolist()
    )


@pytest.mark.parametrize("order", [("lon", "lat", "time"), ("lat", "time", "lon")])
def test_axes_of_any_order_direction_and_convention_become_canonical(tmp_path, order):
    path = tmp_path / "a.nc"
    values = expected(LAT[::-1], [-10.0, 20.0, 5.0])
    coords = {"time": days("2000-01-01", "2000-01-02", "2000-01-03", "2000-01-04").astype("datetime64[ns]")}
    coords |= {"lat": LAT[::-1], "lon": [-10.0, 20.0, 5.0]}
    xr.DataArray(values, coords, ("time", "lat", "lon"), "tas").transpose(*order).to_netcdf(path)
    array = read(modality(path))
    assert array.lat.values.tolist() == LAT and array.lon.values.tolist() == [-10.0, 5.0, 20.0]
    np.testing.assert_allclose(array.values, expected(LAT, [-10.0, 5.0, 20.0]), rtol=1e-6)


@pytest.mark.parametrize(
    "dims",
    [
        ("valid_time", "latitude", "longitude"),
        ("time", "lat_o", "lon_o"),
        ("date", "Latitude", "LONGITUDE"),
        ("t", "nav_lat", "g0_lon_2"),
    ],
)
def test_axes_are_recognised_by_name(tmp_path, dims):
    np.testing.assert_allclose(
        read(modality(grid(tmp_path / "a.nc", dims=dims))).values, expected(), rtol=1e-6
    )


def test_axes_are_recognised_by_attributes_against_misleading_names(tmp_path):
    with netCDF4.Dataset(tmp_path / "a.nc", "w") as file:
        for name, size in (("t0", 2), ("rows", 3), ("columns", 4)):
            file.createDimension(name, size)
        for name, attrs, values in (
            ("t0", {"units": "days since 1999-12-31", "standard_name": "time"}, [1, 2]),
            ("rows", {"units": "degrees_east"}, [10, 20, 30]),
            ("columns", {"axis": "Y"}, [-30, -10, 10, 30]),
        ):
            variable = file.createVariable(name, "f8", (name,))
            variable.setncatts(attrs)
            variable[:] = values
        tas = file.createVariable("tas", "f4", ("t0", "rows", "columns"))
        tas[:] = np.arange(24).reshape(2, 3, 4)
    array = read(modality(tmp_path / "a.nc"))
    assert array.lat.values.tolist() == [30, 10, -10, -30] and array.lon.values.tolist() == [10, 20, 30]
    assert np.array_equal(array.values, np.arange(24).reshape(2, 3, 4).transpose(0, 2, 1)[:, ::-1])


def test_axes_without_name_or_attribute_are_told_apart_by_their_values(tmp_path):
    path = grid(tmp_path / "a.nc", dims=("time", "j", "i"), lon=[0.0, 90.0, 180.0, 270.0])
    np.testing.assert_allclose(
        read(modality(path)).values, expected(lon=[0.0, 90.0, 180.0, 270.0]), rtol=1e-6
    )
    ambiguous = grid(tmp_path / "b.nc", dims=("time", "j", "i"))
    with pytest.raises(ValueError, match=r"no latitude.*name its dimension and coordinate 'lat'"):
        read(modality(ambiguous))


@pytest.mark.parametrize(
    "name, role",
    [
        ("isobaricInhPa", "level"),
        ("isobaric3", "level"),
        ("plev", "level"),
        ("stn_lat", "lat"),
        ("lon_g", "lon"),
        ("platform", None),
        ("longname", None),
        ("latent_heat", None),
    ],
)
def test_names_are_matched_by_word_not_by_letters(name, role):
    assert axes.role_by_name(name) == role


def test_projected_coordinates_are_refused(tmp_path):
    array = xr.DataArray(
        np.zeros((1, 2, 2)), {"time": days("2000-01-01").astype("datetime64[ns]")}, ("time", "y", "x"), "tas"
    )
    array = array.assign_coords(
        y=("y", [0.0, 1.0], {"standard_name": "projection_y_coordinate", "axis": "Y", "units": "m"})
    )
    array.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(ValueError, match="must be regridded first"):
        read(modality(tmp_path / "a.nc"))


# Stations


def stations(path, dim="station", rename=None, count=3):
    values = np.array([[1, 2], [3, np.nan], [5, 6]], dtype=np.float32)[:count]
    coords = {"time": np.arange(count).astype("datetime64[D]").astype("datetime64[ns]")}
    coords |= {"stn_lat": (dim, [41.5, 40.0]), "stn_lon": (dim, [2.0, -3.0])}
    array = xr.DataArray(values, coords, ("time", dim), "stn_tas", {"units": "degC"})
    array.rename(rename or {}).transpose().to_netcdf(path)
    return str(path)


@pytest.mark.parametrize(
    "dim, rename",
    [("station", {}), ("row", {"stn_lat": "latitude", "stn_lon": "longitude"}), ("stn", {"stn_lat": "LAT"})],
)
def test_stations_carry_their_places(tmp_path, dim, rename):
    array = read(
        modality(stations(tmp_path / "s.nc", dim, rename), variable="stn_tas", kind="stations", units="K")
    )
    assert array.dims == ("time", "station")
    assert array.lat.values.tolist() == [41.5, 40.0] and array.lon.values.tolist() == [2.0, -3.0]
    np.testing.assert_allclose(array.values, np.array([[1, 2], [3, np.nan], [5, 6]]) + 273.15, rtol=1e-6)


def test_stations_read_as_a_grid_name_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="declare kind='stations'"):
        read(modality(stations(tmp_path / "s.nc"), variable="stn_tas"))


def test_a_grid_read_as_stations_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match=r"kind='grid'|look like"):
        read(modality(grid(tmp_path / "a.nc"), kind="stations"))


# Files


def test_files_of_a_glob_are_joined_in_time_whatever_their_names_and_conventions(tmp_path):
    grid(tmp_path / "b_first.nc", first="2000-02-25", count=2, lat=LAT[::-1])
    grid(tmp_path / "a_later.nc", first="2000-02-27", count=4)
    array = read(modality(tmp_path / "*.nc"))
    assert np.array_equal(
        array.time.values.astype("datetime64[D]"),
        np.arange("2000-02-25", "2000-03-02", dtype="datetime64[D]"),
    )
    np.testing.assert_allclose(
        array.values, np.concatenate([expected(count=2), expected(count=4)]), rtol=1e-6
    )


def test_zarr_is_read_like_netcdf(tmp_path):
    path = grid(tmp_path / "a.nc")
    with xr.open_dataset(path) as dataset:
        dataset.to_zarr(tmp_path / "a.zarr", zarr_format=2, consolidated=True)
        dataset.to_zarr(tmp_path / "b.zarr", zarr_format=3, consolidated=False)
    for name in ("a.zarr", "b.zarr"):
        xr.testing.assert_identical(read(modality(tmp_path / name)), read(modality(path)))


def test_a_missing_file_lists_names_near_to_it(tmp_path):
    grid(tmp_path / "precip.1999.nc")
    with pytest.raises(FileNotFoundError, match=r"precip\.1989\.nc.*folder holds precip\.1999\.nc"):
        read(modality(tmp_path / "precip.1989.nc"))
    with pytest.raises(FileNotFoundError, match="doesn't exist either"):
        read(modality(tmp_path / "nowhere" / "*.nc"))


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "a.nc"
    grid(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(ValueError, match=r"a\.nc can't be opened.*cut short"):
        read(modality(path))


def test_a_missing_variable_names_the_available_and_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"no variable 'tass'.*\['tas'\]: did you mean 'tas'\?"):
        read(modality(grid(tmp_path / "a.nc"), variable="tass"))


def test_files_on_different_grids_are_named(tmp_path):
    one, two = grid(tmp_path / "a.nc"), grid(tmp_path / "b.nc", first="2001-01-01", lat=[50.0, 40.0])
    with pytest.raises(ValueError, match=r"b\.nc holds 2 x 4 points.*a\.nc holds 3 x 4 points"):
        read(modality(one, two))


def test_files_in_different_units_are_named(tmp_path):
    one, two = grid(tmp_path / "a.nc"), grid(tmp_path / "b.nc", first="2001-01-01", units="degC")
    with pytest.raises(ValueError, match="'degC'.*'K'"):
        read(modality(one, two))
    both = read(modality(one, two, units="degC"))
    np.testing.assert_allclose(both.values[:4] + 273.15, both.values[4:], rtol=1e-5)


# Levels and units


def levels(path, unit="hPa", values=(1000.0, 500.0, 850.0)):
    coords = {
        "time": days("2000-01-01").astype("datetime64[ns]"),
        "plev": ("plev", list(values), {"units": unit}),
        "lat": LAT,
        "lon": LON,
    }
    data = np.broadcast_to(np.arange(3.0)[None, :, None, None], (1, 3, 3, 4))
    xr.DataArray(data, coords, ("time", "plev", "lat", "lon"), "tas", {"units": "K"}).to_netcdf(path)
    return str(path)


@pytest.mark.parametrize("unit, scale", [("hPa", 1.0), ("millibars", 1.0), ("Pa", 100.0)])
def test_levels_are_chosen_by_label_in_the_order_asked(tmp_path, unit, scale):
    path = levels(tmp_path / "a.nc", unit, [scale * level for level in (1000.0, 500.0, 850.0)])
    array = read(modality(path, levels=(500, 1000)))
    assert array.dims == ("time", "level", "lat", "lon") and array.level.values.tolist() == [500, 1000]
    assert array.values[0, :, 0, 0].tolist() == [1, 0]


def test_a_missing_level_names_the_nearest_and_all(tmp_path):
    with pytest.raises(ValueError, match=r"no level 700 hPa; the nearest is 850.*1000.*500"):
        read(modality(levels(tmp_path / "a.nc"), levels=(700,)))
    with pytest.raises(ValueError, match="has no level"):
        read(modality(grid(tmp_path / "b.nc"), levels=(700,)))


def test_a_unit_that_cannot_be_reached_names_what_can(tmp_path):
    with pytest.raises(
        ValueError, match=r"in 'K', from which 'm' can't be reached; ask for one of \['K', 'degC'\]"
    ):
        read(modality(grid(tmp_path / "a.nc"), units="m"))
    with pytest.raises(ValueError, match="states no unit"):
        read(modality(grid(tmp_path / "b.nc", units=None), units="K"))


def test_conversion_keeps_the_precision_of_small_rates(tmp_path):
    values = np.full((4, 3, 4), 1.5e-5, dtype=np.float32)
    array = read(modality(grid(tmp_path / "a.nc", values=values, units="kg m-2 s-1"), units="mm/day"))
    np.testing.assert_allclose(array.values, 1.296, rtol=1e-6)
    assert array.attrs["units"] == "mm/day"


def test_new_files_are_read_in_the_unit_of_the_training(tmp_path):
    kelvin, bare = grid(tmp_path / "a.nc", units="K"), grid(tmp_path / "b.nc", units=None)
    array = read(modality(kelvin), trained="degC")
    np.testing.assert_allclose(array.values, expected() - 273.15, rtol=1e-5)
    assert array.attrs["units"] == "degC"
    with pytest.warns(DataWarning, match="'air': the file states no unit.*in 'degC'"):
        np.testing.assert_allclose(read(modality(bare), trained="degC").values, expected(), rtol=1e-6)
    with pytest.warns(DataWarning, match="the training stated no unit.*in 'K'"):
        read(modality(kelvin), trained="")
    with pytest.raises(ValueError, match="in 'K', from which 'mm' can't be reached"):
        read(modality(kelvin), trained="mm")


def test_energy_as_the_total_of_a_day_is_told(tmp_path):
    with pytest.warns(DataWarning, match="'J m-2' becomes 'W m-2' as the total of a day"):
        array = read(modality(grid(tmp_path / "a.nc", units="J m-2"), units="W m-2"))
    np.testing.assert_allclose(array.values, expected() / 86400, rtol=1e-6)


# Times


def timed(path, stamps, **attrs):
    """A file with raw time stamps, written by netCDF4."""
    with netCDF4.Dataset(path, "w") as file:
        for name, values in (("time", stamps), ("lat", LAT), ("lon", LON)):
            file.createDimension(name, len(values))
            file.createVariable(name, "f8", (name,))[:] = values
        file["time"].setncatts(attrs)
        file.createVariable("tas", "f4", ("time", "lat", "lon"))[:] = np.arange(len(stamps))[
            :, None, None
        ] * np.ones((1, 3, 4))
    return str(path)


def test_hours_of_a_stamp_are_dropped(tmp_path):
    array = read(modality(timed(tmp_path / "a.nc", [12.0, 36.0, 60.0], units="hours since 2000-02-28")))
    assert (
        array.time.values.astype("datetime64[D]").tolist()
        == days("2000-02-28", "2000-02-29", "2000-03-01").tolist()
    )


def test_a_calendar_without_leap_days_keeps_its_labels(tmp_path):
    array = read(
        modality(
            timed(tmp_path / "a.nc", [57.5, 58.5, 59.5], units="days since 2000-01-01", calendar="noleap")
        )
    )
    assert (
        array.time.values.astype("datetime64[D]").tolist()
        == days("2000-02-27", "2000-02-28", "2000-03-01").tolist()
    )


def test_a_day_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match="360_day.*convert_calendar"):
        read(
            modality(
                timed(tmp_path / "a.nc", [58.5, 59.5], units="days since 2000-01-01", calendar="360_day")
            )
        )


def test_times_without_a_date_are_refused(tmp_path):
    with pytest.raises(ValueError, match="without a date; give it units"):
        read(modality(timed(tmp_path / "a.nc", [1.0, 2.0])))


def test_unsorted_times_name_file_and_times(tmp_path):
    with pytest.raises(
        ValueError, match=r"a\.nc: times aren't sorted, 2000-01-02 follows 2000-01-04.*sortby"
    ):
        read(modality(timed(tmp_path / "a.nc", [0, 3, 1], units="days since 2000-01-01")))


def test_repeated_days_in_one_file_and_across_files_are_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"2 days come more than once \(2000-01-01, 2000-01-02\) in .*a\.nc; average"
    ):
        read(modality(timed(tmp_path / "a.nc", [0, 0.5, 1, 1.5], units="days since 2000-01-01")))
    one, two = grid(tmp_path / "b.nc"), grid(tmp_path / "c.nc", first="2000-03-01")
    with pytest.raises(ValueError, match=r"\(2000-03-01\) in .*b\.nc and .*c\.nc"):
        read(modality(one, two))


def test_dates_select_days_and_none_in_common_is_an_error(tmp_path):
    path = grid(tmp_path / "a.nc")
    array = read(modality(path), days("2000-03-01", "2000-02-28", "1990-01-01"))
    np.testing.assert_allclose(array.values, expected()[[1, 3]], rtol=1e-6)
    with pytest.raises(
        ValueError, match="hold 2000-02-27 to 2000-03-01, asked were 1990-01-01 to 1990-01-01"
    ):
        read(modality(path), days("1990-01-01"))


# Values


def test_an_empty_day_is_named_unless_allowed(tmp_path):
    values = expected()
    values[2] = np.nan
    path = grid(tmp_path / "a.nc", values=values)
    with pytest.raises(ValueError, match=r"1 days without a single value \(2000-02-29\), in .*a\.nc"):
        read(modality(path))
    assert np.isnan(read(modality(path), allow_empty_days=True).values[2]).all()
    assert read(modality(path), days("2000-02-28", "2000-03-01")).sizes["time"] == 2


def test_an_empty_level_of_a_day_is_named(tmp_path):
    path = levels(tmp_path / "a.nc")
    with xr.open_dataset(path) as dataset:
        dataset.load()
    dataset.where(dataset.plev != 850).to_netcdf(tmp_path / "b.nc")
    with pytest.raises(ValueError, match="2000-01-01"):
        read(modality(tmp_path / "b.nc"))
    assert read(modality(tmp_path / "b.nc", levels=(500,))).notnull().all()


@pytest.mark.parametrize("fill", [-9.96921e36, 9.96921e36, 1e20])
def test_fill_values_that_no_attribute_declares_are_missing(tmp_path, fill):
    values = expected().astype(np.float32)
    values[1, 2, 3] = fill
    array = read(modality(grid(tmp_path / "a.nc", values=values)))
    assert np.isnan(array.values[1, 2, 3]) and np.isnan(array.values).sum() == 1


def test_infinite_values_are_refused(tmp_path):
    values = expected()
    values[1, 1, 1] = np.inf
    with pytest.raises(ValueError, match="infinite"):
        read(modality(grid(tmp_path / "a.nc", values=values)))


def test_packing_of_the_source_does_not_return_when_the_field_is_written(tmp_path):
    array = xr.DataArray(
        expected(),
        {"time": np.arange(4).astype("datetime64[D]").astype("datetime64[ns]"), "lat": LAT, "lon": LON},
        name="tas",
    )
    array.to_netcdf(
        tmp_path / "a.nc",
        encoding={"tas": {"dtype": "int16", "scale_factor": 0.01, "add_offset": 50.0, "_FillValue": -1}},
    )
    field = read(modality(tmp_path / "a.nc")) + np.float32(0.003)
    assert read(modality(tmp_path / "a.nc")).encoding == {}
    read(modality(tmp_path / "a.nc")).to_netcdf(tmp_path / "b.nc")
    with netCDF4.Dataset(tmp_path / "b.nc") as opened:
        assert opened["air"].dtype == np.float32
    np.testing.assert_allclose(field.values, expected() + 0.003, atol=0.006)
