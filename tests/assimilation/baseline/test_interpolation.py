"""Laws of optimal interpolation."""

import math

import numpy as np
import pytest
import torch

from slams.assimilation.baseline.interpolation import AnomalyInterp, Network
from slams.core.geometry.distance import great_circle

NAN = float("nan")


def haversine(a: tuple[float, float], b: tuple[float, float]) -> float:
    """Another formula for the same distance [km]."""
    (la, oa), (lb, ob) = ((math.radians(v) for v in p) for p in (a, b))
    h = math.sin((la - lb) / 2) ** 2 + math.cos(la) * math.cos(lb) * math.sin((oa - ob) / 2) ** 2
    return 2 * 6371.0 * math.asin(min(1.0, h**0.5))


def points(count: int, rng: torch.Generator) -> torch.Tensor:
    """Places of an area of 20 by 30 degrees."""
    return torch.rand(count, 2, generator=rng) * torch.tensor([20.0, 30.0]) + torch.tensor([30.0, -15.0])


def test_great_circle_is_the_haversine(rng):
    a = torch.rand(20, 2, dtype=torch.float64, generator=rng) * torch.tensor([180.0, 720.0]) - 90
    found = great_circle(a, a[:7])
    for i in range(20):
        for j in range(7):
            expected = haversine(tuple(a[i].tolist()), tuple(a[j].tolist()))
            assert abs(float(found[i, j]) - expected) < 1e-3  # of km, near antipodes the worst of both


def test_great_circle_knows_the_poles_the_date_line_and_the_antipodes():
    a = torch.tensor([[90.0, 10.0], [0.0, 179.5], [30.0, 20.0]])
    b = torch.tensor([[90.0, -120.0], [0.0, -179.5], [-30.0, -160.0]])
    expected = torch.tensor([0.0, 2 * math.pi * 6371 / 360, math.pi * 6371])
    torch.testing.assert_close(great_circle(a, b).diagonal(), expected, rtol=1e-5, atol=0.01)


def test_the_analysis_is_simple_kriging_day_by_day(rng):
    """Two networks of different error, written out in numpy with the points that were seen that day."""
    target = Network(points(5, rng), torch.rand(5, generator=rng) + 0.5)
    networks = {
        m: Network(points(n, rng), torch.rand(n, generator=rng) + 0.5) for m, n in (("a", 6), ("b", 4))
    }
    values = {m: torch.randn(4, len(n.points), generator=rng) for m, n in networks.items()}
    values["a"][1, ::2] = values["b"][2] = NAN
    values["a"][3] = values["b"][3] = NAN
    method = AnomalyInterp(700.0, {"a": 0.1, "b": 0.5}, spread=1.3)
    mean, std = method.analyse(target, networks, values)
    places = [tuple(p) for m in networks for p in networks[m].points.tolist()]
    scale = np.concatenate([networks[m].std.numpy() for m in networks])
    error = np.array([method.ratios[m] for m in networks for _ in networks[m].points])

    def correlation(a, b):
        return np.array([[math.exp(-0.5 * (haversine(p, q) / 700.0) ** 2) for q in b] for p in a])

    for day in range(4):
        y = np.concatenate([values[m][day].numpy() for m in networks])
        kept = np.flatnonzero(np.isfinite(y))
        near = [places[i] for i in kept]
        for i, point in enumerate(target.points.tolist()):
            expected, variance = 0.0, 1.0
            if len(kept):
                among = correlation(near, near) + np.diag(error[kept])
                across = correlation([tuple(point)], near)[0]
                weights = np.linalg.solve(among, across)
                expected = weights @ (y[kept] / scale[kept])
                variance = 1 - weights @ across
            unit = float(target.std[i])
            assert abs(float(mean[day, i]) - expected * unit) < 1e-4
            assert abs(float(std[day, i]) - 1.3 * unit * variance**0.5) < 1e-4


@pytest.mark.parametrize("length", [400, 1000])
def test_fit_recovers_the_length_and_the_error_of_fields_made_with_them(length, rng):
    """200 independent days of a field that is as the method thinks: its own settings have the smallest error,
    and the spread needs no correction (within 5 %, 3 standard errors of about 30 x 200 / 8 free values)."""
    everywhere = points(90, rng)
    covariance = torch.exp(-0.5 * (great_circle(everywhere, everywhere) / length) ** 2).double()
    value, vector = torch.linalg.eigh(covariance)
    root = vector * value.clamp(min=0).sqrt()
    fields = (torch.randn(200, 90, dtype=torch.float64, generator=rng) @ root.mT).float()
    std = torch.rand(90, generator=rng) + 0.5
    truth = fields[:, :30] * std[:30]
    seen = {
        "good": (fields[:, 30:60] + 0.1**0.5 * torch.randn(200, 30, generator=rng)) * std[30:60],
        "poor": (fields[:, 60:] + torch.randn(200, 30, generator=rng)) * std[60:],
    }
    networks = {"good": Network(everywhere[30:60], std[30:60]), "poor": Network(everywhere[60:], std[60:])}
    target, weights = Network(everywhere[:30], std[:30]), torch.ones(30)
    truth[::9, 4] = NAN
    found = AnomalyInterp.fit(target, truth, weights, networks, seen)
    assert found.length == length
    assert found.ratios["good"] <= 0.3 and found.ratios["poor"] >= 0.3
    assert abs(found.spread - 1) < 0.05
