"""Plan of the reproduction on noisy Lorenz-63: networks, samplers, guidances, runs and bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from slams.papers.rozet2023.guidance import SDAPlan
from slams.papers.rozet2023.lorenz63.archive import Lorenz63Archive
from slams.papers.rozet2023.lorenz63.problem import Lorenz63Process
from slams.papers.rozet2023.prior import NetSettings
from slams.papers.study import at_least, read_study
from slams.papers.table import Bar


@dataclass(frozen=True, kw_only=True)
class Lorenz63Plan(SDAPlan):
    """Plan of the reproduction; see also `SDAPlan`. W1 and its floor depend on the number of draws.

    Attributes:
        particles: Number of particles of the smoothers.
        archive: Settings of the training and test trajectories.
        processes: Observing networks by name.
        curves: Runs of "curves" in `more`.
        reduced: Runs of "reduced" in `more`.
        full: Runs of "full" in `more`.
        more: Names of the groups of further runs: "curves", "reduced" and "full".
        bars: Bounds on the scores of runs, `case` being the process. Metrics are "w1_ratio" to the floor, the
            difference from the smoother's "log_prior" or "log_likelihood", or "absolute_log_prior", the number itself;
            with `against` "w1_ratio" to that run's W1, "log_prior_gap", how much further from the smoother's log p(x)
            than it, and "saved", its network evaluations over ours. Published are numbers of 64 observations and 1024
            samples.
    """

    archive: Lorenz63Archive
    processes: Mapping[str, Lorenz63Process]
    nets: Mapping[str, NetSettings]
    bars: Sequence[Bar]
    curves: Sequence[str] = ()
    reduced: Sequence[str] = ()
    full: Sequence[str] = ()
    more: Sequence[Literal["curves", "reduced", "full"]] = ()
    particles: int = 2**16

    def __post_init__(self) -> None:
        at_least(self, replicates=2, members=2)
        for name in (*self.runs, *self.curves, *self.reduced, *self.full):
            self.parts(name)

    @property
    def chosen(self) -> list[str]:
        """Selected runs."""
        return list(dict.fromkeys((*self.runs, *(run for name in self.more for run in getattr(self, name)))))

    def inputs(self, label: str) -> dict[str, Any]:
        """Plain values that all results of a process depend on."""
        numbers = {name: getattr(self, name) for name in ("seed", "replicates", "members", "particles")}
        return {**numbers, "archive": self.archive, "process": self.processes[label]}


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Lorenz63Plan:
    """The plan from its file; see `read_study`."""
    return read_study(Lorenz63Plan, path, overrides)
