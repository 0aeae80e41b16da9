"""Laws of samplers on Gaussians, whose samples have a closed form."""

import pytest
import torch

from slams.core.covariance import Diagonal
from slams.core.settings import build
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.exact.mixture import MixtureDenoiser
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import EnsembleLinear, Rectified, SubVP, VarianceExploding, VPCosine, VPLinear
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


ENDS = (1e-9, 1e9)  # the schedule's own, so that every step of the grid shrinks with their number
VARIANCES = torch.tensor([0.01, 0.03, 0.1, 0.3, 1.0], dtype=torch.float64)
KINDS = {
    "ddim": ({}, 0.9, 1.1),
    "heun": ({"method": "heun"}, 1.9, 2.3),
    "exponential": ({"method": "exponential"}, 1.85, 2.1),
    "two steps": ({"order": 2}, 1.85, 2.1),
    "three steps": ({"order": 3}, 2.8, 4.3),
}
SCHEDULES = [VPCosine(), VPLinear(), SubVP(), VarianceExploding(), Rectified()]


def diagonal(variances, schedule, mean=None):
    mean = torch.zeros_like(variances) if mean is None else mean
    return GaussianDenoiser(mean, Diagonal(variances), schedule)


def flow_error(sampler, schedule):
    """Relative error of deviations against the flow of a Gaussian, s(0) / s(1) with s^2 = alpha^2 v + sigma^2."""
    alpha, sigma = schedule(torch.tensor([1.0, 0.0], dtype=torch.float64))
    s = (alpha**2 * VARIANCES[:, None] + sigma**2).sqrt()
    found = sampler(diagonal(VARIANCES, schedule), torch.ones(1, 5, dtype=torch.float64))[0]
    return found / (sigma[0] * s[:, 1] / s[:, 0]) - 1


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_convergence_to_the_flow_of_a_gaussian(kind, schedule):
    """Slope of the error from 64 to 128 and 256 steps, in five directions. Three steps gain an order over the whole
    way, because the flow begins and ends where the mean no longer changes: their own is 3 (next test)."""
    settings, low, high = KINDS[kind]
    errors = [
        flow_error(Sampler(n, time_grid="snr", ends=ENDS, **settings), schedule).abs() for n in (64, 128, 256)
    ]
    for coarse, fine in zip(errors[:-1], errors[1:], strict=True):
        slope = (coarse / fine).log2()
        assert low < float(slope.median()) < high


def quantile(p, cumulative):
    """The x at which a growing function is p, by bisection to the last digit."""
    low, high = torch.full_like(p, -300.0), torch.full_like(p, 300.0)
    for _ in range(90):
        middle = (low + high) / 2
        below = cumulative(middle) < p
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return (low + high) / 2


@pytest.mark.parametrize(
    ("kind", "low"), [("ddim", 0.9), ("heun", 1.8), ("two steps", 1.8), ("three steps", 2.6)]
)
def test_order_of_convergence_to_the_flow_of_a_mixture(kind, low):
    """A flow on a line keeps quantiles: x_0 = F_0^-1(F_1(x_1)) with the distribution functions of the noisy mixture
    at both ends. From 64 to 256 steps."""
    parts, schedule = [(0.3, -1.0, 0.2), (0.7, 0.8, 0.4)], VPCosine()
    gaussians = [
        diagonal(torch.tensor([s**2]).double(), schedule, torch.tensor([m]).double()) for _, m, s in parts
    ]
    weights = torch.tensor([w for w, _, _ in parts], dtype=torch.float64)
    mixture = MixtureDenoiser(gaussians, weights)

    def cumulative(x, t):
        alpha, sigma = schedule(torch.tensor(t, dtype=torch.float64))
        terms = [
            w * torch.special.ndtr((x - alpha * g.mean) / (alpha**2 * g.values + sigma**2).sqrt())
            for w, g in zip(weights, gaussians, strict=True)
        ]
        return sum(terms)

    noise = torch.linspace(-2, 2, 9, dtype=torch.float64)
    exact = quantile(cumulative(noise, 1.0), lambda x: cumulative(x, 0.0))
    settings = KINDS[kind][0]
    errors = [
        (Sampler(n, time_grid="snr", ends=ENDS, **settings)(mixture, noise[:, None])[:, 0] - exact)
        .abs()
        .mean()
        for n in (64, 256)
    ]
    assert float((errors[0] / errors[1]).log2() / 2) > low


WIDTHS = {
    (24, "time", "ddim"): 0.69,
    (24, "snr", "ddim"): 0.92,
    (24, "snr", "two steps"): 1.05,
    (24, "snr", "three steps"): 1.04,
    (24, "snr", "exponential"): 0.96,
    (64, "time", "ddim"): 0.88,
    (64, "snr", "two steps"): 1.03,
    (256, "time", "ddim"): 0.97,
}


@pytest.mark.parametrize(("evaluations", "grid", "kind"), WIDTHS)
def test_how_much_of_a_narrow_posterior_is_kept(evaluations, grid, kind):
    """Of a deviation of 0.1, at that many evaluations of the denoiser; a record to 1 %."""
    settings = KINDS[kind][0]
    steps = evaluations // 2 if kind == "exponential" else evaluations
    sampler = Sampler(steps, time_grid=grid, **settings)
    assert sampler.evaluations == evaluations
    found = 1 + float(flow_error(sampler, VPCosine())[0])
    assert abs(found - WIDTHS[evaluations, grid, kind]) < 0.01


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_share_of_ancestral_noise_keeps_the_marginals_of_a_point(eta, rng):
    """x = m exactly: whatever eta, x_s has mean alpha_s m and variance sigma_s^2 at every time. 40000 draws at each of
    five inner steps, within 6 standard errors (false alarm 2e-8)."""
    n, m, seen = 40000, torch.tensor([0.7], dtype=torch.float64), []

    class Point(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = VPCosine()

        def forward(self, x_t, t):
            seen.append((t, x_t))
            return m.expand_as(x_t)

    Sampler(6, eta=eta)(Point(), torch.randn(n, 1, dtype=torch.float64, generator=rng), rng=rng)
    for t, x_t in seen[1:]:
        alpha, sigma = VPCosine()(t)
        assert abs(float(x_t.mean() - alpha * 0.7)) < 6 * float(sigma) / n**0.5
        assert abs(float(x_t.var() / sigma**2) - 1) < 6 * (2 / n) ** 0.5


def test_full_ancestral_noise_has_the_variance_of_ddpm(rng):
    """One step from x_t, mean known: beta (1 - abar_s) / (1 - abar_t), beta = 1 - abar_t / abar_s, abar = alpha^2, up
    to eta^2 = 1e-6 in sigma; 40000 draws, 6 standard errors."""
    n, seen = 40000, []

    class Still(Denoiser):
        def __init__(self):
            super().__init__()
            self.schedule = VPCosine()

        def forward(self, x_t, t):
            seen.append((t, x_t))
            return torch.zeros_like(x_t)

    Sampler(5, eta=1.0)(Still(), torch.ones(n, 1, dtype=torch.float64), rng=rng)
    (t, _), (s, x_s) = seen[:2]
    bar_t, bar_s = VPCosine()(t)[0] ** 2, VPCosine()(s)[0] ** 2
    expected = (1 - bar_t / bar_s) * (1 - bar_s) / (1 - bar_t)
    assert abs(float(x_s.var() / expected) - 1) < 6 * (2 / n) ** 0.5 + 1e-4


def test_corrections_have_one_size_for_each_sample_of_any_batch(rng):
    """(*B, N, *S) with batch=2: each sample is corrected as if it were alone, though the others are 100 times larger;
    the noise of a correction is taken out by drawing it for one sample at a time from the same place."""
    gaussian = diagonal(torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64), VPCosine())
    x = torch.randn(2, 4, 3, dtype=torch.float64, generator=rng)
    x[:, 1:] *= 100
    t = torch.tensor(0.4, dtype=torch.float64)
    sampler = Sampler(4, corrections=1, batch=2)
    found = sampler._correct(gaussian, x, t, torch.Generator().manual_seed(1))
    noise = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    alpha, sigma = VPCosine()(t)
    for b in range(2):
        for n in range(4):
            eps = (x[b, n] - alpha * gaussian(x[b, n], t)) / sigma
            delta = 0.5 / eps.square().mean()
            expected = x[b, n] - sigma * (delta * eps + (2 * delta).sqrt() * noise[b, n])
            torch.testing.assert_close(found[b, n], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_of_a_batch_do_not_depend_on_each_other(kind, rng):
    gaussian = diagonal(torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64), VPCosine())
    noise = torch.randn(2, 4, 3, dtype=torch.float64, generator=rng)
    sampler = Sampler(12, time_grid="snr", **KINDS[kind][0])
    alone = torch.stack([torch.stack([sampler(gaussian, row[None])[0] for row in part]) for part in noise])
    torch.testing.assert_close(sampler(gaussian, noise), alone, rtol=0, atol=1e-12)


def test_a_schedule_that_ends_without_noise_ends_in_the_mean(rng):
    """The last mean times alpha_0 = 1, by every method."""
    gaussian = diagonal(torch.tensor([0.5, 1.0], dtype=torch.float64), EnsembleLinear())
    noise = torch.randn(4, 2, dtype=torch.float64, generator=rng)
    for settings, _, _ in KINDS.values():
        for grid in ("time", "snr"):
            assert bool(torch.isfinite(Sampler(8, time_grid=grid, **settings)(gaussian, noise)).all())


@pytest.mark.parametrize("stir", [0.3, 1.0])
def test_stirring_keeps_the_variance_at_any_size(stir, rng):
    """At a noise that hardly falls, draws of white data tend to its variance and the noise's, v + 1; unaveraged noise
    would leave 1 / (1 - d rho / 2) of it, 38 % more at d = 1. 80000 values within 6 standard errors, sqrt(2 / n)."""
    v, n = 0.8, 80000
    one = torch.ones(1, 1, dtype=torch.float64)
    still = VarianceExploding(1.0, 1.0001)
    gaussian = GaussianDenoiser(torch.zeros(1, dtype=torch.float64), Diagonal(v * one[0]), still)
    noise = torch.randn(n, 1, dtype=torch.float64, generator=rng)
    draws = Sampler(80, noise_averaging=stir)(gaussian, noise, rng=rng)
    assert abs(float(draws.var()) / (v + 1) - 1) < 6 * (2 / n) ** 0.5


def test_stirring_forgets_where_draws_started(rng):
    """From noise of half the width, narrow directions (0.02) come out as wide as they are, within 6 standard errors
    and 2 % for the steps; without stirring they keep what they started with."""
    v, n = 0.02**2, 20000
    gaussian = GaussianDenoiser(
        torch.zeros(1, dtype=torch.float64), Diagonal(torch.full((1,), v, dtype=torch.float64)), VPCosine()
    )
    noise = torch.randn(n, 1, dtype=torch.float64, generator=rng) / 2
    grid = {"time_grid": "snr", "ends": (0.4, 300.0)}
    stirred = Sampler(96, noise_averaging=1.0, **grid)(gaussian, noise, rng=rng).var() / v
    plain = Sampler(96, **grid)(gaussian, noise).var() / v
    assert abs(float(stirred) - 1) < 6 * (2 / n) ** 0.5 + 0.02
    assert float(plain) < 0.3


def test_a_stirred_walk_has_the_increments_of_the_prior(rng):
    """64 steps of an even random walk, 0.0187 each, the exact denoiser: the variance of what moves it, from 1000 draws,
    is within 6 standard errors, sqrt(2 / n), and 1 % of what it should be; corrections widen it by more than a tenth."""
    length, step, n = 65, 0.0187, 1000
    keep = (1 - step**2) ** 0.5
    place = torch.arange(length, dtype=torch.float64)
    covariance = keep ** (place[:, None] - place).abs()
    walk = GaussianDenoiser(torch.zeros(length, dtype=torch.float64), covariance, VPCosine())
    noise = torch.randn(n, length, dtype=torch.float64, generator=rng)

    def moved(**settings):
        x = Sampler(64, time_grid="snr", **settings)(walk, noise, rng=rng)
        return float(((x[:, 1:] - keep * x[:, :-1]) / step).square().mean())

    stirred = moved(noise_averaging=1.0, averaging_range=(0.0, 40.0), order=2, ends=(0.05, 300.0))
    assert abs(stirred - 1) < 6 * (2 / (n * (length - 1))) ** 0.5 + 0.01
    assert moved(corrections=4, tau=0.25, ends=(0.02, 400.0)) > 1.1


@pytest.mark.parametrize(
    "settings",
    [
        {"order": 4},
        {"noise_averaging": 1.5},
        {"noise_averaging": 0.5, "eta": 1.0},
        {"method": "rk4"},
        {"ends": (2.0, 1.0)},
        {"tau": -1.0},
        {"batch": 0},
        {"order": 3, "eta": 0.5},
    ],
)
def test_settings_that_are_none_are_refused(settings):
    with pytest.raises(ValueError, match="got|set eta"):
        Sampler(8, **settings)


def test_earlier_names_of_settings_warn_and_mean_the_same():
    with pytest.warns(FutureWarning, match="'time_grid'"):
        old = Sampler(8, grid="snr", stir=0.5, stirred=(0.1, 2.0), stretch=3.0)
    assert old == Sampler(
        8, time_grid="snr", noise_averaging=0.5, averaging_range=(0.1, 2.0), max_step_ratio=3.0
    )
    with pytest.warns(FutureWarning, match="'time_grid'"):
        assert build(Sampler, {"steps": 8, "grid": "snr"}) == Sampler(8, time_grid="snr")
    with pytest.raises(TypeError, match="tiem_grid"):
        Sampler(8, tiem_grid="snr")
