"""Posterior and truth to numbers and pictures: how well."""

from slams.evaluation.evaluate import COVERAGE90, CRPS, RMSE, SPREAD, Metric, Score, evaluate
from slams.evaluation.metrics import (
    effective_count,
    gaussian_window_statistics,
    power_spectrum,
    radial_spectrum,
    rank_flatness,
    window_statistics,
)
from slams.evaluation.scores import Gain, Scores

__all__ = [
    "COVERAGE90",
    "CRPS",
    "RMSE",
    "SPREAD",
    "Gain",
    "Metric",
    "Score",
    "Scores",
    "evaluate",
    "effective_count",
    "gaussian_window_statistics",
    "power_spectrum",
    "radial_spectrum",
    "rank_flatness",
    "window_statistics",
]
