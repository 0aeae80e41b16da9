"""Variational methods: the most likely state, or window of states, under a static background error."""

from collections.abc import Iterator
from typing import Unpack

import torch
from torch import Tensor

from slams.assimilation.keywords import FilterKeywords
from slams.assimilation.memory import Memory
from slams.assimilation.variational.linearized import (
    GaussianFilter,
    as_matrix,
    chi2,
    deterministic,
    kalman_update,
    model_noise,
    moved,
    root,
    whitened_residual,
)
from slams.assimilation.variational.minimize import Solver, gauss_newton, hessian_factor
from slams.assimilation.variational.window import WindowProblem
from slams.core.covariance import Covariance
from slams.core.errors import InvalidValueError
from slams.core.random import Rng
from slams.observation.observation import Observation
from slams.systems.base import Dynamics


class ThreeDVar(GaussianFilter):
    """3D-Var: x_a = argmin 1/2 |x - x_f|^2_{B^-1} + 1/2 |y - h(x)|^2_{R^-1}, B the same in every cycle.

    Nonlinear h are linearized anew in each Gauss-Newton step. The posterior of an analysis is N(x_a, J''^-1); that of
    a forecast is N(M(x_a), B), independent of the forecast's length. The spread is calibrated if `scale` fits the
    interval between observations.

    Args:
        dynamics: The model, without its noise.
        covariance: Covariance of the climate, (d, d), (d) variances, or a `Covariance`.
        scale: B = scale x covariance.
        iterations: Most Gauss-Newton steps.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If the covariance does not fit the state or `scale` is not positive.

    Source:
        Lorenc (1986), doi:10.1002/qj.49711247414, eq. 3; static B from the climate: Parrish & Derber (1992),
        doi:10.1175/1520-0493(1992)120<1747:TNMCSS>2.0.CO;2.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        covariance: Tensor | Covariance,
        *,
        scale: float = 1.0,
        iterations: int = 10,
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if not scale > 0 or iterations < 1:
            raise InvalidValueError(
                f"scale must be positive and iterations at least 1, got {scale} and {iterations}."
            )
        self.background = scale * as_matrix(covariance, dynamics)
        self.iterations = iterations
        self._root = root(self.background)

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`."""
        memory.carry["covariance"] = self._spread_out(self.background, x)
        return self._mean_only(x)

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; the mean moves, the covariance is B again."""
        memory.carry["covariance"] = self._spread_out(self.background, x)
        return deterministic(self.dynamics, memory.step - 1)(x)

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`."""
        memory = Memory() if memory is None else memory
        x, B = self._mean_only(forecast), self._spread_out(self.background, forecast)
        d, HT = self._look(x, observation)
        memory.diagnostics["innovation"] = chi2(observation, d, ((B @ HT) * HT).sum(-2))
        increment, P = kalman_update(B, HT, d)
        analysis = x + increment.reshape(x.shape)
        expected = d - (increment.unsqueeze(-2) @ HT).squeeze(-2)
        error = whitened_residual(observation, analysis).squeeze(-2) - expected
        straight = 100 * torch.finfo(x.dtype).eps * (1 + d.abs().amax())
        if not bool(error.abs().amax() <= straight):  # h bends: one step was not enough
            analysis, P = self._iterate(x, observation)
        memory.carry["covariance"] = P
        return analysis

    def _iterate(self, x: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """Minimum and inverse Hessian for a nonlinear h."""
        A = self._root.to(x)

        def state(control: Tensor) -> Tensor:
            return x + (control @ A.mT).unflatten(-1, self.dynamics.state_shape)

        def residual(control: Tensor) -> Tensor:
            return whitened_residual(observation, state(control))

        origin = x.new_zeros(*x.shape[: self._axis], A.shape[-1])
        c = gauss_newton(residual, origin, iterations=self.iterations).control
        factor = hessian_factor(residual, c)
        half = torch.linalg.solve_triangular(factor, A.mT.expand_as(factor), upper=False)
        return state(c.unsqueeze(-2)), half.mT @ half


class FourDVar(GaussianFilter):
    """4D-Var over windows one after the other; every state of a window is fitted to all that was seen in it.

    The first guess of a window is the forecast from the end of the one before, its error always B; see
    `WindowProblem` for the cost. Output lags by up to a window. The covariance comes from the Hessian, that of the first
    guess, against which innovations are held, from the tangent model. Within the loop an analysis leaves the
    first guess as it is, so that `explain` shows no increment: the window is fitted as a whole at its end.

    Args:
        dynamics: The model, without its noise; one that varies in time is for `weak_constraint`.
        covariance: Covariance of the climate, (d, d), (d) variances, or a `Covariance`.
        window: Steps of a window.
        scale: B = scale x covariance.
        model_error: Q of a step: weak constraint. None is the strong one; "model" takes that of the
            model's own noise.
        iterations: Most Gauss-Newton steps.
        solver: Linear solver, as in `gauss_newton`.
        common: Keywords of `FilterKeywords`.

    Raises:
        ValueError: If a covariance does not fit, `window` or `iterations` is below 1, or the model has no noise
            to take.

    Source:
        Le Dimet & Talagrand (1986), doi:10.1111/j.1600-0870.1986.tb00459.x; Tremolet (2006), doi:10.1256/qj.05.224.
    """

    def __init__(
        self,
        dynamics: Dynamics,
        covariance: Tensor | Covariance,
        *,
        window: int,
        scale: float = 1.0,
        model_error: Tensor | Covariance | str | None = None,
        iterations: int = 10,
        solver: Solver = "auto",
        **common: Unpack[FilterKeywords],
    ) -> None:
        super().__init__(dynamics, **common)
        if not scale > 0 or iterations < 1 or window < 1:
            raise InvalidValueError(
                "scale must be positive, window and iterations at least 1, got "
                f"{scale}, {window} and {iterations}."
            )
        self.window, self.iterations, self.solver = window, iterations, solver
        self.delay = window - 1
        self.background = scale * as_matrix(covariance, dynamics)
        self.model_error = _model_error(model_error, dynamics)

    def start(self, x: Tensor, memory: Memory) -> Tensor:
        """See `Filter.start`."""
        return self._open(self._mean_only(x), memory)

    def forecast(self, x: Tensor, memory: Memory, *, rng: Rng = None) -> Tensor:
        """See `Filter.forecast`; after the end of a window, from its analysis."""
        end = memory.carry.pop("end", None)
        if end is not None:
            return self._open(deterministic(self.dynamics, memory.step - 1)(end), memory)
        x, P = moved(self.dynamics, x, memory.carry["covariance"], memory.step - 1)
        memory.carry["covariance"] = P if self.model_error is None else P + self.model_error.to(P)
        return x

    def analyse(
        self, forecast: Tensor, observation: Observation, *, rng: Rng = None, memory: Memory | None = None
    ) -> Tensor:
        """See `Filter.analyse`; only looks, as the window is fitted at its end."""
        memory = Memory() if memory is None else memory
        return self._compare(forecast, observation, memory)[0]

    def emit(self, k: int, last: int, x: Tensor, memory: Memory) -> Iterator[tuple[int, Tensor]]:
        """See `Filter.emit`; one step at a time, its covariance in the memory while it is looked at."""
        within = k % self.window
        if within < self.window - 1 and k < last:
            return
        assert memory.observations is not None
        seen = [memory.observations.step(j) for j in range(k - within, k + 1)]
        background = memory.carry["background"].squeeze(self._axis)
        first = k - within
        problem = WindowProblem(
            self.dynamics, seen, background, self.background, self.model_error, first=first
        )
        done = problem.solve(iterations=self.iterations, solver=self.solver)
        assert done.covariance is not None
        axis = self._axis
        memory.carry["end"] = done.states.narrow(axis, within, 1)
        for j in range(within + 1):
            memory.carry["covariance"] = done.covariance[..., j, :, :]
            yield k - within + j, done.states.narrow(axis, j, 1)

    def _open(self, x: Tensor, memory: Memory) -> Tensor:
        """Begin a window with first guess x, (*B, 1, *S)."""
        memory.carry["background"] = x
        memory.carry["covariance"] = self._spread_out(self.background, x)
        return x


def _model_error(given: Tensor | Covariance | str | None, dynamics: Dynamics) -> Tensor | None:
    """Q of one step as a matrix.

    Raises:
        ValueError: If the model's own is asked for and it has none.
    """
    if not isinstance(given, str):
        return None if given is None else as_matrix(given, dynamics, "model_error")
    noise = model_noise(dynamics)
    if given != "model" or noise is None:
        raise InvalidValueError(
            f'model_error must be a covariance, None or "model", which needs a model with noise; got {given!r}.'
        )
    return as_matrix(noise, dynamics, "model_error")
