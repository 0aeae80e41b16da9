"""Variables that a method carries from cycle to cycle."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from slams.observation.observation import Observation, Observations


@dataclass
class Memory:
    """Variables that a method carries from cycle to cycle beside its ensemble.

    Attributes:
        carry: Persistent tensors: weights, a covariance, an estimated inflation, a window of the past.
        diagnostics: Numbers (*B) of the present step; "innovation" is the mean of squared innovations over
            their forecast variance, 1 on average for a calibrated method.
        step: Number of the present step.
        coming: Observation of the step being forecast, for methods that look ahead.
        observations: All assimilated observations, for methods that fit several steps at once.
    """

    carry: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    step: int = 0
    coming: Observation | None = None
    observations: Observations | None = None

    def part(self, replicates: slice) -> "Memory":
        """The variables of some of the replicates, the first axis of every tensor."""
        return Memory({name: value[replicates] for name, value in self.carry.items()}, {}, self.step)

    def join(self, parts: Sequence["Memory"]) -> None:
        """Concatenate the variables and diagnostics of parts, which are all replicates in order."""
        for name in parts[0].carry:
            self.carry[name] = torch.cat([part.carry[name] for part in parts])
        for name in parts[0].diagnostics:
            self.diagnostics[name] = torch.cat([part.diagnostics[name] for part in parts])
