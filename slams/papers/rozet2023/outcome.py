"""Draws of one method, scored: what is kept of them on disk; and the weights that they were made with."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from slams.core.stages import Result
from slams.core.tensorfile import flat, grouped, read_facts


@dataclass(frozen=True)
class SDAOutcome:
    """Draws of one method, scored.

    Attributes:
        scores: One number for each replicate by name, (R).
        example: Tensors of the first replicate by name, for figures.
        evaluations: Network evaluations of a draw, a backward pass counted as two; 0 without a network.
        seconds: Time that all draws took.
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


def weights_file(
    own: Path, shipped: Path, train: bool, same: Callable[[Any], bool], make: Callable[[], None]
) -> tuple[Path, str]:
    """Trained weights of the results' folder, else shipped ones, else made here, and their fingerprint.

    Args:
        own: File in the folder of the results.
        shipped: File in the package.
        train: Whether shipped ones are not used.
        same: Whether a file's facts are those of the training that is asked for.
        make: Trains and writes `own`.
    """
    path = own if train or own.exists() else shipped
    if not path.exists() or (train and not same(read_facts(path))):
        make()
        path = own
    return path, hashlib.sha256(path.read_bytes()).hexdigest()[:16]
