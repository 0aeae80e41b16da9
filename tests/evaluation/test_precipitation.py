"""Scores of amounts against computations by hand and loops over cells."""

import itertools
import math

import pytest
import scipy.stats
import torch
from torch import Tensor

from slams.evaluation import Scores, amount_statistics, window_statistics
from slams.evaluation.metrics import fair_crps
from slams.evaluation.precipitation import (
    Cells,
    brier,
    crps_of_means,
    fractions_error,
    joint_statistics,
    reliability,
    variogram,
)


@pytest.fixture
def case(rng) -> tuple[Tensor, Tensor, Tensor]:
    """Six members and a truth of 4 x 5 cells, often zero, with weights that depend on latitude; one cell is unscored."""
    x = (2 * torch.randn(7, 1, 1, 4, 5, generator=rng, dtype=torch.float64)).clamp(min=0)
    weight = torch.tensor([0.5, 1.0, 1.5, 1.0], dtype=torch.float64)[:, None].expand(4, 5).clone()
    weight[1, 2] = 0
    return x[1:], x[0], weight


def around(weight: Tensor, i: int, j: int, half: int, periodic: bool):
    """Scored cells of a neighbourhood, by a loop."""
    height, width = weight.shape
    for di, dj in itertools.product(range(-half, half + 1), repeat=2):
        row, column = i + di, (j + dj) % width if periodic else j + dj
        if 0 <= row < height and 0 <= column < width and weight[row, column] > 0:
            yield row, column


@pytest.mark.parametrize("periodic", [False, True])
def test_means_of_neighbourhoods_hold_the_scored_cells_by_area(case, periodic):
    samples, truth, weight = case
    cells = Cells(weight.expand(1, 1, 4, 5), periodic)
    found = crps_of_means(samples, truth, cells, 3)[0, 0]
    for i, j in itertools.product(range(4), range(5)):
        at = list(around(weight, i, j, 1, periodic))
        total = sum(weight[c] for c in at)
        mean = sum(weight[c] * samples[:, 0, 0, c[0], c[1]] for c in at) / total
        own = sum(weight[c] * truth[0, 0, c[0], c[1]] for c in at) / total
        torch.testing.assert_close(found[i, j], fair_crps(mean, own))


def test_the_belt_is_one_mean_of_its_scored_cells(case):
    samples, truth, weight = case
    latitude = torch.tensor([40.0, 15.0, -15.0, -40.0])[:, None]
    found = amount_statistics(samples, truth, weight, latitude=latitude)
    belt = weight.clone()
    belt[[0, 3]] = 0
    mean, own = ((x * belt).sum((-1, -2)) / belt.sum() for x in (samples, truth))
    torch.testing.assert_close(found["crps_tropics"] / weight.sum(), fair_crps(mean, own)[0])
    assert "crps_tropics" not in amount_statistics(samples, truth, weight, latitude=latitude + 90)


def test_reliability_counts_probabilities_and_events_by_bin():
    """Of four members 0, 2 and 4 exceed 1 at three cells; the truth does at the last two."""
    samples = torch.tensor([[2.0, 2, 0], [2, 2, 0], [0, 2, 0], [0, 6, 0]])[:, None, None]
    truth = torch.tensor([[[9.0, 9.0, 0.0]]])
    found = reliability(samples, truth, torch.tensor([[[1.0, 2.0, 3.0]]]))[0]
    assert found[0, 5].tolist() == [1, 0.5, 1]
    assert found[0, 10].tolist() == [2, 2, 2]
    assert found[0, 0].tolist() == [3, 0, 0]
    assert found[1].sum(0).tolist() == [6, 0.5, 3]  # above 5


def test_rank_correlations_are_spearmans(rng):
    x = torch.randn(3, 2, 4, 5, generator=rng).clamp(min=0)
    y = torch.randn(3, 2, 4, 5, generator=rng) + x
    truth, other = x[0].clone(), y[1].clone()
    truth[0, 0, 0] = torch.nan
    found = joint_statistics(x, y, truth, other)
    scored = torch.isfinite(truth)
    each = [scipy.stats.spearmanr(a[scored], b[scored]).statistic for a, b in zip(x, y, strict=True)]
    assert float(found["rank_correlation"]) == pytest.approx(sum(each) / 3)
    own = scipy.stats.spearmanr(truth[scored], other[scored]).statistic
    assert float(found["rank_correlation_truth"]) == pytest.approx(own)
    dry = joint_statistics(x, y, torch.zeros_like(truth), other)
    assert float(dry["weight"]) == 0  # no order in a window without rain


def test_a_neighbourhood_as_wide_as_the_globe_holds_every_column(case):
    samples, _, weight = case
    cells = Cells(weight.expand(1, 1, 4, 5), True)
    mean = cells.mean(samples, 5)
    torch.testing.assert_close(mean[..., 0], mean[..., 3])


def test_fractions_of_two_cells_by_hand():
    truth = torch.tensor([[[[2.0, 0.0]]]])
    samples = torch.tensor([[[[[2.0, 2.0]]]], [[[[0.0, 0.0]]]]])
    cells = Cells(torch.ones(1, 1, 1, 2), False)
    assert fractions_error(samples, truth, cells).tolist() == [
        [[[0.0, 0.0]]]
    ]  # half of the members, half of the cells
    assert brier(samples, truth, 1.0).tolist() == [[[[0.25, 0.25]]]]
    scores = Scores()
    weights = torch.ones(1, 2)
    sums = window_statistics(samples, truth, weights) | amount_statistics(samples, truth, weights)
    scores.add("m", "rain", "0", sums)
    found = {row["metric"]: row["value"] for row in scores.rows()}
    assert found["fss1"] == 1.0 and found["brier1"] == 0.25 and found["brier5"] == 0.0
    # one member is right and one is off by log 3, at both cells; members are log 3 apart
    assert found["crps_log1p"] == pytest.approx(math.log(3) / 2 - math.log(3) / 2, abs=1e-7)


def test_fractions_skill_of_a_displaced_shower_grows_from_nothing_with_the_neighbourhood():
    truth, displaced = torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, 1, 9, 9)
    truth[..., 4, 4] = displaced[..., 4, 5] = 3.0
    scores = Scores()
    weights = torch.ones(9, 9)
    sums = window_statistics(displaced, truth, weights) | amount_statistics(displaced, truth, weights)
    scores.add("m", "rain", "0", sums)
    # squares of 9 cells of 1/9 that share 6: 1 - 6 / 18
    assert scores.value("m", "fss1", variable="rain") == pytest.approx(2 / 3)


@pytest.mark.parametrize("periodic", [False, True])
def test_variogram_score_is_that_of_a_loop_over_pairs(case, periodic):
    samples, truth, weight = case
    found = variogram(samples, truth, Cells(weight.expand(1, 1, 4, 5), periodic))[0, 0]
    x, y = samples[:, 0, 0], truth[0, 0]
    for i, j in itertools.product(range(4), range(5)):
        if weight[i, j] == 0:
            continue
        each = []
        for di, dj in ((0, 1), (1, 0), (1, 1), (1, -1), (0, 3), (3, 0)):
            row, column = i + di, (j + dj) % 5 if periodic else j + dj
            if row < 4 and 0 <= column < 5 and weight[row, column] > 0:
                own = (y[i, j] - y[row, column]).abs().sqrt()
                members = (x[:, i, j] - x[:, row, column]).abs().sqrt().mean()
                each.append((own - members).square())
        expected = torch.stack(each).mean() if each else torch.zeros((), dtype=torch.float64)
        torch.testing.assert_close(found[i, j], expected)


def test_sums_count_the_cells_that_windows_count(case):
    samples, truth, weight = case
    truth = truth.clone()
    truth[..., 0, 0] = torch.nan
    part = torch.ones(4, 5, dtype=torch.bool)
    part[3] = False
    sums = window_statistics(samples, truth, weight, part)
    found = amount_statistics(samples, truth, weight, part)
    by_hand = sum(
        float(weight[i, j] * brier(samples[:, 0, 0, i, j], truth[0, 0, i, j], 1.0))
        for i, j in itertools.product(range(3), range(5))
        if (i, j) != (0, 0)
    )
    assert float(found["brier1"]) == pytest.approx(by_hand)
    assert float(sums["weight"]) == pytest.approx(float(weight[:3].sum() - weight[0, 0]))


def test_stations_have_no_neighbourhoods(case):
    samples, truth, weight = (x.flatten(-2) for x in case)
    found = amount_statistics(samples, truth, weight)
    assert set(found) == {"crps_log1p", "brier1", "brier5", "reliability"}
