"""The part of a recipe that sets rivals which know the equations of the synthetic planet."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from slams.core.errors import InvalidValueError
from slams.core.settings import unknown

#: Rows of the rivals that know the equations (`slams.pipeline.rivals`): the model of each, and whether it smooths.
RIVALS = {
    "letkf": ("perfect", False),
    "letkf_smoother": ("perfect", True),
    "letkf_wrong_moisture": ("wrong_moisture", False),
    "letkf_wrong_moisture_smoother": ("wrong_moisture", True),
    "letkf_half_resolution": ("half_resolution", False),
    "letkf_half_resolution_smoother": ("half_resolution", True),
}


@dataclass(frozen=True)
class RivalRecipe:
    """Settings of the LETKF that cycles the synthetic planet's own model (see `slams.pipeline.rivals`).

    Attributes:
        members: Ensemble size.
        spinup: Days of observations assimilated before each test window, from climatological members on.
        lag: Days that the smoother looks ahead, as far as the window reaches.
        inflation: Factor on the anomalies after each analysis.
        rtps: Relaxation of the spread to that of the forecast, in [0, 1].
        block: Side of the blocks of columns that share one analysis [cells].
        errors: Standard deviation of the error of representativeness by modality, in units after the transform; a
            modality's `error_std` comes on top.
        half_widths: Half-width of the taper of the influence of a modality's observations [km].
        sets: Sets of observations that rivals are run on; all if empty.
        trials: Settings to try on validation days, in place of a run on the test; 0 runs these.
    """

    members: int = 40
    spinup: int = 12
    lag: int = 3
    inflation: float = 1.0
    rtps: float = 0.5
    block: int = 2
    errors: dict[str, float] = field(default_factory=dict)
    half_widths: dict[str, float] = field(default_factory=dict)
    sets: tuple[str, ...] = ()
    trials: int = 0

    def __post_init__(self) -> None:
        if self.members < 2 or self.spinup < 0 or self.lag < 0 or self.block < 1:
            raise InvalidValueError(
                "a rival needs members >= 2, spinup >= 0, lag >= 0 and block >= 1, got "
                f"{self.members}, {self.spinup}, {self.lag} and {self.block} (experiment.rival)."
            )


def check_names(rivals: Iterable[str], settings: RivalRecipe, sets: Iterable[str]) -> None:
    """Check the names of rivals and of their sets.

    Raises:
        ValueError: If one is unknown; the nearest is named.
    """
    for name in rivals:
        if name not in RIVALS:
            raise InvalidValueError(unknown("rival", name, RIVALS, "experiment.rivals."))
    for name in settings.sets:
        if name not in sets:
            raise InvalidValueError(unknown("set", name, sets, "experiment.rival.sets."))
