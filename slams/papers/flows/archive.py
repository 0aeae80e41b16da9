"""The Kolmogorov flow of SDA: its trajectories of coarse velocities on disk."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.geometry.torus import coarsen, resample
from slams.core.random import fork
from slams.papers.study import finite, rows_of, simulated
from slams.systems.flows.kolmogorov import KolmogorovFlow


@dataclass(frozen=True)
class FlowArchive:
    """Settings of the simulated trajectories: independent starts, Delta = 0.2 between states.

    The published ones are solved on 256 x 256 cells and averaged over blocks of 4; here 128 x 128 and blocks of 2,
    for an eighth of the work: deviations and persistence of the spectral solver differ between the two by 2 %, as much
    as those of 16 trajectories from one draw to the next. All but the last `adjusted` transitions of the spin-up
    are solved on the coarse grid itself: small eddies turn over once in a transition and need no more to fill in.

    Attributes:
        count: Number of trajectories; 8 of 10 are for training, one each for validation and test.
        length: Number of states kept of each.
        spin_up: Number of transitions before the first kept state.
        adjusted: Number of the last spin-up transitions, on the fine grid.
        fine: Cells along a side of the solver's grid.
        coarse: Cells along a side of the kept states.
        reynolds: Reynolds number.
        seed: Trajectory i draws its start from a generator of this seed and i.
        batch: Trajectories simulated at once, and in one file.
    """

    count: int = 160
    length: int = 64
    spin_up: int = 64
    adjusted: int = 16
    fine: int = 128
    coarse: int = 64
    reynolds: float = 1000.0
    seed: int = 0
    batch: int = 8

    def __post_init__(self) -> None:
        if self.count < 10 or self.length < 1 or self.batch < 1:
            raise InvalidValueError(
                f"three parts need at least 10 trajectories of at least one state, in batches of at least one; got "
                f"{self.count}, {self.length} and {self.batch}."
            )
        if not 0 < self.adjusted <= self.spin_up:
            raise InvalidValueError(
                f"between one and all transitions of the spin-up are on the fine grid, got {self.adjusted} of "
                f"{self.spin_up}."
            )
        if self.fine % self.coarse:
            raise InvalidValueError(
                f"{self.fine} cells do not make blocks for {self.coarse}; choose a multiple."
            )


def flow(archive: FlowArchive, size: int) -> KolmogorovFlow:
    """The archive's system on a grid; steps hold for |u| + |v| < 7.9, and 7 is rarely exceeded.

    Source:
        Rozet & Louppe (2023), arXiv:2306.10574, section 5.2 and released code.
    """
    return KolmogorovFlow(size, archive.reynolds, max_courant=0.85)


@torch.no_grad()
def simulate(archive: FlowArchive, rows: range) -> Tensor:
    """Trajectories of the given numbers, (len(rows), length, 2, coarse, coarse), float32.

    Raises:
        FloatingPointError: If a field is not finite; names the transition.
    """
    small, large = flow(archive, archive.coarse), flow(archive, archive.fine)
    x = torch.stack([small.initial(rng=fork(archive.seed, "trajectory", i)) for i in rows])
    for _ in range(archive.spin_up - archive.adjusted):
        x = small(x)
    x = resample(x, archive.fine)
    kept = []
    for k in range(archive.adjusted + archive.length):
        step = archive.spin_up - archive.adjusted + k + 1
        x = finite(
            large(x),
            f"trajectories {rows.start} to {rows.stop - 1} are not finite after transition {step}; take another seed, "
            "or smaller steps.",
        )
        if k >= archive.adjusted:
            kept.append(coarsen(x, archive.fine // archive.coarse))
    return torch.stack(kept, 1)


def trajectories(
    folder: Path, settings: FlowArchive, split: str, count: int | None = None, console: Console | None = None
) -> Tensor:
    """The first trajectories of a part, from disk or simulated, batch by batch.

    Args:
        folder: Folder of the archive.
        settings: Settings of the trajectories.
        split: Name of the part: "train", "valid" or "test".
        count: Number of trajectories; all of the part if None.
        console: Console for the progress.

    Returns:
        Velocities (count, length, 2, coarse, coarse).

    Raises:
        ValueError: If the part has fewer.
    """
    rows = rows_of(split, settings.count)
    count = len(rows) if count is None else count
    if count > len(rows):
        raise InvalidValueError(
            f"{split} has {len(rows)} trajectories, {count} were asked for; make a larger archive (archive.count=...)."
        )
    batches = [rows[i : i + settings.batch] for i in range(0, count, settings.batch)]
    pieces = {f"{split}_{batch.start:05d}": partial(simulate, settings, batch) for batch in batches}
    return torch.cat(simulated(folder, settings, pieces, title=f"the flow, {split}", console=console))[:count]


def statistics(x: Tensor, lags: tuple[int, ...] = (1, 2, 4, 8, 16)) -> dict[str, float]:
    """Statistics for comparing solvers: deviations of u, v and the vorticity in grid units, and persistence.

    Args:
        x: Velocities (n, T, 2, N, N).
        lags: Lags of the persistence [transitions].

    Returns:
        Numbers by name.
    """
    w = (
        x[:, :, 0].roll(-1, -1) - x[:, :, 0].roll(1, -1) - x[:, :, 1].roll(-1, -2) + x[:, :, 1].roll(1, -2)
    ) / 2
    found = {"std_u": x[:, :, 0].std(), "std_v": x[:, :, 1].std(), "std_w": w.std(), "max": x.abs().max()}
    for lag in lags:
        if lag < x.shape[1]:
            found[f"persistence_{lag}"] = (x[:, lag:] - x[:, :-lag]).square().mean().sqrt()
    return {name: float(value) for name, value in found.items()}
