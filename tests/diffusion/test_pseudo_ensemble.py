"""Draws, transfer, renoising and guidance against Gaussians, where all of it is known in closed form."""

import math

import pytest
import torch

from slams.core.random import fork
from slams.diffusion.conditional import Guided, context_of
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.pseudo_ensemble import PseudoEnsemble
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine

MEMORY, SITES = 2, 3
MEAN, SCALE, ERROR = 2.0, 3.0, 0.4  # the error in units of the scale
SITE = torch.arange(SITES, dtype=torch.float64)
PRIOR = torch.exp(-(SITE[:, None] - SITE).abs())  # standardised
VALUES = torch.tensor([[[4.0, math.nan, 1.0], [math.nan, 9.0, 3.0]]], dtype=torch.float64)
SEEN = VALUES.isfinite()


class Normal(Denoiser):
    """N(mu, V) on the last axis, mu (*b, d) and V (*b, d, d)."""

    def __init__(self, mu, covariance):
        super().__init__()
        self.mu, self.covariance, self.schedule = mu, covariance, VPCosine()
        self.asked = 0

    def forward(self, x_t, t):
        self.asked += 1
        alpha, sigma = self.schedule(t)
        noisy = alpha**2 * self.covariance + sigma**2 * torch.eye(self.mu.shape[-1], dtype=x_t.dtype)
        gain = alpha * torch.linalg.solve(noisy, self.covariance)  # symmetric: both are functions of V
        return self.mu + ((x_t - alpha * self.mu)[..., None, :] @ gain)[..., 0, :]


class Family:
    """States of zero mean and covariance PRIOR, of which the newest is seen with ERROR; the older say nothing."""

    def __init__(self, covariance=PRIOR):
        self.covariance, self.schedule = covariance, VPCosine()
        self.members = []

    def given(self, context):
        value, mask = context[..., 0, :], context[..., MEMORY, :]
        after = torch.linalg.inv(torch.linalg.inv(self.covariance) + torch.diag_embed(mask / ERROR**2))
        self.members.append(Normal((after @ (value / ERROR**2)[..., None])[..., 0], after))
        return self.members[-1]


def ensemble(family=None, **settings):
    settings = {"steps": 48, "eta": 0.0} | settings
    return PseudoEnsemble(family or Family(), mean=MEAN, scale=SCALE, memory=MEMORY, **settings)


def posterior(values=VALUES, seen=SEEN):
    context = context_of((values - MEAN) / SCALE, seen, MEMORY)
    belief = Family().given(context)
    return MEAN + SCALE * belief.mu[0], SCALE**2 * belief.covariance[0]


def check_moments(draws, mean, covariance, share=0.01):
    """5 standard errors (false alarm below 1e-5 with all the numbers of a test), and `share` for the finite steps."""
    n, deviation = len(draws), covariance.diagonal().sqrt()
    far = (draws.mean(0) - mean).abs() / deviation
    assert float(far.max()) < 5 / n**0.5 + share
    scaled = (torch.cov(draws.T) - covariance) / (deviation[:, None] * deviation)
    assert float(scaled.abs().max()) < 5 * (2 / n) ** 0.5 + share


def blank(count):
    return torch.zeros(1, count, SITES, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_unguided_draws_are_those_of_the_posterior(eta):
    draws = ensemble(eta=eta).draw(blank(20_000), VALUES, SEEN, rng=fork(0, "draw"))[0]
    check_moments(draws, *posterior(), 0.03)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.5, 3.0])
def test_guided_draws_have_the_moments_of_the_guided_flow(weight):
    """Independent sites; variance s^(2 - 2 w) v^w and the mean by quadrature, in u = tan(angle)."""
    family = Family(torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)))
    draws = ensemble(family, guidance=weight, steps=96).draw(blank(20_000), VALUES, SEEN, rng=fork(1, "draw"))
    s2 = family.covariance.diagonal()
    belief = family.members[0]
    v, mu = belief.covariance[0, 0].diagonal(), belief.mu[0, 0]
    angle = (torch.arange(100_000, dtype=torch.float64)[:, None] + 0.5) / 100_000 * math.pi / 2
    u = angle.tan()
    ratio = (s2 / (s2 + u**2)) ** ((1 - weight) / 2) * (v / (v + u**2)) ** (weight / 2)
    slope = ratio * u / (v + u**2) / angle.cos() ** 2
    mean = mu * weight * slope.mean(0) * math.pi / 2
    variance = s2 ** (1 - weight) * v**weight
    check_moments(draws[0], MEAN + SCALE * mean, SCALE**2 * torch.diag(variance), share=0.02)


def test_guidance_asks_only_whom_it_needs():
    given, free = Normal(torch.ones(1), torch.eye(1)), Normal(torch.zeros(1), torch.eye(1))
    x, t = torch.zeros(2, 1), torch.tensor(0.5)
    for weight, asked in ((0.0, (0, 1)), (1.0, (1, 0)), (2.0, (1, 1))):
        given.asked = free.asked = 0
        guided = Guided(given, free, weight)
        m = guided(x, t)
        assert (given.asked, free.asked) == asked
        assert sum(asked) == guided.evaluations
        torch.testing.assert_close(m, free(x, t) + weight * (given(x, t) - free(x, t)))


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_states_come_back_from_noise_and_faster_with_more_steps(depth):
    """Order 2: half the steps, an error four times as large; at least 2.5 is asked. The grid has no jumps at its ends."""
    belief = Family().given(context_of((VALUES - MEAN) / SCALE, SEEN, MEMORY))
    x = torch.randn(1, 50, SITES, dtype=torch.float64, generator=fork(2, "x"))
    errors = []
    for steps in (32, 64, 128):
        sampler = Sampler(steps, order=2, time_grid="snr", ends=(1e-3, 1e3))
        back = sampler.onward(belief, sampler.invert(belief, x, depth=depth), depth=depth)
        errors.append(float((back - x).square().mean().sqrt()))
    assert errors[-1] < 2e-3
    assert errors[0] > 2.5 * errors[1] > 6 * errors[2]


@pytest.mark.parametrize("depth", [0.5, 1.0])
def test_transfer_without_noise_leaves_states_alone(depth):
    x = MEAN + SCALE * torch.randn(1, 50, SITES, dtype=torch.float64, generator=fork(2, "x"))
    back = ensemble(mode="transfer", depth=depth).draw(x, VALUES, SEEN)
    assert float((back - x).square().mean().sqrt()) < 0.01 * SCALE


def test_inversion_reaches_white_noise():
    """40000 numbers; mean within 5 standard errors, variance within those and 2 %."""
    gaussian = Normal(torch.zeros(SITES, dtype=torch.float64), PRIOR)
    x = torch.randn(20_000, SITES, dtype=torch.float64, generator=fork(3, "x"))
    x = x @ torch.linalg.cholesky(PRIOR).T
    noise = Sampler(64, order=2, time_grid="snr").invert(gaussian, x)
    check_moments(noise, torch.zeros(SITES, dtype=torch.float64), torch.eye(SITES, dtype=torch.float64), 0.02)


def test_transfer_from_the_prior_moves_each_state_to_its_quantile():
    """Independent sites: the flow up is x / s and the flow down mu + sqrt(v) x / s, for every state."""
    family = Family(torch.diag(torch.tensor([0.3, 1.0, 2.0], dtype=torch.float64)))
    pseudo = ensemble(family, mode="transfer", source="free", steps=128)
    z = torch.randn(1, 20, SITES, dtype=torch.float64, generator=fork(4, "z"))
    s = family.covariance.diagonal().sqrt()
    moved = pseudo.draw(MEAN + SCALE * s * z, VALUES, SEEN)
    belief = family.members[0]
    expected = MEAN + SCALE * (belief.mu[0] + belief.covariance[0, 0].diagonal().sqrt() * z)
    torch.testing.assert_close(moved, expected, rtol=0, atol=0.1)  # of quantiles several units apart


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_transfer_with_noise_keeps_the_law(eta):
    mean, covariance = posterior()
    x = mean + torch.randn(1, 20_000, SITES, dtype=torch.float64, generator=fork(5, "x")) @ (
        torch.linalg.cholesky(covariance).T
    )
    cloud = ensemble(mode="transfer", eta=eta).draw(x, VALUES, SEEN, rng=fork(5, "noise"))[0]
    check_moments(cloud, mean, covariance, 0.03)
    moved = float((cloud - x[0]).square().mean().sqrt() / (x[0] - mean).square().mean().sqrt())
    assert 0.1 < moved < 2**0.5 + 0.05  # a cloud around x, at most an independent draw


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("error", [0.5, 2.0])
def test_renoised_states_have_their_closed_form(error, eta):
    """x_t / alpha = x + e w. With K = V (V + e^2)^-1, a draw given it is N(mu + K (x_t / alpha - mu), V - K V); the flow
    without noise leads to mu + sqrt(K) (x_t / alpha - mu)."""
    pseudo = ensemble(mode="renoise", eta=eta)
    pseudo.depth = pseudo.depth_of(error)
    x = torch.tensor([5.0, -1.0, 2.0], dtype=torch.float64)
    draws = pseudo.draw(x.expand(1, 20_000, -1).clone(), VALUES, SEEN, rng=fork(6, "noise"))[0]
    mu, v = posterior()
    gain = v @ torch.linalg.inv(v + error**2 * torch.eye(SITES, dtype=torch.float64))
    told = pseudo.estimate(x.expand(1, 2, -1), VALUES, SEEN)[0, 0]
    torch.testing.assert_close(told, mu + gain @ (x - mu), rtol=0, atol=1e-5)
    rest = v - gain @ v
    if eta == 0:
        values, vectors = torch.linalg.eigh((gain + gain.T) / 2)  # a function of V, so symmetric
        gain, rest = vectors @ values.sqrt().diag() @ vectors.T, torch.zeros_like(rest)
    check_moments(draws, mu + gain @ (x - mu), rest + error**2 * gain @ gain.T, 0.02)


def test_what_was_not_seen_says_nothing():
    pseudo = ensemble(steps=6)
    one = pseudo.draw(blank(4), VALUES, SEEN, rng=fork(7, "noise"))
    other = pseudo.draw(blank(4), torch.where(SEEN, VALUES, -1e9), SEEN, rng=fork(7, "noise"))
    assert bool(one.isfinite().all())
    assert torch.equal(one, other)
    newest = pseudo.draw(blank(4), VALUES[:, :1], SEEN[:, :1], rng=fork(7, "noise"))
    torch.testing.assert_close(newest, one)  # the older time says nothing to this family


def test_without_observations_the_prior_is_drawn_at_any_weight():
    hidden = torch.zeros_like(SEEN)
    draws = [
        ensemble(steps=12, guidance=w).draw(blank(5), VALUES, hidden, rng=fork(8, "noise"))
        for w in (0.0, 1.0, 3.0)
    ]
    torch.testing.assert_close(draws[0], draws[1])
    torch.testing.assert_close(draws[0], draws[2])


def test_batches_are_drawn_each_from_its_own_observations():
    """Two sets of observations at once give what each gives alone from the same noise."""
    values = torch.cat([VALUES, torch.full_like(VALUES, 1.0)])
    seen = torch.cat([SEEN, torch.tensor([[[False, True, False], [True, True, True]]])])
    x = MEAN + torch.randn(2, 6, SITES, dtype=torch.float64, generator=fork(9, "x"))
    pseudo = ensemble(mode="transfer", steps=10, source="free")
    both = pseudo.draw(x, values, seen)
    for k in range(2):
        torch.testing.assert_close(
            both[k : k + 1], pseudo.draw(x[k : k + 1], values[k : k + 1], seen[k : k + 1])
        )


@pytest.mark.parametrize("mode", ["draw", "transfer", "renoise"])
@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("source", ["given", "free"])
def test_evaluations_are_counted(mode, guidance, source):
    family = Family()
    pseudo = ensemble(family, mode=mode, guidance=guidance, source=source, steps=7, eta=0.3)
    pseudo.draw(blank(2), VALUES, SEEN, rng=fork(10, "noise"))
    assert sum(member.asked for member in family.members) == pseudo.evaluations


def test_second_order_with_noise_is_nearer_than_first_with_the_same_steps():
    """Width of a Gaussian 0.1 wide after 12 steps with eta = 0.3, by 40000 draws: standard error 0.4 %. Order 2 without a
    bound on what it carries on magnifies the noise of the last step in the jump to t = 0."""
    narrow = Normal(torch.zeros(1, dtype=torch.float64), 0.01 * torch.eye(1, dtype=torch.float64))
    noise = torch.randn(40_000, 1, dtype=torch.float64, generator=fork(11, "x"))
    wide = {"first": Sampler(12, 0.3, time_grid="snr"), "bounded": ensemble(steps=12, eta=0.3).sampler}
    wide["unbounded"] = Sampler(12, 0.3, order=2, time_grid="snr")
    off = {k: abs(float(one(narrow, noise, rng=fork(11, "w")).std()) / 0.1 - 1) for k, one in wide.items()}
    assert off["bounded"] < 0.035 < 0.08 < min(off["first"], off["unbounded"])


def test_bad_settings_and_shapes_are_named():
    assert PseudoEnsemble(Family(), memory=1, depth=1.0, eta=0.0).memory == 1
    for wrong in (
        {"mode": "other"},
        {"depth": 0.0},
        {"scale": 0.0},
        {"eta": 2.0},
        {"source": "both"},
        {"memory": 0},
    ):
        with pytest.raises(ValueError, match="got"):
            PseudoEnsemble(Family(), **({"memory": MEMORY, "steps": 4} | wrong))
    pseudo = ensemble()
    with pytest.raises(ValueError, match="m' at most 2"):
        pseudo.draw(blank(2), VALUES.repeat(1, 2, 1), SEEN.repeat(1, 2, 1))
    with pytest.raises(ValueError, match="share"):
        pseudo.draw(blank(2), VALUES[0], SEEN[0])
    with pytest.raises(ValueError, match="is not invertible"):
        Sampler(4, eta=1.0).invert(Family().given(context_of(VALUES, SEEN, MEMORY)), blank(2))
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Sampler(4).onward(Family().given(context_of(VALUES, SEEN, MEMORY)), blank(2), depth=1.5)
