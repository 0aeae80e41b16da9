"""NOAA's Integrated Surface Database: one station and year a file, lines of fixed width."""

import re
from pathlib import Path

import numpy as np
import pandas as pd

from slams.core.errors import InvalidValueError
from slams.data.files.stations import BAD, GOOD, SUSPECT, assemble, error_std, wind_components
from slams.data.safety import read_packed

# Columns counted from 0 after the documentation's 1: station, stamp, place, kind, and the mandatory section.
_STATION, _STAMP, _LAT, _LON, _TYPE = slice(4, 15), slice(15, 27), slice(28, 34), slice(34, 41), slice(41, 46)
_WIND_DIRECTION, _WIND_DIRECTION_QC, _WIND_TYPE = slice(60, 63), 63, 64
_WIND_SPEED, _WIND_SPEED_QC = slice(65, 69), 69
_TENTHS = {  # columns, quality, missing, unit of the last digit [K, K, Pa]
    "temperature": (slice(87, 92), 92, "+9999"),
    "dew_point": (slice(93, 98), 98, "+9999"),
    "sea_level_pressure": (slice(99, 104), 104, "99999"),
}
_MANDATORY = 105
_SUMMARIES = {"SOD", "SOM"}  # of a day or month; they aren't observations of a moment
_RAIN = re.compile(r"AA[1-4](\d{2})(\d{4})(.)(.)")
_ABSOLUTE_ZERO = 273.15
_LARGEST = 1 << 28  # bytes; a report a minute fills less
_QC = {**dict.fromkeys("01459ACIMPRU", GOOD), **dict.fromkeys("26", SUSPECT), **dict.fromkeys("37", BAD)}


def is_isd(path: Path) -> bool:
    """Whether a file is of this kind, by its first line: digits, signs and separators where they belong."""
    if not path.is_file() or path.suffix not in (".gz", ""):
        return False
    try:
        line = _lines(path, first_line=True)[0]
    except (OSError, ValueError, IndexError):
        return False
    return _valid(line)


def read(path: Path) -> pd.DataFrame:
    """One file as a table of observations: temperature, dew point, sea level pressure, wind, rain.

    Summaries of days and months are left out. A precipitation of more than one length of interval is several
    variables.

    Args:
        path: `USAF-WBAN-YYYY.gz`, or unpacked.

    Returns:
        A table; see slams/data/stations.py.

    Raises:
        ValueError: If a line isn't of this format; its number is given.

    Source:
        NOAA NCEI (2018), Federal Climate Complex Data Documentation for Integrated Surface Data.
    """
    lines = _lines(path)
    for number, line in enumerate(lines, 1):
        if not _valid(line):
            raise InvalidValueError(
                f"line {number} of {path} isn't of the Integrated Surface Database ({line[:60]!r}...); the file may "
                "be cut short: fetch it again."
            )
    lines = [line for line in lines if line[_TYPE].strip() not in _SUMMARIES]
    base = pd.DataFrame(
        {
            "time": np.array([_stamp(line[_STAMP]) for line in lines], dtype="datetime64[s]"),
            "lat": _numbers([line[_LAT] for line in lines], "+99999", 1000.0),
            "lon": _numbers([line[_LON] for line in lines], "+999999", 1000.0),
            "station": [f"{line[_STATION][:6]}-{line[_STATION][6:]}" for line in lines],
        }
    )
    return assemble(base, {**_moments(lines), **_wind(lines), **_rain(lines)})


def _moments(lines: list[str]) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Temperature, dew point and pressure with errors and quality."""
    whole_degrees = np.array(
        [line[_TYPE].strip() in ("FM-15", "FM-16") for line in lines]
    )  # aviation reports
    found = {}
    for name, (columns, quality, missing) in _TENTHS.items():
        value = _numbers([line[columns] for line in lines], missing, 10.0)
        if name == "sea_level_pressure":
            value, error = value * 100.0, np.full(len(lines), error_std(name, 10.0))
        else:
            value = value + _ABSOLUTE_ZERO
            error = np.where(whole_degrees, error_std(name, 1.0), error_std(name, 0.1))
        found[name] = value, error, _quality([line[quality] for line in lines])
    return found


def _wind(lines: list[str]) -> dict[str, tuple[np.ndarray, float, np.ndarray]]:
    """Components of the wind, with the lower quality of direction and speed."""
    speed = _numbers([line[_WIND_SPEED] for line in lines], "9999", 10.0)
    direction = _numbers([line[_WIND_DIRECTION] for line in lines], "999", 1.0)
    calm = np.array([line[_WIND_TYPE] == "C" for line in lines])
    speed = np.where(calm & np.isnan(speed), 0.0, speed)
    of_speed = _quality([line[_WIND_SPEED_QC] for line in lines])
    of_direction = _quality([line[_WIND_DIRECTION_QC] for line in lines])
    flag = np.where(speed == 0, of_speed, np.maximum(of_speed, of_direction))
    u, v = wind_components(speed, direction)
    error = error_std("u_wind", 0.5)
    return {"u_wind": (u, error, flag), "v_wind": (v, error, flag)}


def _rain(lines: list[str]) -> dict[str, tuple[np.ndarray, float, np.ndarray]]:
    """Totals by length of interval, from the additional section."""
    found: dict[str, tuple[np.ndarray, float, np.ndarray]] = {}
    for index, line in enumerate(lines):
        additional = line[_MANDATORY:].split("REM", 1)[0]
        if not additional.startswith("ADD"):
            continue
        for hours, depth, _, quality in _RAIN.findall(additional):
            name = f"precipitation_{int(hours)}h"
            if int(hours) not in (1, 3, 6, 12, 24) or depth == "9999":
                continue
            if name not in found:
                empty = np.full(len(lines), np.nan), error_std(name, 0.1), np.zeros(len(lines), dtype="i1")
                found[name] = empty
            found[name][0][index] = int(depth) / 10.0
            found[name][2][index] = _QC.get(quality, SUSPECT)
    return found


def _lines(path: Path, first_line: bool = False) -> list[str]:
    """Lines of a file, which may be packed."""
    raw = read_packed(path, _LARGEST, first_line)
    if len(raw) > _LARGEST:
        raise InvalidValueError(
            f"{path} unpacks to more than {_LARGEST >> 20} MiB, too much for a station and year."
        )
    return raw.decode("latin-1").splitlines()


def _valid(line: str) -> bool:
    """Whether a line has digits, signs and a report type where the format has them."""
    return (
        len(line) >= _MANDATORY
        and line[:4].isdigit()
        and line[_STAMP].isdigit()
        and line[28] in "+-"
        and line[34] in "+-"
        and line[29:34].isdigit()
        and line[87] in "+-"
    )


def _stamp(text: str) -> str:
    """YYYYMMDDHHMM as ISO 8601."""
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[8:10]}:{text[10:12]}:00"


def _numbers(texts: list[str], missing: str, scale: float) -> np.ndarray:
    """Scaled integers, NaN where the marker of missing values stands."""
    return np.array([np.nan if text == missing else int(text) / scale for text in texts], dtype=float)


def _quality(codes: list[str]) -> np.ndarray:
    """Map the archive's quality codes; unknown ones are suspect."""
    return np.array([_QC.get(code, SUSPECT) for code in codes], dtype="i1")
