"""What is particular to CPC global daily rain from gauges: NOAA PSL's netCDF and CPC's own binary.

360 x 720 cells of 0.5 degrees, mm a day, ocean missing. PSL (`precip.YYYY.nc`): missing_value -9.96921e36
without a _FillValue; the file of the current year ends in days that are missing everywhere. Binary: one day,
little-endian float32, rain [0.1 mm] and then the number of gauges, row 0 in the south, -999 where missing,
no header: the date is in the name and nowhere else.
"""

import gzip
import re
from pathlib import Path

import numpy as np
import xarray as xr

from slams.data.files import units

_SHAPE = (2, 360, 720)  # rain and gauges, rows from 89.75 S, columns from 0.25 E
_BYTES = 4 * 2 * 360 * 720
_NAME = re.compile(r"^PRCP_CU_GAUGE_V1\.0GLB_0\.50deg\.lnx\.(\d{8})(\.RT)?(\.gz)?$", re.IGNORECASE)
_PSL_DIMS = ("time", "lat", "lon")


def recognises(dataset: xr.Dataset, variable: str) -> bool:
    """Whether the header is that of CPC rain.

    Args:
        dataset: The open file.
        variable: Name of the variable in it.

    Returns:
        True if the variable is `precip` and the file or the variable names the data set.
    """
    names = (
        dataset[variable].attrs.get("dataset", ""),
        dataset.attrs.get("title", ""),
        dataset.attrs.get("dataset_title", ""),
    )
    return variable == "precip" and any("CPC" in str(name) for name in names)


def decode(array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
    """Rain without missing markers (any negative value is one) and without the padding of an unfinished year.

    Args:
        array: (time, lat, lon) [mm/day], canonical; any selection of days of a file.
        last: Last day of the file: padding is a stretch of empty days that reaches it.

    Returns:
        The array without padding; an empty day elsewhere stays, to be reported.
    """
    return trim(array.where(array >= 0), last)


def trim(array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
    """Cut the padding of an unfinished year, looking at one day after the other from the end.

    Args:
        array: (time, lat, lon), may be lazy; NaN, negative or beyond 1e19 where missing.
        last: Last day of the file.

    Returns:
        The array up to the last day with a value, if everything after it reaches `last`.
    """
    days = array.time.values.astype("datetime64[D]")
    keep = days.size
    while keep and days[keep - 1] == last and not _any_rain(array[keep - 1].values):
        keep, last = keep - 1, last - np.timedelta64(1, "D")
    return array.isel(time=slice(0, keep))


def _any_rain(field: np.ndarray) -> bool:
    """Whether a field has a value, even a zero."""
    return bool(((field >= 0) & (field < units.IMPOSSIBLE)).any())


def is_binary(path: Path) -> bool:
    """Whether a file is named as CPC names its raw binary, which has no header to tell it by."""
    return path.is_file() and _NAME.match(path.name) is not None


def open_binary(path: Path) -> xr.Dataset:
    """Read one day of CPC's raw binary.

    Args:
        path: `PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.YYYYMMDD` with `.RT`, `.gz` or both, as CPC names it.

    Returns:
        `precip` [mm] and `gauges` (time, lat, lon), NaN where missing, with the attributes of PSL's files.

    Raises:
        ValueError: If the length isn't that of one day, or the values are no rain: another byte order.
    """
    match = _NAME.match(path.name)
    if match is None:
        raise ValueError(
            f"{path.name} doesn't carry the date as CPC writes it; name it "
            "PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.YYYYMMDD.RT (or .gz)."
        )
    raw = _bytes(path)
    if len(raw) != _BYTES:
        raise ValueError(f"{path} holds {len(raw)} bytes, expected {_BYTES} (2 x 360 x 720 float32).")
    values = np.frombuffer(raw, "<f4").reshape(_SHAPE)
    rain, gauges = values[0], values[1]
    known = rain != -999.0
    # two thirds are sea: without a marker the bytes mean something else, such as the other order
    if known.all() or not known.any() or rain[known].min() < 0 or not rain[known].max() <= 2e4:
        raise ValueError(f"{path} holds no rain in little-endian float32 of 0.1 mm; fetch it again.")
    stamp = np.datetime64(f"{match[1][:4]}-{match[1][4:6]}-{match[1][6:]}", "ns")
    fields = {
        "precip": (
            np.where(known, rain / np.float32(10), np.nan),
            {"units": "mm", "cell_methods": "time: sum"},
        ),
        "gauges": (np.where(gauges == -999.0, np.nan, gauges), {"units": "1"}),
    }
    return xr.Dataset(
        {name: (_PSL_DIMS, value[None].astype("f4"), attrs) for name, (value, attrs) in fields.items()},
        {
            "time": [stamp],
            "lat": ("lat", np.arange(-89.75, 90, 0.5), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0.25, 360, 0.5), {"units": "degrees_east"}),
        },
        {"title": "CPC GLOBAL PRCP V1.0"},
    )


def _bytes(path: Path) -> bytes:
    """Content of a file, unpacked where its first bytes say gzip, and never more than one day and a bit."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return gzip.GzipFile(fileobj=file).read(_BYTES + 1) if packed else file.read(_BYTES + 1)
        except (EOFError, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is cut short or damaged ({error}); fetch it again.") from error
