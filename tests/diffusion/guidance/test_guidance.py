"""Laws of guided denoisers on linear-Gaussian problems, against dense matrices."""

import pytest
import torch
from torch import nn

from slams.core.covariance import Dense, Diagonal
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.sda import CovarianceGuidance, GaussianGuidance
from slams.diffusion.sampler import Sampler, ends_for
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from tests.diffusion.gaussian import (
    ddim_std,
    denoised,
    law,
    lost_std,
    orthonormal,
    positive,
    posterior,
    prior,
)

L, D, WINDOWS = 3, 4, 4
TIMES = [0.02, 0.3, 0.7, 1.0]


class Matrix(nn.Module):
    """h(x) = H x."""

    def __init__(self, h):
        super().__init__()
        self.h = h

    def forward(self, x):
        return x @ self.h.mT


class Problem:
    """A Gaussian prior, two modalities (full and diagonal errors), four windows that saw different values."""

    def __init__(self, rng, patterns: int = D, dense: bool = True):
        self.gaussian, self.sigma = prior(L, (D,), patterns, rng)
        basis = self.gaussian.basis
        self.g = {
            m: torch.randn(p, patterns, dtype=torch.float64, generator=rng) for m, p in (("a", 3), ("b", 2))
        }
        self.h = {m: g @ basis.mT for m, g in self.g.items()}  # sees the patterns only
        r = {"a": 0.2 * positive(3, rng), "b": torch.tensor([0.3, 0.05], dtype=torch.float64).diag()}
        if not dense:
            r["a"] = r["a"].diagonal().diag()
        self.r = r
        y = {
            m: torch.randn(WINDOWS, L, len(g), dtype=torch.float64, generator=rng) for m, g in self.g.items()
        }
        y["a"][1] = float("nan")
        y["b"][1, 0, 0] = y["a"][2, 2, 1] = y["b"][2, 1] = float("nan")
        y["a"][3] = y["b"][3] = float("nan")
        self.y = y
        self.observations = Observations(
            {
                m: Observation(
                    y[m], Matrix(self.h[m]), Dense(r[m]) if dense and m == "a" else Diagonal(r[m].diagonal())
                )
                for m in y
            }
        )

    def exact(self, w: int):
        """Mean and covariance over (L, D) given window w's observations."""
        eye = torch.eye(L, dtype=torch.float64)
        h = torch.cat([torch.kron(eye, self.h[m]) for m in self.h])
        r = torch.block_diag(*[torch.kron(eye, self.r[m]) for m in self.h])
        return posterior(self.sigma, h, r, torch.cat([self.y[m][w].flatten() for m in self.h]))

    def guided(self) -> CovarianceGuidance:
        return CovarianceGuidance(self.gaussian, self.g)(self.gaussian, self.observations)


@pytest.mark.parametrize("t", TIMES)
@pytest.mark.parametrize("patterns", [D, 2])
def test_covariance_guidance_equals_the_joint_gaussian(t, patterns, rng):
    """E[x | x_t, y] of window after window: condition on y first, then denoise, by dense algebra."""
    problem = Problem(rng, patterns)
    x_t = torch.randn(5, WINDOWS, L, D, dtype=torch.float64, generator=rng)
    time = torch.tensor(t, dtype=torch.float64)
    found = problem.guided()(x_t, time).flatten(2)
    for w in range(WINDOWS):
        mean, covariance = problem.exact(w)
        expected = denoised(covariance, mean, x_t[:, w].flatten(1), *problem.gaussian.schedule(time))
        torch.testing.assert_close(found[:, w], expected, rtol=0, atol=1e-8)


def test_a_window_that_saw_nothing_keeps_the_prior(rng):
    problem = Problem(rng)
    x_t = torch.randn(2, WINDOWS, L, D, dtype=torch.float64, generator=rng)
    time = torch.tensor(0.5, dtype=torch.float64)
    assert torch.equal(problem.guided()(x_t, time)[:, 3], problem.gaussian(x_t, time)[:, 3])


@pytest.mark.parametrize("patterns", [D, 2])
def test_deterministic_sampling_gives_the_posterior(patterns, rng):
    """No chance: the sampler's affine map has the closed form of the finite number of steps (1e-8), which is
    within `lost_std` of the posterior's deviations and 0.3 % of its mean (of which 1e-3 is left at t = 1)."""
    problem, steps = Problem(rng, patterns), 128
    mean, covariance = law(Sampler(steps), problem.guided(), (WINDOWS, L, D))
    covariance = covariance.reshape(WINDOWS, L * D, WINDOWS, L * D)
    for w in range(WINDOWS):
        exact, p = problem.exact(w)
        value, vector = torch.linalg.eigh(p)
        std = ddim_std(problem.gaussian.schedule, value, steps)
        torch.testing.assert_close(covariance[w, :, w], (vector * std**2) @ vector.mT, rtol=0, atol=1e-8)
        assert float(covariance[w][:, [v for v in range(WINDOWS) if v != w]].abs().max()) < 1e-14
        assert bool((1 - std / value.sqrt() < lost_std(value.sqrt(), steps)).all())
        assert float((mean[w].flatten() - exact).abs().max()) < 3e-3 * max(1.0, float(exact.abs().max()))


def test_ancestral_sampling_gives_the_posterior_of_every_window(rng):
    """Means within 6 standard errors and 1 % of a deviation, covariances within 6 and 5 % of the deviations
    for 256 steps; 48 means and 312 covariances: one false alarm in 1e6."""
    problem, n = Problem(rng), 3000
    noise = torch.randn(n, WINDOWS, L, D, dtype=torch.float64, generator=rng)
    draws = Sampler(256, eta=1.0)(problem.guided(), noise, rng=rng).flatten(2)
    for w in range(WINDOWS):
        mean, p = problem.exact(w)
        std = p.diagonal().sqrt()
        assert bool(((draws[:, w].mean(0) - mean).abs() < (6 / n**0.5 + 0.01) * std).all())
        anomaly = draws[:, w] - mean
        error = (anomaly.mT @ anomaly / n - p).abs()
        product = std[:, None] * std
        assert bool((error < 6 * ((product**2 + p**2) / n).sqrt() + 0.05 * product).all())


@pytest.mark.parametrize("decades", [4, 6])
def test_single_precision_guidance_equals_double(decades, rng):
    """C^-1 of a covariance over six decades, inverted and diagonalized in float32, was wrong by 0.5 %."""
    q = orthonormal(L * D, L * D, rng)
    c = (q * torch.logspace(0, -decades, L * D, dtype=torch.float64)) @ q.mT
    basis, h = orthonormal(D, D, rng), torch.randn(2, D, dtype=torch.float64, generator=rng)
    y = torch.randn(1, L, 2, dtype=torch.float64, generator=rng)
    x_t = torch.randn(6, 1, L, D, dtype=torch.float64, generator=rng)
    found = {}
    for kind in (torch.float32, torch.float64):
        gaussian = WindowGaussian(basis.to(kind), c, 1e-3, (D,), VPCosine())
        seen = Observation(y.to(kind), Matrix(h.to(kind)), Diagonal(torch.full((2,), 0.05, dtype=kind)))
        guided = CovarianceGuidance(gaussian, {"a": (h @ basis).to(kind)})(
            gaussian, Observations({"a": seen})
        )
        assert guided.vectors.dtype == kind
        found[kind] = guided(x_t.to(kind), torch.tensor(0.5, dtype=kind)).double()
    torch.testing.assert_close(found[torch.float32], found[torch.float64], rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["covariance", "sda"])
def test_each_draw_is_guided_alone(kind, rng):
    problem = Problem(rng, dense=False)
    guided = (
        problem.guided()
        if kind == "covariance"
        else GaussianGuidance()(problem.gaussian, problem.observations)
    )
    x_t = torch.randn(5, WINDOWS, L, D, dtype=torch.float64, generator=rng)
    time = torch.tensor(0.4, dtype=torch.float64)
    alone = torch.cat([guided(x_t[i : i + 1], time) for i in range(5)])
    torch.testing.assert_close(guided(x_t, time), alone, rtol=0, atol=1e-12)


class Scalar:
    """One step of one variable, x ~ N(0, v), y = x + N(0, r): SDA's guidance in closed form."""

    v, r, y = 0.7, 0.2, 1.3

    def __init__(self):
        one = torch.ones(1, 1, dtype=torch.float64)
        self.gaussian = WindowGaussian(one, self.v * one, 1e-3, (1,), VPCosine())
        seen = Observation(self.y * one[None], Matrix(one), Diagonal(self.r * one[0]))
        self.observations = Observations({"a": seen})


@pytest.mark.parametrize("gamma", [1e-2, 1.0])
def test_gaussian_guidance_is_sda_formula(gamma):
    """m + sigma^2 / alpha g (y - m) / (r + gamma sigma^2 / alpha^2),
    with m = g x_t and g = alpha v / (alpha^2 v + sigma^2)."""
    case, x_t, time = Scalar(), torch.linspace(-2, 2, 5, dtype=torch.float64), torch.tensor(0.6).double()
    alpha, sigma = case.gaussian.schedule(time)
    g = alpha * case.v / (alpha**2 * case.v + sigma**2)
    wide = case.r + gamma * (sigma / alpha) ** 2
    expected = g * x_t + sigma**2 / alpha * g * (case.y - g * x_t) / wide
    found = GaussianGuidance(gamma)(case.gaussian, case.observations)(x_t.reshape(-1, 1, 1, 1), time)
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-12)


def sda_bias(guided: Denoiser, problem: Problem, steps: int = 256) -> tuple[float, float]:
    """Root mean square error of the mean in posterior deviations, and the mean ratio of deviations."""
    mean, covariance = law(Sampler(steps), guided, (WINDOWS, L, D))
    std = covariance.diagonal().sqrt().reshape(WINDOWS, -1)
    exact = [problem.exact(w) for w in range(WINDOWS)]
    wanted = torch.stack([p.diagonal().sqrt() for _, p in exact])
    error = (mean.flatten(1) - torch.stack([m for m, _ in exact])) / wanted
    return float(error.square().mean().sqrt()), float((std / wanted).mean())


@pytest.mark.parametrize(("gamma", "bias", "ratio"), [(1e-2, 0.53, 0.79), (1.0, 1.06, 1.01)])
def test_gaussian_guidance_is_finite_and_biased(gamma, bias, ratio, rng):
    """A record, not a law: with the exact prior the mean is off by 0.53 posterior deviations at SDA's gamma
    and by 1.06 at gamma = 1, where the deviations are right on average (0.79 of them at SDA's); within 20 %.
    The guidance with the covariance is off by under 0.01 on it, so that the bias is not the sampler's."""
    problem = Problem(rng, dense=False)
    found = sda_bias(GaussianGuidance(gamma)(problem.gaussian, problem.observations), problem)
    assert found == pytest.approx((bias, ratio), rel=0.2)
    assert sda_bias(problem.guided(), problem)[0] < 0.01


class Broken(Denoiser):
    def __init__(self):
        super().__init__()
        self.schedule = VPCosine()

    def forward(self, x_t, t):
        return x_t * float("nan")


def test_guidance_that_is_not_finite_is_named_by_its_time(rng):
    problem = Problem(rng)
    guided = CovarianceGuidance(problem.gaussian, problem.g)(Broken(), problem.observations)
    with pytest.raises(FloatingPointError, match="not finite at diffusion time 0.250"):
        guided(torch.zeros(1, WINDOWS, L, D, dtype=torch.float64), torch.tensor(0.25))


@pytest.mark.parametrize("gamma", [0.0, -1.0])
def test_a_gamma_that_is_none_is_refused(gamma):
    case = Scalar()
    with pytest.raises(ValueError, match="gamma must be positive"):
        GaussianGuidance(gamma)(case.gaussian, case.observations)


def test_sixteen_steps_give_mean_and_variances_of_a_wide_prior(rng):
    """No chance: deviations of 20 to .1, half of the patterns seen with errors of .3; the sampler's affine map has the
    posterior's mean to .1 deviation rms and its variances to 5 %. From a ratio of .05 on, the widest lost half."""
    q = orthonormal(L * D, L * D, rng)
    c = (q * torch.logspace(2.6, -2, L * D, dtype=torch.float64)) @ q.mT
    gaussian = WindowGaussian(orthonormal(D, D, rng), c, 0.05, (D,), VPCosine())
    g = {"a": torch.randn(2, D, dtype=torch.float64, generator=rng)}
    y = torch.randn(1, L, 2, dtype=torch.float64, generator=rng)
    r = torch.full((2,), 0.09, dtype=torch.float64)
    seen = Observations({"a": Observation(y, Matrix(g["a"] @ gaussian.basis.mT), Diagonal(r))})
    every = torch.kron(torch.eye(L, dtype=torch.float64), gaussian.basis)
    h = torch.kron(torch.eye(L, dtype=torch.float64), g["a"] @ gaussian.basis.mT)
    exact, p = posterior(every @ c @ every.mT, h, torch.kron(torch.eye(L), r.diag()).double(), y.flatten())

    def found(ends):
        sampler = Sampler(16, order=3, time_grid="snr", ends=ends)
        mean, covariance = law(sampler, CovarianceGuidance(gaussian, g)(gaussian, seen), (1, L, D))
        error = (mean.flatten() - exact) / p.diagonal().sqrt()
        return float(error.square().mean().sqrt()), covariance.diagonal() / p.diagonal()

    error, ratio = found(ends_for(gaussian))
    assert error < 0.1 and bool(((ratio - 1).abs() < 0.05).all())
    assert float(found((0.05, 60.0))[1].min()) < 0.9


class Bent(nn.Module):
    """h(x) = x_0 + .02 sin(20 x_1): within .02 of its fit (1, 0), its slope by x_1 up to .4."""

    def forward(self, x):
        return x[..., :1] + 0.02 * torch.sin(20 * x[..., 1:])


def test_the_slope_that_a_fit_leaves_out_does_not_move_what_was_not_seen(rng):
    """The posterior under the fit knows nothing of x_1, of variance 400; the slope of h at the mean pretends to."""
    c = torch.tensor([1.0, 400.0], dtype=torch.float64).diag()
    gaussian = WindowGaussian(torch.eye(2, dtype=torch.float64), c, 0.05, (2,), VPCosine())
    y = torch.full((1, 1, 1), 2.0, dtype=torch.float64)
    seen = Observations({"a": Observation(y, Bent(), Diagonal(torch.full((1,), 0.01, dtype=torch.float64)))})
    x_t = torch.randn(50, 1, 1, 2, dtype=torch.float64, generator=rng)
    time = torch.tensor(0.9, dtype=torch.float64)
    fit = CovarianceGuidance(gaussian, {"a": torch.tensor([[1.0, 0.0]], dtype=torch.float64)})
    prior = gaussian(x_t, time)
    moved = (fit(gaussian, seen)(x_t, time) - prior)[..., 1]
    assert float(moved.abs().max()) < 1e-9
    slope = CovarianceGuidance(gaussian)(gaussian, seen)(x_t, time) - prior
    assert float(slope[..., 1].abs().max()) > 1.0
