"""kill -9 at any moment: the next run completes, with the bytes of a run that nobody disturbed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from tests.data.download.test_unpack import as_zip
from tests.data.server import serving

STAGES = ["download", "extract", "append", "process"]
TIMES = {"date", "mtime_ns"}


class Program:
    """The program to kill, started once."""

    def __init__(self, root: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.data.kill_program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def run(self, **job) -> dict:
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


@pytest.fixture(scope="module")
def program(root):
    program = Program(root)
    yield program
    program.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """What each stage starts from."""
    chance = random.Random(0)
    files = {f"era5/day{day}.zarr/t/{i}.0": chance.randbytes(9000) for day in range(4) for i in range(5)}
    folder = tmp_path_factory.mktemp("inputs")
    archive = as_zip(folder / "era5.zip", files)
    with serving(pace=0.003) as server:
        urls = [server.put(f"{year}.nc", chance.randbytes(300_000)) for year in (1979, 1980, 1981)]
        yield {"download": urls, "extract": [str(archive)], "append": [], "process": rain_files(folder)}


def rain_files(folder: Path) -> list[str]:
    """Rain of the first months of three years, sea missing."""
    paths = []
    for year, count in ((1999, 120), (2000, 120), (2001, 50)):
        values = np.random.default_rng(year).gamma(0.5, 4.0, size=(count, 8, 16)).astype(np.float32)
        values[:, :, :5] = np.nan
        coords = {
            "time": np.datetime64(f"{year}-01-01") + np.arange(count),
            "lat": np.linspace(78.75, -78.75, 8),
            "lon": np.linspace(11.25, 348.75, 16),
        }
        rain = xr.DataArray(values, coords, ("time", "lat", "lon"), "precip", {"units": "mm/day"})
        paths.append(str(folder / f"{year}.nc"))
        rain.to_netcdf(paths[-1])
    return paths


def content(folder: Path) -> dict:
    """All that lies in a folder, but for locks; of the manifest, all but times."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix != ".lock":
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
    manifest = json.loads(found.pop("manifest.json"))
    kept = {
        key: [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
        for key, rows in manifest.items()
    }
    return found | {"manifest.json": kept}


def kill_and_compare(program, stage: str, urls: list[str], folder: Path, kills: int, seed: int) -> None:
    """Kills at random moments, half of them before a step at files, half by the clock; each must strike."""
    chance = random.Random(seed)
    (folder / "undisturbed").mkdir()
    whole = program.run(stage=stage, folder=str(folder / "undisturbed"), urls=urls)
    assert whole["status"] == 0 and whole["steps"] > 10
    expected = content(folder / "undisturbed")
    struck, trial = 0, 0
    while struck < kills:
        trial += 1
        assert trial < 20 * kills + 20, "kills don't strike"
        place = folder / str(trial)
        place.mkdir()
        job = {"stage": stage, "folder": str(place), "urls": urls}
        while struck < kills:  # sometimes the run after a kill is killed as well
            if chance.random() < 0.5:
                moment = {"before": chance.randrange(whole["steps"])}
            else:
                moment = {"seconds": chance.uniform(0.0, whole["seconds"])}
            answer = program.run(**job, **moment)
            assert answer["status"] in (0, 9)
            struck += answer["status"] == 9
            if answer["status"] == 0 or chance.random() < 0.7:
                break
        assert program.run(**job)["status"] == 0, f"the run after {moment} of trial {trial} failed"
        found = content(place)
        assert sorted(found) == sorted(expected), f"after {moment} of trial {trial}"
        assert found == expected, f"after {moment} of trial {trial}"


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_run_is_completed_by_the_next(program, inputs, tmp_path, stage):
    """Twelve kills in all."""
    kill_and_compare(program, stage, inputs[stage], tmp_path, kills=12 // len(STAGES), seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_hundred_killed_runs_are_completed_by_the_next(program, inputs, tmp_path, stage):
    kill_and_compare(program, stage, inputs[stage], tmp_path, kills=-(-200 // len(STAGES)), seed=2)
