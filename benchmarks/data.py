"""Speed of reading shuffled windows: python -m benchmarks.data [DAYS] [WORKERS]; prints rates and the bars.

Windows of 5 days of 10 levels at 121 x 240, float32, the same for every reader, through the same `DataLoader` with the
same number of workers, after one pass that warms the page cache. Readers take turns, and the best of three rounds counts.
"""

import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from slams.config import PRESSURE_LEVELS
from slams.data.store.store import FieldStore
from slams.data.windows import WindowDataset

LENGTH, BATCH, WINDOWS, ROUNDS = 5, 4, 160, 3
LAT, LON = np.linspace(90.0, -90.0, 121), np.arange(240) * 1.5


class DailyZarrs(Dataset[dict[str, Tensor]]):
    """One zarr a day, each opened by xarray when a window wants it, as the published code does."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.zarr"))

    def __len__(self) -> int:
        return len(self.paths) - LENGTH + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        days = [xr.open_zarr(path, chunks=None)["t"].values for path in self.paths[index : index + LENGTH]]
        return {"t": torch.from_numpy(np.stack(days))}


class StoreReads(Dataset[dict[str, Tensor]]):
    """Windows read and decompressed from the chunked store itself."""

    def __init__(self, store: FieldStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return self.store.dates.size - LENGTH + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"t": torch.from_numpy(self.store.read(self.store.dates[index : index + LENGTH]).values)}


class RawMap(Dataset[dict[str, Tensor]]):
    """A raw memory map."""

    def __init__(self, path: Path) -> None:
        self.array = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.array) - LENGTH + 1

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"t": torch.from_numpy(np.array(self.array[index : index + LENGTH]))}


class Order(torch.utils.data.Sampler[int]):
    """The same shuffled windows for every reader."""

    def __init__(self, indices: Sequence[int]) -> None:
        self.indices = indices

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def fields(days: int) -> Iterator[xr.DataArray]:
    """Smooth weather with some noise, so that compression has something to do, a month at a time."""
    rng = np.random.default_rng(0)
    dates = np.datetime64("2000-01-01", "ns") + np.arange(days) * np.timedelta64(1, "D")
    coords = {"level": np.array(PRESSURE_LEVELS, dtype=float), "lat": LAT, "lon": LON}
    base = 250 + 40 * np.cos(np.deg2rad(LAT))[:, None] + 3 * np.sin(np.deg2rad(3 * LON))
    for start in range(0, days, 30):
        part = dates[start : start + 30]
        values = (base + rng.normal(0, 1, (part.size, 10, 121, 240))).astype(np.float32)
        attrs = {"units": "K", "source_name": "t"}
        yield xr.DataArray(values, {"time": part, **coords}, ("time", "level", "lat", "lon"), "t", attrs)


def prepare(folder: Path, days: int) -> tuple[FieldStore, Path, Path]:
    """The three layouts of the same fields."""
    daily = folder / "daily"
    for month in fields(days):
        for day in month.rename(lat="latitude", lon="longitude"):
            name = f"era5_full_1.5deg_{day.time.dt.strftime('%Y%m%d').item()}.zarr"
            day.to_dataset(name="t").to_zarr(daily / name, zarr_format=2, consolidated=True)
    store = FieldStore.create(folder / "t.zarr", fields(days))
    raw = folder / "raw.npy"
    np.save(raw, np.concatenate([month.values for month in fields(days)]))
    return store, daily, raw


def rate(dataset: Dataset[dict[str, Tensor]], order: Sequence[int], workers: int) -> tuple[float, float]:
    """Windows a second through a loader, and the sum of what came, so that no reader can skip work."""
    loader = DataLoader(
        dataset, BATCH, sampler=Order(order), num_workers=workers, persistent_workers=workers > 0
    )
    for _ in loader:  # starts the workers and warms the page cache
        pass
    begin, total = time.perf_counter(), 0.0
    for batch in loader:
        total += float(batch["t"][:, 0, 0, 0, 0].double().sum())
    return len(order) / (time.perf_counter() - begin), total


def main(days: int, workers: int) -> int:
    """Measure, print, and return 1 if a bar is missed."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        store, daily, raw = prepare(Path(name), days)
        readers: dict[str, Dataset[dict[str, Tensor]]] = {
            "one zarr a day": DailyZarrs(daily),
            "store, chunk by chunk": StoreReads(store),
            "WindowDataset": WindowDataset.from_stores({"t": store}, LENGTH, say=print),
            "raw memory map": RawMap(raw),
        }
        order = np.random.default_rng(1).permutation(days - LENGTH + 1)[:WINDOWS].tolist()
        best: dict[str, float] = {}
        sums = set()
        for _ in range(ROUNDS):
            for label, dataset in readers.items():
                speed, total = rate(dataset, order, workers)
                best[label] = max(best.get(label, 0.0), speed)
                sums.add(total)
    assert len(sums) == 1, "readers disagree"
    for label, speed in best.items():
        print(f"{label:<24}{speed:8.1f} windows/s  {speed * LENGTH * 10 * 121 * 240 * 4 / 1e6:8.0f} MB/s")
    gain = best["WindowDataset"] / best["one zarr a day"]
    share = best["WindowDataset"] / best["raw memory map"]
    print(f"{workers} workers: {gain:.1f} times one zarr a day (bar 10), {share:.2f} of a raw map (bar 0.25)")
    return 0 if gain >= 10 and share >= 0.25 else 1


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:3]]
    sys.exit(main(*(arguments + [366, 0][len(arguments) :])))
