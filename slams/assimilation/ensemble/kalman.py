"""Ensemble Kalman filters: perturbed observations, square root, deterministic.

Every kernel works on anomalies `A` of the state, (*B, N, d), and on *whitened* predictions: with W^T W = R^-1 for what
was seen and 0 for what was not, `Y` = W (h(x_i) - mean), (*B, N, O), and `d` = W (y - mean h(x)), (*B, O). Observation
errors then are N(0, I), units are gone, and missing values drop out as columns of zeros.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import Inflation, random_rotation, reflect, uniform_orthogonal
from slams.assimilation.filter import Filter
from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.core.random import Rng, generator, normal
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_CACHED = (
    2**16
)  # elements of the ensembles analysed at once: with twice as many, a member takes twice as long


@dataclass(frozen=True)
class Departures:
    """Whitened predictions of an observation by an ensemble.

    Attributes:
        Y: Anomalies of the predictions, (*B, N, O).
        d: Innovation of their mean, (*B, O).
        seen: Mask of observed values, (*B, O), or None for all.
    """

    Y: Tensor
    d: Tensor
    seen: Tensor | None

    @classmethod
    def of(cls, x: Tensor, observation: Observation) -> "Departures":
        """Predictions of an ensemble (*B, N, *S)."""
        predicted = observation.predict(x)
        mean = predicted.mean(-2)
        return cls(
            observation.whiten(predicted - mean.unsqueeze(-2), members=True),
            observation.whiten(observation.filled - mean, members=False),
            None if observation.all_seen else observation.seen,
        )

    def chi2(self) -> Tensor:
        """Mean over what was seen of d^2 / (1 + (N + 1)/N s^2), s^2 the variance of Y: about 1 if calibrated, (*B).

        The factor is the error of the mean; that s^2 stands below the line leaves a bias of O(1/N).

        Source:
            Dee (1995), doi:10.1175/1520-0493(1995)123<1128:OLEOEC>2.0.CO;2, eq. 7, observation by observation.
        """
        size = self.Y.shape[-2]
        ratio = self.d.square() / (1 + self.Y.square().sum(-2) * ((size + 1) / (size * (size - 1))))
        return ratio.mean(-1) if self.seen is None else ratio.sum(-1) / self.seen.sum(-1)


def relinearized(
    E: Tensor, after: Tensor, observation: Observation, state_shape: Sequence[int]
) -> Departures:
    """Departures of a forecast with the operator's slopes about the mean of an analysis.

    With forecast m, A, analysis mean m_a, and c the ratio of the spreads of analysis and forecast,

        Y = W (h(m_a + c A) - mean) / c,    d = W (y - mean h(m_a + c A)) + G (m_a - m),

    G (m_a - m) the difference of mean h(m_a + c A +- c (m_a - m)) over 2 c; for a linear operator those of the forecast.

    Args:
        E: Forecast members, (*B, N, d).
        after: Analysed members, (*B, N, d).
        observation: Observation.
        state_shape: *S, of d elements.
    """
    mean, reached = E.mean(-2, keepdim=True), after.mean(-2, keepdim=True)
    A, moved = E - mean, reached - mean
    spread = A.square().sum((-2, -1), keepdim=True).clamp(min=torch.finfo(E.dtype).tiny)
    c = ((after - reached).square().sum((-2, -1), keepdim=True) / spread).sqrt()
    c = torch.where(c > 0, c.clamp(1e-3, 1.0), 1.0)

    def at(shift: Tensor) -> Departures:
        return Departures.of((reached + c * A + shift).unflatten(-1, tuple(state_shape)), observation)

    here = at(torch.zeros_like(mean))
    slope = (at(-c * moved).d - at(c * moved).d) / (2 * c.squeeze(-1))
    return Departures(here.Y / c, here.d + slope, here.seen)


class EnsembleKalman(Filter):
    """Base of the ensemble Kalman filters: departures, prior inflation, posterior inflation and rotation.

    Args:
        dynamics: The model.
        inflation: Factor on the anomalies after the analysis.
        rtps: Relaxation of the spread to that of the forecast, in [0, 1].
        rtpp: Relaxation of the anomalies to those of the forecast, in [0, 1].
        adaptive: Inflate the forecast by a factor estimated from the innovations.
        rotate: Rotate the anomalies at random after the analysis, keeping mean and covariance.
        common: Keywords of `FilterKeywords`.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        inflation: float = 1.0,
        rtps: float = 0.0,
        rtpp: float = 0.0,
        adaptive: bool = False,
        rotate: bool = False,
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        self.inflation = Inflation(inflation, rtps=rtps, rtpp=rtpp, adaptive=adaptive)
        self.rotate = rotate

    def _turns(self) -> bool:
        """Whether `update` has rotated the anomalies already."""
        return False

    @abc.abstractmethod
    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """Analysis of flat members, before inflation and rotation.

        Args:
            E: Members, (*B, N, d).
            departures: Their predictions of the observation.
            observation: Observation.
            memory: Variables of the method.
            rng: Generator.

        Returns:
            (*B, N, d).
        """

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; on the CPU so many replicates at a time that they stay in a core's cache."""
        memory, rng = Memory() if memory is None else memory, generator(rng, "analysis")
        count = (
            -(-forecast.numel() // _CACHED)
            if forecast.device.type == "cpu" and observation.value.ndim > 1
            else 1
        )
        replicates = forecast.shape[0]
        if min(count, replicates) < 2:
            return self._analyse(forecast, observation, memory, rng)
        size = -(-replicates // count)
        analyses, memories = [], []
        for first in range(0, replicates, size):
            piece = slice(first, first + size)
            memories.append(memory.part(piece))
            part = observation.part(piece)
            analyses.append(self._analyse(forecast[piece], part, memories[-1], rng))
        memory.join(memories)
        return torch.cat(analyses)

    def _analyse(self, forecast: Tensor, observation: Observation, memory: Memory, rng: Rng) -> Tensor:
        departures = Departures.of(forecast, observation)
        memory.diagnostics["innovation"] = departures.chi2()
        event = len(self.dynamics.state_shape)
        E = forecast.flatten(-event) if event > 1 else forecast
        if self.inflation.adaptive:
            factor = self.inflation.estimate(departures.Y, departures.d, departures.seen, memory)
            E = E.mean(-2, keepdim=True).lerp(E, factor[..., None, None])
            departures = Departures(departures.Y * factor[..., None, None], departures.d, departures.seen)
        # smoothers keep earlier steps beside the present one: what combines the members is the same for all
        width, past = E.shape[-1], memory.carry.get("past")
        joint = E if past is None else torch.cat([E, past.flatten(self._axis)], -1)
        joint = self.update(joint, departures, observation=observation, memory=memory, rng=rng)
        present = self.inflation.relax(joint if past is None else joint[..., :width], E)
        joint = present if past is None else torch.cat([present, joint[..., width:]], -1)
        if self.rotate and not self._turns():
            joint = random_rotation(joint, rng=rng)
        if past is not None:
            memory.carry["past"] = joint[..., width:].reshape(past.shape)
            joint = joint[..., :width]
        return joint.unflatten(-1, self.dynamics.state_shape) if event > 1 else joint


class EnKF(EnsembleKalman):
    """Stochastic filter: every member is updated with its own perturbed observation.

    x_i <- x_i + A^T Y (Y^T Y + (N - 1) I)^-1 (d + e_i - Y_i),  e_i ~ N(0, I), centred over the members and rescaled.

    Source:
        Burgers, van Leeuwen & Evensen (1998), doi:10.1175/1520-0493(1998)126<1719:ASITEK>2.0.CO;2, eq. 14.
    """

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        return perturbed_update(E, departures.Y, departures.d, centred_noise(departures.Y, rng=rng))


class ETKF(EnsembleKalman):
    """Deterministic square-root filter with the symmetric ensemble transform.

    Source:
        Bishop, Etherton & Majumdar (2001), doi:10.1175/1520-0493(2001)129<0420:ASWTET>2.0.CO;2; symmetric
        root: Hunt, Kostelich & Szunyogh (2007), doi:10.1016/j.physd.2006.11.008, eqs. 20-24.
    """

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        if self._turns():
            Q = uniform_orthogonal(E, rng=rng)
            return rotated_root_update(E, departures.Y, departures.d, Q)
        return square_root_update(E, departures.Y, departures.d)

    def _turns(self) -> bool:
        """A relaxation to the forecast's anomalies needs the symmetric root; else any root does."""
        return self.rotate and not self.inflation.rtpp


class DEnKF(EnsembleKalman):
    """Deterministic filter to first order in K H: anomalies are updated with half the gain.

    x_a = x_f + K d,  A_a = A - 1/2 K H A.

    Source:
        Sakov & Oke (2008), doi:10.1111/j.1600-0870.2007.00299.x, eq. 9.
    """

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`."""
        return E + gain(E, departures.Y, departures.d.unsqueeze(-2) - 0.5 * departures.Y)


def gain(E: Tensor, Y: Tensor, residual: Tensor) -> Tensor:
    """The Kalman gain applied to whitened residuals: r Y^T (Y Y^T + (N - 1) I)^-1 A.

    Solved in the smaller of ensemble and observation space, which are equal by
    (Y^T Y + c I)^-1 Y^T = Y^T (Y Y^T + c I)^-1.

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        residual: Whitened residuals, (*B, M, O).

    Returns:
        Increments, (*B, M, d).
    """
    size, seen = Y.shape[-2:]
    A = E - E.mean(-2, keepdim=True)
    if seen < size:
        left, right, G = residual, Y.mT @ A, Y.mT @ Y
    else:
        left, right, G = residual @ Y.mT, A, Y @ Y.mT
    G.diagonal(dim1=-2, dim2=-1).add_(size - 1.0)
    # never fails: G >= (N - 1) I; what is not finite shows in the members
    U = torch.linalg.cholesky_ex(G, upper=True)[0]
    left = torch.linalg.solve_triangular(U, left, upper=True, left=False)
    return torch.linalg.solve_triangular(U.mT, left, upper=False, left=False) @ right


def perturbed_update(E: Tensor, Y: Tensor, d: Tensor, noise: Tensor) -> Tensor:
    """Analysis of the stochastic EnKF for given draws `noise`, (*B, N, O), of the whitened errors."""
    return E + gain(E, Y, d.unsqueeze(-2) + noise - Y)


def square_root_update(E: Tensor, Y: Tensor, d: Tensor) -> Tensor:
    """Analysis with the symmetric square root (I + Y Y^T / (N - 1))^-1/2 of the ensemble transform.

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).

    Returns:
        Members, (*B, N, d).
    """
    size, seen = Y.shape[-2:]
    mean = E.mean(-2, keepdim=True)
    A = E - mean
    if seen < size:  # eigenvectors in observation space: (I + Y Y^T / c)^-1/2 = I + Y V g(s) V^T Y^T
        s, V = torch.linalg.eigh(Y.mT @ Y / (size - 1))
        s = s.clamp(min=0)
        root = (1 + s).rsqrt()
        # ((1 + s)^-1/2 - 1) / s without cancellation: -1 / (sqrt(1 + s) (1 + sqrt(1 + s)))
        scale = -root / (1 + 1 / root)
        YtA = Y.mT @ A / (size - 1)
        projected = V.mT @ YtA
        shift = (d.unsqueeze(-2) @ V * root.square().unsqueeze(-2)) @ projected
        return mean + shift + A + (Y @ V * scale.unsqueeze(-2)) @ projected
    s, U = torch.linalg.eigh(Y @ Y.mT / (size - 1))
    root = (1 + s.clamp(min=0)).rsqrt().unsqueeze(-2)
    scaled = U * root
    weights = ((Y @ d.unsqueeze(-1) / (size - 1)).mT @ scaled) @ scaled.mT
    return mean + (weights + scaled @ U.mT) @ A


def rotated_root_update(E: Tensor, Y: Tensor, d: Tensor, Q: Tensor) -> Tensor:
    """Analysis with a random square root: the symmetric one, rotated by a uniform mean-preserving rotation.

    With C = I + Y Y^T / (N - 1) = L L^T, the rows of X = L^-1 A have the analysis covariance, and v = L^T 1 is orthogonal
    to them, because 1^T A = 0. Reflecting v onto the first axis, rotating the others by Q and reflecting the first axis
    onto 1 makes them anomalies again. For uniform Q this has the law of the rotated symmetric root, for a Cholesky
    factor instead of the eigenvectors.

    Args:
        E: Members, (*B, N, d).
        Y: Whitened predicted anomalies, (*B, N, O).
        d: Whitened innovation, (*B, O).
        Q: Uniform orthogonal matrices, (*B, N - 1, N - 1).

    Returns:
        Members, (*B, N, d).
    """
    size = E.shape[-2]
    mean = E.mean(-2, keepdim=True)
    C = Y @ Y.mT / (size - 1)
    C.diagonal(dim1=-2, dim2=-1).add_(1.0)
    L = torch.linalg.cholesky_ex(C)[0]
    projected = Y @ (d.unsqueeze(-1) / (size - 1))
    solved = torch.linalg.solve_triangular(L, torch.cat([E - mean, projected], -1), upper=False)
    X, u = solved.split([E.shape[-1], 1], -1)
    mean = mean + u.mT @ X
    v = L.sum(-2).unsqueeze(-1) * size**-0.5  # of length 1: 1^T C 1 = N
    v[..., :1, :] += torch.where(v[..., :1, :] < 0, -1.0, 1.0)  # away from cancellation
    X = X - v @ ((2 / v.square().sum(-2, keepdim=True)) * (v.mT @ X))
    return reflect(torch.cat([mean * size**0.5, Q @ X[..., 1:, :]], -2))


def centred_noise(Y: Tensor, *, rng: Rng = None) -> Tensor:
    """Whitened perturbations of observations: N(0, I), centred over the members and with unit variance nevertheless.

    Drawn in float32, which is five times faster than float64 and more than a random error needs. Those of values that
    are missing meet columns of zeros in `Y`.

    Args:
        Y: Whitened predicted anomalies, (*B, N, O).
        rng: Generator.

    Returns:
        Draws, shape of `Y`.
    """
    size = Y.shape[-2]
    noise = normal(Y.shape, dtype=torch.float32, rng=rng)
    noise -= noise.mean(-2, keepdim=True)
    noise *= (size / (size - 1)) ** 0.5
    return noise.to(Y)
