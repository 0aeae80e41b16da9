"""Every archive read as its bytes say: values, days, coordinates, masks and units, to the rounding of float32."""

import gzip
import json
import pickle
import re

import netCDF4
import numpy as np
import pytest
import xarray as xr
import zarr

from slams.data.archives import ARCHIVES, REGISTRY
from slams.data.archives.era5 import parts_before
from slams.data.files.modality import Modality
from slams.data.files.read import read
from tests.data import archive_files as files

pytestmark = pytest.mark.filterwarnings("ignore::xarray.SerializationWarning")  # of the true old headers

CPC, OLR, ERA5 = ARCHIVES["cpc"], ARCHIVES["olr"], ARCHIVES["era5"]
EPS = 2.0**-23  # relative distance of neighbouring float32


@pytest.fixture
def draw():
    return np.random.default_rng(0)


def low_level(path, name):
    """A variable unpacked by the attributes alone, in float64; masks by whatever marker the header names."""
    with netCDF4.Dataset(path) as file:
        file.set_auto_maskandscale(False)
        variable = file[name]
        raw = variable[...]
        attrs = {key: variable.getncattr(key) for key in variable.ncattrs()}
    markers = [attrs[key] for key in ("missing_value", "_FillValue") if key in attrs]
    missing = np.zeros(raw.shape, dtype=bool)
    for marker in markers:
        missing |= np.isnan(raw) if np.isnan(marker) else raw == raw.dtype.type(marker)
    values = raw.astype("f8") * float(attrs.get("scale_factor", 1)) + float(attrs.get("add_offset", 0))
    return np.where(missing, np.nan, values)


def close(array, truth, scale=None):
    """Equal to float32 rounding of the unpacking (two roundings at the size of the offset), masks alike."""
    values, truth = np.asarray(array, "f8"), np.asarray(truth, "f8")
    size = np.nanmax(np.abs(truth)) if scale is None else scale
    np.testing.assert_array_equal(np.isnan(values), np.isnan(truth))
    np.testing.assert_allclose(values, truth, rtol=EPS, atol=2 * EPS * size if scale is not False else 0)


def days(array):
    return array.time.values.astype("datetime64[D]").astype(str).tolist()


def rain(draw, count, shape=(360, 720)):
    values = draw.gamma(0.3, 10, size=(count, *shape)).astype("f4").round(1)
    values[:, :, 300:500] = np.nan
    return values


# CPC


def test_cpc_of_psl_is_read_bit_by_bit_lazily_and_without_the_padding_of_the_running_year(tmp_path, draw):
    values = rain(draw, 5)
    values[3:] = np.nan
    path = files.cpc_psl(tmp_path / "anything.nc", files.days_from("2024-02-27", 5), values)
    array = CPC.open(path, "precip")
    assert array.chunks is not None and not array._in_memory  # nothing but the header
    assert days(array) == ["2024-02-27", "2024-02-28", "2024-02-29"]
    np.testing.assert_array_equal(array.values, values[:3])
    np.testing.assert_array_equal(array.lat, files.CPC_LAT)
    np.testing.assert_array_equal(array.lon, files.CPC_LON)
    assert array.attrs["units"] == "mm/day" and array.attrs["cell_methods"] == "time: sum"
    assert array.dtype == np.float32 and array.name == "precip"
    array.close()


@pytest.mark.parametrize("packed", [False, True])
def test_the_raw_binary_equals_psl_of_the_same_day(tmp_path, draw, packed):
    """0.1 mm in float32 is not exact: the quotient by ten is the float32 nearest to the value."""
    values = rain(draw, 1)
    psl = CPC.open(
        files.cpc_psl(tmp_path / "precip.2017.nc", files.days_from("2017-01-15", 1), values), "precip"
    )
    raw = CPC.open(files.cpc_binary(tmp_path, "2017-01-15", values[0], packed=packed), "precip")
    assert days(raw) == days(psl) and raw.attrs["units"] == psl.attrs["units"]
    np.testing.assert_array_equal(raw.lat, psl.lat)
    np.testing.assert_array_equal(raw.lon, psl.lon)
    close(raw, psl, scale=False)


def test_rain_as_a_rate_is_converted_and_a_rate_called_a_depth_is_refused(tmp_path, draw):
    values = rain(draw, 1)
    day = files.days_from("2000-01-01", 1)
    rate = files.cpc_psl(tmp_path / "rate.nc", day, values / 86400, units="kg m-2 s-1")
    np.testing.assert_allclose(CPC.open(rate, "precip").values, values, rtol=3 * EPS)
    with pytest.raises(ValueError, match="called 'mm', but its wettest cell.*kg m-2 s-1"):
        CPC.open(files.cpc_psl(tmp_path / "lie.nc", day, values / 86400), "precip")
    with pytest.raises(ValueError, match="expected 0 to 2000"):
        CPC.open(files.cpc_psl(tmp_path / "lie2.nc", day, values, units="kg m-2 s-1"), "precip").load()


def test_rain_of_the_archive_is_known_without_its_title_by_variable_unit_and_cells(tmp_path, draw):
    values, day = rain(draw, 3), files.days_from("2001-01-01", 3)
    values[2] = np.nan  # the padding of a running year
    path = files.cpc_psl(tmp_path / "precip.nc", day, values, titled=False)
    CPC.check(path)
    np.testing.assert_array_equal(CPC.open(path, "precip").values, values[:2])
    plain = Modality("rain", (str(path),), "precip", "observation", units="mm/day")
    np.testing.assert_array_equal(read(plain).values, values[:2])
    for change in ({"lat": files.CPC_LAT + 0.25}, {"units": "degC"}):
        other = files.cpc_psl(tmp_path / "other.nc", day, values, titled=False, **change)
        with pytest.raises(ValueError, match="isn't a file of the archive 'cpc'"):
            CPC.check(other)


def test_a_binary_of_another_length_byte_order_or_name_is_refused(tmp_path, draw):
    path = files.cpc_binary(tmp_path, "2017-01-15", rain(draw, 1)[0])
    raw = path.read_bytes()
    path.write_bytes(raw[:-4])
    with pytest.raises(ValueError, match="holds 2073596 bytes, expected 2073600"):
        CPC.check(path)
    path.write_bytes(np.frombuffer(raw, "<f4").astype(">f4").tobytes())
    with pytest.raises(ValueError, match="no rain in little-endian"):
        CPC.check(path)
    cut = tmp_path / "PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.20170116.gz"
    cut.write_bytes(gzip.compress(raw)[:-1000])
    with pytest.raises(ValueError, match="cut short or damaged"):
        CPC.check(cut)


# OLR

LAYOUTS = {
    "2.5 degrees, packed, daily": {"packed": True, "step": 24},
    "2.5 degrees, unpacked, daily": {"packed": False, "step": 24},
    "2.5 degrees, unpacked, twice daily": {"packed": False, "step": 12},
    "2.5 degrees, packed, twice daily": {"packed": True, "step": 12},
}


def longwave(draw, count, shape=(73, 144)):
    values = draw.uniform(90, 320, size=(count, *shape)).astype("f4")
    values[:, 10, 20:30] = np.nan
    return values


@pytest.mark.parametrize("layout", LAYOUTS)
def test_olr_under_one_file_name_is_told_apart_by_its_header(tmp_path, draw, layout):
    case = LAYOUTS[layout]
    stamps = np.datetime64("1999-12-31T00", "h") + case["step"] * np.arange(4)
    values = longwave(draw, 4)
    path = files.olr(tmp_path / "olr.day.mean.nc", stamps, values, packed=case["packed"])
    array = OLR.open(path, "olr")
    assert array.attrs["layout"] == layout and array.attrs["units"] == "W m-2"
    assert array.time.values.astype("datetime64[h]").tolist() == stamps.tolist()
    truth = low_level(path, "olr")
    close(array, truth)
    np.testing.assert_allclose(array.values, values, atol=0.0051 if case["packed"] else 0, equal_nan=True)
    np.testing.assert_array_equal(array.lat, files.OLR_LAT)
    np.testing.assert_array_equal(array.lon, files.OLR_LON)


def test_the_climate_data_record_of_one_degree_is_told_by_its_grid(tmp_path, draw):
    values = longwave(draw, 2, (181, 360))
    path = files.olr_cdr(tmp_path / "olr.day.mean.nc", files.days_from("2000-02-28", 2), values)
    array = OLR.open(path, "olr")
    assert array.attrs["layout"] == "1 degree CDR, unpacked, daily"
    close(array, values, scale=False)
    np.testing.assert_array_equal(array.lat, files.CDR_LAT)
    assert days(array) == ["2000-02-28", "2000-02-29"]


@pytest.mark.parametrize("archive", [CPC, ERA5])
def test_a_file_of_another_archive_is_refused_with_what_it_holds(tmp_path, draw, archive):
    path = files.olr(tmp_path / "olr.nc", files.days_from("2000-01-01", 1), longwave(draw, 1))
    with pytest.raises(ValueError, match=rf"isn't a file of the archive '{archive.name}': it holds.*'olr'"):
        archive.check(path)


def test_times_out_of_order_or_twice_are_named(tmp_path, draw):
    for order, what in (([0, 2, 1], "followed by 2000-01-02"), ([0, 1, 1], "2000-01-02.* comes twice")):
        stamps = files.days_from("2000-01-01", 3)[order]
        path = files.olr(tmp_path / "olr.nc", stamps, longwave(draw, 3))
        with pytest.raises(ValueError, match=what):
            OLR.open(path, "olr")


def test_flipped_and_shifted_axes_change_labels_and_no_value(tmp_path, draw):
    values = longwave(draw, 1)
    day = files.days_from("2000-01-01", 1)
    usual = OLR.open(files.olr(tmp_path / "a.nc", day, values), "olr")
    shifted = (files.OLR_LON + 180) % 360 - 180  # as a file from -180 has it
    order = np.argsort(shifted)
    path = files.olr(
        tmp_path / "b.nc", day, values[:, ::-1][..., order], lat=files.OLR_LAT[::-1], lon=shifted[order]
    )
    other = OLR.open(path, "olr")
    assert other.lat.values.tolist() == usual.lat.values.tolist() and other.lon.values[0] == -180
    np.testing.assert_array_equal(other.sel(lon=shifted).values, usual.values)


@pytest.mark.parametrize("calendar, day, fine", [("noleap", 59, True), ("360_day", 59, False)])
def test_a_day_of_another_calendar_keeps_its_label_and_one_that_does_not_exist_is_refused(
    tmp_path, draw, calendar, day, fine
):
    """Day 59 after 1 January: 1 March without leap years, 30 February in months of 30 days."""
    path = files.olr(tmp_path / "a.nc", files.days_from("2000-01-01", 1), longwave(draw, 1))
    with netCDF4.Dataset(path, "a") as file:
        file["time"].setncatts({"units": "days since 2000-01-01", "calendar": calendar})
        file["time"][:] = [day]
    if fine:
        assert days(OLR.open(path, "olr")) == ["2000-03-01"]
    else:
        with pytest.raises(ValueError, match="calendar '360_day' has days that don't exist"):
            OLR.open(path, "olr")


# ERA5


def state(draw, count=None, shape=(10, 5, 8)):
    """Values in the middle of what each variable can be, by short name."""
    size = shape if count is None else (count, *shape)
    height = 7400 * np.log(1013.25 / np.array(files.LEVELS))[:, None, None]
    middle = {"t": (250, 20), "q": (0.01, 0.001), "u": (0, 20), "v": (0, 20), "w": (0, 1)}
    fields = {name: draw.normal(mean, std, size=size).astype("f4") for name, (mean, std) in middle.items()}
    return {**fields, "z": (height + draw.normal(0, 30, size=size)).astype("f4")}


SMALL = {"lat": np.array([90.0, 45, 0, -45, -90]), "lon": 45.0 * np.arange(8)}


@pytest.mark.parametrize("packed", [False, True])
def test_chaosbench_days_have_heights_whatever_the_unit_says(tmp_path, draw, packed):
    fields = state(draw)
    path = files.chaosbench_day(tmp_path, "2016-02-29", fields, packed=packed, **SMALL)
    for name, values in fields.items():
        array = ERA5.open(path, name)
        assert days(array) == ["2016-02-29"] and array.dims == ("time", "level", "lat", "lon")
        assert array.level.values.tolist() == list(files.LEVELS)
        assert array.attrs["units"] == ERA5.quantity(name).units
        assert array.attrs["layout"] == "a record a file (ChaosBench)"
        if packed:
            raw = zarr.open_array(path / name, mode="r")
            values = raw[...].astype("f8") * raw.attrs["scale_factor"] + raw.attrs["add_offset"]
        close(array.values[0], values, scale=None if packed else False)


def test_both_layouts_of_the_climate_data_store_and_weatherbench_give_one_field(tmp_path, draw):
    """z is geopotential there, and height here: divided by 9.80665 m s-2."""
    stamps = files.days_from("2020-12-31", 2)
    for name, unit in (("t", 1.0), ("z", 9.80665)):
        values = (state(draw, 2)[name].astype("f8") * unit).astype("f4")
        truth = values.astype("f8") / unit
        old = files.cds_old(tmp_path / "old.nc", stamps, name, values, **SMALL)
        new = files.cds_new(tmp_path / "new.nc", stamps, name, values[:, ::-1], **SMALL)
        bench = files.weatherbench(
            tmp_path / f"wb_{name}.zarr",
            stamps,
            {name: values[..., ::-1, :]},
            lat=SMALL["lat"][::-1],
            lon=SMALL["lon"],
        )
        for path, layout in ((old, "CDS until 2024"), (new, "CDS since 2024"), (bench, "WeatherBench2")):
            array = ERA5.open(path, name)
            assert array.attrs["layout"] == layout and days(array) == ["2020-12-31", "2021-01-01"]
            assert array.level.values.tolist() == list(files.LEVELS)
            assert array.lat.values.tolist() == SMALL["lat"].tolist()
            if path == old:
                close(array, low_level(path, name) / unit)
            else:
                close(array, truth, scale=False)


def test_preliminary_fields_fill_the_final_ones_and_nothing_else(tmp_path, draw):
    values, preliminary = state(draw, 2)["t"], state(draw, 2)["t"]
    values[1] = np.nan
    path = files.cds_old(
        tmp_path / "a.nc", files.days_from("2024-05-31", 2), "t", values, preliminary=preliminary, **SMALL
    )
    raw = low_level(path, "t")
    close(ERA5.open(path, "t"), np.where(np.isnan(raw[:, 0]), raw[:, 1], raw[:, 0]))


def test_snapshots_of_midnight_are_taken_and_a_file_without_them_is_refused(tmp_path, draw):
    stamps = np.datetime64("2020-01-01T00", "h") + 6 * np.arange(8)
    values = state(draw, 8)["t"]
    path = files.cds_new(tmp_path / "six.nc", stamps, "t", values[:, ::-1], **SMALL)
    array = ERA5.open(path, "t")
    np.testing.assert_array_equal(array.values, values[[0, 4]])
    noon = files.cds_new(tmp_path / "noon.nc", stamps[2:3], "t", values[2:3], **SMALL)
    with pytest.raises(ValueError, match=r"no record at 00 UTC, it has \[12\]"):
        ERA5.open(noon, "t")


def test_levels_are_taken_by_label_out_of_more(tmp_path, draw):
    levels = (1, 10, 50, 100, 150, 200, 300, 400, 500, 700, 850, 925, 1000)
    values = draw.normal(250, 20, size=(1, 13, 5, 8)).astype("f4")
    path = files.cds_new(
        tmp_path / "a.nc",
        files.days_from("2020-01-01", 1),
        "t",
        values[:, ::-1],
        levels=levels[::-1],
        **SMALL,
    )
    keep = [levels.index(level) for level in files.LEVELS]
    np.testing.assert_array_equal(ERA5.open(path, "t").values, values[:, keep])


@pytest.mark.parametrize("name, factor", [("t", 0.0), ("q", 1000.0), ("w", 1000.0)])
def test_values_that_can_not_be_are_refused_when_they_are_read(tmp_path, draw, name, factor):
    path = files.chaosbench_day(tmp_path, "2016-01-01", {name: state(draw)[name] * factor}, **SMALL)
    array = ERA5.open(path, name)
    with pytest.raises(ValueError, match=f"era5 {name} in .* runs from .*, expected"):
        array.load()


def test_missing_unit_variable_level_and_truncated_files_are_named(tmp_path, draw):
    day = files.days_from("2020-01-01", 1)
    path = files.cds_new(tmp_path / "a.nc", day, "t", state(draw, 1)["t"], **SMALL)
    with pytest.raises(ValueError, match="has no variable 'q'"):
        ERA5.open(path, "q")
    with netCDF4.Dataset(path, "a") as file:
        file["t"].delncattr("units")
    with pytest.raises(ValueError, match="states no unit"):
        ERA5.open(path, "t")
    whole = path.read_bytes()
    for share in (0.05, 0.5, 0.97):
        cut = tmp_path / f"cut{share}.nc"
        cut.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match="can't be opened"):
            ERA5.check(cut)
    with pytest.raises(ValueError, match="no variable 'snow'; it has t, z, q, u, v, w"):
        ERA5.quantity("snow")


def test_a_zarr_that_asks_for_a_pickle_is_not_opened(tmp_path, draw):
    path = files.chaosbench_day(tmp_path, "2020-01-01", {"t": state(draw)["t"]}, **SMALL)
    for file in (path / "t" / ".zarray", path / ".zmetadata"):
        entries = json.loads(file.read_text())
        target = entries if "filters" in entries else entries["metadata"]["t/.zarray"]
        target["filters"] = [{"id": "pickle", "protocol": 5}]
        file.write_text(json.dumps(entries))
    with pytest.raises(ValueError, match="pickle"):
        ERA5.check(path)


# What to fetch


def test_addresses_follow_the_archives_and_a_mirror_serves_as_well():
    items = CPC.items([2001, 2000], "https://mirror.example/cpc/")
    assert [item.url for item in items] == [f"https://mirror.example/cpc/precip.{y}.nc" for y in (2000, 2001)]
    assert CPC.items([1979])[0].url.startswith("https://downloads.psl.noaa.gov/")
    assert not items[0].grows and OLR.items([2000])[0].grows
    assert (
        OLR.items([2000], "https://h.example/olr.2xdaily.1979-2022.nc")[0].name == "olr.2xdaily.1979-2022.nc"
    )
    assert ERA5.items([2000])[0].name == "era5_chunks.zip"
    assert pickle.loads(pickle.dumps(items[0])).check.__self__.name == "cpc"  # goes to another process


@pytest.mark.parametrize(
    "years, what", [([1978], r"1979 to .*, asked were \[1978\]"), ([2400], "2400"), ([], "none")]
)
def test_years_that_can_not_be_are_refused(years, what):
    with pytest.raises(ValueError, match=what):
        CPC.items(years)


def test_a_folder_gives_the_files_of_the_archive_and_years_by_their_headers(tmp_path, draw):
    psl = files.cpc_psl(tmp_path / "a.nc", files.days_from("2000-12-31", 2), rain(draw, 2))
    raw = files.cpc_binary(tmp_path, "2017-01-15", rain(draw, 1)[0])
    files.olr(tmp_path / "precip.2000.nc", files.days_from("2000-01-01", 1), longwave(draw, 1))
    assert [item.url for item in CPC.items([2001], tmp_path)] == [str(psl)]
    assert {item.url for item in CPC.items([2000, 2017], tmp_path)} == {str(psl), str(raw)}
    with pytest.raises(ValueError, match=r"nothing of the archive 'cpc' for 1999; it holds .*2000 to 2001"):
        CPC.items([1999], tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere isn't there"):
        CPC.items([1999], tmp_path / "nowhere")
    with pytest.raises(ValueError, match="ftp"):
        CPC.items([1999], "ftp://ftp.cdc.noaa.gov/x")


@pytest.mark.parametrize("parts", [0, 3])
def test_the_end_of_a_split_archive_tells_how_many_parts_there_are(tmp_path, parts):
    assert parts_before(files.end_of_split_zip(tmp_path / "era5_chunks.zip", parts)) == parts


def test_every_archive_survives_the_way_to_another_process():
    for name, archive in REGISTRY.items():
        assert pickle.loads(pickle.dumps(archive)).name == name


# Real files


@pytest.fixture
def real(realdata):
    def path(name):
        if not (realdata / name).exists():
            pytest.skip(f"{name} isn't there")
        return realdata / name

    return path


def test_true_cpc_days_are_bit_by_bit_those_of_the_file(real):
    path = real("cpc_precip_psl_layout_2days.nc")
    array = CPC.open(path, "precip")
    close(array, low_level(path, "precip"), scale=False)
    assert days(array) == ["1998-07-09", "2017-01-15"]
    np.testing.assert_array_equal(array.lat, files.CPC_LAT)
    np.testing.assert_array_equal(array.lon, files.CPC_LON)


def test_true_cpc_masks_are_those_of_land_and_sea(real):
    """Ocean is missing and never dry; ice sheets and deserts are there."""
    array = CPC.open(real("cpc_precip_psl_layout_2days.nc"), "precip").load()
    share = array.isnull().mean(("lat", "lon")).values
    assert ((share >= 0.640) & (share <= 0.644)).all()

    def box(south, north, west, east):
        return array.sel(lat=slice(north, south), lon=slice(west, east)).values

    assert (box(20, 25, 10, 20) == 0).all()  # the Sahara: no gauge saw a drop, and none is missing
    assert np.isnan(box(-10, 10, 215, 260)).all()  # the Pacific
    assert np.isfinite(box(70, 78, 315, 325)).all()  # the ice of Greenland
    assert np.isfinite(box(-85, -75, 60, 120)).all()  # and of Antarctica


def test_the_true_binary_is_read_as_its_bytes_say(real):
    path = real("PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.20170115.RT")
    array = CPC.open(path, "precip")
    raw = np.fromfile(path, "<f4").reshape(2, 360, 720)[0, ::-1].astype("f8")
    close(array.values[0], np.where(raw == -999, np.nan, raw / 10), scale=False)
    assert days(array) == ["2017-01-15"]
    np.testing.assert_array_equal(array.lat, files.CPC_LAT)
    text = real("CPC_RT.ctl").read_text()
    assert re.search(r"ydef 360\s+linear\s+-89\.75\s+0\.50", text) and "undef -999.0" in text
    assert "0.1mm/day" in text


GRIDS = {  # file, variable, kind of file it is for the archive (None: none of its layouts)
    "falwa-2005-01-23-0000-t.nc": ("t", "a record a file (ChaosBench)"),
    "era5_tl31_19590102T00.nc": ("temperature", "a record a file (ChaosBench)"),
    "earthkit_test4.nc": ("t", "CDS until 2024"),
    "eraint_uvz.nc": ("u", None),
    "landmask_1.5deg_sftlf.nc": ("sftlf", None),
    "wws_air.mon.mean.nc": ("air", None),
    "model_olr_tropics_daily_noleap.nc": ("rlut", None),
    "iberia_djf_1983-1998.nc": ("eobs_tas", None),
}


@pytest.mark.parametrize("name", GRIDS)
def test_real_layouts_are_told_apart(real, name):
    with xr.open_dataset(real(name)) as dataset:
        assert ERA5.layout(dataset) == GRIDS[name][1]
        assert CPC.layout(dataset) is None and OLR.layout(dataset) is None


@pytest.mark.parametrize(
    "name, variables",
    [("falwa-2005-01-23-0000-t.nc", ("t",)), ("era5_tl31_19590102T00.nc", ("t", "z", "q", "u", "v"))],
)
def test_real_era5_is_read_to_the_rounding_of_its_packing(real, name, variables):
    path = real(name)
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        levels, latitude = file["level"][:].tolist(), file["latitude"][:]
        stamp = netCDF4.num2date(file["time"][...], file["time"].units, "standard")
    for variable in variables:
        source = variable if name.startswith("falwa") else files.LONG[variable]
        truth = low_level(path, source)[[levels.index(level) for level in files.LEVELS]]
        truth = truth if name.startswith("falwa") else truth.swapaxes(-1, -2)
        truth = truth if latitude[0] > 0 else truth[:, ::-1]
        array = ERA5.open(path, variable)
        close(array.values[0], truth / (9.80665 if variable == "z" else 1))
        assert array.attrs["units"] == ERA5.quantity(variable).units
        assert days(array) == [f"{stamp:%Y-%m-%d}"]
        np.testing.assert_array_equal(array.lat, np.sort(latitude)[::-1])


def test_a_real_file_of_monthly_means_is_refused(real):
    with pytest.raises(ValueError, match="means of months.*aren't days"):
        read(Modality("m", (str(real("wws_air.mon.mean.nc")),), "air", "observation"))


@pytest.mark.parametrize(
    "name, variable, kind",
    [
        ("earthkit_test4.nc", "t", "grid"),
        ("earthkit_test4.nc", "z", "grid"),
        ("model_olr_tropics_daily_noleap.nc", "rlut", "grid"),
        ("falwa-2005-01-23-0000-t.nc", "t", "grid"),
        ("era5_tl31_19590102T00.nc", "sea_surface_temperature", "grid"),
        *(
            ("iberia_djf_1983-1998.nc", v, "grid")
            for v in ("ncep_ta850", "ncep_hus850", "ncep_psl", "eobs_pr")
        ),
        *(("iberia_djf_1983-1998.nc", v, "stations") for v in ("stn_tas", "stn_pr")),
    ],
)
def test_real_files_are_read_by_recipes_as_their_bytes_say(real, name, variable, kind):
    path = real(name)
    array = read(Modality("m", (str(path),), variable, "observation", kind=kind), allow_empty_days=True)
    truth = low_level(path, variable)
    with netCDF4.Dataset(path) as file:
        file.set_auto_mask(False)
        dims = file[variable].dimensions
        for axis, dim in enumerate(dims):
            if dim.startswith("lat") and file[dim][0] < file[dim][-1]:
                truth = np.flip(truth, axis)
        units = file[variable].units
    if dims.index(next(d for d in dims if d[:3] in ("lon", "sta"))) < len(dims) - 1:
        truth = truth.swapaxes(-1, -2)
    close(array.values.reshape(truth.shape), truth)
    assert array.attrs["units"] == units


def test_months_without_a_year_are_read_once_they_have_a_date(real):
    """Longitudes -180 to 179.25, a negative scale factor, two months without a year."""
    path = real("eraint_uvz.nc")
    with xr.open_dataset(path) as dataset:
        dated = dataset.isel(month=0, drop=True).assign_coords(time=np.datetime64("2000-01-01", "ns")).load()
    for variable in ("u", "v", "z"):
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            source = file[variable]
            truth = source[0].astype("f8") * source.scale_factor + source.add_offset
        from slams.data.files.canonical import canonical

        array = canonical(dated, variable, "grid", variable, path.name)
        close(array.values[0], truth)
        assert array.lon.values[[0, -1]].tolist() == [-180.0, 179.25]


def test_the_land_fraction_is_read_once_it_has_a_date(real):
    path = real("landmask_1.5deg_sftlf.nc")
    from slams.data.files.canonical import canonical

    with xr.open_dataset(path) as dataset:
        dated = dataset.assign_coords(time=np.datetime64("2000-01-01", "ns")).load()
    array = canonical(dated, "sftlf", "grid", "sftlf", path.name)
    close(array.values[0], low_level(path, "sftlf")[::-1], scale=False)
    np.testing.assert_array_equal(array.lat, files.ERA5_LAT)
