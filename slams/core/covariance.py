"""Observation-error covariances, and their precision where values are missing."""

import abc
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.random import Rng, normal

_KEPT = 4  # inverses of sub-matrices that a full covariance keeps


class Covariance(abc.ABC):
    """Covariance of a zero-mean Gaussian vector with `size` components."""

    size: int

    @abc.abstractmethod
    def precision(self, seen: Tensor) -> Tensor:
        """Inverse covariance of the observed components, zero for the others.

        The inverse of the sub-matrix, not the sub-matrix of the inverse: missing values carry no information.

        Args:
            seen: Mask of observed components, bool (*B, size).

        Returns:
            (*B, size) for a diagonal covariance, else (*B, size, size); a full covariance leaves the leading
            axes out where the mask is the same everywhere.
        """

    @abc.abstractmethod
    def whiten(self, residual: Tensor, seen: Tensor | None = None) -> Tensor:
        """W r with W^T W = precision(seen): errors of observed components become independent with unit variance.

        Args:
            residual: r, shape (..., size); values at missing components are ignored.
            seen: Mask of observed components, bool, broadcastable to `residual`; all if None, which is faster.

        Returns:
            Shape of `residual`, exactly zero at missing components.
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
    def widened(self, variance: float | Tensor) -> "Covariance":
        """The covariance with `variance`, one number or one for each component, added to its diagonal."""

    @abc.abstractmethod
    def dense(self) -> Tensor:
        """The matrix R, shape (size, size)."""

    @abc.abstractmethod
    def select(self, index: Tensor) -> "Covariance":
        """Covariance of the components `index` (n), in that order."""

    @abc.abstractmethod
    def to(self, like: Tensor) -> "Covariance":
        """The covariance in the dtype and on the device of `like`."""

    def sized(self, size: int, like: Tensor | None = None) -> "Covariance":
        """The covariance for `size` values; `Isotropic` ones have no size before.

        Args:
            size: Number of values.
            like: Tensor whose dtype and device a covariance without its own takes.

        Raises:
            ValueError: If the covariance has another size.
        """
        if size != self.size:
            raise InvalidValueError(
                f"the observation has {size} values but its noise covariance {self.size}; "
                "give one error per value."
            )
        return self


class Diagonal(Covariance):
    """R = diag(variance).

    Args:
        variance: Positive variances, shape (size).

    Raises:
        ValueError: If a variance is not positive and finite.
    """

    def __init__(self, variance: Tensor) -> None:
        if not bool((variance > 0).all()) or not bool(torch.isfinite(variance).all()):
            raise InvalidValueError(
                "noise variances must be positive and finite, got a smallest value of "
                f"{float(variance.min()):g}; an exact observation still needs a small error."
            )
        self.variance = variance
        self.size = variance.numel()
        self._weight = variance.rsqrt()

    def precision(self, seen: Tensor) -> Tensor:
        """See `Covariance.precision`."""
        return seen.to(self.variance.dtype) / self.variance

    def whiten(self, residual: Tensor, seen: Tensor | None = None) -> Tensor:
        """See `Covariance.whiten`."""
        scaled = residual * self._weight
        return scaled if seen is None else torch.where(seen, scaled, 0.0)

    def apply(self, residual: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.apply`."""
        return residual * precision

    def information(self, jacobian: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.information`."""
        seen = (precision != 0).reshape(-1, self.size).any(0)
        if not bool(seen.all()):  # of a grid seen in a few columns, those rows only
            jacobian, precision = jacobian[seen], precision[..., seen]
        return jacobian.mT @ (precision[..., None] * jacobian)

    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """See `Covariance.sample`."""
        return normal((*shape, self.size), like=self.variance, rng=rng) * self.variance.sqrt()

    def scaled(self, factor: float) -> "Diagonal":
        """See `Covariance.scaled`."""
        return Diagonal(self.variance * factor)

    def widened(self, variance: float | Tensor) -> "Diagonal":
        """See `Covariance.widened`."""
        return Diagonal(self.variance + variance)

    def dense(self) -> Tensor:
        """See `Covariance.dense`."""
        return self.variance.diag()

    def select(self, index: Tensor) -> "Diagonal":
        """See `Covariance.select`."""
        return Diagonal(self.variance[index])

    def to(self, like: Tensor) -> "Diagonal":
        """See `Covariance.to`."""
        return Diagonal(self.variance.to(like))


class Isotropic(Diagonal):
    """R = variance times the identity, for any number of values.

    It whitens and weighs any number of values; what needs the number (draws, the matrix, a selection) needs
    `sized` first, which observations and surveys call themselves.

    Args:
        variance: Positive variance of every value (not its standard deviation).

    Raises:
        ValueError: If the variance is not positive and finite.

    >>> Isotropic(4.0).sized(2).dense()
    tensor([[4., 0.],
            [0., 4.]])
    """

    def __init__(self, variance: float) -> None:
        # float64 without axes: it takes the dtype of whatever it multiplies
        super().__init__(torch.tensor(float(variance), dtype=torch.float64))
        self.size = 0

    def sized(self, size: int, like: Tensor | None = None) -> Diagonal:
        """The covariance of `size` values, in the dtype and on the device of `like`."""
        if like is None:
            return Diagonal(torch.full((size,), float(self.variance)))
        return Diagonal(torch.full((size,), float(self.variance), dtype=like.dtype, device=like.device))

    def sample(self, *shape: int, rng: Rng = None) -> Tensor:
        """Refused: how many values?"""
        raise self._unsized()

    def scaled(self, factor: float) -> "Isotropic":
        """See `Covariance.scaled`."""
        return Isotropic(float(self.variance) * factor)

    def widened(self, variance: float | Tensor) -> "Isotropic":
        """See `Covariance.widened`; one number only."""
        return Isotropic(float(self.variance) + float(variance))

    def dense(self) -> Tensor:
        """Refused: how many values?"""
        raise self._unsized()

    def select(self, index: Tensor) -> "Isotropic":
        """See `Covariance.select`."""
        return self

    def to(self, like: Tensor) -> "Isotropic":
        """See `Covariance.to`."""
        return self

    def _unsized(self) -> ValueError:
        return ValueError("an isotropic covariance has no number of values yet; call sized(n) first.")


class Dense(Covariance):
    """A full covariance matrix R.

    Args:
        matrix: Symmetric positive definite, shape (size, size).

    Raises:
        ValueError: If the matrix is not square, symmetric and positive definite.
    """

    def __init__(self, matrix: Tensor) -> None:
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise InvalidValueError(f"a covariance is a square matrix, got shape {tuple(matrix.shape)}.")
        asymmetry = (matrix - matrix.mT).abs().max() / matrix.abs().max()
        if bool(asymmetry > 1e-4):
            raise InvalidValueError(
                f"the noise covariance is not symmetric (relative asymmetry {float(asymmetry):.1g}); "
                "average it with its transpose."
            )
        if int(torch.linalg.cholesky_ex(matrix).info) != 0:
            smallest = float(torch.linalg.eigvalsh(matrix)[0])
            raise InvalidValueError(
                f"the noise covariance is not positive definite (smallest eigenvalue {smallest:g}); "
                "add a small variance to its diagonal."
            )
        self.matrix = matrix
        self.size = matrix.shape[-1]
        self._known: dict[tuple[Callable[[Tensor], Tensor], bytes], Tensor] = {}

    def precision(self, seen: Tensor) -> Tensor:
        """See `Covariance.precision`."""
        if bool(seen.all()):
            return self._by_pattern(seen.reshape(-1, self.size)[0], torch.linalg.inv)
        rows = seen.reshape(-1, self.size)
        if bool((rows == rows[:1]).all()):  # gauges on land, day after day: one matrix, not one a day
            return self._by_pattern(rows[0], torch.linalg.inv)
        return self._by_pattern(seen, torch.linalg.inv)

    def whiten(self, residual: Tensor, seen: Tensor | None = None) -> Tensor:
        """See `Covariance.whiten`; W is the inverse Cholesky factor of the observed sub-matrix."""
        if seen is None or bool(seen.all()):
            return residual @ self._root.to(residual.dtype).mT
        root = self._by_pattern(seen, _inverse_factor).to(residual.dtype)
        clean = torch.where(seen, residual, 0.0)
        if seen.ndim == 1 or seen.shape[-2] == 1:  # one pattern for all members: a product of matrices
            return clean @ (root if seen.ndim == 1 else root.squeeze(-3)).mT
        return (root @ clean[..., None]).squeeze(-1)

    def apply(self, residual: Tensor, precision: Tensor) -> Tensor:
        """See `Covariance.apply`."""
        if precision.ndim == 2:
            return residual @ precision.mT
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

    def widened(self, variance: float | Tensor) -> "Dense":
        """See `Covariance.widened`."""
        return Dense(self.matrix + variance * torch.eye(self.size).to(self.matrix))

    def dense(self) -> Tensor:
        """See `Covariance.dense`."""
        return self.matrix

    def select(self, index: Tensor) -> "Dense":
        """See `Covariance.select`."""
        return Dense(self.matrix[index][:, index])

    def to(self, like: Tensor) -> "Dense":
        """See `Covariance.to`."""
        return Dense(self.matrix.to(like))

    @cached_property
    def _root(self) -> Tensor:
        return _inverse_factor(self.matrix.double()).to(self.matrix.dtype)

    def _by_pattern(self, seen: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
        """`inverse` of the observed sub-matrix, once per distinct pattern; shape (*seen, size)."""
        patterns, where = seen.reshape(-1, self.size).unique(dim=0, return_inverse=True)
        full = torch.stack([self._inverse(pattern, inverse) for pattern in patterns])
        return full[where].reshape(*seen.shape, self.size)

    def _inverse(self, pattern: Tensor, inverse: Callable[[Tensor], Tensor]) -> Tensor:
        """`inverse` of the sub-matrix of one pattern, 0 elsewhere; the last few are kept for windows to come."""
        key = inverse, pattern.cpu().numpy().tobytes()
        if key not in self._known:
            if len(self._known) == _KEPT:
                del self._known[next(iter(self._known))]
            full, index = torch.zeros_like(self.matrix), pattern.nonzero().squeeze(-1)
            full[index[:, None], index] = inverse(self.matrix[index][:, index].double()).to(full.dtype)
            self._known[key] = full
        return self._known[key]


def stack(covariances: Sequence[Covariance]) -> Covariance:
    """Block-diagonal covariance of concatenated independent vectors.

    Args:
        covariances: The blocks, each with a size.

    Returns:
        The block itself if it is the only one, a `Diagonal` if all are diagonal, else a `Dense`.

    Raises:
        ValueError: If there is no block, or one has no size yet.

    >>> stack([Diagonal(torch.tensor([1.0])), Diagonal(torch.tensor([2.0, 3.0]))]).variance
    tensor([1., 2., 3.])
    """
    if not covariances or not all(block.size for block in covariances):
        sizes = [block.size for block in covariances]
        raise InvalidValueError(f"blocks need a size each, got {sizes} (0: none yet); call sized(n) first.")
    if len(covariances) == 1:
        return covariances[0]
    diagonals = [block.variance for block in covariances if isinstance(block, Diagonal)]
    if len(diagonals) == len(covariances):
        return Diagonal(torch.cat(diagonals))
    return Dense(torch.block_diag(*(block.dense() for block in covariances)))


def _inverse_factor(matrix: Tensor) -> Tensor:
    """L^-1 where L L^T is the matrix."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(matrix), eye, upper=False)
