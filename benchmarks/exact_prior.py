"""What guidance and composition lose where the prior is exact: a linear-Gaussian chain against the Kalman smoother.

    python -m benchmarks.exact_prior [--samples 16384] [--steps 128]

Printed as tables: error of the mean, of variances and of lag-1 covariances of draws guided in each way, all in posterior
standard deviations and largest over coordinates; and what composing windows of 2 k + 1 steps loses.
"""

import argparse
import os
from collections.abc import Callable
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.assimilation.score.sda import SDA
from slams.core.covariance import Dense, Isotropic
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.guidance.covariance_matching import CovarianceMatching
from slams.diffusion.guidance.dps import PosteriorSampling
from slams.diffusion.guidance.moment_matching import DiagonalMatching, MomentMatching, PseudoInverse
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.precondition import Detached
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import Schedule, VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.evaluation.tables import markdown_table
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from slams.systems.linear import LinearGaussian

LENGTH = 32
GUIDANCES: dict[str, Callable[..., Denoiser]] = {
    "exact": lambda prior, seen: prior.given(seen)[0],
    "moment matching": MomentMatching(16, 1e-5),
    "covariance matching": lambda prior, seen: CovarianceMatching(
        covariance=prior.covariance(), tolerance=1e-5
    )(prior, seen),
    "diagonal matching (TMPD)": DiagonalMatching(),
    "pseudo-inverse (ΠGDM)": PseudoInverse(),
    "SDA, gamma 0.01": GaussianGuidance(),
    "SDA, gamma 0.1": GaussianGuidance(0.1),
    "SDA, gamma 1": GaussianGuidance(1.0),
    "SDA detached, gamma 0.01": lambda prior, seen: GaussianGuidance()(Detached(prior), seen),
    "DPS, zeta 1": PosteriorSampling(),
}


def chain() -> LinearGaussian:
    """A damped rotation of unit stationary variance, which turns by 0.5 and keeps 0.95 of itself a step."""
    angle, keep = torch.tensor(0.5, dtype=torch.float64), 0.95
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    eye = torch.eye(2, dtype=torch.float64)
    return LinearGaussian(keep * turn, (1 - keep**2) * eye, torch.zeros(2, dtype=torch.float64), eye)


def joint(system: LinearGaussian, length: int) -> Tensor:
    """Covariance of a stationary chain over (L d): Cov[x_i, x_j] = M^(i - j) P for i >= j."""
    d = system.size
    powers = [torch.linalg.matrix_power(system.transition, k) @ system.start.cov for k in range(length)]
    blocks = torch.empty(length, d, length, d, dtype=torch.float64)
    for i in range(length):
        for j in range(i + 1):
            blocks[i, :, j, :] = powers[i - j]
            blocks[j, :, i, :] = powers[i - j].mT
    return blocks.reshape(length * d, length * d)


def prior(
    length: int = LENGTH, schedule: Schedule | None = None, dtype: torch.dtype = torch.float64
) -> Denoiser:
    """The exact denoiser of trajectories of the chain."""
    system = chain()
    mean = torch.zeros(length, system.size, dtype=dtype)
    return GaussianDenoiser(mean, Dense(joint(system, length)), schedule or VPCosine(), event=2)


def observed(dtype: torch.dtype = torch.float64) -> Observations:
    """The first component at every fourth step, the second at every eighth, of one trajectory; errors 0.3 and 0.5."""
    rng = torch.Generator().manual_seed(5)
    system = chain()
    truth = system.trajectory(system.initial(rng=rng), LENGTH - 1, rng=rng)
    parts = {}
    for name, place, every, std in (("first", 0, 4, 0.3), ("second", 1, 8, 0.5)):
        h = Select(torch.tensor([place]), event=1)
        value = torch.full((LENGTH, 1), torch.nan, dtype=torch.float64)
        noise = torch.randn(LENGTH, 1, generator=rng, dtype=torch.float64)
        value[place + 1 :: every] = (h(truth) + std * noise)[place + 1 :: every]
        parts[name] = Observation(value.to(dtype), h, Isotropic(std**2))
    return Observations(parts)


class Reference(NamedTuple):
    """The Kalman smoother's moments: mean and std (L, d), covariances at lag 1 (L - 1, d, d)."""

    mean: Tensor
    std: Tensor
    lag: Tensor


def smoothed() -> Reference:
    """Of the chain and the observations here; Cov[x_k+1, x_k | y] from the smoother of pairs of states."""
    system, seen = chain(), observed()
    found = system.smoother(seen)
    m, q, zero = system.transition, system.noise_cov, torch.zeros(2, 2, dtype=torch.float64)
    eye = torch.eye(2, dtype=torch.float64)
    # (x_k+1, x_k) as one state: its marginal covariance holds the covariance of neighbours
    pair = LinearGaussian(
        torch.cat([torch.cat([m, zero], 1), torch.cat([eye, zero], 1)]),
        torch.block_diag(q, zero),
        torch.zeros(4, dtype=torch.float64),
        joint(system, 2).reshape(2, 2, 2, 2).flip(0, 2).reshape(4, 4),
    )
    both = pair.smoother(seen).cov  # the operators select components 0 and 1, those of the later state
    return Reference(found.mean, found.cov.diagonal(dim1=-2, dim2=-1).sqrt(), both[1:, :2, 2:])


class Loss(NamedTuple):
    """Largest errors over coordinates, in posterior standard deviations, and the mean ratio of those of draws."""

    mean: float
    variance: float
    lag: float
    ratio: float


def lost(draws: Tensor, exact: Reference) -> Loss:
    """Of draws (N, L, d)."""
    anomaly = draws - draws.mean(0)
    count = len(draws) - 1
    variance = anomaly.square().sum(0) / count
    lag = torch.einsum("nki,nkj->kij", anomaly[:, 1:], anomaly[:, :-1]) / count
    scale = exact.std[1:, :, None] * exact.std[:-1, None, :]
    return Loss(
        float(((draws.mean(0) - exact.mean) / exact.std).abs().max()),
        float((variance / exact.std**2 - 1).abs().max()),
        float(((lag - exact.lag) / scale).abs().max()),
        float((variance.sqrt() / exact.std).mean()),
    )


def draw(
    kind: str, sampler: Sampler, samples: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> Tensor:
    """Draws (N, L, d) of the posterior guided in one way."""
    method = SDA(prior(dtype=dtype), sampler, event=(2,), guidance=GUIDANCES[kind], dtype=dtype)
    done = method.assimilate(observed(dtype), samples, rng=torch.Generator().manual_seed(seed))
    assert done.samples is not None
    return done.samples.double()


def through_windows(k: int, sampler: Sampler, samples: int) -> Tensor:
    """Draws (N, L, d) where the prior is composed of windows of 2 k + 1 steps, guided by the chain's covariance."""
    covariance = joint(chain(), LENGTH).float()
    composed = MarkovBlanket(prior(2 * k + 1, dtype=torch.float32), 2 * k + 1)
    guidance = CovarianceMatching(covariance, tolerance=1e-5)
    method = SDA(composed, sampler, event=(2,), guidance=guidance, dtype=torch.float32)
    done = method.assimilate(observed(torch.float32), samples, rng=torch.Generator().manual_seed(0))
    assert done.samples is not None
    return done.samples.double()


def composition(k: int, t: float, *, samples: int = 2000, length: int = LENGTH) -> float:
    """Root mean square difference of E[x | x_t] composed of windows from the exact one, in deviations given x_t."""
    exact, rng = prior(length), torch.Generator().manual_seed(1)
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = exact.schedule(time)
    root = torch.linalg.cholesky(joint(chain(), length))
    x = (torch.randn(samples, length * 2, generator=rng, dtype=torch.float64) @ root.mT).reshape(
        -1, length, 2
    )
    x_t = alpha * x + sigma * torch.randn(x.shape, generator=rng, dtype=torch.float64)
    mean = exact(x_t, time)
    made = MarkovBlanket(prior(2 * k + 1), 2 * k + 1)(x_t, time)
    return float((made - mean).square().mean().sqrt() / (x - mean).square().mean().sqrt())


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=16384)
    parser.add_argument("--steps", type=int, default=128)
    arguments = parser.parse_args()
    exact = smoothed()
    published = Sampler(256, corrections=1, tau=0.5)
    rows = []
    for kind in GUIDANCES:
        runs = {f"{n} steps": accurate(n) for n in (arguments.steps, 2 * arguments.steps)}
        if kind.startswith(("SDA", "DPS")):
            runs["256 steps, C = 1"] = published
        for name, sampler in runs.items():
            found = lost(draw(kind, sampler, arguments.samples, dtype=torch.float32), exact)
            row = {"guidance": kind, "sampler": name, "mean": found.mean, "variance": found.variance}
            row |= {"lag-1 covariance": found.lag, "deviations": found.ratio}
            rows.append({key: v if isinstance(v, str) else f"{v:.3f}" for key, v in row.items()})
            print(rows[-1], flush=True)
    print(markdown_table(rows))
    blanket = []
    for k in (1, 2, 3, 4, 8):
        row = {"k": str(k)} | {f"t = {t}": f"{composition(k, t):.4f}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)}
        found = lost(through_windows(k, accurate(arguments.steps), arguments.samples), exact)
        blanket.append(row | {"mean": f"{found.mean:.3f}", "deviations": f"{found.ratio:.3f}"})
    print(markdown_table(blanket))


def accurate(steps: int) -> Sampler:
    """Second order, steps even in log SNR up to where the posterior is resolved."""
    return Sampler(steps, order=2, time_grid="snr", ends=(2e-3, 300.0))


if __name__ == "__main__":
    main()
