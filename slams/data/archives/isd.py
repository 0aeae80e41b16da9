"""NOAA's Integrated Surface Database: one station and year a file, of fixed width or comma-separated."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from slams.core.errors import InvalidValueError, SlamsError
from slams.data.files.stations import BAD, GOOD, SUSPECT, assemble, error_std, wind_components
from slams.data.safety import read_packed

# Columns counted from 0 after the documentation's 1: station, stamp, place, kind, and the mandatory section.
_STATION, _STAMP, _LAT, _LON, _TYPE = slice(4, 15), slice(15, 27), slice(28, 34), slice(34, 41), slice(41, 46)
_WIND = (
    slice(60, 63),
    slice(63, 64),
    slice(64, 65),
    slice(65, 69),
    slice(69, 70),
)  # its parts, as in the table
_TENTHS = {  # columns and quality of the lines, column of the table, missing; the last digit is 0.1 K or 0.1 hPa
    "temperature": (slice(87, 92), slice(92, 93), "TMP", "+9999"),
    "dew_point": (slice(93, 98), slice(98, 99), "DEW", "+9999"),
    "sea_level_pressure": (slice(99, 104), slice(104, 105), "SLP", "99999"),
}
_MANDATORY = 105
_SUMMARIES = {"SOD", "SOM"}  # of a day or month; they aren't observations of a moment
_RAIN = re.compile(r"AA[1-4](\d{2})(\d{4})(.)(.)")
_RAIN_COLUMNS = ("AA1", "AA2", "AA3", "AA4")
_TABLE = ("STATION", "DATE")  # and one of these, whose values carry their quality
_REPORTED = ("TMP", "DEW", "WND", "AA1")
_ABSOLUTE_ZERO = 273.15
_LARGEST = 1 << 28  # bytes; a report a minute fills less
_QC = {**dict.fromkeys("01459ACIMPRU", GOOD), **dict.fromkeys("26", SUSPECT), **dict.fromkeys("37", BAD)}


@dataclass(frozen=True)
class _Reports:
    """Texts of all reports of a file, whatever its format.

    Attributes:
        base: time, lat, lon and station.
        kinds: Types of report, such as FM-12.
        tenths: Digits and quality of each variable of _TENTHS.
        wind: Direction [degrees], its quality, its type, speed [0.1 m/s], its quality.
        rain: For each report (hours, depth [0.1 mm], condition, quality) of its intervals.
    """

    base: pd.DataFrame
    kinds: list[str]
    tenths: dict[str, tuple[list[str], ...]]
    wind: tuple[list[str], ...]
    rain: list[list[tuple[str, ...]]]


def is_isd(path: Path) -> bool:
    """Whether a file is of this kind, by its first line: names of columns, or digits and signs where they belong."""
    if not path.is_file() or path.suffix not in (".gz", ".csv", ""):
        return False
    try:
        line = _text(path, first_line=True).splitlines()[0]
    except (OSError, ValueError, IndexError):
        return False
    return _is_table(line) or _valid(line)


def read(path: Path) -> pd.DataFrame:
    """One file as a table of observations: temperature, dew point, sea level pressure, wind, rain.

    Summaries of days and months are left out. A precipitation of more than one length of interval is several
    variables.

    Args:
        path: `USAF-WBAN-YYYY.gz` or NCEI's `YEAR/STATION.csv` (global-hourly), packed or not.

    Returns:
        A table; see slams/data/stations.py.

    Raises:
        ValueError: If a line isn't of this format; its number is given.

    Source:
        NOAA NCEI (2018), Federal Climate Complex Data Documentation for Integrated Surface Data.
    """
    text = _text(path)
    parse = _of_table if _is_table(text.split("\n", 1)[0]) else _of_lines
    try:
        reports = parse(text, path)
        return assemble(reports.base, {**_moments(reports), **_winds(reports), **_rain(reports)})
    except SlamsError:
        raise
    except (ValueError, csv.Error) as error:
        raise InvalidValueError(
            f"{path} holds what the Integrated Surface Database doesn't ({error}); fetch it again."
        ) from error


def _of_lines(text: str, path: Path) -> _Reports:
    """Lines of fixed width."""
    lines = text.splitlines()
    for number, line in enumerate(lines, 1):
        if not _valid(line):
            raise _broken(number, path, line)
    lines = [line for line in lines if line[_TYPE].strip() not in _SUMMARIES]
    base = pd.DataFrame(
        {
            "time": np.array([_stamp(line[_STAMP]) for line in lines], dtype="datetime64[s]"),
            "lat": _numbers([line[_LAT] for line in lines], "+99999", 1000.0),
            "lon": _numbers([line[_LON] for line in lines], "+999999", 1000.0),
            "station": [_station(line[_STATION]) for line in lines],
        }
    )
    added = [line[_MANDATORY:].split("REM", 1)[0] for line in lines]
    return _Reports(
        base,
        [line[_TYPE].strip() for line in lines],
        {name: _columns(lines, *columns[:2]) for name, columns in _TENTHS.items()},
        _columns(lines, *_WIND),
        [_RAIN.findall(text) if text.startswith("ADD") else [] for text in added],
    )


def _of_table(text: str, path: Path) -> _Reports:
    """NCEI's table, whose fields hold the parts of a section, such as "+0123,1"."""
    names, *rows = csv.reader(io.StringIO(text), strict=True)
    for number, row in enumerate(rows, 2):
        if len(row) != len(names):
            raise _broken(number, path, ",".join(row))
    table = pd.DataFrame(rows, columns=names)
    absent = [name for name in ("LATITUDE", "LONGITUDE") if name not in table]
    if absent:
        raise InvalidValueError(
            f"{path} has no column {' and '.join(absent)}; fetch the station's file of NCEI's global-hourly access, or "
            "ask its service with includeStationLocation=1."
        )
    table = table[~table.get("REPORT_TYPE", pd.Series("", table.index)).str.strip().isin(_SUMMARIES)]
    base = pd.DataFrame(
        {
            "time": table["DATE"].to_numpy().astype("datetime64[s]"),
            "lat": pd.to_numeric(table["LATITUDE"]).to_numpy(float),
            "lon": pd.to_numeric(table["LONGITUDE"]).to_numpy(float),
            "station": [_station(name) for name in table["STATION"]],
        }
    )

    def parts(name: str, count: int, missing: Iterable[str]) -> tuple[list[str], ...]:
        fields = [
            field.split(",") if field else list(missing) for field in table.get(name, [""] * len(table))
        ]
        for position, field in enumerate(fields):
            if len(field) != count:
                raise _broken(int(table.index[position]) + 2, path, f"{name} {','.join(field)}")
        return tuple([field[k] for field in fields] for k in range(count))

    tenths = {name: parts(column, 2, (missing, "9")) for name, (_, _, column, missing) in _TENTHS.items()}
    rain = [zip(*parts(name, 4, ("99", "9999", "9", "9")), strict=True) for name in _RAIN_COLUMNS]
    return _Reports(
        base,
        [kind.strip() for kind in table.get("REPORT_TYPE", [""] * len(table))],
        tenths,
        parts("WND", 5, ("999", "9", "9", "9999", "9")),
        [list(intervals) for intervals in zip(*rain, strict=True)],
    )


def _moments(reports: _Reports) -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Temperature, dew point and pressure with errors and quality."""
    whole_degrees = np.array([kind in ("FM-15", "FM-16") for kind in reports.kinds])  # aviation reports
    found = {}
    for name, (digits, quality) in reports.tenths.items():
        value = _numbers(digits, _TENTHS[name][-1], 10.0)
        if name == "sea_level_pressure":
            value, error = value * 100.0, np.full(len(digits), error_std(name, 10.0))
        else:
            value = value + _ABSOLUTE_ZERO
            error = np.where(whole_degrees, error_std(name, 1.0), error_std(name, 0.1))
        found[name] = value, error, _quality(quality)
    return found


def _winds(reports: _Reports) -> dict[str, tuple[np.ndarray, float, np.ndarray]]:
    """Components of the wind, with the lower quality of direction and speed."""
    direction, direction_quality, kinds, speeds, speed_quality = reports.wind
    speed = _numbers(speeds, "9999", 10.0)
    calm = np.array([kind == "C" for kind in kinds], dtype=bool)
    speed = np.where(calm & np.isnan(speed), 0.0, speed)
    of_speed = _quality(speed_quality)
    flag = np.where(speed == 0, of_speed, np.maximum(of_speed, _quality(direction_quality)))
    u, v = wind_components(speed, _numbers(direction, "999", 1.0))
    error = error_std("u_wind", 0.5)
    return {"u_wind": (u, error, flag), "v_wind": (v, error, flag)}


def _rain(reports: _Reports) -> dict[str, tuple[np.ndarray, float, np.ndarray]]:
    """Totals by length of interval, from the additional section."""
    found: dict[str, tuple[np.ndarray, float, np.ndarray]] = {}
    count = len(reports.rain)
    for index, intervals in enumerate(reports.rain):
        for hours, depth, _, quality in intervals:
            if not hours.isdigit() or int(hours) not in (1, 3, 6, 12, 24) or depth == "9999":
                continue
            name = f"precipitation_{int(hours)}h"
            if name not in found:
                found[name] = np.full(count, np.nan), error_std(name, 0.1), np.zeros(count, dtype="i1")
            found[name][0][index] = int(depth) / 10.0
            found[name][2][index] = _QC.get(quality, SUSPECT)
    return found


def _text(path: Path, first_line: bool = False) -> str:
    """Text of a file, which may be packed."""
    raw = read_packed(path, _LARGEST, first_line)
    if len(raw) > _LARGEST:
        raise InvalidValueError(
            f"{path} unpacks to more than {_LARGEST >> 20} MiB, too much for a station and year."
        )
    return raw.decode("latin-1")


def _is_table(line: str) -> bool:
    """Whether a line has the names of NCEI's columns."""
    names = line.replace('"', "").strip().split(",")
    return set(_TABLE) <= set(names) and not set(_REPORTED).isdisjoint(names)


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


def _broken(number: int, path: Path, what: str) -> InvalidValueError:
    return InvalidValueError(
        f"line {number} of {path} isn't of the Integrated Surface Database ({what[:60]!r}...); the file may be cut "
        "short: fetch it again."
    )


def _columns(lines: list[str], *columns: slice) -> tuple[list[str], ...]:
    """Parts of all lines."""
    return tuple([line[part] for line in lines] for part in columns)


def _station(digits: str) -> str:
    """USAF and WBAN number, as the archive's files are named."""
    return f"{digits[:6]}-{digits[6:]}"


def _stamp(text: str) -> str:
    """YYYYMMDDHHMM as ISO 8601."""
    return f"{text[:4]}-{text[4:6]}-{text[6:8]}T{text[8:10]}:{text[10:12]}:00"


def _numbers(texts: list[str], missing: str, scale: float) -> np.ndarray:
    """Scaled integers, NaN where the marker of missing values stands."""
    return np.array([np.nan if text == missing else int(text) / scale for text in texts], dtype=float)


def _quality(codes: list[str]) -> np.ndarray:
    """Map the archive's quality codes; unknown ones are suspect."""
    return np.array([_QC.get(code, SUSPECT) for code in codes], dtype="i1")
