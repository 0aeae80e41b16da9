"""Guidance by the covariance of x given x_t, taken from the denoiser's own derivative."""

import abc
from typing import Literal

import torch
from torch import Tensor

from slams.diffusion.denoiser import Denoiser
from slams.diffusion.guidance.evidence import Evidence, Linearized, refuse_broken
from slams.diffusion.guidance.krylov import Product, conjugate_gradients, gmres
from slams.observation.observation import Observation, Observations


class Matched(Denoiser):
    """E[x | x_t, y] from a Gaussian p(x | x_t) of the denoiser's mean and covariance.

    With m = E[x | x_t], V = Cov[x | x_t] = sigma_t^2 / alpha_t dm/dx_t, and h linearized at m,

        m_y = m + V H^T (H V H^T + R)^-1 (y - h(m)).

    V acts on a vector by one backward pass through the denoiser. Subclasses say what stands for H V H^T
    inside the inverse, which is solved in whitened values, where R is the identity and a missing value
    is an empty row.

    Args:
        denoiser: The prior.
        observations: What was seen, any operators and errors: values (*B, L, *O) along windows, or (*B, *O).
        members: Whether samples are (*B, N, [L,] *S), with members behind the axes of the observations' batch,
            instead of (N, *B, [L,] *S).

    Raises:
        FloatingPointError: In sampling, if a guided mean is not finite; names time and norm of the guidance.
    """

    def __init__(
        self, denoiser: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.schedule = denoiser.schedule
        self.evidence = Evidence(observations, members=members)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*B, [L,] *S), () or (b, 1, ..., 1) -> shape of `x_t`; not differentiable any further."""
        alpha, sigma = self.schedule(t)
        with torch.enable_grad():
            leaf = x_t.detach().requires_grad_()
            mean = self.denoiser(leaf, t)
        local = self.evidence.linearized(mean)

        def spread(v: Tensor) -> Tensor:
            return sigma**2 / alpha * torch.autograd.grad(mean, leaf, v, retain_graph=True)[0]

        with torch.no_grad():
            guidance = spread(local.pull(self.solve(local, spread, alpha, sigma)))
            guided = mean.detach() + guidance
        refuse_broken(guided, guidance, t)
        return guided

    @abc.abstractmethod
    def solve(self, local: Linearized, spread: Product, alpha: Tensor, sigma: Tensor) -> Tensor:
        """(G V G^T + 1)^-1 of the whitened innovation, or what stands for it, (*B, n).

        Args:
            local: The observations at m.
            spread: v -> V v.
            alpha: Signal.
            sigma: Noise.
        """


class MomentMatching(Matched):
    """The full H V H^T, by an iterative solver: exact for a Gaussian prior and linear operators.

    Args:
        denoiser: The prior.
        observations: What was seen.
        members: See `Matched`.
        iterations: Most steps of the solver, each of which costs a backward pass; conjugate gradients need at most
            as many as there are different eigenvalues, and come close in far fewer.
        tolerance: Residual at which a sample's solver stops, relative to its innovation.
        solver: "cg", or "gmres", which does not count on the derivative of a trained network being symmetric.

    Raises:
        ValueError: If the number of iterations or the tolerance is not positive, or the solver unknown.

    Source:
        Rozet et al. (2024), arXiv:2405.13712, section 3.2.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations | Observation,
        *,
        members: bool = False,
        iterations: int = 16,
        tolerance: float = 1e-4,
        solver: Literal["cg", "gmres"] = "cg",
    ) -> None:
        super().__init__(denoiser, observations, members=members)
        if iterations < 1 or tolerance <= 0 or solver not in ("cg", "gmres"):
            raise ValueError(
                f"needs iterations >= 1, a positive tolerance and the solver 'cg' or 'gmres', got {iterations}, "
                f"{tolerance} and {solver!r}."
            )
        self.iterations = iterations
        self.tolerance = tolerance
        self.solver = solver

    def solve(self, local: Linearized, spread: Product, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `Matched.solve`."""

        def product(u: Tensor) -> Tensor:
            return u + local.push(spread(local.pull(u)))

        method = conjugate_gradients if self.solver == "cg" else gmres
        return method(product, local.innovation, iterations=self.iterations, tolerance=self.tolerance)


class DiagonalMatching(Matched):
    """The row sums of H V H^T in place of the matrix: two backward passes, exact where H V H^T is diagonal.

    Row sums are small where values are anticorrelated given x_t; draws then overshoot, and may run away.

    Args:
        denoiser: The prior.
        observations: What was seen, with independent errors.
        members: See `Matched`.

    Raises:
        TypeError: If errors are correlated.

    Source:
        Boys et al. (2023), arXiv:2310.06721 (TMPD), whose row sums are cut at zero here.
    """

    def __init__(
        self, denoiser: Denoiser, observations: Observations | Observation, *, members: bool = False
    ) -> None:
        super().__init__(denoiser, observations, members=members)
        self.std = self.evidence.std

    def solve(self, local: Linearized, spread: Product, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `Matched.solve`; rows are summed in the units of the values, not in whitened ones."""
        std = self.std.expand_as(local.innovation)
        sums = local.push(spread(local.pull(std))) / std
        return local.innovation / (1 + sums.clamp(min=0))


class PseudoInverse(Matched):
    """r_t^2 1 in place of V inside the inverse: no backward pass but the last one.

    r_t^2 = v sigma_t^2 / (alpha_t^2 v + sigma_t^2) is the variance of x given x_t of white data of variance v,
    for which this is exact.

    Args:
        denoiser: The prior.
        observations: What was seen.
        members: See `Matched`.
        variance: v, positive.
        iterations: Most steps of the solver.
        tolerance: See `MomentMatching`.

    Raises:
        ValueError: If the variance is not positive.

    Source:
        Song et al. (2023), "Pseudoinverse-guided diffusion models for inverse problems", ICLR.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        observations: Observations | Observation,
        *,
        members: bool = False,
        variance: float = 1.0,
        iterations: int = 64,
        tolerance: float = 1e-6,
    ) -> None:
        super().__init__(denoiser, observations, members=members)
        if variance <= 0:
            raise ValueError(f"the variance of the data must be positive, got {variance}.")
        self.variance = variance
        self.iterations = iterations
        self.tolerance = tolerance

    def solve(self, local: Linearized, spread: Product, alpha: Tensor, sigma: Tensor) -> Tensor:
        """See `Matched.solve`."""
        width = self.variance * sigma**2 / (alpha**2 * self.variance + sigma**2)

        def product(u: Tensor) -> Tensor:
            return u + local.push(width * local.pull(u))

        return conjugate_gradients(
            product, local.innovation, iterations=self.iterations, tolerance=self.tolerance
        )
