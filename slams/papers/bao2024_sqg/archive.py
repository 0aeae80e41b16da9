"""Surface quasi-geostrophic turbulence on disk: truths, each of its own start, and a climate of free runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.geometry.torus import resample
from slams.core.random import fork
from slams.papers.study import at_least, finite, simulated
from slams.systems.flows.surface_qg import SurfaceQG


@dataclass(frozen=True)
class SQGArchive:
    """Settings of the simulated states: truths with independent starts, and a climate of free runs.

    Attributes:
        size: Points along a side.
        length: Number of states of a truth, 12 h apart.
        spin_up: Steps before the first; 600 are 300 days.
        adjusted: Last spin-up steps on the full grid; the others run on half the points where that leaves at least 32
            along a side.
        climate: Number of free runs.
        states: Number of states kept of each run.
        apart: Steps between these states.
    """

    size: int = 32
    length: int = 150
    spin_up: int = 600
    adjusted: int = 120
    climate: int = 16
    states: int = 40
    apart: int = 10

    def __post_init__(self) -> None:
        at_least(self, length=1, climate=1, states=1, apart=1)
        if not 0 <= self.adjusted <= self.spin_up:
            raise InvalidValueError(
                f"adjusted must lie between 0 and spin_up, got {self.adjusted} of {self.spin_up}."
            )


def model(size: int) -> SurfaceQG:
    """The model, in single precision: its error in a step of 12 h is a hundred thousandth of the temperature's."""
    return SurfaceQG(size, dtype=torch.float32)


@torch.no_grad()
def simulate(settings: SQGArchive, rng: torch.Generator, steps: Sequence[int]) -> Tensor:
    """States of a free run at some steps after the spin-up, (len(steps), 2, N, N).

    Raises:
        FloatingPointError: If a state is not finite.
    """
    half = settings.size // 2 if settings.size >= 64 else settings.size
    coarse, fine = model(half), model(settings.size)
    x = coarse.initial(rng=rng)
    for _ in range(settings.spin_up - settings.adjusted):
        x = coarse(x)
    x = resample(x, settings.size)
    for _ in range(settings.adjusted):
        x = fine(x)
    kept, wanted = [], set(steps)
    for k in range(max(steps) + 1):
        if k in wanted:
            kept.append(x)
        x = fine(x)
    states = torch.stack(kept)
    return finite(states, "a free run is not finite; take another seed, or a weaker jet.")


def truths(
    folder: Path, settings: SQGArchive, seeds: Sequence[int], console: Console | None = None
) -> Tensor:
    """Truths of some seeds, (B, L, 2, N, N), from disk or simulated, one file each."""
    steps = range(settings.length)
    parts = {f"truth_{seed}": (fork(seed, "truth"), steps) for seed in seeds}
    return torch.stack(_free_runs(folder, settings, parts, "truths", console))


def climate(folder: Path, settings: SQGArchive, console: Console | None = None) -> Tensor:
    """States of the climate, (runs * states, 2, N, N), the states of a run one after the other."""
    steps = range(0, settings.states * settings.apart, settings.apart)
    parts = {f"climate_{i}": (fork(i, "climate"), steps) for i in range(settings.climate)}
    return torch.cat(_free_runs(folder, settings, parts, "climate", console))


def _free_runs(
    folder: Path,
    settings: SQGArchive,
    parts: Mapping[str, tuple[torch.Generator, Sequence[int]]],
    title: str,
    console: Console | None,
) -> list[Tensor]:
    """Free runs by name, simulated one by one, so that each depends on its own seed alone."""
    pieces = {name: partial(simulate, settings, *part) for name, part in parts.items()}
    return simulated(folder, settings, pieces, title=title, console=console)
