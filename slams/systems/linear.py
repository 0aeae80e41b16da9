"""Linear-Gaussian systems with the exact filter and smoother: the reference for every method."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal
from slams.systems.base import Dynamics
from slams.systems.flow import Gaussian, factor


class Filtered(NamedTuple):
    """Exact marginals p(x_k | y_0..k) = N(mean, cov), and the evidence log p(y_0..L-1).

    Attributes:
        mean: Means, (*B, L, d).
        cov: Covariances, (*B, L, d, d).
        log_evidence: Log-evidence log p(y) of all observed values [nats], (*B).
    """

    mean: Tensor
    cov: Tensor
    log_evidence: Tensor


class Smoothed(NamedTuple):
    """Exact marginals p(x_k | y_0..L-1) = N(mean, cov).

    Attributes:
        mean: Means, (*B, L, d).
        cov: Covariances, (*B, L, d, d).
    """

    mean: Tensor
    cov: Tensor


class ObservationSequence(Protocol):
    """Observations along a trajectory, step by step."""

    steps: int

    def step(self, k: int) -> Any:
        """The observation of step k (`value`, `operator`, `noise`), None if there is none."""


class _Update(NamedTuple):
    """One analysis, stored for the backward pass."""

    observation: Tensor  # H with zero rows for missing values, (*B, O, d)
    weighted: Tensor  # S^-1 H, (*B, O, d)
    innovation: Tensor  # S^-1 (y - H x), (*B, O)
    keep: Tensor  # I - K H, (*B, d, d)


class LinearGaussian(Dynamics):
    """x_{k+1} = M_k x_k + b_k + e_k, e_k ~ N(0, Q_k), x_0 ~ N(mean0, cov0).

    Matrices with a leading axis of K steps vary in time: number k leads from x_k to x_{k+1}.

    Args:
        transition: Matrix M, (d, d) or (K, d, d).
        noise_cov: Covariance Q, (d, d) or (K, d, d), positive semi-definite; zero for no noise.
        mean0: Mean of x_0, (d).
        cov0: Covariance of x_0, (d, d), positive semi-definite.
        offset: Vector b, (d) or (K, d); zero if None.
        dt: Model time between two states.

    Raises:
        ValueError: If shapes do not fit, a covariance is invalid, or `dt` is not positive.

    Source:
        Kalman (1960), doi:10.1115/1.3662552, eq. 16.
    """

    transition: Tensor
    noise_cov: Tensor
    offset: Tensor
    _noise_root: Tensor

    def __init__(
        self,
        transition: Tensor,
        noise_cov: Tensor,
        mean0: Tensor,
        cov0: Tensor,
        *,
        offset: Tensor | None = None,
        dt: float = 1.0,
    ) -> None:
        super().__init__()
        if not dt > 0:
            raise InvalidValueError(f"dt must be positive, got {dt}.")
        size = transition.shape[-1]
        offset = transition.new_zeros(size) if offset is None else offset
        parts = {"transition": (transition, 2), "noise_cov": (noise_cov, 2), "offset": (offset, 1)}
        for name, (value, axes) in parts.items():
            if value.ndim not in (axes, axes + 1) or any(n != size for n in value.shape[-axes:]):
                raise InvalidValueError(
                    f"{name} has shape {tuple(value.shape)}, but must be {(size,) * axes} or have one leading "
                    "axis of steps before that."
                )
        lengths = {name: len(value) for name, (value, axes) in parts.items() if value.ndim > axes}
        if len(set(lengths.values())) > 1:
            raise InvalidValueError(
                f"what varies in time must have one common number of steps, got {lengths}."
            )
        if mean0.shape != (size,) or cov0.shape != (size, size):
            raise InvalidValueError(
                f"mean0 and cov0 must be {(size,)} and {(size, size)}, got {tuple(mean0.shape)} and "
                f"{tuple(cov0.shape)}."
            )
        self.size, self.state_shape, self.dt = size, (size,), float(dt)
        self.horizon = next(iter(lengths.values()), None)
        self.noisy = bool((noise_cov != 0).any())
        self.start = Gaussian(mean0, cov=cov0).sized(size, transition.dtype)
        self.register_buffer("transition", transition)
        self.register_buffer("noise_cov", noise_cov)
        self.register_buffer("offset", offset)
        self.register_buffer("_noise_root", factor(noise_cov), persistent=False)

    def matrices(self, step: int | None) -> tuple[Tensor, Tensor, Tensor]:
        """M, Q, b that lead from x_step to x_{step+1}.

        Args:
            step: Step number k; may be None for a time-invariant system.

        Returns:
            M (d, d), Q (d, d), b (d).

        Raises:
            ValueError: If the system varies in time and `step` is None or beyond its horizon.
        """
        if self.horizon is not None and (step is None or not 0 <= step < self.horizon):
            raise InvalidValueError(
                f"this system varies in time over {self.horizon} steps, got step={step}; pass the number of "
                "the step, as in system(x, step=k), or use trajectory()."
            )
        return tuple(self._at(name, step) for name in ("transition", "noise_cov", "offset"))  # type: ignore[return-value]

    def _at(self, name: str, step: int | None) -> Tensor:
        """One of the matrices at a step."""
        value = getattr(self, name)
        return value if value.ndim == (1 if name == "offset" else 2) else value[step]

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draws of N(mean0, cov0), (*shape, d)."""
        return self.start.sample(*shape, rng=rng)

    def mean(self, x: Tensor, *, step: int | None = None) -> Tensor:
        """M_k x + b_k, (*B, d) to the same; `step` as of `matrices`."""
        transition, _, offset = self.matrices(step)
        return x @ transition.mT + offset

    def forward(self, x: Tensor, *, rng: Rng = None, step: int | None = None) -> Tensor:
        """Advance by one step.

        Args:
            x: States, (*B, d).
            rng: Source of the noise.
            step: Step number k of a system that varies in time.

        Returns:
            States one step later, (*B, d).
        """
        after = self.mean(x, step=step)
        if not self.noisy:
            return after
        return after + normal(after.shape, like=after, rng=rng) @ self._at("_noise_root", step).mT

    def advance(self, x: Tensor, k: int, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.advance`."""
        return self(x, rng=rng, step=k)

    def filter(self, observations: ObservationSequence) -> Filtered:
        """Kalman filter: the exact p(x_k | y_0..k), x_0 observed too where step 0 has values.

        m <- M m + b, P <- M P M^T + Q; then with S = H P H^T + R and K = P H^T S^-1, m <- m + K (y - H m) and
        P <- (I - K H) P (I - K H)^T + K R K^T (Joseph's form: stays positive). Missing values drop out.

        Args:
            observations: Sequence with `steps` L and `step(k)` for each: None, or an object with `value` (*B, O), NaN
                where missing, a linear `operator` from (*B, d) to (*B, O), and `noise`, whose `dense()` is
                R, (O, O).

        Returns:
            Mean (*B, L, d), covariance (*B, L, d, d), log-evidence (*B).

        Raises:
            ValueError: If an operator is not linear or values do not fit it.

        Source:
            Kalman (1960); Anderson & Moore (1979), Optimal Filtering, section 3.1; Joseph's form in Bierman
            (1977), Factorization Methods, eq. V.2.11.
        """
        return self._pass(observations)[0]

    def smoother(self, observations: ObservationSequence) -> Smoothed:
        """The exact p(x_k | all y), which is that of Rauch, Tung & Striebel.

        Computed without the inverse of a forecast covariance, which a system without noise does not have:
        with C = I - K H and v = y - H m, backwards from 0,
        l <- C^T l - H^T S^-1 v, W <- C^T W C + H^T S^-1 H, then l <- M^T l, W <- M^T W M; at each step the
        smoothed mean is m - P l and the covariance P - P W P, of l and W before the step's values are added.

        Args:
            observations: Observations, as in `filter`.

        Returns:
            Mean (*B, L, d), covariance (*B, L, d, d).

        Raises:
            ValueError: If an operator is not linear or values do not fit it.

        Source:
            Bierman (1973), doi:10.1016/0005-1098(73)90089-3 (the modified Bryson-Frazier smoother).
        """
        filtered, updates = self._pass(observations)
        slope, weight = (
            torch.zeros_like(filtered.mean[..., 0, :]),
            torch.zeros_like(filtered.cov[..., 0, :, :]),
        )
        means, covs = [], []
        for k in reversed(range(len(updates))):
            mean, cov, update = filtered.mean[..., k, :], filtered.cov[..., k, :, :], updates[k]
            means.append(mean - _apply(cov, slope))
            covs.append(_symmetric(cov - cov @ weight @ cov))
            if update is not None:
                slope = _apply(update.keep.mT, slope) - _apply(update.observation.mT, update.innovation)
                weight = update.keep.mT @ weight @ update.keep + update.observation.mT @ update.weighted
            if k:
                transition = self.matrices(k - 1)[0]
                slope, weight = slope @ transition, _symmetric(transition.mT @ weight @ transition)
        return Smoothed(torch.stack(means[::-1], -2), torch.stack(covs[::-1], -3))

    def _pass(self, observations: ObservationSequence) -> tuple[Filtered, list[_Update | None]]:
        """The way forward."""
        seen = [observations.step(k) for k in range(observations.steps)]
        shapes = [tuple(getattr(observations, "batch", ()))]  # replicates exist even without observations
        batch = torch.broadcast_shapes(*shapes, *(o.value.shape[:-1] for o in seen if o is not None))
        mean = self.start.mean.expand(*batch, self.size)
        cov = self.start.cov.expand(*batch, self.size, self.size)
        evidence = mean.new_zeros(batch)
        means, covs, updates, known = [], [], [], _Operators(self.start.mean)
        for k, observation in enumerate(seen):
            if k:
                transition, noise, offset = self.matrices(k - 1)
                mean, cov = (
                    mean @ transition.mT + offset,
                    _symmetric(transition @ cov @ transition.mT + noise),
                )
            update = None
            if observation is not None:
                mean, cov, gain, update = _analysis(mean, cov, observation, known)
                evidence = evidence + gain
            means.append(mean)
            covs.append(cov)
            updates.append(update)
        return Filtered(torch.stack(means, -2), torch.stack(covs, -3), evidence), updates


class _Operators:
    """The matrices of operators, each made once: h(e_i) is a column of H."""

    def __init__(self, like: Tensor) -> None:
        self.eye = torch.eye(len(like), dtype=like.dtype, device=like.device)
        self.known: dict[int, tuple[Callable[[Tensor], Tensor], Tensor]] = {}

    def matrix(self, operator: Callable[[Tensor], Tensor]) -> Tensor:
        """H, (O, d).

        Raises:
            ValueError: If the operator is not linear.
        """
        # The operator is kept beside its matrix: another object could otherwise get its id.
        if id(operator) not in self.known:
            self.known[id(operator)] = operator, self._probe(operator)
        return self.known[id(operator)][1]

    def _probe(self, operator: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply to the unit vectors, and to further vectors that test linearity."""
        size = len(self.eye)
        probe = torch.linspace(-1.7, 2.3, size).to(self.eye) if size > 1 else 1.7 * self.eye[0]
        columns = operator(torch.cat([self.eye, torch.stack([0 * probe, probe, 3 * probe])])).detach()
        matrix = columns[:size].mT
        expected = torch.stack([0 * probe, probe, 3 * probe]) @ matrix.mT
        tolerance = 1e3 * torch.finfo(self.eye.dtype).eps * (1 + float(matrix.abs().max())) * size
        error = float((columns[size:] - expected).abs().max())
        if not error <= tolerance:
            raise InvalidValueError(
                f"the exact filter needs a linear operator, but {operator} departs from one by {error:.3g} "
                f"(its value at 0 is up to {float(columns[size].abs().max()):.3g}); use an ensemble method."
            )
        return matrix


def _analysis(
    mean: Tensor, cov: Tensor, observation: Any, known: _Operators
) -> tuple[Tensor, Tensor, Tensor, _Update]:
    """Condition N(mean, cov) on one observation; also log p(y) and the terms of the smoother."""
    matrix, value = known.matrix(observation.operator), observation.value.to(mean.dtype)
    if value.shape[-1] != matrix.shape[0]:
        raise InvalidValueError(
            f"the operator gives {matrix.shape[0]} values, but {value.shape[-1]} were observed; "
            "check the operator and the file."
        )
    seen = torch.isfinite(value).to(mean.dtype)
    # A missing value becomes an independent N(0, 1) that was 0: no gain, no evidence.
    matrix = seen[..., None] * matrix
    noise = observation.noise.dense().to(mean) * seen[..., None] * seen[..., None, :] + torch.diag_embed(
        1 - seen
    )
    innovation = torch.nan_to_num(value) * seen - _apply(matrix, mean)
    root = torch.linalg.cholesky(_symmetric(matrix @ cov @ matrix.mT) + noise)
    weighted = torch.cholesky_solve(matrix, root)  # S^-1 H
    gain = cov @ weighted.mT
    keep = torch.eye(mean.shape[-1]).to(mean) - gain @ matrix
    solved = torch.cholesky_solve(innovation[..., None], root)[..., 0]
    log_det = 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    evidence = -((innovation * solved).sum(-1) + log_det + seen.sum(-1) * math.log(2 * math.pi)) / 2
    cov = _symmetric(keep @ cov @ keep.mT + gain @ noise @ gain.mT)
    return mean + _apply(gain, innovation), cov, evidence, _Update(matrix, weighted, solved, keep)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    """A v over batch axes."""
    return (matrix @ vector[..., None])[..., 0]


def _symmetric(matrix: Tensor) -> Tensor:
    """The symmetric part: rounding would add up over a thousand steps."""
    return (matrix + matrix.mT) / 2
