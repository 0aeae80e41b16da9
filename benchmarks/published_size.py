"""Memory and CPU seconds of the published experiment, on a synthetic archive with the real headers.

    python -m benchmarks.published_size growth [--days 100 200 400]
    python -m benchmarks.published_size chain [--folder DIR] [--days 100] [--steps 4] [--only convae_2 …]

`growth` trains and tests a pixel model on 32 x 64 cells with an eightieth of the usual memory budget, in a process for
each number of days, and prints the largest resident memory and its slope [kB a day]. A day of the fields is 82 kB.

`chain` makes the archive, and runs `process_cpc.py`, `process_noaa.py`, `slams data era5`, `convae_2`, `lsda_2` and
`sda_0` on 120 x 240 cells with few steps, to their reports: CPU seconds and largest resident memory of each. With
SLAMS_IN_MEMORY below the size of its fields they go through files as many years do. What it made is removed, unless a
folder is given.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from slams.evaluation.tables import markdown_table

ROOT = Path(__file__).parents[1]
BUDGET = 6 << 20  # bytes, of `growth`
_GROWTH = """
import sys, tempfile
from pathlib import Path
import numpy as np, torch
from slams.core.console import Console
from slams.core.days import Days
from slams.data.windows import GapReport
from slams.pipeline.baselines.fit import fit_gaussian
from slams.pipeline.baselines.spread import calibrate_gaussians
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.recipe import from_tree
from slams.pipeline.results.scoring import test
from slams.pipeline.train import train
from slams.data.synthetic import Weather

days, first = int(sys.argv[1]), np.datetime64("2000-01-01")
lat, lon = np.linspace(87, -87, 32), 5.625 * np.arange(64)
folder = Path(tempfile.mkdtemp())
file = np.lib.format.open_memmap(folder / "t.npy", "w+", np.float32, (days + 60, 10, 32, 64))
weather, levels = Weather(0), np.linspace(0, 1.5, 10)[:, None, None]
for day in range(days + 60):
    one, two = weather.fields(lat, 64)
    file[day] = 260 + 5 * (np.cos(levels) * np.tanh(2 * one) + np.sin(levels) * two)
    weather.step()
del file
coords = {"level": tuple(range(10, 110, 10)), "lat": (*lat,), "lon": (*lon,)}
layout = Layout(("level", "lat", "lon"), coords, "K", "t")
end = [str(first + days + k) for k in (-1, 0, 29, 30, 59)]
recipe = from_tree({
    "data": {"modalities": {"t": {"files": "t.nc", "variable": "t", "role": "state", "error_std": 0.5}},
             "train": [str(first), end[0]], "validation": [end[1], end[2]], "test": [end[3], end[4]], "harmonics": 0,
             "direct": {"t": ["t"]}},
    "latent": {"kind": "pixel"},
    "prior": {"window": 3, "patterns": 20, "hidden": [4], "blocks": 1, "fit": {"steps": 2, "batch": 4, "every": 2}},
    "assimilation": {"members": 4, "steps": 3},
    "experiment": {"sets": {"columns": ["t"]}, "windows": 3, "spacing": 5},
})
values = {"t": Days.of_file(folder / "t.npy")}
fields = Fields(first + np.arange(days + 60), values, {"t": layout}, GapReport((), days + 60, 1))
out = folder / "run"
out.mkdir()
model = train(recipe, fields, out, Console(quiet=True))
baselines = fit_gaussian(model, fields)
calibrate_gaussians(model, baselines, fields)
test(model, baselines, fields, Console(quiet=True))
import shutil
shutil.rmtree(folder)
"""


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, float, int]:
    """CPU seconds, largest resident memory [GB] and exit status of a process."""
    with subprocess.Popen(command, env={**os.environ, **environment}) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e9, process.returncode


def growth(days: list[int]) -> int:
    """Peak memory against the number of days."""
    rows, peaks = [], []
    heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0", "SLAMS_IN_MEMORY": str(BUDGET)}
    for count in days:
        seconds, peak, status = measured([sys.executable, "-W", "ignore", "-c", _GROWTH, str(count)], heap)
        if status:
            return status
        peaks.append(peak)
        rows.append({"training days": str(count), "peak GB": f"{peak:.3f}", "CPU s": f"{seconds:.0f}"})
        print(rows[-1], flush=True)
    print(markdown_table(rows))
    if len(days) > 1:
        print(f"slope {1e6 * (peaks[-1] - peaks[0]) / (days[-1] - days[0]):.1f} kB a day; a day is 82 kB")
    return 0


def chain(folder: Path, days: int, steps: int, only: list[str]) -> int:
    """The published experiment with few steps."""
    raw, data = folder / "raw", folder / "data"
    python, size = [sys.executable, "-W", "ignore"], ["--grid", "1.5deg-published"]
    train, held = round(0.6 * days), round(0.2 * days)
    dates = [f"{year}" for year in _dates(days)]
    periods = [
        f"data.train=[{dates[0]}, {dates[train - 1]}]",
        f"data.validation=[{dates[train]}, {dates[train + held - 1]}]",
        f"data.test=[{dates[train + held]}, {dates[-2]}]",
    ]
    fits = [f"{part}.fit.{key}={value}" for part in ("latent", "prior") for key, value in
            (("steps", steps), ("batch", 4), ("every", steps))]  # fmt: skip
    few = ["assimilation.members=2", "assimilation.steps=3", "experiment.windows=2", "experiment.spacing=5"]
    environment = {"SLAMS_DATA": str(data), "SLAMS_LOGS": str(folder / "logs")}
    commands = {
        "archive": [*python, "-m", "slams.data.synthetic", str(raw), "--days", str(days)],
        "process_cpc.py": [*python, str(ROOT / "process_cpc.py"), "--source", str(raw / "cpc"), *size],
        "process_noaa.py": [*python, str(ROOT / "process_noaa.py"), "--source", str(raw / "olr"), *size],
        "slams data era5": [
            *python, "-m", "slams", "data", "era5", "--source", str(raw / "era5"), "--variables", "t", *size,
        ],
    }  # fmt: skip
    for name in ("convae_2", "lsda_2", "sda_0"):
        commands[name] = [*python, "-m", "slams", "train", name, *periods, *fits, *few]
    rows = []
    for name, command in commands.items():
        if only and name not in only:
            continue
        begin = time.monotonic()
        seconds, peak, status = measured(command, environment)
        wall = time.monotonic() - begin
        rows.append(
            {"stage": name, "CPU s": f"{seconds:.0f}", "wall s": f"{wall:.0f}", "peak GB": f"{peak:.2f}"}
        )
        print(rows[-1], flush=True)
        if status:
            return status
    print(markdown_table(rows))
    return 0


def _dates(days: int) -> list[str]:
    import numpy as np

    return [str(day) for day in np.datetime64("2000-01-01") + np.arange(days)]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("growth", "chain"))
    parser.add_argument("--days", type=int, nargs="+")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", nargs="*", default=[])
    a = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if a.what == "growth":
        return growth(a.days or [100, 200, 400])
    folder = a.folder or Path(tempfile.mkdtemp(prefix="slams_published_"))
    status = chain(folder, (a.days or [100])[0], a.steps, a.only)
    if a.folder is None:
        shutil.rmtree(folder)
    return status


if __name__ == "__main__":
    raise SystemExit(main())
