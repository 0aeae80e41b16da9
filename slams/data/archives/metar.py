"""Airport reports (METAR) as tables with the column names of MADIS: parquet, CSV or netCDF."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files.stations import (
    BAD,
    GOOD,
    SUSPECT,
    assemble,
    error_std,
    require_pyarrow,
    wind_components,
)
from slams.data.safety import refuse_pickles

_PLACE = {"stationName": "station", "latitude": "lat", "longitude": "lon", "timeObs": "time"}
_COLUMNS = {  # column, scale to our unit, unit of the last digit
    "temperature": ("temperature", 1.0, 1.0),  # K, reported in whole degrees Celsius
    "dew_point": ("dewpoint", 1.0, 1.0),
    "sea_level_pressure": ("seaLevelPress", 1.0, 10.0),  # Pa
    "altimeter": ("altimeter", 1.0, 100.0),
    "precipitation_1h": ("precip1Hour", 1000.0, 0.254),  # m, reported in hundredths of an inch
    "precipitation_3h": ("precip3Hour", 1000.0, 0.254),
    "precipitation_6h": ("precip6Hour", 1000.0, 0.254),
    "precipitation_24h": ("precip24Hour", 1000.0, 0.254),
}
_KNOT = 0.5144  # m/s, in which wind is reported
# MADIS: preliminary, coarse checks passed, screened, verified, good by hand | questioned | failed, bad by hand
_QC = {**dict.fromkeys("ZCSVG", GOOD), **dict.fromkeys("Q", SUSPECT), **dict.fromkeys("XB", BAD)}


def is_metar(path: Path) -> bool:
    """Whether a file is such a table, by the names of its columns."""
    if not path.is_file() or path.suffix not in (".parquet", ".csv", ".nc"):
        return False
    try:
        names = set(_columns(path))
    except (OSError, ValueError):
        return False
    return set(_PLACE) <= names


def read(path: Path) -> pd.DataFrame:
    """One file as a table of observations: temperature, dew point, pressures, wind, rain.

    Args:
        path: .parquet (needs pyarrow), .csv or .nc.

    Returns:
        A table; see slams/data/stations.py.

    Raises:
        ValueError: If columns are missing, or temperatures aren't in kelvin.

    Source:
        NOAA MADIS, Quality Control data descriptors,
        https://madis.ncep.noaa.gov/madis_sfc_qc_notes.shtml; U.S. Federal Meteorological Handbook No. 1 for the
        digits reported.
    """
    frame = _frame(path)
    absent = sorted(set(_PLACE) - set(frame.columns))
    if absent:
        raise InvalidValueError(
            f"{path} lacks the columns {', '.join(absent)} of METAR tables (names of MADIS)."
        )
    base = frame.loc[:, list(_PLACE)].rename(columns=_PLACE)
    base["time"] = _times(base["time"], path)
    base["station"] = _texts(base["station"])
    values = {}
    for name, (column, scale, step) in _COLUMNS.items():
        if column in frame.columns:
            value = frame[column].to_numpy(dtype=float) * scale
            values[name] = value, error_std(name, step), _quality(frame, column)
    warmth = values.get("temperature", (np.array([]),))[0]
    if np.isfinite(warmth).any() and np.nanmedian(warmth) < 150.0:
        raise InvalidValueError(
            f"temperatures in {path} have the median {np.nanmedian(warmth):g}; expected kelvin: convert the table."
        )
    if {"windSpeed", "windDir"} <= set(frame.columns):
        speed = frame["windSpeed"].to_numpy(dtype=float)
        u, v = wind_components(speed, frame["windDir"].to_numpy(dtype=float))
        of_direction = np.where(speed == 0, GOOD, _quality(frame, "windDir"))
        flag = np.maximum(_quality(frame, "windSpeed"), of_direction)
        error = error_std("u_wind", _KNOT)
        values |= {"u_wind": (u, error, flag), "v_wind": (v, error, flag)}
    return assemble(base.reset_index(drop=True), values)


def _columns(path: Path) -> list[str]:
    """Names of the columns, without reading them."""
    if path.suffix == ".parquet":
        require_pyarrow(path)
        from pyarrow.parquet import read_schema

        return list(read_schema(path).names)
    if path.suffix == ".csv":
        return list(pd.read_csv(path, nrows=0).columns)
    with xr.open_dataset(path, decode_cf=False) as dataset:
        return list(map(str, dataset.variables))


def _frame(path: Path) -> pd.DataFrame:
    """The whole table."""
    _columns(path)
    refuse_pickles(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".csv":
        return pd.read_csv(path)
    with xr.open_dataset(path) as dataset:
        flat = [name for name, variable in dataset.variables.items() if variable.ndim == 1]
        return dataset[flat].to_dataframe()


def _times(stamps: pd.Series, path: Path) -> np.ndarray:
    """Moments of observation; numbers are seconds since 1970."""
    numeric = pd.api.types.is_numeric_dtype(stamps)
    try:
        moments = pd.to_datetime(stamps, unit="s" if numeric else None, utc=True)
    except (ValueError, OverflowError) as error:
        raise InvalidValueError(f"{path}: timeObs isn't a time ({error}).") from error
    if moments.isna().any():
        raise InvalidValueError(f"{path}: {int(moments.isna().sum())} reports have no time; remove them.")
    return moments.dt.tz_localize(None).to_numpy().astype("datetime64[s]")


def _quality(frame: pd.DataFrame, column: str) -> np.ndarray:
    """Map MADIS's quality flags; good if absent, suspect if unknown."""
    if f"{column}DD" not in frame.columns:
        return np.zeros(len(frame), dtype="i1")
    return (
        _texts(frame[f"{column}DD"])
        .map(lambda flag: _QC.get(flag, SUSPECT if flag else GOOD))
        .to_numpy(dtype="i1")
    )


def _texts(column: pd.Series) -> pd.Series:
    """Texts without padding; netCDF has them as bytes."""
    return column.map(lambda text: text.decode() if isinstance(text, bytes) else str(text)).str.strip()
