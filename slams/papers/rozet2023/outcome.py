"""Scored draws of one method on disk."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from slams.core.stages import Result
from slams.core.tensorfile import flat, grouped


@dataclass(frozen=True)
class SDAOutcome:
    """Scored draws of one method.

    Attributes:
        scores: Scores of each replicate by name, (R).
        example: Tensors of the first replicate by name, for figures.
        evaluations: Network evaluations of a draw, a backward pass counted as two; 0 without a network.
        seconds: Wall time of all draws [s].
    """

    scores: Mapping[str, Tensor]
    example: Mapping[str, Tensor]
    evaluations: float = 0.0
    seconds: float = 0.0

    def kept(self) -> Result:
        """Tensors and facts, as `Stages` keeps them."""
        groups = {"scores": self.scores, "example": self.example}
        return flat(groups), {"evaluations": self.evaluations, "seconds": self.seconds}

    @classmethod
    def of(cls, kept: Result) -> "SDAOutcome":
        """Inverse of `kept`."""
        groups = grouped(kept[0])
        return cls(groups["scores"], groups["example"], **kept[1])
