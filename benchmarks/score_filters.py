"""Score filters against exact answers: single analyses of Gaussians, and a linear model over ten steps.

    python -m benchmarks.score_filters [--replicates 20] [--largest 16384]

Prints two tables in Markdown. Biases are of means over replicates, in posterior standard deviations, with their standard
errors; ratios are of variances. The second table is the set-up of Ding et al. (2024), arXiv:2411.13443, appendix J.1: a
random walk of variance 5 from 0, seen with variance 0.2, ten steps, a prior at 0 or at -10; members and exact filter are
moved once before the first analysis, as there.
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from slams.assimilation import SSLS, DampedEnSF, EnSF
from slams.assimilation.filter import Filter
from slams.assimilation.score.ensemble_score import GivenScore
from slams.core.covariance import Diagonal, Isotropic
from slams.core.random import fork
from slams.evaluation.tables import markdown_table
from slams.observation import Observation, Survey, operators
from slams.systems import LinearGaussian

DOUBLE = torch.float64
MOST = 2**24  # pairs of members of all replicates, above which a method that compares them is left out
EXACT = GivenScore(torch.neg, lambda x: -0.5 * x.square().sum(-1))

Made = Callable[[LinearGaussian], Filter]
METHODS: dict[str, Made] = {
    "EnSF": EnSF,
    "EnSF, narrow kernel": lambda m: EnSF(m, kernel=0.5),
    "SSLS, exact score": lambda m: SSLS(m, score=EXACT),
    "SSLS, kernel": SSLS,
    "SSLS, network": lambda m: SSLS(m, score="network"),
    "damped EnSF": DampedEnSF,
    "damped EnSF, tolerance / 8": lambda m: DampedEnSF(m, tolerance=0.0025),
}
COSTLY = ("SSLS, network", "damped EnSF", "damped EnSF, tolerance / 8")  # at the smaller sizes only


def still(size: int) -> LinearGaussian:
    """A state of prior N(0, 1) that does not move."""
    one = torch.eye(size, dtype=DOUBLE)
    return LinearGaussian(one, 0 * one, torch.zeros(size, dtype=DOUBLE), one)


def analysed(made: Made, size: int, members: int, replicates: int, variance: float) -> dict[str, str]:
    """One analysis of y = 1, seen with a variance, of members drawn from N(0, 1)."""
    E = torch.randn(replicates, members, size, generator=fork(size, "members", members), dtype=DOUBLE)
    y, noise = (
        torch.ones(replicates, size, dtype=DOUBLE),
        Diagonal(torch.full((size,), variance, dtype=DOUBLE)),
    )
    clock = time.process_time()
    after = made(still(size)).analyse(E, Observation(y, operators.Identity(), noise), rng=fork(0, "chain"))
    spent = (time.process_time() - clock) / replicates
    posterior = 1 / (1 + 1 / variance)
    bias = (after.mean(1) - posterior / variance) / math.sqrt(posterior)
    ratio = after.var(1) / posterior
    return {"bias": worst(bias, 0.0), "variance ratio": worst(ratio, 1.0), "CPU ms": f"{1000 * spent:.1f}"}


def worst(values: Tensor, target: float) -> str:
    """Mean over replicates (R, d) of the variable farthest off, and its standard error."""
    mean, error = values.mean(0), values.std(0) / math.sqrt(len(values))
    at = (mean - target).abs().argmax()
    return f"{float(mean[at]):.3f} ({float(error[at]):.3f})"


def single(replicates: int, largest: int) -> list[dict[str, str]]:
    """Rows of the first table."""
    rows = []
    sizes = [n for n in (256, 1024, 4096, 16384) if n <= largest]
    for size in (1, 3, 10):
        for members in sizes:
            for name, made in METHODS.items():
                exact = name == "SSLS, exact score"
                if not exact and (replicates * members**2 > MOST * 8 or (name in COSTLY and members > 256)):
                    continue
                numbers = analysed(made, size, members, replicates, 0.25)
                rows.append({"d": str(size), "N": str(members), "method": name, **numbers})
                print(rows[-1], flush=True)
    return rows


def walk(replicates: int, members: int) -> list[dict[str, str]]:
    """Rows of the second table."""
    one, rows = torch.ones(1, 1, dtype=DOUBLE), []
    truth = LinearGaussian(one, 5 * one, 0 * one[0], 0 * one)
    path = truth.trajectory(truth.initial(replicates, rng=fork(0, "start")), 10, rng=fork(0, "truth"))
    observations = Survey(operators.Identity(event=1), Isotropic(0.2), start=1).observe(
        path, rng=fork(0, "errors")
    )
    for mean in (0.0, -10.0):
        model = LinearGaussian(one, 5 * one, mean * one[0], one)
        exact = model.filter(observations)
        deviation = exact.cov[..., 0].sqrt()
        for name in ("EnSF", "SSLS, kernel", "SSLS, network"):
            post = METHODS[name](model).assimilate(observations, members, rng=fork(1, name))
            assert post.samples is not None
            bias = ((post.samples.mean(1) - exact.mean) / deviation)[:, 1:, 0]
            ratio = (post.samples.var(1) / deviation**2)[:, 1:, 0]
            rows.append(
                {
                    "prior mean": f"{mean:g}",
                    "method": name,
                    "bias, steps 1": worst(bias[:, :1], 0.0),
                    "3 to 10": worst(bias[:, 2:], 0.0),
                    "root mean square": f"{float(bias[:, 2:].square().mean().sqrt()):.3f}",
                    "variance ratio": worst(ratio[:, 2:], 1.0),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--replicates", type=int, default=20)
    parser.add_argument("--largest", type=int, default=16384)
    parser.add_argument("--members", type=int, default=500)
    given = parser.parse_args()
    torch.set_num_threads(1)
    walked = walk(given.replicates, given.members)
    analyses = single(given.replicates, given.largest)
    print(markdown_table(analyses), markdown_table(walked), sep="\n\n")


if __name__ == "__main__":
    main()
