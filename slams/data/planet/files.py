"""Files of the synthetic planet in the layouts of the archives they stand for."""

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any, Literal

import netCDF4
import numpy as np

from slams.config import PRESSURE_LEVELS
from slams.core.files import atomic

FILES = ("era5_t_{year}.nc", "precip.{year}.nc", "olr.{year}.nc")

_Format = Literal["NETCDF4", "NETCDF4_CLASSIC", "NETCDF3_CLASSIC"]
_Axes = dict[str, tuple[np.ndarray, Mapping[str, object]]]
_MISSING_RAIN = np.float32(-9.96921e36)
_OLR_OFFSET, _OLR_SCALE, _OLR_MISSING = 327.65, 0.01, 32766


def write_year(
    folder: Path,
    year: int,
    latitude: np.ndarray,
    longitude: np.ndarray,
    fields: tuple[np.ndarray, np.ndarray, np.ndarray],
    mark: str,
) -> None:
    """Write the missing files of a year's three, each atomically.

    Args:
        folder: Output folder.
        year: Calendar year; the first day is 1 January.
        latitude: Latitudes, north to south [degrees], (H,).
        longitude: Longitudes [degrees east], (W,).
        fields: Temperature on `PRESSURE_LEVELS` [K], (days, levels, H, W); rain [mm], NaN over sea,
            (days, H, W); outgoing long-wave radiation [W/m^2], (days, H, W).
        mark: Fingerprint of the settings that made them.
    """
    kinds: list[tuple[str, _Format, Callable[..., None]]] = [
        ("temperature", "NETCDF4", _write_temperature),
        ("gauge rain", "NETCDF4_CLASSIC", _write_rain),
        ("outgoing long-wave radiation", "NETCDF3_CLASSIC", _write_radiation),
    ]
    for target, (what, form, write), field in zip(year_paths(folder, year), kinds, fields, strict=True):
        if is_complete(target, mark):
            continue
        with atomic(target) as path, netCDF4.Dataset(path, "w", format=form) as file:
            file.setncatts(_about(what, mark))
            write(file, year, latitude, longitude, field)


def year_paths(folder: Path, year: int) -> list[Path]:
    """The three files of a year: temperature, rain, outgoing radiation."""
    return [folder / name.format(year=year) for name in FILES]


def is_complete(path: Path, mark: str) -> bool:
    """Whether a file stands at `path` that the settings with this fingerprint made."""
    if not path.exists():
        return False
    with netCDF4.Dataset(path) as file:
        return bool(getattr(file, "settings_sha256", None) == mark)


def _about(what: str, mark: str) -> dict[str, str]:
    """Global attributes, by which nobody takes the file for the real one."""
    return {
        "title": f"Synthetic planet: {what}",
        "source": "SYNTHETIC: simulated weather on a Gaussian grid; not observations of the Earth",
        "settings_sha256": mark,
        "Conventions": "CF-1.7",
    }


def _hours_since(epoch: date, year: int, length: int) -> np.ndarray:
    """Hours at 00 UTC of the first `length` days of a year."""
    return ((date(year, 1, 1) - epoch).days + np.arange(length)) * 24.0


def _write_temperature(
    file: netCDF4.Dataset, year: int, lat: np.ndarray, lon: np.ndarray, field: np.ndarray
) -> None:
    """The layout of the new CDS: valid_time, pressure_level descending, float32."""
    seconds = _hours_since(date(1970, 1, 1), year, len(field)) * 3600
    levels = np.array(PRESSURE_LEVELS, dtype=np.float64)[::-1]
    time = {"units": "seconds since 1970-01-01", "calendar": "proleptic_gregorian"}
    down = {"units": "hPa", "positive": "down", "stored_direction": "decreasing"}
    north = {"units": "degrees_north", "standard_name": "latitude", "stored_direction": "decreasing"}
    axes: _Axes = {
        "valid_time": (seconds.astype(np.int64), time | {"standard_name": "time", "long_name": "time"}),
        "pressure_level": (levels, down | {"standard_name": "air_pressure", "long_name": "pressure"}),
        "latitude": (lat, north),
        "longitude": (lon, {"units": "degrees_east", "standard_name": "longitude"}),
    }
    attributes = {"long_name": "Temperature", "standard_name": "air_temperature", "units": "K"}
    variable = _create(file, "t", "f4", axes, attributes, fill_value=np.float32(np.nan))
    variable.setncatts({"GRIB_shortName": "t", "GRIB_gridType": "regular_gg"})
    variable[:] = field[:, ::-1]


def _write_rain(
    file: netCDF4.Dataset, year: int, lat: np.ndarray, lon: np.ndarray, field: np.ndarray
) -> None:
    """PSL's layout of CPC: missing_value without _FillValue, 00 UTC at the start of the day."""
    hours = _hours_since(date(1900, 1, 1), year, len(field))
    attributes = {
        "missing_value": _MISSING_RAIN,
        "var_desc": "Precipitation",
        "statistic": "Total",
        "long_name": "Daily total of precipitation",
        "units": "mm",
        "valid_range": np.array([0, 1000], np.float32),
        "cell_methods": "time: sum",
        "dataset": "CPC Global Precipitation (synthetic)",
    }
    axes = _psl_axes(hours, "hours since 1900-01-01 00:00:00", lat, lon)
    _create(file, "precip", "f4", axes, attributes)[:] = np.where(np.isnan(field), _MISSING_RAIN, field)


def _write_radiation(
    file: netCDF4.Dataset, year: int, lat: np.ndarray, lon: np.ndarray, field: np.ndarray
) -> None:
    """PSL's old packed layout of interpolated OLR, valid_range in unpacked units as there."""
    hours = _hours_since(date(1800, 1, 1), year, len(field))
    attributes = {
        "long_name": "Daily Mean OLR (synthetic)",
        "units": "W/m^2",
        "add_offset": np.float32(_OLR_OFFSET),
        "scale_factor": np.float32(_OLR_SCALE),
        "missing_value": np.int16(_OLR_MISSING),
        "valid_range": np.array([0, 500], np.float32),
        "statistic": "Mean",
    }
    axes = _psl_axes(hours, "hours since 1800-01-01 00:00:0.0", lat, lon)
    variable = _create(file, "olr", "i2", axes, attributes)
    variable.set_auto_maskandscale(False)
    packed = np.rint((field.astype(np.float64) - _OLR_OFFSET) / _OLR_SCALE)
    variable[:] = packed.clip(-32765, 32765).astype(np.int16)


def _psl_axes(hours: np.ndarray, units: str, lat: np.ndarray, lon: np.ndarray) -> _Axes:
    """Coordinates as PSL names them."""
    time = {"units": units, "long_name": "Time", "standard_name": "time", "delta_t": "0000-00-01 00:00:00"}
    north = {"units": "degrees_north", "long_name": "Latitude", "standard_name": "latitude", "axis": "Y"}
    east = {"units": "degrees_east", "long_name": "Longitude", "standard_name": "longitude", "axis": "X"}
    return {
        "time": (hours, time | {"axis": "T"}),
        "lat": (lat.astype(np.float32), north),
        "lon": (lon.astype(np.float32), east),
    }


def _create(
    file: netCDF4.Dataset,
    name: str,
    kind: str,
    axes: _Axes,
    attributes: Mapping[str, object],
    **storage: Any,
) -> netCDF4.Variable:
    """Dimensions with their coordinate variables, and a variable on them."""
    for axis, (values, described) in axes.items():
        file.createDimension(axis, None if "time" in axis else len(values))
        coordinate = file.createVariable(axis, values.dtype, (axis,))
        coordinate.setncatts(described)
        coordinate[:] = values
    variable = file.createVariable(name, kind, tuple(axes), **storage)
    variable.setncatts(attributes)
    return variable
