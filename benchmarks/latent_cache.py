"""What keeping the latents of the training days is worth, as a ratio in one run.

    python -m benchmarks.latent_cache

Both ways deliver the same batches of windows. On the fly the stored fields of a batch are read, standardized and
encoded; from the cache they are looked up. "delivered" counts the windows handed over, "trained" those after an
optimiser step of the prior on each batch, which costs the same both ways.
Random fields, read from a store on the disk of this machine that has just been written, so from its cache.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from benchmarks.planet_sized import PLACES, build
from slams.data.store.store import FieldStore
from slams.pipeline.inputs.fields import as_tensor, phase_of
from slams.pipeline.model.model import Model

DAYS, BATCH, BATCHES = 365, 32, 6


def stores(folder: Path, rng: np.random.Generator) -> dict[str, FieldStore]:
    """A year of every modality."""
    dates = np.datetime64("2001-01-01", "ns") + np.arange(DAYS) * np.timedelta64(1, "D")
    found = {}
    for name, place in PLACES.items():
        shape = place.array().shape
        array = xr.DataArray(
            rng.standard_normal((DAYS, *shape), dtype=np.float32),
            dims=("time", *place.dims),
            coords={"time": dates, **{d: list(place.coords[d]) for d in place.dims}},
            attrs={"units": place.units, "source_name": place.source_name},
            name=name,
        )
        found[name] = FieldStore.create(folder / f"{name}.zarr", array)
    return found


def encoded(model: Model, fields: dict[str, FieldStore], dates: np.ndarray, rows: Tensor) -> Tensor:
    """Latents (b, L, *Z) of the windows of these days (b, L), from the stored fields."""
    days, where = rows.unique(return_inverse=True)
    wanted = dates[days.numpy()]
    modalities = model.recipe.modalities()
    given = {
        name: model.codec.anomaly(name, as_tensor(store.read(wanted), modalities[name]), phase_of(wanted))
        for name, store in fields.items()
    }
    return model.codec.encode(given)[where]


def rate(deliver: Callable[[Tensor], Tensor], train: Callable[[Tensor], None] | None) -> float:
    """Windows a second over the batches, after one to warm up."""
    rng = torch.Generator().manual_seed(1)
    length, start = 3, 0.0
    for number in range(BATCHES + 1):
        if number == 1:
            start = time.perf_counter()
        rows = torch.randint(DAYS - length + 1, (BATCH, 1), generator=rng) + torch.arange(length)
        z = deliver(rows)
        if train is not None:
            train(z)
    return BATCH * BATCHES / (time.perf_counter() - start)


def main() -> None:
    """Print one line of JSON."""
    rng = torch.Generator().manual_seed(0)
    model = build(rng)
    denoiser = model.belief.denoiser
    optimiser = torch.optim.AdamW(denoiser.network.parameters(), lr=1e-4)

    def step(z: Tensor) -> None:
        optimiser.zero_grad()
        denoiser.loss(z, rng=rng).backward()
        optimiser.step()

    with tempfile.TemporaryDirectory() as folder:
        fields = stores(Path(folder), np.random.default_rng(0))
        dates = fields["t"].dates
        rows = torch.arange(DAYS)[:, None]
        begin = time.perf_counter()
        cache = encoded(model, fields, dates, rows).squeeze(1)
        making = time.perf_counter() - begin
        ways = {"cached": lambda r: cache[r], "on_the_fly": lambda r: encoded(model, fields, dates, r)}
        delivered = {name: rate(way, None) for name, way in ways.items()}
        trained = {name: rate(way, step) for name, way in ways.items()}
    print(
        json.dumps(
            {
                "benchmark": "latent_cache",
                "delivered_windows_per_s": {name: round(value, 1) for name, value in delivered.items()},
                "delivered_ratio": round(delivered["cached"] / delivered["on_the_fly"], 1),
                "trained_windows_per_s": {name: round(value, 1) for name, value in trained.items()},
                "trained_ratio": round(trained["cached"] / trained["on_the_fly"], 2),
                "making_the_cache_s_per_year": round(making, 2),
                "threads": torch.get_num_threads(),
            }
        )
    )


if __name__ == "__main__":
    main()
