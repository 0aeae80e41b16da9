"""Peak memory of one guided evaluation along a trajectory, windows all at once or in chunks.

    python -m benchmarks.trajectory_memory [--lengths 29 127 255] [--chunks 0 8] [--grid 64]

A local U-Net of order 2 of 2 x grid x grid fields, small or of published size (--published), guided as SDA is, with a
backward pass through the network. Printed: what a process of its own needs above what it holds before [MiB], and CPU
seconds. Chunk 0 takes all windows at once.
"""

import argparse
import os
import resource
import subprocess
import sys
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from slams.core.covariance import Isotropic
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.precondition import NoisePrediction
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.evaluation.tables import markdown_table
from slams.networks.score_unet import ScoreUNet
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Stride


def peak() -> float:
    """Largest resident memory so far [MiB]."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(length: int, chunk: int, grid: int, published: bool) -> None:
    """Print memory and time of this process."""
    hidden, blocks = ((96, 192, 384), 3) if published else ((16, 32, 48), 1)
    net = ScoreUNet((2, grid, grid), length=5, hidden=hidden, blocks=blocks, embedding=64, padding="circular")
    blanket = MarkovBlanket(NoisePrediction(net, VPCosine()), 5, chunk=chunk or None)
    value = torch.full((length, 2, grid // 8, grid // 8), torch.nan)
    value[::4] = 0.0
    seen = Observation(value, Stride(8, axes=2), Isotropic(0.01), event=3)
    guided = GaussianGuidance()(blanket, Observations({"coarse": seen}))
    x, t = torch.randn(1, length, 2, grid, grid), torch.tensor(0.5)
    blanket(x[:, :5], t)  # libraries and their buffers
    before, begin = peak(), time.process_time()
    guided(x, t)
    print(f"{peak() - before:.0f} {time.process_time() - begin:.1f}")


def main() -> None:
    """One process a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=[29, 127, 255])
    parser.add_argument("--chunks", type=int, nargs="+", default=[0, 8])
    parser.add_argument("--grid", type=int, default=64)
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.one:
        return measure(a.lengths[0], a.chunks[0], a.grid, a.published)
    rows = []
    for length in a.lengths:
        for chunk in a.chunks:
            numbers = ["--lengths", str(length), "--chunks", str(chunk), "--grid", str(a.grid), "--one"]
            command = [sys.executable, "-m", "benchmarks.trajectory_memory", *numbers]
            # so that freed memory goes back at once, and what is measured is what is held
            heap = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
            done = subprocess.run(
                command + ["--published"] * a.published,
                capture_output=True,
                text=True,
                check=True,
                env=os.environ | heap,
            )
            memory, seconds = done.stdout.split()
            rows.append({"L": str(length), "chunk": str(chunk or "all"), "MiB": memory, "CPU s": seconds})
    print(markdown_table(rows))


if __name__ == "__main__":
    main()
