"""Biases of modalities: their size from years left out, and analyses that estimate them with the state."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model.bias import bias_priors, bias_sizes, biases_in, years_of
from slams.pipeline.model.model import Model
from slams.pipeline.model.posterior import posterior

GRID = Layout(("lat", "lon"), {"lat": (40.0, 42.0), "lon": (0.0, 2.0, 4.0)}, "K", "grid")
STATIONS = Layout(("station",), {"lat": (40.0, 41.0, 42.0), "lon": (0.0, 1.0, 2.0)}, "K", "stn")
DAYS = 40


def winters(count: int) -> np.ndarray:
    first = np.arange(count) * 365
    return np.datetime64("1950-12-01") + (first[:, None] + np.arange(DAYS)).flatten()


def test_years_are_seasons_or_calendar_years():
    assert [len(rows) for rows in years_of(winters(3))] == [DAYS] * 3
    whole = np.arange("2001-01-01", "2004-01-01", dtype="datetime64[D]")
    assert [len(rows) for rows in years_of(whole)] == [365] * 3


def test_sizes_of_planted_biases_are_found(rng):
    """60 winters; a variance from 60 draws has a relative deviation of 18 %, of which 4 are allowed; what the mean of
    a winter's weather adds is below .01. The modalities follow the state but for small noise and their biases."""
    years = 60
    state = torch.randn(years * DAYS, 1, 2, 3, generator=rng)
    year = torch.arange(years).repeat_interleave(DAYS)
    drawn = torch.randn(years, 4, generator=rng)
    own = 0.3 * torch.randn(years, 3, generator=rng)
    seen = state.mean((2, 3)) + 0.1 * torch.randn(len(state), 1, generator=rng)
    train = {
        "state": state,
        "grid": (seen + 0.8 * drawn[year, :1])[..., None, None].expand(-1, 1, 2, 3).clone(),
        "stn": (seen + 0.6 * drawn[year, 1:2] + own[year])[:, None],
    }
    train["stn"][::5, :, 1] = torch.nan
    layouts = {"state": GRID, "grid": GRID, "stn": STATIONS}
    found = bias_sizes(layouts, ["state"], train, winters(years), 3)
    assert set(found) == {"grid", "stn"}
    assert found["grid"]["shared"] == pytest.approx(0.64, rel=0.75) and found["grid"]["own"] < 1e-9
    assert found["stn"]["shared"] == pytest.approx(0.36, rel=0.75)
    assert found["stn"]["own"] == pytest.approx(0.09, rel=0.5)
    assert 0.05 <= found["grid"]["share"] <= 1
    assert bias_sizes(layouts, ["state"], {n: x[: 3 * DAYS] for n, x in train.items()}, winters(3), 3) == {}


@pytest.fixture
def model(world) -> Model:
    model = Model.load(world.run)
    model.prior.biases = {
        "coarse": {"shared": 1e-6, "own": 0.0, "share": 1.0},
        "stn": {"shared": 1.0, "own": 0.1, "share": 1.0},
    }
    return model


def observed(rng: torch.Generator, offset: float) -> dict[str, torch.Tensor]:
    """Thirty days without anomaly, the stations off by `offset`."""
    noise = {"coarse": (30, 1, 2, 2), "stn": (30, 1, 5)}
    values = {n: 0.05 * torch.randn(shape, generator=rng) for n, shape in noise.items()}
    values["stn"] += offset
    return values


@pytest.mark.parametrize("composed", [True, False])
def test_what_only_the_stations_say_on_every_day_is_their_bias(composed, model, rng):
    """The grid, which has none, tells the bias from the weather; without it the analysis follows the stations. Members
    share the uncertainty of the bias, and both ways have the same draws of everything else."""
    values = observed(rng, 1.0)
    seen = [values] if composed else [{n: v[i : i + 3] for n, v in values.items()} for i in range(0, 30, 3)]
    stacked = values if composed else {n: torch.stack([each[n] for each in seen]) for n in values}
    bias = biases_in(model, stacked, composed)
    assert bias is not None
    offsets = bias.offsets()
    assert bool(((offsets["stn"] - 1).abs() < 0.3).all()) and bool((offsets["coarse"].abs() < 0.05).all())
    means = {}
    for on in (True, False):
        model.recipe = replace(model.recipe, assimilation=replace(model.recipe.assimilation, bias=on))
        draws = torch.cat(posterior(model, seen, composed, rng=torch.Generator().manual_seed(1)), 1)
        means[on] = float(model.codec.decode(draws, "temp")[..., 1:, 1:].mean())
    assert abs(means[True]) < 0.5 * abs(means[False])


def test_without_sizes_or_switched_off_there_is_no_bias(model, rng):
    model.recipe = replace(model.recipe, assimilation=replace(model.recipe.assimilation, bias=False))
    assert bias_priors(model) == {} and biases_in(model, observed(rng, 1.0), True) is None
