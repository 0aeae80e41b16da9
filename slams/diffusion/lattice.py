"""Guidance by a covariance that is alike everywhere, of values on a lattice: solved wave by wave, or as a matrix."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.base import Guidance, GuidedDenoiser
from slams.observation.observation import Observation, Observations

Operator = Callable[[Tensor], Tensor]


class Homogeneous(Protocol):
    """C of trajectories of fields on a torus that does not change when all is moved; see `FlowCovariance`."""

    def posterior(self, v: Tensor, ratio: Tensor) -> Tensor:
        """(C^-1 + ratio 1)^-1 v, (*B, L, c, N, N)."""


class LatticeSystem:
    """(H V H^T + R)^-1 for an H that applies one filter to all fields at the points of a square lattice.

    H V H^T is invariant to shifts of the lattice. It is computed from the response of one point of each observed step and
    channel, and is one matrix of steps and channels for each wave of the lattice; if only a box of the lattice is
    observed, it is assembled and factorized. Both are cached for each diffusion time.

    Args:
        covariance: Prior covariance C.
        filtered: Fields (*B, c, N, N) to all of the lattice, (*B, c, n, n); linear.
        steps: Observed steps.
        shape: Shape of a trajectory, (L, c, N, N).
        std: Standard deviation of independent errors, positive.
        box: First and one past the last observed row, and column, of the lattice; all if None.

    Raises:
        ValueError: If `std` is not positive.
    """

    def __init__(
        self,
        covariance: Homogeneous,
        filtered: Operator,
        steps: Sequence[int],
        shape: Sequence[int],
        std: float,
        *,
        box: tuple[int, int] | None = None,
    ) -> None:
        if not std > 0:
            raise InvalidValueError(f"the error's standard deviation must be positive, got {std}.")
        self.covariance, self.filtered, self.box = covariance, filtered, box
        self.steps, self.shape, self.variance = list(steps), tuple(shape), std**2
        self._kept: dict[float, Tensor] = {}

    def seen(self, x: Tensor) -> Tensor:
        """H x: (*B, L, c, N, N) -> (*B, K, c, m, m), K the observed steps."""
        lattice = self.filtered(x[..., self.steps, :, :, :])
        return lattice if self.box is None else lattice[..., slice(*self.box), slice(*self.box)]

    def pulled(self, u: Tensor) -> Tensor:
        """H^T u: (*B, K, c, m, m) -> (*B, L, c, N, N)."""
        with torch.enable_grad():
            leaf = u.new_zeros(*u.shape[:-4], *self.shape).requires_grad_()
            return torch.autograd.grad(self.seen(leaf), leaf, u)[0]

    def solve(self, r: Tensor, ratio: float) -> Tensor:
        """(H V H^T + R)^-1 r with V = (C^-1 + ratio 1)^-1: (*B, K, c, m, m) to the same."""
        if ratio not in self._kept:
            self._kept[ratio] = self._prepared(r, ratio)
        kept, (steps, channels, side, _) = self._kept[ratio].to(r.device), r.shape[-4:]
        if self.box is not None:
            flat = r.flatten(-4).to(kept)
            return torch.cholesky_solve(flat.reshape(-1, flat.shape[-1]).mT, kept).mT.reshape(r.shape).to(r)
        waves = torch.fft.rfft2(r.to(kept.real.dtype)).flatten(-4, -3).movedim(-3, -1).unsqueeze(-1)
        out = (kept @ waves).squeeze(-1).movedim(-1, -3).unflatten(-3, (steps, channels))
        return torch.fft.irfft2(out, s=(side, side)).to(r)

    def _prepared(self, like: Tensor, ratio: float) -> Tensor:
        """Factor of the matrix of a box, or the inverse of that of each wave."""
        kernel = self._kernel(like, ratio)  # (J, J, n, n): response of value j' at p to value j at 0
        count, side = kernel.shape[0], kernel.shape[-1]
        if self.box is None:
            waves = torch.fft.rfft2(kernel).permute(2, 3, 1, 0)
            noise = self.variance * torch.eye(count, dtype=waves.dtype, device=waves.device)
            return torch.linalg.inv((waves + waves.mH) / 2 + noise)
        place = torch.arange(*self.box, device=kernel.device)
        away = (place[:, None] - place[None, :]) % side  # of the response from the source
        # axes: source, response, row of response, row of source, column of response, column of source
        full = kernel[:, :, away][:, :, :, :, away].permute(1, 2, 4, 0, 3, 5)
        size = count * len(place) ** 2
        matrix = full.reshape(size, size)
        noise = self.variance * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.cholesky((matrix + matrix.mT) / 2 + noise)

    def _kernel(self, like: Tensor, ratio: float) -> Tensor:
        """In float64: small errors of one point come back at all others."""
        steps, channels = len(self.steps), self.shape[-3]
        box, self.box = self.box, None
        try:
            side = self.filtered(like.new_zeros(channels, *self.shape[-2:])).shape[-1]
            unit = like.new_zeros(steps * channels, steps, channels, side, side)
            for j in range(steps * channels):
                unit[j, j // channels, j % channels, 0, 0] = 1
            response = self.covariance.posterior(self.pulled(unit), like.new_tensor(ratio))
            return self.seen(response).flatten(1, 2).double()
        finally:
            self.box = box


@dataclass(frozen=True, eq=False)
class LatticeMatching(Guidance):
    """Moment matching of values on a lattice, by the system of a covariance in closed form.

        m_y = m + V H^T (H V H^T + R)^-1 (y - H m).

    Without `iterations` V is (C^-1 + (alpha_t / sigma_t)^2 1)^-1 in both places, as of `CovarianceMatching`, but without
    an iterative solver. That V ignores the flow's transport; increments at the points alone are reverted by the prior at
    lower noise, and draws then miss the values by more than their error. With
    `iterations` V is the denoiser's own derivative, each of them a backward pass, and the system of C preconditions
    conjugate gradients; the first one finds the size of the step and may suffice.

    The observations are one modality, values (*B, L, c, m, m) with NaN at all but the observed steps.

    Attributes:
        system: Linear system of the operator and errors, shared by all samples and calls.
        iterations: Number of conjugate-gradient steps with the denoiser's derivative.

    Raises:
        ValueError: If `iterations` is negative.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2.
    """

    system: LatticeSystem
    iterations: int = 0

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise InvalidValueError(f"iterations are 0 or more, got {self.iterations}.")

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """See `Guidance.__call__`.

        Raises:
            ValueError: If there are several modalities, or values missing at an observed step.
        """
        guided = GuidedDenoiser(self, prior, observations, members=members)
        if len(guided.evidence.parts) != 1:
            raise InvalidValueError(
                f"a lattice is one modality, got {len(guided.evidence.parts)}; use CovarianceMatching."
            )
        if not bool(torch.isfinite(self._values(guided)).all()):
            raise InvalidValueError("values are missing at an observed step; use CovarianceMatching.")
        return guided

    def _values(self, guided: GuidedDenoiser) -> Tensor:
        return guided.evidence.parts[0].value[..., self.system.steps, :, :, :]

    def pull(self, guided: GuidedDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """(*B, L, c, N, N), one time; see `Guidance.pull`."""
        alpha, sigma = guided.schedule(t)
        ratio = float(alpha / sigma) ** 2
        with torch.set_grad_enabled(self.iterations > 0):
            leaf = x_t.detach().requires_grad_(self.iterations > 0)
            mean = guided.denoiser(leaf, t)
        innovation = self._values(guided) - self.system.seen(mean.detach())

        def covariance_product(v: Tensor) -> Tensor:
            return sigma**2 / alpha * torch.autograd.grad(mean, leaf, v, retain_graph=True)[0]

        with torch.no_grad():
            if self.iterations:
                return mean.detach(), self._iterated(innovation, covariance_product, ratio)
            pulled = self.system.pulled(self.system.solve(innovation, ratio))
            return mean.detach(), self.system.covariance.posterior(pulled, mean.new_tensor(ratio))

    def _iterated(self, residual: Tensor, covariance_product: Operator, ratio: float) -> Tensor:
        """V H^T u of u from preconditioned conjugate gradients, each sample on its own.

        Source:
            Saad (2003), Iterative methods for sparse linear systems, algorithm 9.1.
        """
        guidance, direction, before = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for turn in range(self.iterations):
            z = self.system.solve(residual, ratio)
            now = _inner(residual, z)
            # a sample that fits all values has no direction left
            direction = z + (torch.where(before > 0, now / before, 0.0) * direction if turn else 0.0)
            carried = covariance_product(self.system.pulled(direction))
            moved = self.system.seen(carried) + self.system.variance * direction
            curvature = _inner(direction, moved)
            # a derivative that is no covariance along this direction gives no step
            size = torch.where(curvature > 0, now / curvature, 0.0)
            guidance = guidance + size * carried
            residual, before = residual - size * moved, now
        return guidance


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample, axes kept."""
    return (a * b).sum((-4, -3, -2, -1), keepdim=True)
