"""Fields beyond memory give what small ones give."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from slams.core import days as budget
from slams.core.codec import SeasonalStandardize
from slams.core.console import Console
from slams.core.days import Days
from slams.pipeline.baselines.fit import fit_gaussian
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.inputs.large import by_days, fit_statistics
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import from_tree
from slams.pipeline.train import train
from tests.data.store.test_mapped import SNAPSHOT, store
from tests.pipeline.conftest import tiny_recipe, weather

DAYS = 150


@pytest.fixture
def x(rng) -> torch.Tensor:
    field = 280 + torch.randn(DAYS, 3, 4, 5, generator=rng)
    field[::7, :, 1, 2] = torch.nan
    return field


def shrink_memory(monkeypatch) -> None:
    """No array of more than 75 days of 60 values in memory, and pieces of 10 such days."""
    monkeypatch.setattr(budget, "IN_MEMORY", 4 * 60 * 75)
    monkeypatch.setattr(budget, "PIECE", 4 * 60 * 10)


@pytest.mark.parametrize("amount", [None, False])
def test_statistics_in_pieces_are_those_of_all(amount, x, monkeypatch) -> None:
    """With gaps, sums in memory have a ridge of 1e-6 of 280 K, which pieces in double precision do not need.

    Limits are quantiles of half the days: 3 (q50 - q01) of 68 normal values is known to about a third.
    """
    index, phase, weights = np.arange(5, 140), torch.linspace(0, 0.9, 135), torch.rand(4, 5) + 0.5
    whole = fit_statistics(x, index, phase, 2, weights, amount)
    assert isinstance(whole, SeasonalStandardize)
    shrink_memory(monkeypatch)
    parts = fit_statistics(x, index, phase, 2, weights, amount)
    for name in ("coefficients", "std", "present"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-5, atol=5e-4)
    if amount is None:
        assert torch.equal(parts.low, whole.low)
    else:
        assert 0.5 < float((parts.high / whole.high).mean()) < 1.5
        assert bool((parts.low < parts.high).all())


def test_gross_errors_are_left_out_of_statistics_in_pieces(x, monkeypatch) -> None:
    """One value 10^4 off would make the deviation 100 times as large."""
    x[40, 1, 2, 3] = 1e4
    shrink_memory(monkeypatch)
    index, phase = np.arange(DAYS), torch.linspace(0, 0.9, DAYS)
    found = fit_statistics(x, index, phase, 0, torch.ones(4, 5), False)
    assert float(found.std.max()) < 1.2


def test_days_in_pieces_are_those_at_once(x, monkeypatch) -> None:
    index, phase = np.r_[3:70, 80:149], torch.rand(136)

    def anomaly(part: torch.Tensor, when: torch.Tensor) -> torch.Tensor:
        return part * when[:, None, None, None] + 1

    whole = by_days(anomaly, x, index, phase)
    shrink_memory(monkeypatch)
    pieces = by_days(anomaly, x, index, phase)
    assert isinstance(pieces, Days)
    torch.testing.assert_close(pieces[:], whole, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("gap", [False, True])
def test_fields_left_in_a_file_are_those_read(gap: bool, tmp_path, monkeypatch) -> None:
    """With and without a missing day in another modality, which leaves no slice of the file."""
    days = np.datetime64("2000-01-01") + np.arange(30)
    store(tmp_path / "t.zarr", days, SNAPSHOT, 2)
    store(tmp_path / "s.zarr", np.delete(days, 9) if gap else days, SNAPSHOT)
    modalities = {
        name: {"files": str(tmp_path / f"{name}.zarr"), "variable": name, "role": "state"}
        for name in ("t", "s")
    }
    recipe = from_tree({"data": {"modalities": modalities, "store": str(tmp_path / "made")}})
    read = load_fields(recipe)
    monkeypatch.setattr(budget, "IN_MEMORY", 0)
    left = load_fields(recipe)
    np.testing.assert_array_equal(read.dates, left.dates)
    assert len(read.dates) == 30 - gap
    for name, values in read.values.items():
        assert isinstance(left.values[name], Days)
        assert torch.equal(values, left.values[name][:])


def test_a_run_in_pieces_is_that_in_memory(tmp_path, monkeypatch) -> None:
    """Gaps in days and at points, a transform, an operator's sums: to the rounding of other orders of sums.

    One short training in each way.
    """
    weather(220).to_netcdf(tmp_path / "weather.nc")
    found = []
    for way in ("memory", "pieces"):
        if way == "pieces":
            monkeypatch.setattr(budget, "IN_MEMORY", 64)  # less than three days of the smallest modality
            monkeypatch.setattr(budget, "PIECE", 2000)
            # as many EOFs as in memory, which a budget of a few days would not hold
            monkeypatch.setattr("slams.pipeline.baselines.fit.rows_in_memory", lambda event: 10_000)
        recipe = tiny_recipe(tmp_path / "weather.nc", tmp_path / f"store_{way}")
        # limits of gross errors are those of a sample of days, of which memory holds two or three here
        recipe = replace(
            recipe,
            data=replace(recipe.data, gross_errors=False),
            latent=replace(recipe.latent, fit=replace(recipe.latent.fit, steps=3)),
            prior=replace(recipe.prior, fit=replace(recipe.prior.fit, steps=3)),
            assimilation=replace(recipe.assimilation, steps=4, members=4),
        )
        out = tmp_path / way
        out.mkdir()
        fields = load_fields(recipe)
        assert all(isinstance(x, Days) == (way == "pieces") for x in fields.values.values())
        model = train(recipe, fields, out, Console(quiet=True))
        assert isinstance(model, Model)
        found.append((model, fit_gaussian(model, fields)))
    (one, fitted), (two, again) = found
    for name in one.layouts:
        torch.testing.assert_close(
            one.codec.statistics[name].std, two.codec.statistics[name].std, rtol=1e-4, atol=1e-4
        )
        assert torch.equal(one.codec.statistics[name].present, two.codec.statistics[name].present)
    assert fitted.settings == again.settings
    assert one.prior.factors == two.prior.factors
    for name, network in fitted.networks.items():
        torch.testing.assert_close(network[0].std, again.networks[name][0].std, rtol=1e-3, atol=1e-3)
