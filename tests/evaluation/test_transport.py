"""Laws of the earth mover's distance, against all pairings and against the line."""

from itertools import permutations

import pytest
import torch

from slams.evaluation.transport import earth_mover


def sample(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_the_best_of_all_pairings():
    x, y = sample(0, 6, 2, 3), sample(1, 6, 2, 3)
    work = [(x - y[list(p)]).flatten(1).norm(dim=1).mean() for p in permutations(range(6))]
    assert earth_mover(x, y) == pytest.approx(float(min(work)), abs=1e-12)


def test_on_the_line_it_pairs_in_order():
    x, y = sample(0, 200, 1), sample(1, 200, 1)
    expected = (x.sort(0).values - y.sort(0).values).abs().mean()
    assert earth_mover(x, y) == pytest.approx(float(expected), abs=1e-12)


def test_order_does_not_matter_and_a_shift_costs_its_length():
    x = sample(0, 50, 4)
    assert earth_mover(x, x[torch.randperm(50)]) == 0
    assert earth_mover(x, x + torch.tensor([3.0, 0, 4.0, 0])) == pytest.approx(5.0)


def test_samples_of_two_sizes_and_broken_ones_are_told():
    with pytest.raises(ValueError, match="shape"):
        earth_mover(sample(0, 4, 2), sample(0, 5, 2))
    with pytest.raises(ValueError, match="finite"):
        earth_mover(sample(0, 4, 2), torch.full((4, 2), torch.nan))
