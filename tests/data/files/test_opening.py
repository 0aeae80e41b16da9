"""Files that are broken, of another format, or without days: each is told with the true reason and its name."""

import gzip
import zipfile

import netCDF4
import numpy as np
import pytest
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.archives import REGISTRY
from slams.data.files.modality import Modality
from slams.data.files.opening import open_dataset
from slams.data.files.read import read
from slams.data.verify import file_faults

DAYS = np.arange("2001-01-01", "2001-01-07", dtype="datetime64[D]")
CLASSIC = ("NETCDF3_CLASSIC", "NETCDF3_64BIT_OFFSET", "NETCDF3_64BIT_DATA")


def field(values=None, dtype="f4"):
    """Six days of a wind on 4 x 5 points, never zero."""
    rng = np.random.default_rng(0)
    values = rng.normal(5, 0.5, (6, 4, 5)).astype(dtype) if values is None else values
    coords = {"time": DAYS.astype("datetime64[ns]"), "lat": np.arange(40.0, 36, -1), "lon": np.arange(1.0, 6)}
    return xr.Dataset({"u": (("time", "lat", "lon"), values, {"units": "m s-1"})}, coords)


def write_field(
    path, form="NETCDF4", size=6, stamps=None, units="days since 2001-01-01", calendar="standard"
):
    """`field` by netCDF's own library; size None makes time unlimited."""
    stamps = np.arange(6.0) if stamps is None else stamps
    with netCDF4.Dataset(path, "w", format=form) as file:
        for name, length in (("time", size), ("lat", 4), ("lon", 5)):
            file.createDimension(name, length)
        time = file.createVariable("time", stamps.dtype, ("time",))
        time.units, time.calendar, time[:] = units, calendar, stamps
        for name in ("lat", "lon"):
            file.createVariable(name, "f4", (name,))[:] = field()[name]
        value = file.createVariable("u", "f4", ("time", "lat", "lon"))
        value.units, value[:] = "m s-1", field().u


def wind(path):
    """The modality of `field` in a file."""
    return Modality("wind", (str(path),), "u", "state")


@pytest.mark.parametrize("form", CLASSIC)
@pytest.mark.parametrize("size", [6, None])
@pytest.mark.parametrize("lost", [1, 80, 300, 700])
def test_a_classic_file_that_was_cut_is_refused(tmp_path, form, size, lost):
    path = tmp_path / "wind.nc"
    write_field(path, form, size)
    np.testing.assert_array_equal(read(wind(path)).values, field().u)
    path.write_bytes(path.read_bytes()[:-lost])
    with pytest.raises(InvalidValueError, match=r"wind\.nc is shorter than its header promises"):
        read(wind(path))


@pytest.mark.parametrize("form", CLASSIC)
@pytest.mark.parametrize("kind", ["i1", "i2"])
def test_a_whole_classic_file_without_padding_is_read(tmp_path, form, kind):
    """A lone record variable of one or two bytes a value isn't padded to four."""
    path = tmp_path / "wind.nc"
    with netCDF4.Dataset(path, "w", format=form) as file:
        file.createDimension("time", None)
        file.createDimension("x", 3)
        file.createVariable("u", kind, ("time", "x"))[:] = np.ones((5, 3))
    with open_dataset(path) as dataset:
        assert float(dataset.u.sum()) == 15


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("chunks", [(1, 4, 5), (2, 4, 5), (6, 2, 5)])
def test_an_absent_chunk_that_reads_as_a_number_is_refused(tmp_path, version, chunks):
    path = tmp_path / "wind.zarr"
    encoding = {"u": {"chunks": chunks, "_FillValue": None} | ({"fill_value": 0.0} if version == 3 else {})}
    field().to_zarr(path, zarr_format=version, consolidated=False, encoding=encoding)
    np.testing.assert_array_equal(read(wind(path)).values, field().u)
    index = [size // step - 1 for size, step in zip((6, 4, 5), chunks, strict=True)]
    (path / "u" / (".".join(map(str, index)) if version == 2 else "c/" + "/".join(map(str, index)))).unlink()
    with pytest.raises(
        InvalidValueError, match=r"wind\.zarr: 1 of \d+ chunks aren't there, the first at time 2001"
    ):
        read(wind(path))


def test_an_absent_chunk_of_missing_values_is_told_and_missing(tmp_path):
    path = tmp_path / "wind.zarr"
    encoding = {"u": {"chunks": (6, 2, 5), "_FillValue": np.float32(np.nan)}}
    field().to_zarr(path, zarr_format=2, consolidated=False, encoding=encoding)
    (path / "u" / "0.1.0").unlink()
    with pytest.warns(UserWarning, match="1 of 2 chunks aren't there, the first at time 2001-01-01"):
        array = read(wind(path))
    np.testing.assert_array_equal(array[:, :2], field().u[:, :2])
    assert array[:, 2:].isnull().all()


def test_an_absent_chunk_of_a_coordinate_is_refused(tmp_path):
    path = tmp_path / "wind.zarr"
    field().to_zarr(path, zarr_format=2, consolidated=False)
    (path / "lat" / "0").unlink()
    with pytest.raises(InvalidValueError, match=r"coordinate 'lat' of .*wind\.zarr: 1 of 1 chunks"):
        read(wind(path))


def test_a_chunk_that_does_not_decode_is_told_with_its_file(tmp_path):
    path = tmp_path / "wind.zarr"
    field().to_zarr(path, zarr_format=2, consolidated=False)
    (path / "u" / "0.0.0").write_bytes(b"\0" * 40)
    with pytest.raises(InvalidValueError, match=r"wind\.zarr can't be read to its end"):
        read(wind(path))
    path = tmp_path / "wind.nc"
    field().to_netcdf(path, encoding={"u": {"zlib": True, "chunksizes": (1, 4, 5)}})
    raw = bytearray(path.read_bytes())
    start = max(raw.find(b"x\x9c"), raw.find(b"x\x5e"))
    raw[start + 10 : start + 40] = bytes(30)
    path.write_bytes(raw)
    with pytest.raises(InvalidValueError, match=r"wind\.nc can't be read to its end"):
        read(wind(path))


@pytest.mark.parametrize("name", ["lat", "lon"])
@pytest.mark.parametrize("kind", ["grid", "stations"])
def test_text_for_a_coordinate_is_refused(tmp_path, name, kind):
    dataset = field()
    if kind == "stations":
        dataset = dataset.isel(lat=0, drop=True).rename(lon="station").drop_vars("station")
        dataset = dataset.assign_coords({key: ("station", np.arange(1.0, 6)) for key in ("lat", "lon")})
    dataset = dataset.assign_coords({name: dataset[name].astype(str)})
    path = tmp_path / "wind.nc"
    dataset.to_netcdf(path)
    with pytest.raises(InvalidValueError, match=rf"wind\.nc.*{name}.*numbers"):
        read(Modality("wind", (str(path),), "u", "state", kind=kind))


def test_text_for_values_is_refused(tmp_path):
    path = tmp_path / "wind.nc"
    field().assign(u=field().u.astype(str)).to_netcdf(path)
    with pytest.raises(InvalidValueError, match=r"wind\.nc holds values of type .*expected numbers"):
        read(wind(path))


def packed_as_zip(path, content):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("wind.nc", content)


@pytest.mark.parametrize(
    "write, reason",
    [
        (lambda p, c: p.write_bytes(b"GRIB\0\0\0\2" + c), "is GRIB, not netCDF: convert it"),
        (lambda p, c: p.write_bytes(b"\n  \n7777\r\nGRIB" + c), "is GRIB"),
        (packed_as_zip, "is a zip archive, not netCDF: unpack it"),
        (lambda p, c: p.write_bytes(gzip.compress(c)), "packed with gzip"),
        (lambda p, c: p.write_bytes(b"<!DOCTYPE html><html>login</html>"), "a page of the web"),
        (lambda p, c: p.write_bytes(b""), "is empty"),
        (lambda p, c: p.write_bytes(c[:-600]), "damaged, cut short"),
    ],
)
def test_another_format_is_told_by_its_name(tmp_path, write, reason):
    path = tmp_path / "wind.nc"
    field().to_netcdf(path)
    write(path, path.read_bytes())
    with pytest.raises(InvalidValueError, match=rf"wind\.nc.*{reason}"):
        read(wind(path))


@pytest.mark.parametrize(
    "units, calendar",
    [
        ("months since 2001-01-01", "standard"),
        ("days since 0", "standard"),
        ("years since 1900-01-01", "standard"),
        ("days since 2001-01-01", "none"),
    ],
)
def test_a_time_axis_without_dates_is_named(tmp_path, units, calendar):
    path = tmp_path / "wind.nc"
    dataset = field().assign_coords(time=("time", np.arange(6.0), {"units": units, "calendar": calendar}))
    dataset.to_netcdf(path)
    with pytest.raises(
        InvalidValueError, match=rf"wind\.nc: the time axis 'time' has the units '{units}'.*{calendar}"
    ):
        read(wind(path))


SINCE_1900 = (DAYS - np.datetime64("1900-01-01")).astype(float)


@pytest.mark.parametrize("calendar", ["standard", "noleap"])
@pytest.mark.parametrize(
    "stamps, units, dtype",
    [
        (SINCE_1900 - 1e-7, "days since 1900-01-01", "f8"),
        (SINCE_1900 - 1e-7 * np.array([0, 1, 0, 1, 0, 1]), "days since 1900-01-01", "f8"),
        (SINCE_1900 + 4e-5 * np.array([1, -1, 0, 1, 0, 1]), "days since 1900-01-01", "f8"),
        (SINCE_1900 * 86400, "seconds since 1900-01-01", "f4"),
        (SINCE_1900 * 86400 - 0.004, "seconds since 1900-01-01", "f8"),
        (SINCE_1900 + 0.5, "days since 1900-01-01", "f4"),
        (
            SINCE_1900 + 1 - 1 / 86400,
            "days since 1900-01-01",
            "f8",
        ),  # the last second of a day is of that day
    ],
)
def test_stamps_off_by_rounding_mean_their_day(tmp_path, stamps, units, dtype, calendar):
    path = tmp_path / "wind.nc"
    leap = 25 if calendar == "noleap" else 0  # leap days between 1900 and 2001
    stamps = stamps - leap * (86400 if units.startswith("sec") else 1)
    write_field(path, stamps=stamps.astype(dtype), units=units, calendar=calendar)
    np.testing.assert_array_equal(read(wind(path)).time.values.astype("datetime64[D]"), DAYS)


@pytest.mark.parametrize("start", ["2001-01-01", "2001-01-16"])
def test_means_of_months_are_no_days(tmp_path, start):
    path = tmp_path / "wind.nc"
    months = np.datetime64(start[:7]) + np.arange(6)
    stamps = months.astype("datetime64[D]") + (np.datetime64(start) - np.datetime64("2001-01-01"))
    field().assign_coords(time=stamps.astype("datetime64[ns]")).to_netcdf(path)
    with pytest.raises(InvalidValueError, match="means of months"):
        read(wind(path))


def test_long_bounds_of_time_are_no_days(tmp_path):
    path = tmp_path / "wind.nc"
    dataset = field()
    bounds = np.stack([DAYS, DAYS + 5], 1).astype("datetime64[ns]")
    dataset = dataset.assign(time_bnds=(("time", "nv"), bounds))
    dataset.time.attrs["bounds"] = "time_bnds"
    dataset.to_netcdf(path)
    with pytest.raises(InvalidValueError, match="bounds of time 5 days apart"):
        read(wind(path))


@pytest.mark.parametrize("fill", [None, np.float32(np.nan)])
def test_a_lost_chunk_of_a_daily_archive_is_a_fault(tmp_path, fill):
    """Whether it reads as zero or as missing: a snapshot of the reanalysis misses nothing."""
    path = tmp_path / "era5_full_1.5deg_20010101.zarr"
    dims, levels = ("level", "latitude", "longitude"), [500.0, 850.0]
    values = np.random.default_rng(0).normal(280, 5, (2, 4, 5)).astype("f4")
    coords = {"level": levels, "latitude": np.arange(40.0, 36, -1), "longitude": np.arange(1.0, 6)}
    coords["time"] = np.datetime64("2001-01-01", "ns")
    dataset = xr.Dataset({"t": (dims, values, {"units": "K"})}, coords)
    dataset.to_zarr(
        path, zarr_format=2, consolidated=False, encoding={"t": {"chunks": (1, 4, 5), "_FillValue": fill}}
    )
    row = {"path": path.name}
    assert file_faults(tmp_path, row) == []
    (path / "t" / "1.0.0").unlink()
    (fault,) = file_faults(tmp_path, row)
    assert "20010101.zarr: 1 of 2 chunks aren't there, the first at level 850" in fault
    with pytest.raises(InvalidValueError, match="1 of 2 chunks"):
        REGISTRY["era5"].open(path, "t")
