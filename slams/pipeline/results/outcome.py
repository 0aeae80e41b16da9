"""Outcome of a test or of one of its parts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.stages import Stage, Stages
from slams.core.tensorfile import flat, grouped
from slams.evaluation import Scores


@dataclass
class Outcome:
    """Outcome of a test, for tables, figures and files.

    Attributes:
        scores: Scores of every method.
        dates: Days of the test, one after another.
        truth: State variables on those days (T, *S), physical.
        members: Draws of the main set (N, T, *S), physical: state variables and observed modalities.
        observed: Observed values of the main set (T, *S), physical, NaN where unobserved.
        interpolators: Tuned interpolators by (set, variable).
    """

    scores: Scores
    dates: np.ndarray
    truth: dict[str, Tensor] = field(default_factory=dict)
    members: dict[str, Tensor] = field(default_factory=dict)
    observed: dict[str, Tensor] = field(default_factory=dict)
    interpolators: dict[tuple[str, str], AnomalyInterp] = field(default_factory=dict)

    def pack(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The outcome of a part as tensors and JSON facts."""
        sums, index = self.scores.pack()
        tensors = flat({"scores": sums, "members": self.members, "observed": self.observed})
        fits = [[*where, asdict(fitted)] for where, fitted in self.interpolators.items()]
        return tensors, {"scores": index, "interpolators": fits}

    def unpack(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Add the output of `pack`."""
        groups = grouped(tensors)
        self.scores.unpack(groups["scores"], facts["scores"])
        self.members.update(groups.get("members", {}))
        self.observed.update(groups.get("observed", {}))
        for label, name, fitted in facts["interpolators"]:
            self.interpolators[label, name] = AnomalyInterp(**fitted)


def save_scores(stages: Stages, report: Stage, scores: Scores) -> None:
    """Store the scores of a test beside its report, for comparisons with methods that come later."""
    sums, index = scores.pack()
    stages.save(Stage("scores", report.key), sums, {"index": index, "apart": scores.apart})


def load_scores(stages: Stages, report: Stage) -> Scores | None:
    """The scores of `save_scores`; None if a run of an earlier version has none."""
    found = stages.load(Stage("scores", report.key))
    if found is None:
        return None
    scores = Scores(apart=found[1]["apart"])
    scores.unpack(found[0], found[1]["index"])
    return scores
