"""Scores and figures of posteriors against the truth."""

from slams.evaluation.evaluate import MetricResult, ScoreTable, evaluate
from slams.evaluation.metrics import (
    BIAS,
    COVERAGE90,
    CRPS,
    METRICS,
    RMSE,
    SPREAD,
    SPREAD_SKILL,
    Metric,
    register,
)
from slams.evaluation.precipitation import amount_statistics
from slams.evaluation.scores import Gain, Scores
from slams.evaluation.spectra import power_spectrum, radial_spectrum
from slams.evaluation.windows import (
    effective_count,
    gaussian_window_statistics,
    rank_flatness,
    window_statistics,
)

__all__ = [
    "BIAS", "COVERAGE90", "CRPS", "METRICS", "RMSE", "SPREAD", "SPREAD_SKILL", "Gain", "Metric", "MetricResult",
    "ScoreTable", "Scores", "amount_statistics", "effective_count", "evaluate", "gaussian_window_statistics",
    "power_spectrum", "radial_spectrum", "rank_flatness", "register", "window_statistics",
]  # fmt: skip
