"""Windows of a Gaussian given observations through linear operators: E[x | x_t, y] in closed form."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.errors import NonFiniteError
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.observation.observation import Observations


@dataclass(frozen=True, eq=False)
class System:
    """The precision C^-1 + M of a window's coefficients, decomposed.

    Attributes:
        values: Eigenvalues, (L K).
        vectors: Eigenvectors, (L K, L K).
        spread: Posterior standard deviation of each component, in units of that of the prior, (L, *Z).
    """

    values: Tensor
    vectors: Tensor
    spread: Tensor


class Systems:
    """The systems of a Gaussian over windows, one for each pattern of observed values.

    Args:
        gaussian: Prior over windows.
    """

    def __init__(self, gaussian: WindowGaussian) -> None:
        self.gaussian = gaussian
        steps, patterns = gaussian.length, gaussian.basis.shape[1]
        self._precision = gaussian.posterior_precision(gaussian.basis.new_zeros(steps, patterns, patterns))
        self._prior = _spread(gaussian, gaussian.values, gaussian.vectors)

    def of(self, information: Tensor) -> System:
        """The system of one pattern, whose Gauss-Newton matrix G^T R^-1 G of each step is (L, K, K).

        Raises:
            FloatingPointError: If the matrix is not finite.
        """
        if not bool(torch.isfinite(information).all()):
            raise NonFiniteError(
                "the information of the observations, G^T R^-1 G, is not finite; check their errors and the operators "
                "for NaN."
            )
        added = torch.block_diag(*information.to(self._precision))
        value, vector = torch.linalg.eigh(self._precision + (added + added.mT) / 2)
        value, vector = (x.to(self.gaussian.basis) for x in (value.clamp(min=1e-6), vector))
        return System(value, vector, _spread(self.gaussian, 1 / value, vector) / self._prior)

    def without_signal(self, information: Tensor) -> System:
        """A system of one pattern for x_t without signal, rho = 0, at a tenth of the cost of its eigenvectors.

        There any V with V V^T = (C^-1 + M)^-1 will do, with 1 for each eigenvalue: that of a Cholesky factor.
        """
        added = torch.block_diag(*information.to(self._precision))
        factor = torch.linalg.cholesky(self._precision + (added + added.mT) / 2)
        eye = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
        vector = torch.linalg.solve_triangular(factor, eye, upper=False).mT.to(self.gaussian.basis)
        value = vector.new_ones(len(vector))
        return System(value, vector, _spread(self.gaussian, value, vector) / self._prior)

    def none(self) -> System:
        """The system of no observation, the prior's own."""
        gaussian = self.gaussian
        spread = gaussian.basis.new_ones(gaussian.length, *gaussian.event)
        return System(1 / gaussian.values, gaussian.vectors, spread)

    def observed(
        self, observations: Observations, jacobians: Mapping[str, Tensor]
    ) -> tuple[list[System], list[int]]:
        """The systems of windows, and the number of the system of each.

        Args:
            observations: Values (W, L, *O), NaN where missing; their operators are not used.
            jacobians: Linear operators on the patterns' coefficients of one step, (prod(O), K) by name.
        """
        index, first = observations.patterns()
        return [self.of(observations.information(jacobians, window)) for window in first], index


def _spread(gaussian: WindowGaussian, variances: Tensor, vectors: Tensor) -> Tensor:
    """Standard deviation of each component of a window, (L, *Z), of coefficients with that eigensystem."""
    basis = gaussian.basis
    outside = gaussian.remainder * (1 - basis.square().sum(1)).clamp(min=0)
    rows = vectors.unflatten(0, (gaussian.length, -1))
    covariances = (rows * variances) @ rows.mT  # of each step's coefficients, (L, K, K)
    inside = ((basis @ covariances) * basis).sum(-1)
    return (inside + outside).clamp(min=1e-12).sqrt().unflatten(-1, gaussian.event)


class WindowPosterior(Denoiser):
    """E[x | x_t, y] of a Gaussian over windows, x = V a + e, under observations y = G a + noise, one N(0, R).

    With a ~ N(0, C) over the window, M = blockdiag(G^T R^-1 G) and rho = alpha_t / sigma_t,

        E[a | x_t, y] = (C^-1 + M + rho^2 1)^-1 (G^T R^-1 y + (alpha_t / sigma_t^2) V^T x_t);

    what lies outside the patterns is that of `WindowGaussian`, since observations say nothing of it.

    Args:
        gaussian: The prior.
        systems: Decomposed precisions.
        index: Number of the system of each window, W of them.
        pulled: G^T R^-1 y of each window, (W, L K).
    """

    pulled: Tensor
    values: Tensor
    vectors: Tensor
    spread: Tensor

    def __init__(
        self, gaussian: WindowGaussian, systems: Sequence[System], index: Sequence[int], pulled: Tensor
    ) -> None:
        super().__init__()
        self.gaussian, self.schedule = gaussian, gaussian.schedule
        self.length, self.event = gaussian.length, gaussian.event
        self.index = list(index)
        self.register_buffer("pulled", pulled)
        for name in ("values", "vectors", "spread"):
            self.register_buffer(name, torch.stack([getattr(system, name) for system in systems]))

    @classmethod
    def given(
        cls, gaussian: WindowGaussian, observations: Observations, jacobians: Mapping[str, Tensor]
    ) -> "WindowPosterior":
        """The posterior of each window of observations (W, L, *O)."""
        systems, index = Systems(gaussian).observed(observations, jacobians)
        return cls(gaussian, systems, index, pulled_back(observations, jacobians))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """(*N, W, L, *Z), () or (W, 1, ..., 1) -> the same; see the class."""
        a = self.gaussian.coefficients(x_t)
        alpha, sigma = self.schedule(t if t.ndim == 0 else t.reshape(-1, 1))
        found = self._solved(self.pulled + alpha / sigma**2 * a, (alpha / sigma) ** 2)
        remainder = self.gaussian.remainder
        outside = alpha * remainder / (alpha**2 * remainder + sigma**2)
        residual = (outside if t.ndim == 0 else outside.reshape(t.shape)) * x_t
        return residual + self.gaussian.expand(found - outside * a)

    def coefficients(self) -> Tensor:
        """E[a | y] of each window, (W, L, K)."""
        found = self._solved(self.pulled, self.pulled.new_zeros(()))
        return found.unflatten(-1, (self.length, -1))

    def mean(self) -> Tensor:
        """E[x | y] of each window, (W, L, *Z)."""
        return self.gaussian.expand(self.coefficients().flatten(-2))

    def relative_spread(self) -> Tensor:
        """Posterior standard deviation of each component in units of the prior's, (W, L, *Z)."""
        return self.spread[self.index]

    def variance(self, t: Tensor) -> Tensor:
        """Mean variance of a component of x given x_t and y, of each window, () or (W, 1) -> (W)."""
        alpha, sigma = self.schedule(t)
        rho2 = ((alpha / sigma) ** 2).reshape(-1, 1)
        inside = (1 / (self.values[self.index] + rho2)).sum(-1)
        size = self.length * self.gaussian.basis.shape[0]
        outside = 1 / (1 / self.gaussian.remainder + rho2.squeeze(-1))
        return (inside + outside * (size - self.values.shape[-1])) / size

    def _solved(self, right: Tensor, rho2: Tensor) -> Tensor:
        """(C^-1 + M + rho^2 1)^-1 b of each window: (*N, W, L K) -> the same."""
        out = torch.empty_like(right)
        for number, (value, vector) in enumerate(zip(self.values, self.vectors, strict=True)):
            rows = [w for w, n in enumerate(self.index) if n == number]
            own = rho2[rows] if rho2.ndim else rho2
            out[..., rows, :] = ((right[..., rows, :] @ vector) / (value + own)) @ vector.mT
        return out


def pulled_back(observations: Observations, jacobians: Mapping[str, Tensor]) -> Tensor:
    """G^T R^-1 y of each window, (W, L K), from values (W, L, *O), NaN where missing."""
    total: Tensor | None = None
    for name, o in observations.items():
        part = o.noise.apply(o.filled, o.precision) @ jacobians[name]
        total = part if total is None else total + part
    assert total is not None
    return total.flatten(-2)
