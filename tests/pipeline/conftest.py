"""A tiny world: two fields, a coarse grid and stations of the same few patterns, and a run trained on it."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from slams.assimilation.baseline.interpolation import AnomalyInterp
from slams.core.console import Console
from slams.pipeline.baselines.file import FILE_NAME, save_baselines
from slams.pipeline.baselines.fit import fit_gaussian
from slams.pipeline.inputs.fields import load_fields
from slams.pipeline.recipe import Recipe, from_tree
from slams.pipeline.train import train

LAT, LON = np.array([44.0, 42.0, 40.0, 38.0]), np.array([-8.0, -6.0, -4.0, -2.0, 0.0, 2.0])
STATION_LAT, STATION_LON = np.array([43.0, 41.0, 39.0, 43.5, 38.5]), np.array([-7.0, -3.0, 1.0, 0.0, -7.5])
FIRST = np.datetime64("2001-01-01")


@dataclass(frozen=True)
class World:
    """A trained run whose training data is gone, and a file of later days.

    Attributes:
        run: Folder of the run, moved after the training.
        new: Sixty days that training never saw, all modalities and the truth.
    """

    run: Path
    new: Path


def weather(days: int) -> xr.Dataset:
    """Three travelling patterns with noise, seen by everything; one corner of the temperature is missing."""
    rng = np.random.default_rng(0)
    amplitude = np.zeros((days, 3))
    for day in range(1, days):
        amplitude[day] = 0.8 * amplitude[day - 1] + 0.6 * rng.standard_normal(3)

    def at(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
        patterns = [np.ones_like(lat), (lat - 41) / 2, (lon + 3) / 3]
        return 10 + 3 * np.tensordot(amplitude, np.stack(patterns), 1)

    fine = np.meshgrid(LAT, LON, indexing="ij")
    coarse = np.meshgrid(LAT[::2] - 1, LON[::3] + 2, indexing="ij")
    temp = at(*fine) + 0.3 * rng.standard_normal((days, 4, 6))
    temp[:, 0, 0] = np.nan
    rain = np.maximum(at(*fine) - 10 + rng.standard_normal((days, 4, 6)), 0)
    stations = at(STATION_LAT, STATION_LON) + 0.3 * rng.standard_normal((days, 5))
    stations[::7, 2] = np.nan
    return xr.Dataset(
        {
            "temp": (("time", "lat_o", "lon_o"), temp.astype("f4"), {"units": "degC"}),
            "rain": (("time", "lat_o", "lon_o"), rain.astype("f4"), {"units": "mm"}),
            "coarse": (
                ("time", "lat", "lon"),
                (at(*coarse) + 0.5 * rng.standard_normal((days, 2, 2))).astype("f4"),
                {"units": "degC"},
            ),
            "stn": (("time", "station"), stations.astype("f4"), {"units": "degC"}),
        },
        {
            "time": FIRST.astype("datetime64[ns]") + np.arange(days) * np.timedelta64(1, "D"),
            "lat_o": ("lat_o", LAT, {"units": "degrees_north"}),
            "lon_o": ("lon_o", LON, {"units": "degrees_east"}),
            "lat": ("lat", LAT[::2] - 1, {"units": "degrees_north"}),
            "lon": ("lon", LON[::3] + 2, {"units": "degrees_east"}),
            "stn_lat": ("station", STATION_LAT, {"units": "degrees_north"}),
            "stn_lon": ("station", STATION_LON, {"units": "degrees_east"}),
        },
    )


def tiny_recipe(archive: Path, store: Path) -> Recipe:
    """A vector latent, a few steps of training."""
    file = str(archive)
    return from_tree(
        {
            "name": "tiny",
            "data": {
                "store": str(store),
                "harmonics": 0,
                "train": ["2001-01-01", "2001-06-19"],
                "validation": ["2001-06-20", "2001-07-19"],
                "test": ["2001-07-20", "2001-09-17"],
                "modalities": {
                    "temp": {"files": file, "variable": "temp", "role": "state", "units": "degC"},
                    "rain": {
                        "files": file,
                        "variable": "rain",
                        "role": "state",
                        "units": "mm",
                        "transform": "log1p",
                    },
                    "coarse": {"files": file, "variable": "coarse", "role": "observation"},
                    "stn": {"files": file, "variable": "stn", "role": "observation", "kind": "stations"},
                },
                "direct": {"temp": ["coarse", "stn"]},
            },
            "latent": {"kind": "vector", "channels": 6, "hidden": 8, "fit": {"steps": 20, "every": 10}},
            "prior": {
                "window": 3,
                "patterns": 6,
                "shrink": 0.1,
                "hidden": [16],
                "blocks": 1,
                "fit": {"steps": 20, "every": 10},
            },
            "assimilation": {"members": 8, "steps": 6},
            "experiment": {"sets": {"both": ["coarse", "stn"]}, "windows": 0, "withhold": {"stn": [1, 3]}},
        }
    )


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Trained in a few seconds; the training data is deleted and the folder moved."""
    folder = tmp_path_factory.mktemp("world")
    whole, archive = weather(260), folder / "archive.nc"
    whole.to_netcdf(archive)
    new = folder / "new.nc"
    whole.isel(time=slice(200, None)).to_netcdf(new)
    recipe = tiny_recipe(archive, folder / "store")
    fields = load_fields(recipe)
    (folder / "run").mkdir()
    model = train(recipe, fields, folder / "run", Console(quiet=True))
    baselines = fit_gaussian(model, fields)
    baselines.interpolators["both", "temp"] = AnomalyInterp(800.0, {"coarse": 0.1, "stn": 0.03})
    save_baselines(baselines, folder / "run" / FILE_NAME)
    moved = folder / "elsewhere" / "moved"
    shutil.move(folder / "run", moved)
    archive.unlink()
    shutil.rmtree(folder / "store")
    return World(moved, new)
