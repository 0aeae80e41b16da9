"""Files with the headers of the archives, for the tests: values are given, everything else is the archive's.

Every writer returns the path. Days are datetime64[D] or what becomes it. NaN in the values becomes the
archive's own marker of missing values.
"""

import gzip
import re
import struct
from pathlib import Path

import netCDF4
import numpy as np
import xarray as xr

CPC_LAT, CPC_LON = 89.75 - 0.5 * np.arange(360), 0.25 + 0.5 * np.arange(720)
OLR_LAT, OLR_LON = 90 - 2.5 * np.arange(73), 2.5 * np.arange(144)
CDR_LAT, CDR_LON = 90 - 1.0 * np.arange(181), 1.0 * np.arange(360)
ERA5_LAT, ERA5_LON = 90 - 1.5 * np.arange(121), 1.5 * np.arange(240)
LEVELS = (10, 50, 100, 200, 300, 500, 700, 850, 925, 1000)
UNITS = {"t": "K", "z": "m**2 s**-2", "q": "kg kg**-1", "u": "m s**-1", "v": "m s**-1", "w": "Pa s**-1"}
LONG = {
    "t": "temperature",
    "z": "geopotential",
    "q": "specific_humidity",
    "u": "u_component_of_wind",
    "v": "v_component_of_wind",
    "w": "vertical_velocity",
}
_CPC_MISSING = np.float32(-9.96921e36)


def days_from(first, count):
    return np.datetime64(first, "D") + np.arange(count)


def hours_since(epoch, stamps):
    return (np.asarray(stamps).astype("datetime64[h]") - np.datetime64(epoch, "h")).astype(np.float64)


def netcdf(path, dims, variables, attrs=(), fmt="NETCDF4_CLASSIC"):
    """variables: {name: (type, dims, attrs, raw values)}; raw: nothing is packed or masked on the way."""
    with netCDF4.Dataset(path, "w", format=fmt) as file:
        file.set_auto_maskandscale(False)
        file.setncatts(dict(attrs))
        for name, size in dims.items():
            file.createDimension(name, size)
        for name, (kind, axes, own, values) in variables.items():
            own = dict(own)
            deflate = {"zlib": True} if fmt.startswith("NETCDF4") and axes and kind is not str else {}
            variable = file.createVariable(
                name, kind, axes, fill_value=own.pop("_FillValue", None), **deflate
            )
            if kind is not str:
                variable.set_auto_maskandscale(False)
            variable.setncatts(own)
            variable[...] = values
    return Path(path)


def _psl_axes(lat, lon):
    common = {"coordinate_defines": "center"}
    return {
        "lat": (
            "f4",
            ("lat",),
            {
                "actual_range": np.array([lat[0], lat[-1]], "f4"),
                "long_name": "Latitude",
                "units": "degrees_north",
                "axis": "Y",
                "standard_name": "latitude",
                **common,
            },
            lat,
        ),
        "lon": (
            "f4",
            ("lon",),
            {
                "long_name": "Longitude",
                "units": "degrees_east",
                "axis": "X",
                "standard_name": "longitude",
                "actual_range": np.array([lon[0], lon[-1]], "f4"),
                **common,
            },
            lon,
        ),
    }


def cpc_psl(path, days, rain, lat=CPC_LAT, lon=CPC_LON, units="mm", titled=True):
    """PSL's `precip.YYYY.nc`; rain (time, lat, lon) [mm], an unfinished year ends in days of NaN."""
    rain = np.asarray(rain, "f4")
    time = {
        "long_name": "Time",
        "axis": "T",
        "standard_name": "time",
        "coordinate_defines": "start",
        "actual_range": hours_since("1900-01-01", [days[0], days[-1]]),
        "delta_t": "0000-00-01 00:00:00",
        "avg_period": "0000-00-01 00:00:00",
        "units": "hours since 1900-01-01 00:00:00",
    }
    precip = {
        "missing_value": _CPC_MISSING,
        "var_desc": "Precipitation",
        "level_desc": "Surface",
        "statistic": "Total",
        "parent_stat": "Other",
        "long_name": "Daily total of precipitation",
        "cell_methods": "time: sum",
        "avg_period": "0000-00-01 00:00:00",
        "actual_range": np.array([np.nanmin(rain), np.nanmax(rain)], "f4"),
        "units": units,
        "valid_range": np.array([0, 1000], "f4"),
        "dataset": "CPC Global Precipitation",
    }
    attrs = {
        "Conventions": "CF-1.0",
        "version": "V1.0",
        "title": "CPC GLOBAL PRCP V1.0 RT",
        "dataset_title": "CPC GLOBAL PRCP V1.0",
        "Source": "ftp://ftp.cpc.ncep.noaa.gov/precip/CPC_UNI_PRCP/",
        "References": "https://www.psl.noaa.gov/data/gridded/data.cpc.globalprecip.html",
    }
    if not titled:
        del precip["dataset"]
        attrs = {"Conventions": "CF-1.6", "title": "daily rain", "history": "cut with another tool"}
    raw = np.where(np.isnan(rain), _CPC_MISSING, rain)
    variables = {
        **_psl_axes(lat, lon),
        "time": ("f8", ("time",), time, hours_since("1900-01-01", days)),
        "precip": ("f4", ("time", "lat", "lon"), precip, raw),
    }
    return netcdf(path, {"lat": len(lat), "lon": len(lon), "time": None}, variables, attrs)


def cpc_binary(folder, day, rain, gauges=None, packed=False):
    """CPC's raw binary of a day; rain (360, 720) [mm] from the north, as in `cpc_psl`."""
    name = f"PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.{str(np.datetime64(day, 'D')).replace('-', '')}"
    rain = np.where(np.isnan(rain), -999.0, np.asarray(rain, "f4") * np.float32(10))
    gauges = np.zeros((360, 720)) if gauges is None else gauges
    raw = np.stack([rain[::-1], gauges[::-1]]).astype("<f4").tobytes()
    path = Path(folder) / (name + (".gz" if packed else ".RT"))
    path.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
    return path


def _olr_attrs(packed, units="W/m^2"):
    attrs = {
        "long_name": "Daily OLR",
        "units": units,
        "precision": np.int16(2),
        "least_significant_digit": np.int16(0),
        "var_desc": "Outgoing Longwave Radiation",
        "dataset": "NOAA Interpolated OLR",
        "level_desc": "Other",
        "statistic": "Mean",
        "parent_stat": "Individual Obs",
        "valid_range": np.array([0, 500], "f4"),  # in unpacked units, packed or not
    }
    if packed:
        return attrs | {
            "add_offset": np.float32(327.65),
            "scale_factor": np.float32(0.01),
            "missing_value": np.int16(32766),
        }
    return attrs | {"missing_value": np.float32(-9.96921e36)}


def olr(path, stamps, values, *, packed=False, lat=OLR_LAT, lon=OLR_LON, title="NOAA Interpolated OLR"):
    """PSL's `olr.day.mean.nc` and its kin; stamps may come twice a day, the grid may be the CDR's."""
    epoch = "1-1-1" if packed else "1800-01-01"
    start = "0001-01-01" if packed else "1800-01-01"
    hours = hours_since(start, stamps)
    if packed:  # the old files count in the mixed calendar, two days ahead of the proleptic one in year 1
        hours = hours + 48
    step = "0000-00-01 00:00:00" if len(hours) < 2 or np.diff(hours).min() >= 24 else "0000-00-00 12:00:00"
    time = {
        "units": f"hours since {epoch} 00:00:0.0",
        "long_name": "Time",
        "actual_range": np.array([hours[0], hours[-1]]),
        "delta_t": step,
        "avg_period": step,
        "standard_name": "time",
        "axis": "T",
    }
    values = np.asarray(values, "f8")
    if packed:
        raw = np.where(np.isnan(values), 32766, np.rint((values - 327.65) / 0.01)).astype("i2")
    else:
        raw = np.where(np.isnan(values), -9.96921e36, values).astype("f4")
    variables = {
        **_psl_axes(lat, lon),
        "time": ("f8", ("time",), time, hours),
        "olr": ("i2" if packed else "f4", ("time", "lat", "lon"), _olr_attrs(packed), raw),
    }
    attrs = {"Conventions": "CF-1.2", "title": title, "platform": "Observation", "dataset_title": title}
    fmt = "NETCDF3_CLASSIC" if packed else "NETCDF4_CLASSIC"
    return netcdf(path, {"lon": len(lon), "lat": len(lat), "time": None}, variables, attrs, fmt)


def olr_cdr(path, days, values):
    """The 1 degree climate data record under the same file name."""
    title = "NOAA Climate Data Record of Daily Mean OLR"
    return olr(path, days, values, lat=CDR_LAT, lon=CDR_LON, title=title)


def chaosbench_day(folder, day, fields, levels=LEVELS, packed=False, lat=ERA5_LAT, lon=ERA5_LON):
    """`era5_full_1.5deg_YYYYMMDD.zarr`: fields {name: (level, lat, lon)}, z in metres with the wrong unit."""
    stamp = np.datetime64(day, "D")
    path = Path(folder) / f"era5_full_1.5deg_{str(stamp).replace('-', '')}.zarr"
    dataset = xr.Dataset(
        {
            name: (("level", "latitude", "longitude"), np.asarray(field, "f4"), {"units": UNITS[name]})
            for name, field in fields.items()
        },
        {
            "level": ("level", np.array(levels, "i4"), {"units": "millibars", "long_name": "pressure_level"}),
            "latitude": ("latitude", np.asarray(lat, "f4"), {"units": "degrees_north"}),
            "longitude": ("longitude", np.asarray(lon, "f4"), {"units": "degrees_east"}),
            "time": stamp.astype("datetime64[ns]"),
        },
        {"Conventions": "CF-1.6"},
    )
    encoding = {}
    for name, field in fields.items() if packed else ():
        low, high = float(np.min(field)), float(np.max(field))
        scale = (high - low) / 65000 or 1.0
        encoding[name] = {
            "dtype": "i2",
            "scale_factor": scale,
            "add_offset": (high + low) / 2,
            "_FillValue": np.int16(-32767),
        }
    dataset.to_zarr(path, mode="w", zarr_format=2, encoding=encoding, consolidated=True)
    return path


def climatology(path, params, mean, sigma):
    """`climatology_era5.zarr`."""
    names = np.array(params, dtype=object)
    dataset = xr.Dataset({"mean": ("param", mean), "sigma": ("param", sigma)}, {"param": names})
    dataset.to_zarr(path, mode="w", zarr_format=2, consolidated=True)
    return Path(path)


def cds_old(path, stamps, name, values, levels=LEVELS, lat=ERA5_LAT, lon=ERA5_LON, preliminary=None):
    """The CDS until September 2024: int16, netCDF-3, hours since 1900; `expver` if a preliminary field is given."""
    values = np.asarray(values, "f8")
    versions = [values] if preliminary is None else [values, np.asarray(preliminary, "f8")]
    low = min(np.nanmin(version) for version in versions)
    high = max(np.nanmax(version) for version in versions)
    scale, offset = (high - low) / 65532 or 1.0, (high + low) / 2
    stack = np.stack(versions, 1) if preliminary is not None else values
    raw = np.where(np.isnan(stack), -32767, np.rint((stack - offset) / scale)).astype("i2")
    attrs = {
        "scale_factor": scale,
        "add_offset": offset,
        "_FillValue": np.int16(-32767),
        "missing_value": np.int16(-32767),
        "units": UNITS[name],
        "long_name": LONG[name].replace("_", " ").capitalize(),
    }
    dims = {"longitude": len(lon), "latitude": len(lat), "level": len(levels), "time": len(stamps)}
    stamp = {"units": "hours since 1900-01-01 00:00:00.0", "long_name": "time", "calendar": "gregorian"}
    variables = {
        "longitude": ("f4", ("longitude",), {"units": "degrees_east", "long_name": "longitude"}, lon),
        "latitude": ("f4", ("latitude",), {"units": "degrees_north", "long_name": "latitude"}, lat),
        "level": ("i4", ("level",), {"units": "millibars", "long_name": "pressure_level"}, levels),
        "time": ("i4", ("time",), stamp, hours_since("1900-01-01", stamps).astype("i4")),
    }
    axes = ("time", "level", "latitude", "longitude")
    if preliminary is not None:
        dims["expver"], axes = 2, ("time", "expver", "level", "latitude", "longitude")
        variables["expver"] = ("i4", ("expver",), {"long_name": "expver"}, [1, 5])
    variables[name] = ("i2", axes, attrs, raw)
    return netcdf(path, dims, variables, {"Conventions": "CF-1.6"}, "NETCDF3_64BIT_OFFSET")


def cds_new(path, stamps, name, values, levels=LEVELS[::-1], lat=ERA5_LAT, lon=ERA5_LON):
    """The CDS since September 2024: valid_time, pressure_level descending, float32, number, expver."""
    seconds = np.asarray(stamps).astype("datetime64[s]").astype("i8")
    stamp = {"long_name": "time", "standard_name": "time", "units": "seconds since 1970-01-01"}
    stamp |= {"calendar": "proleptic_gregorian"}
    level = {"long_name": "pressure", "units": "hPa", "positive": "down", "stored_direction": "decreasing"}
    level |= {"standard_name": "air_pressure", "_FillValue": np.nan}
    degrees = [
        {"_FillValue": np.nan, "units": f"degrees_{way}", "standard_name": axis, "long_name": axis}
        for axis, way in (("latitude", "north"), ("longitude", "east"))
    ]
    attrs = {
        "_FillValue": np.float32(np.nan),
        "GRIB_paramId": np.int64(130),
        "GRIB_dataType": "an",
        "GRIB_typeOfLevel": "isobaricInhPa",
        "GRIB_missingValue": 3.4028234663852886e38,
        "long_name": LONG[name].replace("_", " ").capitalize(),
        "units": UNITS[name],
        "coordinates": "number valid_time pressure_level latitude longitude expver",
    }
    dims = {
        "valid_time": len(seconds),
        "pressure_level": len(levels),
        "latitude": len(lat),
        "longitude": len(lon),
    }
    member = {"long_name": "ensemble member numerical id", "units": "1", "standard_name": "realization"}
    variables = {
        "number": ("i8", (), member, 0),
        "valid_time": ("i8", ("valid_time",), stamp, seconds),
        "pressure_level": ("f8", ("pressure_level",), level, levels),
        "latitude": ("f8", ("latitude",), degrees[0] | {"stored_direction": "decreasing"}, lat),
        "longitude": ("f8", ("longitude",), degrees[1], lon),
        "expver": (str, ("valid_time",), {}, np.array(["0001"] * len(seconds), dtype=object)),
        name: ("f4", tuple(dims), attrs, values),
    }
    attrs = {"GRIB_centre": "ecmf", "Conventions": "CF-1.7", "institution": "ECMWF"}
    return netcdf(path, dims, variables, attrs, "NETCDF4")


def weatherbench(path, stamps, fields, levels=LEVELS, lat=ERA5_LAT[::-1], lon=ERA5_LON, chunk=1):
    """A regridded store of WeatherBench2: fields {short name: (time, level, lat, lon)} as given, written turned."""
    dims = ("time", "level", "longitude", "latitude")
    dataset = xr.Dataset(
        {
            LONG[name]: (dims, np.asarray(values, "f4").swapaxes(-1, -2), {"units": UNITS[name]})
            for name, values in fields.items()
        },
        {
            "time": np.asarray(stamps).astype("datetime64[ns]"),
            "level": np.array(levels),
            "longitude": np.asarray(lon, "f8"),
            "latitude": np.asarray(lat, "f8"),
        },
    )
    encoding = {LONG[name]: {"chunks": (chunk, len(levels), len(lon), len(lat))} for name in fields}
    dataset.to_zarr(path, mode="w", zarr_format=2, encoding=encoding, consolidated=True)
    return Path(path)


def isd_line(
    stamp,
    temperature=None,
    dew_point=None,
    pressure=None,
    wind=None,
    rain=None,
    *,
    station="02413099999",
    lat=60.75,
    lon=12.767,
    kind="FM-12",
    qc="1",
):
    """One line of ISD: degC, degC, hPa, (m/s, degrees), [(hours, mm)]; None is the archive's marker."""
    moment = np.datetime64(stamp, "m").astype(object)

    def tenths(value, width, missing):
        sign = "" if width == 5 and missing[0] != "+" else None
        if value is None:
            return missing + "9"
        number = round(value * 10)
        text = f"{number:05d}" if sign == "" else f"{number:+05d}"
        return text + qc

    direction = "9999" if wind is None or wind[1] is None else f"{round(wind[1]):03d}{qc}"
    speed = "99999" if wind is None else f"{round(wind[0] * 10):04d}{qc}"
    way = "9" if wind is None else "C" if wind[0] == 0 else "N"
    text = "".join(
        [
            f"{station}{moment:%Y%m%d%H%M}4{round(lat * 1000):+06d}{round(lon * 1000):+07d}{kind:5s}+020599999V020",
            f"{direction}{way}{speed}",
            "99999" + "99" + "9" + "999999" + "9" + "99",
            tenths(temperature, 5, "+9999"),
            tenths(dew_point, 5, "+9999"),
            tenths(pressure, 5, "99999"),
        ]
    )
    added = "".join(
        f"AA{i}{hours:02d}{round(depth * 10):04d}9{qc}" for i, (hours, depth) in enumerate(rain or (), 1)
    )
    added = f"ADD{added}" if added else ""
    return f"{len(added):04d}{text}{added}"


def isd(path, lines):
    Path(path).write_bytes(gzip.compress(("\n".join(lines) + "\n").encode("latin-1"), mtime=0))
    return Path(path)


def global_hourly(path, lines):
    """NCEI's table of lines of ISD: the same digits, section by section, in quoted fields."""
    columns = ["STATION", "DATE", "SOURCE", "LATITUDE", "LONGITUDE", "ELEVATION", "NAME", "REPORT_TYPE"]
    columns += ["CALL_SIGN", "QUALITY_CONTROL", "WND", "CIG", "VIS", "TMP", "DEW", "SLP", "AA1", "AA2"]
    rows = [columns]
    for line in lines:
        stamp, added = line[15:27], re.findall(r"AA\d(\d\d)(\d{4})(.)(.)", line[105:])
        rain = [",".join(part) for part in added] + ["", ""]
        place = [f"{int(line[28:34]) / 1000:.7g}", f"{int(line[34:41]) / 1000:.7g}", "205.0", "MORA A, SW"]
        wind = ",".join([line[60:63], line[63], line[64], line[65:69], line[69]])
        moments = [f"{line[a:b]},{line[b]}" for a, b in ((87, 92), (93, 98), (99, 104))]
        when = f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:10]}:{stamp[10:]}:00"
        kind = [line[41:46], "99999", "V020"]
        rows.append(
            [line[4:15], when, "4", *place, *kind, wind, "99999,9,9,N", "999999,9,9,9", *moments, *rain[:2]]
        )
    text = "".join(",".join(f'"{field}"' for field in row) + "\n" for row in rows)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return Path(path)


def metar(path, stamps, station="KMSP", lat=44.88, lon=-93.22, **columns):
    """A table with the columns of MADIS; flags `temperatureDD` ... are good unless given."""
    import pandas as pd

    count = len(stamps)
    frame = pd.DataFrame(
        {
            "stationName": [station] * count,
            "latitude": np.full(count, lat, "f4"),
            "longitude": np.full(count, lon, "f4"),
            "elevation": np.full(count, 255, "f4"),
            "timeObs": np.asarray(stamps).astype("datetime64[ns]"),
        }
    )
    for name in ("temperature", "dewpoint", "seaLevelPress", "windSpeed", "windDir"):
        frame[name] = np.asarray(columns.pop(name, np.full(count, np.nan)), "f4")
        frame[f"{name}DD"] = columns.pop(f"{name}DD", ["V"] * count)
    frame = frame.assign(**columns)
    frame.to_csv(path, index=False) if Path(path).suffix == ".csv" else frame.to_parquet(path)
    return Path(path)


def end_of_split_zip(path, parts):
    """The end record of a zip that has `parts` parts before this one."""
    Path(path).write_bytes(b"PK\5\6" + struct.pack("<4H2LH", parts, parts, 0, 1, 0, 0, 0))
    return Path(path)
