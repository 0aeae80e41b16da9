"""Methods with a Gaussian posterior: directional derivatives, the Kalman update, and their common filter."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import forward_ad

from slams.assimilation.filter import Filter
from slams.assimilation.memory import Memory
from slams.core.covariance import Covariance
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal
from slams.observation.observation import Observation
from slams.systems.base import Dynamics


def tangents(
    function: Callable[[Tensor], Tensor], x: Tensor, directions: Tensor, event: int
) -> tuple[Tensor, Tensor]:
    """A function and its derivatives along K directions, in one forward pass that treats them as members.

    Args:
        function: Maps members to members, (*B, K, *S) -> (*B, K, *O).
        x: Point of linearization, (*B, 1, *S).
        directions: (*B, K, *S).
        event: Number of axes of *S.

    Returns:
        Value (*B, 1, *O) and derivatives (*B, K, *O).
    """
    # not vmap or torch.func: operators and models may look at values or split their batch, all take members
    # already, and the plain dual numbers are 2 to 4 times faster
    members = x.ndim - event - 1
    with forward_ad.dual_level():
        y, dy = forward_ad.unpack_dual(
            function(forward_ad.make_dual(x.expand_as(directions).contiguous(), directions.contiguous()))
        )
    return y.narrow(members, 0, 1), torch.zeros_like(y) if dy is None else dy


def jacobian(
    function: Callable[[Tensor], Tensor], x: Tensor, count: int, event: int
) -> tuple[Tensor, Tensor]:
    """A function and its whole derivative, in one backward pass with its P outputs as members.

    Models multiply by numbers, which dual numbers do 5 times slower than a backward pass.

    Args:
        function: Maps members to members, (*B, M, *S) -> (*B, M, *O).
        x: Point of linearization, (*B, 1, *S).
        count: Number of outputs P.
        event: Number of axes of *S.

    Returns:
        Value (*B, 1, *O) and transposed derivative (*B, d, P).
    """
    members = x.ndim - event - 1
    shape = x.shape[:members]
    z = x.detach().expand(*shape, count, *x.shape[members + 1 :]).contiguous().requires_grad_()
    with torch.enable_grad():
        y = function(z)
    out = y.shape[members + 1 :]
    seeds = torch.eye(count, dtype=y.dtype, device=y.device).reshape(count, *out).expand_as(y)
    (rows,) = torch.autograd.grad(y, z, seeds, materialize_grads=True)
    return y.detach().narrow(members, 0, 1), rows.flatten(members + 1).mT


def moved(dynamics: Dynamics, x: Tensor, P: Tensor, step: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance after step `step`, M(m) and M' P M'^T; (*B, 1, *S) and (*B, d, d) to the same."""
    event = len(dynamics.state_shape)
    x, MT = jacobian(deterministic(dynamics, step), x, torch.Size(dynamics.state_shape).numel(), event)
    return x, MT.mT @ P @ MT


def basis(x: Tensor, event: int) -> Tensor:
    """The unit vectors of the state as directions: (*B, 1, *S) -> (*B, d, *S)."""
    shape = x.shape[x.ndim - event :]
    size = shape.numel()
    eye = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *shape)
    return eye.expand(*x.shape[: x.ndim - event - 1], size, *shape)


def whitened_residual(observation: Observation, x: Tensor) -> Tensor:
    """W (y - h(x)) of members, (*B, N, *S) -> (*B, N, O); zero where nothing was seen."""
    return observation.whiten(observation.innovation(x, members=True), members=True)


def linearize(observation: Observation, x: Tensor, directions: Tensor, event: int) -> tuple[Tensor, Tensor]:
    """Whitened innovation d, (*B, O), and whitened derivatives of h along directions, (*B, K, O)."""
    d, change = tangents(lambda z: whitened_residual(observation, z), x, directions, event)
    return d.squeeze(-2), -change


def chi2(observation: Observation, d: Tensor, variance: Tensor) -> Tensor:
    """Mean over what was seen of d^2 / (1 + variance), 1 on average if calibrated, (*B).

    Args:
        observation: Says what was seen.
        d: Whitened innovation, (*B, O).
        variance: Variance of the whitened prediction, (*B, O).

    Source:
        Dee (1995), doi:10.1175/1520-0493(1995)123<1128:OLEOEC>2.0.CO;2, eq. 7, observation by observation.
    """
    ratio = d.square() / (1 + variance)
    return ratio.mean(-1) if observation.all_seen else ratio.sum(-1) / observation.seen.sum(-1)


def kalman_update(P: Tensor, G: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Kalman analysis of whitened observations, with the covariance in Joseph's form.

    K = P H^T (H P H^T + I)^-1,  dx = K d,  P_a = (I - K H) P (I - K H)^T + K K^T.

    Args:
        P: Forecast covariance, (*B, d, d).
        G: H^T, whitened, (*B, d, O).
        d: Whitened innovation, (*B, O).

    Returns:
        Increment (*B, d) and analysis covariance (*B, d, d).

    Source:
        Bucy & Joseph (1968), Filtering for Stochastic Processes, chapter 16: symmetric and positive also where
        the gain is rounded.
    """
    PG = P @ G
    S = G.mT @ PG
    S.diagonal(dim1=-2, dim2=-1).add_(1.0)
    # _ex: a replicate that has left the finite numbers must not end the others
    K = torch.cholesky_solve(PG.mT, torch.linalg.cholesky_ex(S).L).mT
    rest = -K @ G.mT
    rest.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return (K @ d.unsqueeze(-1)).squeeze(-1), rest @ P @ rest.mT + K @ K.mT


def root(P: Tensor) -> Tensor:
    """A matrix A with A A^T = P, also where P is singular; (*B, d, d) to the same."""
    factor, info = torch.linalg.cholesky_ex(P)
    if not bool(info.any()):
        return factor
    values, vectors = torch.linalg.eigh(torch.nan_to_num(P))
    return vectors * values.clamp(min=0).sqrt().unsqueeze(-2)


def as_matrix(covariance: Tensor | Covariance, dynamics: Dynamics, name: str = "covariance") -> Tensor:
    """A covariance of the flattened state, as a user may give it, as a matrix (*B, d, d).

    Args:
        covariance: A `Covariance`, a matrix (*B, d, d), or variances (d).
        dynamics: Has the size of the state.
        name: Name in messages.

    Raises:
        ValueError: If it has another size, or is not symmetric, positive semi-definite and finite.
    """
    size = torch.Size(dynamics.state_shape).numel()
    if isinstance(covariance, Covariance):
        covariance = covariance.sized(size).dense()
    matrix = covariance.diag() if covariance.ndim == 1 else covariance
    if matrix.ndim < 2 or matrix.shape[-2:] != (size, size):
        raise InvalidValueError(
            f"{name} has shape {tuple(covariance.shape)}, but the state has {size} variables; give a matrix "
            f"({size}, {size}) or {size} variances."
        )
    scale = matrix.abs().amax()
    if not bool(torch.isfinite(scale)) or bool((matrix - matrix.mT).abs().amax() > 1e-4 * scale):
        raise InvalidValueError(f"{name} must be finite and symmetric; average it with its transpose.")
    lowest = torch.linalg.eigvalsh(matrix)[..., 0].min()
    if bool(lowest < -1e-5 * scale):
        raise InvalidValueError(
            f"{name} must not have negative eigenvalues, got {float(lowest):g}; add a small variance to its "
            "diagonal."
        )
    return matrix


def deterministic(dynamics: Dynamics, step: int | None = None) -> Callable[[Tensor], Tensor]:
    """One step of the model without its noise: `dynamics.mean` where there is one, else the step itself.

    Args:
        dynamics: The model.
        step: Number of the step, for a model that varies in time: one with a `horizon`, or with its own `advance`.
    """
    mean = getattr(dynamics, "mean", None)
    if getattr(dynamics, "horizon", None) is not None:
        return partial(mean if callable(mean) else dynamics, step=step)
    if callable(mean) or step is None:
        return mean if callable(mean) else dynamics
    return partial(dynamics.advance, k=step)


def model_noise(dynamics: Dynamics) -> Tensor | None:
    """Covariance of the noise of one step, (d, d) or (K, d, d) by step, or None if the model has none.

    Either `dynamics.noise_covariance()`, or its `noise_cov`, or noise^2 dt I for a `noise` per square root of
    model time.
    """
    given = getattr(dynamics, "noise_covariance", None)
    if callable(given):
        return given()
    given = getattr(dynamics, "noise_cov", None)
    if isinstance(given, Tensor):
        return given if bool((given != 0).any()) else None
    noise = getattr(dynamics, "noise", 0.0)
    if not isinstance(noise, int | float) or noise == 0:
        return None
    size = torch.Size(dynamics.state_shape).numel()
    return noise**2 * dynamics.dt * torch.eye(size, dtype=torch.float64)


class GaussianFilter(Filter):
    """A filter that carries a mean, as the one member (*B, 1, *S), and "covariance", (*B, d, d), in its memory.

    The members it gives are draws; the run does not depend on how many are asked for.
    """

    least = 1

    def moments(self, x: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """See `Filter.moments`; here both are the Gaussian's own."""
        variance = memory.carry["covariance"].diagonal(dim1=-2, dim2=-1)
        mean = x.squeeze(self._axis)
        return mean, variance.reshape(mean.shape)

    def members(self, x: Tensor, memory: Memory, size: int, *, rng: Rng = None) -> Tensor:
        """See `Filter.members`; draws of the Gaussian."""
        P = memory.carry["covariance"]
        draws = normal((*P.shape[:-2], size, P.shape[-1]), like=x, rng=rng) @ root(P).mT
        return x + draws.reshape(*P.shape[:-2], size, *self.dynamics.state_shape)

    @property
    def _event(self) -> int:
        """Number of axes of the state."""
        return len(self.dynamics.state_shape)

    def _spread_out(self, matrix: Tensor, x: Tensor) -> Tensor:
        """A covariance (d, d) or (*B, d, d) for every replicate of x, (*B, 1, *S)."""
        return matrix.to(x).expand(*x.shape[: self._axis], *matrix.shape[-2:])

    def _mean_only(self, x: Tensor) -> Tensor:
        """The mean of an ensemble as its only member."""
        return x.mean(self._axis, keepdim=True)

    def _compare(
        self, forecast: Tensor, observation: Observation, memory: Memory
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Forecast, whitened innovation and H^T; the innovation statistic goes to the diagnostics."""
        if "covariance" not in memory.carry:
            forecast = self.start(forecast, memory)
        d, HT = self._look(forecast, observation)
        P = memory.carry["covariance"]
        memory.diagnostics["innovation"] = chi2(observation, d, ((P @ HT) * HT).sum(-2))
        return forecast, d, HT

    def _look(self, x: Tensor, observation: Observation) -> tuple[Tensor, Tensor]:
        """Whitened innovation (*B, O) and H^T (*B, d, O) at x, (*B, 1, *S)."""
        return linearize(observation, x, basis(x, self._event), self._event)
