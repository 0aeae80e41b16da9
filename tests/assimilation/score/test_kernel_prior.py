"""Priors of kernels where operators bend: densities and leave-one-out likelihoods by loops over members."""

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal

from slams.assimilation.score.ensemble_mixture import candidates
from slams.assimilation.score.true_likelihood import Marginals, joint_prior, product_prior, sharpened

DOUBLE = torch.float64


def peaks(size: int, members: int = 12, seed: int = 0) -> Tensor:
    """Two groups of members in every variable, correlated in the second."""
    x = torch.randn(members, size, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)
    x[: members // 3] += 6.0
    x[:, 1:] += 0.5 * x[:, :1]
    return x


def smoothed(u: Tensor, b: float, without: int | None = None) -> Tensor:
    """Half way from each member (N) to the mean of those near it by kernels of width b."""
    keep = [k for k in range(len(u)) if k != without]
    w = torch.exp(-0.5 * ((u[:, None] - u[keep]) / b) ** 2)
    return 0.5 * (u + (w * u[keep]).sum(-1) / w.sum(-1))


def likelihood(u: Tensor, centres: list[Tensor], b: float) -> float:
    """Sum over members i of log p(u_i) under kernels at centres[i] of all but i."""
    total = 0.0
    for i in range(len(u)):
        others = torch.tensor([j for j in range(len(u)) if j != i])
        total += float(Normal(centres[i][others], b).log_prob(u[i]).logsumexp(0)) - math.log(len(others))
    return total


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("b", [0.2, 0.7])
def test_the_fit_of_joint_kernels_is_the_likelihood_of_each_member_given_the_others(size, b):
    """In the state's units, but for (2 pi)^(d/2) a member."""
    E = peaks(size)
    mean, P = E.mean(0), torch.atleast_2d(torch.cov(E.mT))
    centres, total = mean + (1 - b**2) ** 0.5 * (E - mean), 0.0
    for i in range(len(E)):
        others = torch.tensor([j for j in range(len(E)) if j != i])
        terms = MultivariateNormal(centres[others], b**2 * P).log_prob(E[i])
        total += float(terms.logsumexp(0)) - math.log(len(others))
    prior = joint_prior(E[None], b)
    found = float(prior.fit) - len(E) * size / 2 * math.log(2 * math.pi)
    assert found == pytest.approx(total, rel=1e-9)
    W = prior.frame.W[0]
    torch.testing.assert_close(mean + prior.centres[0] @ W, centres, rtol=0, atol=1e-9)
    at = peaks(size, 5, seed=1).requires_grad_()
    density = MultivariateNormal(centres, b**2 * P).log_prob(at[:, None]).logsumexp(-1)
    (slope,) = torch.autograd.grad(density.sum(), at)
    z = (at.detach() - mean) @ torch.linalg.pinv(W)
    torch.testing.assert_close(prior.score.score(z[None])[0], slope @ W.mT, rtol=0, atol=1e-8)
    assert prior.score.log_prob is not None
    level = prior.score.log_prob(z[None])[0] - density.detach()
    torch.testing.assert_close(level, level[:1].expand(5), rtol=0, atol=1e-8)


@pytest.mark.parametrize("size, seed", [(1, 0), (2, 1), (4, 2)])
def test_the_fit_of_independent_coordinates_is_the_best_of_each(size, seed):
    """Width and sharpening of each coordinate by trying all; with the volume of x = mean + u W, in the state's units."""
    E = peaks(size, seed=seed)
    prior = product_prior(E[None])
    u, W = prior.z[0], prior.frame.W[0]
    torch.testing.assert_close(E.mean(0) + u @ W, E, rtol=0, atol=1e-9)
    torch.testing.assert_close(u.var(0), torch.ones(size, dtype=DOUBLE), rtol=0, atol=1e-9)
    total = 0.0
    for i in range(size):
        tried = {}
        for b in candidates(u[None]).tolist():
            shrunk = (1 - b * b) ** 0.5 * u[:, i]
            tried[b, False] = likelihood(u[:, i], [shrunk] * len(u), b)
            tried[b, True] = likelihood(u[:, i], [smoothed(u[:, i], b, k) for k in range(len(u))], b)
        b, sharp = max(tried, key=lambda key: tried[key])
        total += tried[b, sharp]
        assert float(prior.widths[0, i]) == pytest.approx(b)
        expected = smoothed(u[:, i], b) if sharp else (1 - b * b) ** 0.5 * u[:, i]
        torch.testing.assert_close(prior.centres[0, :, i], expected, rtol=0, atol=1e-9)
    total -= len(E) * float(torch.linalg.slogdet(W)[1])
    found = float(prior.fit) - len(E) * size / 2 * math.log(2 * math.pi)
    assert found == pytest.approx(total, rel=1e-9)


def test_sharpened_centres_are_half_way_to_the_mean_nearby():
    u, b = peaks(2).mT, torch.tensor([0.3, 2.0], dtype=DOUBLE)
    expected = torch.stack([smoothed(row, float(width)) for row, width in zip(u, b, strict=True)])
    torch.testing.assert_close(sharpened(u, b), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("reach, error", [(4.0, 2e-3), (8.0, 0.3)])
def test_tabulated_densities_are_those_of_the_kernels(reach, error):
    """log p and its slope by automatic differentiation; beyond 4 b the last kernel alone is an approximation."""
    centres, b = peaks(2)[None], torch.tensor([[0.5, 0.8]], dtype=DOUBLE)
    low, high = centres.amin(1) - reach * b, centres.amax(1) + reach * b
    x = (low + torch.linspace(0, 1, 301, dtype=DOUBLE)[:, None] * (high - low))[None].requires_grad_()
    exact = (-0.5 * ((x[:, :, None] - centres[:, None]) / b).square()).logsumexp(2).sum(-1)
    (slope,) = torch.autograd.grad(exact.sum(), x)
    value, found = Marginals.of(centres, b).both(x.detach())
    assert (value - exact).abs().max() < error and (found - slope).abs().max() < error * 3
    if reach > 4:  # and exact for one kernel
        value, found = Marginals.of(centres[:, :1], b).both(x.detach())
        apart = (x.detach() - centres[:, :1]) / b
        torch.testing.assert_close(value, -0.5 * apart.square().sum(-1), rtol=0, atol=1e-3)
        torch.testing.assert_close(found, -apart / b, rtol=0, atol=1e-9)
