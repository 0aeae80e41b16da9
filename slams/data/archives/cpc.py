"""CPC global daily rain from gauges: NOAA PSL's yearly netCDF, or CPC's own binary of one day.

360 x 720 cells of 0.5 degrees, mm a day, ocean missing. PSL (`precip.YYYY.nc`): missing_value -9.96921e36
without a _FillValue; the file of the current year ends in days that are missing everywhere. Binary: one day,
little-endian float32, rain [0.1 mm] and then the number of gauges, row 0 in the south, -999 where missing,
no header: the date is in the name and nowhere else.
"""

import re
from collections.abc import Callable, Hashable
from pathlib import Path

import numpy as np
import xarray as xr

from slams import config
from slams.core.errors import InvalidValueError
from slams.data.archives.base import Archive
from slams.data.files import units
from slams.data.files.convention import Quantity
from slams.data.files.periods import RAIN_DAY
from slams.data.safety import read_packed

_CELL = 0.5  # degrees
_GLOBAL_CELLS = 10_000  # somewhere on a field of so many it rains
_LEAST_MAXIMUM = 0.05  # mm/day of the wettest such cell; a rate in kg m-2 s-1 stays below 0.03
_SHAPE = (2, 360, 720)  # rain and gauges, rows from 89.75 S, columns from 0.25 E
_BYTES = 4 * 2 * 360 * 720
_NAME = re.compile(r"^PRCP_CU_GAUGE_V1\.0GLB_0\.50deg\.lnx\.(\d{8})(\.RT)?(\.gz)?$", re.IGNORECASE)


class CPCRain(Archive):
    """Rain of the day, 0.5 degrees, land only.

    Source:
        Chen et al. (2008), doi:10.1029/2007JD009132; Xie et al. (2007), doi:10.1175/JHM583.1.
    """

    name = "cpc"
    quantities = (
        Quantity(
            "precip",
            "mm/day",
            (0.0, 2000.0),  # the wettest day on record, Reunion in 1966: 1825 mm
            "conservative",
            RAIN_DAY,
            "rain of the day",
            "lwe_precipitation_rate",
            ("none", "log1p"),
        ),
    )
    negative_is_missing = True
    url, folder, first_year = config.CPC_URL, config.CPC_DATADIR, 1979
    file = "precip.{year}.nc"
    delay = 31  # days: a year is complete some weeks after its end

    def recognises(self, dataset: xr.Dataset, variable: str) -> bool:
        """By the name of the variable with that of the data set in an attribute, or with unit and cells."""
        if variable != "precip":
            return False
        titles = (dataset.attrs.get("title", ""), dataset.attrs.get("dataset_title", ""))
        names = (dataset[variable].attrs.get("dataset", ""), *titles)
        if any("CPC" in str(name) for name in names):  # PSL's own wording, which other tools may drop
            return True
        unit = str(dataset[variable].attrs.get("units", ""))
        return units.same(unit, "mm/day") and all(
            any(_on_cells(dataset, dim) for dim in dataset[variable].dims if str(dim).startswith(name))
            for name in ("lat", "lon")
        )

    def layout(self, dataset: xr.Dataset) -> str | None:
        """The binary has the number of gauges beside the rain; see `Convention.layout`."""
        if "precip" not in dataset.variables or not self.recognises(dataset, "precip"):
            return None
        if {str(dim)[:3] for dim in dataset["precip"].dims} != {"tim", "lat", "lon"}:
            return None
        return "CPC binary" if "gauges" in dataset.variables else "PSL netCDF"

    def raw(self, path: Path) -> Callable[[Path], xr.Dataset] | None:
        """Files that are named as CPC names its binary, which has no header."""
        return open_binary if path.is_file() and _NAME.match(path.name) else None

    def select(self, array: xr.DataArray, subject: str) -> xr.DataArray:
        """All records; a rate labelled as a depth raises an error."""
        depth = units.same(array.attrs["units"], "mm")
        if not array.sizes["time"] or not depth or array[0].size < _GLOBAL_CELLS:
            return array
        field = array[0].values
        wettest = np.max(field, where=np.abs(field) < units.IMPOSSIBLE, initial=-1.0)
        if 0 < wettest < _LEAST_MAXIMUM:
            raise InvalidValueError(
                f"{subject} is called {array.attrs['units']!r}, but its wettest cell on the first day has "
                f"{wettest:g}, which is a rate in kg m-2 s-1; correct the attribute `units` of the file."
            )
        return array

    def decode(self, array: xr.DataArray, last: np.datetime64) -> xr.DataArray:
        """Drop trailing empty days of an unfinished year; other empty days are kept."""
        days = array.time.values.astype("datetime64[D]")
        keep = days.size
        while keep and days[keep - 1] == last and not _any_rain(array[keep - 1].values):
            keep, last = keep - 1, last - np.timedelta64(1, "D")
        return array.isel(time=slice(0, keep))


def _on_cells(dataset: xr.Dataset, dim: Hashable) -> bool:
    """Whether an axis has the centres of the archive's cells, all or those of a region."""
    if dim not in dataset.variables or dataset.sizes[dim] < 2 or dataset[dim].dtype.kind not in "iuf":
        return False
    cells = (dataset[dim].values.astype(float) - _CELL / 2) / _CELL
    return bool(np.abs(cells - np.rint(cells)).max() < 1e-3 and (np.abs(np.diff(cells)) < 1.001).all())


def _any_rain(field: np.ndarray) -> bool:
    """Whether a field has a value, even a zero."""
    return bool(((field >= 0) & (field < units.IMPOSSIBLE)).any())


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
        raise InvalidValueError(
            f"{path.name} doesn't carry the date as CPC writes it; name it "
            "PRCP_CU_GAUGE_V1.0GLB_0.50deg.lnx.YYYYMMDD.RT (or .gz)."
        )
    content = read_packed(path, _BYTES)
    if len(content) != _BYTES:
        raise InvalidValueError(
            f"{path} holds {len(content)} bytes, expected {_BYTES} (2 x 360 x 720 float32)."
        )
    rain, gauges = np.frombuffer(content, "<f4").reshape(_SHAPE)
    known = rain != -999.0
    # two thirds are sea: without a marker the bytes mean something else, such as the other order
    if known.all() or not known.any() or rain[known].min() < 0 or not rain[known].max() <= 2e4:
        raise InvalidValueError(f"{path} holds no rain in little-endian float32 of 0.1 mm; fetch it again.")
    fields = {"precip": np.where(known, rain / np.float32(10), np.nan)}
    fields["gauges"] = np.where(gauges == -999.0, np.nan, gauges)
    attrs = {"precip": {"units": "mm", "cell_methods": "time: sum"}, "gauges": {"units": "1"}}
    dims = ("time", "lat", "lon")
    return xr.Dataset(
        {name: (dims, value[None].astype("f4"), attrs[name]) for name, value in fields.items()},
        {
            "time": [np.datetime64(f"{match[1][:4]}-{match[1][4:6]}-{match[1][6:]}", "ns")],
            "lat": ("lat", np.arange(-89.75, 90, 0.5), {"units": "degrees_north"}),
            "lon": ("lon", np.arange(0.25, 360, 0.5), {"units": "degrees_east"}),
        },
        {"title": "CPC GLOBAL PRCP V1.0"},
    )
