"""Fields of random waves: their marginals, and their covariance in space and time."""

import math

import pytest
import torch

from slams.core.geometry.distance import EARTH_RADIUS
from slams.core.geometry.waves import space_time_normal

POINTS = torch.tensor([[10.0, 0.0], [10.0, 359.0], [40.0, 90.0]])


def test_covariance_is_exponential_in_space_and_time(rng):
    """400 sets of waves of 8 members: five standard errors, one false alarm in 1e5 for the six numbers together."""
    draws = torch.cat(
        [space_time_normal(POINTS, 2, 8, length=200.0, time=1.5, nugget=0.2, rng=rng) for _ in range(400)]
    )
    chord = 2 * EARTH_RADIUS * math.sin(math.radians(1) / 2) * math.cos(math.radians(10))
    expected = {
        (0, 0): 1.0,
        (0, 1): 0.8 * math.exp(-chord / 200),
        (0, 2): 0.0,
        (0, 3): 0.8 * math.exp(-1 / 1.5),
        (0, 4): 0.8 * math.exp(-math.hypot(chord / 200, 1 / 1.5)),
        (2, 5): 0.8 * math.exp(-1 / 1.5),
    }
    flat = draws.flatten(1)
    for (i, j), covariance in expected.items():
        # members of a call share their waves: its mean is one of 400 independent values
        each = (flat[:, i] * flat[:, j]).reshape(400, 8).mean(1)
        assert abs(float(each.mean()) - covariance) < 5 * float(each.std()) / 20


def test_values_are_standard_normal(rng):
    """Kolmogorov's distance of 4000 independent values at one point: one false alarm in 1e4."""
    draws = space_time_normal(POINTS, 1, 4000, length=500.0, time=1.0, nugget=0.1, rng=rng)[:, 0, 2]
    probability = torch.special.ndtr(draws.double()).sort().values
    distance = (probability - (torch.arange(4000) + 0.5) / 4000).abs().max()
    assert float(distance) < 2.23 / 4000**0.5


def test_settings_that_are_no_covariance_are_refused():
    with pytest.raises(ValueError, match="nugget"):
        space_time_normal(POINTS, 1, 1, length=100.0, time=1.0, nugget=1.5)
