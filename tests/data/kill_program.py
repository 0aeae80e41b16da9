"""What the kill tests kill: reads jobs from standard input, does each in a child, and kills that on request.

The modules are imported once; a child is a fork of this process, which has no thread of its own.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np
import xarray as xr

from slams.data.download.fetch import Item, fetch
from slams.data.download.unpack import unpack
from slams.data.files.periods import RAIN_DAY
from slams.data.processing.process import process
from slams.data.processing.regrid import Grid
from slams.data.store import writer as store_writer
from slams.data.store.manifest import write_manifest
from slams.data.store.store import FieldStore

CHANGES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree"}


def download(folder: Path, urls: list[str]) -> None:
    """Three files, the last of which grows."""
    items = [Item(url, url.rpartition("/")[2], grows=i == len(urls) - 1) for i, url in enumerate(urls)]
    fetch(items, folder, jobs=2, jitter=random.Random(0), sleep=lambda seconds: time.sleep(0.01))


def extract(folder: Path, urls: list[str]) -> None:
    """A zip of four zarrs."""
    unpack(urls[0], folder)


def append(folder: Path, urls: list[str]) -> None:
    """Three seasons, one at a time, each of which ends in the middle of a shard."""
    path = folder / "t2m.zarr"
    for year in (2000, 2001, 2002):
        days = np.datetime64(f"{year}-01-01") + np.arange(120)
        if path.exists() and days[-1] in FieldStore(path).dates:
            store_writer.repair(path)  # what an append does first; there may be none to come
            continue
        values = np.random.default_rng(year).normal(size=(days.size, 3, 4)).astype(np.float32)
        values[:, 0, 0] = np.nan
        coords = {"time": days, "lat": [60.0, 50.0, 40.0], "lon": [0.0, 10.0, 20.0, 30.0]}
        part = xr.DataArray(values, coords, ("time", "lat", "lon"), "t2m", {"units": "K"})
        FieldStore.append(path, part)
    write_manifest(folder)


class Small:
    """An archive of rain on a coarse grid."""

    name, variables, method, period, transforms = (
        "small",
        ("precip",),
        "conservative",
        RAIN_DAY,
        ("none", "log1p"),
    )

    def open(self, path: Path, variable: str) -> xr.DataArray:
        """One file, lazily."""
        dataset = xr.open_dataset(path, engine="netcdf4")
        array = dataset[variable]
        array.set_close(dataset.close)
        return array


def regrid(folder: Path, urls: list[str]) -> None:
    """Three files, a year each, on another grid; the middle one first, so that days come late and later."""
    target = Grid(np.linspace(67.5, -67.5, 4), np.linspace(22.5, 337.5, 8))
    for sources in (urls[1:2], urls):
        process(Small(), sources, folder, grid=target, training=(1999, 2000))


STAGES = {"download": download, "extract": extract, "append": append, "process": regrid}


class Counter:
    """Counts what is about to be done to files of a folder, and ends the process before one of them."""

    def __init__(self, folder: str, kill_before: int | None) -> None:
        self.folder, self.kill_before, self.count = folder, kill_before, 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in CHANGES and arguments and str(arguments[0]).startswith(self.folder):
            if self.count == self.kill_before:
                os.kill(os.getpid(), signal.SIGKILL)
            self.count += 1


def child(job: dict, report: int) -> None:
    """Do one job, and write how many steps it had."""
    counter = Counter(job["folder"], job.get("before"))
    sys.addaudithook(counter)
    STAGES[job["stage"]](Path(job["folder"]), job["urls"])
    os.write(report, str(counter.count).encode())


def serve() -> None:
    """One child a line; answers with its exit status, steps and seconds."""
    for line in sys.stdin:
        job = json.loads(line)
        end, report = os.pipe()
        start = time.monotonic()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child(job, report)
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(report)
        while (found := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() - start > job.get("seconds", 600.0):
                os.kill(pid, signal.SIGKILL)  # not reaped yet, so the number is still the child's
                found = os.waitpid(pid, 0)
                break
            time.sleep(0.0005)
        steps = os.read(end, 100)
        os.close(end)
        answer = {"status": found[1], "steps": int(steps or 0), "seconds": time.monotonic() - start}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    # many small shards, so that an append has many steps
    store_writer._CHUNK_BYTES, store_writer._MAX_CHUNKS_PER_SHARD = 1 << 10, 4
    serve()
    os._exit(0)  # nothing to clean up, and libraries take seconds to do so
