"""What a reproduction on the Kolmogorov flow does: rows, nets, samplers, guidances, and how much of each."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from slams.assimilation.score.sda import Guidance
from slams.core.settings import override, unknown
from slams.diffusion.guidance.covariance_matching import Covariance
from slams.diffusion.lattice import LatticeMatching, LatticeSystem
from slams.diffusion.sampler import Sampler
from slams.papers.flows.archive import FlowArchive
from slams.papers.flows.prior import FlowNet
from slams.papers.rozet2023.kolmogorov.problem import Process
from slams.papers.rozet2023.lorenz63.plan import Tree, cost_of, guidance_of, parts_of, tuples

BASELINES = ("climatology", "persistence", "interpolation", "gaussian", "4D-Var")
_JUDGED = 16  # truths from which on a bar says something


@dataclass(frozen=True)
class Grid:
    """How much is done.

    Attributes:
        truths: Test trajectories R of each process.
        samples: Draws N of each.
        processes: Which.
        runs: "net / sampler / guidance", for every process.
        baselines: Methods without a net, of those that a process has.
    """

    truths: int = 16
    samples: int = 16
    processes: Sequence[str] = ()
    runs: Sequence[str] = ()
    baselines: Sequence[str] = BASELINES


@dataclass(frozen=True)
class FlowPlan:
    """A reproduction.

    Attributes:
        title: What it is.
        source: Where it is from.
        archive: Trajectories to learn from and to test on.
        processes: What is seen.
        nets: To be trained, or shipped.
        samplers: Settings of `Sampler`.
        guidances: "kind" (sda, detached, moments, covariance, dps) and its settings; "error" is the share of the
            observations' error that guidance is told of.
        grids: How much, by name.
        main: The run that is held against the bars: one setting for all processes.
        residual: Published standard deviation of y - h(x), by process.
        grid: Name of the grid.
        truths: In place of the grid's, and so on.
        samples: See `Grid`.
        chosen: Processes, in place of the grid's.
        runs: See `Grid`.
        baselines: See `Grid`.
        split: "test", or "valid" for choosing settings.
        variational: Settings of `FlowFourDVar`, and "members".
        climate: Trajectories of the other part that baselines learn the climate from.
        chunk: Windows evaluated at once, which bounds memory.
        rows: Draws at once.
        seed: Of noise and draws.
    """

    title: str
    source: str
    archive: FlowArchive
    processes: Mapping[str, Process]
    nets: Mapping[str, FlowNet]
    samplers: Mapping[str, Sampler]
    guidances: Mapping[str, Tree]
    grids: Mapping[str, Grid]
    main: str
    residual: Mapping[str, float] = field(default_factory=dict)
    grid: str = "quick"
    truths: int = 0
    samples: int = 0
    chosen: Sequence[str] = ()
    runs: Sequence[str] | None = None
    baselines: Sequence[str] | None = None
    split: str = "test"
    variational: Mapping[str, Any] = field(default_factory=dict)
    climate: int = 8
    chunk: int = 8
    rows: int = 16
    seed: int = 0

    @property
    def work(self) -> Grid:
        """What is done."""
        grid = self.grids[self.grid]
        return Grid(
            self.truths or grid.truths,
            self.samples or grid.samples,
            tuple(self.chosen or grid.processes or self.processes),
            tuple(grid.runs if self.runs is None else self.runs),
            tuple(grid.baselines if self.baselines is None else self.baselines),
        )

    @property
    def judged(self) -> bool:
        """Whether there are enough truths for a verdict."""
        return self.work.truths >= _JUDGED


def read_plan(path: Path, overrides: Sequence[str] = ()) -> FlowPlan:
    """A plan from its file.

    Raises:
        ValueError: If a key or a name is unknown (the nearest is named), or a number cannot be.
    """
    tree = override(yaml.safe_load(path.read_text(encoding="utf-8")), overrides)
    for key in tree:
        if key not in FlowPlan.__dataclass_fields__:
            raise ValueError(f"{path.name}: {unknown('key', key, FlowPlan.__dataclass_fields__)}")
    made = {"processes": Process, "nets": FlowNet, "samplers": Sampler, "grids": Grid}
    try:
        tree["archive"] = FlowArchive(**(tree.get("archive") or {}))
        for key, kind in made.items():
            tree[key] = {name: kind(**tuples(values or {})) for name, values in tree[key].items()}
        plan = FlowPlan(**tree)
    except TypeError as error:
        raise ValueError(f"{path.name} has a setting that there is not, or lacks one: {error}.") from error
    _check(plan, path.name)
    return plan


def _check(plan: FlowPlan, name: str) -> None:
    if plan.grid not in plan.grids:
        raise ValueError(f"{name}: {unknown('grid', plan.grid, plan.grids)}")
    if plan.split not in ("valid", "test"):
        raise ValueError(f'split is "test" or "valid", got {plan.split!r}.')
    work = plan.work
    if min(work.truths, work.samples) < 2 or min(plan.chunk, plan.rows, plan.climate) < 1:
        raise ValueError(
            f"truths and samples are at least 2, chunk, rows and climate at least 1; got {work.truths}, "
            f"{work.samples}, {plan.chunk}, {plan.rows} and {plan.climate}."
        )
    for process in (*work.processes, *plan.residual):
        if process not in plan.processes:
            raise ValueError(f"{name}: {unknown('process', process, plan.processes)}")
    for baseline in work.baselines:
        if baseline not in BASELINES:
            raise ValueError(f"{name}: {unknown('baseline', baseline, BASELINES)}")
    for run in {plan.main, *work.runs, *(run for grid in plan.grids.values() for run in grid.runs)}:
        net, _, guidance = parts_of(plan, run)
        for key in ("gamma", "error"):
            number = plan.guidances[guidance].get(key, 1.0)
            if not 0 < number < math.inf:
                raise ValueError(f"{key} must be positive, got {number} of guidance {guidance}.")
        window = plan.nets[net].window
        short = [label for label in work.processes if plan.processes[label].length < window]
        if short:
            raise ValueError(
                f"{short[0]} has {plan.processes[short[0]].length} states, fewer than the windows of {window} of "
                f"{net}; lengthen the process or take a net of lower order."
            )


def guide(settings: Tree, covariance: Covariance, system: LatticeSystem | None = None) -> Guidance:
    """Makes a guided denoiser.

    Args:
        settings: "kind", and the settings of its class.
        covariance: Of whole trajectories, for "covariance".
        system: Of the observations where they are on a lattice, which "covariance" and "moments" then take.
    """
    if settings["kind"] == "covariance" and system is not None:
        return partial(LatticeMatching, system=system)
    if settings["kind"] == "moments" and system is not None:
        return partial(LatticeMatching, system=system, iterations=settings.get("iterations", 1))
    return guidance_of(settings, covariance)


def evaluations(plan: FlowPlan, label: str, run: str) -> float:
    """Of the network for a draw of a process, a backward pass counted as two."""
    _, sampler, guidance = parts_of(plan, run)
    settings = plan.guidances[guidance]
    once = cost_of(settings)
    if settings["kind"] == "moments" and plan.processes[label].lattice:
        once = 1.0 + 2.0 * settings.get("iterations", 1)  # the last product is one of the solver's
    return plan.samplers[sampler].evaluations * once
