"""Settings of observation operators."""

import math
from dataclasses import dataclass

from slams.core.errors import InvalidValueError


@dataclass(frozen=True)
class OperatorRecipe:
    """Observation operator of a gridded modality in place of its cells; needs no other training.

    Attributes:
        kind: "block_mean" (area means over blocks of cells), "points" (bilinear interpolation) or "stride" (cells
            some steps apart).
        size: Side of a block [cells].
        step, offset: Distance of the cells observed by "stride" along both axes, and the first.
        points: (latitude, longitude) of each point [degrees].
        std: Standard deviation of the independent errors of what a "block_mean" or a "stride" returns, in standard
            deviations of the anomaly: one, or one for each level. It takes the place of the modality's `error_std`,
            which is one in the file's unit for each cell; none if empty.
    """

    kind: str
    size: int = 1
    step: int = 1
    offset: int = 0
    points: tuple[tuple[float, float], ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in ("block_mean", "points", "stride"):
            raise InvalidValueError(
                f"an operator's kind is 'block_mean', 'points' or 'stride', got {self.kind!r} (assimilation.operators)."
            )
        if self.size < 1 or self.step < 1 or not 0 <= self.offset < self.step:
            raise InvalidValueError(
                "an operator needs size >= 1, step >= 1 and 0 <= offset < step, got "
                f"size={self.size}, step={self.step} and offset={self.offset} (assimilation.operators)."
            )
        if (self.kind == "points") != bool(self.points):
            raise InvalidValueError(
                f"the operator {self.kind!r} has {len(self.points)} points; give points=[[lat, lon], ...] with kind "
                "'points', and only there (assimilation.operators)."
            )
        if self.std and self.kind == "points":
            raise InvalidValueError(
                "an operator's std is for kinds 'block_mean' and 'stride'; state the error of points as the modality's "
                "error_std (data.modalities)."
            )
        if not all(0 < std < math.inf for std in self.std):
            raise InvalidValueError(
                f"an operator's std must be positive and finite, got {list(self.std)} (assimilation.operators)."
            )
