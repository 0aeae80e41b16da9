"""Systems: what moves."""

from slams.systems.base import Dynamics
from slams.systems.climate import Climate, Weather
from slams.systems.quasigeostrophic import MoistQG

__all__ = ["Climate", "Dynamics", "MoistQG", "Weather"]
