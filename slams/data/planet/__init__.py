"""The synthetic archive of the planet, in files with the headers of the real archives."""

from slams.data.planet.archive import Instruments, at_levels, outgoing_longwave, simulate_archive

__all__ = ["Instruments", "at_levels", "outgoing_longwave", "simulate_archive"]
