"""The noisy Lorenz-63 system of SDA: the system, its normalisation, and its trajectories on disk."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.random import fork
from slams.papers.study import SPLITS, rows_of, simulated
from slams.systems.flow import Gaussian
from slams.systems.lorenz import Lorenz63

MEAN = (0.0, 0.0, 25.0)
SCALE = (8.0, 9.0, 8.6)

_PRIOR = ((64.0, 50.0, 0.0), (50.0, 81.0, 0.0), (0.0, 0.0, 75.0))


@dataclass(frozen=True)
class Lorenz63Archive:
    """Settings of the simulated trajectories.

    Attributes:
        count: Number of trajectories; 8 of 10 are for training, one each for validation and test.
        spin_up: Number of dropped transitions.
        length: Number of states kept of each.
        seed: Trajectory i draws from a generator of this seed and i.
    """

    count: int = 1024
    spin_up: int = 1024
    length: int = 1024
    seed: int = 0


def noisy_lorenz63(dtype: torch.dtype = torch.float32) -> Lorenz63:
    """x_{i+1} = RK4(x_i) + N(0, dt I), dt = 0.025, x_0 ~ N((0, 0, 25), ...).

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 5.1 and released code.
    """
    return Lorenz63(dt=0.025, noise=1.0, start=Gaussian(MEAN, cov=_PRIOR), dtype=dtype)


def encode(x: Tensor) -> Tensor:
    """States of the system -> normalised, (*B, 3)."""
    return (x - x.new_tensor(MEAN)) / x.new_tensor(SCALE)


def decode(z: Tensor) -> Tensor:
    """Inverse of `encode`."""
    return z * z.new_tensor(SCALE) + z.new_tensor(MEAN)


def simulate(archive: Lorenz63Archive) -> Tensor:
    """Normalised trajectories, (count, length, 3), each with its own random numbers.

    Args:
        archive: Settings of the trajectories.
    """
    system = noisy_lorenz63(torch.float64)
    rngs = [fork(archive.seed, "trajectory", i) for i in range(archive.count)]
    x = torch.stack([system.initial(rng=rng) for rng in rngs])
    steps = archive.spin_up + archive.length - 1
    noise = torch.stack([torch.randn(steps, 3, generator=rng) for rng in rngs], 1)  # (steps, count, 3)
    kept = [x] if archive.spin_up == 0 else []
    for k in range(steps):
        x = system.mean(x).add(noise[k], alpha=system.noise * system.dt**0.5)
        if k + 1 >= archive.spin_up:
            kept.append(x)
    return encode(torch.stack(kept, 1)).float()


def trajectories(folder: Path, archive: Lorenz63Archive, console: Console | None = None) -> dict[str, Tensor]:
    """The archive's three parts, from disk or simulated.

    Args:
        folder: Folder of the archive.
        archive: Settings of the trajectories.
        console: Console for the progress.

    Returns:
        Normalised trajectories (n, length, 3) of "train", "valid" and "test".
    """
    pieces = {"trajectories": lambda: simulate(archive)}
    (x,) = simulated(folder, archive, pieces, title="Lorenz-63", console=console)
    parts = {split: rows_of(split, archive.count) for split in SPLITS}
    return {split: x[rows.start : rows.stop] for split, rows in parts.items()}
