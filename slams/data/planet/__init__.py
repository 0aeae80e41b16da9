"""The synthetic archive of the planet, in files with the headers of the real archives."""

from slams.data.planet.archive import preceding_days, simulate_archive
from slams.data.planet.instruments import Instruments, at_levels, observable_day, outgoing_longwave

__all__ = [
    "Instruments",
    "at_levels",
    "observable_day",
    "outgoing_longwave",
    "preceding_days",
    "simulate_archive",
]
