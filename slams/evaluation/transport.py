"""Optimal transport distance between two samples of vectors."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from slams.core.errors import InvalidValueError


def earth_mover(x: Tensor, y: Tensor) -> float:
    """Wasserstein-1 distance of two samples of equal size and weight, exact, with Euclidean cost.

    Between two independent samples of the same distribution it is not 0 but falls slowly with their size, the more
    slowly the more dimensions they have: compare only distances of one size.

    Args:
        x: First sample, (N, *S); axes behind the first are flattened.
        y: Second sample, (N, *S).

    Returns:
        The mean distance under the best pairing [unit of the values].

    Raises:
        ValueError: If the samples differ in shape or are not finite.

    Source:
        Kantorovich's problem with equal weights is an assignment: Birkhoff (1946).

    >>> earth_mover(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.5], [0.0]]))
    0.25
    """
    if x.shape != y.shape or x.ndim < 2:
        raise InvalidValueError(
            f"needs two samples (N, *S) of one shape, got {tuple(x.shape)} and {tuple(y.shape)}; draw as many of both."
        )
    cost = torch.cdist(
        x.double().flatten(1), y.double().flatten(1), compute_mode="donot_use_mm_for_euclid_dist"
    )
    if not bool(torch.isfinite(cost).all()):
        raise InvalidValueError("a sample is not finite; remove what blew up, and count it.")
    matrix = cost.cpu().numpy()
    rows, columns = linear_sum_assignment(matrix)
    return float(matrix[rows, columns].mean())
