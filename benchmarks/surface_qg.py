"""Speed and error of the surface quasi-geostrophic model on one thread.

    python -m benchmarks.surface_qg [--sizes 64 128] [--batches 1 20] [--days 60]

Printed as JSON, a row for each size: CPU seconds of 12 h for each batch, least of several runs, float32, no gradient;
and of developed turbulence, from a state spun up for so many days: the largest |u| + |v|, which the step must bear;
the RMS error [K] of 12 h by the length of the step and by single precision, against a quarter of the step in double
precision; and the slope of the kinetic energy spectrum between wavenumber 6 and N / 4, in theory -5/3.
"""

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.systems import SurfaceQG


def speed(model: SurfaceQG, batch: int, runs: int = 5) -> float:
    """CPU seconds of 12 h."""
    x = model.initial(batch, rng=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(runs + 1):  # the first run plans its transforms
        begin = time.process_time()
        x = model(x)
        seconds.append(time.process_time() - begin)
    return min(seconds[1:])


def slope(spectrum: Tensor, size: int) -> float:
    """Exponent of a power law through shells 6 to N / 4, by least squares."""
    shells = torch.arange(6, size // 4 + 1)
    x, y = shells.double().log(), spectrum[shells].double().log()
    x = x - x.mean()
    return float((x * y).sum() / (x * x).sum())


def error(model: SurfaceQG, other: SurfaceQG, x: Tensor) -> float:
    """RMS difference after 12 h, each in the precision of its own."""
    ends = [m(x.to(m.torus.kx)).double() for m in (model, other)]
    return float((ends[0] - ends[1]).square().mean().sqrt())


def turbulence(size: int, days: int) -> dict[str, float]:
    """What developed turbulence is like, from the second half of a run of so many days."""
    model = SurfaceQG(size, dtype=torch.float32)
    x = model.initial(1, rng=torch.Generator().manual_seed(1))
    largest, spectra = 0.0, []
    for k in range(2 * days):
        x = model(x)
        largest = max(largest, float(model.velocity(x).abs().sum(-3).max()))
        if k >= days:
            spectra.append(model.energy_spectrum(x).mean((0, 1)))
    double = SurfaceQG(size, dtype=torch.float64)
    fine = SurfaceQG(size, step=16 / size / 3, dtype=torch.float64)
    return {
        "largest_speed": largest,
        "slope": slope(torch.stack(spectra).mean(0), size),
        "error_step": error(double, fine, x),
        "error_single": error(model, double, x),
        "temperature_std": float(x.std()),
    }


def main() -> None:
    """Parse arguments and print one row a size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 20])
    parser.add_argument("--days", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        for size in options.sizes:
            model = SurfaceQG(size, dtype=torch.float32)
            seconds = {str(batch): speed(model, batch) for batch in options.batches}
            row = {"size": size, "substeps": model.substeps, "seconds": seconds}
            print(json.dumps(row | turbulence(size, options.days)), flush=True)


if __name__ == "__main__":
    main()
