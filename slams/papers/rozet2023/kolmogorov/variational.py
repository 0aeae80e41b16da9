"""Weak-constraint 4D-Var of the Kolmogorov flow, with the solver on the grid of the states as its model."""

from collections.abc import Callable

import torch
from torch import Tensor

from slams.core.geometry.torus import vorticity
from slams.core.random import normal
from slams.papers.rozet2023.kolmogorov.baselines import velocity_of
from slams.papers.rozet2023.kolmogorov.problem import SIZE, FlowProblem
from slams.systems.flows.kolmogorov import KolmogorovFlow

_HISTORY = 10  # pairs of L-BFGS
_SLOPE = 1e-4  # share of the promised decrease that a step must bring
_HALVINGS = 12
_REACH = 7  # steps by which a long window grows
_LONG = 12  # steps from which on the model is run twice rather than kept in memory

Objective = Callable[[Tensor], tuple[Tensor, Tensor]]


class FlowFourDVar:
    """The most likely start and model errors of a flow: min 1/2 |c|^2 + 1/2 sum |(y_k - h(x_k)) / s|^2.

    x_1 = m + B^(1/2) c_1, x_(k+1) = M(x_k) + Q^(1/2) c_(k+1). B is the climate's covariance, Q that of what one step of M
    misses, both diagonal in the wavenumbers of vorticity: M runs on the grid of the states, which are means over the
    cells of a finer one, and drops the third of their waves that it cannot carry.

    Args:
        train: Trajectories to learn m, B and Q from, (n, T, 2, N, N).
        samples: Trajectories that Q is measured on.
        iterations: Of L-BFGS, for each length of a window.
        strong: Whether to leave out model errors.

    Windows of more than 8 states are fitted from their beginning on, each fit starting from that of a shorter one.

    Source:
        Tremolet (2006), doi:10.1256/qj.05.224, the forcing formulation; Pires, Vautard & Talagrand (1996),
        doi:10.1034/j.1600-0870.1996.00006.x (growing windows); Liu & Nocedal (1989), doi:10.1007/BF01589116.
    """

    def __init__(
        self, train: Tensor, *, samples: int = 8, iterations: int = 40, strong: bool = False
    ) -> None:
        self.mean = train.mean((0, 1, 3), keepdim=True)[0, 0].expand(2, SIZE, SIZE)  # the same all along x
        self.iterations, self.strong = iterations, strong
        self.background = _amplitude(train - self.mean)
        picked = train[:samples, : 1 + min(16, train.shape[1] - 1)]
        with torch.no_grad():
            missed = picked[:, 1:] - _model(2)(picked[:, :-1])
        self.model_error = _amplitude(missed)

    def assimilate(
        self,
        problem: FlowProblem,
        first_guess: Tensor,
        *,
        members: int = 0,
        rng: torch.Generator | None = None,
        rows: int = 4,
        progress: Callable[[int], None] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """The minimum for each truth, and those with perturbed observations and background.

        Args:
            problem: What was seen.
            first_guess: Of x_1, (R, 2, N, N).
            members: How many perturbed minima for each truth.
            rng: Generator of the perturbations.
            rows: Truths at once.
            progress: Called with how many truths are done.

        Returns:
            (R, L, 2, N, N), and (R, N, L, 2, N, N) or None.
        """
        best, drawn = [], []
        for first in range(0, len(problem.truth), rows):
            part, guess = problem.part(slice(first, first + rows)), first_guess[first : first + rows]
            best.append(self._minimum(part, guess, None))
            drawn.append([self._minimum(part, guess, rng) for _ in range(members)])
            if progress is not None:
                progress(len(part.truth))
        ensemble = torch.cat([torch.stack(each, 1) for each in drawn]) if members else None
        return torch.cat(best), ensemble

    def _minimum(self, problem: FlowProblem, guess: Tensor, rng: torch.Generator | None) -> Tensor:
        length, count = problem.process.length, len(problem.truth)
        model = _model(length)
        value, h, std = problem.seen.value, problem.seen.operator, problem.process.std
        origin = guess.new_zeros(count, length, SIZE, SIZE)
        if rng is not None:
            value = value + std * normal(value.shape, like=value, rng=rng)
            origin = normal(origin.shape, like=origin, rng=rng)
        seen = torch.isfinite(value)
        control = torch.zeros_like(origin)
        control[:, 0] = self._control(guess)

        def objective(c: Tensor) -> tuple[Tensor, Tensor]:
            steps = c.shape[1]
            with torch.enable_grad():
                leaf = c.detach().requires_grad_()
                predicted = h(self._run(leaf, model))
                misfit = torch.where(seen[:, :steps], (value[:, :steps] - predicted) / std, 0.0)
                away = leaf - origin[:, :steps]
                cost = (misfit.square().flatten(1).sum(-1) + away.square().flatten(1).sum(-1)) / 2
                (gradient,) = torch.autograd.grad(cost.sum(), leaf)
            return cost.detach(), gradient

        # what a chaotic flow does late depends on its start in too many ways to be fitted before its beginning is
        stages = [*range(_REACH + 1, length - 1, _REACH), length]
        for stage in stages:
            fitted = lbfgs(objective, control[:, :stage], iterations=self.iterations)
            control = torch.cat([fitted, control[:, stage:]], 1)
        with torch.no_grad():
            return self._run(control, model)

    def _run(self, control: Tensor, model: KolmogorovFlow) -> Tensor:
        """Controls (R, L, N, N) to trajectories."""
        x = self.mean + _coloured(control[:, 0], self.background)
        states = [x]
        for k in range(1, control.shape[1]):
            x = model(x)
            if not self.strong:
                x = x + _coloured(control[:, k], self.model_error)
            states.append(x)
        return torch.stack(states, 1)

    def _control(self, x: Tensor) -> Tensor:
        """The control whose background is x, but for waves that hardly vary."""
        waves = torch.fft.rfft2(vorticity(x - self.mean), norm="ortho")
        known = self.background > 1e-3 * self.background.amax()
        shrunk = torch.where(known, waves / torch.where(known, self.background, 1.0), 0.0)
        return torch.fft.irfft2(shrunk, s=(SIZE, SIZE), norm="ortho")


def lbfgs(objective: Objective, x: Tensor, *, iterations: int) -> Tensor:
    """The minimum of a function, each row of a batch on its own.

    Args:
        objective: (R, *S) -> values (R) and gradients (R, *S).
        x: Where to start.
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


def _model(length: int) -> KolmogorovFlow:
    return KolmogorovFlow(SIZE, max_courant=1.0, checkpoint=length > _LONG)


def _amplitude(anomaly: Tensor) -> Tensor:
    """Root mean square of each wave of vorticity: (n, T, 2, N, N) -> (N, N / 2 + 1), of an orthonormal transform."""
    total = sum(torch.fft.rfft2(vorticity(x), norm="ortho").abs().square().mean(0) for x in anomaly)
    return (total / len(anomaly)).sqrt()


def _coloured(white: Tensor, amplitude: Tensor) -> Tensor:
    """The velocity of white noise times an amplitude: (*B, N, N) -> (*B, 2, N, N)."""
    waves = torch.fft.rfft2(white, norm="ortho") * amplitude
    return velocity_of(torch.fft.irfft2(waves, s=(SIZE, SIZE), norm="ortho"))
