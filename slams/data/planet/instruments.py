"""Instruments of the synthetic planet: the observation operators of its archive, and their errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from slams.config import PRESSURE_LEVELS

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

    def caught(self, rain: Tensor) -> Tensor:
        """A day's rain as a gauge reports it: 0 where it is less than `gauge_least` [mm]."""
        return torch.where(rain < self.gauge_least, 0.0, rain)

    def report(self, rain: Tensor, radiation: Tensor, gauge: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Rain [mm] and radiation [W/m^2] with errors, from standard normal draws for each."""
        return self.caught(rain * torch.exp(self.gauge_error * gauge)), radiation + self.olr_noise * noise


@dataclass(frozen=True)
class ObservableDay:
    """What instruments without errors report of the day that begins with states (*B, *S).

    Attributes:
        temperature: Temperature on pressure levels at 00 UTC, at the start [K], (*B, levels, H, W), float32.
        rain: Total of the day [mm], (*B, H, W), float32.
        radiation: Mean outgoing long-wave radiation of the day [W/m^2], (*B, H, W), float32.
        after: States at the end of the day, (*B, *S).
    """

    temperature: Tensor
    rain: Tensor
    radiation: Tensor
    after: Tensor


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


def observable_day(
    system: Planet,
    x: Tensor,
    *,
    levels: Sequence[float] = PRESSURE_LEVELS,
    cloud: float = Instruments.cloud,
) -> ObservableDay:
    """The observation operators of the archive: one day from states, and what it shows.

    Rain and radiation are means over the model's steps of the day, the first at 00 UTC.

    Args:
        system: A Dynamics with what `Planet` names.
        x: States at 00 UTC, (*B, *S).
        levels: Pressure levels of the temperature [hPa].
        cloud: Largest emissivity of cloud.
    """
    per_day, grid = round(1 / system.dt), (*x.shape[:-3], *system.land.shape)
    levels = [float(level) for level in levels]
    wet, glow = torch.zeros(grid), torch.zeros(grid)
    temperature = None
    for _ in range(per_day):
        weather = system.weather(x)
        air = at_levels(weather, system.land, levels)
        temperature = air.float() if temperature is None else temperature
        wet += weather.rain.float() / per_day
        glow += outgoing_longwave(weather, air, levels, cloud).float() / per_day
        x = system(x)
    assert temperature is not None
    return ObservableDay(temperature, wet, glow, x)
