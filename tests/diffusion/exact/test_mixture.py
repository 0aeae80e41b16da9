"""Laws of closed-form denoisers: Gaussians, mixtures, ensembles, and their posteriors."""

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal

from slams.core.covariance import Dense, Diagonal, Isotropic
from slams.diffusion.exact.gaussian import GaussianDenoiser
from slams.diffusion.exact.mixture import EnsembleDenoiser, MixtureDenoiser
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import EnsembleLinear, Rectified, VarianceExploding, VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity
from tests.diffusion.gaussian import denoised, positive, posterior

SCHEDULES = [VPCosine(), VarianceExploding(), Rectified(), EnsembleLinear()]
TIMES = [0.05, 0.5, 0.95]


class Matrix(nn.Module):
    """h(x) = H x over the flattened event."""

    def __init__(self, h, event=1):
        super().__init__()
        self.h, self.event = h, event

    def forward(self, x):
        return x.flatten(-self.event) @ self.h.mT


def randn(*shape, rng):
    return torch.randn(*shape, dtype=torch.float64, generator=rng)


def at(t):
    return torch.tensor(t, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("t", TIMES)
def test_gaussian_equals_the_joint_gaussian(schedule, t, rng):
    """E[x | x_t] by dense algebra, for a full covariance over an event (2, 3) and a diagonal one."""
    mean, x_t = randn(2, 3, rng=rng), randn(5, 4, 2, 3, rng=rng)
    full = positive(6, rng)
    for matrix, covariance in ((full, Dense(full)), (full.diagonal().diag(), Diagonal(full.diagonal()))):
        expected = denoised(matrix, mean.flatten(), x_t.flatten(2), *schedule(at(t)))
        found = GaussianDenoiser(mean, covariance, schedule, event=2)(x_t, at(t))
        torch.testing.assert_close(found.flatten(2), expected, rtol=0, atol=1e-10)
    one = GaussianDenoiser(mean, Isotropic(0.3), schedule, event=2)(x_t, at(t))
    expected = denoised(0.3 * torch.eye(6).double(), mean.flatten(), x_t.flatten(2), *schedule(at(t)))
    torch.testing.assert_close(one.flatten(2), expected, rtol=0, atol=1e-10)


def test_each_row_has_its_own_time_and_batches_their_own_gaussian(rng):
    mean, covariances = randn(3, 1, 4, rng=rng), torch.stack([positive(4, rng) for _ in range(3)])
    x_t, t = randn(3, 5, 4, rng=rng), torch.rand(3, 5, 1, dtype=torch.float64, generator=rng)
    found = GaussianDenoiser(mean, covariances[:, None], VPCosine())(x_t, t)
    ensemble = EnsembleDenoiser(randn(3, 6, 4, rng=rng), VPCosine(), variance=0.1)
    many = ensemble(x_t, t)
    for b in range(3):
        one = EnsembleDenoiser(ensemble.members[b], VPCosine(), variance=0.1)
        for n in range(5):
            expected = denoised(covariances[b], mean[b, 0], x_t[b, n], *VPCosine()(t[b, n]))
            torch.testing.assert_close(found[b, n], expected, rtol=0, atol=1e-10)
            torch.testing.assert_close(many[b, n], one(x_t[b, n : n + 1], t[b, n, 0])[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", TIMES)
def test_the_mean_is_the_score_of_the_marginal(t, rng):
    """Tweedie: alpha m = x_t + sigma^2 grad log p(x_t), p from torch's own densities, for a mixture."""
    means, covariances = randn(3, 4, rng=rng), [positive(4, rng) for _ in range(3)]
    weights = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    parts = [GaussianDenoiser(m, Dense(c), VPCosine()) for m, c in zip(means, covariances, strict=True)]
    mixture = MixtureDenoiser(parts, 2 * weights)
    alpha, sigma = VPCosine()(at(t))
    x_t = randn(7, 4, rng=rng).requires_grad_()
    eye = torch.eye(4, dtype=torch.float64)
    densities = [
        w.log() + MultivariateNormal(alpha * m, alpha**2 * c + sigma**2 * eye).log_prob(x_t)
        for w, m, c in zip(weights, means, covariances, strict=True)
    ]
    log_p = torch.stack(densities).logsumexp(0)
    torch.testing.assert_close(mixture.log_marginal(x_t, at(t)), log_p, rtol=1e-11, atol=1e-10)
    (score,) = torch.autograd.grad(log_p.sum(), x_t)
    expected = (x_t + sigma**2 * score) / alpha
    torch.testing.assert_close(mixture(x_t, at(t)), expected.detach(), rtol=0, atol=1e-9)


def brute(x_t, members, alpha, sigma, variance, weights):
    """E[x | x_t] row by row and member by member."""
    out = torch.empty_like(x_t)
    width = alpha**2 * variance + sigma**2
    for n, row in enumerate(x_t):
        log = torch.stack([-0.5 * (row - alpha * m).square().sum() / width for m in members]) + weights.log()
        share = (log - log.max()).exp()
        kernel = [m + alpha * variance / width * (row - alpha * m) for m in members]
        out[n] = sum(s * k for s, k in zip(share / share.sum(), kernel, strict=True))
    return out


@pytest.mark.parametrize("t", [0.0, 0.02, 0.3, 1.0])
@pytest.mark.parametrize("variance", [0.0, 0.2])
def test_ensemble_equals_brute_force(t, variance, rng):
    members = randn(9, 5, rng=rng)
    weights = torch.rand(9, dtype=torch.float64, generator=rng) + 0.1
    alpha, sigma = VPCosine()(at(t))
    x_t = alpha * members[:6] + sigma * randn(6, 5, rng=rng)
    found = EnsembleDenoiser(members, VPCosine(), variance=variance, weights=weights)(x_t, at(t))
    expected = brute(x_t, members, alpha, sigma, variance, weights)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_ensemble_with_a_kernel_is_the_mixture_of_its_members(rng):
    members = randn(4, 2, 3, rng=rng)
    parts = [GaussianDenoiser(m, Isotropic(0.2), VPCosine(), event=2) for m in members]
    x_t = randn(6, 2, 3, rng=rng)
    found = EnsembleDenoiser(members, VPCosine(), event=2, variance=0.2)(x_t, at(0.4))
    expected = MixtureDenoiser(parts, torch.ones(4, dtype=torch.float64))(x_t, at(0.4))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("t", [0.0, 0.01, 0.3, 1.0])
def test_single_precision_ensemble_equals_double(t, rng):
    """Members 0.01 apart around 30, with sigma down to 0.001: products of norms would lose the difference (of
    900, 1e-4 is the last digit); 1e-3 of the members' separation."""
    members = 30 + 0.01 * randn(20, 8, rng=rng)
    alpha, sigma = VPCosine()(at(t))
    x_t = (alpha * members + sigma * randn(20, 8, rng=rng)).float()
    found = EnsembleDenoiser(members.float(), VPCosine())(x_t, at(t).float()).double()
    expected = EnsembleDenoiser(members.float().double(), VPCosine())(x_t.double(), at(t).float().double())
    assert bool(torch.isfinite(found).all())
    # at t = 0 the float32 time gives sigma = 0.001 exactly; single precision of 30 alone is 2e-6
    torch.testing.assert_close(found, expected, rtol=0, atol=5e-4)


def test_far_from_all_members_the_nearest_wins_without_overflow():
    members = torch.tensor([[0.0], [1.0]])
    found = EnsembleDenoiser(members, VPCosine())(torch.tensor([[1e6], [-1e6]]), torch.tensor(0.01))
    assert found.flatten().tolist() == [1.0, 0.0]


def test_a_subset_of_members_is_drawn_anew_and_all_of_them_change_nothing(rng):
    """With one member a draw, the mean is that member: all of them come up within 200 draws (miss: 7 (6/7)^200)."""
    members, x_t = randn(7, 3, rng=rng), randn(2, 3, rng=rng)
    one = EnsembleDenoiser(members, VPCosine(), batch=1, rng=rng)
    seen = torch.stack([one(x_t, at(0.9))[0] for _ in range(200)])
    assert len(seen.unique(dim=0)) == 7
    whole = EnsembleDenoiser(members, VPCosine(), batch=7, rng=rng)
    assert torch.equal(whole(x_t, at(0.9)), EnsembleDenoiser(members, VPCosine())(x_t, at(0.9)))


@pytest.mark.parametrize("kind", ["gaussian", "ensemble"])
def test_a_draw_does_not_depend_on_the_others(kind, rng):
    prior = {
        "gaussian": GaussianDenoiser(randn(4, rng=rng), Dense(positive(4, rng)), VPCosine()),
        "ensemble": EnsembleDenoiser(randn(6, 4, rng=rng), VPCosine(), variance=0.1),
    }[kind]
    x_t = randn(5, 4, rng=rng)
    alone = torch.cat([prior(x_t[i : i + 1], at(0.3)) for i in range(5)])
    torch.testing.assert_close(prior(x_t, at(0.3)), alone, rtol=0, atol=1e-13)


@pytest.mark.parametrize("members", [False, True])
def test_given_observations_the_gaussian_is_the_posterior(members, rng):
    """Three windows (2, 3) that saw different values with correlated errors, against dense algebra; x_t is
    (N, W, 2, 3), or (W, N, 2, 3) with `members`."""
    prior = GaussianDenoiser(randn(2, 3, rng=rng), Dense(positive(6, rng)), VPCosine(), event=2)
    h, r, y = randn(2, 3, rng=rng), 0.1 * positive(2, rng), randn(3, 2, 2, rng=rng)
    y[1] = y[2, 0, 1] = float("nan")
    after, _ = prior.given(Observations({"a": Observation(y, Matrix(h), Dense(r))}), members=members)
    x_t = randn(5, 3, 2, 3, rng=rng)
    found = after(x_t.movedim(1, 0), at(0.3)).movedim(0, 1) if members else after(x_t, at(0.3))
    eye = torch.eye(2, dtype=torch.float64)
    big, noise, mean = torch.kron(eye, h), torch.kron(eye, r), prior.mean.flatten()
    for w in range(3):
        shift, c = posterior(prior.covariance(), big, noise, y[w].flatten() - big @ mean)
        expected = denoised(c, mean + shift, x_t[:, w].flatten(1), *VPCosine()(at(0.3)))
        torch.testing.assert_close(found[:, w].flatten(1), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_rounding_of_an_exact_observation_is_no_bend(sign):
    """Single precision, a third of each variable seen with an error of 1e-4: rounding is 1e-3 standard errors."""
    prior = GaussianDenoiser(torch.full((3,), 7.0), Isotropic(1.0), VPCosine())
    h, y = torch.tensor([[0.0, 0.0, sign / 3]]), torch.tensor([sign * 2.5])
    after, _ = prior.given(Observation(y, Matrix(h), Isotropic(1e-8)))
    torch.testing.assert_close(after.mean, torch.tensor([7.0, 7.0, 7.5]), rtol=0, atol=1e-4)


def test_a_mixture_given_observations_agrees_with_a_grid(rng):
    """Two modes on a line, y = x + N(0, 0.3): weights, mean and variance of the posterior, and E[x | x_t, y], by
    integration on 40001 points (trapezoid of a smooth density: 1e-9)."""
    means, stds, weights = (-1.0, 1.2), (0.3, 0.5), torch.tensor([0.3, 0.7], dtype=torch.float64)
    parts = [GaussianDenoiser(at([m]), Isotropic(s**2), VPCosine()) for m, s in zip(means, stds, strict=True)]
    y, r = at([[-0.2], [0.4], [float("nan")]]), 0.3
    after, evidence = MixtureDenoiser(parts, weights).given(Observation(y, Identity(), Isotropic(r)))
    x = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    modes = torch.stack(
        [w / s * (-0.5 * ((x - m) / s) ** 2).exp() for w, m, s in zip(weights, means, stds, strict=True)]
    )
    alpha, sigma = VPCosine()(at(0.4))
    x_t = torch.tensor([[-0.7], [0.1], [0.9]], dtype=torch.float64)
    guided = after(x_t, at(0.4))
    for b in range(3):
        like = torch.ones_like(x) if b == 2 else (-0.5 * (y[b] - x) ** 2 / r).exp()
        shares = torch.trapezoid(modes * like, x)
        torch.testing.assert_close(after.log_weights[b].exp(), shares / shares.sum(), rtol=0, atol=1e-8)
        density = (modes * like).sum(0) * (-0.5 * ((x_t[b] - alpha * x) / sigma) ** 2).exp()
        exact = torch.trapezoid(x * density, x) / torch.trapezoid(density, x)
        assert float(guided[b]) == pytest.approx(float(exact), abs=1e-8)
    ratio = torch.trapezoid(modes.sum(0) * (-0.5 * (y[0] - x) ** 2 / r).exp(), x)
    other = torch.trapezoid(modes.sum(0) * (-0.5 * (y[1] - x) ** 2 / r).exp(), x)
    assert float(evidence[0] - evidence[1]) == pytest.approx(float((ratio / other).log()), abs=1e-8)


def test_sampling_a_bimodal_posterior_gives_both_modes_their_weights(rng):
    """20000 draws with the exact posterior denoiser: the share of the left mode within 6 standard errors and 0.5 %
    for 64 steps of order 2 (false alarm 2e-9)."""
    parts = [GaussianDenoiser(at([m]), Isotropic(0.01), VPCosine()) for m in (-1.0, 1.0)]
    prior = MixtureDenoiser(parts, torch.tensor([0.5, 0.5], dtype=torch.float64))
    after, _ = prior.given(Observation(at([0.1]), Identity(), Isotropic(0.3)))
    noise = randn(20000, 1, rng=rng)
    draws = Sampler(64, order=2, time_grid="snr")(after, noise)
    x = torch.linspace(-3, 3, 20001, dtype=torch.float64)
    density = sum((-0.5 * (x - m) ** 2 / 0.01).exp() for m in (-1, 1)) * (-0.5 * (0.1 - x) ** 2 / 0.3).exp()
    left = float(torch.trapezoid(density[x < 0], x[x < 0]) / torch.trapezoid(density, x))
    found = float((draws < 0).double().mean())
    assert abs(found - left) < 6 * (left * (1 - left) / 20000) ** 0.5 + 0.005


def test_what_cannot_be_is_refused(rng):
    ones = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ValueError, match="a covariance of 2 x 2, got"):
        GaussianDenoiser(ones, torch.eye(3), VPCosine())
    with pytest.raises(ValueError, match="one positive weight each"):
        MixtureDenoiser([GaussianDenoiser(ones, Isotropic(1.0), VPCosine())], ones)
    with pytest.raises(ValueError, match="between 1 and 4, got 5"):
        EnsembleDenoiser(torch.zeros(4, 2), VPCosine(), batch=5)
    with pytest.raises(ValueError, match="must not be negative"):
        EnsembleDenoiser(torch.zeros(4, 2), VPCosine(), variance=-1.0)
    prior = GaussianDenoiser(ones, Isotropic(1.0), VPCosine())
    with pytest.raises(ValueError, match="need.* linear operators"):
        prior.given(Observation(ones, torch.atan, Isotropic(0.1)))
