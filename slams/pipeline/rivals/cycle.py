"""The forecast-analysis cycle of a rival over some days: filter, fixed-lag smoother, forecasts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slams.assimilation.ensemble.columns import ColumnLETKF, blocks
from slams.assimilation.ensemble.local import geometry_of
from slams.assimilation.filter import FilterState
from slams.core.covariance import Diagonal
from slams.core.errors import InvalidValueError
from slams.core.geometry.distance import great_circle
from slams.core.geometry.localization import Localization
from slams.observation.observation import Observation, Observations
from slams.pipeline.recipe_rivals import RivalRecipe
from slams.pipeline.rivals.planet import PlanetDays


@dataclass(frozen=True)
class Instrument:
    """Observations of one kind through a run of days.

    Attributes:
        quantity: "temperature", "rain" or "radiation".
        values: Values on the grid (T, P, H, W), NaN where missing.
        std: Standard deviation of the error, of instrument and representativeness together.
        half_width: Half-width of the taper of its influence [km].
    """

    quantity: str
    values: Tensor
    std: float
    half_width: float


@dataclass(frozen=True)
class Cycled:
    """Outcome of a cycle.

    Attributes:
        filtered: Temperature of each kept day given its observations and those before (N, T, P, H, W) [K].
        smoothed: The same given also up to `lag` days after it.
        after: The planet's states at the end of the last kept day (N, C, H, W), from which forecasts start.
    """

    filtered: Tensor
    smoothed: Tensor
    after: Tensor


class _Cells(nn.Module):
    """Some cells of some channels of a state, as one vector."""

    def __init__(self, channels: slice, cells: Tensor) -> None:
        super().__init__()
        self.channels, self.cells = channels, cells

    def forward(self, x: Tensor) -> Tensor:
        return x[..., self.channels, :, :].flatten(-2)[..., self.cells].flatten(-2)


@torch.no_grad()
def cycle(
    days: PlanetDays,
    planet: Tensor,
    instruments: Mapping[str, Instrument],
    settings: RivalRecipe,
    *,
    keep: slice,
    rng: torch.Generator,
    progress: Callable[[int], None] = lambda day: None,
) -> Cycled:
    """Filter and smooth a run of days.

    The observations of a day are those of its temperature at 00 UTC and of its rain and radiation until 24 UTC; the
    filter's estimate of its temperature uses all of them.

    Args:
        days: The rival's model of days.
        planet: Members at 00 UTC of the first day, before any observation, (N, C, H, W).
        instruments: Observations on all T days by name.
        settings: Settings of the filter.
        keep: Days whose estimates are returned; the smoother looks as far ahead as there are days.
        rng: Generator of the filter.
        progress: Callback with the number of days done.

    Returns:
        The estimates of the kept days.
    """
    length = len(next(iter(instruments.values())).values)
    kept = range(length)[keep]
    filtered, smoothed, after = dict[int, Tensor](), dict[int, Tensor](), list[Tensor]()

    def monitor(step: int, state: FilterState) -> dict[str, Tensor]:
        day = step // 2
        if step % 2 == 0:
            return {}
        for back in range(min(days.lag, day) + 1):
            smoothed[day - back] = state.x[:, days.place("temperature", back)].clone()
        filtered[day] = smoothed[day]
        for past in {*filtered} - {*range(day - days.lag, day + 1)} - {*kept}:
            del filtered[past], smoothed[past]
        if day == kept[-1]:
            after.append(state.x[:, days.place("planet")].clone())
        progress(1)
        return {}

    observations, near, variables = _observed(days, instruments, settings.block)
    method = ColumnLETKF(
        days,
        variables=variables,
        present=days.place("temperature").stop * variables.shape[0] * settings.block**2,
        localization=near,
        inflation=settings.inflation,
        rtps=settings.rtps,
        failure="replace",
        bound=1e6,
    )
    method.assimilate(
        observations, len(planet), x0=days.begin(planet), keep="scores", monitor=monitor, rng=rng
    )
    return Cycled(
        torch.stack([filtered[day] for day in kept], 1),
        torch.stack([smoothed[day] for day in kept], 1),
        after[0],
    )


def _observed(
    days: PlanetDays, instruments: Mapping[str, Instrument], side: int
) -> tuple[Observations, Localization, Tensor]:
    """Observations at the half days of the cycle, their localization, and the variables of its sites."""
    geometry = geometry_of(days.system)
    height, width = days.state_shape[1:]
    # the clock is no field to be analysed: it is the last channel of the planet
    variables, columns = blocks(days.state_shape[0], height, width, side)
    clock = (days.channels - 1) * height * width
    points = geometry.points[: height * width]
    sites = points[columns].mean(1)
    found, distances = {}, []
    for name, instrument in instruments.items():
        values = instrument.values
        if values.shape[-2:] != (height, width):
            raise InvalidValueError(
                f"observations of {name} are on a grid of {tuple(values.shape[-2:])}, the planet on {(height, width)}."
            )
        cells = values.isfinite().flatten(-2).flatten(0, 1).any(0).nonzero().flatten()
        flat = values.flatten(-2)[..., cells].flatten(-2)
        spread = torch.full((2 * len(flat), flat.shape[-1]), torch.nan, dtype=flat.dtype)
        spread[0 if instrument.quantity == "temperature" else 1 :: 2] = flat
        operator = _Cells(days.place(instrument.quantity), cells)
        noise = Diagonal(torch.full((flat.shape[-1],), instrument.std**2, dtype=flat.dtype))
        found[name] = Observation(spread, operator, noise)
        apart = great_circle(sites, points[cells]) / instrument.half_width
        distances.append(apart.repeat(1, values.shape[1]))
    near = Localization(torch.cat(distances, 1), 1.0)
    still = (variables < clock) | (variables >= clock + height * width)
    return Observations(found), near, variables[still].reshape(len(variables), -1)


@torch.no_grad()
def forecast(days: PlanetDays, after: Tensor, length: int) -> Tensor:
    """Temperature forecast from the end of a cycle.

    Args:
        days: The rival's model of days.
        after: States at the end of the last observed day, (N, C, H, W).
        length: Days L.

    Returns:
        Temperature at 00 UTC of the L days after the last observed one, (N, L, P, H, W) [K].
    """
    found: Sequence[Tensor] = []
    for day in range(length):
        found = [*found, days.temperature(after)]
        for _ in range(round(1 / days.system.dt) if day < length - 1 else 0):
            after = days.system(after)
    return torch.stack(list(found), 1)
