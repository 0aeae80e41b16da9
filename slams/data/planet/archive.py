"""The synthetic planet's archive: simulated weather, observed by instruments, in the real archives' formats."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from slams.config import PRESSURE_LEVELS
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.random import fork, normal
from slams.data.planet.files import is_complete, write_year, year_paths

_STEFAN = 5.670374e-8  # W/m^2/K^4
# What a clear sky lets out to space, by level [hPa]: the window to the ground, then water vapour upward.
_EMITS = {1000.0: 0.15, 850.0: 0.17, 700.0: 0.22, 500.0: 0.26, 300.0: 0.16}


class _Weather(Protocol):
    """Weather of states (*B, *S), as `system.weather(x)` gives it."""

    @property
    def pressure(self) -> tuple[float, ...]:
        """hPa, ascending."""

    @property
    def temperature(self) -> Tensor:
        """K, (*B, P, H, W)."""

    @property
    def humidity(self) -> Tensor:
        """relative to saturation, (*B, H, W)."""

    @property
    def rain(self) -> Tensor:
        """mm/day, (*B, H, W)."""

    @property
    def ascent(self) -> Tensor:
        """hPa/day at interfaces, (*B, I, H, W)."""


class _Grid(Protocol):
    """The coordinates of the system's Gaussian grid."""

    @property
    def latitude(self) -> Tensor:
        """degrees, north to south, (H,)."""

    @property
    def longitude(self) -> Tensor:
        """degrees east, (W,)."""


class Planet(Protocol):
    """Interface that `simulate_archive` requires of a Dynamics."""

    dt: float  # days
    land: Tensor  # fraction, (H, W)

    @property
    def harmonics(self) -> _Grid:
        """The grid."""

    def initial(self, *shape: int, rng: torch.Generator | None = None, day: float = 0.0) -> Tensor:
        """States on a day of the year, (*shape, *S)."""

    def weather(self, x: Tensor) -> _Weather:
        """Observable fields of states (*B, *S)."""

    def __call__(self, x: Tensor) -> Tensor:
        """States one `dt` later."""


@dataclass(frozen=True)
class Instruments:
    """Observing system of the planet.

    Attributes:
        gauge_error: Relative error of a day's rain, standard deviation of its logarithm.
        gauge_least: Smallest day's rain a gauge reports [mm]; less is 0.
        olr_noise: Noise of a day's mean outgoing long-wave radiation [W/m^2].
        cloud: Largest emissivity of cloud.
    """

    gauge_error: float = 0.05
    gauge_least: float = 0.1
    olr_noise: float = 2.0
    cloud: float = 0.42


def at_levels(weather: _Weather, land: Tensor, levels: Sequence[float] = PRESSURE_LEVELS) -> Tensor:
    """Temperature on pressure levels: linear in log-pressure between the system's, a boundary layer below.

    Below the lowest level p_s of the system T(p) = T(p_s) + gamma ln(p / p_s) with the standard atmosphere's
    gamma = 53 K; there the departure from the zonal mean shrinks over sea, whose surface is steady,
    and evaporating rain cools the air by 0.12 K for each mm/day, at most 2.5 K.

    Args:
        weather: Weather of states, temperature (*B, P, H, W).
        land: Land fraction, (H, W).
        levels: Levels wanted [hPa].

    Returns:
        Temperature [K], (*B, levels, H, W).
    """
    known = torch.tensor(weather.pressure, dtype=torch.float64).log()
    wanted = torch.tensor([float(level) for level in levels], dtype=torch.float64).log()
    upper = torch.searchsorted(known, wanted).clamp(1, known.numel() - 1)
    share = ((wanted - known[upper - 1]) / (known[upper] - known[upper - 1])).clamp(0, 1)
    weights = torch.zeros(wanted.numel(), known.numel(), dtype=torch.float64)
    rows = torch.arange(wanted.numel())
    weights[rows, upper - 1] = 1 - share
    weights[rows, upper] += share
    below = (wanted - known[-1]).clamp(min=0)
    field = torch.einsum("lp,...phw->...lhw", weights.to(land.dtype), weather.temperature)
    depth = (below / below.max().clamp(min=1e-9)).to(land.dtype)[
        :, None, None
    ]  # 1 at the lowest level wanted
    eddy = field - field.mean(-1, keepdim=True)
    cooling = (0.12 * weather.rain).clamp(max=2.5)[..., None, :, :]
    return field + 53.0 * below.to(land.dtype)[:, None, None] - depth * (0.5 * (1 - land) * eddy + cooling)


def outgoing_longwave(
    weather: _Weather, temperature: Tensor, levels: Sequence[float], cloud: float
) -> Tensor:
    """Outgoing long-wave radiation: a clear column's emission less what cold cloud tops hold back.

    F = (1 - e) sum_l w_l sigma T_l^4 + e sigma T_top^4; emissivity e rises steeply where the column is both
    moist and lifted, and strong ascent puts the top higher, between 600 and 300 hPa.

    Args:
        weather: Weather of states.
        temperature: Temperature on pressure levels [K], (*B, levels, H, W).
        levels: Those levels [hPa].
        cloud: Largest emissivity.

    Returns:
        Radiation [W/m^2], (*B, H, W).
    """
    place = {float(level): k for k, level in enumerate(levels)}
    clear = sum(
        weight * _STEFAN * temperature[..., place[level], :, :] ** 4 for level, weight in _EMITS.items()
    )
    lift = weather.ascent[..., -2, :, :]
    moist = torch.sigmoid((weather.humidity - 0.85) / 0.06)
    cover = cloud * moist * torch.sigmoid((lift - 25.0) / 20.0)
    high = torch.sigmoid((lift - 60.0) / 30.0)
    index = [place[700.0], place[500.0], place[300.0]]
    low_top, middle, high_top = (temperature[..., k, :, :] for k in index)
    top = (1 - high) * (0.5 * low_top + 0.5 * middle) + high * high_top
    return (1 - cover) * clear + cover * _STEFAN * top**4


def simulate_archive(
    system: Planet,
    folder: str | os.PathLike[str],
    years: Sequence[int],
    *,
    seed: int = 0,
    spinup: int = 60,
    chains: int = 7,
    days: int | None = None,
    instruments: Instruments | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Write a planet's years as files that the readers of the real archives read.

    Each year is a chain of its own, started `spinup` days before 1 January from its own random state; give
    years that are not neighbours, so that no two consecutive dates belong to different chains. A year whose
    three files exist, made by the same settings, is not written again. Chains run in fixed groups of
    `chains`, so a run that was killed ends with the numbers of one that was not.

    Args:
        system: A Dynamics with what `Planet` names.
        folder: Output folder.
        years: Calendar years, distinct.
        seed: Seed of weather and instruments.
        spinup: Days dropped before each year.
        chains: Years run in one batch.
        days: Length of each year [days], for short trials; None is the whole calendar year.
        instruments: Errors of the instruments.
        progress: Called with (days done, days in all) of all chains.

    Returns:
        The files of all years: temperature, rain, outgoing radiation of the first year, and so on.

    Raises:
        ValueError: If two years are equal or neighbours, or a day is not a whole number of steps.
    """
    folder, years = Path(folder), [int(year) for year in years]
    per_day = _check(system, years, chains)
    instruments = instruments or Instruments()
    groups = [years[k : k + chains] for k in range(0, len(years), chains)]
    lengths = [max(_length(year, days) for year in group) for group in groups]
    total = sum(len(group) * (spinup + length) for group, length in zip(groups, lengths, strict=True))
    latitude = system.harmonics.latitude.double().cpu().numpy()
    longitude = system.harmonics.longitude.double().cpu().numpy()
    done = 0
    for group, length in zip(groups, lengths, strict=True):
        mark = _mark(system, group, seed, spinup, days, instruments)
        if not all(is_complete(path, mark) for year in group for path in year_paths(folder, year)):
            tick = _ticker(progress, done, len(group), total)
            fields = _run(system, group, spinup, length, per_day, seed, instruments, tick)
            for k, year in enumerate(group):
                temperature, rain, radiation = (field[k, : _length(year, days)] for field in fields)
                write_year(folder, year, latitude, longitude, (temperature, rain, radiation), mark)
        done += len(group) * (spinup + length)
        if progress is not None:
            progress(done, total)
    return [path for year in years for path in year_paths(folder, year)]


def _check(system: Planet, years: Sequence[int], chains: int) -> int:
    """Steps of a day, if years and steps can be simulated."""
    ordered = sorted(years)
    if any(b - a < 2 for a, b in zip(ordered[:-1], ordered[1:], strict=True)):
        raise InvalidValueError(
            f"years {ordered} hold equal or neighbouring ones; each is a chain of its own, "
            "so use every other year."
        )
    if not years or chains < 1:
        raise InvalidValueError(f"need at least one year and one chain, got {len(years)} and {chains}.")
    per_day = round(1 / system.dt)
    if abs(per_day * system.dt - 1) > 1e-9:
        raise InvalidValueError(f"a day must hold a whole number of steps, got dt={system.dt} days.")
    return per_day


def _mark(system: Planet, group: Sequence[int], *settings: object) -> str:
    """Fingerprint of what determines the numbers of a group of years."""
    text = repr((str(system), list(group), settings))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ticker(
    progress: Callable[[int, int], None] | None, done: int, width: int, total: int
) -> Callable[[int], None]:
    """Progress of one group from the days it has done."""
    return lambda day: None if progress is None else progress(done + width * day, total)


def _length(year: int, days: int | None) -> int:
    """Days of a year to be written."""
    whole = (date(year + 1, 1, 1) - date(year, 1, 1)).days
    return whole if days is None else min(days, whole)


@torch.no_grad()
def _run(
    system: Planet,
    years: Sequence[int],
    spinup: int,
    length: int,
    per_day: int,
    seed: int,
    instruments: Instruments,
    tick: Callable[[int], None],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Temperature at 00 UTC, day totals of rain, day means of radiation: (years, days, ...)."""
    # The equinox wanders against the calendar by under a day; the year of the system is 365.25 days.
    x = torch.cat([system.initial(1, rng=fork(seed, "weather", year), day=365.25 - spinup) for year in years])
    noises = [fork(seed, "instruments", year) for year in years]
    land = system.land
    levels = [float(level) for level in PRESSURE_LEVELS]
    grid = tuple(land.shape)
    temperature = np.empty((len(years), length, len(levels), *grid), np.float32)
    rain = np.empty((len(years), length, *grid), np.float32)
    radiation = np.empty_like(rain)
    for day in range(spinup):
        for _ in range(per_day):
            x = system(x)
        tick(day + 1)
    for day in range(length):
        wet, glow = torch.zeros(len(years), *grid), torch.zeros(len(years), *grid)
        for sample in range(per_day):
            weather = system.weather(x)
            air = at_levels(weather, land, levels)
            if sample == 0:
                temperature[:, day] = air.float().numpy()
            wet += weather.rain.float() / per_day
            glow += outgoing_longwave(weather, air, levels, instruments.cloud).float() / per_day
            x = system(x)
        if not bool(torch.isfinite(wet).all()):
            raise NonFiniteError(
                f"the system blew up on day {day} of the years {list(years)}; "
                "use more substeps or more diffusion."
            )
        gauge = torch.stack([normal(grid, rng=rng) for rng in noises])
        noise = torch.stack([normal(grid, rng=rng) for rng in noises])
        caught = wet * torch.exp(instruments.gauge_error * gauge)
        caught = torch.where(caught < instruments.gauge_least, 0.0, caught)
        rain[:, day] = torch.where(land > 0.5, caught, torch.nan).numpy()
        radiation[:, day] = (glow + instruments.olr_noise * noise).numpy()
        tick(spinup + day + 1)
    return temperature, rain, radiation
