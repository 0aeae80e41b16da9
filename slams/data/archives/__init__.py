"""Registry of the sources of real data by name.

>>> SOURCES["cpc"].text
'CPC daily rain from gauges'
"""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from slams.core.errors import InvalidValueError

if TYPE_CHECKING:
    from slams.data.archives.base import Archive
    from slams.data.archives.stations import Stations
    from slams.data.files.convention import Quantity

    ARCHIVES: dict[str, Archive]
    REGISTRY: dict[str, Archive | Stations]

__all__ = ["ARCHIVES", "REGISTRY", "SOURCES", "Archive", "Quantity", "SourceEntry", "Stations", "register"]


@dataclass(frozen=True)
class SourceEntry:
    """Entry of the registry, available without importing the source's dependencies.

    Args:
        place: Module in this folder and class.
        text: Description that `slams data` prints.
        options: Further options of its command, with their help.
        gridded: Whether it is an archive of fields, whose conventions recipes may name.
    """

    place: str
    text: str
    options: dict[str, str] = field(default_factory=dict)
    gridded: bool = True


_STATIONS = {"stations": "names such as 024130-99999"}
_ERA5 = "ERA5 on pressure levels (ChaosBench; --source cds, weatherbench, an address or a folder)"
SOURCES = {
    "era5": SourceEntry("era5.ERA5", _ERA5, {"variables": "of t, z, q, u, v, w (default: all)"}),
    "cpc": SourceEntry("cpc.CPCRain", "CPC daily rain from gauges"),
    "olr": SourceEntry("olr.OutgoingLongwave", "NOAA outgoing long-wave radiation"),
    "stations": SourceEntry(
        "stations.Stations", "weather stations (ISD, METAR) in one table", _STATIONS, False
    ),
}
_ELSEWHERE = {"Archive": "archives.base", "Stations": "archives.stations", "Quantity": "files.convention"}


def register(archive: "Archive", text: str = "") -> None:
    """Register a user-defined archive in this process, for commands, recipes and `verify`.

    Args:
        archive: Instance of a subclass of `Archive`.
        text: Description that `slams data` prints.

    Raises:
        ValueError: If its name is taken by another source.
    """
    tables = _load()
    if archive.name in SOURCES:
        raise InvalidValueError(
            f"there is a source {archive.name!r} already; choose another name than {list(SOURCES)}."
        )
    SOURCES[archive.name] = SourceEntry("", text or str(type(archive).__doc__ or archive.name))
    for table in tables.values():
        table[archive.name] = archive


@cache
def _load() -> dict[str, dict[str, Any]]:
    """REGISTRY and ARCHIVES, with an instance of every source."""
    found = {}
    for name, source in SOURCES.items():
        module, _, kind = source.place.partition(".")
        found[name] = getattr(import_module(f"{__name__}.{module}"), kind)()
    gridded = {name: archive for name, archive in found.items() if SOURCES[name].gridded}
    return {"REGISTRY": found, "ARCHIVES": gridded}


def __getattr__(name: str) -> Any:
    """Lazy construction of REGISTRY and ARCHIVES; the command line reads SOURCES alone."""
    if name in _ELSEWHERE:
        return getattr(import_module(f"slams.data.{_ELSEWHERE[name]}"), name)
    if name not in ("ARCHIVES", "REGISTRY"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _load()[name]
