"""Empirical orthogonal functions: the leading patterns of a set of anomalies."""

from dataclasses import dataclass

import torch
from torch import Tensor

from slams.core.days import Values, daywise, mean_of, memory_slices, slices, total
from slams.core.errors import InvalidValueError


@dataclass(frozen=True)
class EOF:
    """Orthonormal patterns with the variance of their coefficients and residuals.

    x = V a + e, with V^T V = 1, E[a a^T] = diag(variance) and e uncorrelated with variances `remainder`.

    Attributes:
        basis: V, shape (D, K).
        variance: Variance of each coefficient, shape (K), in descending order.
        remainder: Variance of each component outside the patterns, shape (D).
        explained: Fraction of the total variance in the patterns.
    """

    basis: Tensor
    variance: Tensor
    remainder: Tensor
    explained: float


def eof(x: Values, *, fraction: float = 1.0, most: int | None = None) -> EOF:
    """Leading EOFs of anomalies, by the eigenvectors of the smaller of the two covariance matrices.

    Of `Days` the matrix is made of products of pieces and the patterns are sums over them: exact up to rounding, with a
    piece of days, the matrix and the patterns in memory.

    Args:
        x: Anomalies (n, D), mean removed, already weighted by the square root of area.
        fraction: Fraction of variance to keep, in (0, 1].
        most: Upper limit on the number of patterns.

    Returns:
        The patterns.

    Raises:
        ValueError: If `fraction` is outside (0, 1] or there is no variance.

    Source:
        Lorenz (1956), Empirical orthogonal functions and statistical weather prediction, MIT report 1.
    """
    if not 0 < fraction <= 1:
        raise InvalidValueError(f"fraction must be in (0, 1], got {fraction}.")
    n, size = x.shape
    gram = (total(x, lambda part, rows: part.mT @ part) if size <= n else _products(x)).double() / n
    value, vector = torch.linalg.eigh(gram)
    value, vector = value.flip(0).clamp(min=0), vector.flip(1)
    variance = float(value.sum())
    if not variance > 0:
        raise InvalidValueError("the anomalies have no variance, so they have no EOFs; check the data.")
    share = torch.cumsum(value, 0) / variance
    count = min(
        int((share < fraction - 1e-12).sum()) + 1, int((value > 1e-12 * value[0]).sum()), most or size
    )
    if size <= n:
        basis = vector[:, :count].to(x.dtype)
    else:
        weight = (vector[:, :count] / (n * value[:count]).sqrt()).to(x.dtype)
        basis = total(x, lambda part, rows: part.mT @ weight[rows])
    square = mean_of(daywise(x, Tensor.square), [0])
    remainder = (square - (basis.square() * value[:count].to(x.dtype)).sum(-1)).clamp(min=0)
    return EOF(basis, value[:count].to(x.dtype), remainder, float(share[count - 1]))


def _products(x: Values) -> Tensor:
    """x x^T, of `Days` from pairs of pieces, of which the first is as large as memory allows."""
    if isinstance(x, Tensor):
        return x @ x.mT
    found = torch.empty(len(x), len(x))
    for rows in memory_slices(x):
        whole = x[rows]
        for others in slices(x):
            if others.start < rows.stop:
                block = whole @ x[others].mT
                found[rows, others], found[others, rows] = block, block.mT
    return found
