"""Gross errors are left out, counted and told by training, assimilation and evaluation; true values are kept."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from slams.core.codec import SeasonalStandardize
from slams.core.console import Console
from slams.core.errors import DataWarning
from slams.core.random import fork, normal
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.evaluation.tables import read_metrics
from slams.pipeline.assimilate import assimilate
from slams.pipeline.evaluate import evaluate
from slams.pipeline.inputs.fields import as_tensor, load_fields, phase_of
from slams.pipeline.inputs.large import fit_statistics
from tests.pipeline.conftest import tiny_recipe, weather

QUIET = Console(quiet=True)


def changed(source: Path, target: Path, variable: str, places: list, value: float) -> str:
    """A copy of a file with a value at some places."""
    with xr.open_dataset(source) as dataset:
        whole = dataset.load()
    for place in places:
        whole[variable].values[place] = value
    whole.to_netcdf(target)
    return str(target)


@pytest.mark.parametrize("value", [99.9, -80.0, -999.0])
def test_a_gross_error_of_a_station_is_as_if_missing(world, tmp_path, value):
    """To the last bit of the analysis; kept, it spoils it."""
    wrong = changed(world.new, tmp_path / "wrong.nc", "stn", [(10, 1)], value)
    missing = changed(world.new, tmp_path / "missing.nc", "stn", [(10, 1)], np.nan)
    with pytest.warns(
        DataWarning, match=r"stn: (of \d+ values are left out: 1 |1 of \d+ values are left out, far)"
    ):
        found = assimilate(world.run, [wrong], tmp_path / "a.nc", console=QUIET)
    wanted = assimilate(world.run, [missing], tmp_path / "b.nc", console=QUIET)
    with xr.open_dataset(found) as one, xr.open_dataset(wanted) as two:
        np.testing.assert_array_equal(one["temp"], two["temp"])
        spread = float(two["temp"].std("member").mean())
        reference = two["temp"].mean("member").values
    if value == -999.0:  # a marker, whatever the settings
        return
    settings = ["data.gross_errors=false"]
    kept = assimilate(world.run, [wrong], tmp_path / "c.nc", overrides=settings, console=QUIET)
    with xr.open_dataset(kept) as spoilt:
        assert np.nanmax(np.abs(spoilt["temp"].mean("member").values - reference)[10]) > 3 * spread


def test_gross_errors_of_a_truth_are_left_out_of_its_scores(world, tmp_path):
    analysis = assimilate(world.run, [str(world.new)], tmp_path / "a.nc", console=QUIET)
    wrong = changed(world.new, tmp_path / "wrong.nc", "temp", [(10, 1, 1), (30, 2, 3)], 99.9)
    missing = changed(world.new, tmp_path / "missing.nc", "temp", [(10, 1, 1), (30, 2, 3)], np.nan)
    with pytest.warns(DataWarning, match=r"temp: 2 of \d+ values of the truth are left out.*2001-07-30"):
        evaluate(analysis, [wrong], tmp_path / "wrong", QUIET)
    evaluate(analysis, [missing], tmp_path / "missing", QUIET)
    one, two = (read_metrics(tmp_path / name / "metrics.csv") for name in ("wrong", "missing"))
    assert one == two


def test_training_leaves_gross_errors_out_of_climate_and_fields(tmp_path):
    """Statistics and fields are those of the same file with these values missing."""
    clean = tmp_path / "clean.nc"
    weather(260).to_netcdf(clean)
    places = {
        "stn": ([(20, 1), (21, 1), (200, 3)], 98.7),
        "rain": ([(30, 1, 2)], -999.0),
        "temp": ([(5, 2, 2)], 70.0),
    }
    wrong, missing = clean, clean
    for name, (where, value) in places.items():
        wrong = Path(changed(wrong, tmp_path / f"wrong_{name}.nc", name, where, value))
        missing = Path(changed(missing, tmp_path / f"missing_{name}.nc", name, where, np.nan))
    with pytest.warns(DataWarning, match="rain: of 6240 values are left out: 1 markers"):
        found = load_fields(tiny_recipe(wrong, tmp_path / "one"))
    wanted = load_fields(tiny_recipe(missing, tmp_path / "two"))
    for name in ("temp", "rain", "coarse", "stn"):
        torch.testing.assert_close(found.values[name], wanted.values[name], rtol=0, atol=0, equal_nan=True)
        for key, value in wanted.statistics[name].state_dict().items():
            torch.testing.assert_close(found.statistics[name].state_dict()[key], value, rtol=1e-5, atol=1e-5)
    lines = found.report.text()
    assert (
        "stn: 3 of 1262 values are left out, far outside the training's climate (the first on 2001-01-21)"
        in lines
    )
    assert "temp: 1 of " in lines and "rain: of 6240 values are left out: 1 markers" in lines
    again = load_fields(tiny_recipe(wrong, tmp_path / "one"))  # from the store
    assert again.report.text() == lines
    recipe = tiny_recipe(wrong, tmp_path / "three")
    kept = load_fields(dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, gross_errors=False)))
    assert float(kept.values["stn"].nan_to_num().max()) == pytest.approx(98.7)


def test_limits_are_those_of_the_quantiles():
    """Nine standard deviations of a normal distribution to a tenth; amounts have an upper limit alone."""
    rng = fork(0, "limits")
    x, phase = normal((20_000, 1, 4), rng=rng), torch.zeros(20_000)
    limits = SeasonalStandardize.fit(x, phase).limited(x, phase, amount=False)
    torch.testing.assert_close(limits.high, torch.full((1, 4), 4 * 2.326), rtol=0.05, atol=0)
    torch.testing.assert_close(limits.low, torch.full((1, 4), -4 * 2.326), rtol=0.05, atol=0)
    rain = torch.log1p(torch.relu(x) * 5)
    limits = SeasonalStandardize.fit(rain, phase).limited(rain, phase, amount=True)
    assert torch.isneginf(limits.low).all()
    highest = torch.expm1(limits.decode(limits.high, phase[:1])[0])
    torch.testing.assert_close(highest, torch.full((1, 4), 10 * (5 * 2.576 + 1) - 1), rtol=0.05, atol=0)


def test_rain_of_deserts_is_credible():
    """Wet on four days in a thousand, exponential with a mean of 8 mm: the chance of a false alarm is 1e-18 a day."""
    rng = torch.Generator().manual_seed(0)
    wet = torch.rand(4000, 1, 10, generator=rng) < 0.004
    rain = torch.where(wet, torch.log1p(-8 * torch.rand(wet.shape, generator=rng).log()), 0.0)
    phase = torch.zeros(len(rain))
    climate = SeasonalStandardize.fit(rain[:3000], phase[:3000]).limited(
        rain[:3000], phase[:3000], amount=True
    )
    assert not climate.incredible(rain, phase).any()
    assert climate.incredible(torch.full_like(rain[:1], 7.6), phase[:1]).all()  # 2000 mm


def test_values_of_fields_that_are_mostly_zero_are_credible():
    """Fractions of sea ice: always somewhere, seldom beside it, and never in the rest of the training days."""
    ice = torch.zeros(1000, 1, 10, 10)
    ice[:, :, :1] = torch.rand(1000, 1, 1, 10, generator=torch.Generator().manual_seed(0))
    ice[5::211, :, 1:3] = 0.4
    phase = torch.zeros(1000)
    climate = SeasonalStandardize.fit(ice[:500], phase[:500]).limited(ice[:500], phase[:500], amount=False)
    assert not climate.incredible(ice[500:], phase[500:]).any()
    assert climate.incredible(torch.full_like(ice[:1], 99.9), phase[:1]).all()


IBERIA = Path(os.environ.get("SLAMS_REALDATA", "")) / "iberia_djf_1983-1998.nc"


@pytest.mark.skipif(not IBERIA.is_file(), reason="SLAMS_REALDATA has no Iberian winters")
@pytest.mark.parametrize(
    "name",
    [
        "ncep_ta850",
        "ncep_hus850",
        "ncep_psl",
        "ncep_tas",
        "ncep_pr",
        "eobs_tas",
        "eobs_pr",
        "stn_tas",
        "stn_pr",
    ],
)
@pytest.mark.parametrize("logarithm", [True, False])
def test_true_values_of_winters_that_training_never_saw_are_kept(name, logarithm):
    """None of 270 000 gauge values or fewer, where the promise is one in 100 000; planted errors are found."""
    kind, rain = "stations" if name.startswith("stn") else "grid", name.endswith("pr")
    if not (rain or logarithm):
        pytest.skip("the logarithm is of rain alone")
    units, transform = "mm/day" if rain else None, "log1p" if rain and logarithm else "none"
    modality = Modality(name, (str(IBERIA),), name, "observation", kind, units=units, transform=transform)
    array = read(modality, allow_empty_days=True)
    assert "left_out" not in array.attrs
    x, days = as_tensor(array, modality), array.time.values.astype("datetime64[D]")
    winter = (days + 31).astype("datetime64[Y]").astype(int)
    for held in (
        winter.min(),
        20,
        winter.max(),
    ):  # beside the first, one within and the last: trained on the others
        phase, rows = phase_of(days), np.flatnonzero(winter != held)
        climate = fit_statistics(
            x, rows, phase[torch.from_numpy(rows)], 2, torch.ones(x.shape[2:]), rain and logarithm
        )
        test = torch.from_numpy(winter == held)
        assert not climate.incredible(x[test], phase[test]).any()
    if name == "stn_tas":
        planted = torch.full_like(x[:1], 99.9)
        assert climate.incredible(planted, phase[:1]).all()
