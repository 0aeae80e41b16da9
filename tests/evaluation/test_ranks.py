"""What a rank histogram says, and how much independent evidence it holds."""

import pytest
import torch

from slams.evaluation import effective_count, rank_flatness


@pytest.mark.parametrize("cells", [1, 40])
def test_a_rank_histogram_is_worth_as_many_truths_as_are_independent(cells):
    """2000 windows of 6 independent truths, each in `cells` cells that all share it: 12000 whatever the cells.

    The estimate is a ratio of sums over 2000 windows and 10 ranks; its relative sd is below 1/sqrt(2000 * 9 / 2), and
    6 of that are 0.065.
    """
    truth = torch.randint(10, (2000, 6), generator=torch.Generator().manual_seed(2))
    ranks = cells * torch.nn.functional.one_hot(truth, 10).sum(1)
    assert effective_count(ranks) == pytest.approx(12000, rel=0.065)


def test_the_flatness_of_calibrated_forecasts_has_uniform_p_values():
    """600 tests of 30 windows of 8 independent truths in 20 cells each: 5 % of them below 0.05, 6 sd of it 0.053.

    Counting every cell, nearly all would be; counting windows, hardly any.
    """
    truth = torch.randint(5, (600, 30, 8), generator=torch.Generator().manual_seed(3))
    ranks = 20.0 * torch.nn.functional.one_hot(truth, 5).sum(2)
    p = torch.tensor([rank_flatness(r.sum(0), effective_count(r))[1] for r in ranks])
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.053)
    assert float((p < 0.5).double().mean()) == pytest.approx(0.5, abs=0.123)
    assert sum(rank_flatness(r.sum(0))[1] < 0.05 for r in ranks) > 500


@pytest.mark.parametrize("ranks", [torch.ones(3), torch.zeros(4, 3)])
def test_ranks_without_windows_or_weight_are_refused(ranks):
    with pytest.raises(ValueError, match=r"ranks must be \(windows, R\) with some weight"):
        effective_count(ranks)


def test_one_window_is_worth_one_truth():
    assert effective_count(torch.tensor([[5.0, 3.0, 2.0]])) == 1.0


def test_a_single_window_is_one_truth_whatever_its_weights():
    """Its counts are its share of itself but for rounding, which is no variance; nor is one without weight a second."""
    for seed in range(50):
        ranks = torch.rand(1, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        assert effective_count(ranks) == 1.0
        assert effective_count(torch.cat([ranks, 0 * ranks])) == 1.0
