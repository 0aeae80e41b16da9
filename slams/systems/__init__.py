"""Systems: what moves."""

from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics
from slams.systems.doublewell import DoubleWell
from slams.systems.flow import Flow, Gaussian
from slams.systems.flows.kolmogorov import KolmogorovFlow
from slams.systems.flows.quasigeostrophic import MoistQG
from slams.systems.flows.surface_qg import SurfaceQG
from slams.systems.function import FunctionModel
from slams.systems.gridfilter import GridBelief, grid_filter
from slams.systems.linear import Filtered, LinearGaussian, Smoothed
from slams.systems.lorenz import Lorenz63, Lorenz96
from slams.systems.oscillators import DampedSpring, LotkaVolterra
from slams.systems.planet.climate import Climate, Weather

__all__ = [
    "AugmentedParameters",
    "Climate",
    "DampedSpring",
    "DoubleWell",
    "Dynamics",
    "Filtered",
    "Flow",
    "FunctionModel",
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
