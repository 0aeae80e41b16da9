"""Days of the archive: fields, climate and test trajectories."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slams.core.codec import SeasonalStandardize
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.settings import read_tree
from slams.core.tensorfile import flat, grouped, read_tensors, write_tensors
from slams.data.planet.archive import simulate_archive
from slams.papers.qu2024.plan import ArchivePlan, Qu2024Plan
from slams.pipeline.inputs.fields import Fields, load_fields, phase_of
from slams.pipeline.recipe import from_tree
from slams.systems.flows.quasigeostrophic import MoistQG

STATE = "t"
DAYS = "days.safetensors"  # a few test days beside the shipped weights
SHIPPED = 2, 5  # trajectories and days of each
_CONFIGS = Path(__file__).parents[2] / "configs"


@dataclass(frozen=True)
class Climate:
    """Seasonal mean and spread of each modality, and mean and deviation of a level's values as published.

    Attributes:
        statistics: Seasonal mean and spread by modality.
        mean, std: Of all values of each level on training days, cells counted equally, (C).
    """

    statistics: Mapping[str, SeasonalStandardize]
    mean: Tensor
    std: Tensor

    @classmethod
    def fit(cls, fields: Fields, rows: np.ndarray, harmonics: int) -> "Climate":
        """From the days with the given numbers."""
        index = torch.from_numpy(rows)
        phase = phase_of(fields.dates[rows])
        statistics = {
            name: SeasonalStandardize.fit(
                x[index], phase, harmonics=harmonics, weights=fields.layouts[name].weights()
            )
            for name, x in fields.values.items()
        }
        state = fields.values[STATE][index].double()
        mean, std = state.mean((0, 2, 3)), state.std((0, 2, 3), unbiased=False)
        return cls(statistics, mean.float(), std.float())

    def anomalies(self, fields: Fields, rows: Tensor) -> dict[str, Tensor]:
        """Standardized anomalies of days, (*rows, *S) by modality, NaN where training had no data."""
        phase = phase_of(fields.dates)[rows]
        found = {}
        for name, one in self.statistics.items():
            x = one.encode(fields.values[name][rows], phase)
            found[name] = torch.where(one.present, x, torch.nan)
        return found


@dataclass(frozen=True)
class Truths:
    """Test trajectories.

    Attributes:
        anomalies: Standardized anomalies (R, T, *S) by modality.
        phase: Phase of the year, (R, T).
        weights: Area weights, (H, W).
        levels: Names of the levels.
        lat, lon: Coordinates [degrees].
    """

    anomalies: Mapping[str, Tensor]
    phase: Tensor
    weights: Tensor
    levels: tuple[str, ...]
    lat: tuple[float, ...]
    lon: tuple[float, ...]

    def part(self, count: int, days: int | None = None) -> "Truths":
        """The first trajectories, and of each the first days."""
        first = slice(count), slice(days)
        own = {name: x[first] for name, x in self.anomalies.items()}
        return Truths(own, self.phase[first], self.weights, self.levels, self.lat, self.lon)


def training_fields(plan: Qu2024Plan, console: Console) -> Fields:
    """Fields of training and validation."""
    return _fields(plan, plan.archive.folder, plan.archive.years, "training", console)


def test_fields(plan: Qu2024Plan, console: Console) -> Fields:
    """Fields of the years of the test."""
    return _fields(plan, plan.archive.own, plan.archive.test, "test", console)


def _fields(plan: Qu2024Plan, folder: str, years: Sequence[int], part: str, console: Console) -> Fields:
    archive = plan.archive
    tree = read_tree(_CONFIGS / f"{archive.recipe}.yaml", "recipe")
    data = tree["data"] | {"gross_errors": False}
    if folder:
        with console.bar(f"planet of the {part}", 1) as advance:
            days = archive.days or None if part == "test" else None
            simulate_archive(MoistQG(), folder, list(years), seed=tree["seed"], days=days)
            advance(1, "")
        names = {"t": "era5_t_{}.nc", "rain": "precip.{}.nc", "olr": "olr.{}.nc"}
        data["store"] = str(Path(archive.own) / f"store_{part}")
        if part == "training":
            years = [year for year in years if str(year) <= archive.validation[1]]
        for name, modality in data["modalities"].items():
            modality["files"] = [str(Path(folder) / names[name].format(year)) for year in years]
    fields = load_fields(from_tree(tree | {"data": data}), console.say)
    _check_grid(plan, archive, fields)
    return fields


def _check_grid(plan: Qu2024Plan, archive: ArchivePlan, fields: Fields) -> None:
    for name, layout in fields.layouts.items():
        if not layout.is_grid or layout.shape[-2:] != tuple(plan.cells):
            shape = " x ".join(map(str, layout.shape[-2:]))
            raise InvalidValueError(
                f"{name} of the archive of {archive.recipe} is on {shape}, and this experiment on "
                f"{plan.cells[0]} x {plan.cells[1]}; choose the size of the archive (size=planet or full), or make its "
                "stores with --grid 1.5deg-published."
            )


def truths(plan: Qu2024Plan, fields: Fields, climate: Climate, years: Sequence[int]) -> Truths:
    """Trajectories that begin at equal distances in each year.

    Raises:
        ValueError: If a year has too few days.
    """
    starts = []
    each = -(-plan.trajectories // len(years))
    for year in years:
        own = np.flatnonzero(fields.dates.astype("datetime64[Y]") == np.datetime64(str(year)))
        room = len(own) - plan.length
        if room < (each - 1) * plan.length:
            raise InvalidValueError(
                f"{year} has {len(own)} days, too few for {each} trajectories of {plan.length}; ask for fewer "
                "trajectories, or name more years (archive.test)."
            )
        # from the first day on: the last trajectory ends before the year does
        starts += [int(own[0]) + k * (len(own) // each) for k in range(each)]
    rows = torch.tensor(starts[: plan.trajectories])[:, None] + torch.arange(plan.length)
    layout = fields.layouts[STATE]
    return Truths(
        climate.anomalies(fields, rows),
        phase_of(fields.dates)[rows],
        layout.weights(),
        layout.levels(),
        layout.coords["lat"],
        layout.coords["lon"],
    )


def save_truths(path: Path, truths: Truths) -> None:
    """Write trajectories, anomalies with 16 bits a number."""
    tensors = {name: x.half() for name, x in truths.anomalies.items()}
    facts = {"levels": list(truths.levels), "lat": list(truths.lat), "lon": list(truths.lon)}
    write_tensors(
        path, flat({"anomalies": tensors, "": {"phase": truths.phase, "weights": truths.weights}}, "|"), facts
    )


def shipped_truths(path: Path, plan: Qu2024Plan) -> Truths:
    """The first trajectories and days of a file of `save_truths`.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it has fewer or shorter trajectories than the plan.
    """
    tensors, facts = read_tensors(path, remedy="reinstall the package, or leave out size=reduced")
    groups = grouped(tensors, "|")
    phase = groups[""]["phase"]
    if phase.shape[0] < plan.trajectories or phase.shape[1] < plan.length:
        raise InvalidValueError(
            f"the shipped days are {phase.shape[0]} trajectories of {phase.shape[1]} days, and the plan has "
            f"{plan.trajectories} of {plan.length}; lower trajectories and length, or take size=planet."
        )
    anomalies = {name: x.float() for name, x in groups["anomalies"].items()}
    coordinates = (tuple(facts[key]) for key in ("levels", "lat", "lon"))
    whole = Truths(anomalies, phase, groups[""]["weights"], *coordinates)
    return whole.part(plan.trajectories, plan.length)
