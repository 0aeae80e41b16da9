"""Laws of explicit randomness."""

import torch

from slams.core.random import fork, normal


def test_normal_repeats_with_its_generator_and_leaves_the_global_one_alone():
    before = torch.get_rng_state()
    first = normal((5,), rng=fork(3, "noise"))
    assert torch.equal(first, normal((5,), rng=fork(3, "noise")))
    assert torch.equal(before, torch.get_rng_state())


def test_normal_takes_the_type_of_like_unless_told():
    like = torch.zeros(1, dtype=torch.float64)
    assert normal((2,), like=like).dtype == torch.float64
    assert normal((2,), like=like, dtype=torch.float32).dtype == torch.float32
    assert normal((2,), dtype=torch.float64).dtype == torch.float64


def test_forks_of_other_names_and_seeds_are_independent():
    """Correlations of 20000 draws within 6 standard errors: each pair one false alarm in 5e8."""
    n = 20000
    labels = [(0, "prior", 1), (0, "prior", 2), (1, "prior", 1)]
    draws = torch.stack([normal((n,), dtype=torch.float64, rng=fork(*label)) for label in labels])
    correlation = torch.corrcoef(draws)
    assert float((correlation - torch.eye(3, dtype=torch.float64)).abs().max()) < 6 / n**0.5
