"""Laws of score-based assimilation of whole trajectories: exact where prior and guidance are."""

import pytest
import torch

from slams.assimilation.score.sda import SDA
from slams.core.covariance import Diagonal, Isotropic
from slams.diffusion.denoiser import Denoiser, WindowGaussian
from slams.diffusion.guidance.moment_matching import MomentMatching
from slams.diffusion.guidance.sda import GaussianGuidance
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.diffusion.trajectory import MarkovBlanket
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from tests.diffusion.gaussian import positive

L, D, R = 4, 2, 3
SAMPLER = Sampler(steps=48, order=2, time_grid="snr", ends=(0.01, 300.0))


class Difference(torch.nn.Module):
    """h(x) = x_0 - x_1 of each step."""

    def forward(self, x):
        return x[..., :1] - x[..., 1:]


@pytest.fixture
def case():
    """A Gaussian trajectory seen by two modalities, three replicates with other values and gaps."""
    rng = torch.Generator().manual_seed(0)
    covariance = positive(L * D, rng).double()
    prior = WindowGaussian(torch.eye(D, dtype=torch.float64), covariance, 1e-6, (D,), VPCosine())
    first, second = (torch.randn(R, L, 1, generator=rng, dtype=torch.float64) for _ in range(2))
    first[0, 1], first[2, 3], second[1, :3] = torch.nan, torch.nan, torch.nan
    observations = Observations(
        {
            "a": Observation(
                first, Select(torch.tensor([0]), event=1), Diagonal(torch.tensor([0.04]).double())
            ),
            "b": Observation(second, Difference(), Diagonal(torch.tensor([0.3]).double())),
        }
    )
    return prior, covariance, observations


def exact(covariance, observations, replicate):
    """Posterior mean and covariance of one replicate."""
    eye = torch.eye(L * D, dtype=torch.float64).reshape(L, D, L * D)
    rows, values, variances = [], [], []
    for o, h in ((observations["a"], eye[:, 0]), (observations["b"], eye[:, 0] - eye[:, 1])):
        seen = torch.isfinite(o.value[replicate, :, 0])
        rows.append(h[seen])
        values.append(o.value[replicate, seen, 0])
        variances.append(o.noise.variance.expand(int(seen.sum())))
    H, y, r = torch.cat(rows), torch.cat(values), torch.cat(variances)
    gain = covariance @ H.mT @ torch.linalg.inv(H @ covariance @ H.mT + torch.diag(r))
    return gain @ y, covariance - gain @ H @ covariance


def test_exact_guidance_of_an_exact_prior_draws_the_posterior_of_each_replicate(case):
    """Means within 5 standard errors and 3 % of a standard deviation, covariances within 5 standard errors and 4 %:
    a false alarm in 1e6 for each of 3 x 44 numbers."""
    prior, covariance, observations = case
    guidance = MomentMatching(iterations=12, tolerance=1e-10)
    method = SDA(prior, SAMPLER, event=(D,), guidance=guidance, dtype=torch.float64)
    count = 4000
    samples = method.assimilate(observations, count, rng=torch.Generator().manual_seed(1)).samples
    assert samples.shape == (R, count, L, D)
    for replicate in range(R):
        mean, spread = exact(covariance, observations, replicate)
        std = spread.diagonal().sqrt()
        x = samples[replicate].flatten(1)
        assert ((x.mean(0) - mean) / std).abs().max() < 5 / count**0.5 + 0.03
        scaled = (torch.cov(x.mT) - spread) / (std[:, None] * std)
        assert scaled.abs().max() < 5 * (2 / count) ** 0.5 + 0.04


def test_rows_bound_the_memory_and_change_nothing(case):
    """A sampler without fresh noise: draws depend on the first noise alone."""
    prior, _, observations = case
    draws = []
    for rows in (None, 5):
        method = SDA(prior, SAMPLER, event=(D,), guidance=MomentMatching(), dtype=torch.float64, rows=rows)
        draws.append(method.assimilate(observations, 4, rng=torch.Generator().manual_seed(1)).samples)
    torch.testing.assert_close(draws[0], draws[1])


def test_without_replicates_it_is_the_same(case):
    prior, _, observations = case
    one = Observations(
        {m: Observation(o.value[0], o.operator, o.noise, o.event) for m, o in observations.items()}
    )
    method = SDA(prior, SAMPLER, guidance=GaussianGuidance())
    alone = method.assimilate(one, 6, rng=torch.Generator().manual_seed(1)).samples
    among = method.assimilate(observations, 6, rng=torch.Generator().manual_seed(1)).samples
    torch.testing.assert_close(alone, among[0])


def test_the_prior_is_drawn_without_observations(case):
    """Variances of 4000 draws within 5 standard errors and 3 %."""
    prior, covariance, _ = case
    method = SDA(prior, SAMPLER, guidance=GaussianGuidance())
    x = method.prior(4000, L, rng=torch.Generator().manual_seed(1)).flatten(1)
    ratio = x.var(0) / covariance.diagonal()
    assert (ratio - 1).abs().max() < 5 * (2 / 4000) ** 0.5 + 0.03


def test_empty_ensembles_are_told(case):
    prior, _, observations = case
    with pytest.raises(ValueError, match="at least one"):
        SDA(prior, SAMPLER, event=(D,)).assimilate(observations, 0)
    with pytest.raises(ValueError, match="rows"):
        SDA(prior, SAMPLER, event=(D,), rows=0)


def test_lengths_and_channels_that_the_prior_does_not_know_are_told(case):
    """More steps than the windows have, fewer than a composed prior needs, other channels, an operator of others."""
    prior, _, observations = case
    method = SDA(prior, SAMPLER, guidance=GaussianGuidance())
    longer = Observations(
        {"a": Observation(torch.zeros(9, 1).double(), observations["a"].operator, observations["a"].noise)}
    )
    with pytest.raises(ValueError, match="9 steps, but the denoiser is one of windows of 4; compose"):
        method.assimilate(longer, 2)
    window = WindowGaussian(
        torch.eye(D).double(), positive(11 * D, torch.Generator()), 1e-6, (D,), VPCosine()
    )
    with pytest.raises(ValueError, match="9 steps, but the denoiser is one of windows of 11; pad"):
        SDA(MarkovBlanket(window, 11), SAMPLER, event=(D,)).assimilate(longer, 2)
    with pytest.raises(ValueError, match=r"windows \(4, 2\).*got samples of shape \(6, 4, 3\)"):
        SDA(prior, SAMPLER, event=(3,), guidance=GaussianGuidance()).assimilate(observations, 2)
    wide = Observation(
        torch.zeros(L, 3).double(), observations["b"].operator, Diagonal(torch.ones(3).double())
    )
    with pytest.raises(ValueError, match=r"values of shape \(1,\), but \(3,\) were observed"):
        method.assimilate(Observations({"b": wide}), 2)


@pytest.mark.parametrize("variance", [0.0, -1.0, float("nan")])
def test_noise_that_is_none_is_refused(variance):
    with pytest.raises(ValueError, match="noise variances must be positive and finite"):
        Isotropic(variance)


class Broken(Denoiser):
    """NaN in one value of one sample from diffusion time 0.5 on."""

    def __init__(self, prior):
        super().__init__()
        self.prior, self.schedule = prior, prior.schedule

    def forward(self, x_t, t):
        mean = self.prior(x_t, t)
        if float(t) <= 0.5:
            mean = mean.clone()
            mean[1, 2, 0] = torch.nan
        return mean


@pytest.mark.parametrize("guidance", [GaussianGuidance(), MomentMatching()])
def test_a_sample_that_is_not_finite_stops_the_run_at_its_step_and_names_the_norm(case, guidance):
    """Times 1, 0.75, 0.5, 0.25: the third is the first that breaks."""
    prior, _, observations = case
    method = SDA(Broken(prior), Sampler(4), event=(D,), guidance=guidance, dtype=torch.float64)
    message = (
        r"in step 3 of 4: the guided mean is not finite at diffusion time 0.500 \(largest norm .* [0-9.]+"
    )
    with pytest.raises(FloatingPointError, match=message):
        method.assimilate(observations, 2, rng=torch.Generator().manual_seed(1))
    with pytest.raises(FloatingPointError, match="not finite after step 3 of 4"):
        method.prior(3, L, rng=torch.Generator().manual_seed(1))
