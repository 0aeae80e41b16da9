"""The headers of the real archives, written by hand, and the real files where they are."""

import netCDF4
import numpy as np
import pytest
import xarray as xr

from slams.core.errors import DataWarning
from slams.data.files.canonical import join_expver
from slams.data.files.modality import Modality
from slams.data.files.read import align, read

LAT, LON = np.array([60.0, 30.0, 0.0, -30.0]), np.array([0.0, 90.0, 180.0, 270.0, 315.0])


def archive(path, variables, dims):
    """Write a netCDF file: variables {name: (type, dims, attrs, raw values)}; `_FillValue` only if given."""
    with netCDF4.Dataset(path, "w", format="NETCDF4_CLASSIC") as file:
        file.set_auto_maskandscale(False)
        for name, size in dims.items():
            file.createDimension(name, size)
        for name, (kind, axes, attrs, values) in variables.items():
            attrs = dict(attrs)
            variable = file.createVariable(name, kind, axes, fill_value=attrs.pop("_FillValue", None))
            variable.set_auto_maskandscale(False)
            variable.setncatts(attrs)
            variable[...] = values
    return str(path)


def axis(lat=LAT, lon=LON):
    return {
        "lat": ("f4", ("lat",), {"units": "degrees_north", "axis": "Y"}, lat),
        "lon": ("f4", ("lon",), {"units": "degrees_east", "axis": "X"}, lon),
    }


def cpc(path, year, rain):
    hours = (np.datetime64(f"{year}-01-01") - np.datetime64("1900-01-01")).astype(int) * 24 + 24 * np.arange(
        len(rain)
    )
    attrs = {"missing_value": np.float32(-9.96921e36), "units": "mm", "dataset": "CPC Global Precipitation"}
    attrs |= {"valid_range": np.array([0, 1000], "f4"), "var_desc": "Precipitation"}
    time = ("f8", ("time",), {"units": "hours since 1900-01-01", "delta_t": "0000-00-01 00:00:00"}, hours)
    raw = np.where(np.isnan(rain), np.float32(-9.96921e36), rain).astype("f4")
    return archive(
        path,
        {"time": time, **axis(), "precip": ("f4", ("time", "lat", "lon"), attrs, raw)},
        {"time": None, "lat": 4, "lon": 5},
    )


def rain(count, seed=0):
    values = np.random.default_rng(seed).gamma(0.3, 10, size=(count, 4, 5)).astype("f4")
    values[:, 0, :2] = np.nan
    return values


def modality(*paths, variable, **settings):
    return Modality("m", tuple(map(str, paths)), variable, "observation", **settings)


def test_cpc_years_are_joined_and_missing_values_without_a_fill_attribute_are_missing(tmp_path):
    one, two = rain(366, 1), rain(365, 2)
    cpc(tmp_path / "precip.2001.nc", 2001, two)
    cpc(tmp_path / "precip.2000.nc", 2000, one)
    array = read(modality(tmp_path / "precip.*.nc", variable="precip", units="mm/day"))
    np.testing.assert_array_equal(array.values, np.concatenate([one, two]))
    assert array.time.values[365].astype("datetime64[D]") == np.datetime64("2000-12-31")


def test_cpc_padding_of_the_running_year_is_cut_and_a_hole_is_named(tmp_path):
    values = rain(10)
    values[7:] = np.nan
    path = cpc(tmp_path / "precip.2026.nc", 2026, values)
    assert read(modality(path, variable="precip")).sizes["time"] == 7
    values[4] = np.nan
    path = cpc(tmp_path / "precip.2026.nc", 2026, values)
    for dates in (None, np.array(["2026-01-04", "2026-01-05"], dtype="datetime64[D]")):
        with pytest.raises(ValueError, match="2026-01-05"):
            read(modality(path, variable="precip"), dates)


def test_cpc_negative_rain_is_a_missing_marker(tmp_path):
    values = rain(2)
    values[1, 3, 3] = -999.0
    array = read(modality(cpc(tmp_path / "precip.2000.nc", 2000, values), variable="precip"))
    assert np.isnan(array.values[1, 3, 3]) and np.nanmin(array.values) >= 0


def olr(path, values, stamps, packed=True):
    attrs = {"units": "W/m^2", "missing_value": np.int16(32766), "valid_range": np.array([0.0, 500.0], "f4")}
    attrs |= {"add_offset": np.float32(327.65), "scale_factor": np.float32(0.01)}
    raw = np.where(np.isnan(values), 32766, np.rint((values - 327.65) / 0.01)).astype("i2")
    time = ("f8", ("time",), {"units": "hours since 1800-01-01 00:00:0.0"}, stamps)
    return archive(
        path,
        {"time": time, **axis(), "olr": ("i2", ("time", "lat", "lon"), attrs, raw)},
        {"time": None, "lat": 4, "lon": 5},
    )


def hours(day):
    return (np.datetime64(day) - np.datetime64("1800-01-01")).astype(int) * 24.0


def longwave(count):
    values = np.random.default_rng(3).uniform(90, 320, size=(count, 4, 5))
    values[:, 2, 2] = np.nan
    return values


def test_packed_olr_is_not_masked_by_a_valid_range_in_unpacked_units(tmp_path):
    values = longwave(3)
    path = olr(tmp_path / "olr.2000.nc", values, hours("2000-01-01") + 24 * np.arange(3))
    with netCDF4.Dataset(path) as trap:  # the trap is real: the default of netCDF4 masks all of it
        assert np.ma.getmaskarray(trap["olr"][:]).all()
    np.testing.assert_allclose(read(modality(path, variable="olr")).values, values, atol=0.0051)


def test_two_passes_a_day_are_averaged_by_date_and_half_a_day_is_missing(tmp_path):
    values = longwave(5)
    path = olr(
        tmp_path / "olr.nc", values, hours("2000-01-01") + 12 + 12 * np.arange(5)
    )  # starts with a lone pass
    array = read(modality(path, variable="olr"), allow_empty_days=True)
    assert array.sizes["time"] == 3 and np.isnan(array.values[0]).all()
    np.testing.assert_allclose(array.values[1], (values[1] + values[2]) / 2, atol=0.011)
    np.testing.assert_allclose(array.values[2], (values[3] + values[4]) / 2, atol=0.011)


def test_impossible_olr_is_refused(tmp_path):
    path = olr(tmp_path / "olr.nc", np.full((1, 4, 5), 600.0), [hours("2000-01-01")])
    with (
        pytest.warns(DataWarning, match="20 outside the declared range"),
        pytest.raises(ValueError, match="without a single value.*outside the declared range.*first 600"),
    ):
        read(modality(path, variable="olr"))


def cds(path, values, levels=(1000.0, 850.0, 500.0), first="2020-01-01"):
    """The layout of the CDS since September 2024."""
    seconds = (np.datetime64(first) - np.datetime64("1970-01-01")).astype(int) * 86400 + 86400 * np.arange(
        len(values)
    )
    variables = {
        "number": ("i8", (), {"standard_name": "realization"}, 0),
        "valid_time": (
            "i8",
            ("valid_time",),
            {"units": "seconds since 1970-01-01", "standard_name": "time"},
            seconds,
        ),
        "pressure_level": ("f8", ("pressure_level",), {"units": "hPa", "positive": "down"}, levels),
        "latitude": ("f8", ("latitude",), {"units": "degrees_north", "standard_name": "latitude"}, LAT),
        "longitude": ("f8", ("longitude",), {"units": "degrees_east", "standard_name": "longitude"}, LON),
        "t": (
            "f4",
            ("valid_time", "pressure_level", "latitude", "longitude"),
            {"units": "K", "coordinates": "number valid_time expver", "_FillValue": np.float32(np.nan)},
            values,
        ),
    }
    dims = {"valid_time": len(values), "pressure_level": len(levels), "latitude": 4, "longitude": 5}
    with netCDF4.Dataset(path, "w") as file:
        for name, size in dims.items():
            file.createDimension(name, size)
        expver = file.createVariable("expver", str, ("valid_time",))
        expver[:] = np.array(["0001"] * len(values), dtype=object)
        for name, (kind, axes, attrs, raw) in variables.items():
            variable = file.createVariable(name, kind, axes, fill_value=attrs.pop("_FillValue", None))
            variable.setncatts(attrs)
            variable[...] = raw
    return str(path)


def test_new_cds_layout_is_read_with_levels_by_label(tmp_path):
    values = np.random.default_rng(0).normal(250, 10, size=(2, 3, 4, 5)).astype("f4")
    more = np.random.default_rng(1).normal(250, 10, size=(3, 3, 4, 5)).astype("f4")
    cds(tmp_path / "era5_t_2020.nc", values)
    cds(tmp_path / "era5_t_2021.nc", more, first="2021-01-01")
    array = read(modality(tmp_path / "era5_t_*.nc", variable="t", levels=(500, 850)))
    assert array.dims == ("time", "level", "lat", "lon") and set(array.coords) == set(array.dims)
    np.testing.assert_array_equal(array.values, np.concatenate([values, more])[:, [2, 1]])
    assert read(modality(tmp_path / "era5_t_2020.nc", variable="temperature")).sizes["level"] == 3


def test_preliminary_fields_of_old_cds_files_fill_the_final_ones():
    values = np.array([[[1.0, np.nan]], [[np.nan, 5.0]]])  # time, lat, expver
    array = xr.DataArray(values, {"expver": [1, 5]}, ("time", "lat", "expver"))
    assert join_expver(array).values.tolist() == [[1.0], [5.0]]
    both = xr.DataArray([[7.0, 3.0]], {"expver": ["0005", "0001"]}, ("lat", "expver"))
    assert join_expver(both).values.tolist() == [3.0]


@pytest.mark.parametrize("factor, unit", [(1.0, "gpm"), (9.80665, "m**2 s**-2")])
def test_chaosbench_days_with_scalar_time_are_joined_and_z_is_named_after_its_values(tmp_path, factor, unit):
    """Height of 500 hPa in the standard atmosphere: 5574 m (ICAO)."""
    for day in ("20200101", "20200102"):
        coords = {
            "level": [10, 500],
            "latitude": LAT,
            "longitude": LON,
            "time": np.datetime64(f"{day[:4]}-{day[4:6]}-{day[6:]}", "ns"),
        }
        data = np.broadcast_to(np.array([31055.0, 5574.0])[:, None, None] * factor, (2, 4, 5))
        field = xr.DataArray(data, coords, ("level", "latitude", "longitude"), "z", {"units": "m**2 s**-2"})
        field.to_dataset().to_zarr(tmp_path / f"era5_full_1.5deg_{day}.zarr", zarr_format=2)
    for levels in (None, (500,)):
        array = read(modality(tmp_path / "era5_full_1.5deg_*.zarr", variable="z", levels=levels))
        assert array.sizes["time"] == 2 and array.attrs["units"] == unit


# Real files


@pytest.fixture
def real(realdata):
    def path(name):
        if not (realdata / name).exists():
            pytest.skip(f"{name} isn't there")
        return str(realdata / name)

    return path


IBERIA = [
    ("ncep_ta850", "grid", "K"),
    ("ncep_hus850", "grid", None),
    ("ncep_psl", "grid", "hPa"),
    ("ncep_tas", "grid", "K"),
]
IBERIA += [("ncep_pr", "grid", "mm/day"), ("eobs_tas", "grid", "degC"), ("eobs_pr", "grid", "mm/day")]
IBERIA += [("stn_tas", "stations", "degC"), ("stn_pr", "stations", "mm/day")]
FACTOR = {"ncep_psl": (0.01, 0), "ncep_tas": (1, 273.15), "ncep_pr": (86400, 0)}


@pytest.mark.parametrize("name, kind, unit", IBERIA)
def test_iberian_winters_are_read_as_netcdf4_reads_them(real, name, kind, unit):
    path = real("iberia_djf_1983-1998.nc")
    array = read(Modality(name, (path,), name, role="observation", kind=kind, units=unit))
    with netCDF4.Dataset(path) as file:
        raw = np.ma.filled(file[name][:].astype("f8"), np.nan)
        dims = file[name].dimensions
        lat = file["stn_lat"][:] if kind == "stations" else file[dims[1]][:]
        stamps = np.datetime64("1982-12-01") + file["time"][:].data
    if kind == "grid" and lat[0] < lat[-1]:
        raw, lat = raw[:, ::-1], lat[::-1]
    scale, offset = FACTOR.get(name, (1, 0))
    np.testing.assert_allclose(array.values, raw * scale + offset, rtol=2e-7, atol=1e-6)
    assert np.array_equal(array.lat, lat) and np.array_equal(
        array.time.values.astype("datetime64[D]"), stamps
    )


def test_cpc_agrees_with_the_raw_binary_of_the_same_day(real):
    """An archive of its own: float32 of 0.1 mm, row 0 in the south, -999 over sea."""
    array = read(modality(real("cpc_precip_psl_layout_2days.nc"), variable="precip"))
    raw = np.fromfile(real("PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.20170115.RT"), "<f4").reshape(2, 360, 720)[
        0, ::-1
    ]
    truth = np.where(raw < 0, np.nan, raw / 10)
    field = array.sel(time="2017-01-15").values
    both = ~np.isnan(field) & ~np.isnan(truth)
    assert both.mean() > 0.3
    # The real-time binary and the archive are two versions of the analysis: nearly all cells agree.
    assert (np.abs(field - truth)[both] < 0.11).mean() > 0.95
    assert np.corrcoef(field[both], truth[both])[0, 1] > 0.99


def test_ecmwf_temperature_of_one_day(real):
    path = real("falwa-2005-01-23-0000-t.nc")
    array = read(modality(path, variable="t", levels=(500, 10)))
    with netCDF4.Dataset(path) as file:
        index = [list(file["level"][:]).index(level) for level in (500, 10)]
        np.testing.assert_allclose(array.values[0], np.asarray(file["t"][:])[index], rtol=1e-6)
    assert array.time.values.astype("datetime64[D]").tolist() == [np.datetime64("2005-01-23").item()]


def test_transposed_ascending_long_named_era5_becomes_canonical(real):
    path = real("era5_tl31_19590102T00.nc")
    array = read(modality(path, variable="t", levels=(850,)))
    with netCDF4.Dataset(path) as file:
        raw = np.asarray(file["temperature"][:])[list(file["level"][:]).index(850)]
    np.testing.assert_array_equal(array.values[0, 0], raw.T[::-1])


def test_model_days_of_a_noleap_calendar(real):
    array = read(modality(real("model_olr_tropics_daily_noleap.nc"), variable="rlut"))
    assert np.array_equal(
        array.time.values.astype("datetime64[D]"), np.datetime64("1870-01-01") + np.arange(150)
    )
    assert float(array.min()) > 80 and float(array.max()) < 350


def test_a_file_without_time_is_refused(real):
    with pytest.raises(ValueError, match=r"dimensions \['month'\] that mean nothing here"):
        read(modality(real("eraint_uvz.nc"), variable="u"))
    with pytest.raises(ValueError, match="no time"):
        read(modality(real("landmask_1.5deg_sftlf.nc"), variable="sftlf"))


def test_grids_of_two_archives_do_not_align(real):
    one = read(modality(real("falwa-2005-01-23-0000-t.nc"), variable="t", levels=(500,)))
    two = read(modality(real("earthkit_test4.nc"), variable="t", levels=(500,)))
    with pytest.raises(
        ValueError, match="121 x 240 points.*181 x 360 points|181 x 360 points.*121 x 240 points"
    ):
        align(one, two)
    whole = align(
        two.isel(lat=slice(None, None, 3), lon=slice(None, None, 3)),
        one.isel(lat=slice(None, None, 2), lon=slice(None, None, 2)),
    )
    assert whole.sizes["lat"] == 61
