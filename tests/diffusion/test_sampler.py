"""Laws of samplers on Gaussians, whose samples have a closed form."""

import pytest
import torch

from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from tests.diffusion.gaussian import ddim_std, law, lost_std, prior


@pytest.mark.parametrize("steps", [4, 64, 256])
def test_deterministic_sampling_of_a_gaussian_has_its_closed_form(steps, rng):
    """Mean 0, and in each direction of the prior the deviation that `ddim_std` derives from angles."""
    gaussian, sigma = prior(2, (4,), 2, rng)
    mean, covariance = law(Sampler(steps), gaussian, (2, 4))
    assert bool((mean == 0).all())
    value, vector = torch.linalg.eigh(sigma)
    expected = (vector * ddim_std(gaussian.schedule, value, steps) ** 2) @ vector.mT
    torch.testing.assert_close(covariance, expected, rtol=0, atol=1e-10)


def test_deterministic_sampling_reproduces_the_prior_as_steps_grow(rng):
    """First order in 1 / steps: what is lost of a deviation is halved by doubling them (ratio within 0.1)."""
    gaussian, sigma = prior(2, (4,), 2, rng)
    value, vector = torch.linalg.eigh(sigma)
    lost = []
    for steps in (128, 256):
        _, covariance = law(Sampler(steps), gaussian, (2, 4))
        lost.append(1 - ((vector.mT @ covariance @ vector).diagonal() / value).sqrt())
    assert bool((lost[0] < lost_std(value.sqrt(), 128)).all()) and float(lost[0].min()) > 0
    assert float((lost[0] / lost[1] - 2).abs().max()) < 0.1


@pytest.mark.parametrize(("eta", "steps"), [(0.0, 128), (0.5, 256), (1.0, 256)])
def test_draws_have_the_mean_and_the_covariance_of_the_prior(eta, steps, rng):
    """Mean within 6 standard errors, each of 36 covariances within 6 and 4 % of the deviations for the steps:
    one false alarm in 1e7."""
    gaussian, sigma = prior(2, (4,), 2, rng)
    n = 8000
    noise = torch.randn(n, 2, 4, dtype=torch.float64, generator=rng)
    draws = Sampler(steps, eta=eta)(gaussian, noise, rng=rng).flatten(1)
    variance = sigma.diagonal()
    assert bool((draws.mean(0).abs() < 6 * (variance / n).sqrt()).all())
    error = (draws.mT @ draws / n - sigma).abs()
    product = variance[:, None] * variance
    assert bool((error < 6 * ((product + sigma**2) / n).sqrt() + 0.04 * product.sqrt()).all())


@pytest.mark.parametrize("tau", [0.02, 0.5])
def test_corrections_widen_white_noise_by_half_of_tau(tau, rng):
    """The fixed point of the unadjusted Langevin step, whose size follows the score, is v (1 + tau / 2).

    Variance of 80000 values within 6 standard errors, sqrt(2 / n), and 1 % for the last, uncorrected step.
    """
    size, v = 20000, 0.8
    one = torch.ones(1, 1, dtype=torch.float64)
    gaussian = WindowGaussian(one, v * one, 1e-3, (1,), VPCosine())
    noise = torch.randn(4, size, 1, 1, dtype=torch.float64, generator=rng)
    draws = Sampler(64, corrections=6 if tau < 0.1 else 3, tau=tau)(gaussian, noise, rng=rng)
    ratio = float(draws.square().mean()) / v / (1 + tau / 2)
    assert abs(ratio - 1) < 6 * (2 / (4 * size)) ** 0.5 + 0.01


def test_a_seed_repeats_the_draws_and_each_draw_is_its_own(rng):
    gaussian, _ = prior(2, (4,), 2, rng)
    noise = torch.randn(5, 2, 4, dtype=torch.float64, generator=rng)
    sampler = Sampler(16, eta=1.0, corrections=1)
    first, second = (sampler(gaussian, noise, rng=torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)
    alone = torch.cat([Sampler(16)(gaussian, noise[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(Sampler(16)(gaussian, noise), alone, rtol=0, atol=1e-12)


def test_progress_counts_the_steps(rng):
    gaussian, _ = prior(2, (4,), 2, rng)
    calls = []
    Sampler(5)(gaussian, torch.zeros(1, 2, 4, dtype=torch.float64), progress=calls.append)
    assert calls == [1] * 5


class Broken(Denoiser):
    """NaN from diffusion time 0.6 on."""

    def __init__(self):
        super().__init__()
        self.schedule = VPCosine()

    def forward(self, x_t, t):
        return x_t * (float("nan") if float(t) < 0.6 else 0.5)


def test_a_draw_that_is_not_finite_is_named_by_its_step():
    """Times 1, 0.75, 0.5, 0.25: the third is the first below 0.6."""
    with pytest.raises(FloatingPointError, match="not finite after step 3 of 4"):
        Sampler(4)(Broken(), torch.ones(2, 3, 1))


def test_no_steps_are_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Sampler(0)
