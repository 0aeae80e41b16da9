"""The synthetic planet: hard to guess, written as the real archives are, resumable."""

import math
from pathlib import Path

import netCDF4
import numpy as np
import pytest
import torch

from slams.config import PRESSURE_LEVELS
from slams.data.files.modality import Modality
from slams.data.files.read import read
from slams.data.planet import Instruments, at_levels, outgoing_longwave, simulate_archive
from slams.systems import MoistQG, Weather

YEARS, DAYS = (2001, 2003), 180


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, np.ndarray]:
    """Two chains of 180 days, read with netCDF4 alone; anomalies against two harmonics of the year."""
    folder = tmp_path_factory.mktemp("planet")
    system = MoistQG()
    simulate_archive(system, folder, YEARS, seed=0, spinup=30, days=DAYS)
    fields = {"temperature": [], "rain": [], "radiation": []}
    for year in YEARS:
        with netCDF4.Dataset(folder / f"era5_t_{year}.nc") as file:
            fields["temperature"].append(np.asarray(file["t"][:, ::-1]))
        with netCDF4.Dataset(folder / f"precip.{year}.nc") as file:
            file.set_auto_mask(False)
            fields["rain"].append(file["precip"][:])
        with netCDF4.Dataset(folder / f"olr.{year}.nc") as file:
            file.set_auto_maskandscale(False)
            fields["radiation"].append(file["olr"][:] * 0.01 + 327.65)
    result = {name: np.concatenate(parts).astype(np.float64) for name, parts in fields.items()}
    result["land"] = result["rain"][0] > -1e30
    result["weights"] = system.harmonics.weights.double().numpy()
    result["temperature_anomaly"] = anomaly(result["temperature"])
    result["rain_anomaly"] = anomaly(result["rain"])
    result["radiation_anomaly"] = anomaly(result["radiation"])
    return result


def anomaly(field):
    phase = 2 * np.pi * np.tile(np.arange(DAYS), len(YEARS)) / 365.25
    season = np.stack([np.ones_like(phase), *(g(k * phase) for k in (1, 2) for g in (np.cos, np.sin))], 1)
    flat = field.reshape(len(field), -1)
    return (flat - season @ np.linalg.lstsq(season, flat, rcond=None)[0]).reshape(field.shape)


def correlation(a, b, weights):
    return (a * b * weights).sum() / np.sqrt((a**2 * weights).sum() * (b**2 * weights).sum())


def test_temperature_needs_at_least_thirty_eofs(archive):
    """For 95 % of area-weighted variance; 10 full years need about 170, this short archive about 90."""
    weighted = (archive["temperature_anomaly"] * np.sqrt(archive["weights"])).reshape(len(YEARS) * DAYS, -1)
    share = np.cumsum(np.linalg.eigvalsh(weighted @ weighted.T)[::-1])
    assert (share < 0.95 * share[-1]).sum() + 1 >= 30


def test_persistence_at_five_days_is_worse_than_climatology(archive):
    field = archive["temperature_anomaly"].reshape(len(YEARS), DAYS, len(PRESSURE_LEVELS), 32, 64)
    persistence = ((field[:, 5:] - field[:, :-5]) ** 2 * archive["weights"]).sum((-2, -1)).mean((0, 1))
    climatology = (field**2 * archive["weights"]).sum((-2, -1)).mean((0, 1))
    assert (persistence > climatology).all()


def test_rain_is_intermittent_and_skewed(archive):
    rain = archive["rain"][:, archive["land"]]
    weights = archive["weights"][archive["land"]]
    dry = ((rain == 0) * weights).sum() / (len(rain) * weights.sum())
    assert 0.5 < dry < 0.9 and 0.5 < (rain == 0).mean() < 0.9
    assert ((rain - rain.mean()) ** 3).mean() / rain.std() ** 3 > 3


def test_no_single_level_explains_rain_or_radiation(archive):
    land, weights = archive["land"], archive["weights"]
    for level in range(len(PRESSURE_LEVELS)):
        field = archive["temperature_anomaly"][:, level]
        assert abs(correlation(archive["radiation_anomaly"], field, weights)) < 0.8
        rain = archive["rain_anomaly"][:, land]
        assert abs(correlation(rain, field[:, land], weights[land])) < 0.8


def test_radiation_and_rain_tell_of_temperature(archive):
    """Radiation rises with warm columns, and rain falls in the lifted warm sector: neither is mere noise."""
    land, weights = archive["land"], archive["weights"]
    column = archive["temperature_anomaly"][:, 4:8].mean(1)
    assert correlation(archive["radiation_anomaly"], column, weights) > 0.4
    assert correlation(archive["rain_anomaly"][:, land], column[:, land], weights[land]) > 0.05


def test_mean_state_is_a_planet_like_ours(archive):
    """Warm tropics, 35-65 K colder poles near the ground, temperatures of air, radiation of a planet."""
    ground = archive["temperature"][:, -1].mean((0, 2))
    assert 35 < ground[15:17].mean() - (ground[0] + ground[-1]) / 2 < 65
    assert 290 < ground[15:17].mean() < 305
    assert archive["temperature"].min() > 160 and archive["temperature"].max() < 330
    assert 210 < (archive["radiation"].mean(0) * archive["weights"]).sum() < 280
    assert archive["radiation"].min() > 80 and archive["radiation"].max() < 350
    assert 0.3 < (archive["land"] * archive["weights"]).sum() < 0.4


@torch.no_grad()
def test_errors_double_in_one_to_four_days(rng):
    """From 1e-2 K on, past the first days in which the perturbation turns into growing shapes."""
    system = MoistQG()
    x = system.initial(2, rng=rng, day=300.0)
    for _ in range(4 * 30):
        x = system(x)
    noise = system.harmonics.analysis(torch.randn(x[:, :5].shape, generator=rng))
    change = torch.zeros_like(x)
    change[:, :5] = system.harmonics.synthesis(system.vorticity(3e-5 * noise))
    twin, errors = x + change, []
    for _ in range(10):
        for _ in range(4):
            x, twin = system(x), system(twin)
        difference = system.weather(x).temperature[:, -4:] - system.weather(twin).temperature[:, -4:]
        errors.append(float(system.harmonics.mean(difference**2).mean().sqrt()))
    assert errors[-1] < 1.5  # far from saturation, near 4 K
    doubling = 6 * math.log(2) / math.log(errors[9] / errors[3])
    assert 1 < doubling < 4


def test_the_real_archives_readers_read_it(tmp_path):
    paths = simulate_archive(MoistQG(), tmp_path, [2001], spinup=1, days=3)
    for path, name, variable in zip(
        paths, ("temperature", "rain", "radiation"), ("t", "precip", "olr"), strict=True
    ):
        array = read(Modality(name, (str(path),), variable, "state"))
        assert array.sizes["time"] == 3 and str(array.time.values[0])[:10] == "2001-01-01"
        assert array.lat.values[0] > array.lat.values[-1] and array.lon.values[1] == 5.625
        missing = float(array.isnull().mean())
        assert 0.5 < missing < 0.8 if name == "rain" else missing == 0
        low, high = {"temperature": (150, 340), "rain": (0, 500), "radiation": (80, 350)}[name]
        assert low <= float(array.min()) and float(array.max()) <= high
    with netCDF4.Dataset(paths[0]) as file:
        assert file["t"].dimensions == ("valid_time", "pressure_level", "latitude", "longitude")
        assert set(np.asarray(file["pressure_level"][:])) == set(PRESSURE_LEVELS)
        assert "SYNTHETIC" in file.source


def contents(paths: list[Path]) -> list[bytes]:
    """The numbers of files, without what netCDF adds."""
    result = []
    for path, name in zip(paths, ("t", "precip", "olr") * len(paths), strict=False):
        with netCDF4.Dataset(path) as file:
            file.set_auto_maskandscale(False)
            result.append(np.asarray(file[name][:]).tobytes())
    return result


def test_a_killed_run_resumes_to_the_same_numbers(tmp_path):
    system, settings = MoistQG(), {"spinup": 1, "days": 2, "chains": 2}
    whole = simulate_archive(system, tmp_path / "whole", [2001, 2003, 2005], **settings)

    def kill(done, total):
        if done > 0.8 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_archive(system, tmp_path / "killed", [2001, 2003, 2005], progress=kill, **settings)
    first = sorted((tmp_path / "killed").iterdir())
    assert len(first) == 6  # the first group is there, nothing half-written
    times = [path.stat().st_mtime_ns for path in first]
    resumed = simulate_archive(system, tmp_path / "killed", [2001, 2003, 2005], **settings)
    assert contents(resumed) == contents(whole)
    assert [path.stat().st_mtime_ns for path in first] == times


def test_processes_of_their_own_give_the_same_numbers(tmp_path):
    system, settings = MoistQG(), {"spinup": 1, "days": 2, "chains": 2}
    years, told = [2001, 2003, 2005, 2007], []
    one = simulate_archive(system, tmp_path / "one", years, **settings)
    two = simulate_archive(
        system, tmp_path / "two", years, workers=2, progress=lambda *a: told.append(a), **settings
    )
    assert contents(one) == contents(two)
    assert told == sorted(told) and told[-1] == (12, 12)


def test_an_error_in_a_process_is_raised_here(tmp_path):
    with pytest.raises(FloatingPointError, match="blew up"):
        simulate_archive(
            MoistQG(dt=1.0, substeps=1), tmp_path, [2001, 2003], spinup=9, days=2, chains=1, workers=2
        )


def test_other_settings_write_other_files(tmp_path):
    settings = {"spinup": 1, "days": 2}
    before = contents(simulate_archive(MoistQG(), tmp_path, [2001], seed=0, **settings))
    assert contents(simulate_archive(MoistQG(), tmp_path, [2001], seed=1, **settings)) != before
    assert contents(simulate_archive(MoistQG(), tmp_path, [2001], seed=0, **settings)) == before


def test_neighbouring_years_are_refused(tmp_path):
    with pytest.raises(ValueError, match="every other year"):
        simulate_archive(MoistQG(), tmp_path, [2001, 2002])
    with pytest.raises(ValueError, match="whole number of steps"):
        simulate_archive(MoistQG(dt=0.3), tmp_path, [2001])


def air(**changes) -> Weather:
    """A uniform standard atmosphere, dry and still."""
    pressure = (10.0, 50.0, 100.0, 200.0, 400.0, 600.0, 800.0)
    column = torch.tensor([228.0, 214, 212, 218, 240, 261, 276], dtype=torch.float64)
    zero = torch.zeros(4, 8, dtype=torch.float64)
    fields = {
        "temperature": column[:, None, None].expand(7, 4, 8).clone(),
        "humidity": zero + 0.5,
        "rain": zero,
        "ascent": torch.zeros(4, 4, 8, dtype=torch.float64),
    }
    return Weather(pressure=pressure, **(fields | changes))


def test_levels_are_linear_in_log_pressure():
    land = torch.ones(4, 8, dtype=torch.float64)
    field = at_levels(air(), land)[:, 0, 0]
    share = math.log(500 / 400) / math.log(600 / 400)
    assert float(field[5]) == pytest.approx(240 + 21 * share)
    assert float(field[3]) == pytest.approx(218) and float(field[0]) == pytest.approx(228)
    assert float(field[9]) == pytest.approx(276 + 53 * math.log(1000 / 800))


def test_radiation_rises_with_warmth_and_falls_with_high_cloud():
    land, levels = torch.ones(4, 8, dtype=torch.float64), PRESSURE_LEVELS

    def radiation(weather):
        cloud = Instruments().cloud
        return float(outgoing_longwave(weather, at_levels(weather, land), levels, cloud)[0, 0])

    still = air()
    warm = air(temperature=still.temperature + 5)
    moist = torch.full((4, 8), 1.1, dtype=torch.float64)
    lifted = air(humidity=moist, ascent=torch.full((4, 4, 8), 150.0, dtype=torch.float64))
    assert radiation(warm) > radiation(still) + 5
    assert radiation(lifted) < radiation(still) - 30
