"""Plan of the reproduction on the Kolmogorov flow: processes, networks, samplers, guidances and sizes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.papers.flows.archive import FlowArchive
from slams.papers.flows.prior import FlowNet
from slams.papers.rozet2023.guidance import SDAPlan
from slams.papers.rozet2023.kolmogorov.problem import FlowProcess
from slams.papers.study import at_least, read_study

BASELINES = ("climatology", "persistence", "interpolation", "gaussian", "4D-Var")
_JUDGED = 16  # truths from which on a bar is judged


@dataclass(frozen=True, kw_only=True)
class FlowPlan(SDAPlan):
    """Plan of the reproduction; see also `SDAPlan`. Setting "error" of a guidance is a factor on the observation error.

    Attributes:
        archive: Settings of the training and test trajectories.
        processes: Observing networks by name.
        main: Name of the judged run: one setting for all processes.
        residual: Published standard deviation of y - h(x), by process.
        chosen: Names of the selected processes; all if empty.
        baselines: Names of methods without a network.
        split: Part of the archive: "test", or "valid" for choosing settings.
        variational: Settings of `FlowFourDVar`, and "members".
        climate: Number of training trajectories for the baselines' climate.
        chunk: Number of windows evaluated at once, which bounds memory.
    """

    archive: FlowArchive
    processes: Mapping[str, FlowProcess]
    nets: Mapping[str, FlowNet]
    main: str
    residual: Mapping[str, float] = field(default_factory=dict)
    members: int = 16
    chosen: Sequence[str] = ()
    baselines: Sequence[str] = BASELINES
    split: Literal["test", "valid"] = "test"
    variational: Mapping[str, Any] = field(default_factory=dict)
    climate: int = 8
    chunk: int = 8
    rows: int = 16

    def __post_init__(self) -> None:
        at_least(self, replicates=2, members=2, chunk=1, rows=1, climate=1)
        for process in (*self.chosen, *self.residual):
            if process not in self.processes:
                raise InvalidValueError(unknown("process", process, self.processes))
        for baseline in self.baselines:
            if baseline not in BASELINES:
                raise InvalidValueError(unknown("baseline", baseline, BASELINES))
        for guidance, settings in self.guidances.items():
            for key in ("gamma", "error"):
                if not 0 < settings.get(key, 1.0) < math.inf:
                    raise InvalidValueError(
                        f"{key} must be positive, got {settings[key]} of guidance {guidance}."
                    )
        for run in (self.main, *self.runs):
            self._check_run(run)

    def _check_run(self, run: str) -> None:
        net = self.parts(run)[0]
        window = self.nets[net].window
        short = [label for label in self.labels if self.processes[label].length < window]
        if short:
            raise InvalidValueError(
                f"{short[0]} has {self.processes[short[0]].length} states, fewer than the windows of {window} of "
                f"{net}; lengthen the process or take a net of lower order."
            )

    @property
    def labels(self) -> list[str]:
        """Names of the selected processes."""
        return list(self.chosen or self.processes)

    @property
    def judged(self) -> bool:
        """Whether there are enough truths for a verdict."""
        return self.replicates >= _JUDGED


def read_plan(path: Path, overrides: Sequence[str] = ()) -> FlowPlan:
    """The plan from its file; see `read_study`."""
    return read_study(FlowPlan, path, overrides)
