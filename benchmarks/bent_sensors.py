"""Distance of one analysis to quadrature where the sensor bends within the forecast's spread.

    python -m benchmarks.bent_sensors [--seeds 20] [--methods EnSF,EnKF,SSLS,ETKF] [--short] [--linearized]

Independent coordinates with the prior N(0.5, 1) or 1/2 N(-1.5, 0.3^2) + 1/2 N(1.5, 0.3^2), of which truth and members are
drawn, seen through arctan x, x^2, |x| and exp(x / 2) with errors of 0.2 (0.3 for x^2). Printed for every dimension and
number of members: Wasserstein-1 distance of the members to the posterior by quadrature, in posterior standard deviations,
averaged over coordinates and seeds; "drawn" is the same of as many independent draws of the posterior, "over" what EnSF
has above the better of EnKF and SSLS. `--short` leaves out 10 coordinates and 200 members.
"""

import argparse
import math
import os
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor

from slams.assimilation import ETKF, SSLS, EnKF, EnSF
from slams.assimilation.filter import Filter
from slams.assimilation.memory import Memory
from slams.core.covariance import Isotropic
from slams.observation import Observation
from slams.systems import LinearGaussian

METHODS: dict[str, Callable[[LinearGaussian], Filter]] = {
    "EnSF": EnSF,
    "EnKF": EnKF,
    "SSLS": SSLS,
    "ETKF": ETKF,
}
SENSORS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "arctan": (torch.arctan, 0.2),
    "square": (torch.square, 0.3),
    "abs": (torch.abs, 0.2),
    "exp": (lambda x: torch.exp(x / 2), 0.2),
}
PRIORS = {
    "normal": ((0.5, 0.5), 1.0),
    "two peaks": ((-1.5, 1.5), 0.3),
}  # centres of equal weight, and their width
_GRID = torch.linspace(-7, 8, 6001, dtype=torch.float64)


class Sensor(torch.nn.Module):
    """One function of every variable."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """(*B, d) -> (*B, d)."""
        return self.function(x)


def still(size: int) -> LinearGaussian:
    """A model that stays where it is."""
    one = torch.eye(size, dtype=torch.float64)
    return LinearGaussian(one, 0 * one, torch.zeros(size, dtype=torch.float64), one)


def drawn(prior: str, *shape: int, rng: torch.Generator) -> Tensor:
    """Independent draws."""
    centres, width = PRIORS[prior]
    sign = torch.rand(shape, generator=rng, dtype=torch.float64) < 0.5
    return torch.where(sign, *centres) + width * torch.randn(shape, generator=rng, dtype=torch.float64)


def problem(
    prior: str, sensor: str, seeds: int, members: int, size: int, seed: int = 0
) -> tuple[Tensor, Observation]:
    """Members (seeds, N, d) and the observation of a truth for each seed."""
    function, error = SENSORS[sensor]
    rng = torch.Generator().manual_seed(seed)
    truth = drawn(prior, seeds, size, rng=rng)
    y = function(truth) + error * torch.randn(truth.shape, generator=rng, dtype=torch.float64)
    return drawn(prior, seeds, members, size, rng=rng), Observation(
        y, Sensor(function), Isotropic(error**2).sized(size)
    )


def posterior(prior: str, sensor: str, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cumulative probability on the grid, (*y, K), and standard deviation, (*y)."""
    function, error = SENSORS[sensor]
    centres, width = PRIORS[prior]
    log_prior = torch.stack([-0.5 * ((_GRID - c) / width).square() for c in centres]).logsumexp(0)
    p = (log_prior - 0.5 * ((y[..., None] - function(_GRID)) / error).square()).softmax(-1)
    mean = (p @ _GRID)[..., None]
    return p.cumsum(-1), (p * (_GRID - mean).square()).sum(-1).sqrt()


def distance(members: Tensor, cdf: Tensor, deviation: Tensor) -> Tensor:
    """Wasserstein-1 in deviations of each coordinate, (*B, d), of members (*B, N, d)."""
    ordered = members.mT.contiguous().sort(-1).values
    share = torch.searchsorted(ordered, _GRID.expand(*ordered.shape[:-1], -1).contiguous(), right=True)
    outside = (ordered - _GRID[-1]).clamp(min=0) + (_GRID[0] - ordered).clamp(min=0)
    step = float(_GRID[1] - _GRID[0])
    inside = (share / members.shape[-2] - cdf).abs().sum(-1) * step
    return (inside + outside.mean(-1)) / deviation


def independent(cdf: Tensor, members: int, rng: torch.Generator) -> Tensor:
    """Draws of the posterior itself, (*B, N, d)."""
    u = torch.rand((*cdf.shape[:-1], members), generator=rng, dtype=torch.float64)
    return _GRID[torch.searchsorted(cdf, u).clamp(max=len(_GRID) - 1)].mT


def measured(
    prior: str, sensor: str, size: int, members: int, seeds: int, methods: dict[str, Filter]
) -> dict[str, Tensor]:
    """Distance of each method and seed, (seeds), averaged over coordinates."""
    E, observation = problem(prior, sensor, seeds, members, size)
    cdf, deviation = posterior(prior, sensor, observation.value)
    rng = torch.Generator().manual_seed(1)
    out = {"drawn": distance(independent(cdf, members, rng), cdf, deviation).mean(-1)}
    for name, method in methods.items():
        memory = Memory()
        memory.step = 1
        after = method.analyse(E.clone(), observation, rng=torch.Generator().manual_seed(2), memory=memory)
        out[name] = distance(after, cdf, deviation).mean(-1)
    return out


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--linearized", action="store_true", help="EnSF with the linearized likelihood")
    args = parser.parse_args()
    torch.set_num_threads(1)
    names = args.methods.split(",")
    print(
        f"{'prior':10s} {'sensor':7s} {'d':>2s} {'N':>4s} {'drawn':>6s} "
        + " ".join(f"{n:>6s}" for n in names)
        + "   over"
    )
    for prior in PRIORS:
        for sensor in SENSORS:
            for size in (1, 3) if args.short else (1, 3, 10):
                for members in (40,) if args.short else (40, 200):
                    methods = {n: METHODS[n](still(size)) for n in names}
                    if args.linearized and "EnSF" in names:
                        methods["EnSF"] = EnSF(still(size), likelihood="linearized")
                    found = {
                        k: float(v.mean())
                        for k, v in measured(prior, sensor, size, members, args.seeds, methods).items()
                    }
                    best = min(found.get("EnKF", math.inf), found.get("SSLS", math.inf))
                    over = found.get("EnSF", math.nan) - best
                    cells = " ".join(f"{found[n]:6.3f}" for n in ("drawn", *names))
                    print(f"{prior:10s} {sensor:7s} {size:2d} {members:4d} {cells} {over:+6.3f}", flush=True)


if __name__ == "__main__":
    main()
