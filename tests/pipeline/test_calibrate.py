"""Calibration of observation errors, and choices of the closed form on validation days."""

import copy
from dataclasses import replace

import pytest
import torch

from slams.core.console import Console
from slams.diffusion.denoiser import SHRINKS, lag_covariances, shrink_for
from slams.diffusion.schedule import VPCosine
from slams.pipeline.inputs.observe import observe
from slams.pipeline.model import calibrate as calibration
from slams.pipeline.model.calibrate import FACTORS, calibrate_errors, closed_form_score
from slams.pipeline.model.codec import Anomalies
from slams.pipeline.model.model import Model

STARTS = torch.arange(0, 24, 3)


@pytest.fixture
def model(world) -> Model:
    """With a stated error of the stations."""
    model = Model.load(world.run)
    tree = copy.deepcopy(model.recipe.data.modalities)
    tree["stn"]["error_std"] = 0.5
    model.recipe = replace(model.recipe, data=replace(model.recipe.data, modalities=tree))
    model.prior.error_is_least = True
    return model


@pytest.fixture
def days(model, rng) -> Anomalies:
    shapes = {name: layout.shape for name, layout in model.layouts.items()}
    values = {name: torch.randn(30, *shape, generator=rng) for name, shape in shapes.items()}
    values["stn"][::7, ..., 2] = torch.nan
    return values


def test_the_score_is_that_of_the_closed_form_at_the_factors_of_the_moment(model, days):
    """Evidence rescaled, or made again where an error is stated, against the closed form of the errors themselves."""
    score, states = closed_form_score(model, days, STARTS), model.states
    rows = STARTS[:, None] + torch.arange(3)
    decode = torch.cat([model.prior.operators[n] for n in states])
    rest = torch.cat([model.prior.errors[n] for n in states])
    closed = calibration.ClosedFormGaussian(model.prior.gaussian, decode, rest)
    target = torch.cat([days[n][rows].flatten(2) for n in states], -1)
    found = set()
    for coarse, stn in ((1.0, 1.0), (4.0, 1.0), (4.0, 16.0), (0.5, 2.0)):
        model.prior.factors |= {"coarse": coarse, "stn": stn}
        seen = observe(model.layouts, model.recipe, days, ["coarse", "stn"], days=rows)
        mean, std = closed.windows(model.seen(seen, model.errors()), model.jacobians())
        expected = float(calibration.normal_crps(target - mean, std).nanmean())
        assert score(["coarse", "stn"]) == pytest.approx(expected, rel=1e-5)
        found.add(round(expected, 6))
    assert len(found) == 4


def test_factors_are_chosen_over_every_set(model, days, monkeypatch):
    """Each set has its own best factor; their relative scores agree on 4, the last two alone would take 16."""
    sets = {"a": ("stn",), "b": ("coarse", "stn"), "c": ("rain", "stn")}
    model.recipe = replace(model.recipe, experiment=replace(model.recipe.experiment, sets=sets))
    price = {1: (1.0, 1.0), 2: (0.8, 0.97), 4: (0.5, 0.95), 8: (0.9, 0.94), 16: (1.0, 0.93), 32: (1.0, 0.99)}

    def score(names):
        return price[int(model.prior.factors["stn"])][0 if names == ("stn",) else 1] * len(names)

    monkeypatch.setattr(calibration, "closed_form_score", lambda *given: score)
    calibrate_errors(model, days, STARTS, Console(quiet=True))
    assert model.prior.factors["stn"] == 4.0 and 0.5 in FACTORS  # below 1 is refused where an error is stated


def test_shrinkage_is_chosen_by_new_windows(rng):
    """Independent coefficients from few windows need much of it; strongly dependent ones from many need none."""
    few, many, fresh = (torch.randn(n, 1, 12, generator=rng) for n in (20, 4000, 200))
    assert shrink_for(lag_covariances(few), fresh.flatten(1), VPCosine(), rng=0) == max(SHRINKS)
    mixing = torch.randn(12, 12, generator=rng)
    lags = lag_covariances(many @ mixing)
    assert shrink_for(lags, (fresh @ mixing).flatten(1), VPCosine(), rng=0) == 0.0
