"""Speed and error of the Kolmogorov flow on one thread, and of jax-cfd's finite volumes beside it.

    python -m benchmarks.kolmogorov [--jax-cfd PYTHON] [--sizes 64 128 256] [--batches 1 8] [--no-error]

PYTHON is the interpreter of an environment with jax-cfd and a jax that runs it (jax-cfd 0.2.1 runs with jax 0.4.30).
Printed as JSON: CPU seconds of one non-linear evaluation, and of dt = 0.2, least of several runs, float32, no gradient;
and the RMSE of the velocity after one unit of time, from the same developed field, against the spectral solution
on 512 x 512 points. Finite volumes take one evaluation an inner step, forward Euler with Courant number 1/2; the
spectral flow takes four. A ratio above 1 means that jax-cfd takes longer.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor

from slams.core.geometry.torus import resample
from slams.systems import KolmogorovFlow

REFERENCE = Path(__file__).parent / "kolmogorov_reference.py"
FINE = 512
SPIN_UP, STEPS = 40, 5  # steps of 0.2


def speed(size: int, batch: int, runs: int = 5) -> dict[str, float]:
    """CPU seconds of this package."""
    flow = KolmogorovFlow(size, dtype=torch.float32)
    x = flow.initial(batch, rng=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(runs + 1):  # the first run plans its transforms
        begin = time.process_time()
        x = flow(x)
        seconds.append(time.process_time() - begin)
    best, evaluations = min(seconds[1:]), 4 * flow.substeps
    return {"evaluation": best / evaluations, "dt": best, "evaluations": evaluations}


def other(python: str, *arguments: str) -> str:
    """Output of the reference, in its environment."""
    command = [python, str(REFERENCE), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def speeds(sizes: list[int], batches: list[int], python: str | None) -> list[dict]:
    """One row for each size and batch."""
    rows = []
    for size in sizes:
        for batch in batches:
            row: dict = {"size": size, "batch": batch, "slams": speed(size, batch)}
            if python:
                row["jax_cfd"] = json.loads(other(python, "speed", str(size), str(batch)).splitlines()[-1])
                for key in ("evaluation", "dt"):
                    row[f"ratio_{key}"] = row["jax_cfd"][key] / row["slams"][key]
            rows.append(row)
    return rows


def rmse(a: Tensor, b: Tensor) -> float:
    """Root mean square difference."""
    return float((a.double() - b.double()).square().mean().sqrt())


def at_faces(x: Tensor, size: int) -> Tensor:
    """Velocity where a staggered grid keeps it: u at faces towards larger x, v at those towards larger y."""
    u, v = x.unbind(-3)
    return torch.stack([resample(u, size, shift=(0.5, 0)), resample(v, size, shift=(0, 0.5))], -3)


def errors(sizes: list[int], python: str | None) -> list[dict[str, float]]:
    """RMSE after one unit of time, of float32 runs against the float64 spectral one on the fine grid."""
    flow = KolmogorovFlow(128, dtype=torch.float64)
    x = flow.trajectory(flow.initial(1, rng=torch.Generator().manual_seed(0)), SPIN_UP)[:, -1]
    start = resample(x, FINE)
    end = KolmogorovFlow(FINE, dtype=torch.float64).trajectory(start, STEPS)[:, -1]
    rows: list[dict[str, float]] = [{"size": 0, "persistence": rmse(start, end), "std": float(end.std())}]
    for size in sizes:
        mine = KolmogorovFlow(size, dtype=torch.float32).trajectory(resample(start, size).float(), STEPS)[
            :, -1
        ]
        row = {"size": size, "slams": rmse(mine, resample(end, size))}
        if python:
            with tempfile.TemporaryDirectory() as folder:
                np.savez(f"{folder}/in.npz", start=at_faces(start, size).numpy())
                other(python, "run", f"{folder}/in.npz", f"{folder}/out.npz", str(STEPS))
                theirs = torch.from_numpy(np.load(f"{folder}/out.npz")["states"][:, -1])
            row["jax_cfd"] = rmse(theirs, at_faces(end, size))
        rows.append(row)
    return rows


def main() -> None:
    """Print everything as one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jax-cfd", metavar="PYTHON")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--no-error", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        result: dict = {
            "torch": torch.__version__,
            "speed": speeds(options.sizes, options.batches, options.jax_cfd),
        }
        if not options.no_error:
            result["error"] = errors(options.sizes, options.jax_cfd)
    if not options.jax_cfd:
        result["jax_cfd"] = "not compared"
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
