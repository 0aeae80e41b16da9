"""The sources of real data by name: what to get, how to tell it, how to read it."""

from slams.data.archives.base import Archive, Quantity
from slams.data.archives.cpc import CPCRain
from slams.data.archives.era5 import ERA5
from slams.data.archives.olr import OutgoingLongwave
from slams.data.archives.stations import Stations

__all__ = ["ARCHIVES", "REGISTRY", "Archive", "Quantity", "Stations"]

ARCHIVES: dict[str, Archive] = {archive.name: archive for archive in (ERA5(), CPCRain(), OutgoingLongwave())}
REGISTRY: dict[str, Archive | Stations] = {**ARCHIVES, "stations": Stations()}
