"""Laws of Langevin Monte Carlo."""

import math

import pytest
import torch

from slams.diffusion.langevin import langevin

VARIANCES = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)


def score(x):
    return -x / VARIANCES


def log_prob(x):
    return -0.5 * (x**2 / VARIANCES).sum(-1)


@pytest.mark.parametrize("step", [0.05, 0.3])
def test_unadjusted_chains_of_a_gaussian_have_their_own_variance(step, rng):
    """v / (1 - h / (2 v)) in each direction: 40000 chains, started there, within 6 standard errors (false alarm 2e-9
    each); at h = 0.3 and v = 0.5 that is 43 % above v."""
    n = 40000
    stationary = VARIANCES / (1 - step / (2 * VARIANCES))
    start = torch.randn(n, 3, dtype=torch.float64, generator=rng) * stationary.sqrt()
    chain = langevin(score, start, step=step, count=30, rng=rng)
    assert bool(((chain.x.var(0) / stationary - 1).abs() < 6 * (2 / n) ** 0.5).all())
    assert bool((chain.accepted == 1).all())


def test_unadjusted_chains_forget_as_the_recursion_says(rng):
    """From a point x the mean after k steps is x (1 - h / v)^k: 20000 chains, 6 standard errors."""
    n, step, count = 20000, 0.1, 7
    chain = langevin(score, torch.full((n, 3), 3.0, dtype=torch.float64), step=step, count=count, rng=rng)
    factor = 1 - step / VARIANCES
    variance = 2 * step * (1 - factor ** (2 * count)) / (1 - factor**2)
    assert bool(((chain.x.mean(0) - 3 * factor**count).abs() < 6 * (variance / n).sqrt()).all())
    assert bool(((chain.x.var(0) / variance - 1).abs() < 6 * (2 / n) ** 0.5).all())


def test_adjusted_chains_keep_the_distribution_at_any_step(rng):
    """Started in N(0, v) they stay there, where unadjusted ones would be 43 % too wide; some are refused. 40000
    chains, 6 standard errors."""
    n = 40000
    start = torch.randn(n, 3, dtype=torch.float64, generator=rng) * VARIANCES.sqrt()
    chain = langevin(score, start, step=0.3, count=20, log_prob=log_prob, rng=rng)
    assert bool(((chain.x.var(0) / VARIANCES - 1).abs() < 6 * (2 / n) ** 0.5).all())
    assert bool((chain.x.mean(0).abs() < 6 * (VARIANCES / n).sqrt()).all())
    assert 0.5 < float(chain.accepted.mean()) < 0.99


def test_adjusted_chains_find_the_weights_of_two_modes(rng):
    """Two overlapping modes, 0.3 and 0.7, every chain from the left one: 20000 chains, share on the right within 6
    standard errors and 0.5 % for what they remember of their start."""

    def two(x):
        left, right = (-((x + 1) ** 2) / 0.72 + math.log(0.3)), (-((x - 1) ** 2) / 0.72 + math.log(0.7))
        return torch.logaddexp(left, right).sum(-1)

    def gradient(x):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(two(leaf).sum(), leaf)[0]

    start = torch.full((20000, 1), -1.0, dtype=torch.float64)
    chain = langevin(gradient, start, step=0.2, count=400, log_prob=two, rng=rng)
    spread = 0.5 * math.erfc(-1 / 0.6 / math.sqrt(2))
    right = 0.7 * spread + 0.3 * (1 - spread)
    found = float((chain.x > 0).double().mean())
    assert abs(found - right) < 6 * (right * (1 - right) / 20000) ** 0.5 + 0.005


def test_each_chain_of_a_batch_has_its_own_step(rng):
    """(*B, N, *S): the first replicate stays put with a step of 1e-12, the second has the variance of its step."""
    n = 20000
    stationary = VARIANCES / (1 - 0.3 / (2 * VARIANCES))
    start = torch.randn(2, n, 3, dtype=torch.float64, generator=rng) * stationary.sqrt()
    step = torch.tensor([1e-12, 0.3], dtype=torch.float64).reshape(2, 1, 1)
    chain = langevin(score, start, step=step, count=20, batch=2, log_prob=None, rng=rng)
    torch.testing.assert_close(chain.x[0], start[0], rtol=0, atol=1e-4)
    assert bool(((chain.x[1].var(0) / stationary - 1).abs() < 6 * (2 / n) ** 0.5).all())
    assert chain.accepted.shape == (2, n)


def test_a_seed_repeats_a_chain():
    start = torch.zeros(4, 3, dtype=torch.float64)
    first, second = (
        langevin(score, start, step=0.2, count=5, log_prob=log_prob, rng=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(first.x, second.x) and torch.equal(first.accepted, second.accepted)


def test_a_chain_that_diverges_is_named_by_its_step():
    with pytest.raises(
        FloatingPointError, match=r"not finite at step \d+ of 50 \(largest score .*use smaller"
    ):
        langevin(lambda x: -(x**3), torch.full((1, 1), 10.0), step=1.0, count=50)
    with pytest.raises(ValueError, match="must be positive, got 0"):
        langevin(score, torch.zeros(1, 3), step=0.0, count=1)
