"""Minimization: least squares with a standard normal prior by Gauss-Newton steps, any function by L-BFGS."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from slams.assimilation.variational.linearized import basis, jacobian, tangents

Solver = Literal["auto", "direct", "cg"]
Residual = Callable[[Tensor], Tensor]
Objective = Callable[[Tensor], tuple[Tensor, Tensor]]  # values and gradients, each row of a batch on its own

_DIRECT = 300  # largest control solved with its matrix: beyond, its tangents cost more than CG's products
_FRACTIONS = 8  # a step is tried at 1, 1/2, ... 1/128 of its length, and not at all
_HISTORY = 10  # pairs of L-BFGS
_SLOPE = 1e-4  # share of the promised decrease that a step of L-BFGS must bring
_HALVINGS = 12


class Minimum(NamedTuple):
    """Minimum of a cost function.

    Attributes:
        control: Minimizer, (*B, K).
        cost: Cost J at the minimum, (*B).
        iterations: Number of Gauss-Newton steps.
    """

    control: Tensor
    cost: Tensor
    iterations: int


def cost(control: Tensor, residual: Tensor) -> Tensor:
    """J = 1/2 |c|^2 + 1/2 |r|^2 over the last axes."""
    return (control.square().sum(-1) + residual.square().sum(-1)) / 2


def gauss_newton(
    residual: Residual, control: Tensor, *, iterations: int = 10, solver: Solver = "auto"
) -> Minimum:
    """Minimise J(c) = 1/2 |c|^2 + 1/2 |r(c)|^2, each replicate on its own.

    Each step minimises J with r replaced by its tangent, (I + G^T G) dc = G^T r - c with G = -dr/dc; of that step
    halved up to seven times, each replicate takes the length that lowers J most, or none. Ends when r turned out to be
    linear along the steps, or no replicate moves.

    Args:
        residual: r, members to members: (*B, M, K) -> (*B, M, P).
        control: First guess, (*B, K).
        iterations: Most steps.
        solver: "direct" makes the matrix from K tangents; "cg" needs only products with G and G^T; "auto" takes the
            former for up to 300 controls.

    Returns:
        The minimum.

    Source:
        Courtier, Thepaut & Hollingsworth (1994), doi:10.1002/qj.49712051912, eqs. 3-5 (incremental form);
        Gratton, Lawless & Nichols (2007), doi:10.1137/050624935 (as Gauss-Newton).
    """
    direct = solver == "direct" or (solver == "auto" and control.shape[-1] <= _DIRECT)
    step = _direct_step if direct else _conjugate_step
    halves = 0.5 ** torch.arange(_FRACTIONS + 1, dtype=control.dtype, device=control.device)
    halves[-1] = 0
    eps = torch.finfo(control.dtype).eps
    lowest = cost(control, residual(control.unsqueeze(-2)).squeeze(-2))
    for done in range(iterations):
        increment, r, change = step(residual, control)
        candidates = control.unsqueeze(-2) + halves.unsqueeze(-1) * increment.unsqueeze(-2)
        tried = residual(candidates)
        costs = torch.nan_to_num(cost(candidates, tried), nan=torch.inf)
        lowest, best = costs.min(-1)
        control = control + halves[best].unsqueeze(-1) * increment
        full = torch.linalg.vector_norm(tried[..., 0, :] - r - change, dim=-1)
        straight = full <= 100 * eps * (1 + torch.linalg.vector_norm(r, dim=-1))
        moved, size = torch.linalg.vector_norm(increment, dim=-1), torch.linalg.vector_norm(control, dim=-1)
        still = moved <= eps**0.6 * (1 + size)
        if bool((straight | still | (best == _FRACTIONS)).all()):
            return Minimum(control, lowest, done + 1)
    return Minimum(control, lowest, iterations)


def hessian_factor(residual: Residual, control: Tensor) -> Tensor:
    """Cholesky factor L of the Gauss-Newton Hessian I + G^T G at c; its inverse is the posterior covariance.

    Args:
        residual: Residual function, as in `gauss_newton`.
        control: Control vector c, (*B, K).

    Returns:
        L, (*B, K, K).
    """
    return _normal_matrix(residual, control)[0]


def _normal_matrix(residual: Residual, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Factor of I + G^T G, r, and dr/dc^T (*B, K, P)."""
    c = control.unsqueeze(-2)
    count = residual(c).shape[-1]
    if not count:  # a window in which nothing was seen
        r, change = c[..., :0], c.new_zeros(*control.shape, 0)
    elif count <= 4 * c.shape[-1]:
        r, change = jacobian(residual, c, count, 1)
    else:
        r, change = tangents(residual, c, basis(c, 1), 1)
    matrix = change @ change.mT
    matrix.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return torch.linalg.cholesky_ex(matrix).L, r.squeeze(-2), change


def _direct_step(residual: Residual, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Increment, r, and the change of r that the tangent promises."""
    factor, r, change = _normal_matrix(residual, control)
    slope = control.unsqueeze(-1) + change @ r.unsqueeze(-1)
    increment = -torch.cholesky_solve(slope, factor).squeeze(-1)
    return increment, r, (increment.unsqueeze(-2) @ change).squeeze(-2)


def _conjugate_step(residual: Residual, control: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `_direct_step`, by conjugate gradients; the prior already is the preconditioner.

    Source:
        Hestenes & Stiefel (1952), doi:10.6028/jres.049.044, eq. 3:1.
    """
    r, tangent, pullback = _products(residual, control)
    gradient = control + pullback(r)
    x, p, rest = torch.zeros_like(control), -gradient, -gradient
    norm = first = rest.square().sum(-1, keepdim=True)
    floor = torch.finfo(control.dtype).eps ** 2 * first
    for _ in range(min(2 * control.shape[-1], 500)):
        Ap = p + pullback(tangent(p))
        curvature = (p * Ap).sum(-1, keepdim=True)
        alpha = torch.where(
            norm > floor, norm / curvature, 0.0
        )  # a replicate that is done must not divide 0 by 0
        x, rest = x + alpha * p, rest - alpha * Ap
        after = rest.square().sum(-1, keepdim=True)
        p = rest + torch.where(norm > floor, after / norm, 0.0) * p
        norm = after
        if not bool((norm > floor).any()):
            break
    return x, r, tangent(x)


def _products(residual: Residual, control: Tensor) -> tuple[Tensor, Residual, Residual]:
    """r (*B, P), v -> (dr/dc) v and u -> (dr/dc)^T u, from one run of the model.

    The tangent is the derivative of the adjoint u -> (dr/dc)^T u, which is linear in u.
    """
    with torch.enable_grad():
        c = control.detach().requires_grad_()
        r = residual(c.unsqueeze(-2)).squeeze(-2)
        u = torch.zeros_like(r, requires_grad=True)
        (adjoint,) = torch.autograd.grad(r, c, u, create_graph=True)

    def tangent(v: Tensor) -> Tensor:
        return torch.autograd.grad(adjoint, u, v, retain_graph=True)[0]

    def pullback(s: Tensor) -> Tensor:
        return torch.autograd.grad(r, c, s, retain_graph=True)[0]

    return r.detach(), tangent, pullback


def lbfgs(objective: Objective, x: Tensor, *, iterations: int) -> Tensor:
    """The minimum of a function, each row of a batch on its own.

    Args:
        objective: (R, *S) -> values (R) and gradients (R, *S).
        x: First guess.
        iterations: Most steps; a row that finds no lower point stays.

    Returns:
        (R, *S).

    Source:
        Liu & Nocedal (1989), doi:10.1007/BF01589116; Nocedal (1980), doi:10.1090/S0025-5718-1980-0572855-7 (recursion).
    """
    shape, x = x.shape, x.flatten(1)

    def flat(at: Tensor) -> tuple[Tensor, Tensor]:
        value, slope = objective(at.reshape(shape))
        return value, slope.flatten(1)

    value, slope = flat(x)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []
    for turn in range(iterations):
        direction = -_inverse_hessian(slope, pairs)
        promise = (direction * slope).sum(-1)
        size = torch.ones_like(value) if turn else 1 / slope.norm(dim=-1).clamp(min=1)
        new, there, steep = _descend(flat, x, value, slope, direction, promise, size)
        s, y = new - x, steep - slope
        curvature = (s * y).sum(-1, keepdim=True)
        # a row that stood still, or met no positive curvature, learns nothing from this pair
        rho = torch.where(curvature > 1e-10 * y.square().sum(-1, keepdim=True), 1 / curvature, 0.0)
        pairs = [*pairs, (s, y, rho)][-_HISTORY:]
        if bool((new == x).all()):
            break
        x, value, slope = new, there, steep
    return x.reshape(shape)


def _descend(
    flat: Objective, x: Tensor, value: Tensor, slope: Tensor, direction: Tensor, promise: Tensor, size: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The first of halved steps that goes down enough, for each row; x itself where none does."""
    best, at, steep = x, value, slope
    open_ = torch.ones_like(value, dtype=torch.bool)
    for _ in range(_HALVINGS):
        trial = torch.where(open_[:, None], x + size[:, None] * direction, best)
        there, gradient = flat(trial)
        fine = open_ & (there <= value + _SLOPE * size * promise) & torch.isfinite(gradient).all(-1)
        best = torch.where(fine[:, None], trial, best)
        at, steep = torch.where(fine, there, at), torch.where(fine[:, None], gradient, steep)
        open_ = open_ & ~fine
        if not bool(open_.any()):
            break
        size = torch.where(open_, size / 2, size)
    return best, at, steep


def _inverse_hessian(slope: Tensor, pairs: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Its product with a gradient, by the two-loop recursion."""
    q, shares = slope, []
    for s, y, rho in reversed(pairs):
        share = rho * (s * q).sum(-1, keepdim=True)
        q = q - share * y
        shares.append(share)
    if pairs:
        _, y, rho = pairs[-1]
        scale = torch.where(rho > 0, 1 / (rho * y.square().sum(-1, keepdim=True)).clamp(min=1e-30), 1.0)
        q = scale * q
    for (s, y, rho), share in zip(pairs, reversed(shares), strict=True):
        q = q + (share - rho * (y * q).sum(-1, keepdim=True)) * s
    return q
