"""A network conditioned on observations: exact where it is idle, right where the closed form is not."""

import pytest
import torch
from torch import nn

from slams.core.covariance import Diagonal
from slams.diffusion.denoiser import NetworkDenoiser, WindowGaussian
from slams.diffusion.exact.window_posterior import WindowPosterior
from slams.diffusion.guidance.conditional import Batch, ConditionalGuidance, training_ratio
from slams.diffusion.guidance.sda import CovarianceGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory_gaussian import TrajectoryDenoiser
from slams.networks.mlp import WindowMLP
from slams.observation.observation import Observation, Observations
from slams.training.fit import FitSettings, fit
from tests.diffusion.gaussian import prior

LENGTH, EVENT, PATTERNS = 3, (5,), 4


class Idle(nn.Module):
    def forward(self, x_t, linear, t, context=None):
        return torch.zeros_like(x_t)


def features(observations: Observations, posterior: WindowPosterior) -> torch.Tensor:
    """Values, masks and the closed form's spread, step by step."""
    parts = [posterior.relative_spread().log()]
    for o in observations.values():
        parts += [o.filled, o.seen.to(o.filled)]
    return torch.cat(parts, -1)


@pytest.fixture
def linear(rng):
    """A Gaussian, the operators of two modalities, and observations of two windows with gaps."""
    gaussian, _ = prior(LENGTH, EVENT, PATTERNS, rng)
    jacobians, made = {}, {}
    for name, size in (("a", 3), ("b", 2)):
        jacobians[name] = torch.randn(size, PATTERNS, dtype=torch.float64, generator=rng)
        value = torch.randn(2, LENGTH, size, dtype=torch.float64, generator=rng)
        value[torch.rand(value.shape, generator=rng) < 0.3] = torch.nan
        operator = nn.Linear(EVENT[0], size, bias=False, dtype=torch.float64)
        with torch.no_grad():
            operator.weight.copy_(jacobians[name] @ gaussian.basis.mT)
        noise = Diagonal(torch.rand(size, dtype=torch.float64, generator=rng) + 0.1)
        made[name] = Observation(value, operator, noise)
    return gaussian, jacobians, Observations(made)


def test_an_idle_network_is_the_gaussian_posterior(linear, rng):
    gaussian, jacobians, observations = linear
    denoiser = NetworkDenoiser(gaussian, Idle())
    found = ConditionalGuidance(jacobians, features)(denoiser, observations)
    wanted = WindowPosterior.given(gaussian, observations, jacobians)
    x_t = torch.randn(6, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(found(x_t, t), wanted(x_t, t))


@torch.no_grad()
def test_what_it_was_not_trained_on_is_added_exactly_once(linear, rng):
    """Known "a" and guidance by "b" on top are the posterior of both, as of one window alone."""
    gaussian, jacobians, observations = linear
    denoiser = NetworkDenoiser(gaussian, Idle())
    others = CovarianceGuidance(gaussian, jacobians)
    guidance = ConditionalGuidance({"a": jacobians["a"]}, features, others=others)
    both = WindowPosterior.given(gaussian, observations, jacobians)
    x_t = torch.randn(6, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    for t in (0.9, 0.4):
        t = torch.tensor(t, dtype=torch.float64)
        wanted = both(x_t, t)
        torch.testing.assert_close(guidance(denoiser, observations)(x_t, t), wanted, rtol=1e-6, atol=1e-8)
        alone = Observations(
            {n: Observation(o.value[0], o.operator, o.noise) for n, o in observations.items()}
        )
        torch.testing.assert_close(
            guidance(denoiser, alone)(x_t[:, 0], t), wanted[:, 0], rtol=1e-6, atol=1e-8
        )


def test_a_modality_that_it_does_not_know_needs_another_guidance(linear):
    gaussian, jacobians, observations = linear
    with pytest.raises(ValueError, match=r"not on \['b'\]"):
        ConditionalGuidance({"a": jacobians["a"]}, features)(NetworkDenoiser(gaussian, Idle()), observations)


def test_weights_of_classifier_free_guidance(linear, rng):
    """0 is the prior, 1 the posterior, and others lie on the line through both."""
    gaussian, jacobians, observations = linear
    denoiser = NetworkDenoiser(gaussian, Idle())
    x_t = torch.randn(3, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.5, dtype=torch.float64)
    free, given, half = (
        ConditionalGuidance(jacobians, features, weight)(denoiser, observations)(x_t, t)
        for weight in (0.0, 1.0, 0.5)
    )
    torch.testing.assert_close(free, gaussian(x_t, t))
    torch.testing.assert_close(half, (free + given) / 2)


def trained(gaussian, jacobian, noise, simulate, *, steps: int, hidden: int, context: int):
    """A conditional network trained on pairs of states and observations, one modality "y"."""
    torch.manual_seed(0)
    denoiser = NetworkDenoiser(
        gaussian, WindowMLP(gaussian.length, gaussian.event, hidden=hidden, blocks=2, context=context)
    )
    jacobians = {"y": jacobian}

    def given(y):
        observations = Observations({"y": Observation(y, lambda x: x, noise)})
        posterior = WindowPosterior.given(gaussian, observations, jacobians)
        return posterior, features(observations, posterior)

    def loss(module, rng):
        x, y = simulate(256, rng)
        ratio = training_ratio(torch.rand(len(x), 1, 1, generator=rng))
        return Batch.of(x, *given(y), ratio, rng).errors(module).mean()

    settings = FitSettings(steps=steps, batch=256, learning_rate=3e-3, every=steps)
    fit(denoiser, loss, _decreasing(), settings, seed=0, name="conditional")
    return denoiser, jacobians


def _decreasing():
    """A validation that always prefers the last weights."""
    count = iter(range(0, -10_000, -1))
    return lambda module: float(next(count))


def simulated(gaussian, jacobian, noise):
    vectors = gaussian.vectors * gaussian.values.sqrt()

    def simulate(count, rng):
        a = torch.randn(count, vectors.shape[1], generator=rng) @ vectors.mT
        x = gaussian.expand(a)
        outside = torch.randn(x.shape, generator=rng) * gaussian.remainder.sqrt()
        x = x + outside - gaussian.expand(gaussian.coefficients(outside))
        a = a.unflatten(-1, (gaussian.length, -1))
        y = a @ jacobian.mT
        y = y + noise.variance.sqrt() * torch.randn(y.shape, generator=rng)
        return x, torch.where(torch.rand(y.shape, generator=rng) < 0.8, y, torch.nan)

    return simulate


@pytest.fixture(scope="module")
def gaussian_case():
    rng = torch.Generator().manual_seed(1)
    whole, _ = prior(3, (2,), 2, rng)
    gaussian = whole.float()
    jacobian = torch.randn(2, 2, generator=rng)
    noise = Diagonal(torch.tensor([0.2, 0.5]))
    simulate = simulated(gaussian, jacobian, noise)
    denoiser, jacobians = trained(
        gaussian, jacobian, noise, simulate, steps=400, hidden=48, context=2 + 2 * 2
    )
    return gaussian, jacobians, noise, simulate, denoiser


SAMPLER = Sampler(48, order=2, time_grid="snr", ends=(0.01, 60.0))


@torch.no_grad()
def test_a_trained_network_leaves_a_gaussian_posterior_right(gaussian_case, rng):
    """The network has learnt (its last layer is not zero), and means and variances stay those of the closed form.

    1500 draws have a standard error of .026 in means and 3.7 % in each variance, of which 12 windows average 72.
    """
    gaussian, jacobians, noise, simulate, denoiser = gaussian_case
    assert float(denoiser.network.last.weight.abs().max()) > 1e-3
    _, y = simulate(12, rng)
    observations = Observations({"y": Observation(y, lambda x: x, noise)})
    guided = ConditionalGuidance(jacobians, features)(denoiser, observations)
    exact = WindowPosterior.given(gaussian, observations, jacobians)
    draws, wanted = (
        SAMPLER(each, torch.randn(1500, 12, 3, 2, generator=rng), rng=rng) for each in (guided, exact)
    )
    std = wanted.std(0)
    assert float(((draws.mean(0) - exact.mean()) / std).square().mean().sqrt()) < 0.1
    assert float((draws.var(0) / std**2).mean()) == pytest.approx(1, abs=0.05)


class Bent:
    """x from two modes, seen as y = x^2 / 3 + x / 4 + noise, which the closed form takes for a straight line."""

    centre, width, error = 1.5, 0.4, 0.3

    def draw(self, count, rng):
        side = torch.where(torch.rand(count, 1, 1, generator=rng) < 0.5, -1.0, 1.0)
        x = self.centre * side + self.width * torch.randn(count, 1, 1, generator=rng)
        return x, self.seen(x) + self.error * torch.randn(x.shape, generator=rng)

    @staticmethod
    def seen(x):
        return x**2 / 3 + x / 4

    def quantiles(self, y, levels):
        """Quantiles and standard deviation of p(x | y) by quadrature."""
        x = torch.linspace(-4, 4, 8001, dtype=torch.float64)
        prior = sum(torch.exp(-0.5 * ((x - m) / self.width) ** 2) for m in (-self.centre, self.centre))
        density = prior * torch.exp(-0.5 * ((y - self.seen(x)) / self.error) ** 2)
        density = density / density.sum()
        mean = (density * x).sum()
        found = x[torch.searchsorted(density.cumsum(0), levels).clamp(max=len(x) - 1)]
        return found, float((density * (x - mean) ** 2).sum().sqrt())


@pytest.fixture(scope="module")
def bent_case():
    bent, rng = Bent(), torch.Generator().manual_seed(2)
    x, y = bent.draw(20_000, rng)
    offset = y.mean()
    slope = float((x * (y - offset)).mean() / (x**2).mean())
    residual = float((y - offset - slope * x).var())
    one = torch.ones(1, 1)
    gaussian = WindowGaussian(one, one * float(x.var()), 1e-3, (1,), VPCosine())

    def simulate(count, rng):
        x, y = bent.draw(count, rng)
        return x, y - offset

    noise = Diagonal(torch.tensor([residual]))
    denoiser, jacobians = trained(gaussian, one * slope, noise, simulate, steps=1000, hidden=48, context=3)
    return bent, offset, noise, denoiser, jacobians


def drawn(bent_case, y, members, rng):
    _, offset, noise, denoiser, jacobians = bent_case
    observations = Observations({"y": Observation(y - offset, lambda x: x, noise)})
    guided = ConditionalGuidance(jacobians, features)(denoiser, observations)
    return SAMPLER(guided, torch.randn(members, len(y), 1, 1, generator=rng), rng=rng)[..., 0, 0]


@torch.no_grad()
def test_two_modes_under_a_bent_sensor(bent_case, rng):
    """Against quadrature, in posterior deviations; the Gaussian posterior is far off."""
    bent = bent_case[0]
    y = torch.tensor([0.2, 0.4, 0.8, 1.2, 1.6]).reshape(-1, 1, 1)
    draws = drawn(bent_case, y, 2000, rng).sort(0).values.double()
    levels = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    for window, value in enumerate(y.flatten().tolist()):
        wanted, std = bent.quantiles(value, levels)
        assert float((draws[:, window] - wanted).abs().mean()) / std < 0.15, value


@torch.no_grad()
def test_the_truth_is_one_of_the_draws(bent_case, rng):
    """Ranks of 200 truths among 19 members: chi-square of 10 bins above 27.9 happens once in 1000 runs."""
    x, y = bent_case[0].draw(200, rng)
    draws = drawn(bent_case, y, 19, rng)
    ranks = (draws < x[:, 0, 0]).sum(0) // 2
    counts = torch.bincount(ranks, minlength=10).double()
    assert float(((counts - 20) ** 2 / 20).sum()) < 27.9


@torch.no_grad()
def test_each_member_has_its_own_bias(linear, rng):
    """With an idle network a member's mean is the posterior of the values without its bias."""
    gaussian, jacobians, observations = linear
    offsets = {"a": torch.randn(4, 3, dtype=torch.float64, generator=rng)}
    guided = ConditionalGuidance(jacobians, features, offsets=offsets)(
        NetworkDenoiser(gaussian, Idle()), observations
    )
    x_t = torch.randn(4, 2, LENGTH, *EVENT, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.5, dtype=torch.float64)
    found = guided(x_t, t)
    for member, offset in enumerate(offsets["a"]):
        o = observations["a"]
        own = Observations({**observations, "a": Observation(o.value - offset, o.operator, o.noise)})
        wanted = WindowPosterior.given(gaussian, own, jacobians)(x_t[member], t)
        torch.testing.assert_close(found[member], wanted, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_each_member_has_its_own_bias_along_a_trajectory(linear, rng):
    gaussian, jacobians, _ = linear
    value = torch.randn(7, 3, dtype=torch.float64, generator=rng)
    noise = Diagonal(torch.full((3,), 0.3, dtype=torch.float64))
    offsets = {"a": torch.randn(4, 3, dtype=torch.float64, generator=rng)}
    prior = TrajectoryDenoiser(NetworkDenoiser(gaussian, Idle()), 7)

    def guided(value, offsets):
        record = Observations({"a": Observation(value, lambda x: x, noise)})
        return ConditionalGuidance({"a": jacobians["a"]}, features, offsets=offsets)(prior, record)

    x_t = torch.randn(4, 7, *EVENT, dtype=torch.float64, generator=rng)
    t = torch.tensor(0.5, dtype=torch.float64)
    found = guided(value, offsets)(x_t, t)
    for member, offset in enumerate(offsets["a"]):
        wanted = guided(value - offset, {})(x_t[member : member + 1], t)[0]
        torch.testing.assert_close(found[member], wanted, rtol=1e-6, atol=1e-8)
