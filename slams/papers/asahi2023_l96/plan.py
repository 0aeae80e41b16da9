"""Plan of the study of a wrong forcing: methods, forcings of the truth and observing networks."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.papers.study import new_name, read_study
from slams.twin.setup import Setup, setup

METRIC = "rmse_time_mean"
_GENERATORS = ("GenerativeEnKF", "PseudoEnKF")
_TRUTHS = 8


@dataclass(frozen=True)
class ModelErrorLine:
    """One method of the table.

    Attributes:
        method: Name in `slams.twin.methods`.
        settings: Settings common to all cells.
        tuned: Key of a cell's `tuned` for settings chosen on other truths; none if empty.
        rival: Whether ours must not have a larger error.
        extra: Whether it is left out unless the size is full.
    """

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    tuned: str = ""
    rival: bool = False
    extra: bool = False

    def settings_in(self, cell: "ModelErrorCell", weights: Path | None = None) -> dict[str, Any]:
        """Settings in a cell; `weights` are for the methods with a generator."""
        made = {**cell.tuned.get(self.tuned, {}), **self.settings}
        if weights is not None and self.method in _GENERATORS:
            made["weights"] = str(weights)
        return made


@dataclass(frozen=True)
class ModelErrorCell:
    """A forcing of the truth and an observing network.

    Attributes:
        forcing: F of the truth.
        stride: Distance of observed variables.
        tuned: Settings by name.
    """

    forcing: float
    stride: int
    tuned: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Name of its folder and in tables."""
        return f"F{self.forcing:g}_every_{self.stride}"


@dataclass(frozen=True)
class ModelErrorPlan:
    """Plan of the comparison.

    Attributes:
        title: Title of the study.
        source: Reference.
        setup: Settings of every cell, forcing and stride left out.
        ours: Label of the judged line.
        lines: Methods by label.
        cells: All cells.
        exact: Upper bound on our error in cells with a perfect model, by name of the cell.
        only: Names of the cells that are run; all if empty.
        size: "quick" or "full".
        overrides: Overrides of the set-ups, such as "cycles=100".
    """

    title: str
    source: str
    setup: Mapping[str, Any]
    ours: str
    lines: Mapping[str, ModelErrorLine]
    cells: Sequence[ModelErrorCell]
    exact: Mapping[str, float]
    only: Sequence[str] = ()
    size: str = "quick"
    overrides: Sequence[str] = ()

    def __post_init__(self) -> None:
        names = [cell.name for cell in self.cells]
        for name in (*self.only, *self.exact):
            if name not in names:
                raise InvalidValueError(unknown("cell", name, names))
        if self.ours not in self.lines:
            raise InvalidValueError(unknown("line", self.ours, self.lines))

    @property
    def chosen(self) -> list[ModelErrorCell]:
        """Cells that are run."""
        return [cell for cell in self.cells if not self.only or cell.name in self.only]

    @property
    def methods(self) -> dict[str, ModelErrorLine]:
        """Lines that are run."""
        return {label: line for label, line in self.lines.items() if self.size == "full" or not line.extra}

    @property
    def rivals(self) -> list[str]:
        """Labels of the lines that ours is compared with."""
        return [label for label, line in self.lines.items() if line.rival]

    def bound(self, cell: ModelErrorCell, label: str) -> float:
        """Upper bound on the error of a line, NaN where there is none."""
        return self.exact.get(cell.name, math.nan) if label == self.ours else math.nan

    def excess(self, cell: ModelErrorCell) -> float:
        """Forcing of the truth less that of the model."""
        return float(cell.forcing - self.setup_of(cell).model["forcing"])

    def setup_of(self, cell: ModelErrorCell) -> Setup:
        """The set-up of a cell."""
        observe = {**self.setup.get("observe", {}), "operator": "stride", "step": cell.stride}
        if cell.stride == 1:
            observe |= {"operator": "identity", "step": 2}
        truth = {**self.setup.get("truth", {}), "forcing": float(cell.forcing)}
        tree = {"replicates": _TRUTHS, **self.setup, "truth": truth, "observe": observe}
        return setup(tree, self.overrides)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> ModelErrorPlan:
    """The plan from its file.

    Args:
        path: YAML file.
        overrides: "size=full" for all cells and lines, "cell=NAME" for one cell; others are of the set-ups.

    Raises:
        ValueError: If a key, a cell or a size is unknown (the nearest is named).
    """
    given = [new_name(text) for text in overrides]
    cells = [text.removeprefix("cell=") for text in given if text.startswith("cell=")]
    sizes = [text for text in given if text.startswith("size=")]
    rest = [text for text in given if not text.startswith(("cell=", "size="))]
    only = [f"only=[{', '.join(cells)}]"] if cells else []
    return read_study(ModelErrorPlan, path, [*sizes, *only, f"overrides={json.dumps(rest)}"])
