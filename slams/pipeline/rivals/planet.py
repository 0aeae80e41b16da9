"""The planet's models of the rivals: right and wrong ones, their days as a filter steps through them, their climate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from slams.config import PRESSURE_LEVELS
from slams.core.errors import InvalidValueError
from slams.core.random import Rng, fork
from slams.data.planet.instruments import Instruments, at_levels, observable_day
from slams.systems.base import Dynamics
from slams.systems.flows.coarse import CoarseMoistQG
from slams.systems.flows.quasigeostrophic import MoistQG

DAILY = ("rain", "radiation")  # channels of a day, beside the temperature of its first hour
_YEAR = 365.25  # days
_OFF = 4 / 3  # of the evaporation's time scale, in the model with wrong moisture


def perfect(system: MoistQG) -> MoistQG:
    """The planet itself."""
    return system


def wrong_moisture(system: MoistQG) -> MoistQG:
    """The planet with evaporation a third slower."""
    climate = replace(system.climate, evaporation=_OFF * system.climate.evaporation)
    return MoistQG(climate, **_grid(system))


def half_resolution(system: MoistQG) -> MoistQG:
    """The planet, forecast at half its truncation."""
    return CoarseMoistQG(system.climate, **_grid(system))


MODELS: Mapping[str, Callable[[MoistQG], MoistQG]] = {
    "perfect": perfect,
    "wrong_moisture": wrong_moisture,
    "half_resolution": half_resolution,
}


def _grid(system: MoistQG) -> dict[str, Any]:
    height, width = system.harmonics.shape
    return {
        "truncation": system.harmonics.truncation,
        "latitudes": height,
        "longitudes": width,
        "dt": system.dt,
        "substeps": system.substeps,
        "dtype": system.land.dtype,
    }


class PlanetDays(Dynamics):
    """Days of a planet in two steps each, with what the archive's instruments report of them beside its state.

    A step from an even number runs the day from 00 UTC to 24 UTC and notes its rain and radiation; one from an odd number
    begins the next day and notes its temperature. Observations of a day's rain and radiation belong to the odd step that
    ends it, those of its temperature to the even step that begins it, and a linear operator picks them from the state.
    Temperatures of the `lag` days before stay in the state, so that every analysis also corrects them.

    A state is (C + D + (lag + 1) P, H, W): the planet's C channels, D of rain and radiation, and P levels of temperature
    of today, yesterday and so on.

    Args:
        system: The planet.
        daily: Names of `DAILY` in use; without any the day is run without looking.
        logarithmic: Those of them kept as log(1 + value).
        levels: Pressure levels of the temperature [hPa].
        lag: Days of the past in the state.
        instruments: Instruments of the archive; their errors are not used.
    """

    dt = 0.5

    def __init__(
        self,
        system: MoistQG,
        *,
        daily: Sequence[str] = DAILY,
        logarithmic: Sequence[str] = (),
        levels: Sequence[float] = PRESSURE_LEVELS,
        lag: int = 0,
        instruments: Instruments | None = None,
    ) -> None:
        super().__init__()
        self.system, self.daily, self.logarithmic = system, tuple(daily), tuple(logarithmic)
        self.levels, self.lag = tuple(float(level) for level in levels), lag
        self.instruments = instruments or Instruments()
        self.channels = system.state_shape[0]
        count = self.channels + len(self.daily) + (lag + 1) * len(self.levels)
        self.state_shape = (count, *system.state_shape[1:])

    def place(self, name: str, back: int = 0) -> slice:
        """Channels of "planet", of a name of `daily`, or of "temperature" some days back.

        Raises:
            ValueError: If there are none.
        """
        if name == "planet":
            return slice(0, self.channels)
        if name in self.daily:
            at = self.channels + self.daily.index(name)
            return slice(at, at + 1)
        if name != "temperature" or not 0 <= back <= self.lag:
            raise InvalidValueError(
                f"no channels of {name!r}, {back} days back; there are planet, {', '.join(self.daily)} and the "
                f"temperature of {self.lag} days."
            )
        at = self.channels + len(self.daily) + back * len(self.levels)
        return slice(at, at + len(self.levels))

    def temperature(self, planet: Tensor) -> Tensor:
        """Temperature of the planet's states (*B, C, H, W) [K], (*B, P, H, W)."""
        return at_levels(self.system.weather(planet), self.system.land, self.levels)

    def begin(self, planet: Tensor) -> Tensor:
        """States at 00 UTC of a first day from those of the planet; days before it are copies of it."""
        daily = planet.new_zeros(*planet.shape[:-3], len(self.daily), *planet.shape[-2:])
        return torch.cat([planet, daily, *[self.temperature(planet)] * (self.lag + 1)], -3)

    def initial(self, *shape: int, rng: Rng = None) -> Tensor:
        """Jets near equilibrium on 1 January; see `climatology` for developed weather."""
        return self.begin(self.system.initial(*shape, rng=rng))

    def forward(self, x: Tensor, *, rng: Rng = None) -> Tensor:
        """A whole day, from 00 UTC to the next."""
        return self.advance(self.advance(x, 0), 1)

    def advance(self, x: Tensor, k: int, *, rng: Rng = None) -> Tensor:
        """See `Dynamics.advance`; even steps run the day, odd ones begin the next."""
        planet, daily, past = x.split(
            [self.channels, len(self.daily), x.shape[-3] - self.channels - len(self.daily)], -3
        )
        if k % 2:
            past = torch.cat([self.temperature(planet), past[..., : self.lag * len(self.levels), :, :]], -3)
        elif self.daily:
            today = observable_day(self.system, planet, levels=self.levels, cloud=self.instruments.cloud)
            planet, shown = today.after, {"rain": today.rain, "radiation": today.radiation}
            shown["rain"] = self.instruments.caught(shown["rain"])
            daily = torch.stack(
                [shown[n].log1p() if n in self.logarithmic else shown[n] for n in self.daily], -3
            )
        else:
            for _ in range(round(1 / self.system.dt)):
                planet = self.system(planet)
        return torch.cat([planet, daily.to(planet), past], -3)


@torch.no_grad()
def climatology(
    system: MoistQG,
    *,
    seed: int,
    chains: int = 5,
    spinup: int = 60,
    every: int = 8,
    first: float = 0.0,
    length: int = 365,
    progress: Callable[[int], None] = lambda days: None,
) -> Tensor:
    """States of a model's own weather through the year, at 00 UTC of every `every`-th day.

    Args:
        system: The model.
        seed: Seed of the weather.
        chains: Independent chains.
        spinup: Days before the first state.
        every: Days between two states of a chain.
        first: Day of the year of the first state, 0 = 1 January.
        length: Days from there on.
        progress: Callback with the number of further days done.

    Returns:
        (slots, chains, C, H, W).
    """
    per_day = round(1 / system.dt)
    x, found = system.initial(chains, rng=fork(seed, "climatology"), day=(first - spinup) % _YEAR), []
    for day in range(spinup + length):
        if day >= spinup and (day - spinup) % every == 0:
            found.append(x)
        for _ in range(per_day):
            x = system(x)
        progress(1)
    return torch.stack(found)


def members_of_season(states: Tensor, day: float, members: int) -> Tensor:
    """Climatological members on a day of the year: the states of `climatology` nearest to it, with its date.

    Args:
        states: (slots, chains, C, H, W).
        day: Day of the year, 0 = 1 January.
        members: Members N wanted.

    Returns:
        (N, C, H, W).

    Raises:
        ValueError: If there are fewer states.
    """
    slots, chains = states.shape[:2]
    if slots * chains < members:
        raise InvalidValueError(f"{members} members are wanted of {slots * chains} climatological states.")
    apart = (states[:, 0, -1, 0, 0] - day + _YEAR / 2) % _YEAR - _YEAR / 2
    nearest = apart.abs().argsort(stable=True)[: -(-members // chains)]
    chosen = states[nearest].flatten(0, 1)[:members].clone()
    chosen[:, -1] = day % _YEAR
    return chosen
