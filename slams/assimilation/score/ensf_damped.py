"""Ensemble score filter as published: damped likelihood, reverse diffusion of noise; and its single-member shortcut."""

import math
from itertools import pairwise
from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import InflationKeywords
from slams.assimilation.ensemble.kalman import Departures, EnsembleKalman
from slams.assimilation.memory import Memory
from slams.assimilation.score.ensf import refuse_collapsed, refuse_infinite
from slams.assimilation.score.likelihood import Likelihood
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator, normal, permutation
from slams.diffusion.exact.kernel_mixture import KernelMixture
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

_MEMORY = 4.0  # relaxations after which what a step did is forgotten: e^-8 of a variance
_SHORTEST = 2**-14  # part of a likelihood's step below which it is taken whatever its error


class DampedEnSF(EnsembleKalman):
    """Score of the forecast mixture plus a likelihood damped in pseudo-time, integrated to its fine-step limit.

    In pseudo-time t from 1, noise, to 0, with alpha = 1 - (1 - eps_alpha) t and sigma^2 = eps_beta + (1 - eps_beta) t,

        dz = [b z - g^2 (S(z, t) + (1 - t) grad log p(y | z))] dt + g dW,    b = alpha' / alpha,
        S = sum_j w_j (alpha x_j - z) / sigma^2,    g^2 = (sigma^2)' - 2 b sigma^2,
        w = softmax(-|z - alpha x_j|^2 / (2 sigma^2)),

    or half the score terms and no dW ("ode"). The damping is no likelihood of z_t: the result is biased
    whatever the steps (a unit Gaussian, y = 2 with unit error: mean 1.03 and deviation 0.67, for 1 and 0.71). With
    eps_beta = 0 the limit of fine steps draws from the members themselves.

    A step in z / alpha is a half step of the likelihood, one of the mixture that is exact for each component, and another
    half step. The likelihood's is the flow dz/dl = grad log p(y | z), l the integral of g^2 (1 - t), by an exponential
    step that is exact for linear operators acting on single variables and is shortened until its error is below
    `tolerance`. So however stiff g^2 (1 / sigma^2 + (1 - t) H^T R^-1 H) is, no step is unstable, and the number of steps
    follows from `tolerance` and the range of noise.

    Args:
        dynamics: The model.
        eps_alpha: Signal left at t = 1, in (0, 1).
        eps_beta: Variance left at t = 0, in [0, 1), in units of `scale`: the width of the mixture's components.
        solver: "sde" or "ode".
        tolerance: Error accepted, in ensemble deviations; steps are shortened with its root.
        scale: "spread" to work in deviations from the ensemble's mean divided by its standard deviations; or a factor
            on the state, 1 as in the paper.
        batch: Members drawn anew for the score of every step; None for all.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If a setting is out of range.

    Source:
        Bao, Zhang & Zhang (2024), doi:10.1016/j.cma.2024.117447, eqs. 10-21; splitting: Strang (1968),
        doi:10.1137/0705041; exponential step: Hochbruck & Ostermann (2010), doi:10.1017/S0962492910000048, section 2.4.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        eps_alpha: float = 0.05,
        eps_beta: float = 0.025,
        solver: Literal["sde", "ode"] = "sde",
        tolerance: float = 0.02,
        scale: Literal["spread"] | float = "spread",
        batch: int | None = None,
        **common: Unpack[InflationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            **common,
        )
        _check_schedule(eps_alpha, eps_beta)
        if solver not in ("sde", "ode"):
            raise InvalidValueError(f'solver must be "sde" or "ode", got {solver!r}.')
        if not 0 < tolerance < 1:
            raise InvalidValueError(f"the tolerance must lie between 0 and 1, got {tolerance}.")
        if scale != "spread" and not (isinstance(scale, int | float) and scale > 0):
            raise InvalidValueError(
                f'scale must be "spread" or a positive factor on the state, got {scale!r}.'
            )
        if batch is not None and batch < 1:
            raise InvalidValueError(f"a batch needs at least one member, got {batch}; None takes all.")
        self.eps_alpha, self.eps_beta = eps_alpha, eps_beta
        self.solver = solver
        self.tolerance = tolerance
        self.scale = scale
        self.batch = batch

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`; diagnostics "steps" and "gradients", of the likelihood, both (*B).

        Raises:
            FloatingPointError: If the ensemble has no spread, or the likelihood is not finite.
        """
        mean = E.mean(-2, keepdim=True)
        refuse_collapsed(E - mean, departures, type(self).__name__, memory.step)
        spread = E.std(-2, keepdim=True)
        if self.scale == "spread":
            shift, unit = mean, torch.where(spread > 0, spread, 1.0)
        else:
            shift, unit = torch.zeros_like(mean), torch.ones_like(mean) / self.scale
        likelihood = Likelihood(observation, self.dynamics.state_shape, shift, unit)
        members = (E - shift) / unit
        steepest = float(likelihood.curvature(members).max())
        levels = self._levels(float((spread / unit).square().mean().sqrt()), steepest)
        pull = _Pull(likelihood, self.tolerance * float((spread / unit).max()))
        x = self._reverse(members, levels, pull, rng)
        memory.diagnostics["steps"] = torch.full_like(E[..., 0, 0], len(levels) - 1)
        memory.diagnostics["gradients"] = torch.full_like(E[..., 0, 0], pull.count)
        return shift + unit * x

    def _reverse(self, members: Tensor, levels: list[float], pull: "_Pull", rng: Rng) -> Tensor:
        """From noise to the analysis, both in working units, (*B, N, d)."""
        share = 1.0 if self.solver == "sde" else 0.5
        strengths = [share * self._strength(high, low) for high, low in pairwise(levels)]
        x = normal(members.shape, like=members, rng=rng) / self.eps_alpha
        before = 0.0
        for k, taus in enumerate(pairwise(levels)):
            x = self._pulled(x, taus[0], 0.5 * (before + strengths[k]), pull)
            mixture = self._mixture(members, rng)
            x = mixture.flow(x, list(taus)) if share < 1 else _bridge(mixture, x, *taus, rng)
            before = strengths[k]
        x = self._pulled(x, levels[-1], 0.5 * before, pull)
        return self._mixture(members, rng).near(x, levels[-1])[0] if self.eps_beta == 0 else x

    def _pulled(self, x: Tensor, tau: float, strength: float, pull: "_Pull") -> Tensor:
        alpha = self._alpha(tau)[0]
        return pull(alpha * x, strength) / alpha

    def _mixture(self, members: Tensor, rng: Rng) -> KernelMixture:
        """The forecast as points, all or some of the members."""
        size = members.shape[-2]
        if self.batch is not None and self.batch < size:
            chosen = permutation(size, rng=rng)[: self.batch]
            members = members[..., chosen.to(members.device), :]
        return KernelMixture(
            members, torch.zeros_like(members[..., :1, :]), torch.zeros_like(members[..., 0])
        )

    def _levels(self, spread: float, steepest: float) -> list[float]:
        """tau = sigma / alpha from t = 1 to 0; without eps_beta to a tenth of the tolerance.

        Steps are of equal ratio where only the mixture acts. What the likelihood does at a curvature D in a step is
        forgotten by the end as exp(-int (1 / s + alpha^2 (1 - t) D) ds), s = tau^2: steps resolve every D, up to the
        steepest, that is remembered.

        Args:
            spread: Spread of the ensemble, in working units.
            steepest: Largest curvature of the likelihood.
        """
        largest = 1 / self.eps_alpha
        tau = math.sqrt(self.eps_beta) if self.eps_beta else 0.1 * self.tolerance * spread
        levels, change, pulled, passed = [tau], 2 * math.sqrt(self.tolerance), 0.0, 0.0
        while tau < largest:
            alpha, t = self._alpha(tau)
            rate = (alpha * tau) ** 2 * (1 - t)
            remembered = max(0.0, _MEMORY - passed)
            D = min(steepest, remembered / pulled) if pulled else steepest
            step = change / (1 + D * rate)
            pulled, passed = pulled + rate * step, passed + step
            tau = min(largest, tau * math.exp(step / 2))
            levels.append(tau)
        return levels[::-1]

    def _alpha(self, tau: float) -> tuple[float, float]:
        """alpha and t where sigma / alpha = tau: the smaller root of sigma^2 = tau^2 alpha^2."""
        slope, grow, s = 1 - self.eps_alpha, 1 - self.eps_beta, tau * tau
        half = 2 * s * slope + grow
        t = (
            2
            * (s - self.eps_beta)
            / (half + math.sqrt(max(0.0, half**2 - 4 * s * slope**2 * (s - self.eps_beta))))
        )
        t = min(1.0, max(0.0, t))
        return 1 - slope * t, t

    def _strength(self, high: float, low: float) -> float:
        """Integral of g^2 (1 - t) dt = alpha^2 (1 - t) d(tau^2) between two levels, by Simpson's rule in log tau."""
        values = []
        for tau in (high, math.sqrt(high * low), low):
            alpha, t = self._alpha(tau)
            values.append(2 * (alpha * tau) ** 2 * (1 - t))
        return math.log(high / low) * (values[0] + 4 * values[1] + values[2]) / 6


class SingleMemberEnSF(EnsembleKalman):
    """The form that codes built on the ensemble score filter use: member j is drawn with its own score only.

    z <- z - dt [b z - g^2 ((alpha x_j - z) / sigma^2 + (1 - t) grad log p(y | z))] + g dt^1/2 w, K steps dt = 1 / K.

    With a single component the score determines the analysis: x_j. What moves it towards y is that the last step, at
    t = dt, is too long for a stiffness of 1 / dt, so that the gain depends on K and not on the spread of the ensemble:
    with eps_alpha = 0.01, error 0.1 and 100 steps the analysis is 0.633 x_j + 0.367 y. Kept to compare with, not to use.

    Args:
        dynamics: The model.
        eps_alpha: Signal left at t = 1, in (0, 1).
        eps_beta: Variance left at t = 0, in [0, 1).
        steps: K.
        scale: Factor on the state while it is sampled.
        error: Standard deviation of the observation error in scaled units, in place of that of the observation; None
            keeps it.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If a setting is out of range.

    Source:
        Xiao et al. (2025), LD-EnSF, arXiv:2411.19305, released code.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        eps_alpha: float = 0.01,
        eps_beta: float = 0.0,
        steps: int = 100,
        scale: float = 1.0,
        error: float | None = None,
        **common: Unpack[InflationKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        _check_schedule(eps_alpha, eps_beta)
        if steps < 1 or not scale > 0 or (error is not None and not error > 0):
            raise InvalidValueError(
                f"needs at least one step, a positive scale and error, got {steps}, {scale} and {error}."
            )
        self.eps_alpha, self.eps_beta = eps_alpha, eps_beta
        self.steps = steps
        self.scale = scale
        self.error = error

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`.

        Raises:
            FloatingPointError: If the likelihood is not finite.
        """
        refuse_infinite(departures, type(self).__name__, memory.step)
        zero, one = torch.zeros_like(E[..., :1, :]), torch.ones_like(E[..., :1, :])
        likelihood = Likelihood(observation, self.dynamics.state_shape, zero, one / self.scale)
        factor = 1.0
        if self.error is not None:
            # the gradient is of whitened values: errors of standard deviation `error` in place of 1 / precision^1/2
            factor = (
                float(1 / observation.whiten(torch.ones_like(departures.d)).max() * self.scale / self.error)
                ** 2
            )
        x, dt = self.scale * E, 1 / self.steps
        z = normal(E.shape, like=E, rng=rng)
        for k in range(self.steps):
            t = 1 - k * dt
            alpha = 1 - (1 - self.eps_alpha) * t
            variance = self.eps_beta + (1 - self.eps_beta) * t
            b = -(1 - self.eps_alpha) / alpha
            g2 = 1 - self.eps_beta - 2 * b * variance
            score = (alpha * x - z) / variance + (1 - t) * factor * likelihood.gradient(z)[1]
            z = z - dt * (b * z - g2 * score) + math.sqrt(dt * g2) * normal(E.shape, like=E, rng=rng)
        return z / self.scale


def _bridge(mixture: KernelMixture, x: Tensor, high: float, low: float, rng: Rng) -> Tensor:
    """Draws at noise `low` given those at `high`, exact for points: first which point, then the way towards it.

    x_j + (low / high)^2 (x - x_j) + low (1 - (low / high)^2)^1/2 w,  j with probability w_j(x, high).
    """
    shares = mixture.shares(x, high)
    rng = generator(rng, "bridge")
    index = torch.multinomial(shares.flatten(0, -2).to(rng.device), 1, generator=rng).to(x.device)
    point = mixture.means.gather(-2, index.reshape(*x.shape[:-1], 1).expand_as(x))
    ratio = (low / high) ** 2
    noise = normal(x.shape, like=x, rng=rng)
    return point + ratio * (x - point) + low * math.sqrt(1 - ratio) * noise


class _Pull:
    """Flow of the likelihood's gradient, with the curvature taken along single variables.

    Args:
        likelihood: Likelihood to maximize.
        tolerance: Error accepted in one step, in working units.
    """

    def __init__(self, likelihood: Likelihood, tolerance: float) -> None:
        self.likelihood = likelihood
        self.tolerance = tolerance
        self.count = 0

    def __call__(self, z: Tensor, length: float) -> Tensor:
        """dz/dl = grad log p(y | z) over `length`; (*B, N, d) -> (*B, N, d)."""
        left, step = length, length
        while left > 0:
            step = min(step, left)
            force, D = self.likelihood.gradient(z)[1], self.likelihood.curvature(z)
            first, second = _phi(D * step)
            ahead = z + step * first * force
            change = self.likelihood.gradient(ahead)[1] - force + D * (ahead - z)
            correction = step * second * change
            self.count += 2
            if float(correction.abs().max()) > self.tolerance and step > _SHORTEST * length:
                step *= 0.5
                continue
            z = ahead + correction
            left = 0.0 if step >= left else left - step
            step *= 2
        return z


def _phi(q: Tensor) -> tuple[Tensor, Tensor]:
    """(1 - e^-q) / q and (q - 1 + e^-q) / q^2 for q >= 0."""
    small = q < 1e-3
    safe = torch.where(small, 1.0, q)
    first = torch.where(small, 1 - q / 2, -torch.expm1(-safe) / safe)
    return first, torch.where(small, 0.5 - q / 6, (1 - first) / safe)


def _check_schedule(eps_alpha: float, eps_beta: float) -> None:
    if not 0 < eps_alpha < 1 or not 0 <= eps_beta < 1:
        raise InvalidValueError(
            f"needs eps_alpha in (0, 1) and eps_beta in [0, 1), got {eps_alpha} and {eps_beta}."
        )
