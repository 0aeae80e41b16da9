"""Baselines of a flow without a network: climatology, linear interpolation, a Gaussian prior in closed form."""

import math

import torch
from torch import Tensor

from slams.core.errors import InvalidValueError
from slams.core.geometry.torus import clockwise_vorticity, coarsen, wavenumbers
from slams.core.random import normal
from slams.diffusion.guidance.evidence import Evidence, Linearized
from slams.diffusion.guidance.krylov import conjugate_gradients
from slams.diffusion.solenoidal import FlowCovariance
from slams.observation.observation import Observations
from slams.papers.rozet2023.kolmogorov.problem import EVENT, SIZE, FlowProblem, FlowProcess

_SATURATED = 0.95  # of a saturating sensor: noise beyond would stand for an unbounded vorticity


class FlowGaussian:
    """N(m, C) of trajectories of velocities.

    Args:
        mean: Mean m, (2, N, N).
        covariance: Covariance C, diagonal in waves.
    """

    def __init__(self, mean: Tensor, covariance: FlowCovariance) -> None:
        self.mean, self.covariance = mean, covariance

    def covariance_product(self, v: Tensor) -> Tensor:
        """Covariance product C v, (*B, L, 2, N, N)."""
        return self.covariance.posterior(v, v.new_zeros(()))

    def sample(self, count: int, *, rng: torch.Generator) -> Tensor:
        """Draws of N(m, C), (count, L, 2, N, N)."""
        c, frame = self.covariance, self.covariance.frame
        white = normal((count, c.length, *self.mean.shape), like=self.mean, rng=rng)
        waves = frame.analysis(white)
        own = frame.synthesis(c.back(waves * c.spectrum(waves).sqrt()))
        return self.mean + own + c.rest**0.5 * (white - frame.synthesis(waves))


def interpolated(problem: FlowProblem, mean: Tensor) -> Tensor:
    """Linear interpolation of the observations in space and time: (R, L, 2, N, N).

    It is the anomaly from the mean flow (2, N, N) that is interpolated; where nothing is near, as outside of a box, it
    is 0. Before the first and after the last observed step it is constant. A vorticity observed through a saturating
    sensor is taken back through it, interpolated, and turned into the velocity that has it.
    """
    steps = problem.process.steps
    frames = _frames(problem, mean)  # (R, n, 2, N, N)
    place = torch.arange(problem.process.length, dtype=frames.dtype).clamp(steps[0], steps[-1])
    right = torch.searchsorted(torch.tensor(steps, dtype=frames.dtype), place).clamp(
        min=min(1, len(steps) - 1)
    )
    left = (right - 1).clamp(min=0)
    known = frames.new_tensor(steps)
    share = (place - known[left]) / (known[right] - known[left]).clamp(min=1)
    share = share[:, None, None, None]
    return mean + frames[:, left] * (1 - share) + frames[:, right] * share


def persistent(problem: FlowProblem, mean: Tensor) -> Tensor:
    """The latest observed frame, interpolated in space only: (R, L, 2, N, N)."""
    steps = torch.tensor(problem.process.steps)
    latest = torch.searchsorted(steps, torch.arange(problem.process.length), right=True).sub(1).clamp(min=0)
    return mean + _frames(problem, mean)[:, latest]


def _frames(problem: FlowProblem, mean: Tensor) -> Tensor:
    """Anomalies of velocity at the observed steps, (R, n, 2, N, N)."""
    process, value = problem.process, problem.seen.value[:, problem.process.steps]
    if process.has("loop") or process.has("ring"):
        raise InvalidValueError(
            f"{process.title or 'this sensor'} observes no field that can be interpolated."
        )
    step, offset = _lattice(process)
    if process.has("saturate"):
        value = value.clamp(-_SATURATED, _SATURATED)
        value = value / (1 - value.abs())
    usual = coarsen(mean, step) if process.has("coarsen") else mean[..., offset::step, offset::step]
    if process.has("vorticity"):
        usual = clockwise_vorticity(usual)
    if process.has("box"):
        first, last = process.setting("box")
        full = value.new_zeros(*value.shape[:-2], *usual.shape[-2:])
        full[..., first:last, first:last] = value - usual[..., first:last, first:last]
    else:
        full = value - usual
    weights = _lines(step, (step - 1) / 2 if process.has("coarsen") else float(offset)).to(full)
    fine = weights @ full @ weights.mT
    return velocity_of(-fine * (SIZE / step) / (2 * math.pi)) if process.has("vorticity") else fine


def _lattice(process: FlowProcess) -> tuple[int, int]:
    """Distance of neighbouring values, and the place of the first [points]."""
    if process.has("coarsen"):
        return process.setting("coarsen"), 0
    stride = process.setting("stride")
    return (stride, 0) if isinstance(stride, int) else (stride[0], stride[1])


def _lines(step: int, offset: float) -> Tensor:
    """Weights of linear interpolation around a circle, (N, N / step), from values at offset, offset + step, ..."""
    count = SIZE // step
    place = (torch.arange(SIZE) - offset) / step
    left = place.floor()
    share = place - left
    weights = torch.zeros(SIZE, count)
    rows = torch.arange(SIZE)
    weights.index_put_((rows, left.long() % count), 1 - share, accumulate=True)
    weights.index_put_((rows, (left.long() + 1) % count), share, accumulate=True)
    return weights


def velocity_of(vorticity: Tensor) -> Tensor:
    """The velocity without mean and divergence that has a vorticity: (*B, N, N) -> (*B, 2, N, N)."""
    size = vorticity.shape[-1]
    kx, ky = wavenumbers(size, vorticity)
    square = kx**2 + ky**2
    waves = torch.fft.rfft2(vorticity) * torch.where(square > 0, 1 / square.clamp(min=1), 0.0)
    return torch.fft.irfft2(torch.stack([1j * ky * waves, -1j * kx * waves], -3), s=(size, size))


def gaussian_posterior(
    problem: FlowProblem,
    gaussian: FlowGaussian,
    size: int,
    rng: torch.Generator,
    *,
    relinearized: int = 4,
    iterations: int = 100,
    tolerance: float = 1e-2,
) -> tuple[Tensor, Tensor]:
    """Draws of a Gaussian prior conditioned on the observations, and its most likely trajectory.

    A draw x_0 of the prior is moved to meet perturbed values, x = x_0 + C H^T (H C H^T + R)^-1 (y + e - H x_0), which
    is exact for a linear h: optimal interpolation in space and time. A non-linear h is linearized a few times on the way
    to the most likely trajectory, and draws are those of the linear problem there.

    Args:
        problem: Problem with its observations.
        gaussian: Prior of trajectories of the problem's length.
        size: Draws N for each truth.
        rng: Generator of the draws.
        relinearized: Number of linearizations of a non-linear sensor.
        iterations: Largest number of steps of the iterative solver, for observations off a lattice.
        tolerance: Relative residual at which the solver stops.

    Returns:
        Draws (R, N, L, 2, N, N), and (R, L, 2, N, N).

    Source:
        Journel & Huijbregts (1978), Mining Geostatistics, section VII.A (conditioning by kriging).
    """
    draws, means = [], []
    lattice = problem.process.lattice
    system = problem.process.system(gaussian.covariance) if lattice else None
    outer = 1 if problem.process.value is not None else relinearized
    for i in range(len(problem.truth)):
        prior = gaussian.sample(size, rng=rng)
        start = torch.cat([gaussian.mean.expand(1, problem.process.length, *EVENT), prior])
        seen = problem.part(slice(i, i + 1)).observations
        if system is None:
            moved = _laplace(start, seen, gaussian, outer, iterations, tolerance, rng)
        else:
            value = problem.seen.value[i, system.steps]
            noise = problem.process.std * normal((size + 1, *value.shape), like=value, rng=rng)
            noise[0] = 0
            solved = system.solve(value + noise - system.seen(start), 0.0)
            moved = start + gaussian.covariance_product(system.pulled(solved))
        means.append(moved[0])
        draws.append(moved[1:])
    return torch.stack(draws), torch.stack(means)


def _laplace(
    start: Tensor, seen: Observations, gaussian: FlowGaussian, outer: int, iterations: int, tolerance: float,
    rng: torch.Generator,
) -> Tensor:  # fmt: skip
    """The first row becomes the most likely trajectory, the others draws around it with h linearized there."""
    evidence = Evidence(seen)
    best, origin = start[:1], start[:1]
    for _ in range(outer):
        best = _met(evidence, best, origin, gaussian, iterations, tolerance)
    draws = start[1:] - origin + best
    there = torch.cat([torch.isfinite(o.value).flatten() for o in seen.values()])
    noise = torch.where(there, normal((len(draws), len(there)), like=start, rng=rng), 0.0)
    # of a draw only the anomaly is moved, with h linear from `best`, whose own misfit is not to be met again
    local = evidence.linearized(best.expand_as(draws))
    target = noise - local.jvp(draws - best)
    return torch.cat([best, draws + _solved(local, target, gaussian, iterations, tolerance)])


def _met(
    evidence: Evidence, x: Tensor, origin: Tensor, gaussian: FlowGaussian, iterations: int, tolerance: float
) -> Tensor:  # fmt: skip
    """One Gauss-Newton step from x, under N(origin, C)."""
    local = evidence.linearized(x)
    target = local.innovation + local.jvp(x - origin)
    return origin + _solved(local, target, gaussian, iterations, tolerance)


def _solved(
    local: Linearized, target: Tensor, gaussian: FlowGaussian, iterations: int, tolerance: float
) -> Tensor:
    """C G^T (G C G^T + 1)^-1 of a target."""

    def product(u: Tensor) -> Tensor:
        return u + local.jvp(gaussian.covariance_product(local.vjp(u)))

    solved = conjugate_gradients(product, target, iterations=iterations, tolerance=tolerance)
    return gaussian.covariance_product(local.vjp(solved)).detach()
