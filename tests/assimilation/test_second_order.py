"""Laws of the second-order sampler on the log-SNR grid."""

import pytest
import torch

from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.denoiser import WindowGaussian
from tests.diffusion.gaussian import law, prior


def flow(variance: torch.Tensor) -> torch.Tensor:
    """What the probability flow makes of a unit deviation: from s(1) to s(0), s^2 = alpha^2 v + sigma^2."""
    alpha, sigma = VPCosine()(torch.tensor([1.0, 0.0], dtype=torch.float64))
    s = (alpha**2 * variance[:, None] + sigma**2).sqrt()
    return s[:, 1] / s[:, 0]


def deviation(variance: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    one = torch.ones(1, 1, dtype=torch.float64)
    return torch.stack(
        [
            sampler(WindowGaussian(one, v * one, 1e-3, (1,), VPCosine()), one.reshape(1, 1, 1)).squeeze()
            for v in variance
        ]
    )
