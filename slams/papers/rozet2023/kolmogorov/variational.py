"""Weak-constraint 4D-Var of the Kolmogorov flow, with the solver on the grid of the states as its model."""

from collections.abc import Callable

import torch
from torch import Tensor

from slams.assimilation.variational.minimize import lbfgs
from slams.core.geometry.torus import vorticity
from slams.core.random import normal
from slams.papers.rozet2023.kolmogorov.baselines import velocity_of
from slams.papers.rozet2023.kolmogorov.problem import SIZE, FlowProblem
from slams.systems.flows.kolmogorov import KolmogorovFlow

_REACH = 7  # steps by which a long window grows
_LONG = 12  # steps from which on the model is run twice rather than kept in memory


class FlowFourDVar:
    """Weak-constraint 4D-Var of a flow: min 1/2 |c|^2 + 1/2 sum |(y_k - h(x_k)) / s|^2.

    x_1 = m + B^(1/2) c_1, x_(k+1) = M(x_k) + Q^(1/2) c_(k+1). B is the climate's covariance, Q that of what one step of M
    misses, both diagonal in the wavenumbers of vorticity: M runs on the grid of the states, which are means over the
    cells of a finer one, and drops the third of their waves that it cannot carry.

    Args:
        train: Trajectories for estimating m, B and Q, (n, T, 2, N, N).
        samples: Number of trajectories for estimating Q.
        iterations: Iterations of L-BFGS, for each length of a window.
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
            problem: Problem with its observations.
            first_guess: First guess of x_1, (R, 2, N, N).
            members: Number of perturbed minima for each truth.
            rng: Generator of the perturbations.
            rows: Number of truths at once.
            progress: Callback with the number of finished truths.

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
