"""Iterative solvers of A u = b for a batch, in which each sample stops on its own."""

from collections.abc import Callable

import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]


def conjugate_gradients(product: Product, b: Tensor, *, iterations: int, tolerance: float) -> Tensor:
    """Solves with symmetric positive definite matrices.

    A sample whose residual is small enough, or along whose direction A is not positive, is left as it is, so
    that no sample depends on how long the others take.

    Args:
        product: u -> A u, rows (*B, n).
        b: (*B, n).
        iterations: Largest number of products.
        tolerance: Norm of a residual relative to that of b at which its sample stops.

    Returns:
        u, shape (*B, n).

    Source:
        Hestenes & Stiefel (1952), doi:10.6028/jres.049.044, eq. 3:1.
    """
    u, residual, direction = torch.zeros_like(b), b, b
    square = b.square().sum(-1, keepdim=True)
    goal = tolerance**2 * square
    active = ~(square == 0)  # so that a NaN is active: it has to reach the caller's check
    for _ in range(iterations):
        if not bool(active.any()):
            break
        moved = product(direction)
        curvature = (direction * moved).sum(-1, keepdim=True)
        active = active & ~(curvature <= 0)
        size = torch.where(active, square / torch.where(active, curvature, 1.0), 0.0)
        u = u + size * direction
        residual = residual - size * moved
        after = residual.square().sum(-1, keepdim=True)
        active = active & ~(after <= goal)
        direction = residual + torch.where(active, after / square, 0.0) * direction
        square = torch.where(active, after, square)
    return u


def gmres(product: Product, b: Tensor, *, iterations: int, tolerance: float) -> Tensor:
    """Solves with any matrices, by the smallest residual in the Krylov space.

    Args:
        product: u -> A u, rows (*B, n).
        b: (*B, n).
        iterations: Largest number of products.
        tolerance: Norm of a new direction's orthogonal part, relative to its length, at which a sample stops.

    Returns:
        u, shape (*B, n).

    Source:
        Saad & Schultz (1986), doi:10.1137/0907058, algorithm 3.
    """
    length = b.norm(dim=-1, keepdim=True)
    active = ~(length == 0)
    basis = [torch.where(active, b / torch.where(active, length, 1.0), 0.0)]
    columns = []
    for _ in range(min(iterations, b.shape[-1])):
        if not bool(active.any()):
            break
        new, column = product(basis[-1]), []
        before = new.norm(dim=-1, keepdim=True)
        for old in basis * 2:  # twice: once loses orthogonality where A is ill-conditioned
            share = (old * new).sum(-1, keepdim=True)
            column.append(share)
            new = new - share * old
        half = len(basis)
        column = [first + second for first, second in zip(column[:half], column[half:], strict=True)]
        left = new.norm(dim=-1, keepdim=True)
        going = active & ~(left <= tolerance * before)
        basis.append(torch.where(going, new / torch.where(going, left, 1.0), 0.0))
        # a sample that has stopped gets columns of an identity, whose coefficients come out as zero
        columns.append([*column, torch.where(active, torch.where(going, left, 0.0), 1.0)])
        active = going
    if not columns:
        return torch.zeros_like(b)
    coefficients = _least_squares(columns, length)
    return (torch.cat([v[..., None] for v in basis[:-1]], -1) @ coefficients).squeeze(-1)


def _least_squares(columns: list[list[Tensor]], length: Tensor) -> Tensor:
    """min |length e_1 - H c| with the upper Hessenberg matrix H of the columns; (*B, k, 1)."""
    rows = len(columns) + 1
    full = [torch.cat(column, -1) for column in columns]
    padded = [torch.nn.functional.pad(column, (0, rows - column.shape[-1])) for column in full]
    q, r = torch.linalg.qr(torch.stack(padded, -1))
    return torch.linalg.solve_triangular(r, q[..., :1, :].mT * length[..., None], upper=True)
