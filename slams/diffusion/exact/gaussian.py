"""Denoisers in closed form: Gaussians with any covariance, and what observations make of them."""

import math

import torch
from torch import Tensor

from slams.core.covariance import Covariance, Diagonal
from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.evidence import Evidence
from slams.diffusion.schedule import Schedule
from slams.observation.observation import Observation, Observations


class GaussianDenoiser(Denoiser):
    """Exact denoiser of x ~ N(mean, C).

    E[x | x_t] = mean + alpha C (alpha^2 C + sigma^2 1)^-1 (x_t - alpha mean),

    applied in the eigenvectors of C, or component by component where C is diagonal.

    Args:
        mean: (*B, *S); broadcasts against x_t from the right, so that members stand in front of *B, or in an
            axis of size one.
        covariance: C over the flattened event: a `Covariance`, or matrices (*B, D, D) with D = prod(S).
        schedule: Noise schedule.
        event: Number of axes of *S.

    Raises:
        ValueError: If the covariance has another size than the event.
    """

    mean: Tensor
    values: Tensor
    vectors: Tensor | None

    def __init__(
        self, mean: Tensor, covariance: Covariance | Tensor, schedule: Schedule, *, event: int = 1
    ) -> None:
        super().__init__()
        self.schedule = schedule
        self.event = event
        self.register_buffer("mean", mean)
        size = mean.shape[mean.ndim - event :].numel()
        if isinstance(covariance, Covariance):
            covariance = covariance.sized(size, mean)
        if isinstance(covariance, Diagonal):
            self.register_buffer("values", covariance.variance.to(mean))
            self.register_buffer("vectors", None)
            return
        matrix = covariance.dense() if isinstance(covariance, Covariance) else covariance
        if matrix.shape[-2:] != (size, size):
            raise InvalidValueError(
                f"an event of {size} components needs a covariance of {size} x {size}, got {tuple(matrix.shape)}."
            )
        values, vectors = torch.linalg.eigh(matrix.double())
        self.register_buffer("values", values.clamp(min=0).to(mean))
        self.register_buffer("vectors", vectors.to(mean))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, *S), () or (b, 1, ..., 1) -> (*B, *S).

        Raises:
            ValueError: If the event has another shape.
        """
        if x_t.shape[x_t.ndim - self.event :] != self._shape:
            raise InvalidValueError(
                f"this denoiser is one of events {tuple(self._shape)}, got samples of shape {tuple(x_t.shape)}; "
                "compose longer trajectories with MarkovBlanket, or give it a covariance of their length."
            )
        alpha, sigma = self.schedule(self._time(t))
        a = self._rotate(x_t, t)
        shrunk = alpha * self.values / (alpha**2 * self.values + sigma**2) * a
        return self.mean + self._back(shrunk).reshape(x_t.shape)

    def log_marginal(self, x_t: Tensor, t: Tensor) -> Tensor:
        """log p(x_t) = log N(x_t; alpha mean, alpha^2 C + sigma^2 1): (*B, *S) -> (*B)."""
        alpha, sigma = self.schedule(self._time(t))
        variance = alpha**2 * self.values + sigma**2
        terms = self._rotate(x_t, t) ** 2 / variance + variance.log() + math.log(2 * math.pi)
        return -0.5 * terms.sum(-1)

    def covariance(self) -> Tensor:
        """C as matrices (*B, D, D)."""
        if self.vectors is None:
            return torch.diag_embed(self.values)
        return (self.vectors * self.values[..., None, :]) @ self.vectors.mT

    def given(
        self, observations: Observations | Observation, *, members: bool = False
    ) -> tuple["GaussianDenoiser", Tensor]:
        """Condition on observations through linear operators; guidance that is exact.

        Its denoiser is E[x | x_t, y], because y and x_t are independent given x.

        Args:
            observations: Observations of the event: values (*B, L, *O) for events (L, ...), or of a single time (*B, *O).
            members: Whether samples are (*B, N, *S), with members behind the axes of the observations' batch,
                instead of (N, *B, *S).

        Returns:
            The posterior, of mean (*B, *S) or (*B, 1, *S), and log p(y) up to a constant of the prior, (*B).

        Raises:
            ValueError: If an operator is not linear.
        """
        evidence = Evidence(observations, members=members)
        innovation, g = _whitened_operator(evidence, self.mean, self.event)
        c = self.covariance().double()
        cross = g @ c  # (*B, n, D)
        s = cross @ g.mT + torch.eye(g.shape[-2], dtype=g.dtype, device=g.device)
        root = torch.linalg.cholesky(s)
        white = torch.linalg.solve_triangular(root, cross, upper=False)
        seen = torch.linalg.solve_triangular(root, innovation[..., None], upper=False)
        mean = self.mean + (white.mT @ seen).squeeze(-1).reshape(innovation.shape[:-1] + self._shape).to(
            self.mean
        )
        posterior = c - white.mT @ white
        logdet = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_evidence = -logdet - 0.5 * seen.square().sum((-2, -1))
        denoiser = GaussianDenoiser(mean, (posterior + posterior.mT) / 2, self.schedule, event=self.event)
        return denoiser, log_evidence.to(self.mean)

    @property
    def _shape(self) -> torch.Size:
        return self.mean.shape[self.mean.ndim - self.event :]

    def _time(self, t: Tensor) -> Tensor:
        return t if t.ndim == 0 else t.flatten(-self.event)

    def _rotate(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t - alpha mean in the eigenvectors of C."""
        alpha, _ = self.schedule(t)
        a = (x_t - alpha * self.mean).flatten(-self.event)
        return a if self.vectors is None else _product(a, self.vectors)

    def _back(self, a: Tensor) -> Tensor:
        return a if self.vectors is None else _product(a, self.vectors.mT)


def _product(a: Tensor, matrix: Tensor) -> Tensor:
    """Rows (..., D) by matrices (..., D, D) that broadcast from the right, without a copy of them a member."""
    if matrix.ndim == 2:
        return a @ matrix
    if matrix.shape[-3] == 1 and a.ndim > 1:
        return a @ matrix.squeeze(-3)
    return (a[..., None, :] @ matrix).squeeze(-2)


def _whitened_operator(evidence: Evidence, mean: Tensor, event: int) -> tuple[Tensor, Tensor]:
    """W (y - h(mean)) (*B, n) and W dh/dx (*B, n, D) in float64, refusing an operator that is not linear."""
    shape = mean.shape[mean.ndim - event :]
    size = shape.numel()
    batch = torch.broadcast_shapes(evidence.innovation(mean).shape[:-1], mean.shape[: mean.ndim - event])
    x = mean.expand(*batch, *shape)
    unit = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, *([1] * len(batch)), *shape)
    unit = unit.expand(size, *batch, *shape)
    g = evidence.linearized(x.expand_as(unit)).jvp(unit).movedim(0, -1).double()
    innovation = evidence.innovation(x)
    other = torch.linspace(-1, 1, size, dtype=x.dtype, device=x.device)
    moved = evidence.innovation(x + other.reshape(shape)) - innovation
    expected = -(g @ other.double())
    error = (moved.double() - expected).abs().max()
    if bool(error > 1e-3 * expected.abs().max().clamp(min=1e-6)):
        raise InvalidValueError(
            f"conditioning in closed form needs linear operators, and these depart from their tangent by "
            f"{float(error):g} standard errors; use MomentMatching."
        )
    return innovation.double(), g
