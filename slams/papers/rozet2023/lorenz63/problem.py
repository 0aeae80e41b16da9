"""The smoothing problem of SDA on noisy Lorenz-63: observations, references, rivals and scores."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slams.assimilation.ensemble.smoother import EnKS
from slams.assimilation.particle.backward import BackwardSimulation
from slams.assimilation.variational.minimize import cost, gauss_newton, hessian_factor
from slams.assimilation.variational.window import WindowProblem
from slams.core.covariance import Isotropic
from slams.core.errors import InvalidValueError
from slams.core.random import fork
from slams.evaluation.transport import earth_mover
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from slams.observation.survey import Survey
from slams.papers.rozet2023.lorenz63.archive import SCALE, decode, encode, noisy_lorenz63
from slams.papers.study import draw_pieces

_SPIN_UP = 64  # transitions after which the prior's draws lie on the attractor
_STARTS = 8  # of 4D-Var, whose cost has several minima
_BLOWN = 8.0  # normalised; the attractor ends at 3


@dataclass(frozen=True)
class Lorenz63Process:
    """Observing network of the normalised first coordinate.

    Attributes:
        every: Steps from one observation to the next.
        std: Standard deviation of the observation error.
        length: Number of states of the trajectory.
    """

    every: int
    std: float
    length: int = 65

    def survey(self) -> Survey:
        """Survey of normalised states."""
        return Survey(
            {"a": Select(torch.tensor([0]), event=1)}, {"a": Isotropic(self.std**2)}, every=self.every
        )


@dataclass(frozen=True)
class Lorenz63Problem:
    """Truths and their observations.

    Attributes:
        process: Observing network.
        truth: Normalised truths, (R, L, 3).
        observations: Observations of normalised states, values (R, L, 1).
    """

    process: Lorenz63Process
    truth: Tensor
    observations: Observations

    @classmethod
    def draw(
        cls, process: Lorenz63Process, test: Tensor, count: int, seed: int, label: str
    ) -> "Lorenz63Problem":
        """Observations of the beginnings of test trajectories, each with its own noise.

        Raises:
            ValueError: If there are fewer test trajectories.
        """
        if count > len(test):
            raise InvalidValueError(
                f"there are {len(test)} test trajectories, {count} observations were asked for."
            )
        truth = test[:count, : process.length]
        parts = [process.survey().observe(x, rng=fork(seed, label, i)) for i, x in enumerate(truth)]
        first = parts[0]["a"]
        value = torch.stack([part["a"].value for part in parts])
        return cls(process, truth, Observations({"a": Observation(value, first.operator, first.noise)}))

    def one(self, i: int) -> Observations:
        """The record of one truth as seen from states of the system, values (L, 1)."""
        return self._physical(self.observations["a"].value[i])

    def all(self, copies: int = 1) -> Observations:
        """All records as seen from states of the system, values (copies R, L, 1) in double precision."""
        return self._physical(self.observations["a"].value.double().repeat(copies, 1, 1))

    def _physical(self, value: Tensor) -> Observations:
        operator = self.observations["a"].operator
        seen = Observation(value, operator, Isotropic(self.process.std**2))
        return Observations({"a": seen}).pullback({"a": encode})


def smoothed(
    problem: Lorenz63Problem,
    size: int,
    *,
    particles: int,
    backward: bool,
    label: str,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Particle smoother: normalised draws (R, N, L, 3), and the distinct ancestors of the first step (R)."""
    system = noisy_lorenz63()
    method = BackwardSimulation(system, particles=particles, spin_up=_SPIN_UP, backward=backward)
    draws, ancestors = [], []
    for i in range(len(problem.truth)):
        done = method.assimilate(problem.one(i), size, rng=fork(seed, label, i))
        assert done.samples is not None
        draws.append(encode(done.samples))
        ancestors.append(done.diagnostics["ancestors"][0])
        if progress is not None:
            progress(1)
    return torch.stack(draws), {"ancestors": torch.stack(ancestors)}


def ensemble_smoothed(problem: Lorenz63Problem, size: int, climate: Tensor, rng: torch.Generator) -> Tensor:
    """Ensemble Kalman smoother with the whole past in its lag, from climatological states (n, 3)."""
    count, length = problem.truth.shape[:2]
    index = torch.randint(len(climate), (count, size), generator=rng)
    method = EnKS(noisy_lorenz63(torch.float64), lag=length - 1)
    done = method.assimilate(problem.all(), size, x0=decode(climate[index].double()), rng=rng)
    assert done.samples is not None
    return encode(done.samples)


def variational(problem: Lorenz63Problem, size: int, climate: Tensor, rng: torch.Generator) -> Tensor:
    """Weak-constraint 4D-Var over the whole record: draws of the Gaussian at the least of several minima."""
    system, count = noisy_lorenz63(torch.float64), len(problem.truth)
    states = decode(climate.double())
    mean, centred = states.mean(0), states - states.mean(0)
    covariance = centred.mT @ centred / len(states)
    error = system.noise**2 * system.dt * torch.eye(3, dtype=torch.float64)

    def window(copies: int) -> WindowProblem:
        seen = problem.all(copies=copies)
        steps = [seen.step(k) for k in range(seen.steps)]
        return WindowProblem(system, steps, mean.expand(copies * count, 3), covariance, error)

    trial = window(_STARTS)
    origin = trial.origin()
    origin[:, :3] = torch.randn(len(origin), 3, generator=rng, dtype=torch.float64)
    control = gauss_newton(trial.residual, origin, iterations=30).control
    reached = cost(control, trial.residual(control.unsqueeze(-2)).squeeze(-2))
    best = reached.nan_to_num(nan=math.inf).reshape(_STARTS, count).argmin(0)
    control = control.reshape(_STARTS, count, -1)[best, torch.arange(count)]
    final = window(1)
    factor = hessian_factor(final.residual, control)
    noise = torch.randn(count, control.shape[-1], size, generator=rng, dtype=torch.float64)
    spread = torch.linalg.solve_triangular(factor.mT, noise, upper=True).mT
    return encode(
        torch.stack(
            [x.squeeze(-2) if x.ndim > 3 else x for x in final.trajectory(control.unsqueeze(1) + spread)], -2
        )
    )


def climatology(problem: Lorenz63Problem, size: int, train: Tensor, rng: torch.Generator) -> Tensor:
    """Random segments of training trajectories, regardless of the observations."""
    count, length = problem.truth.shape[:2]
    return draw_pieces(train, (count, size), length, rng)


def interpolated(problem: Lorenz63Problem, size: int, train: Tensor) -> Tensor:
    """Linear interpolation of the observations, and the climatological mean of unobserved coordinates, N equal copies."""
    value = problem.observations["a"].value[..., 0]
    steps = torch.arange(0, value.shape[1], problem.process.every)
    known = value[:, steps]
    place = torch.arange(value.shape[1]) / problem.process.every
    left = place.floor().long().clamp(max=len(steps) - 2)
    share = place - left
    line = known[:, left] * (1 - share) + known[:, left + 1] * share
    x = train.mean((0, 1)).expand(*line.shape, 3).clone()
    x[..., 0] = line
    return x.unsqueeze(1).expand(-1, size, -1, -1).contiguous()


def scores(problem: Lorenz63Problem, samples: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Scores of a method's draws, one number for each truth, (R).

    Args:
        problem: Problem with its observations.
        samples: Normalised draws (R, N, L, 3).
        reference: Draws of the exact posterior, same shape.

    Returns:
        "w1" and "rmse" of the mean [units of the states], "log_prior" = E log p(x_2..x_L | x_1) and "log_likelihood" =
        E log p(y | x) [nats], and "blown", the fraction of draws that left the attractor; these count in no mean.
    """
    system = noisy_lorenz63(torch.float64)
    out: dict[str, list[float]] = {n: [] for n in ("w1", "log_prior", "log_likelihood", "rmse", "blown")}
    obs = problem.observations["a"]
    scale = obs.value.new_tensor(SCALE).double()
    for i, draws in enumerate(samples.double()):
        bad = ~(draws.abs().amax((-2, -1)) < _BLOWN)
        fine = draws[~bad]
        out["blown"].append(float(bad.double().mean()))
        if len(fine) < 2:
            for name in ("w1", "log_prior", "log_likelihood", "rmse"):
                out[name].append(math.nan)
            continue
        x = decode(fine)
        other = decode(reference[i].double()[: len(fine)])
        out["w1"].append(earth_mover(x, other))
        out["log_prior"].append(float(system.log_transition(x[:, :-1], x[:, 1:]).sum(-1).mean()))
        value = obs.value[i].double()
        seen = torch.isfinite(value)
        misfit = torch.where(seen, (value - fine[..., :1]) / problem.process.std, 0.0).square().sum((-2, -1))
        constant = int(seen.sum()) * math.log(math.sqrt(2 * math.pi) * problem.process.std)
        out["log_likelihood"].append(float((-misfit / 2).mean()) - constant)
        error = (fine.mean(0) - problem.truth[i].double()) * scale
        out["rmse"].append(float(error.square().mean().sqrt()))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in out.items()}
