"""Mixtures of many Gaussians in one basis: exact denoiser, probability flow and reverse diffusion."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.random import Rng, normal

_PAIRS = 2**22  # sample-component pairs whose distances are in memory at once
_SMALLEST = 0.3  # first noise above 0, in widths of the narrowest component: a third of it halves no error
_ROUNDED = 1e-3  # error of a log-weight that is let pass
_DIFFERENCES = (
    "donot_use_mm_for_euclid_dist"  # products of norms lose what separates neighbours at little noise
)


@dataclass(frozen=True)
class KernelMixture:
    """p(x) = sum_j w_j N(m_j, diag(s_j^2)).

    Noise is that of a variance-exploding process, x_tau = x + tau eps, so that component j is as wide as
    v_j = s_j^2 + tau^2 at noise tau. Near one sample, with shares p_j of the components, the mixture is a Gaussian of
    centre c and width v,

        1 / v = sum_j p_j / v_j,    c = v sum_j p_j m_j / v_j,    E[x | x_tau] = c + (1 - tau^2 / v) (x_tau - c).

    Attributes:
        means: Means m, (*B, J, r).
        variances: s^2, (*B, J, r), or (*B, 1, r) where components share it; positive.
        logits: log w up to a constant, (*B, J).
    """

    means: Tensor
    variances: Tensor
    logits: Tensor

    def shares(self, x: Tensor, tau: float) -> Tensor:
        """Probability of each component given x_tau: (*B, N, r) -> (*B, N, J)."""
        v = self.variances + tau**2
        if v.shape[-2] == 1:
            root = v.rsqrt()
            near, centres = x * root, self.means * root
            apart = float(near.abs().max()) * float(centres.abs().max()) * x.shape[-1]
            if apart * torch.finfo(x.dtype).eps < _ROUNDED:  # |x|^2 is all components' alike
                offset = self.logits - 0.5 * centres.square().sum(-1)
                return (offset.unsqueeze(-2) + near @ centres.mT).softmax(-1)
            distances = torch.cdist(near, centres, compute_mode=_DIFFERENCES).square()
        else:
            difference = x.unsqueeze(-2) - self.means.unsqueeze(-3)
            distances = (difference.square() / v.unsqueeze(-3)).sum(-1) + v.log().sum(-1).unsqueeze(-2)
        return (self.logits.unsqueeze(-2) - 0.5 * distances).softmax(-1)

    def near(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Centre c of the Gaussian near each sample and its variance without noise, v - tau^2, both (*B, N, r)."""
        temporaries = self.logits.numel() * (1 if self.variances.shape[-2] == 1 else self.means.shape[-1])
        rows = max(1, _PAIRS // temporaries)
        parts = [self._near(part, tau) for part in x.split(rows, -2)]
        return torch.cat([c for c, _ in parts], -2), torch.cat([v for _, v in parts], -2)

    def _near(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        p = self.shares(x, tau)
        if self.variances.shape[-2] == 1:
            return p @ self.means, self.variances.expand_as(x)
        precision = 1 / (self.variances + tau**2)
        v = 1 / (p @ precision)
        return v * (p @ (self.means * precision)), v - tau**2

    def denoise(self, x: Tensor, tau: float) -> Tensor:
        """E[x | x_tau]: (*B, N, r) -> (*B, N, r)."""
        c, s2 = self.near(x, tau)
        return c + s2 / (s2 + tau**2) * (x - c)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and marginal variances, each (*B, r)."""
        w = self.logits.softmax(-1).unsqueeze(-1)
        mean = (w * self.means).sum(-2)
        return mean, (w * ((self.means - mean.unsqueeze(-2)).square() + self.variances)).sum(-2)

    def flow(self, x: Tensor, taus: list[float]) -> Tensor:
        """Probability flow dx/dtau = (x - E[x | x_tau]) / tau along a grid of noise, up or down.

        With the Gaussian near a sample fixed over a step, x - c grows as (s^2 + tau^2)^1/2: for one Gaussian a step of
        any length is exact. It is averaged over both ends, which makes the error of a step of third order.

        Args:
            x: Samples at taus[0], (*B, N, r).
            taus: Noise, all >= 0.

        Returns:
            Samples at taus[-1].
        """
        for start, end in zip(taus[:-1], taus[1:], strict=True):
            here = self.near(x, start)
            there = self.near(_scaled(x, *here, start, end, 0.5), end)
            x = _scaled(x, (here[0] + there[0]) / 2, (here[1] + there[1]) / 2, start, end, 0.5)
        return x

    def reverse(self, x: Tensor, taus: list[float], *, rng: Rng = None) -> Tensor:
        """Reverse diffusion along a falling grid of noise, each step exact for one Gaussian.

        x_{tau'} given x_tau and the Gaussian near it: mean c + (s^2 + tau'^2) / (s^2 + tau^2) (x_tau - c), variance
        (s^2 + tau'^2) (tau^2 - tau'^2) / (s^2 + tau^2).

        Args:
            x: Samples at taus[0], (*B, N, r).
            taus: Noise, falling to 0.
            rng: Generator.
        """
        for start, end in zip(taus[:-1], taus[1:], strict=True):
            here = self.near(x, start)
            there = self.near(_scaled(x, *here, start, end, 1.0), end)
            c, s2 = (here[0] + there[0]) / 2, (here[1] + there[1]) / 2
            variance = (s2 + end**2) / (s2 + start**2) * (start**2 - end**2)
            noise = normal(x.shape, dtype=torch.float32, rng=rng).to(x)
            x = _scaled(x, c, s2, start, end, 1.0) + variance.sqrt() * noise
        return x


def _scaled(x: Tensor, c: Tensor, s2: Tensor, start: float, end: float, power: float) -> Tensor:
    """c + ((s^2 + end^2) / (s^2 + start^2))^power (x - c)."""
    return c + ((s2 + end**2) / (s2 + start**2)) ** power * (x - c)


def noise_grid(steps: int, smallest: float, largest: float) -> list[float]:
    """0, then `steps` levels from the smallest to the largest, at equal ratios."""
    ratio = (largest / smallest) ** (1 / max(1, steps - 1))
    return [0.0, *(smallest * ratio**k for k in range(steps))]


def bandwidth(count: int, rank: int) -> float:
    """Kernel width for `count` draws of N(0, 1_rank): h = (4 / (count (rank + 2)))^(1 / (rank + 4)), at most 0.999.

    It tends to 0 with many members and to 1, one Gaussian, with many directions.

    Source:
        Silverman (1986), Density Estimation, eq. 4.14.

    >>> round(bandwidth(500, 1), 3), round(bandwidth(40, 9), 3)
    (0.306, 0.697)
    """
    return min(0.999, (4 / (count * (rank + 2))) ** (1 / (rank + 4)))


def transport(
    z: Tensor,
    prior: KernelMixture,
    posterior: KernelMixture,
    *,
    steps: int,
    largest: float = 10.0,
    rng: Rng = None,
    stochastic: bool = False,
) -> Tensor:
    """Carry draws of one mixture to another through noise: the flow of the prior up, that of the posterior down.

    At the largest noise both are Gaussian but for a part of O(largest^-2), and a shift and a scaling make their first two
    moments agree. Between Gaussians the map is x -> m + S^1/2 x.

    Args:
        z: Draws of the prior, (*B, N, r), mean 0 and variance 1 in every direction.
        prior: Mixture with these moments.
        posterior: Mixture to draw from.
        steps: Levels of noise in each direction.
        largest: Largest noise, in standard deviations of the prior.
        rng: Generator, if `stochastic`.
        stochastic: Fresh noise and reverse diffusion instead of the flows: draws are then not paired with z, and some ten
            times the steps are needed for the same error.

    Returns:
        Draws of the posterior, (*B, N, r).
    """
    floor = _SMALLEST * math.sqrt(float(posterior.variances.min()))
    down = noise_grid(steps, max(floor, 1e-4), largest)[::-1]
    mean, variance = (value.unsqueeze(-2) for value in posterior.moments())
    if stochastic:
        noise = normal(z.shape, dtype=torch.float32, rng=rng).to(z)
        return posterior.reverse(mean + (variance + largest**2).sqrt() * noise, down, rng=rng)
    width = math.sqrt(float(prior.variances.min()))
    z = prior.flow(z, noise_grid(steps, _SMALLEST * width, largest))
    return posterior.flow(mean + z * ((variance + largest**2) / (1 + largest**2)).sqrt(), down)
