"""Regression of censored normal variables on the coefficients of a Gaussian, for amounts in its closed form."""

from dataclasses import dataclass

import torch
from torch import Tensor

_TURNS = 6  # of the EM algorithm; more change the coefficients by less than a percent


@dataclass(frozen=True)
class CensoredRegression:
    """g = G a + e, e ~ N(0, s²) at each point, of which only g <= c is known where it is censored.

    Attributes:
        operator: G, (P, K).
        std: s, (P).
        residuals: Draws of e / s on the training days, given what is known, with variance 1, (n, P).
    """

    operator: Tensor
    std: Tensor
    residuals: Tensor

    @classmethod
    def fit(
        cls, a: Tensor, g: Tensor, threshold: Tensor, penalty: float, *, rng: torch.Generator
    ) -> "CensoredRegression":
        """Ridge regression by the EM algorithm.

        Args:
            a: Coefficients (n, K), mean zero.
            g: Values (n, P); at the threshold where censored, NaN where missing (the mean of the regression is taken).
            threshold: c, (n, P).
            penalty: Added to the diagonal of a^T a.
            rng: Generator of the residuals.

        Source:
            Tobin (1958), doi:10.2307/1907382; Dempster et al. (1977), section 4.2.
        """
        eye = penalty * torch.eye(a.shape[1], dtype=torch.float64)
        factor = torch.linalg.cholesky((a.mT @ a).double() + eye)
        missing, censored = torch.isnan(g), g <= threshold
        mean, std = torch.zeros_like(g), torch.ones(g.shape[1]).to(g)
        operator = torch.zeros(g.shape[1], a.shape[1])
        for _ in range(_TURNS):
            above = ((threshold - mean) / std).clamp(-30, 8)
            ratio = mills(above)
            known = torch.where(censored, mean - std * ratio, g)
            known = torch.where(missing, mean, known)
            rest = torch.where(censored, (1 - above * ratio - ratio.square()).clamp(0, 1), 0.0)
            rest = torch.where(missing, 1.0, rest)
            operator = torch.cholesky_solve((a.mT @ known).double(), factor).mT.to(a)
            new = a @ operator.mT
            std = ((known - new).square() + std.square() * rest).mean(0).sqrt().clamp(min=0.02)
            mean = new
        upper = torch.special.ndtr(((threshold - mean) / std).double())
        level = torch.rand(g.shape, generator=rng, dtype=torch.float64)
        below = torch.special.ndtri((level * upper).clamp(1e-12, 1 - 1e-12)).to(g)
        residuals = torch.where(censored, below, (g - mean) / std)
        residuals = torch.where(missing, torch.special.ndtri(level.clamp(1e-12, 1 - 1e-12)).to(g), residuals)
        return cls(operator, std, residuals / residuals.square().mean(0).sqrt())

    def noise(self, members: int, days: int, correlation: float, *, rng: torch.Generator) -> Tensor:
        """Draws of e with the covariance of the residuals in space and an autoregression from day to day, (N, T, P)."""
        count = len(self.residuals)
        found: list[Tensor] = []
        for day in range(days):
            weight = torch.randn(members, count, generator=rng) / count**0.5
            each = weight @ self.residuals
            before = found[-1] if day else each
            kept = correlation if day else 0.0
            found.append(kept * before + (1 - kept**2) ** 0.5 * each)
        return self.std * torch.stack(found, 1)


def mills(x: Tensor) -> Tensor:
    """φ(x) / Φ(x), also far in the lower tail.

    >>> mills(torch.tensor([0.0, -40.0])).round(decimals=1)
    tensor([ 0.8000, 40.0000])
    """
    x = x.double()
    density = torch.exp(-0.5 * x**2) / (2 * torch.pi) ** 0.5
    ratio = density / torch.special.ndtr(x).clamp(min=1e-300)
    far = -x - 1 / x.clamp(max=-1)  # asymptotic, where Φ underflows
    return torch.where(x < -30, far, ratio).to(torch.get_default_dtype())
