"""The posterior of a Gaussian over windows, against dense matrices of the whole window."""

import pytest
import torch

from slams.core.covariance import Dense, Diagonal
from slams.diffusion.exact.window_posterior import Systems, WindowPosterior
from slams.diffusion.sampler import Sampler
from slams.observation.observation import Observation, Observations
from tests.diffusion.gaussian import denoised, posterior, prior

LENGTH, EVENT, PATTERNS = 3, (2, 3), 4


@pytest.fixture
def case(rng):
    """Two modalities with gaps that differ from window to window; one has dependent errors."""
    gaussian, sigma = prior(LENGTH, EVENT, PATTERNS, rng)
    jacobians = {
        "a": torch.randn(5, PATTERNS, dtype=torch.float64, generator=rng),
        "b": torch.randn(2, PATTERNS, dtype=torch.float64, generator=rng),
    }
    root = torch.randn(2, 2, dtype=torch.float64, generator=rng)
    noises = {
        "a": Diagonal(torch.rand(5, dtype=torch.float64, generator=rng) + 0.1),
        "b": Dense(root @ root.mT + 0.2 * torch.eye(2, dtype=torch.float64)),
    }
    made = {}
    for name, g in jacobians.items():
        value = torch.randn(2, LENGTH, len(g), dtype=torch.float64, generator=rng)
        value[torch.rand(value.shape, generator=rng) < 0.3] = torch.nan
        made[name] = Observation(value, lambda x: x, noises[name])
    return gaussian, sigma, jacobians, Observations(made)


def exact(case, window):
    gaussian, sigma, jacobians, observations = case
    steps = torch.eye(LENGTH, dtype=torch.float64)
    h = torch.cat([torch.kron(steps, g @ gaussian.basis.mT) for g in jacobians.values()])
    r = torch.block_diag(*(torch.kron(steps, o.noise.dense()) for o in observations.values()))
    y = torch.cat([o.value[window].flatten() for o in observations.values()])
    return posterior(sigma, h, r, y)


def test_it_is_the_joint_gaussian_given_noisy_windows(case, rng):
    gaussian, _, jacobians, observations = case
    found = WindowPosterior.given(gaussian, observations, jacobians)
    x_t = torch.randn(4, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    for t in (0.9, 0.5, 0.1):
        t = torch.tensor(t, dtype=torch.float64)
        alpha, noise = gaussian.schedule(t)
        got = found(x_t, t)
        for window in range(2):
            mean, covariance = exact(case, window)
            wanted = denoised(covariance, mean, x_t[:, window].flatten(1), alpha, noise)
            torch.testing.assert_close(got[:, window].flatten(1), wanted, rtol=1e-6, atol=1e-7)


def test_its_mean_variances_and_spread(case):
    gaussian, sigma, jacobians, observations = case
    found = WindowPosterior.given(gaussian, observations, jacobians)
    clean = torch.tensor(1e-4, dtype=torch.float64)
    for window in range(2):
        mean, covariance = exact(case, window)
        torch.testing.assert_close(found.mean()[window].flatten(), mean, rtol=1e-6, atol=1e-7)
        spread = (covariance.diagonal() / sigma.diagonal()).sqrt()
        torch.testing.assert_close(found.relative_spread()[window].flatten(), spread, rtol=1e-4, atol=1e-5)
        t = torch.tensor(0.6, dtype=torch.float64)
        alpha, noise = gaussian.schedule(t)
        left = torch.linalg.inv(
            torch.linalg.inv(covariance) + (alpha / noise) ** 2 * torch.eye(len(sigma), dtype=torch.float64)
        )
        assert float(found.variance(t.expand(2, 1))[window]) == pytest.approx(
            float(left.diagonal().mean()), rel=1e-5
        )
    assert bool(torch.isfinite(found.variance(clean.expand(2, 1))).all())


def test_without_signal_a_cholesky_factor_gives_its_mean_and_spread(case, rng):
    gaussian, _, jacobians, observations = case
    whole = WindowPosterior.given(gaussian, observations, jacobians)
    systems = Systems(gaussian)
    found = WindowPosterior(
        gaussian,
        [systems.without_signal(observations.information(jacobians, w)) for w in range(2)],
        [0, 1],
        whole.pulled,
    )
    torch.testing.assert_close(found.coefficients(), whole.coefficients(), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(found.relative_spread(), whole.relative_spread(), rtol=1e-6, atol=1e-8)


def test_each_window_has_its_own_time(case, rng):
    gaussian, _, jacobians, observations = case
    found = WindowPosterior.given(gaussian, observations, jacobians)
    x_t = torch.randn(2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    times = torch.tensor([0.3, 0.8], dtype=torch.float64)
    together = found(x_t, times.reshape(2, 1, 1, 1))
    for window, t in enumerate(times):
        torch.testing.assert_close(together[window], found(x_t, t)[window])


def test_without_observations_it_is_the_prior(rng):
    gaussian, _ = prior(LENGTH, EVENT, PATTERNS, rng)
    pulled = torch.zeros(2, LENGTH * PATTERNS, dtype=torch.float64)
    found = WindowPosterior(gaussian, [Systems(gaussian).none()], [0, 0], pulled)
    x_t = torch.randn(2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.4, dtype=torch.float64)
    torch.testing.assert_close(found(x_t, t), gaussian(x_t, t))


def test_draws_have_its_moments(case, rng):
    """4000 draws: a mean off by 4 of its standard errors in one of 36 components happens once in 400 runs."""
    gaussian, _, jacobians, observations = case
    found = WindowPosterior.given(gaussian, observations, jacobians)
    sampler = Sampler(64, order=2, time_grid="snr", ends=(0.01, 60.0))
    noise = torch.randn(4000, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    draws = sampler(found, noise, rng=rng).flatten(2)
    for window in range(2):
        mean, covariance = exact(case, window)
        std = covariance.diagonal().sqrt()
        assert float(((draws[:, window].mean(0) - mean) / std).abs().max()) < 4 / 4000**0.5 + 0.01
        torch.testing.assert_close(draws[:, window].var(0), std**2, rtol=0.12, atol=0)


def test_information_that_is_not_finite_is_refused(rng):
    gaussian, _ = prior(LENGTH, EVENT, PATTERNS, rng)
    broken = torch.full((LENGTH, PATTERNS, PATTERNS), torch.nan, dtype=torch.float64)
    with pytest.raises(FloatingPointError, match="check their errors"):
        Systems(gaussian).of(broken)
