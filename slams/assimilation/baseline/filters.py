"""The floor of every table: what is known without observations, without a model, or without either's error."""

from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.filter import Filter
from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.assimilation.variational.linearized import (
    GaussianFilter,
    as_matrix,
    basis,
    chi2,
    kalman_update,
    root,
    tangents,
)
from slams.core.covariance import Covariance
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal
from slams.observation.observation import Observation
from slams.systems.base import Dynamics


class FreeRun(Filter):
    """The ensemble forecast without assimilation; innovations are still reported."""

    least = 1
    follows = False

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; the forecast as it is."""
        _report(forecast, observation, memory)
        return forecast


class Persistence(FreeRun):
    """The latest observation, raw, until the next: no model at all.

    x_i <- x_i + H^+ (y + e_i - h(x_i)), e_i ~ N(0, R), centred over the members.

    H^+ is the pseudo-inverse of the derivative of h at the mean. What is observed directly so takes the value
    observed; what is not keeps the first guess, or its last observed value; what is observed as a mixture is
    changed as little as the value asks. The spread is the error of the values when they came in; that they age is
    not in it.
    """

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; nothing moves."""
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        _report(forecast, observation, memory)
        residual = observation.innovation(forecast, members=True)
        draws = observation.noise.sample(*residual.shape[:-1], rng=rng).to(residual)
        residual = residual + (draws - draws.mean(-2, keepdim=True)) * observation.seen.unsqueeze(-2)
        HT = _derivatives(observation, forecast, len(self.dynamics.state_shape))
        return forecast + (residual @ _pseudo_inverse(HT).mT).reshape(forecast.shape)


class Nudging(FreeRun):
    """Relaxation towards the observations: after every forecast x <- x + gain K_0 (y - h(x)).

    K_0 is the pseudo-inverse of the derivative of h at the mean, so that one analysis takes off the share `gain` of the
    departure whatever h is; with `adjoint` it is that derivative's transpose, which needs no solution and for a
    selection of variables is the same. For a relaxation time T, the gain is (time between observations) / T.
    The members draw together, as all are nudged to the same values: their spread is too small.

    Args:
        dynamics: The model.
        gain: Share of the departure that one analysis takes off, in (0, 1] with the pseudo-inverse.
        adjoint: Use the transpose.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If `gain` is not positive, or above 1 with the pseudo-inverse.

    Source:
        Hoke & Anthes (1976), doi:10.1175/1520-0493(1976)104<1551:TIONMB>2.0.CO;2, eq. 2.1.
    """

    follows = True

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        gain: float,
        adjoint: bool = False,
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if not gain > 0 or (gain > 1 and not adjoint):
            raise InvalidValueError(
                f"gain must lie in (0, 1], got {gain}; above 1 an analysis overshoots the values."
            )
        self.gain = gain
        self.adjoint = adjoint

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        _report(forecast, observation, memory)
        residual = observation.innovation(forecast, members=True)
        HT = _derivatives(observation, forecast, len(self.dynamics.state_shape))
        K = HT if self.adjoint else _pseudo_inverse(HT)
        return forecast.add((residual @ K.mT).reshape(forecast.shape), alpha=self.gain)


class Climatology(GaussianFilter):
    """The long-term distribution N(mean, covariance), whatever is observed.

    Args:
        dynamics: Model, for the shape of the state only.
        mean: Climatological mean, (*S), or one for each replicate, (*B, *S).
        covariance: Matrix (d, d) over the flattened state, variances (d), or a `Covariance`.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If the moments do not fit the state.
    """

    follows = False

    def __init__(
        self,
        dynamics: Dynamics,
        mean: Tensor,
        covariance: Tensor | Covariance,
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        event = len(dynamics.state_shape)
        if mean.ndim < event or tuple(mean.shape[mean.ndim - event :]) != tuple(dynamics.state_shape):
            raise InvalidValueError(
                f"mean has shape {tuple(mean.shape)}, but a state is {tuple(dynamics.state_shape)}; give the mean "
                "of a long run over time."
            )
        self.mean = mean
        self.covariance = as_matrix(covariance, dynamics)
        self._root = root(self.covariance)

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`."""
        mean = self.mean.to(x).unsqueeze(self._axis)
        return self._reset(mean.expand(*x.shape[: self._axis], 1, *self.dynamics.state_shape), memory)

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; the climate is what it is."""
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; the forecast as it is."""
        memory = Memory() if memory is None else memory
        d, HT = self._look(forecast, observation)
        P = self._spread_out(self.covariance, forecast)
        memory.diagnostics["innovation"] = chi2(observation, d, ((P @ HT) * HT).sum(-2))
        return forecast

    def members(self, x: Tensor, memory: Memory, size: int, *, rng: Rng = None) -> Tensor:
        """See `Filter.members`."""
        batch, event = x.shape[: self._axis], self.dynamics.state_shape
        draws = normal((*batch, size, self._root.shape[-1]), like=x, rng=rng) @ self._root.to(x).mT
        return x + draws.reshape(*batch, size, *event)

    def _reset(self, x: Tensor, memory: Memory) -> Tensor:
        """Reset to the climatology."""
        memory.carry["covariance"] = self._spread_out(self.covariance, x)
        return x


class OptInterp(Climatology):
    """Each observation alone, joined with the climate: x_a = m + K (y - h(m)), K = B H^T (H B H^T + R)^-1.

    Without observations the posterior is the climatology. Steps are independent, so that no model is needed. H is the
    derivative of h at the mean, and the posterior covariance is (I - K H) B. Mean and covariance are usually those of
    the system of the truth itself, an oracle.

    Args:
        dynamics: Model, for the shape of the state only.
        mean: Climatological mean, as in `Climatology`.
        covariance: Covariance B, as in `Climatology`.
        common: Keywords of `FilterKeywords`.

    Source:
        Gandin (1963), Objective Analysis of Meteorological Fields; Daley (1991), Atmospheric Data Analysis,
        eq. 4.2.10.
    """

    follows = True

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; back to the climate."""
        return self.start(x, memory)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; the forecast is not looked at."""
        memory = Memory() if memory is None else memory
        x = self.start(forecast, memory)
        d, HT = self._look(x, observation)
        P = memory.carry["covariance"]
        memory.diagnostics["innovation"] = chi2(observation, d, ((P @ HT) * HT).sum(-2))
        increment, memory.carry["covariance"] = kalman_update(P, HT, d)
        return x + increment.reshape(x.shape)

    def members(self, x: Tensor, memory: Memory, size: int, *, rng: Rng = None) -> Tensor:
        """See `Filter.members`."""
        return GaussianFilter.members(self, x, memory, size, rng=rng)


def _report(x: Tensor, observation: Observation, memory: Memory | None) -> None:
    """Innovation of an ensemble; a single member is taken to be certain."""
    if memory is None:
        return
    departures = Departures.of(x, observation)
    alone = departures.Y.shape[-2] == 1
    variance = torch.zeros_like(departures.d)
    memory.diagnostics["innovation"] = (
        chi2(observation, departures.d, variance) if alone else departures.chi2()
    )


def _derivatives(observation: Observation, x: Tensor, event: int) -> Tensor:
    """H^T at the ensemble mean in the units of the values, rows of what was not seen zero; (*B, d, O)."""
    mean = x.mean(-1 - event, keepdim=True)

    def residual(z: Tensor) -> Tensor:
        return observation.innovation(z, members=True)

    return -tangents(residual, mean, basis(mean, event), event)[1]


def _pseudo_inverse(HT: Tensor) -> Tensor:
    """H^+ = H^T (H H^T)^+, (*B, d, O); zero columns stay zero."""
    size, count = HT.shape[-2:]
    gram = HT.mT @ HT
    if count <= size:  # a factor is 20 times cheaper than singular values, where H has full rank
        blind = gram.diagonal(dim1=-2, dim2=-1) == 0
        filled = gram + torch.diag_embed(blind.to(gram.dtype))
        factor, info = torch.linalg.cholesky_ex(filled)
        pivots = factor.diagonal(dim1=-2, dim2=-1).amin() > 1e-3 * filled.amax().sqrt()
        if not bool(info.any()) and bool(pivots):
            return torch.cholesky_solve(HT.mT, factor).mT
    return torch.linalg.pinv(HT.mT)
