"""Trajectories as a Markov chain: the joint Gaussian in closed form, against dense matrices."""

import pytest
import torch

from slams.core.random import fork
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.papers.qu2024.chain import ChainPosterior, GaussianChain

L, K, T = 3, 2, 7


@pytest.fixture
def process() -> torch.Tensor:
    """Joint covariance of T days of a stationary vector autoregression of order 1, which is Markov, (T K, T K)."""
    a = torch.tensor([[0.8, 0.2], [-0.1, 0.6]], dtype=torch.float64)
    variance = torch.eye(K, dtype=torch.float64)
    for _ in range(500):
        variance = a @ variance @ a.mT + torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64))
    blocks = [
        [
            torch.linalg.matrix_power(a, i - j) @ variance
            if i >= j
            else (torch.linalg.matrix_power(a, j - i) @ variance).mT
            for j in range(T)
        ]
        for i in range(T)
    ]
    return torch.cat([torch.cat(row, 1) for row in blocks])


@pytest.fixture
def chain(process) -> GaussianChain:
    return GaussianChain(process[: L * K, : L * K].float(), K)


def dense(bands) -> torch.Tensor:
    """A symmetric matrix from its lower bands."""
    size = bands.shape[1]
    matrix = torch.zeros(size, size, dtype=torch.float64)
    for band in range(len(bands)):
        for j in range(size - band):
            matrix[j + band, j] = matrix[j, j + band] = bands[band, j]
    return matrix


def test_precision_is_the_inverse_of_the_joint_covariance(chain, process):
    """Float32 windows of an order-1 process: 1e-4 of the largest entry."""
    expected = torch.linalg.inv(process)
    assert float((dense(chain.precision(T)) - expected).abs().max()) < 1e-4 * float(expected.max())


@pytest.fixture
def seen(rng) -> tuple[torch.Tensor, torch.Tensor]:
    """One number seen of each of three days: information (T, K, K) and G^T R^-1 y of two trajectories (2, T, K)."""
    g = torch.tensor([[1.0, -0.5]])
    information, pulled = torch.zeros(T, K, K), torch.zeros(2, T, K)
    for day in (0, 3, 6):
        information[day] = g.mT @ g / 0.3
        pulled[:, day] = torch.randn(2, 1, generator=rng) @ g / 0.3
    return information, pulled


def joint(process, seen) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (2, T K) and covariance of the posterior by dense algebra."""
    information, pulled = (x.double() for x in seen)
    covariance = torch.linalg.inv(torch.linalg.inv(process) + torch.block_diag(*information))
    return pulled.flatten(1) @ covariance, covariance


def test_draws_have_the_joint_posteriors_mean_and_covariance(chain, process, seen):
    """20,000 draws: mean within 5 standard errors, entries of the covariance within 5 of theirs."""
    mean, members = chain.draws(chain.precision(T, seen[0]), seen[1], 20_000, rng=fork(0, "draws"))
    expected, covariance = joint(process, seen)
    torch.testing.assert_close(mean.flatten(1).double(), expected, atol=1e-3, rtol=1e-3)
    around = (members - mean[:, None]).flatten(2).double()
    found = torch.einsum("rni,rnj->ij", around, around) / (2 * 20_000)
    scale = covariance.diagonal().sqrt()
    error = (found - covariance) / (scale[:, None] * scale) * (40_000 / 2) ** 0.5
    assert float(error.abs().max()) < 5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_denoiser_without_network_is_exact(chain, process, seen, rng, t):
    """E[a | a_t, y] of the joint Gaussian; 1e-3 of its size, windows in float32."""
    schedule = VPCosine()
    gaussian = WindowGaussian(torch.eye(K), process[: L * K, : L * K].float(), 1e-6, (K,), schedule)
    denoiser = ChainPosterior(NetworkDenoiser(gaussian, torch.nn.Identity()), chain, *seen, network=False)
    x_t = torch.randn(4, T, K, generator=rng)
    alpha, sigma = (float(v) for v in schedule(torch.tensor(t)))
    mean, covariance = joint(process, seen)
    precision = torch.linalg.inv(covariance)
    right = mean.repeat_interleave(2, 0) @ precision + alpha / sigma**2 * x_t.double().flatten(1)
    expected = right @ torch.linalg.inv(precision + (alpha / sigma) ** 2 * torch.eye(T * K))
    torch.testing.assert_close(
        denoiser(x_t, torch.tensor(t)).flatten(1).double(), expected, atol=1e-3, rtol=1e-3
    )


class Constant(torch.nn.Module):
    """A network that returns a constant everywhere."""

    def forward(self, x_t, linear, t):
        return torch.ones_like(x_t)


def test_a_networks_correction_is_weighed_against_the_observations(chain, process, seen, rng):
    """m = P (.. + (J + r) c) and, without observations, the closed form plus c itself."""
    gaussian = WindowGaussian(torch.eye(K), process[: L * K, : L * K].float(), 1e-6, (K,), VPCosine())
    x_t, t = torch.randn(2, T, K, generator=rng), torch.tensor(0.5)
    alpha, sigma = gaussian.schedule(t)
    c = float(sigma / (alpha**2 + sigma**2).sqrt())
    nothing = torch.zeros_like(seen[0]), torch.zeros_like(seen[1])
    with_network, without = (
        ChainPosterior(NetworkDenoiser(gaussian, Constant()), chain, *nothing, network=on)(x_t, t)
        for on in (True, False)
    )
    torch.testing.assert_close(with_network - without, torch.full_like(x_t, c), atol=1e-4, rtol=1e-3)
    moved, plain = (
        ChainPosterior(NetworkDenoiser(gaussian, Constant()), chain, *seen, network=on)(x_t, t)
        for on in (True, False)
    )
    free = dense(chain.precision(T)) + float((alpha / sigma) ** 2) * torch.eye(T * K)
    expected = torch.linalg.solve(
        free + torch.block_diag(*seen[0].double()), free @ torch.full((T * K,), c, dtype=torch.float64)
    )
    torch.testing.assert_close((moved - plain)[0].flatten().double(), expected, atol=1e-4, rtol=1e-3)


def test_draws_of_the_sampler_are_those_of_the_posterior(chain, process, seen):
    """Variances of 4,000 draws within 8 %: 5 standard errors are 6 %, two are left to the steps."""
    gaussian = WindowGaussian(torch.eye(K), process[: L * K, : L * K].float(), 1e-6, (K,), VPCosine())
    denoiser = ChainPosterior(NetworkDenoiser(gaussian, torch.nn.Identity()), chain, *seen, network=False)
    noise = torch.randn(2 * 4000, T, K, generator=fork(0, "noise"))
    draws = Sampler(24, order=2, time_grid="snr", ends=(0.05, 30.0))(denoiser, noise).unflatten(0, (2, 4000))
    mean, covariance = joint(process, seen)
    variance = draws.var(1).flatten(1).mean(0).double()
    assert float((variance / covariance.diagonal() - 1).abs().max()) < 0.08
    error = (draws.mean(1).flatten(1).double() - mean) / (covariance.diagonal() / 4000).sqrt()
    assert float(error.abs().max()) < 5
