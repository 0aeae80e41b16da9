"""Error covariances: what an observation's noise is, and its precision where values are missing."""

import abc

import torch
from torch import Tensor

from slams.core.random import Rng, normal


class Covariance(abc.ABC):
    """Covariance of a zero-mean Gaussian vector with `size` components."""

    size: int

    @abc.abstractmethod
    def precision(self, seen: Tensor) -> Tensor:
        """Inverse covariance of the components that were seen, zero for the others.

        The inverse of the sub-matrix, not the sub-matrix of the inverse: what was not seen says nothing.

        Args:
            seen: Bool, shape (*B, size).

        Returns:
            (*B, size) for a diagonal covariance, else (*B, size, size); a full covariance leaves the leading
            axes out where all was seen.
        """

    @abc.abstractmethod
    def apply(self, residual: Tensor, precision: Tensor) -> Tensor:
        """R^-1 r for r of shape (*B, size) and a precision as above; shape (*B, size)."""

    def quadratic(self, residual: Tensor, precision: Tensor) -> Tensor:
        """r^T R^-1 r for r of shape (*B, size) and a precision as above; shape (*B)."""
        return (self.apply(residual, precision) * residual).sum(-1)

    @abc.abstractmethod
    def information(self, jacobian: Tensor, precision: Tensor) -> Tensor:
        """G^T R^-1 G for G of shape (size, K) and a precision as above; shape (*B, K, K)."""

    @abc.abstractmethod
    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """Draws of N(0, R), shape (*shape, size)."""

    @abc.abstractmethod
    def scaled(self, factor: float) -> "Covariance":
        """The covariance multiplied by `factor`."""

    @abc.abstractmethod
    def widened(self, variance: float) -> "Covariance":
        """The covariance with `variance` added to its diagonal."""


class Diagonal(Covariance):
    """R = diag(variance).

    Args:
        variance: Positive variances, shape (size).

    Raises:
        ValueError: If a variance is not positive and finite.
    """

    def __init__(self, variance: Tensor) -> None:
        if not bool((variance > 0).all()) or not bool(torch.isfinite(variance).all()):
            raise ValueError(
                "noise variances must be positive and finite, got a smallest value of "
                f"{float(variance.min()):g}; an exact observation still needs a small error."
            )
        self.variance = variance
        self.size = variance.shape[-1]

    def precision(self, seen: Tensor) -> Tensor:
        """See `Covariance.precision`."""
        return seen.to(self.variance.dtype) / self.variance

    def apply(self, residual: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.apply`."""
        return residual * precision

    def information(self, jacobian: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.information`."""
        return jacobian.mT @ (precision[..., None] * jacobian)

    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Covariance.sample`."""
        return normal((*shape, self.size), like=self.variance, rng=rng) * self.variance.sqrt()

    def scaled(self, factor: float) -> "Diagonal":
        """See `Covariance.scaled`."""
        return Diagonal(self.variance * factor)

    def widened(self, variance: float) -> "Diagonal":
        """See `Covariance.widened`."""
        return Diagonal(self.variance + variance)


class Dense(Covariance):
    """A full covariance matrix R.

    Args:
        matrix: Symmetric positive definite, shape (size, size).

    Raises:
        ValueError: If the matrix is not positive definite.
    """

    def __init__(self, matrix: Tensor) -> None:
        if int(torch.linalg.cholesky_ex(matrix).info) != 0:
            smallest = float(torch.linalg.eigvalsh(matrix)[0])
            raise ValueError(
                f"the noise covariance is not positive definite (smallest eigenvalue {smallest:g}); "
                "add a small variance to its diagonal."
            )
        self.matrix = matrix
        self.size = matrix.shape[-1]

    def precision(self, seen: Tensor) -> Tensor:
        """See `Covariance.precision`."""
        if bool(seen.all()):
            return torch.linalg.inv(self.matrix.double()).to(self.matrix.dtype)
        patterns, where = seen.reshape(-1, self.size).unique(dim=0, return_inverse=True)
        full = torch.zeros(len(patterns), self.size, self.size, dtype=self.matrix.dtype)
        for row, pattern in enumerate(patterns):
            index = pattern.nonzero().squeeze(-1)
            block = torch.linalg.inv(self.matrix[index][:, index].double())
            full[row, index[:, None], index] = block.to(full.dtype)
        return full[where].reshape(*seen.shape, self.size)

    def apply(self, residual: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.apply`."""
        return (precision @ residual[..., None]).squeeze(-1)

    def information(self, jacobian: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.information`."""
        return jacobian.mT @ precision @ jacobian

    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Covariance.sample`."""
        root = torch.linalg.cholesky(self.matrix)
        return normal((*shape, self.size), like=self.matrix, rng=rng) @ root.mT

    def scaled(self, factor: float) -> "Dense":
        """See `Covariance.scaled`."""
        return Dense(self.matrix * factor)

    def widened(self, variance: float) -> "Dense":
        """See `Covariance.widened`."""
        return Dense(self.matrix + variance * torch.eye(self.size).to(self.matrix))
