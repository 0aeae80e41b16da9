"""Guidance by the covariance of x given x_t, taken from the denoiser's own derivative."""

import abc
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.base import Guidance, GuidedDenoiser
from slams.diffusion.guidance.evidence import Linearized
from slams.diffusion.guidance.krylov import Product, conjugate_gradients, gmres
from slams.observation.observation import Observation, Observations


class Matched(Guidance):
    """E[x | x_t, y] from a Gaussian p(x | x_t) of the denoiser's mean and covariance.

    With m = E[x | x_t], V = Cov[x | x_t] = sigma_t^2 / alpha_t dm/dx_t, and h linearized at m,

        m_y = m + V H^T (H V H^T + R)^-1 (y - h(m)).

    V acts on a vector by one backward pass through the denoiser. Subclasses say what stands for H V H^T
    inside the inverse, which is solved in whitened values, where R is the identity and a missing value
    is an empty row. Any operators and errors will do.
    """

    def pull(self, guided: GuidedDenoiser, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """See `Guidance.pull`."""
        alpha, sigma = guided.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = guided.denoiser(leaf, t)
        local = guided.evidence.linearized(mean)

        def covariance_product(v: Tensor) -> Tensor:
            return sigma**2 / alpha * torch.autograd.grad(mean, leaf, v, retain_graph=True)[0]

        with torch.no_grad():
            solved = self.solve(local, covariance_product, guided, t)
            return mean.detach(), covariance_product(local.vjp(solved))

    @abc.abstractmethod
    def solve(
        self, local: Linearized, covariance_product: Product, guided: GuidedDenoiser, t: Tensor
    ) -> Tensor:
        """(G V G^T + 1)^-1 of the whitened innovation, or what stands for it, (*B, n).

        Args:
            local: The observations at m.
            covariance_product: v -> V v.
            guided: Prior, schedule and observations.
            t: Diffusion time.
        """


@dataclass(frozen=True, eq=False)
class MomentMatching(Matched):
    """The full H V H^T, by an iterative solver: exact for a Gaussian prior and linear operators.

    Attributes:
        iterations: Most steps of the solver, each of which costs a backward pass; conjugate gradients need at most
            as many as there are different eigenvalues, and come close in far fewer.
        tolerance: Residual at which a sample's solver stops, relative to its innovation.
        solver: "cg", or "gmres", which does not count on the derivative of a trained network being symmetric.

    Raises:
        ValueError: If the number of iterations or the tolerance is not positive, or the solver unknown.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2.
    """

    iterations: int = 16
    tolerance: float = 1e-4
    solver: Literal["cg", "gmres"] = "cg"

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.tolerance <= 0 or self.solver not in ("cg", "gmres"):
            raise InvalidValueError(
                f"needs iterations >= 1, a positive tolerance and the solver 'cg' or 'gmres', got {self.iterations}, "
                f"{self.tolerance} and {self.solver!r}."
            )

    def solve(
        self, local: Linearized, covariance_product: Product, guided: GuidedDenoiser, t: Tensor
    ) -> Tensor:
        """See `Matched.solve`."""

        def product(u: Tensor) -> Tensor:
            return u + local.jvp(covariance_product(local.vjp(u)))

        method = conjugate_gradients if self.solver == "cg" else gmres
        return method(product, local.innovation, iterations=self.iterations, tolerance=self.tolerance)


@dataclass(frozen=True, eq=False)
class DiagonalMatching(Matched):
    """The row sums of H V H^T in place of the matrix: two backward passes, exact where H V H^T is diagonal.

    Row sums are small where values are anticorrelated given x_t; draws then overshoot, and may run away. Errors must be
    independent: observations with correlated ones are a TypeError.

    Source:
        Boys et al. (2023), arXiv:2310.06721 (TMPD), whose row sums are cut at zero here.
    """

    def __call__(
        self, prior: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> Denoiser:
        """See `Guidance.__call__`."""
        guided = GuidedDenoiser(self, prior, observations, members=members)
        _ = guided.evidence.std  # refuses correlated errors here rather than in sampling
        return guided

    def solve(
        self, local: Linearized, covariance_product: Product, guided: GuidedDenoiser, t: Tensor
    ) -> Tensor:
        """See `Matched.solve`; rows are summed in the units of the values, not in whitened ones."""
        std = guided.evidence.std.expand_as(local.innovation)
        sums = local.jvp(covariance_product(local.vjp(std))) / std
        return local.innovation / (1 + sums.clamp(min=0))


@dataclass(frozen=True, eq=False)
class PseudoInverse(Matched):
    """r_t^2 1 in place of V inside the inverse: no backward pass but the last one.

    r_t^2 = v sigma_t^2 / (alpha_t^2 v + sigma_t^2) is the variance of x given x_t of white data of variance v,
    for which this is exact.

    Attributes:
        variance: v, positive.
        iterations: Most steps of the solver.
        tolerance: Tolerance of the solver, as in `MomentMatching`.

    Raises:
        ValueError: If the variance is not positive.

    Source:
        Song et al. (2023), "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    variance: float = 1.0
    iterations: int = 64
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if self.variance <= 0:
            raise InvalidValueError(f"the variance of the data must be positive, got {self.variance}.")

    def solve(
        self, local: Linearized, covariance_product: Product, guided: GuidedDenoiser, t: Tensor
    ) -> Tensor:
        """See `Matched.solve`."""
        alpha, sigma = guided.schedule(t)
        width = self.variance * sigma**2 / (alpha**2 * self.variance + sigma**2)

        def product(u: Tensor) -> Tensor:
            return u + local.jvp(width * local.vjp(u))

        return conjugate_gradients(
            product, local.innovation, iterations=self.iterations, tolerance=self.tolerance
        )
