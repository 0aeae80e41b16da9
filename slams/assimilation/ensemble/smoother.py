"""Ensemble Kalman smoothers over a window of the last steps: one pass, and iterated."""

from typing import Literal, Unpack

import torch
from torch import Tensor

from slams.assimilation.ensemble.inflation import Inflation, InflationKeywords, random_rotation
from slams.assimilation.ensemble.kalman import (
    Departures,
    EnsembleKalman,
    centred_noise,
    perturbed_update,
    square_root_update,
)
from slams.assimilation.filter import Filter
from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, generator
from slams.observation.observation import Observation
from slams.systems.base import Dynamics

Variant = Literal["enkf", "etkf"]
Output = Literal["filter", "smoother"]


class EnKS(EnsembleKalman):
    """Ensemble Kalman smoother of fixed lag: the analysis of each step also corrects the `lag` steps before it.

    The past members get the same combination of members as the present ones: with the transform of the
    analysis, E_j <- mean_j + (w + T) A_j for j = k - lag, ..., k. Inflation acts on the present alone: on the
    past it would be repeated with every observation (Lorenz-96, 40 members, lag 20: error 0.147 in place of
    0.126). The spread of long lags is therefore too small, by half in that case. A rotation is one for the
    whole window.

    Args:
        dynamics: The model.
        lag: Steps (of the model) by which the output lags behind the newest observation; 0 is the filter.
        variant: "enkf" perturbs observations, "etkf" takes the symmetric square root.
        common: Keywords of `InflationKeywords`.

    Raises:
        ValueError: If `lag` is negative or the variant unknown.

    Source:
        Evensen & van Leeuwen (2000), doi:10.1175/1520-0493(2000)128<1852:AEKSFN>2.0.CO;2, section 4.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        lag: int,
        variant: Variant = "enkf",
        **common: Unpack[InflationKeywords],
    ) -> None:
        super().__init__(
            dynamics,
            **common,
        )
        _check(lag, variant)
        self.lag = self.delay = lag
        self.variant = variant

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """Advance, and keep the present as the newest of the past, (*B, N, P, *S) with P up to `lag`."""
        if self.lag:
            axis = self._axis
            past, newest = memory.carry.get("past"), x.unsqueeze(axis)
            if past is not None:
                kept = min(past.shape[axis], self.lag - 1)
                newest = torch.cat([past.narrow(axis, past.shape[axis] - kept, kept), newest], axis)
            memory.carry["past"] = newest
        return super().forecast(x, memory, rng=rng)

    def update(
        self, E: Tensor, departures: Departures, *, observation: Observation, memory: Memory, rng: Rng = None
    ) -> Tensor:
        """See `EnsembleKalman.update`; the members may be those of several steps side by side."""
        Y, d = departures.Y, departures.d
        if self.variant == "etkf":
            return square_root_update(E, Y, d)
        return perturbed_update(E, Y, d, centred_noise(Y, rng=rng))

    def emit(self, k: int, last: int, x: Tensor, memory: Memory) -> list[tuple[int, Tensor]]:
        """The step that leaves the window; at the end all that is in it."""
        past = memory.carry.get("past")
        window = [x] if past is None else [*past.unbind(self._axis), x]
        return _leaving(k, last, window, self.lag)


class IEnKS(Filter):
    """Iterative ensemble Kalman smoother: a 4-D variational problem in the space of the ensemble.

    The newest observation is fitted by changing the ensemble at the start of a window, x_0 + (w + T) A_0: the
    mean of weights w minimizes (N - 1) / 2 |w|^2 + 1/2 |y - h(M(x_0 + w A_0))|^2 by Gauss-Newton steps, with the
    tangent model that the ensemble, run anew through the window, gives: Y_0 = T^-1 Y, C = (Y_0 Y_0^T + (N - 1) I)^-1,

    w <- w + (d Y_0^T - (N - 1) w) C;  T <- ((N - 1) C)^1/2  ("etkf"),  or
    T <- T + ((e - Y) Y_0^T + (N - 1) (I - T)) C  ("enkf", with perturbations e).

    The window then slides by one step of the model. Every observation is used once. With `lag` 0 and one
    iteration this is the EnKF or ETKF; one iteration costs `lag` steps of the model. The model should have no
    noise: what it has is drawn anew in each iteration.

    Args:
        dynamics: The model.
        lag: Length of the window in steps of the model; at least the time between observations, to iterate.
        iterations: Most Gauss-Newton steps, or the number of assimilations if `mda`.
        variant: "etkf" or "enkf".
        inflation: Factor on the anomalies of the window after the analysis.
        rtps: Relaxation to prior spread, as in `EnsembleKalman`.
        rtpp: Relaxation to prior perturbations, as in `EnsembleKalman`.
        rotate: Random rotation, as in `EnsembleKalman`.
        tolerance: A replicate stops where the mean square change of its weights falls below.
        mda: Assimilate the observation `iterations` times, its error variance multiplied by that number, in
            place of Gauss-Newton steps (multiple data assimilation).
        output: "filter" gives each step as its own observation leaves it, "smoother" as it leaves the window.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If a setting is invalid.

    Source:
        Bocquet & Sakov (2014), doi:10.1002/qj.2236, section 2, each observation assimilated once; "enkf": Raanes,
        Stordal & Evensen (2019), doi:10.5194/npg-26-325-2019, algorithm 1; `mda`: Emerick & Reynolds (2013),
        doi:10.1016/j.cageo.2012.03.011.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        *,
        lag: int = 1,
        iterations: int = 10,
        variant: Variant = "etkf",
        inflation: float = 1.0,
        rtps: float = 0.0,
        rtpp: float = 0.0,
        rotate: bool = False,
        tolerance: float = 1e-5,
        mda: bool = False,
        output: Output = "filter",
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        _check(lag, variant)
        if iterations < 1 or not tolerance >= 0:
            raise InvalidValueError(
                f"need iterations >= 1 and tolerance >= 0, got {iterations} and {tolerance}; one iteration "
                "is a smoother that is linear in the observation."
            )
        if output not in ("filter", "smoother"):
            raise InvalidValueError(f'output must be "filter" or "smoother", got {output!r}.')
        self.lag, self.iterations, self.variant = lag, iterations, variant
        self.inflation = Inflation(inflation, rtps=rtps, rtpp=rtpp)
        self.rotate, self.tolerance, self.mda, self.output = rotate, tolerance, mda, output
        self.delay = lag if output == "smoother" else 0

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """A window of one step."""
        memory.carry["window"] = x.unsqueeze(self._axis)
        return x

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """Slide the window, and run its first ensemble through it: (*B, N, W, *S) with W up to lag + 1."""
        axis = self._axis
        window = memory.carry["window"]
        if self.failure == "replace":  # members that the loop replaced start anew in the whole window
            replaced = (window.select(axis, -1) != x).flatten(axis + 1).any(-1)
            replaced = replaced.reshape(*replaced.shape, *(1,) * -axis)
            window = torch.where(replaced, x.unsqueeze(axis), window)
        first, steps = window.select(axis, 0), window.shape[axis]
        if steps > self.lag:
            first = self.dynamics.advance(first, memory.step - steps, rng=rng)
        steps = min(steps, self.lag)
        window = self._run(first, memory.step - steps, steps, rng)
        memory.carry["window"] = window
        return window.select(axis, -1)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; "iterations" is in the diagnostics."""
        memory, rng = Memory() if memory is None else memory, generator(rng, "analysis")
        window = memory.carry.get("window", forecast.unsqueeze(self._axis))
        E = window.flatten(self._axis)
        updated = self._iterate(E, window, observation, memory, rng)
        updated = self.inflation.relax(updated, E)
        if self.rotate:
            updated = random_rotation(updated, rng=rng)
        memory.carry["window"] = updated.reshape(window.shape)
        return memory.carry["window"].select(self._axis, -1)

    def emit(self, k: int, last: int, x: Tensor, memory: Memory) -> list[tuple[int, Tensor]]:
        """This step, or the one that leaves the window; at the end all that is in it."""
        if self.output == "filter":
            return [(k, x)]
        return _leaving(k, last, list(memory.carry["window"].unbind(self._axis)), self.lag)

    def _iterate(
        self, E: Tensor, window: Tensor, observation: Observation, memory: Memory, rng: Rng
    ) -> Tensor:
        """Analysis of the window, all its steps side by side, (*B, N, W d), before inflation and rotation."""
        size, width = E.shape[-2], E.shape[-1] // window.shape[self._axis]
        mean = E.mean(-2, keepdim=True)
        A = E - mean
        w = E.new_zeros(*E.shape[:-2], 1, size)
        T = torch.eye(size, dtype=E.dtype, device=E.device).expand(*E.shape[:-2], size, size)
        active = torch.ones(E.shape[:-2], dtype=torch.bool, device=E.device)
        count, result, noise = torch.zeros_like(w[..., 0, 0]), E, torch.empty(0)
        for i in range(self.iterations):
            if i:
                first = (mean + (w + T) @ A)[..., :width].unflatten(-1, self.dynamics.state_shape)
                steps = window.shape[self._axis] - 1
                window = self._run(first, memory.step - steps, steps, rng)
            departures = Departures.of(window.select(self._axis, -1), observation)
            Y, d = departures.Y, departures.d.unsqueeze(-2)
            if i == 0:
                memory.diagnostics["innovation"] = departures.chi2()
            if self.variant == "enkf" and (i == 0 or self.mda):
                noise = centred_noise(Y, rng=rng)
            if self.mda:
                after = annealing_step(Y, d, w, T, self.iterations, noise if self.variant == "enkf" else None)
            else:
                after = gauss_newton_step(Y, d, w, T, noise if self.variant == "enkf" else None)
            change = after[0] - w
            # linear beyond the last run: no further run, and one iteration is the EnKF
            updated = window.flatten(self._axis) + (change + after[1] - T) @ A
            go = active[..., None, None]
            result, count = torch.where(go, updated, result), count + active
            w, T = torch.where(go, after[0], w), torch.where(go, after[1], T)
            if not self.mda:
                # not below rather than above: weights that are not finite must not stop the others
                active = active & (change.square().mean((-2, -1)) >= self.tolerance)
                if not bool(active.any()):
                    break
        memory.diagnostics["iterations"] = count
        return result

    def _run(self, first: Tensor, start: int, steps: int, rng: Rng) -> Tensor:
        """The first ensemble of a window from step `start` on, (*B, N, *S) -> (*B, N, 1 + steps, *S)."""
        states = [first]
        for k in range(start, start + steps):
            states.append(self.dynamics.advance(states[-1], k, rng=rng))
        return torch.stack(states, self._axis)


def gauss_newton_step(
    Y: Tensor, d: Tensor, w: Tensor, T: Tensor, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One Gauss-Newton step of the weights of the mean, and the transform of the anomalies there.

    Args:
        Y: Whitened anomalies of the predictions of x_0 + (w + T) A_0, (*B, N, O).
        d: Whitened innovation of their mean, (*B, 1, O).
        w: Weights of the mean, (*B, 1, N).
        T: Transform of the anomalies, (*B, N, N).
        noise: Perturbations of the whitened observations, (*B, N, O), centred; None for the square root.

    Returns:
        w and T after the step.

    Source:
        Bocquet & Sakov (2012), doi:10.5194/npg-19-383-2012, eqs. 14-17; with `noise`: Raanes, Stordal & Evensen
        (2019), doi:10.5194/npg-26-325-2019, eqs. 13-19.
    """
    scale = Y.shape[-2] - 1.0
    Y0 = torch.linalg.solve(T, Y)
    slope = d @ Y0.mT - scale * w
    precision = Y0 @ Y0.mT
    if noise is None:
        s, V = torch.linalg.eigh(precision)
        inverse = 1 / (s.clamp(min=0) + scale).unsqueeze(-2)
        return w + (slope @ V * inverse) @ V.mT, (V * (scale * inverse).sqrt()) @ V.mT
    eye = torch.eye(Y.shape[-2], dtype=Y.dtype, device=Y.device)
    slopes = torch.cat([slope, (noise - Y) @ Y0.mT + scale * (eye - T)], -2)
    factor = torch.linalg.cholesky(precision + scale * eye)
    change = torch.cholesky_solve(slopes.mT, factor).mT
    return w + change[..., :1, :], T + change[..., 1:, :]


def annealing_step(
    Y: Tensor, d: Tensor, w: Tensor, T: Tensor, times: int, noise: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One of `times` assimilations of the same observation with `times` its error variance.

    Args:
        Y: Whitened anomalies, as in `gauss_newton_step`.
        d: Whitened innovation, as in `gauss_newton_step`.
        w: Weights of the mean, as in `gauss_newton_step`.
        T: Transform of the anomalies, as in `gauss_newton_step`.
        times: Number of assimilations.
        noise: Observation noise, as in `gauss_newton_step`, drawn anew for each.

    Returns:
        w and T after it.

    Source:
        Emerick & Reynolds (2013), doi:10.1016/j.cageo.2012.03.011, eq. 9, in weights.
    """
    scale = times * (Y.shape[-2] - 1.0)
    s, V = torch.linalg.eigh(Y @ Y.mT)
    inverse = 1 / (s.clamp(min=0) + scale).unsqueeze(-2)
    w = w + (d @ Y.mT @ V * inverse) @ V.mT @ T
    if noise is None:
        return w, (V * (scale * inverse).sqrt()) @ V.mT @ T
    return w, T + ((times**0.5 * noise - Y) @ Y.mT @ V * inverse) @ V.mT @ T


def _leaving(k: int, last: int, window: list[Tensor], lag: int) -> list[tuple[int, Tensor]]:
    """Steps of a window ending at k that no later observation will change."""
    first = k - len(window) + 1
    count = len(window) if k == last else int(len(window) == lag + 1)
    return [(first + j, window[j]) for j in range(count)]


def _check(lag: int, variant: str) -> None:
    if lag < 0:
        raise InvalidValueError(f"lag is a number of steps >= 0, got {lag}; 0 is the filter.")
    if variant not in ("enkf", "etkf"):
        raise InvalidValueError(
            f'variant must be "enkf" (perturbed) or "etkf" (square root), got {variant!r}.'
        )
