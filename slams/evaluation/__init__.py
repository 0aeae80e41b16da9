"""Posterior and truth to numbers and pictures: how well."""

from slams.evaluation.metrics import (
    gaussian_window_statistics,
    power_spectrum,
    radial_spectrum,
    rank_flatness,
    window_statistics,
)
from slams.evaluation.scores import Gain, Scores

__all__ = [
    "Gain",
    "Scores",
    "gaussian_window_statistics",
    "power_spectrum",
    "radial_spectrum",
    "rank_flatness",
    "window_statistics",
]
