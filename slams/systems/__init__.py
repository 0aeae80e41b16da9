"""Systems: what moves."""

from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics
from slams.systems.climate import Climate, Weather
from slams.systems.doublewell import DoubleWell
from slams.systems.flow import Flow, Gaussian
from slams.systems.gridfilter import GridBelief, grid_filter
from slams.systems.kolmogorov import KolmogorovFlow
from slams.systems.linear import Filtered, LinearGaussian, Smoothed
from slams.systems.lorenz import Lorenz63, Lorenz96
from slams.systems.oscillators import DampedSpring, LotkaVolterra
from slams.systems.quasigeostrophic import MoistQG
from slams.systems.surface_qg import SurfaceQG

__all__ = [
    "AugmentedParameters",
    "Climate",
    "DampedSpring",
    "DoubleWell",
    "Dynamics",
    "Filtered",
    "Flow",
    "Gaussian",
    "GridBelief",
    "KolmogorovFlow",
    "LinearGaussian",
    "Lorenz63",
    "Lorenz96",
    "LotkaVolterra",
    "MoistQG",
    "Smoothed",
    "SurfaceQG",
    "Weather",
    "grid_filter",
]
