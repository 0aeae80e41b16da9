"""CPC global daily rain from gauges: NOAA PSL's yearly netCDF, or CPC's own binary of one day."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from slams import config
from slams.data.archives.base import Archive, Quantity, within
from slams.data.archives.local import is_local
from slams.data.download.fetch import Item
from slams.data.files import cpc, units
from slams.data.files.periods import RAIN_DAY

_FIRST_YEAR = 1979
_GLOBAL_CELLS = 10_000  # somewhere on a field of so many it rains
_LEAST_MAXIMUM = 0.05  # mm/day of the wettest such cell; a rate in kg m-2 s-1 stays below 0.03


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
    period = RAIN_DAY
    negative_is_missing = True

    def items(self, years: Sequence[int], source: str | Path | None = None) -> list[Item]:
        """Yearly files of PSL, or whatever of CPC rain a folder holds; see `Archive.items`."""
        base = config.CPC_URL if source is None else source
        local = is_local(base)
        if local is not None:
            return self._local(local, years)
        wanted = within(years, _FIRST_YEAR, self.name)
        running = int(str(np.datetime64("today") - 31)[:4])  # a year is complete some weeks after its end
        return [
            Item(
                f"{str(base).rstrip('/')}/precip.{year}.nc",
                f"precip.{year}.nc",
                check=self.check,
                grows=year >= running,
            )
            for year in wanted
        ]

    def layout(self, dataset: xr.Dataset) -> str | None:
        """`binary` has the number of gauges beside the rain; see `Archive.layout`."""
        if "precip" not in dataset.variables or not cpc.recognises(dataset, "precip"):
            return None
        if set(map(str, dataset["precip"].dims)) != {"time", "lat", "lon"}:
            return None
        return "CPC binary" if "gauges" in dataset.variables else "PSL netCDF"

    def _decode(self, array: xr.DataArray, quantity: Quantity, subject: str) -> xr.DataArray:
        """Without the empty days that end the file of an unfinished year; a rate called a depth is refused."""
        if not array.sizes["time"]:
            return array
        array = cpc.trim(array, array.time.values.astype("datetime64[D]")[-1])
        unit = units.canonical(array.attrs["units"])
        if not array.sizes["time"] or unit == "kg m-2 s-1" or array[0].size < _GLOBAL_CELLS:
            return array
        field = array[0].values
        wettest = np.max(field, where=np.abs(field) < units.IMPOSSIBLE, initial=-1.0)
        if 0 < wettest < _LEAST_MAXIMUM:
            raise ValueError(
                f"{subject} is called {array.attrs['units']!r}, but its wettest cell on the first day has "
                f"{wettest:g}, which is a rate in kg m-2 s-1; correct the attribute `units` of the file."
            )
        return array
