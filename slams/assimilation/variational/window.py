"""One window of 4D-Var: the cost of a trajectory, strong or weak constraint, and its minimum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.variational.linearized import (
    as_matrix,
    basis,
    deterministic,
    root,
    tangents,
    whitened_residual,
)
from slams.assimilation.variational.minimize import Solver, cost, gauss_newton, hessian_factor
from slams.observation.observation import Observation, Observations
from slams.systems.base import Dynamics


@dataclass(frozen=True)
class FittedWindow:
    """The smoothed states of one window.

    Attributes:
        states: Most likely trajectory, (*B, L, *S).
        covariance: Covariance of each state, from the Hessian, (*B, L, d, d); None where it was not computed.
        cost: J at the minimum, (*B); its expectation is half the number of observed values.
    """

    states: Tensor
    covariance: Tensor | None
    cost: Tensor


class WindowProblem:
    """The cost of one window as a function of a control c with prior N(0, I).

    x_0 = x_b + B^1/2 c_0,  x_k+1 = M(x_k) + Q^1/2 c_k+1,
    J(c) = 1/2 |c|^2 + 1/2 sum_k |R_k^-1/2 (y_k - h_k(x_k))|^2.

    Without Q the only control is c_0: strong constraint, a trajectory of the model. With it every step has its own
    model error: weak constraint.

    Args:
        dynamics: Model M, without its noise.
        observations: Observation of each step of the window, None if missing.
        background: Background x_b, (*B, *S).
        covariance: Background covariance B, (d, d) or (*B, d, d).
        model_error: Model-error covariance Q, (d, d), or (L - 1, d, d) by step; None for the strong constraint.
        first: Number of the first step, for a model that varies in time.

    Source:
        Tremolet (2006), doi:10.1256/qj.05.224, eqs. 3 and 6 (model-error forcing).
    """

    def __init__(
        self,
        dynamics: Dynamics,
        observations: Sequence[Observation | None],
        background: Tensor,
        covariance: Tensor,
        model_error: Tensor | None = None,
        first: int = 0,
    ) -> None:
        self.dynamics = dynamics
        self.observations = observations
        self.event = len(dynamics.state_shape)
        self.background = background.unsqueeze(-1 - self.event)
        self.first = first
        self._root = root(covariance.to(background)).mT
        self._kicks: Sequence[Tensor] = ()
        if model_error is not None and bool((model_error != 0).any()):
            kick = root(model_error.to(background)).mT
            steps = len(observations) - 1
            self._kicks = list(kick) if kick.ndim > 2 else [kick] * steps

    @property
    def size(self) -> int:
        """Number of controls K."""
        return self._root.shape[-1] * (1 + len(self._kicks))

    def origin(self) -> Tensor:
        """The control of the background, (*B, K): zero."""
        batch = self.background.shape[: self.background.ndim - self.event - 1]
        return self.background.new_zeros(*batch, self.size)

    def trajectory(self, control: Tensor) -> list[Tensor]:
        """States x_0 ... x_{L-1} of controls (*B, M, K), each (*B, M, *S)."""
        parts = control.split(self._root.shape[-1], -1)
        shape = self.dynamics.state_shape
        states = [self.background + (parts[0] @ self._root).unflatten(-1, shape)]
        for k in range(1, len(self.observations)):
            x = deterministic(self.dynamics, self.first + k - 1)(states[-1])
            if self._kicks:
                x = x + (parts[k] @ self._kicks[k - 1]).unflatten(-1, shape)
            states.append(x)
        return states

    def residual(self, control: Tensor) -> Tensor:
        """Whitened departures of all values of the window, (*B, M, K) -> (*B, M, P)."""
        seen = zip(self.trajectory(control), self.observations, strict=True)
        parts = [whitened_residual(o, x) for x, o in seen if o is not None]
        return torch.cat(parts, -1) if parts else control[..., :0]

    def cost(self, control: Tensor) -> Tensor:
        """J, (*B, M, K) -> (*B, M)."""
        return cost(control, self.residual(control))

    def solve(self, *, iterations: int = 10, solver: Solver = "auto", spread: bool = True) -> FittedWindow:
        """Minimise J; see `gauss_newton`.

        Args:
            iterations: Most Gauss-Newton steps.
            solver: Linear solver, as in `gauss_newton`.
            spread: Whether to compute the covariances, by the matrix of the Hessian.

        Returns:
            The smoothed window.
        """
        minimum = gauss_newton(self.residual, self.origin(), iterations=iterations, solver=solver)
        states = torch.cat(self.trajectory(minimum.control.unsqueeze(-2)), -1 - self.event)
        covariance = self._covariance(minimum.control) if spread else None
        return FittedWindow(states, covariance, minimum.cost)

    def _covariance(self, control: Tensor) -> Tensor:
        """P_k = D_k (I + G^T G)^-1 D_k^T with D_k = dx_k/dc, (*B, L, d, d)."""
        factor = hessian_factor(self.residual, control)
        c = control.unsqueeze(-2)

        def path(v: Tensor) -> Tensor:
            return torch.stack([x.flatten(v.ndim - 1) for x in self.trajectory(v)], v.ndim - 1)

        _, D = tangents(path, c, basis(c, 1), 1)  # (*B, K, L, d)
        scaled = torch.linalg.solve_triangular(factor, D.flatten(-2), upper=False).unflatten(-1, D.shape[-2:])
        scaled = scaled.movedim(-3, -2)  # (*B, L, K, d)
        return scaled.mT @ scaled


def weak_constraint(
    background: Tensor,
    covariance: Tensor,
    model_error: Tensor | None,
    dynamics: Dynamics,
    observations: Observations,
    *,
    iterations: int = 10,
    solver: Solver = "auto",
    spread: bool = True,
) -> FittedWindow:
    """4D-Var over one window, which all observations fill: the smoother's mean on linear models.

    Args:
        background: Background x_b, (*B, *S) or (*S).
        covariance: Background covariance B, (d, d).
        model_error: Q of a step, (d, d) or (L - 1, d, d); None or zero for the strong constraint.
        dynamics: The model; its own noise is not used.
        observations: Values (*B, L, *O) with their R.
        iterations: Largest number of steps, as in `gauss_newton`.
        solver: Linear solver, as in `gauss_newton`.
        spread: Whether to compute the covariances.

    Returns:
        The smoothed window.

    Raises:
        ValueError: If a covariance does not fit the state.

    Source:
        Tremolet (2006), doi:10.1256/qj.05.224; equality with the smoother: Menard & Daley (1996),
        doi:10.1034/j.1600-0870.1996.t01-2-00003.x.
    """
    seen = [observations.step(k) for k in range(observations.steps)]
    B = as_matrix(covariance, dynamics)
    Q = None if model_error is None else as_matrix(model_error, dynamics, "model_error")
    x = background.expand(*observations.batch, *dynamics.state_shape)
    return WindowProblem(dynamics, seen, x, B, Q).solve(iterations=iterations, solver=solver, spread=spread)
