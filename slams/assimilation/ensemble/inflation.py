"""Counter-measures to sampling error: inflation of the anomalies, and their random rotation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal


class InflationKeywords(FilterKeywords, total=False):
    """Keywords of the ensemble Kalman filters.

    Attributes:
        inflation: Factor on the anomalies after the analysis.
        rtps: Relaxation of the spread to that of the forecast, in [0, 1].
        rtpp: Relaxation of the anomalies to those of the forecast, in [0, 1].
        adaptive: Inflate the forecast by a factor estimated from the innovations.
        rotate: Rotate the anomalies at random after the analysis, keeping mean and covariance.
    """

    inflation: float
    rtps: float
    rtpp: float
    adaptive: bool
    rotate: bool


@dataclass(frozen=True)
class Inflation:
    """Inflation after the analysis, and an estimated one before it.

    Attributes:
        factor: Multiplies the analysis anomalies.
        rtps: alpha of A <- A (1 + alpha (s_f - s_a) / s_a), point by point with spreads s.
        rtpp: alpha of A <- (1 - alpha) A + alpha A_f.
        adaptive: Whether forecasts are inflated by `estimate`.
        horizon: Analyses over which the estimate is averaged.

    Raises:
        ValueError: If the factor is not positive or a relaxation lies outside [0, 1].

    Source:
        RTPP: Zhang, Snyder & Sun (2004), doi:10.1175/1520-0493(2004)132<1238:IOIEAO>2.0.CO;2, eq. 5; RTPS:
        Whitaker & Hamill (2012), doi:10.1175/MWR-D-11-00276.1, eq. 2.
    """

    factor: float = 1.0
    rtps: float = 0.0
    rtpp: float = 0.0
    adaptive: bool = False
    horizon: int = 50

    def __post_init__(self) -> None:
        if not self.factor > 0:
            raise InvalidValueError(f"inflation must be positive, got {self.factor}; 1 inflates nothing.")
        for name in ("rtps", "rtpp"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidValueError(f"{name} must lie in [0, 1], got {getattr(self, name)}.")

    def relax(self, analysis: Tensor, forecast: Tensor) -> Tensor:
        """Inflate the analysis anomalies; both (*B, N, d)."""
        if self.factor == 1 and not self.rtps and not self.rtpp:
            return analysis
        mean = analysis.mean(-2, keepdim=True)
        factor: float | Tensor = self.factor
        if not self.rtps and not self.rtpp:
            return mean.lerp(analysis, factor)
        A = analysis - mean
        before = forecast - forecast.mean(-2, keepdim=True)
        if self.rtpp:
            A = A.lerp(before, self.rtpp)
        if self.rtps:
            spread, spread_before = A.std(-2, keepdim=True), before.std(-2, keepdim=True)
            tiny = torch.finfo(A.dtype).tiny
            factor = factor * (1 + self.rtps * (spread_before - spread) / spread.clamp(min=tiny))
        return mean + factor * A

    def estimate(self, Y: Tensor, d: Tensor, seen: Tensor | None, memory: Memory) -> Tensor:
        """Factor on the forecast anomalies that makes the innovations as large as they should be, (*B).

        lambda^2 = (|d|^2 - p) / tr(Y^T Y / (N - 1)), averaged over `horizon` analyses, kept in [0.81, 9].

        Source:
            Wang & Bishop (2003), doi:10.1175/1520-0493(2003)060<1140:ACOBAE>2.0.CO;2, eq. 14; the running mean
            follows Li, Kalnay & Miyoshi (2009), doi:10.1002/qj.371.
        """
        count = d.shape[-1] if seen is None else seen.sum(-1)
        excess = d.square().sum(-1) - count
        spread = Y.square().sum((-2, -1)) / (Y.shape[-2] - 1)
        previous = memory.carry.get("inflation", torch.ones_like(spread))
        now = (excess / spread.clamp(min=torch.finfo(d.dtype).tiny)).clamp(0.25, 25.0)
        now = torch.where(spread > 0, now, previous)  # where nothing was seen there is nothing to learn
        squared = previous + (now - previous) / self.horizon
        memory.carry["inflation"] = squared
        memory.diagnostics["inflation"] = squared.sqrt()
        return squared.clamp(0.81, 9.0).sqrt()


def random_rotation(E: Tensor, *, rng: Rng = None) -> Tensor:
    """Rotate the anomalies of an ensemble by a random orthogonal matrix that keeps their mean.

    E <- m + Omega (E - m) with Omega uniform among the orthogonal N x N matrices with Omega 1 = 1. In the basis that a
    reflection G of 1/sqrt(N) onto the first axis gives, Omega = G diag(1, Q) G with Q uniform, from the QR factors of a
    Gaussian matrix with the signs of R's diagonal taken out.

    Args:
        E: Members, (*B, N, d).
        rng: Generator.

    Returns:
        Members with the same mean and covariance, (*B, N, d).

    Source:
        Sakov & Oke (2008), doi:10.1175/2007MWR2021.1, section 4; uniform Q: Mezzadri (2007), Notices AMS 54(5).
    """
    size = E.shape[-2]
    if size < 3:  # with one direction left there is only a change of sign
        return E
    Q = uniform_orthogonal(E, rng=rng)
    reflected = reflect(E)  # the first row now is sqrt(N) times the mean
    return reflect(torch.cat([reflected[..., :1, :], Q @ reflected[..., 1:, :]], -2))


def uniform_orthogonal(E: Tensor, *, rng: Rng = None) -> Tensor:
    """Haar-distributed orthogonal matrices (*B, N - 1, N - 1), one for every ensemble (*B, N, d)."""
    side = E.shape[-2] - 1
    Q, R = torch.linalg.qr(normal((*E.shape[:-2], side, side), dtype=torch.float32, rng=rng).to(E))
    return Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def reflect(E: Tensor) -> Tensor:
    """Householder reflection of the members that maps the unit vector along 1 onto the first axis, and back.

    The first row of the result is sqrt(N) times the mean.

    Args:
        E: Members, (*B, N, d).

    Returns:
        (*B, N, d).
    """
    size = E.shape[-2]
    v = torch.full((size, 1), size**-0.5, dtype=E.dtype, device=E.device)
    v[0] -= 1
    return E - (2 / float(v.square().sum())) * v @ (v.mT @ E)
