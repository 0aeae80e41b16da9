"""Draws of coefficients against the closed form, the censored regression against quadrature, and the anamorphosis."""

import pytest
import scipy.integrate
import scipy.stats
import torch

from slams.assimilation.baseline.censored import CensoredRegression, mills
from slams.assimilation.baseline.draws import CoefficientPosterior
from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.core.covariance import Diagonal
from slams.core.normal_scores import NormalScores
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten


def test_draws_of_coefficients_have_the_moments_of_the_closed_form(rng):
    """20000 draws, two patterns of missing values: five standard errors, one false alarm in 1e5 for all numbers."""
    root = torch.randn(6, 6, generator=rng)
    gaussian = WindowGaussian(torch.eye(3)[:, :2], (root @ root.mT)[:4, :4], 1e-3, (3,), VPCosine())
    operator = torch.randn(5, 2, generator=rng)
    value = torch.randn(3, 2, 5, generator=rng)
    value[0, 1, 2] = value[:, :, 4] = torch.nan
    seen = Observations({"y": Observation(value, Flatten(1), Diagonal(torch.full((5,), 0.3)))})
    decode = torch.eye(2)
    mean, std = ClosedFormGaussian(gaussian, decode, torch.zeros(2)).windows(seen, {"y": operator})
    draws = CoefficientPosterior(gaussian).draws(seen, {"y": operator}, 20_000, rng=rng)
    assert bool((draws.mean(0) - mean).abs().less(5 * std / 20_000**0.5).all())
    assert bool((draws.std(0) / std - 1).abs().less(5 / 40_000**0.5).all())


def test_censored_regression_is_the_maximum_of_the_likelihood(rng):
    """One point, one coefficient, half of the days censored: EM against a search of Tobin's likelihood."""
    a = torch.randn(2000, 1, generator=rng)
    g = 0.8 * a - 0.1 + 0.6 * torch.randn(2000, 1, generator=rng)
    a = torch.cat([a, torch.ones(2000, 1)], 1)
    threshold = torch.zeros(2000, 1)
    found = CensoredRegression.fit(a, torch.maximum(g, threshold), threshold, 1e-3, rng=rng)
    x, y = a.numpy(), torch.maximum(g, threshold)[:, 0].numpy()

    def loss(p):
        mean, std = x @ p[:2], abs(p[2])
        wet = scipy.stats.norm.logpdf(y, mean, std)
        dry = scipy.stats.norm.logcdf((0 - mean) / std)
        return -(wet[y > 0].sum() + dry[y <= 0].sum())

    best = scipy.optimize.minimize(loss, [0.5, 0.0, 1.0], method="Nelder-Mead", options={"xatol": 1e-5}).x
    assert found.operator[0, 0].item() == pytest.approx(best[0], abs=0.05)  # of few turns of EM
    assert found.std.item() == pytest.approx(best[2], abs=0.05)
    # residuals, given what is known of them, are standard normal: 2000 draws, one false alarm in 1e4
    assert scipy.stats.kstest(found.residuals[:, 0].numpy(), "norm").pvalue > 1e-4


def test_mean_of_a_censored_normal_by_quadrature():
    """E[e | e <= x] = -φ(x) / Φ(x), integrated, also where both are tiny."""
    for x in (-6.0, -1.0, 0.7, 3.0):
        area, _ = scipy.integrate.quad(scipy.stats.norm.pdf, -12, x)
        moment, _ = scipy.integrate.quad(lambda e: e * scipy.stats.norm.pdf(e), -12, x)
        assert float(mills(torch.tensor(x))) == pytest.approx(-moment / area, rel=1e-4)


def test_normal_scores_return_the_amounts_and_their_frequencies(rng):
    """Two bands and two months of other distributions; 40000 normal draws have the frequency of each."""
    month = torch.tensor([0, 6]).repeat(500)
    latitude = torch.tensor([5.0, 5.0, 45.0])
    base = torch.randn(1000, 3, generator=rng)
    x = (base + torch.tensor([0.5, 0.5, -0.5]) + (month[:, None] == 6)).clamp(min=0)
    x[3, 1] = torch.nan
    scores = NormalScores(x, month, latitude)
    g = scores.scores(x, month)
    again = scores.values(g, month)
    assert bool(torch.isnan(g[3, 1]))
    known = torch.isfinite(x)
    torch.testing.assert_close(again[known & (x == 0)], x[known & (x == 0)])
    typical = known & (x > 0) & (x < 2)
    assert float((again - x)[typical].abs().mean()) < 0.02  # between quantiles
    draws = scores.values(torch.randn(40_000, 2, 3, generator=rng), torch.tensor([0, 6]))
    wet = torch.special.ndtr(torch.tensor([[0.5, 0.5, -0.5], [1.5, 1.5, 0.5]]))
    assert float(((draws > 0).float().mean(0) - wet).abs().max()) < 0.08  # of 500 and 1000 training values
    assert bool((g <= scores.thresholds(month))[known & (x == 0)].all())
