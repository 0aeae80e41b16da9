"""The synthetic planet's archive: simulated weather, observed by instruments, in the real archives' formats."""

import hashlib
import os
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slams.config import PRESSURE_LEVELS
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.processes import in_processes
from slams.core.random import fork, normal
from slams.data.planet.files import is_complete, write_year, year_paths
from slams.data.planet.instruments import Instruments, Planet, at_levels, observable_day


def simulate_archive(
    system: Planet,
    folder: str | os.PathLike[str],
    years: Sequence[int],
    *,
    seed: int = 0,
    spinup: int = 60,
    chains: int = 8,
    days: int | None = None,
    instruments: Instruments | None = None,
    workers: int = 1,
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
        workers: Groups simulated at the same time, each in a process of its own.
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
    done, tasks = [0] * len(groups), []
    for number, (group, length) in enumerate(zip(groups, lengths, strict=True)):
        mark = _mark(system, group, seed, spinup, days, instruments)
        if all(is_complete(path, mark) for year in group for path in year_paths(folder, year)):
            done[number] = len(group) * (spinup + length)
        else:
            own = (system, folder, group, spinup, [_length(year, days) for year in group])
            tasks.append((number, (*own, per_day, seed, instruments, mark)))

    def tick(task: int, day: int) -> None:
        number = tasks[task][0]
        done[number] = len(groups[number]) * day
        if progress is not None:
            progress(sum(done), total)

    if progress is not None:
        progress(sum(done), total)
    in_processes(_write_group, [task for _, task in tasks], workers=workers, progress=tick)
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


def _write_group(
    system: Planet,
    folder: Path,
    years: Sequence[int],
    spinup: int,
    lengths: Sequence[int],
    per_day: int,
    seed: int,
    instruments: Instruments,
    mark: str,
    tick: Callable[[int], None],
) -> None:
    """Simulate a group of years and write their files; `tick` is called with the days done."""
    latitude = system.harmonics.latitude.double().cpu().numpy()
    longitude = system.harmonics.longitude.double().cpu().numpy()
    fields = _run(system, years, spinup, max(lengths), per_day, seed, instruments, tick)
    for k, (year, length) in enumerate(zip(years, lengths, strict=True)):
        temperature, rain, radiation = (field[k, :length] for field in fields)
        write_year(folder, year, latitude, longitude, (temperature, rain, radiation), mark)


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
    x = _first(system, years, seed, spinup)
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
        today = observable_day(system, x, levels=levels, cloud=instruments.cloud)
        x, wet, glow = today.after, today.rain, today.radiation
        temperature[:, day] = today.temperature.numpy()
        if not bool(torch.isfinite(wet).all()):
            raise NonFiniteError(
                f"the system blew up on day {day} of the years {list(years)}; "
                "use more substeps or more diffusion."
            )
        gauge = torch.stack([normal(grid, rng=rng) for rng in noises])
        noise = torch.stack([normal(grid, rng=rng) for rng in noises])
        caught, received = instruments.report(wet, glow, gauge, noise)
        rain[:, day] = torch.where(land > 0.5, caught, torch.nan).numpy()
        radiation[:, day] = received.numpy()
        tick(spinup + day + 1)
    return temperature, rain, radiation


def _first(system: Planet, years: Sequence[int], seed: int, spinup: int) -> Tensor:
    """States of the chains of years, `spinup` days before 1 January."""
    # The equinox wanders against the calendar by under a day; the year of the system is 365.25 days.
    return torch.cat(
        [system.initial(1, rng=fork(seed, "weather", year), day=365.25 - spinup) for year in years]
    )


@torch.no_grad()
def preceding_days(
    system: Planet,
    years: Sequence[int],
    year: int,
    count: int,
    *,
    seed: int = 0,
    spinup: int = 60,
    chains: int = 8,
    levels: Sequence[float] = PRESSURE_LEVELS,
    instruments: Instruments | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The last days before 1 January of a year's chain, which the archive drops, simulated again.

    A chain is chaotic, so that these are the archive's own days only where its last bits are reproduced; compare the
    temperature of 1 January with the archive's. Instruments have errors of their own draws.

    Args:
        system: The planet of the archive.
        years: All years of the archive, in its order.
        year: One of them.
        count: Days wanted, at most `spinup`.
        seed: Seed of the archive.
        spinup: Days dropped before each year.
        chains: Years in one batch.
        levels: Pressure levels of the temperature [hPa], in this order.
        instruments: Errors of the instruments.

    Returns:
        Exact temperature [K], (count, levels, H, W); rain [mm], NaN over sea, and radiation [W/m^2], (count, H, W), as
        instruments report them; temperature of 1 January, (levels, H, W).

    Raises:
        ValueError: If the year is not in the archive or `count` exceeds `spinup`.
    """
    if year not in years or not 0 <= count <= spinup:
        raise InvalidValueError(
            f"the archive has the years {list(years)} with {spinup} days before each, not {count} before {year}."
        )
    instruments, at = instruments or Instruments(), list(years).index(year)
    group = list(years)[at // chains * chains :][:chains]
    x, own = _first(system, group, seed, spinup), at % chains
    for _ in range((spinup - count) * _check(system, years, chains)):
        x = system(x)
    rng, days = fork(seed, "instruments", year, "before"), []
    for _ in range(count):
        today = observable_day(system, x, levels=levels, cloud=instruments.cloud)
        noises = [normal(today.rain.shape[1:], rng=rng) for _ in range(2)]
        caught, received = instruments.report(today.rain[own], today.radiation[own], *noises)
        rain = torch.where(system.land > 0.5, caught, torch.nan)
        days.append((today.temperature[own], rain, received))
        x = today.after
    first = at_levels(system.weather(x), system.land, levels)[own].float()
    temperature, rain, radiation = (torch.stack(each) for each in zip(*days, strict=True))
    return temperature, rain, radiation, first
