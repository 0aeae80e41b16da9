"""Plan of the published experiment: settings, models, archive, priors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from slams.core.errors import InvalidValueError
from slams.core.settings import unknown
from slams.papers.study import at_least, read_study
from slams.training.fit import FitSettings

# Modalities of each model, the analysed state first; sda_0 is in pixels.
MODELS: Mapping[str, tuple[str, ...]] = {
    "sda_0": ("t",),
    "lsda_0": ("t",),
    "lsda_1": ("t", "rain"),
    "lsda_2": ("t", "rain", "olr"),
}
CHANNELS = 5  # of the latent
COARSE = 4  # side of the blocks of the settings noise_* [cells]
STD = 0.1  # error of the settings coarse_* and sparse_*
SETTINGS = (
    *(f"coarse_{side}" for side in (4, 8, 12, 15, 16, 20)),
    *(f"noise_{std}" for std in ("0.5", "1", "2", "4")),
    *(f"sparse_{step}" for step in (4, 8, 12, 16)),
)  # of the published experiment, and coarse_16 of the planet; any other value will do
OFFSET = 2  # first row and column of the settings sparse_*


@dataclass(frozen=True)
class Setting:
    """One observing system: block means or single cells, with an error.

    Attributes:
        name: Name such as "coarse_8", "noise_2" or "sparse_4".
        kind: What varies: "coarse" (side of blocks), "noise" (error of blocks of 4 cells) or "sparse" (distance of
            cells).
        value: Its value.
    """

    name: str
    kind: str
    value: float

    @classmethod
    def of(cls, name: str) -> "Setting":
        """The setting of a name.

        Raises:
            ValueError: If it is none (the nearest published one is named).
        """
        kind, _, value = name.partition("_")
        try:
            number = float(value)
        except ValueError:
            number = 0.0
        if kind not in ("coarse", "noise", "sparse") or number <= 0:
            raise InvalidValueError(unknown("setting", name, SETTINGS))
        if kind != "noise" and number != int(number):
            raise InvalidValueError(f"{name}: blocks and distances are whole numbers of cells, got {value}.")
        return cls(name, kind, number)

    @property
    def side(self) -> int:
        """Side of a block, or distance of the observed cells [cells]."""
        return COARSE if self.kind == "noise" else int(self.value)

    @property
    def std(self) -> float:
        """Standard deviation of the errors, in units of the observed values' own."""
        return self.value if self.kind == "noise" else STD


@dataclass(frozen=True)
class ArchivePlan:
    """Where the days are.

    Attributes:
        recipe: Shipped recipe with the modalities.
        folder: Folder of the simulated years of training and validation; empty for an archive of one's own.
        own: Folder of the simulated years of the test.
        years: Simulated years of the folder, of which those up to the validation's last day are read.
        train, validation: First and last day.
        test: Years of the test.
        days: Days of each year of the test that are simulated; 0 is the whole year.
        shipped: Whether the test is the few days that are shipped with the weights.
    """

    recipe: str = "planet"
    folder: str = ""
    own: str = ""
    years: tuple[int, ...] = ()
    train: tuple[str, str] = ("", "")
    validation: tuple[str, str] = ("", "")
    test: tuple[int, ...] = ()
    days: int = 0
    shipped: bool = False


@dataclass(frozen=True)
class PriorPlan:
    """Autoencoder, closed form and networks of a model.

    Attributes:
        window: Days of a window, odd.
        patterns: Patterns of the closed form.
        wavenumbers: Largest zonal wavenumber of the patterns.
        capacity: "matched" gives all models networks of one width, "published" the pixel model twice the width.
        hidden, blocks, embedding, time: Shape of `ScoreUNet`.
        preconditioned: Whether it is `Preconditioned`; as published it predicts the noise.
        correction: Width of the network that corrects the closed form.
        network, coefficients, autoencoder: Trainings of the U-Net, of that network and of the autoencoder.
    """

    window: int = 3
    patterns: int = 84
    wavenumbers: int = 10
    capacity: Literal["matched", "published"] = "matched"
    hidden: tuple[int, ...] = (16, 32)
    blocks: int = 1
    embedding: int = 32
    time: int = 64
    preconditioned: bool = False
    correction: int = 64
    network: FitSettings = field(default_factory=FitSettings)
    coefficients: FitSettings = field(default_factory=FitSettings)
    autoencoder: FitSettings = field(default_factory=FitSettings)

    def width(self, model: str) -> tuple[int, ...]:
        """Channels of a model's networks at each level."""
        twice = self.capacity == "published" and model == "sda_0"
        return tuple((2 if twice else 1) * h for h in self.hidden)


@dataclass(frozen=True)
class RightPlan:
    """Draws in right mode: ensemble size and steps of the sampler."""

    members: int = 8
    steps: int = 6


@dataclass(frozen=True)
class PublishedPlan:
    """Draws in published mode: one sample a trajectory, guided with gamma.

    Attributes:
        trajectories: Number of trajectories; 1 as published.
        steps, corrections, tau, gamma: Settings of sampler and guidance.
        std: Error added in the latent for the settings coarse_* and sparse_*.
    """

    trajectories: int = 1
    steps: int = 512
    corrections: int = 1
    tau: float = 0.5
    gamma: float = 1e-2
    std: float = STD


@dataclass(frozen=True)
class Qu2024Plan:
    """Plan of the experiment.

    Attributes:
        title: Title of the study.
        source: Reference.
        mode: "published" (in the latent, as published), "right" (in observation space) or "both".
        models: Names of `MODELS`.
        settings: Names of settings, such as "coarse_4".
        cells: Rows and columns of the grid.
        archive: Data.
        trajectories: Number of test trajectories, spread over the years of the test.
        length: Days of a trajectory.
        every: Days from one observed frame to the next.
        prior: Codec and networks.
        right, published: Draws of each mode.
        seed: Seed of all random draws.
        size: "quick" and "planet" are the synthetic planet, "reduced" a few shipped days of it, "full" is the published
            size.
    """

    title: str
    source: str
    models: tuple[str, ...]
    settings: tuple[str, ...]
    cells: tuple[int, int]
    archive: ArchivePlan
    mode: Literal["published", "right", "both"] = "both"
    trajectories: int = 8
    length: int = 29
    every: int = 4
    prior: PriorPlan = field(default_factory=PriorPlan)
    right: RightPlan = field(default_factory=RightPlan)
    published: PublishedPlan = field(default_factory=PublishedPlan)
    seed: int = 0
    size: str = "quick"

    def __post_init__(self) -> None:
        for name in self.models:
            if name not in MODELS:
                raise InvalidValueError(unknown("model", name, MODELS))
        if not self.models or not self.settings:
            raise InvalidValueError("name at least one of the models and one of the settings.")
        at_least(self, trajectories=1, every=1, length=self.prior.window)
        at_least(self.right, members=2, steps=1)
        at_least(self.published, trajectories=1, steps=1)
        if self.published.trajectories > self.trajectories:
            raise InvalidValueError(
                f"published.trajectories must be at most trajectories, {self.trajectories}, got "
                f"{self.published.trajectories}."
            )
        for setting in self.chosen:
            rows, columns = self.cells
            blocks = setting.kind != "sparse"
            if blocks and (rows % setting.side or columns % setting.side):
                raise InvalidValueError(
                    f"{setting.name}: blocks of {setting.side} cells do not divide the grid of {rows} x {columns}; "
                    "choose a divisor of both."
                )
            if not blocks and setting.side + OFFSET > min(rows, columns):
                raise InvalidValueError(f"{setting.name}: cells so far apart are not on {rows} x {columns}.")

    @property
    def chosen(self) -> list[Setting]:
        """Settings that are run."""
        return [Setting.of(name) for name in self.settings]

    @property
    def frames(self) -> list[int]:
        """Observed days of a trajectory."""
        return list(range(0, self.length, self.every))

    @property
    def modes(self) -> tuple[str, ...]:
        """Modes that are run."""
        return ("published", "right") if self.mode == "both" else (self.mode,)


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Qu2024Plan:
    """The plan from its file.

    Raises:
        ValueError: If a key, model, setting or size is unknown (the nearest is named).
    """
    return read_study(Qu2024Plan, path, [_listed(text) for text in overrides])


def _listed(override: str) -> str:
    """models=a or models=a,b as a list."""
    key, _, value = override.partition("=")
    bare: Any = value.strip()
    return f"{key}=[{bare}]" if key in ("models", "settings") and not bare.startswith("[") else override
