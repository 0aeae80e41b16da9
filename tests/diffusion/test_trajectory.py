"""Laws of trajectories composed of windows."""

import pytest
import torch

from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.guidance import CovarianceGuidance
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten
from tests.diffusion.gaussian import chain, denoised, posterior

STEPS, RHO, ERROR = 25, 0.8, 0.1
ONE = torch.ones(1, 1, dtype=torch.float64)


@pytest.fixture
def values(rng) -> torch.Tensor:
    """Every fourth step of a chain seen, (T, 1)."""
    y = torch.full((STEPS, 1), float("nan"), dtype=torch.float64)
    y[1::4, 0] = torch.randn(len(range(1, STEPS, 4)), dtype=torch.float64, generator=rng)
    return y


def composed(values: torch.Tensor, length: int) -> MarkovBlanket:
    """The guided denoiser of windows of an AR(1) chain, composed."""
    gaussian = WindowGaussian(ONE, chain(length, RHO), 1e-3, (1,), VPCosine())
    seen = Observations({"a": Observation(values, Flatten(1), Diagonal(ERROR * ONE[0]))})
    guided = CovarianceGuidance(gaussian, gaussian, seen.windows(length), {"a": ONE})
    return MarkovBlanket(guided, length)


def exact(values: torch.Tensor, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x | x_t, y] of the whole chain."""
    eye = torch.eye(STEPS, dtype=torch.float64)
    mean, covariance = posterior(chain(STEPS, RHO), eye, ERROR * eye, values.flatten())
    return denoised(covariance, mean, x_t.flatten(1), *VPCosine()(t))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_a_window_as_long_as_the_trajectory_is_exact(t, values, rng):
    x_t = torch.randn(6, STEPS, 1, dtype=torch.float64, generator=rng)
    time = torch.tensor(t, dtype=torch.float64)
    whole = composed(values, STEPS)
    torch.testing.assert_close(whole(x_t, time)[:, None], whole.denoiser(x_t[:, None], time), rtol=0, atol=0)
    torch.testing.assert_close(whole(x_t, time).flatten(1), exact(values, x_t, time), rtol=0, atol=1e-8)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_the_composed_posterior_approaches_the_exact_one_as_windows_grow(t, values, rng):
    """At least halved by each doubling of k, to 1 % of the chain's unit deviation at k = 8."""
    time = torch.tensor(t, dtype=torch.float64)
    alpha, sigma = VPCosine()(time)
    root = torch.linalg.cholesky(chain(STEPS, RHO))
    x = torch.randn(50, STEPS, dtype=torch.float64, generator=rng) @ root.mT
    x_t = (alpha * x + sigma * torch.randn(x.shape, dtype=torch.float64, generator=rng))[..., None]
    truth = exact(values, x_t, time)
    errors = [
        float((composed(values, 2 * k + 1)(x_t, time).flatten(1) - truth).square().mean().sqrt())
        for k in (1, 2, 4, 8)
    ]
    assert all(after < before / 2 for before, after in zip(errors[:-1], errors[1:], strict=True))
    assert errors[-1] < 0.01


def test_a_step_comes_from_the_middle_of_its_window_and_the_ends_from_the_outermost(values, rng):
    length, k = 5, 2
    x_t = torch.randn(3, STEPS, 1, dtype=torch.float64, generator=rng)
    time = torch.tensor(0.4, dtype=torch.float64)
    found = composed(values, length)(x_t, time)
    for i in range(STEPS):
        start = min(max(i - k, 0), STEPS - length)
        rows = slice(start, start + length)
        window = composed(values[rows], length)(x_t[:, rows], time)
        torch.testing.assert_close(found[:, i], window[:, i - start], rtol=0, atol=1e-12)


def test_lengths_that_do_not_fit_are_refused(values):
    with pytest.raises(ValueError, match="odd number of steps, got 4"):
        MarkovBlanket(composed(values, 5).denoiser, 4)
    with pytest.raises(ValueError, match="a trajectory of 3 steps is shorter than the windows of 5"):
        composed(values, 5)(torch.zeros(1, 3, 1), torch.tensor(0.5))
