"""The LETKF with the planet's equations, on a small planet."""

import pytest
import torch

from slams.core.random import fork, normal
from slams.data.planet import observable_day
from slams.pipeline.recipe import RivalRecipe
from slams.pipeline.rivals.cycle import Cycled, Instrument, cycle, forecast
from slams.pipeline.rivals.planet import MODELS, PlanetDays, climatology, members_of_season
from slams.systems import MoistQG

GRID = {"truncation": 10, "latitudes": 16, "longitudes": 32}
START, DAYS, MEMBERS = 40.0, 8, 20
SETTINGS = RivalRecipe(members=MEMBERS, lag=2, rtps=0.5)


@pytest.fixture(scope="module")
def system() -> MoistQG:
    return MoistQG(**GRID)


@pytest.fixture(scope="module")
def climate(system) -> torch.Tensor:
    """Ten chains on three dates around the first day."""
    return climatology(system, seed=5, chains=10, spinup=30, every=8, first=START - 8, length=24)


@pytest.fixture(scope="module")
@torch.no_grad()
def truth(system) -> dict[str, torch.Tensor]:
    """What perfect instruments show of a truth of its own, and the truth after it."""
    x, found = system.initial(1, rng=fork(77, "truth"), day=START - 40), []
    for _ in range(160):
        x = system(x)
    for _ in range(DAYS):
        today = observable_day(system, x)
        x = today.after
        found.append((today.temperature[0], today.rain, today.radiation))
    temperature, rain, radiation = (torch.stack(each) for each in zip(*found, strict=True))
    return {"temperature": temperature, "rain": rain, "radiation": radiation, "after": x}


@pytest.fixture(scope="module")
def columns(system, truth) -> Instrument:
    """A tenth of the temperature's columns, with noise of 0.5 K."""
    weights = system.harmonics.weights.flatten()
    hidden = torch.ones(weights.numel(), dtype=torch.bool)
    hidden[torch.multinomial(weights, 51, generator=fork(0, "columns"))] = False
    value = truth["temperature"]
    value = value + 0.5 * normal(value.shape, like=value, rng=fork(0, "noise"))
    return Instrument("temperature", value.masked_fill(hidden.reshape(16, 32), torch.nan), 0.5, 4000.0)


@pytest.fixture(scope="module")
def cycled(system, climate, columns) -> Cycled:
    members = members_of_season(climate, START, MEMBERS)
    days = PlanetDays(system, daily=(), lag=2)
    return cycle(days, members, {"t": columns}, SETTINGS, keep=slice(0, DAYS), rng=fork(0, "filter"))


def square_errors(system, members, truth):
    """Square error of the mean of members (N, T, P, H, W), by day."""
    return ((members.mean(0) - truth).square() * system.harmonics.weights).sum((-2, -1)).mean(-1)


@torch.no_grad()
def test_days_are_the_archives(system, climate):
    """Temperature, rain and radiation in the state of the cycle are to the last bit those that the archive writes."""
    days = PlanetDays(system, logarithmic=("rain",), lag=1)
    planet = climate[0, :3]
    x = days.advance(days.begin(planet), 0)
    today = observable_day(system, planet)
    assert torch.equal(x[:, days.place("temperature")], today.temperature)
    assert torch.equal(x[:, days.place("planet")], today.after)
    assert torch.equal(x[:, days.place("radiation")][:, 0], today.radiation)
    rain = x[:, days.place("rain")][:, 0].expm1()
    torch.testing.assert_close(rain, days.instruments.caught(today.rain), rtol=1e-5, atol=1e-6)
    x = days.advance(x, 1)
    assert torch.equal(x[:, days.place("temperature")], observable_day(system, today.after).temperature)
    assert torch.equal(x[:, days.place("temperature", 1)], today.temperature)
    quick = PlanetDays(system, daily=(), lag=1)  # without looking at rain and radiation
    assert torch.equal(quick(quick.begin(planet))[:, quick.place("planet")], today.after)


def test_filter_beats_climatology_and_a_free_run(system, climate, columns, cycled, truth):
    """From the third day on: with the error halved, which no wrong sign or misplaced observation reaches."""
    free = PlanetDays(system, daily=(), lag=0)
    members = members_of_season(climate, START, MEMBERS)
    run = square_errors(system, forecast(free, members, DAYS), truth["temperature"])[2:].mean()
    still = square_errors(system, free.temperature(members)[:, None], truth["temperature"])[2:].mean()
    found = square_errors(system, cycled.filtered, truth["temperature"])[2:].mean()
    assert found < 0.5**2 * run and found < 0.5**2 * still


def test_smoother_is_not_worse_than_the_filter(system, cycled, truth):
    """On the days with days after them; false alarm of 4 standard errors of 5 days (Student's t): 1 %."""
    pairs = (square_errors(system, x, truth["temperature"])[1:-2] for x in (cycled.smoothed, cycled.filtered))
    difference = torch.sub(*pairs)
    assert difference.mean() < 4 * difference.std() / len(difference) ** 0.5
    torch.testing.assert_close(cycled.smoothed[:, -1], cycled.filtered[:, -1])  # nothing comes after it


def test_forecasts_start_from_the_last_day(system, climate, columns, cycled, truth):
    """The first forecast is of the day after, and two days ahead it is better than climatology."""
    days = PlanetDays(system, daily=(), lag=2)
    ahead = forecast(days, cycled.after, 2)
    with torch.no_grad():
        following = observable_day(system, truth["after"])
        later = observable_day(system, following.after).temperature
        next_days = torch.cat([following.temperature, later])
        assert torch.equal(ahead[:, 0], days.temperature(cycled.after))
    still = days.temperature(members_of_season(climate, START, MEMBERS))[:, None]
    assert (square_errors(system, ahead, next_days) < square_errors(system, still, next_days)).all()


def test_observations_of_the_day_change_its_estimate(system, climate, columns, truth):
    """Radiation everywhere lowers the error of columns alone on average over three days."""
    members = members_of_season(climate, START, MEMBERS)
    radiation = truth["radiation"] + 2 * normal(truth["radiation"].shape, rng=fork(0, "radiation"))
    both = {"t": columns, "olr": Instrument("radiation", radiation, 6.0, 3000.0)}
    three = {
        name: Instrument(one.quantity, one.values[:3], one.std, one.half_width) for name, one in both.items()
    }
    errors = {}
    for names in (("t",), ("t", "olr")):
        days = PlanetDays(system, daily=("radiation",) if "olr" in names else (), lag=0)
        chosen = {name: three[name] for name in names}
        found = cycle(days, members, chosen, SETTINGS, keep=slice(0, 3), rng=fork(0, "filter"))
        errors[names] = square_errors(system, found.filtered, truth["temperature"][:3]).mean()
    assert errors["t", "olr"] < errors["t",]


def test_wrong_models_differ_in_what_they_say(system):
    assert MODELS["perfect"](system) is system
    wrong, half = (MODELS[name](system) for name in ("wrong_moisture", "half_resolution"))
    assert wrong.climate.evaporation == pytest.approx(4 / 3 * system.climate.evaporation)
    assert half.forecast_model.harmonics.truncation == 5 and half.climate == system.climate
    assert half.state_shape == wrong.state_shape == system.state_shape
    assert len({str(system), str(wrong), str(half)}) == 3


def test_members_of_the_season_have_its_date(climate):
    """From the nearest dates, also across New Year."""
    members = members_of_season(climate, START + 3, 20)
    assert len(members) == 20 and bool((members[:, -1] == START + 3).all())
    assert torch.equal(members[:, :-1], climate[1:, :, :-1].flatten(0, 1))
    turn = climate.clone()
    turn[:, :, -1] = torch.tensor([100.0, 3.0, 364.0])[:, None, None, None]
    assert torch.equal(members_of_season(turn, 0.0, 20)[:, :-1], climate[[2, 1], :, :-1].flatten(0, 1))
    with pytest.raises(ValueError, match="climatological"):
        members_of_season(climate, 3.0, 1000)


def test_observations_of_another_grid_are_refused(system, climate, columns):
    wrong = Instrument("temperature", columns.values[..., ::2], 0.5, 4000.0)
    days = PlanetDays(system, daily=(), lag=0)
    with pytest.raises(ValueError, match="on a grid of"):
        cycle(days, climate[0], {"t": wrong}, SETTINGS, keep=slice(0, 1), rng=fork(0, "filter"))
