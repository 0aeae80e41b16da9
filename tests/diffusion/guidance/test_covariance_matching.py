"""Laws of guidance by a closed-form covariance: exact for a Gaussian prior, and blind to the network's derivative."""

import pytest
import torch

from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.covariance_matching import CovarianceMatching
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from tests.diffusion.gaussian import positive

L, D = 4, 2


class Undifferentiable(Denoiser):
    """A denoiser without a derivative."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser, self.schedule = denoiser, denoiser.schedule

    def forward(self, x_t, t):
        return self.denoiser(x_t.detach(), t).detach()


@pytest.fixture
def case():
    rng = torch.Generator().manual_seed(0)
    covariance = positive(L * D, rng).double()
    prior = WindowGaussian(torch.eye(D, dtype=torch.float64), covariance, 1e-6, (D,), VPCosine())
    value = torch.randn(L, 1, generator=rng, dtype=torch.float64)
    value[2] = torch.nan
    noise = Diagonal(torch.tensor([0.09], dtype=torch.float64))
    seen = Observations({"a": Observation(value, Select(torch.tensor([0]), event=1), noise)})
    return prior, covariance, seen, rng


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
def test_the_guided_mean_is_that_of_the_joint_gaussian(case, t):
    """E[x | x_t, y] from the precisions of prior, noisy state and observations."""
    prior, covariance, seen, rng = case
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = prior.schedule(time)
    x_t = torch.randn(3, L, D, generator=rng, dtype=torch.float64)
    rows = torch.tensor([0, 2, 6])
    H = torch.eye(L * D, dtype=torch.float64)[rows]
    y = seen["a"].value[[0, 1, 3], 0]
    eye = torch.eye(L * D, dtype=torch.float64)
    precision = torch.linalg.inv(covariance) + alpha**2 / sigma**2 * eye + H.mT @ H / 0.09
    right = alpha / sigma**2 * x_t.flatten(1) + y @ H / 0.09
    expected = torch.linalg.solve(precision, right.mT).mT.reshape(3, L, D)
    guided = CovarianceMatching(covariance=covariance, tolerance=1e-12)(Undifferentiable(prior), seen)
    torch.testing.assert_close(guided(x_t, time), expected, rtol=1e-7, atol=1e-7)


def test_samples_are_independent_and_each_has_its_time(case):
    prior, covariance, seen, rng = case
    x_t = torch.randn(3, L, D, generator=rng, dtype=torch.float64)
    times = torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    guided = CovarianceMatching(covariance=covariance, tolerance=1e-12)(prior, seen)
    together = guided(x_t, times[:, None, None])
    for i, t in enumerate(times):
        torch.testing.assert_close(together[i], guided(x_t[i : i + 1], t)[0], rtol=1e-8, atol=1e-8)


def test_what_cannot_be_is_told(case):
    prior, covariance, seen, _ = case
    with pytest.raises(ValueError, match="iterations"):
        CovarianceMatching(covariance=covariance, iterations=0)(prior, seen)
    guided = CovarianceMatching(covariance=covariance[:-1, :-1])(prior, seen)
    with pytest.raises(ValueError, match="whole event"):
        guided(torch.zeros(1, L, D, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64))
