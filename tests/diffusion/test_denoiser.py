"""Laws of denoisers, against dense joint Gaussians."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from slams.core.eof import eof
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian, window_covariance
from slams.diffusion.schedule import VPCosine
from slams.networks.mlp import WindowMLP
from slams.networks.unet import WindowUNet
from tests.diffusion.gaussian import chain, denoised, prior

TIMES = [0.0, 0.05, 0.5, 0.95, 1.0]


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize(("event", "patterns"), [((5,), 2), ((5,), 5), ((2, 2, 3), 4)])
def test_window_gaussian_equals_the_joint_gaussian(t, event, patterns, rng):
    """E[x | x_t] = alpha Sigma (alpha^2 Sigma + sigma^2 1)^-1 x_t with the dense Sigma over (L, D)."""
    gaussian, sigma = prior(3, event, patterns, rng)
    x_t = torch.randn(2, 4, 3, *event, dtype=torch.float64, generator=rng)
    time = torch.tensor(t, dtype=torch.float64)
    expected = denoised(sigma, torch.zeros(len(sigma)), x_t.flatten(2), *gaussian.schedule(time))
    torch.testing.assert_close(gaussian(x_t, time).flatten(2), expected, rtol=0, atol=1e-10)


def test_every_member_of_a_batch_has_its_own_time(rng):
    gaussian, _ = prior(3, (5,), 2, rng)
    x_t = torch.randn(4, 3, 5, dtype=torch.float64, generator=rng)
    t = torch.rand(4, 1, 1, dtype=torch.float64, generator=rng)
    each = torch.stack([gaussian(x_t[i], t[i, 0, 0]) for i in range(4)])
    torch.testing.assert_close(gaussian(x_t, t), each, rtol=0, atol=1e-13)


def test_log_prob_is_that_of_the_coefficients(rng):
    gaussian, _ = prior(2, (4,), 2, rng)
    x = torch.randn(6, 2, 4, dtype=torch.float64, generator=rng)
    c = (gaussian.vectors * gaussian.values) @ gaussian.vectors.mT
    expected = MultivariateNormal(torch.zeros(4, dtype=torch.float64), c).log_prob(gaussian.coefficients(x))
    torch.testing.assert_close(gaussian.log_prob(x), expected, rtol=1e-12, atol=1e-10)


def lagged(windows: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """E[a_i a_j^T] averaged over the pairs of steps of a window that are as far apart."""
    length = windows.shape[1]
    pairs = [(m, m + j - i) for m in range(length) if 0 <= m + j - i < length]
    return torch.stack([windows[:, a].mT @ windows[:, b] / len(windows) for a, b in pairs]).mean(0)


@pytest.mark.parametrize("shrink", [0.0, 0.3, 1.0])
def test_window_covariance_is_stationary(shrink, rng):
    """Block (i, j) is the mean covariance at lag j - i, its off-diagonal shrunk; no clamp is needed."""
    windows = torch.randn(500, 4, 3, dtype=torch.float64, generator=rng).cumsum(-1)
    found = window_covariance(windows, shrink).reshape(4, 3, 4, 3)
    factor = 1 - shrink * (1 - torch.eye(3, dtype=torch.float64))
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, :, j], lagged(windows, i, j) * factor, rtol=0, atol=1e-12)


def test_window_covariance_of_few_windows_is_positive(rng):
    """Averaged lags alone need not be; eigenvalues are kept at 1e-6 of the largest."""
    matrix = window_covariance(torch.randn(3, 5, 4, dtype=torch.float64, generator=rng), 0.0)
    values = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(matrix, matrix.mT, rtol=0, atol=1e-14)
    assert float(values[0]) > 0.9e-6 * float(values[-1])


def test_fit_takes_patterns_window_covariance_and_remainder_from_the_states(rng):
    z = torch.randn(300, 2, 3, dtype=torch.float64, generator=rng) * torch.tensor([3.0, 1.0, 0.3]).double()
    starts = torch.arange(0, 290, 3)
    fitted = WindowGaussian.fit(z, starts, 4, VPCosine(), most=3, shrink=0.2)
    basis = eof(z.flatten(1), fraction=0.99, most=3).basis
    residual = z.flatten(1) - z.flatten(1) @ basis @ basis.mT
    assert float(fitted.remainder) == pytest.approx(float(residual.square().sum()) / 300 / 3, rel=1e-9)
    windows = torch.stack([z.flatten(1)[s : s + 4] @ basis for s in starts.tolist()])
    c = (fitted.vectors * fitted.values) @ fitted.vectors.mT
    torch.testing.assert_close(c, window_covariance(windows, 0.2), rtol=0, atol=1e-11)
    assert fitted.event == (2, 3) and fitted.length == 4


def test_fit_finds_the_covariance_of_the_process_it_saw(rng):
    """An AR(1) chain of 20000 steps: its autocovariances within 6 of Bartlett's standard errors,
    sqrt((1 + rho^2) / (1 - rho^2) / n) at most doubled by the lag; false alarm below 1e-7."""
    n, rho = 20000, 0.6
    noise = torch.randn(n, 1, dtype=torch.float64, generator=rng) * (1 - rho**2) ** 0.5
    z = torch.empty_like(noise)
    z[0] = noise[0] / (1 - rho**2) ** 0.5
    for k in range(1, n):
        z[k] = rho * z[k - 1] + noise[k]
    fitted = WindowGaussian.fit(z, torch.arange(n - 4), 5, VPCosine())
    c = (fitted.vectors * fitted.values) @ fitted.vectors.mT
    error = 6 * 2 * ((1 + rho**2) / (1 - rho**2) / n) ** 0.5
    torch.testing.assert_close(c, chain(5, rho), rtol=0, atol=error)


@pytest.mark.parametrize("grid", [False, True])
def test_untrained_network_is_the_gaussian(grid, rng):
    event = (2, 4, 4) if grid else (5,)
    gaussian, _ = prior(3, event, 3, rng)
    torch.manual_seed(0)
    network = (
        WindowUNet(3, event, hidden=(4, 6), blocks=1) if grid else WindowMLP(3, event, hidden=8, blocks=1)
    )
    denoiser = NetworkDenoiser(gaussian, network.double())
    x_t = torch.randn(2, 3, *event, dtype=torch.float64, generator=rng)
    for t in (torch.tensor(0.3).double(), torch.rand(2, *[1] * (1 + len(event)), generator=rng).double()):
        assert torch.equal(denoiser(x_t, t), gaussian(x_t, t))


class Constant(nn.Module):
    def forward(self, x_t, linear, t):
        return torch.full_like(x_t, 2.0)


def test_network_correction_is_scaled_by_the_posterior_width(rng):
    gaussian, _ = prior(3, (5,), 2, rng)
    x_t = torch.randn(4, 3, 5, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.4, dtype=torch.float64)
    alpha, sigma = VPCosine()(t)
    expected = gaussian(x_t, t) + 2 * (1 / (alpha**2 / sigma**2 + 1)).sqrt()
    found = NetworkDenoiser(gaussian, Constant())(x_t, t)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)


def test_loss_of_the_exact_gaussian_is_its_posterior_variance(rng):
    """Mean over t and directions of v (alpha^2 + sigma^2) / (alpha^2 v + sigma^2); within 6 standard
    errors of 64 batches (Student's t: one false alarm in 1e7)."""
    gaussian, sigma = prior(2, (3,), 3, rng)
    network = WindowMLP(2, (3,), hidden=4, blocks=1).double()
    denoiser = NetworkDenoiser(gaussian, network)
    root = torch.linalg.cholesky(sigma)
    with torch.no_grad():
        draws = [torch.randn(500, 6, dtype=torch.float64, generator=rng) @ root.mT for _ in range(64)]
        losses = torch.stack([denoiser.loss(x.reshape(-1, 2, 3), rng=rng) for x in draws])
    a, s = VPCosine()((torch.arange(2000, dtype=torch.float64)[:, None] + 0.5) / 2000)
    v = torch.linalg.eigvalsh(sigma)
    expected = float((v * (a**2 + s**2) / (a**2 * v + s**2)).mean())
    assert abs(float(losses.mean()) - expected) < 6 * float(losses.std()) / 8
