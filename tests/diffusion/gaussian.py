"""Oracle of the diffusion tests: Gaussians over windows as dense float64 matrices."""

import torch
from torch import Tensor

from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine


def positive(size: int, rng: torch.Generator) -> Tensor:
    """A random covariance matrix, eigenvalues within two decades."""
    q = torch.linalg.qr(torch.randn(size, size, dtype=torch.float64, generator=rng))[0]
    return (q * torch.logspace(0.3, -1.5, size, dtype=torch.float64)) @ q.mT


def orthonormal(size: int, count: int, rng: torch.Generator) -> Tensor:
    return torch.linalg.qr(torch.randn(size, count, dtype=torch.float64, generator=rng))[0]


def prior(length: int, event: tuple[int, ...], patterns: int, rng: torch.Generator, remainder: float = 0.05):
    """A window Gaussian and its covariance over (L, D) as one matrix, Sigma = V C V^T + delta (1 - V V^T)."""
    size = torch.Size(event).numel()
    basis = orthonormal(size, patterns, rng)
    c = positive(length * patterns, rng)
    every = torch.kron(torch.eye(length, dtype=torch.float64), basis)
    outside = torch.eye(length * size, dtype=torch.float64) - every @ every.mT
    return WindowGaussian(basis, c, remainder, event, VPCosine()), every @ c @ every.mT + remainder * outside


def posterior(sigma: Tensor, h: Tensor, r: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of x ~ N(0, sigma) given y = h x + N(0, r); NaN in y was not seen."""
    seen = torch.isfinite(y)
    h, r, y = h[seen], r[seen][:, seen], y[seen]
    gain = torch.linalg.solve(h @ sigma @ h.mT + r, h @ sigma).mT
    return gain @ y, sigma - gain @ h @ sigma


def denoised(sigma: Tensor, mean: Tensor, x_t: Tensor, alpha: Tensor, noise: Tensor) -> Tensor:
    """E[x | x_t] for x ~ N(mean, sigma) and x_t = alpha x + noise eps, rows of x_t."""
    gain = alpha * torch.linalg.solve(alpha**2 * sigma + noise**2 * torch.eye(len(sigma)), sigma).mT
    return mean + (x_t - alpha * mean) @ gain.mT


def chain(length: int, correlation: float) -> Tensor:
    """Covariance of a stationary AR(1) chain of unit variance, (length, length)."""
    k = torch.arange(length, dtype=torch.float64)
    return correlation ** (k[:, None] - k).abs()
