"""Dynamical systems."""

import warnings
from typing import Any

from slams.systems.augmented import AugmentedParameters
from slams.systems.base import Dynamics
from slams.systems.doublewell import DoubleWell
from slams.systems.flow import Flow, Gaussian
from slams.systems.flows.kolmogorov import KolmogorovFlow
from slams.systems.flows.quasigeostrophic import MoistQG
from slams.systems.flows.surface_qg import SurfaceQG
from slams.systems.function import FunctionModel
from slams.systems.gridfilter import GridPosterior, grid_filter
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
    "GridPosterior",
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


def __getattr__(name: str) -> Any:
    if name == "GridBelief":
        warnings.warn(
            "GridBelief is now GridPosterior; GridBelief works until version 0.4.",
            FutureWarning,
            stacklevel=2,
        )
        return GridPosterior
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
