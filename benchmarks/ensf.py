"""Cost of one local analysis of the ensemble score filter on one thread, and what the number of its steps changes.

    python -m benchmarks.ensf [--size 20000] [--members 20] [--block 4] [--kernel 0.7] [--steps 6]

Lorenz-96 with every variable seen through arctan with error 0.05; members are a state of the climate plus noise of 0.3
after 20 steps of 0.01. Variables share an analysis in blocks of 4, with observations and coordinates within 6 of the
middle of the block. Printed as JSON, for the kernel's width that the filter chooses and for a fixed one: CPU seconds of
the analysis, the width, the effective number of components, the largest and the root mean square change by twice the
steps, of means in posterior standard deviations and of variances as shares; then the peak memory [GB] of the process
before and after. The full size is `--size 1000000`, for which `--peak` leaves out the second analysis with twice the
steps, that seconds and memory are of one.
"""

import argparse
import json
import os
import resource
import time

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.assimilation import EnSF
from slams.assimilation.memory import Memory
from slams.core.covariance import Isotropic
from slams.core.geometry.localization import Localization
from slams.observation import Observation, operators
from slams.systems import Lorenz96

_REACH = 6.0  # of observations and coordinates from the middle of a block


def problem(size: int, members: int) -> tuple[Lorenz96, Tensor, Observation]:
    """Model, forecast (1, N, d) and observation."""
    rng = torch.Generator().manual_seed(0)
    model = Lorenz96(size, dt=0.01)
    truth = 3 * torch.randn(1, size, generator=rng)
    for _ in range(500):
        truth = model(truth)
    E = truth[:, None] + 0.3 * torch.randn(1, members, size, generator=rng)
    for _ in range(20):
        truth = model(truth)
        for j in range(members):
            E[:, j] = model(E[:, j])
    operator = operators.Pointwise("arctan")
    y = operator(truth) + 0.05 * torch.randn(truth.shape, generator=rng)
    return model, E, Observation(y, operator, Isotropic(0.0025).sized(size))


def lists(size: int, block: int) -> tuple[Localization, Localization]:
    """Observations and coordinates near each variable, in single precision."""
    sites = torch.arange(size, dtype=torch.float64)
    near = Localization.periodic(size, sites, _REACH / 2, block=block).to(torch.zeros(1))
    return near, near


def change(one: Tensor, two: Tensor) -> dict[str, float]:
    """By how much means, in deviations, and variances, as shares, of two ensembles (1, N, d) differ."""
    spread = two.std(-2)
    mean = (one.mean(-2) - two.mean(-2)) / spread
    variance = one.var(-2) / spread.square() - 1
    return {
        f"{name}_{kind}": float(f"{value:.3g}")
        for name, x in (("mean", mean), ("variance", variance))
        for kind, value in (("largest", x.abs().max()), ("rms", x.square().mean().sqrt()))
    }


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=20_000)
    parser.add_argument("--members", type=int, default=20)
    parser.add_argument("--block", type=int, default=4)
    parser.add_argument("--kernel", type=float, default=0.7)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--peak", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    model, E, observation = problem(given.size, given.members)
    before = _peak()
    begun = time.process_time()
    near, patch = lists(given.size, given.block)
    print(
        json.dumps({"lists_cpu_seconds": round(time.process_time() - begun, 1), "gigabytes_before": before})
    )
    for kernel in (None, given.kernel):
        method = EnSF(
            model,
            localization=near,
            patch=patch,
            kernel=kernel,
            steps=given.steps,
            iterations=given.iterations,
        )
        memory, begun = Memory(), time.process_time()
        after = method.analyse(E, observation, memory=memory)
        row = {
            "kernel": "chosen" if kernel is None else "fixed",
            "width": round(float(memory.diagnostics["kernel"]), 4),
            "components": round(float(memory.diagnostics["effective_size"]), 2),
            "cpu_seconds": round(time.process_time() - begun, 2),
            "gigabytes": _peak(),
        }
        if not given.peak:
            method.steps = 2 * given.steps
            row |= change(after, method.analyse(E, observation))
        print(json.dumps(row), flush=True)


def _peak() -> float:
    """Most memory that the process had so far [GB]."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)


if __name__ == "__main__":
    main()
