"""Biases of observed modalities that are common to all days of a record."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.random import Rng, generator, normal


@dataclass(frozen=True, eq=False)
class Bias:
    """Prior of a modality's bias: b = U beta, beta ~ N(0, T), the same on every day of a record.

    Attributes:
        directions: U, (prod(O), r).
        covariance: T, (r, r).
        share: Share of the windows of a record that count as independent: those that follow each other see much the same
            weather, which is not told from a bias.
    """

    directions: Tensor
    covariance: Tensor
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class BiasPosterior:
    """Biases of modalities given a record, jointly Gaussian.

    Attributes:
        priors: Prior by modality, in the order of the coefficients.
        mean: Mean of the coefficients of all modalities, (R).
        covariance: Their covariance, (R, R).
    """

    priors: Mapping[str, Bias]
    mean: Tensor
    covariance: Tensor

    def offsets(self, coefficients: Tensor | None = None) -> dict[str, Tensor]:
        """Biases b = U beta by modality, (*B, prod(O)), of coefficients (*B, R); of their mean if None."""
        beta = self.mean if coefficients is None else coefficients
        sizes = [len(prior.covariance) for prior in self.priors.values()]
        parts = beta.split(sizes, -1)
        return {
            n: part @ p.directions.mT.to(part)
            for (n, p), part in zip(self.priors.items(), parts, strict=True)
        }

    def draw(self, members: int, *, rng: Rng = None) -> dict[str, Tensor]:
        """Draws of the biases by modality, (N, prod(O))."""
        noise = normal((members, len(self.mean)), like=self.mean, rng=generator(rng, "biases"))
        return self.offsets(self.mean + noise @ self.root.mT)

    @property
    def root(self) -> Tensor:
        """Root of the covariance, (R, R)."""
        value, vector = torch.linalg.eigh(self.covariance.double())
        return (vector * value.clamp(min=0).sqrt()).to(self.mean)


def stacked(priors: Mapping[str, Bias], name: str, count: int) -> Tensor:
    """Directions of one modality among the coefficients of all, (prod(O), R); zero if it has none."""
    blocks = [
        prior.directions if other == name else prior.directions.new_zeros(count, len(prior.covariance))
        for other, prior in priors.items()
    ]
    return torch.cat(blocks, 1)
