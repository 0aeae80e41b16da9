"""NOAA's outgoing long-wave radiation, by day: 2.5 degrees (packed, unpacked, twice daily) and the 1 degree CDR."""

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from slams import config
from slams.data.archives.base import Archive, Quantity, within
from slams.data.archives.local import is_local
from slams.data.download.fetch import Item
from slams.data.files import olr
from slams.data.files.periods import DAILY_MEAN

_FIRST_YEAR = 1974
_FILE = "olr.day.mean.nc"


class OutgoingLongwave(Archive):
    """Mean of the passes of a day; 1978-03-17 to 1978-12-31 is missing.

    Source:
        Liebmann & Smith (1996), Bull. Amer. Meteor. Soc. 77, 1275-1277; Lee (2014), NOAA CDR, doi:10.7289/V5SJ1HH2.
    """

    name = "olr"
    quantities = (
        Quantity(
            "olr",
            "W m-2",
            (0.0, 500.0),
            "linear",
            DAILY_MEAN,
            "outgoing long-wave radiation at the top of the atmosphere",
            "toa_outgoing_longwave_flux",
        ),
    )
    period = DAILY_MEAN

    def items(self, years: Sequence[int], source: str | Path | None = None) -> list[Item]:
        """The one file of all years, which grows, or what a folder holds; see `Archive.items`."""
        base = config.OLR_URL if source is None else source
        local = is_local(base)
        if local is not None:
            return self._local(local, years)
        within(years, _FIRST_YEAR, self.name)
        url = str(base) if str(base).endswith(".nc") else f"{str(base).rstrip('/')}/{_FILE}"
        return [Item(url, url.rsplit("/", 1)[1], check=self.check, grows=True)]

    def layout(self, dataset: xr.Dataset) -> str | None:
        """By grid, packing and passes a day; see `Archive.layout`."""
        return olr.layout(dataset)
