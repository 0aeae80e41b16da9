"""Laws of score-based assimilation: an exact prior gives the exact posterior; wrappers change nothing."""

import pytest
import torch
from torch import nn

from slams.assimilation.baseline.gaussian import ClosedFormGaussian
from slams.assimilation.score.latent import Latent
from slams.assimilation.score.sda import SDA
from slams.core.codec import IdentityCodec
from slams.core.covariance import Dense, Diagonal
from slams.diffusion.denoiser import WindowGaussian
from slams.diffusion.guidance.sda import (
    CovarianceGuidance,
    CovarianceGuided,
    GaussianGuidance,
    pattern_jacobian,
)
from slams.diffusion.precondition import Preconditioned
from slams.diffusion.sampler import Sampler
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from tests.diffusion.gaussian import chain, orthonormal, positive

L, D, K, WINDOWS = 3, 5, 3, 4
REMAINDER = 0.05
NAN = float("nan")


class Matrix(nn.Module):
    """h(x) = H x."""

    def __init__(self, h: torch.Tensor):
        super().__init__()
        self.h = h

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.h.mT


class Problem:
    """A Gaussian prior of windows and two modalities that see its patterns."""

    def __init__(self, rng: torch.Generator):
        self.basis = orthonormal(D, K, rng).float()
        self.gaussian = WindowGaussian(self.basis, positive(L * K, rng).float(), REMAINDER, (D,), VPCosine())
        self.g = {"a": torch.randn(3, K, generator=rng), "b": torch.randn(2, K, generator=rng)}
        noise = {"a": Dense(0.2 * positive(3, rng).float()), "b": Diagonal(torch.tensor([0.3, 0.05]))}
        values = {m: torch.randn(WINDOWS, L, len(g), generator=rng) for m, g in self.g.items()}
        values["a"][1] = values["b"][1, 0, 0] = values["a"][2, 2, 1] = values["b"][2, 1] = NAN
        values["a"][3] = values["b"][3] = NAN
        self.windows = Observations(
            {m: Observation(values[m], Matrix(g @ self.basis.mT), noise[m]) for m, g in self.g.items()}
        )

    def one(self, window: int) -> Observations:
        """Observations of one trajectory, (T, *O)."""
        return Observations(
            {m: Observation(o.value[window], o.operator, o.noise) for m, o in self.windows.items()}
        )

    def sda(self, steps: int = 24, **settings) -> SDA:
        return SDA(self.gaussian, Sampler(order=2, time_grid="snr", steps=steps), **settings)


def test_with_an_exact_prior_draws_have_the_mean_and_the_spread_of_the_closed_form(rng):
    """24 steps of second order: deviations within 6 % of finite steps, means within 2 % of the prior's deviation,
    and 6 standard errors of 20000 draws for both (one false alarm in 1e6)."""
    problem, n = Problem(rng), 20_000
    draws = problem.sda().windows(problem.windows, n, rng=rng)
    assert draws.shape == (n, WINDOWS, L, D)
    outside = REMAINDER * (1 - problem.basis.square().sum(1))
    closed = ClosedFormGaussian(problem.gaussian, problem.basis, outside)
    mean, std = closed.windows(problem.windows, problem.g)
    climate = std[3]  # that window saw nothing
    assert bool(((draws.mean(0) - mean).abs() < 0.02 * climate + 6 * std / n**0.5).all())
    assert bool(((draws.std(0) / std - 1).abs() < 0.06 + 6 / (2 * n) ** 0.5).all())
    assert bool((std[0] < 0.9 * climate).any())  # observations did something


def test_a_trajectory_of_one_window_is_that_window(rng):
    problem = Problem(rng)
    for window in range(WINDOWS):
        seen = problem.one(window)
        whole = problem.sda().assimilate(seen, 7, rng=torch.Generator().manual_seed(window)).samples
        alone = problem.sda().windows(seen.windows(L), 7, rng=torch.Generator().manual_seed(window))
        torch.testing.assert_close(whole, alone[:, 0], rtol=0, atol=1e-6)


def test_a_day_is_told_of_a_trajectory_only_as_far_as_it_correlates(rng):
    """Days of correlation 0.3, the first of nine seen well: its spread falls, that of days 4 to 8, correlated below
    0.01, stays the prior's (1 % for the composition, 6 standard errors of 4000 draws)."""
    problem = Problem(rng)
    covariance = torch.kron(chain(L, 0.3), torch.diag(torch.tensor([2.0, 1.0, 0.5], dtype=torch.float64)))
    problem.gaussian = WindowGaussian(problem.basis, covariance.float(), REMAINDER, (D,), VPCosine())
    value = torch.full((9, K), NAN)
    value[0] = torch.tensor([1.0, -2.0, 0.5])
    problem.g = {"a": torch.eye(K)}
    seen = Observations({"a": Observation(value, Matrix(problem.basis.mT), Diagonal(torch.full((K,), 0.01)))})
    nothing = Observations(
        {"a": Observation(torch.full((9, K), NAN), Matrix(problem.basis.mT), seen["a"].noise)}
    )
    n = 4000
    draws = problem.sda().assimilate(seen, n, rng=rng).samples
    prior = problem.sda().assimilate(nothing, n, rng=rng).samples
    assert draws.shape == (n, 9, D)
    ratio = draws[:, 4:].std(0) / prior[:, 4:].std(0)
    assert bool(((ratio - 1).abs() < 0.01 + 6 / n**0.5).all())
    assert float((draws[:, 0] @ problem.basis).std(0).max()) < 0.12
    expected = value[0] / (1 + 0.01 / torch.tensor([2.0, 1.0, 0.5]))
    torch.testing.assert_close((draws[:, 0] @ problem.basis).mean(0), expected, rtol=0, atol=0.03)


def test_latent_with_identities_is_the_bare_method(rng):
    problem, same = Problem(rng), IdentityCodec()
    wrapped = Latent(problem.sda(), dict.fromkeys(problem.g, same.decode), same.decode)
    found, bare = (
        method.assimilate(problem.one(0), 5, rng=torch.Generator().manual_seed(3)).samples
        for method in (wrapped, problem.sda())
    )
    assert torch.equal(found, bare)


def test_latent_with_linear_decoders_is_the_method_with_composed_operators_decoded(rng):
    """y = H (A z) through the wrapper, or as the operator H A given to the bare method."""
    problem = Problem(rng)
    decoder = torch.randn(D + 2, D, generator=rng)
    decode = Matrix(decoder)
    narrow = Matrix(torch.linalg.pinv(decoder))
    seen = Observations(
        {
            m: Observation(o.value[0], lambda x, h=o.operator: h(narrow(x)), o.noise)
            for m, o in problem.windows.items()
        }
    )
    wrapped = Latent(problem.sda(), dict.fromkeys(problem.g, decode), decode)
    found = wrapped.assimilate(seen, 5, rng=torch.Generator().manual_seed(3)).samples
    bare = problem.sda().assimilate(problem.one(0), 5, rng=torch.Generator().manual_seed(3)).samples
    torch.testing.assert_close(found, decode(bare), rtol=0, atol=1e-3)


def test_sda_guidance_is_the_sampler_with_the_widened_likelihood(rng):
    problem = Problem(rng)
    seen = Observations(
        {
            m: Observation(o.value, o.operator, Diagonal(torch.ones(o.noise.size)))
            for m, o in problem.windows.items()
        }
    )
    method = problem.sda(guidance=GaussianGuidance(0.3))
    found = method.windows(seen, 4, rng=torch.Generator().manual_seed(1))
    noise = torch.randn(4, WINDOWS, L, D, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found, method.sampler(GaussianGuidance(0.3)(problem.gaussian, seen), noise))


@pytest.mark.parametrize("size", [0, -2])
def test_an_ensemble_of_nobody_is_refused(size, rng):
    problem = Problem(rng)
    with pytest.raises(ValueError, match=f"at least one member, got {size}"):
        problem.sda().assimilate(problem.one(0), size)


@pytest.mark.parametrize("count", [2, 7])
def test_operators_are_linearized_at_the_mean_of_the_prior(count, rng):
    """More values than patterns and fewer: forward and backward derivatives of tanh(H V a) at a = 0 are H V."""
    problem = Problem(rng)
    h = torch.randn(count, D, generator=rng)
    seen = Observation(torch.zeros(L, count), lambda x: torch.tanh(x @ h.mT), Diagonal(torch.ones(count)))
    found = pattern_jacobian(seen, problem.gaussian)
    torch.testing.assert_close(found, h @ problem.basis, rtol=0, atol=1e-6)


def test_jacobians_given_by_name_are_taken_and_others_derived(rng):
    """Given and derived ones of linear operators are the same guidance."""
    problem = Problem(rng)
    draws = [
        problem.sda(guidance=CovarianceGuidance(jacobians=given)).windows(problem.windows, 3, rng=1)
        for given in (None, problem.g, {"a": problem.g["a"]})
    ]
    torch.testing.assert_close(draws[0], draws[1], rtol=0, atol=1e-4)
    torch.testing.assert_close(draws[0], draws[2], rtol=0, atol=1e-4)


def test_the_older_forms_warn_and_give_the_same_draws(rng):
    problem = Problem(rng)
    sampler, seen = Sampler(order=2, time_grid="snr", steps=6), problem.one(0)
    new = SDA(problem.gaussian, sampler, guidance=CovarianceGuidance(problem.gaussian, problem.g))
    published = SDA(problem.gaussian, sampler, guidance=GaussianGuidance(0.3))
    uncorrelated = Observations({"b": seen["b"]})
    with pytest.warns(FutureWarning, match="SDA\\(prior, sampler, guidance="):
        old = SDA(problem.gaussian, problem.gaussian, problem.g, sampler)
    with pytest.warns(FutureWarning):
        old_published = SDA(problem.gaussian, problem.gaussian, {}, sampler, guidance="sda", gamma=0.3)
    with pytest.warns(FutureWarning):
        old_default = SDA(problem.gaussian, problem.gaussian, {}, sampler, guidance="sda")
    assert vars(old_default.guidance) == vars(GaussianGuidance(0.01))
    with pytest.warns(FutureWarning, match="settings first"):
        guided = CovarianceGuidance(problem.gaussian, problem.gaussian, problem.windows, problem.g)
    assert torch.equal(old.assimilate(seen, 3, rng=1).samples, new.assimilate(seen, 3, rng=1).samples)
    found, expected = (m.assimilate(uncorrelated, 3, rng=1).samples for m in (old_published, published))
    assert torch.equal(found, expected)
    assert isinstance(guided, CovarianceGuided)
    with pytest.warns(FutureWarning, match="'members'"):
        assert torch.equal(
            new.assimilate(seen, size=3, rng=1).samples, new.assimilate(seen, 3, rng=1).samples
        )


def test_replicates_are_assimilated_each_with_its_own_record(rng):
    """Two records of five steps: the first replicate's draws are those of its record alone."""
    problem = Problem(rng)
    values = torch.randn(2, 5, 2, generator=rng)
    operator, noise = problem.windows["b"].operator, problem.windows["b"].noise
    both = Observations({"b": Observation(values, operator, noise)})
    first = Observations({"b": Observation(values[0], operator, noise)})
    draws = problem.sda(rows=5).assimilate(both, 16, rng=1).samples
    assert draws.shape == (2, 16, 5, D)
    alone = problem.sda().assimilate(first, 16, rng=1).samples
    torch.testing.assert_close(draws[0], alone, rtol=0, atol=1e-5)


def test_a_seed_repeats_the_draws_and_is_kept(rng):
    problem, before = Problem(rng), torch.get_rng_state()
    fresh = problem.sda(4).assimilate(problem.one(0), 2)
    assert torch.equal(fresh.samples, problem.sda(4).assimilate(problem.one(0), 2, rng=fresh.seed).samples)
    assert torch.equal(before, torch.get_rng_state())


def test_what_is_no_prior_sampler_guidance_or_observation_is_named_with_the_remedy(rng):
    problem, sampler = Problem(rng), Sampler(4)
    with pytest.raises(TypeError, match="Preconditioned"):
        SDA(nn.Linear(2, 2), sampler)
    with pytest.raises(TypeError, match=r"the class Sampler; pass an object, Sampler\(…\)"):
        SDA(problem.gaussian, Sampler)
    with pytest.raises(TypeError, match="the class GaussianGuidance"):
        SDA(problem.gaussian, sampler, guidance=GaussianGuidance)
    with pytest.raises(TypeError, match="the guidance is 'sda'"):
        SDA(problem.gaussian, sampler, guidance="sda")
    with pytest.raises(TypeError, match="no setting 'gama'"):
        SDA(problem.gaussian, sampler, gama=0.1)
    with pytest.raises(TypeError, match="Survey"):
        SDA(problem.gaussian, sampler).assimilate(torch.zeros(3, 2), 4)
    plain = Preconditioned(nn.Identity(), VPCosine())
    with pytest.raises(TypeError, match="no covariance in closed form"):
        SDA(plain, sampler, event=(D,)).assimilate(problem.one(0), 2)
    with pytest.raises(ValueError, match="pass event="):
        SDA(plain, sampler)
