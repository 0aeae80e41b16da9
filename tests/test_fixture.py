"""Files that version 0.1.0 wrote still open and give the same answers: a run, stores, tuned settings.

`expected.json` holds the answers of version 0.1.0. A changed answer is a change for users.
"""

import csv
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from slams.cli import main
from slams.data.store import FieldStore
from slams.twin import setup as setups
from slams.twin.benchmark import read_settings
from slams.twin.methods import starting
from slams.twin.runner import Runner

FIXTURE = Path(__file__).parent / "fixtures" / "v0_1"
REDEFINED = ("| coverage90_fair",)  # metrics that mean something else since, as the changelog says
RELATIVE, ABSOLUTE = 1e-5, 1e-6  # float32, another BLAS
WRITTEN = json.loads((FIXTURE / "store" / "temp.json").read_text())[0][0][
    2
]  # [ns]: a store knows its file by it
TWO_DAYS = {
    "temp": ["2001-01-01", "2001-04-30"],
    "rain": ["2001-01-05", "2001-02-01"],
    "coarse": ["2001-01-01", "2001-03-03"],
    "stn": ["2001-01-01", "2001-01-02"],
    "levels": ["2001-12-31", "2002-01-02"],
}
BENCH = ["replicates=2", "cycles=15", "burn_in=10", "model.forcing=9.5"]


def copied(name: str, to: Path) -> Path:
    """A part of the fixture elsewhere: nothing is written into the fixture, and a run can be moved."""
    source, target = FIXTURE / name, to / name
    if source.is_dir():
        return Path(shutil.copytree(source, target))
    shutil.copy(source, target)
    os.utime(target, ns=(WRITTEN, WRITTEN))
    return target


def statistics(path: Path) -> dict[str, dict[str, float]]:
    """Mean, standard deviation and number of the finite values of every variable that is no coordinate, by group."""
    found = {}
    with xr.open_datatree(path) as tree:
        for node in tree.subtree:
            for name, array in node.to_dataset(inherit=False).data_vars.items():
                values = array.values
                if values.dtype.kind not in "fib":
                    continue
                values = values.astype("f8")
                finite = values[np.isfinite(values)]
                found[f"{node.path}:{name}".removeprefix("/:")] = {
                    "mean": float(finite.mean()),
                    "std": float(finite.std()),
                    "count": int(finite.size),
                }
    return found


def assimilated(folder: Path) -> dict:
    """The plain command, and one with baselines and a station withheld."""
    run, seen = copied("run", folder), copied("observations.nc", folder)
    words = ["assimilate", str(run), "--observations", str(seen), "device=cpu"]
    plain, more = folder / "plain.nc", folder / "more.nc"
    assert main([*words, "--members", "4", "--seed", "0", "--out", str(plain)]) == 0
    rest = ["--members", "3", "--seed", "5", "--baselines", "--out", str(more), "withhold.stn=[1]"]
    assert main([*words, *rest]) == 0
    return {"plain": statistics(plain), "baselines": statistics(more)}


def evaluated(folder: Path) -> dict:
    """Scores of the analysis that the old code wrote; their intervals are computed otherwise since."""
    run, truth, report = copied("run", folder), copied("archive.nc", folder), folder / "report"
    words = ["evaluate", str(run / "analysis.nc"), "--truth", str(truth), "--report", str(report)]
    assert main(words) == 0
    with open(report / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    numbers = ("value", "n")
    keys = [key for key in rows[0] if key not in (*numbers, "lower", "upper")]
    return {
        " | ".join(row[k] for k in keys): [float(row[k]) if row[k] else None for k in numbers] for row in rows
    }


def trained_again(folder: Path) -> dict:
    """The old run's own command, where its archive is: nothing is to be done, so weights and ledger stay."""
    run = copied("run", folder)
    copied("archive.nc", folder)
    copied("store", folder)
    names = (
        "codec.safetensors",
        "denoiser.safetensors",
        "baselines.safetensors",
        "analysis.nc",
        "metrics.csv",
    )
    before = {name: (run / name).read_bytes() for name in names}
    here = os.getcwd()
    os.chdir(folder)
    try:
        assert main(["train", "run/recipe.yaml"]) == 0
    finally:
        os.chdir(here)
    kept = {name: (run / name).read_bytes() == content for name, content in before.items()}
    return {"kept": kept, "ledger": json.loads((run / ".stages.json").read_text())}


def texts(values: np.ndarray) -> list[str]:
    """Coordinates as text, times to the second: their unit depends on the version of xarray."""
    return (values.astype("M8[s]") if values.dtype.kind == "M" else values).astype(str).tolist()


def stored(folder: Path) -> dict:
    """Values on two dates, and what is known of the store."""
    copied("store", folder)
    found = {}
    for name, days in TWO_DAYS.items():
        store = FieldStore(folder / "store" / f"{name}.zarr")
        store.verify()
        array = store.read(np.array(days, dtype="datetime64[D]"))
        found[name] = {
            "variable": store.variable,
            "units": store.units,
            "shape": list(store.shape),
            "fingerprint": store.fingerprint,
            "first": str(store.dates[0]),
            "last": str(store.dates[-1]),
            "bounds": None if store.bounds is None else [[str(t) for t in row] for row in store.bounds[:2]],
            "dims": list(map(str, array.dims)),
            "coords": {k: texts(array[k].values) for k in sorted(map(str, array.coords))},
            "attrs": {k: str(v) for k, v in sorted(array.attrs.items())},
            "values": [None if math.isnan(x) else x for x in array.values.astype(float).ravel().tolist()],
        }
    return found


def resolved(folder: Path) -> dict:
    """Settings as `slams bench --settings` takes them, and what they make of two short truths."""
    given = read_settings(copied("tuned.yaml", folder), "lorenz96")
    runner = Runner(setups.setup({"system": "lorenz96"}, BENCH), detail=False)
    found = {}
    for name, settings in given.items():
        values = {**starting(name, "lorenz96")[1], **settings}
        errors = runner.run(name, values).scores["rmse_time_mean"].tolist()
        # the expected answers have the names of version 0.1
        old = [{{"members": "size"}.get(k, k): v for k, v in each.items()} for each in (settings, values)]
        found[name] = {"tuned": old[0], "settings": old[1], "rmse_a": errors}
    return found


ANSWERS = {
    "assimilate": assimilated,
    "evaluate": evaluated,
    "train": trained_again,
    "store": stored,
    "tuned": resolved,
}


def differences(expected: Any, found: Any, where: str = "") -> list[str]:
    """What is gone or not the same, one line each; later versions add methods and metrics."""
    if isinstance(expected, dict) and isinstance(found, dict):
        lines = [f"{where}.{k}: gone" for k in sorted(set(expected) - set(found))]
        same = [k for k in expected if k in found and not k.endswith(REDEFINED)]
        return lines + [x for k in same for x in differences(expected[k], found[k], f"{where}.{k}")]
    if isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return [f"{where}: {len(expected)} entries before, {len(found)} now"]
        return [
            x
            for i, (a, b) in enumerate(zip(expected, found, strict=True))
            for x in differences(a, b, f"{where}[{i}]")
        ]
    numbers = isinstance(expected, int | float) and isinstance(found, int | float)
    close = pytest.approx(expected, rel=RELATIVE, abs=ABSOLUTE, nan_ok=True) if numbers else expected
    return [] if found == close else [f"{where}: {expected!r} before, {found!r} now"]


@pytest.mark.parametrize("part", ANSWERS)
def test_old_files_give_the_same_answers(part: str, tmp_path: Path) -> None:
    expected = json.loads((FIXTURE / "expected.json").read_text())[part]
    found = json.loads(json.dumps(ANSWERS[part](tmp_path)))
    assert differences(expected, found) == []


def test_the_fixture_is_small() -> None:
    assert sum(p.stat().st_size for p in FIXTURE.rglob("*") if p.is_file()) < 300_000
