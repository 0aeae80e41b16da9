"""Speed of the classical filters against DAPPER on one thread, and their cost in large systems.

    python -m benchmarks.classical [--dapper PYTHON] [--replicates 64] [--cycles 400] [--large]

PYTHON is the interpreter of an environment with DAPPER. Both run Lorenz-96 with 40 variables, all observed at every step
with variance 1, one thread, statistics reduced to the error of the analysis mean. Time is CPU time per cycle and
replicate; RMSE is the mean after the first 400 cycles (20 units of time).
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.assimilation.ensemble.kalman import ETKF, EnKF
from slams.assimilation.ensemble.local import LETKF
from slams.assimilation.filter import Belief, Filter
from slams.core.covariance import Isotropic
from slams.core.geometry.localization import Localization, half_width
from slams.observation import Survey, operators
from slams.systems import Dynamics, Lorenz96

BURN_IN = 400


class Drift(Dynamics):
    """A shift of one site, for systems so large that the model's own cost would hide the filter's."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.state_shape, self.dt = (size,), 1.0

    def initial(self, *shape: int, rng: torch.Generator | None = None) -> Tensor:
        """Standard normal states."""
        return torch.randn(*shape, *self.state_shape, generator=rng)

    def forward(self, x: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        """Shift by one."""
        return x.roll(1, -1)


def local(size: int, radius: float) -> Localization:
    """Localization of observations at every site of a circle, `radius` in DAPPER's sense."""
    return Localization.periodic(size, torch.arange(size, dtype=torch.float64), half_width(radius))


def methods(system: Dynamics) -> dict[str, tuple[Filter, int]]:
    """The settings of `dapper_reference.py`."""
    return {
        "EnKF 40": (EnKF(system, inflation=1.06), 40),
        "ETKF 40": (ETKF(system, inflation=1.01, rotate=True), 40),
        "LETKF 7": (LETKF(system, localization=local(40, 4), inflation=1.04, rotate=True), 7),
        "LETKF 40": (LETKF(system, localization=local(40, 4), inflation=1.01, rotate=True), 40),
    }


def small(replicates: int, cycles: int, dtype: torch.dtype) -> dict[str, dict[str, float]]:
    """Seconds per cycle and replicate, and RMSE, of every method."""
    rng = torch.Generator().manual_seed(0)
    system = Lorenz96(dtype=dtype)
    truth = system.trajectory(system.initial(replicates, rng=rng), cycles)
    observations = Survey(operators.Identity(), Isotropic(1.0), start=1).observe(truth, rng=rng)

    def monitor(k: int, belief: Belief) -> dict[str, Tensor]:
        error = belief.x.mean(-2) - truth[:, k]
        return {"rmse": error.square().mean(-1).sqrt()}

    rows = {}
    for name, (method, size) in methods(system).items():
        begin = time.process_time()
        post = method.assimilate(observations, size, keep="scores", monitor=monitor, rng=rng)
        seconds = (time.process_time() - begin) / (cycles * replicates)
        scored = post.diagnostics["rmse"][:, BURN_IN + 1 :]
        rows[name] = {"seconds": seconds, "rmse": float(scored.mean()) if scored.numel() else float("nan")}
    return rows


def reference(python: str, cycles: int, truths: int) -> dict[str, dict[str, float | str]]:
    """The same of DAPPER, over several truths."""
    rows: dict[str, list[dict]] = {}
    for seed in range(1, truths + 1):
        command = [python, str(Path(__file__).parent / "dapper_reference.py"), str(cycles), str(seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                row = json.loads(line)
                rows.setdefault(row["method"], []).append(row)
    return {
        name: {key: sum(r[key] for r in seeds) / len(seeds) for key in ("seconds", "rmse")}
        | {"version": seeds[0]["version"]}
        for name, seeds in rows.items()
    }


def large() -> list[dict[str, float | str]]:
    """One analysis of a large system: seconds and peak memory; each in a process of its own."""
    rows = []
    for case in ("letkf", "enkf"):
        command = [sys.executable, "-m", "benchmarks.classical", "--case", case]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    return rows


def one_analysis(case: str) -> None:
    """LETKF with 40 members and 10^5 variables, or EnKF with 100 members, 10^6 variables and 10^4 observations."""
    size, members, step = (100_000, 40, 10) if case == "letkf" else (1_000_000, 100, 100)
    rng = torch.Generator().manual_seed(0)
    system = Drift(size)
    sites = torch.arange(0, size, step)
    survey = Survey(operators.Stride(step), Isotropic(1.0))
    observation = survey.observe(system.initial(1, rng=rng), rng=rng).step(0)
    assert observation is not None
    method: Filter
    if case == "letkf":
        near = Localization.periodic(size, sites.double(), half_width(4 * step))
        method = LETKF(system, localization=near)
    else:
        method = EnKF(system)
    x = system.initial(members, rng=rng)
    begin = time.perf_counter()
    method.analyse(x, observation, rng=rng)
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    row = {
        "benchmark": f"{case}_large",
        "variables": size,
        "members": members,
        "observations": len(sites),
        "seconds": round(seconds, 2),
        "peak_gib": round(peak, 2),
    }
    print(json.dumps(row))


def main() -> None:
    """Print one line of JSON a method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dapper", metavar="PYTHON")
    parser.add_argument("--replicates", type=int, default=64)
    parser.add_argument("--cycles", type=int, default=1400)
    parser.add_argument("--truths", type=int, default=3, help="truths of DAPPER's runs")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--case", choices=["letkf", "enkf"], help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if chosen.case:
        one_analysis(chosen.case)
        return
    theirs = reference(chosen.dapper, chosen.cycles, chosen.truths) if chosen.dapper else {}
    for replicates, dtype in (
        (1, torch.float64),
        (chosen.replicates, torch.float64),
        (chosen.replicates, torch.float32),
    ):
        for name, row in small(replicates, chosen.cycles, dtype).items():
            other = theirs.get(name)
            line = {
                "benchmark": name,
                "replicates": replicates,
                "dtype": str(dtype).removeprefix("torch."),
                "us_per_cycle": round(1e6 * row["seconds"], 1),
                "rmse": round(row["rmse"], 4),
            }
            if other:
                line |= {
                    "dapper_us": round(1e6 * float(other["seconds"]), 1),
                    "dapper_rmse": round(float(other["rmse"]), 4),
                    "times_faster": round(float(other["seconds"]) / row["seconds"], 2),
                    "dapper": other["version"],
                }
            print(json.dumps(line), flush=True)
    if chosen.large:
        for line in large():
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
