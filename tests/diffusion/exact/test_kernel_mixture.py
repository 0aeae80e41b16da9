"""Mixtures with one covariance: the score, the flow and the reverse diffusion against closed forms and quadrature."""

import pytest
import torch
from torch import Tensor

from slams.diffusion.exact.kernel_mixture import KernelMixture, bandwidth, noise_grid, transport

DOUBLE = torch.float64


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def mixture(count: int = 5, rank: int = 3, *, shared: bool = True) -> KernelMixture:
    variances = 0.1 + normal(2, 1 if shared else count, rank, seed=1).square()
    return KernelMixture(normal(2, count, rank), variances, normal(2, count, seed=2))


@pytest.mark.parametrize("shared", [True, False])
def test_the_denoiser_is_tweedie_of_the_density(shared):
    """E[x | x_tau] = x_tau + tau^2 grad log p_tau, by automatic differentiation of the mixture's density."""
    p, tau = mixture(shared=shared), 0.7
    x = normal(2, 4, 3, seed=3).requires_grad_()
    width = (p.variances + tau**2)[:, None]
    apart = (x[:, :, None] - p.means[:, None]).square()
    terms = p.logits[:, None] - 0.5 * (apart / width + width.log()).sum(-1)
    (score,) = torch.autograd.grad(terms.logsumexp(-1).sum(), x)
    torch.testing.assert_close(p.denoise(x.detach(), tau), (x + tau**2 * score).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_moments_are_those_of_draws(shared):
    """Six standard errors of 400 000 draws: one false alarm in 1e8."""
    p = mixture(shared=shared)
    rng = torch.Generator().manual_seed(0)
    index = torch.multinomial(p.logits.softmax(-1), 400_000, replacement=True, generator=rng)
    rows = index[..., None].expand(-1, -1, 3)
    x = p.means.gather(1, rows) + p.variances.expand_as(p.means).gather(1, rows).sqrt() * normal(
        2, 400_000, 3
    )
    mean, variance = p.moments()
    error = (variance / 400_000).sqrt()
    assert ((x.mean(1) - mean).abs() < 6 * error).all()
    spread = (x - mean[:, None]).square()
    assert ((spread.mean(1) - variance).abs() < 6 * spread.std(1) / 400_000**0.5).all()


@pytest.mark.parametrize("steps", [2, 5])
def test_one_gaussian_is_carried_to_another_exactly(steps):
    """m + S^1/2 z for any number of steps, because each is exact for a Gaussian."""
    z = normal(1, 6, 3)
    mean, variances = normal(1, 1, 3, seed=4), torch.tensor([[[0.5, 0.1, 2.0]]], dtype=DOUBLE)
    zero = torch.zeros(1, 1, dtype=DOUBLE)
    prior = KernelMixture(torch.zeros(1, 1, 3, dtype=DOUBLE), torch.ones(1, 1, 3, dtype=DOUBLE), zero)
    after = transport(z, prior, KernelMixture(mean, variances, zero), steps=steps)
    torch.testing.assert_close(after, mean + variances.sqrt() * z, rtol=0, atol=1e-10)


def test_the_flow_is_of_second_order():
    """The error of a flow through a mixture falls by four when steps double: slope 2 within 0.3."""
    p = KernelMixture(
        normal(1, 4, 2), torch.full((1, 1, 2), 0.05, dtype=DOUBLE), torch.zeros(1, 4, dtype=DOUBLE)
    )
    x = 5 * normal(1, 50, 2, seed=5)

    def down(steps: int) -> Tensor:
        return p.flow(x, noise_grid(steps, 0.02, 5.0)[::-1])

    exact = down(2048)
    errors = [float((down(steps) - exact).square().mean().sqrt()) for steps in (64, 128, 256)]
    assert (
        1.7 < torch.tensor([a / b for a, b in zip(errors[:-1], errors[1:], strict=True)]).log2().mean() < 2.3
    )


@pytest.mark.parametrize("variances", [1, 3])
@pytest.mark.parametrize("stochastic, steps", [(False, 24), (True, 200)])
def test_draws_of_two_peaks_have_the_distribution_of_quadrature(stochastic, steps, variances):
    """Wasserstein-1 from draws to the exact quantiles, below 0.05 of the standard deviation, in float64.

    For 4000 independent draws it is 0.6 / 4000^1/2 = 0.01 on average, and exceeds 0.03 once in 1e5 runs.
    """
    posterior = KernelMixture(
        torch.tensor([[[-1.0], [0.8], [1.3]]], dtype=DOUBLE),
        torch.tensor([[[0.04], [0.04], [0.01]]], dtype=DOUBLE)[:, :variances],
        torch.tensor([[0.6, 0.3, 0.1]], dtype=DOUBLE).log(),
    )
    prior = KernelMixture(
        torch.zeros(1, 1, 1, dtype=DOUBLE), torch.ones(1, 1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    )
    place = (torch.arange(4000, dtype=DOUBLE) + 0.5) / 4000
    z = torch.special.ndtri(place)[None, :, None]
    rng = torch.Generator().manual_seed(0)
    draws = transport(z, prior, posterior, steps=steps, stochastic=stochastic, rng=rng)[0, :, 0].sort().values
    grid = torch.linspace(-3, 3, 20001, dtype=DOUBLE)
    apart = (grid[:, None] - posterior.means[0, :, 0]) / posterior.variances[0, :, 0].sqrt()
    cdf = (posterior.logits[0].exp() * torch.special.ndtr(apart)).sum(-1)
    exact = grid[torch.searchsorted(cdf, place).clamp(max=20000)]
    assert float((draws - exact).abs().mean()) < 0.05 * float(exact.std())


def test_the_bandwidth_falls_with_members_and_rises_with_directions():
    """Silverman's rule in one dimension: 1.06 N^-1/5."""
    assert bandwidth(1000, 1) == pytest.approx((4 / 3) ** 0.2 * 1000**-0.2)
    assert bandwidth(1000, 1) < bandwidth(100, 1) < bandwidth(100, 20) < bandwidth(2, 500) <= 0.999
