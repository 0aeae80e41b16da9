"""The largest array of a training does not grow with the number of days."""

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from slams.core import days as budget
from slams.core.days import Days
from slams.data.windows import GapReport, window_starts
from slams.pipeline.baselines.fit import fit_gaussian
from slams.pipeline.inputs.fields import Fields, phase_of
from slams.pipeline.inputs.large import fit_statistics
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.model import codec as codecs
from slams.pipeline.model.build import build_denoiser
from slams.pipeline.model.calibrate import learnt_prior
from slams.pipeline.model.closed_form import closed_form
from slams.pipeline.model.codec import MultimodalCodec, anomalies
from slams.pipeline.model.model import Model
from slams.pipeline.recipe import Recipe, from_tree
from slams.pipeline.train import latents

H, W, LEVELS, HELD = 32, 64, 2, 30
FIRST = np.datetime64("2000-01-01")


class LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that an operation of torch returns."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.bytes = max(self.bytes, leaf.untyped_storage().nbytes())
        return out


def recipe(days: int) -> Recipe:
    train, held = FIRST + days - 1, FIRST + days + HELD - 1
    return from_tree(
        {
            "data": {
                "modalities": {"t": {"files": "t.nc", "variable": "t", "role": "state", "units": "K"}},
                "train": [str(FIRST), str(train)],
                "validation": [str(train + 1), str(held)],
                "harmonics": 1,
            },
            "latent": {"kind": "pixel"},
            "prior": {"window": 3, "patterns": 6, "hidden": [4], "blocks": 1},
            "experiment": {"sets": {"columns": ["t"]}},
        }
    )


def fields(days: int) -> Fields:
    """Ten travelling waves and noise, of which nothing but the days asked for exists."""
    lat, lon = np.linspace(87, -87, H), 5.625 * np.arange(W)
    layout = Layout(
        ("level", "lat", "lon"), {"level": (500.0, 850.0), "lat": (*lat,), "lon": (*lon,)}, "K", "t"
    )
    phase = torch.arange(W) * 2 * torch.pi / W

    def read(rows: np.ndarray) -> torch.Tensor:
        found = []
        for day in rows:
            noise = torch.randn(LEVELS, H, W, generator=torch.Generator().manual_seed(int(day)))
            waves = sum(torch.cos(m * phase + 0.3 * m * int(day)) / m for m in range(1, 6))
            found.append(280 + 5 * waves + noise)
        return torch.stack(found)

    count = days + HELD
    values = {"t": Days(read, count, (LEVELS, H, W))}
    return Fields(FIRST + np.arange(count), values, {"t": layout}, GapReport((), count, 1))


def largest(days: int, folder) -> int:
    """Of statistics, latents, patterns, linearized decoders and the Gaussian of the baselines."""
    own, x = recipe(days), fields(days)
    index, held = x.part(own.data.train), x.part(own.data.validation)
    with LargestTensor() as found:
        weights = x.layouts["t"].weights()
        statistics = fit_statistics(x.values["t"], index, phase_of(x.dates[index]), 1, weights, False)
        codec = MultimodalCodec(own, x.layouts, {"t": statistics})
        x_train, x_held = anomalies(codec, x, index), anomalies(codec, x, held)
        codec.autoencoder.standardize(codec.latents(x_train))
        folder.mkdir()
        codec.save(folder / "codec.safetensors")
        z, z_held = latents(codec, folder, x_train), codec.latents(x_held)
        starts, fresh = window_starts(x.dates[index], 3), window_starts(x.dates[held], 3)
        gaussian, covariance, *_ = closed_form(codec, (z, x_train, starts), (z_held, x_held, fresh))
        prior = learnt_prior(
            codec, build_denoiser(own, gaussian, True), covariance, (z, x_train), (z_held, x_held)
        )
        fit_gaussian(Model(codec, prior), x)
    return found.bytes


def test_the_largest_array_does_not_grow_with_the_days(tmp_path, monkeypatch) -> None:
    """Of 80 and 200 days, of which 40 are the largest array allowed in memory."""
    day = 4 * LEVELS * H * W
    monkeypatch.setattr(budget, "IN_MEMORY", 40 * day)
    monkeypatch.setattr(budget, "PIECE", 5 * day)
    monkeypatch.setattr(codecs, "_DAYS", 5)  # encoded together, 128 by default
    few, many = (largest(days, tmp_path / str(days)) for days in (80, 200))
    assert many == few <= 40 * day * 3  # windows of three days of all validation days
