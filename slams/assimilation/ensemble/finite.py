"""The finite-size ensemble Kalman filter, which finds the inflation of its prior by itself."""

import math
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import InflationKeywords
from slams.assimilation.ensemble.kalman import Departures, EnsembleKalman
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_POINTS = 24  # of the first look at the dual cost
_NEWTON = 8  # steps after it: the bracket is narrow enough for quadratic convergence
_LARGEST = 1e8  # inflation of the variance at which the search ends


class EnKFN(EnsembleKalman):
    """Deterministic filter whose prior, from N members, is a t-like distribution instead of a Gaussian.

    Mean and covariance of the forecast are uncertain; integrating over both gives a prior whose mode in the space of
    the members is that of an ETKF with its anomalies inflated by l, the minimum of the dual cost (`dual_inflation`).

    Args:
        dynamics: The model.
        prior_factor: Multiplies the certainty of the inflation prior (`xN` of published settings); large values
            leave the ensemble as it is.
        nullity: Directions of weights that leave the ensemble as it is, g of the paper; 0 works well in practice.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If `prior_factor` is not positive or `nullity` negative.

    Source:
        Bocquet (2011), doi:10.5194/npg-18-735-2011; dual form Bocquet & Sakov (2012), doi:10.5194/npg-19-383-2012;
        constants of the prior Bocquet, Raanes & Hannart (2015), doi:10.5194/npg-22-645-2015, section 5.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        prior_factor: float = 1.0,
        nullity: int = 0,
        **common: Unpack[InflationKeywords],
    ) -> None:
        if not prior_factor > 0 or nullity < 0:
            raise InvalidValueError(
                f"prior_factor must be positive and nullity at least 0, got {prior_factor} and {nullity}."
            )
        super().__init__(
            dynamics,
            **common,
        )
        self.prior_factor = prior_factor
        self.nullity = nullity

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        return finite_size_update(
            E, departures.Y, departures.d, prior_factor=self.prior_factor, nullity=self.nullity
        )


def finite_size_update(
    E: Tensor, Y: Tensor, d: Tensor, *, prior_factor: float = 1.0, nullity: int = 0
) -> Tensor:
    """Analysis of the ensemble with anomalies inflated by what minimizes the dual cost.

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        prior_factor: Factor on the prior, as in `EnKFN`.
        nullity: Nullity of the anomalies, as in `EnKFN`.

    Returns:
        Members, (*B, N, d).
    """
    size, seen = Y.shape[-2:]
    c = size - 1.0
    mean = E.mean(-2, keepdim=True)
    A = E - mean
    in_observations = seen < size
    s, V = torch.linalg.eigh(Y.mT @ Y if in_observations else Y @ Y.mT)
    s = s.clamp(min=0)
    # p = s^1/2 times the innovation along each singular vector of Y
    p = d.unsqueeze(-2) @ V * s.sqrt().unsqueeze(-2) if in_observations else d.unsqueeze(-2) @ Y.mT @ V
    u = dual_inflation(s, p.squeeze(-2), size, prior_factor=prior_factor, nullity=nullity).unsqueeze(-1)
    spectrum = u * s
    root = (c / (c + spectrum)).sqrt().unsqueeze(-2)
    shrunk = (u / (c + spectrum)).unsqueeze(-2)
    if in_observations:  # T = I - Y V scale V^T Y^T, on anomalies that are inflated by sqrt(u)
        projected = (Y @ V).mT @ A
        scale = shrunk / (1 + root)  # (1 - root) / s without cancellation
        shift = (d.unsqueeze(-2) @ V * shrunk) @ projected
        T_A = A - (Y @ V * scale) @ projected
    else:
        projected = V.mT @ A
        shift = (p * shrunk) @ projected
        T_A = (V * root) @ projected
    return mean + shift + u.sqrt().unsqueeze(-1) * T_A


def dual_inflation(s: Tensor, p: Tensor, size: int, *, prior_factor: float = 1.0, nullity: int = 0) -> Tensor:
    """Inflation u = l^2 of the prior variance that minimizes the dual cost of the finite-size filter.

        J(u) = sum_i d_i^2 / (N - 1 + u s_i) + eps / u + L log u

    with d_i the whitened innovation along the singular vectors of Y and s_i the squared singular values; zeta of the
    paper is (N - 1) / u. eps = (N + 1) / N is the effect of the unknown mean, L = (N + g) / (N - 1) that of the unknown
    covariance. Both are changed so that without information the mode does not inflate: the prior's mode eps / L becomes
    (eps / L)^(1 - k), with k the mean of (N - 1) / (N - 1 + s_i) over all N directions.

    Args:
        s: Squared singular values, (*B, r).
        p: s_i^1/2 d_i, (*B, r).
        size: N.
        prior_factor: Multiplies eps and L.
        nullity: g.

    Returns:
        u, (*B).

    Source:
        Raanes, Bocquet & Carrassi (2019), doi:10.1002/qj.3386, eq. 42; the mode's correction nearly as in Bocquet,
        Raanes & Hannart (2015), doi:10.5194/npg-22-645-2015, eq. 36.
    """
    c = size - 1.0
    epsilon, log_weight = (size + 1) / size, (size + nullity) / c
    free = ((c / (c + s)).sum(-1) + (size - s.shape[-1])) / size
    correction = (epsilon / log_weight) ** (0.5 * free)
    eps = prior_factor * epsilon / correction
    weight = prior_factor * log_weight * correction
    q = p.square()
    low = (eps / weight).log()
    # beyond `high` the slope is positive: the data's share of it, sum q u^2 / (c + u s)^2, is below sum q / s^2
    tiny = torch.finfo(s.dtype).tiny ** 0.5  # its square does not underflow
    noise = (torch.finfo(s.dtype).eps * size * s.amax(-1, keepdim=True)).clamp(min=tiny)
    bound = torch.where(s > noise, q / s.clamp(min=noise).square(), 0.0).sum(-1)
    high = ((eps + bound) / weight).log().clamp(max=math.log(_LARGEST))
    low, high = _cell(low, torch.maximum(low, high), s, q, c, eps, weight)
    return _root(low, high, s, q, c, eps, weight).exp()


def _cell(
    low: Tensor, high: Tensor, s: Tensor, q: Tensor, c: float, eps: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Neighbours of the best of some points of t = log u: the cost may have several minima."""
    width = (high - low) / (_POINTS - 1)
    t = low.unsqueeze(-1) + width.unsqueeze(-1) * torch.arange(_POINTS, dtype=s.dtype, device=s.device)
    u = t.exp()
    # d^2 / (c + u s) = d^2 / c - u q / (c (c + u s)): the first term is the same for all u
    data = (q.unsqueeze(-2) / (c + u.unsqueeze(-1) * s.unsqueeze(-2))).sum(-1)
    cost = eps.unsqueeze(-1) / u + weight.unsqueeze(-1) * t - u * data / c
    best = low + width * cost.argmin(-1)
    return torch.maximum(low, best - width), torch.minimum(high, best + width)


def _root(low: Tensor, high: Tensor, s: Tensor, q: Tensor, c: float, eps: Tensor, weight: Tensor) -> Tensor:
    """Root of dJ/dt = L - eps / u - sum q u / (c + u s)^2, t = log u, by Newton's method safeguarded by bisection."""
    t = 0.5 * (low + high)
    for _ in range(_NEWTON):
        u = t.exp()
        ratio = 1 / (c + u.unsqueeze(-1) * s)
        term = q * ratio.square() * u.unsqueeze(-1)
        slope = weight - eps / u - term.sum(-1)
        # d(term)/dt = term (1 - 2 u s / (c + u s)) = term (2 c / (c + u s) - 1)
        curvature = eps / u - (term * (2 * c * ratio - 1)).sum(-1)
        above = slope > 0
        high, low = torch.where(above, t, high), torch.where(above, low, t)
        newton = t - slope / curvature
        t = torch.where((newton >= low) & (newton <= high), newton, 0.5 * (low + high))
    return t
