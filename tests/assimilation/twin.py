"""Small systems with observations and exact answers, for the tests of the filters."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.covariance import Dense
from slams.core.random import normal
from slams.observation import Observations
from slams.observation.observation import Observation
from slams.systems import LinearGaussian

DOUBLE = torch.float64


def stable(d: int, rng: torch.Generator) -> Tensor:
    """A transition matrix whose powers neither explode nor die: 0.97 times a rotation."""
    return 0.97 * torch.linalg.qr(normal((d, d), dtype=DOUBLE, rng=rng))[0]


def spread(d: int, rng: torch.Generator) -> Tensor:
    """A well-conditioned covariance matrix."""
    root = normal((d, d), dtype=DOUBLE, rng=rng)
    return root @ root.mT / d + 0.3 * torch.eye(d, dtype=DOUBLE)


class Matrix(torch.nn.Module):
    """h(x) = H x."""

    def __init__(self, h: Tensor) -> None:
        super().__init__()
        self.register_buffer("h", h)

    def forward(self, x: Tensor) -> Tensor:
        """(*B, d) -> (*B, O)."""
        return x @ self.h.mT


@dataclass(frozen=True)
class Linear:
    """A linear-Gaussian twin experiment."""

    system: LinearGaussian
    truth: Tensor
    observations: Observations

    @classmethod
    def simulate(
        cls,
        rng: torch.Generator,
        *,
        d: int = 3,
        seen: int = 2,
        length: int = 12,
        noisy: bool = True,
        missing: bool = True,
        replicates: tuple[int, ...] = (),
        dense: bool = True,
    ) -> "Linear":
        """Draw one, every fourth step unobserved and a value missing here and there."""
        noise = 0.3 * spread(d, rng) if noisy else torch.zeros(d, d, dtype=DOUBLE)
        system = LinearGaussian(stable(d, rng), noise, normal((d,), dtype=DOUBLE, rng=rng), spread(d, rng))
        h = Matrix(normal((seen, d), dtype=DOUBLE, rng=rng))
        covariance = (
            spread(seen, rng) if dense else torch.diag(torch.rand(seen, generator=rng).double() + 0.5)
        )
        R = Dense(covariance)
        x = system.initial(*replicates, rng=rng).to(DOUBLE)
        truth = system.trajectory(x, length - 1, rng=rng)
        value = h(truth) + R.sample(*replicates, length, rng=rng)
        if missing:
            value[..., 3::4, :] = torch.nan
            value[..., 5::6, 0] = torch.nan
        return cls(system, truth, Observations({"y": Observation(value, h, R)}))


def exact_ensemble(mean: Tensor, cov: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Members (size, d) whose sample mean and covariance are the given ones to rounding."""
    draws = normal((size, len(mean)), dtype=DOUBLE, rng=rng)
    draws = draws - draws.mean(0)
    whitened = draws @ torch.linalg.inv(torch.linalg.cholesky(draws.mT @ draws / (size - 1))).mT
    return mean + whitened @ torch.linalg.cholesky(cov).mT
