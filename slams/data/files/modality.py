"""Modality: name, location and encoding of one kind of field or observation."""

from dataclasses import dataclass
from typing import Literal, get_args

from slams.core.codec import TRANSFORMS, Transform
from slams.core.errors import InvalidValueError
from slams.data.archives import SOURCES

Role = Literal["state", "observation"]
Kind = Literal["grid", "stations"]

_CHOICES = {"role": get_args(Role), "kind": get_args(Kind)}


@dataclass(frozen=True)
class Modality:
    """One modality of a recipe: a variable of some files and its role.

    Args:
        name: Name in recipes, observation files and tables.
        files: Paths or globs; a single string is taken as one of them.
        variable: Name of the variable in the files.
        role: "state" (analysed) or "observation" (only seen).
        kind: "grid" (lat, lon) or "stations" (points with a latitude and longitude each).
        units: Unit wanted, e.g. "degC" or "mm/day"; None keeps the file's.
        transform: Transform applied for the model: a name of `slams.core.codec.TRANSFORMS`, "none" or "log1p".
        levels: Pressure levels wanted [hPa], in this order; None takes all.
        error_std: Instrument error, standard deviation in units after the transform; None where unknown. It is
            added to a state variable's, and is the least error of an observation, whose residuals contain it.
        gross_errors: Whether to leave out values that can't be: out of the possible range of the quantity, or far
            outside the training's climate (docs/data.md).
        source: The archive whose conventions the files follow; "auto" decides by the header.

    Raises:
        ValueError: If an argument isn't one of those named above.
    """

    name: str
    files: tuple[str, ...]
    variable: str
    role: Role
    kind: Kind = "grid"
    units: str | None = None
    transform: str = "none"
    levels: tuple[float, ...] | None = None
    error_std: float | None = None
    gross_errors: bool = True
    source: str = "auto"

    def __post_init__(self) -> None:
        """Validate the fields; lists from YAML become tuples."""
        files = (self.files,) if isinstance(self.files, str) else tuple(str(file) for file in self.files)
        object.__setattr__(self, "files", files)
        if self.levels is not None:
            object.__setattr__(self, "levels", tuple(float(level) for level in self.levels))
        if not self.name or not self.variable:
            raise InvalidValueError(
                f"a modality needs a name and a variable, got {self.name!r} and {self.variable!r}."
            )
        if not files:
            raise InvalidValueError(f"modality {self.name!r} names no files; give at least one path or glob.")
        archives = ("auto", *(name for name, source in SOURCES.items() if source.gridded))
        for field, allowed in (_CHOICES | {"source": archives, "transform": tuple(TRANSFORMS)}).items():
            value = getattr(self, field)
            if value not in allowed:
                raise InvalidValueError(
                    f"{field} of modality {self.name!r} must be one of {', '.join(allowed)}, got {value!r}."
                )
        if self.levels is not None and (not self.levels or len(set(self.levels)) < len(self.levels)):
            raise InvalidValueError(
                f"levels of modality {self.name!r} must be distinct and at least one, got {self.levels}."
            )
        if self.error_std is not None and not self.error_std > 0:
            raise InvalidValueError(
                f"error_std of modality {self.name!r} must be positive, got {self.error_std}."
            )

    @property
    def transformed(self) -> Transform:
        """The transform itself."""
        return TRANSFORMS[self.transform]
