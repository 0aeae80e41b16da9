"""A small archive of waves that travel eastward, with rain and radiation that follow them."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import slams.papers.qu2024 as study
from slams.core.console import Console
from slams.data.windows import common_dates
from slams.papers.qu2024.plan import Qu2024Plan, read_plan
from slams.papers.qu2024.training import train
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.layout import Layout

HEIGHT, WIDTH, LEVELS = 16, 32, 3
LAT = tuple(np.linspace(84.0, -84.0, HEIGHT).tolist())
LON = tuple((np.arange(WIDTH) * 360.0 / WIDTH).tolist())
FILE = Path(study.__file__).parent / "qu2024.yaml"
TINY = (
    "cells=[16, 32]", "settings=[coarse_4, noise_2, sparse_8]", "models=[sda_0, lsda_2]", "trajectories=2", "length=9",
    "archive={train: [2000-01-01, 2000-06-30], validation: [2002-01-01, 2002-03-31], test: [2004]}",
    "prior.patterns=8", "prior.wavenumbers=5", "prior.hidden=[4, 8]", "prior.embedding=8", "prior.time=8",
    "prior.correction=8", "prior.coefficients={steps: 6, batch: 8, every: 6}",
    "prior.network={steps: 6, batch: 8, every: 6, learning_rate: 0.01, ema: 0.5}",
    "prior.autoencoder={steps: 20, batch: 8, every: 20, "
    "learning_rate: 0.01, ema: 0.5}", "right={members: 4, steps: 2}", "published={steps: 3, corrections: 0, gamma: 3.0}",
)  # fmt: skip


def waves(years: tuple[int, ...], days: int, seed: int = 0) -> Fields:
    """Six random waves a level, AR(1) in amplitude, on a seasonal mean; missing rain over the first columns."""
    rng = np.random.default_rng(seed)
    dates = np.concatenate(
        [np.datetime64(f"{year}-01-01") + np.arange(days).astype("timedelta64[D]") for year in years]
    )
    lat, lon = np.deg2rad(np.array(LAT)), np.deg2rad(np.array(LON))
    modes = [(m, k) for m in (1, 2, 3) for k in (1, 2)]
    amplitude = np.zeros((len(dates), LEVELS, len(modes), 2))
    state = rng.normal(size=amplitude.shape[1:])
    for day in range(len(dates)):
        state = 0.8 * state + 0.6 * rng.normal(size=state.shape)
        amplitude[day] = state
    t = np.zeros((len(dates), LEVELS, HEIGHT, WIDTH))
    for i, (m, k) in enumerate(modes):
        shape = np.cos(k * lat)[:, None] * np.stack([np.cos(m * lon), np.sin(m * lon)])[:, None, :]
        t += np.einsum("dlp,pyx->dlyx", amplitude[:, :, i], shape)
    olr = 200 + 10 * t[:, :1] + rng.normal(size=t[:, :1].shape)
    rain = np.log1p(np.maximum(t[:, 1:2], 0) * 3)
    rain[..., :4] = np.nan
    t = 250 + 30 * np.cos(lat)[:, None] + 2 * t + 0.1 * rng.normal(size=t.shape)
    values = {n: torch.from_numpy(x.astype(np.float32)) for n, x in (("t", t), ("rain", rain), ("olr", olr))}
    grid = {"lat": LAT, "lon": LON}
    layouts = {
        name: Layout(("lat", "lon"), grid, unit, name) for name, unit in (("rain", "mm"), ("olr", "W m-2"))
    }
    levels = {"level": (300.0, 500.0, 850.0), **grid}
    layouts = {"t": Layout(("level", "lat", "lon"), levels, "K", "t"), **layouts}
    _, report = common_dates(dict.fromkeys(values, dates))
    return Fields(dates, values, layouts, report)


def tiny_plan(*overrides: str) -> Qu2024Plan:
    return read_plan(FILE, [*TINY, *overrides])


@pytest.fixture(scope="session")
def plan() -> Qu2024Plan:
    return tiny_plan()


@pytest.fixture(scope="session")
def archive() -> Fields:
    return waves((2000, 2002), 180)


@pytest.fixture(scope="session")
def test_days() -> Fields:
    return waves((2004,), 60, seed=1)


@pytest.fixture(scope="session")
def weights(plan, archive, tmp_path_factory) -> Path:
    """Trained models of the tiny archive, in 16 bits."""
    folder = tmp_path_factory.mktemp("qu2024")
    train(replace(plan), archive, folder, Console(quiet=True))
    return folder
