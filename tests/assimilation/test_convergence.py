"""Monte-Carlo methods converge to the exact filter and smoother at the rate N^-1/2.

For N = 64 ... 16384 the error of mean and covariance, in units of the exact posterior's scale, is averaged (RMS) over 64
replicates of one linear-Gaussian problem, the same observations for all. Over 64 replicates the relative standard error
of an RMS is 9 % at most; the fitted slope's then is about 0.03, so that +-0.1 is three of them: one false alarm in
400 for a fresh seed; the seed is fixed.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slams.assimilation.ensemble.finite import EnKFN
from slams.assimilation.ensemble.kalman import EnKF
from slams.assimilation.ensemble.smoother import EnKS
from slams.assimilation.filter import Filter
from slams.assimilation.particle.bootstrap import AuxiliaryPF, BootstrapPF
from slams.observation import Observations
from slams.systems import LinearGaussian
from tests.assimilation.twin import Linear

SIZES = [64, 256, 1024, 4096, 16384]
REPLICATES = 64
METHODS: dict[str, tuple[Callable[[LinearGaussian], Filter], bool]] = {
    "EnKF": (EnKF, False),
    "EnKF-N": (EnKFN, False),
    "EnKS": (lambda system: EnKS(system, lag=4, variant="enkf"), True),
    "BootstrapPF": (lambda system: BootstrapPF(system, jitter=0.0), False),
    "AuxiliaryPF": (lambda system: AuxiliaryPF(system, jitter=0.0), False),
}


@pytest.fixture(scope="module")
def twin() -> Linear:
    return Linear.simulate(torch.Generator().manual_seed(11), d=2, seen=2, length=6)


def errors(method: Filter, twin: Linear, size: int, smooth: bool) -> tuple[float, float]:
    """Relative RMS error of mean and covariance, at the first step for smoothers and the last one for filters."""
    o = twin.observations["y"]
    many = Observations({"y": replace(o, value=o.value.expand(REPLICATES, *o.value.shape))})
    post = method.assimilate(many, size, rng=torch.Generator().manual_seed(size))
    exact = twin.system.smoother(twin.observations) if smooth else twin.system.filter(twin.observations)
    k = 0 if smooth else twin.observations.steps - 1
    root = torch.linalg.cholesky(exact.cov[k])

    def scaled(x: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(root, x.mT, upper=False).mT

    x = scaled(post.samples[..., k, :] - exact.mean[k])
    mean = x.mean(-2)
    A = x - mean.unsqueeze(-2)
    covariance = A.mT @ A / (size - 1) - torch.eye(2, dtype=x.dtype)
    return float(mean.square().mean().sqrt()), float(covariance.square().mean().sqrt())


@pytest.mark.parametrize("name", METHODS)
def test_error_falls_with_the_root_of_the_ensemble_size(twin, name):
    """Slope -0.5 +- 0.1 between 64 and 16384 members, and below 3 % of the posterior's scale at the end."""
    build, smooth = METHODS[name]
    found = torch.tensor(
        [errors(build(twin.system), twin, size, smooth) for size in SIZES], dtype=torch.float64
    )
    x = torch.tensor(SIZES, dtype=torch.float64).log()
    x = x - x.mean()
    slopes = (x[:, None] * found.log()).sum(0) / x.square().sum()
    assert ((slopes + 0.5).abs() < 0.1).all(), f"slopes {slopes.tolist()}, errors {found.tolist()}"
    assert (found[-1] < 0.03).all(), f"errors {found[-1].tolist()}"
