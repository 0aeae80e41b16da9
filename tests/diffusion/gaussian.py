"""Oracle of the diffusion tests: Gaussians over windows as dense float64 matrices."""

import torch
from torch import Tensor

from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine


def positive(size: int, rng: torch.Generator) -> Tensor:
    """A random covariance matrix, eigenvalues within two decades."""
    q = orthonormal(size, size, rng)
    return (q * torch.logspace(0.3, -1.5, size, dtype=torch.float64)) @ q.mT


def orthonormal(size: int, count: int, rng: torch.Generator) -> Tensor:
    normal = torch.randn(size, count, dtype=torch.float64, generator=rng)
    return torch.linalg.qr(normal)[0].contiguous()  # torch.kron needs it


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
    gain = (
        alpha
        * torch.linalg.solve(alpha**2 * sigma + noise**2 * torch.eye(len(sigma), dtype=sigma.dtype), sigma).mT
    )
    return mean + (x_t - alpha * mean) @ gain.mT


def chain(length: int, correlation: float) -> Tensor:
    """Covariance of a stationary AR(1) chain of unit variance, (length, length)."""
    k = torch.arange(length, dtype=torch.float64)
    return correlation ** (k[:, None] - k).abs()


def ddim_std(schedule, variance: Tensor, steps: int) -> Tensor:
    """Standard deviation that deterministic sampling gives a direction of true variance v, exactly.

    With the angle theta = atan(sigma / (alpha sqrt(v))) and s^2 = alpha^2 v + sigma^2 each step multiplies
    deviations by s' / s cos(theta' - theta), so that only the cosines are lost to the finite number of steps.
    """
    alpha, sigma = schedule(torch.linspace(1, 0, steps + 1, dtype=torch.float64)[:, None])
    s = (alpha**2 * variance + sigma**2).sqrt()
    theta = torch.atan2(sigma.expand_as(s), alpha * variance.sqrt())
    return s[-1] / s[0] * torch.cos(theta[1:] - theta[:-1]).prod(0)


def lost_std(std: Tensor, steps: int) -> Tensor:
    """Allowance for a finite number of steps: of a deviation less than 0.8 / steps (1 + 1 / std) is lost.

    A bound of the closed form above, checked for deviations 0.04..1 and 32..256 steps. It says that
    narrow directions need many steps: at 64 steps a deviation of 0.1 comes out 12 % too small.
    """
    return 0.8 / steps * (1 + 1 / std)


def law(sampler, denoiser, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and covariance of what a deterministic sampler draws of a Gaussian, from its affine map.

    No chance is involved: the image of 0 is the mean, those of the unit vectors are the columns of a root.
    """
    size = torch.Size(shape).numel()
    noise = torch.cat([torch.zeros(1, size), torch.eye(size)]).double().reshape(-1, *shape)
    images = sampler(denoiser, noise).flatten(1)
    root = (images[1:] - images[0]).mT
    return images[0].reshape(shape), root @ root.mT
