"""Plan of a study of surface quasi-geostrophic turbulence: archive, experiments, runs and bars."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slams.core.errors import InvalidValueError
from slams.core.settings import plain, unknown
from slams.papers.bao2024_sqg.archive import SQGArchive
from slams.papers.bao2024_sqg.methods import FILTERS, LIDS, TRIVIAL
from slams.papers.bao2024_sqg.problem import Sensors, Shocks
from slams.papers.study import at_least, read_study
from slams.papers.table import Bar

BY_LID = ("rmse", "spread", "spread_skill", "crps", "coverage90")
SCORED = tuple(f"{metric}{lid}" for metric in BY_LID for lid in ("", *(f"_{lid}" for lid in LIDS)))


@dataclass(frozen=True)
class SQGExperiment:
    """An observing network and the methods run on it.

    Attributes:
        runs: Settings by name of the run, with "method" where it differs from the name.
        operator: Name of the observation operator, see `Sensors`.
        std: Standard deviation of the observation errors, see `Sensors`.
        seen: Fraction of observed points, see `Sensors`.
        shocks: Random shocks to the observed state, see `Sensors`.
        published: The paper's finding in words.
        near: Standard deviation of white noise around the truth in the first ensemble [K]; 0 for states of the
            climate.
    """

    runs: Mapping[str, Mapping[str, Any]]
    operator: str = "identity"
    std: float = 1.0
    seen: float = 1.0
    shocks: Shocks = field(default_factory=Shocks)
    published: str = ""
    near: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.near < math.inf:
            raise InvalidValueError(
                f"near is a standard deviation [K], or 0 for states of the climate, got {self.near}."
            )
        _ = self.sensors  # which checks its settings
        for given in self.methods.values():
            if given["method"] not in (*TRIVIAL, *FILTERS):
                raise InvalidValueError(unknown("method", given["method"], (*TRIVIAL, *FILTERS)))

    @property
    def sensors(self) -> Sensors:
        """Sensors of the experiment."""
        return Sensors(self.operator, self.std, self.seen, self.shocks)

    @property
    def methods(self) -> dict[str, dict[str, Any]]:
        """Settings by name of the run, with "method"."""
        return {label: {"method": label, **given} for label, given in self.runs.items()}


@dataclass(frozen=True)
class SQGPlan:
    """A study.

    Attributes:
        title: Title of the study.
        source: Reference.
        archive: Settings of the simulated states.
        experiments: Experiments by name.
        bars: Bounds on the scores of runs, `case` being the experiment; with `against`, the metric is the
            difference, replicate by replicate.
        only: Names of the selected experiments; all if empty.
        seed: Seed of the first truth.
        replicates: Number of truths.
        members: Ensemble size J.
        burn_in: Number of analyses before the scored ones.
        cycles: Number of scored analyses.
        size: "quick", or a name in the plan's `sizes`.
    """

    title: str
    source: str
    archive: SQGArchive
    experiments: Mapping[str, SQGExperiment]
    bars: Sequence[Bar] = ()
    only: Sequence[str] | str = ()
    seed: int = 1000
    replicates: int = 4
    members: int = 20
    burn_in: int = 20
    cycles: int = 100
    size: str = "quick"

    def __post_init__(self) -> None:
        at_least(self, replicates=1, members=2, burn_in=0, cycles=1, seed=0)
        if self.burn_in + self.cycles > self.archive.length:
            raise InvalidValueError(
                f"truths of {self.archive.length} states are too short for {self.burn_in} + {self.cycles} analyses; set "
                "archive.length, burn_in or cycles."
            )
        for name in (*self._only, *(bar.case for bar in self.bars)):
            if name not in self.experiments:
                raise InvalidValueError(unknown("experiment", name, self.experiments))
        for bar in self.bars:
            if bar.metric not in SCORED:
                raise InvalidValueError(unknown("metric", bar.metric, SCORED))
            runs = self.experiments[bar.case].runs
            for run in filter(None, (bar.row, bar.against)):
                if run not in runs:
                    raise InvalidValueError(unknown("run", run, runs))

    @property
    def _only(self) -> tuple[str, ...]:
        return (self.only,) if isinstance(self.only, str) else tuple(self.only)

    @property
    def chosen(self) -> list[str]:
        """Selected experiments."""
        return [name for name in self.experiments if not self.only or name in self._only]

    @property
    def seeds(self) -> list[int]:
        """Seeds of the truths."""
        return list(range(self.seed, self.seed + self.replicates))

    def facts(self, name: str) -> dict[str, Any]:
        """Plain values that an experiment's truths and observations depend on."""
        return {
            "system": "surface_qg",
            "experiment": name,
            **{key: getattr(self, key) for key in ("seed", "members", "burn_in", "cycles")},
            "replicates": self.replicates,
            "near": self.experiments[name].near,
            "observe": plain(self.experiments[name].sensors),
            "archive": plain(self.archive),
        }


def read_plan(path: Path, overrides: Sequence[str] = ()) -> SQGPlan:
    """The plan from its file; see `read_study`."""
    return read_study(SQGPlan, path, overrides)
