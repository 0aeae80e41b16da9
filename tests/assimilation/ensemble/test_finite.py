"""The finite-size filter: the minimum of its cost, its limits, its symmetries."""

import math

import pytest
import torch

from slams.assimilation.ensemble.finite import EnKFN, dual_inflation, finite_size_update
from slams.assimilation.ensemble.kalman import ETKF, square_root_update
from slams.core.covariance import Diagonal
from slams.core.random import normal
from slams.observation.observation import Observation
from slams.observation.operators import Select
from slams.systems import Lorenz96


def constants(s, size, prior_factor, nullity):
    """eps and L of the paper, with the correction of the mode, from all N eigenvalues."""
    c = size - 1
    full = torch.cat([s, s.new_zeros(*s.shape[:-1], size - s.shape[-1])], -1)
    k = (c / (c + full)).mean(-1)
    eps, weight = (size + 1) / size, (size + nullity) / c
    factor = (eps / weight) ** (k / 2)
    return prior_factor * eps / factor, prior_factor * weight * factor


def departures(rng, members, seen, batch=(20,), innovation=1.0):
    """Anomalies of a spread around 1, and innovations of a given size."""
    Y = normal((*batch, members, seen), dtype=torch.float64, rng=rng)
    return Y - Y.mean(-2, keepdim=True), innovation * normal((*batch, seen), dtype=torch.float64, rng=rng)


@pytest.mark.parametrize("innovation", [0.3, 1.0, 3.0, 10.0])
@pytest.mark.parametrize("prior_factor, nullity", [(1.0, 0), (2.0, 1), (0.5, 4)])
def test_inflation_is_the_lowest_point_of_the_dual_cost(innovation, prior_factor, nullity, rng):
    """None of 4000 values of u from 0.01 to 1e4 is better, whatever the spectrum."""
    s = normal((50, 8), dtype=torch.float64, rng=rng).mul(3).exp()
    d = innovation * normal((50, 8), dtype=torch.float64, rng=rng) * (1 + s / 11).sqrt()
    eps, weight = constants(s, 12, prior_factor, nullity)

    def cost(u):
        data = (d.square()[:, None] / (11 + u[..., None] * s[:, None])).sum(-1)
        return data + eps[:, None] / u + weight[:, None] * u.log()

    found = dual_inflation(s, d * s.sqrt(), 12, prior_factor=prior_factor, nullity=nullity)
    tried = torch.logspace(-2, 4, 4000, dtype=torch.float64).expand(50, -1)
    best = cost(tried).amin(-1)
    assert (cost(found[:, None])[:, 0] <= best + 1e-12 * best.abs()).all()


@pytest.mark.parametrize("seen", [4, 9, 15])
def test_mean_is_a_stationary_point_of_the_primal_cost(seen, rng):
    """Weights w of the mean: grad of |d - w Y|^2 + (N - 1) L log(eps + |w|^2) vanishes, and u = (eps + |w|^2) / L.

    With the identity for ensemble the analysis mean is the weights: nothing of the dual form enters.
    """
    members = 9
    Y, d = departures(rng, members, seen, innovation=2.0)
    E = torch.eye(members).double().expand(20, -1, -1)
    s = torch.linalg.eigvalsh(Y.mT @ Y).flip(-1)[..., : min(members, seen)].clamp(min=0)
    eps, weight = constants(s, members, 1.0, 0)
    w = (finite_size_update(E, Y, d).mean(-2) - 1 / members).requires_grad_()
    residual = d - (w.unsqueeze(-2) @ Y).squeeze(-2)
    cost = residual.square().sum(-1) + (members - 1) * weight * (eps + w.square().sum(-1)).log()
    (slope,) = torch.autograd.grad(cost.sum(), w)
    assert slope.abs().max() < 1e-9 * (Y @ d.unsqueeze(-1)).abs().max()


@pytest.mark.parametrize("seen", [4, 30])
def test_analysis_is_that_of_the_etkf_with_the_prior_inflated(seen, rng):
    """In observation space and in the space of the members."""
    members = 10
    Y, d = departures(rng, members, seen, innovation=2.0)
    E = normal((20, members, 12), dtype=torch.float64, rng=rng)
    s = torch.linalg.svdvals(Y).square()
    _, _, V = torch.linalg.svd(Y, full_matrices=False)
    p = (V @ d.unsqueeze(-1)).squeeze(-1) * s.sqrt()
    factor = dual_inflation(s, p, members).sqrt()[:, None, None]
    assert factor.std() > 0.1  # or the replicates would not tell
    mean = E.mean(-2, keepdim=True)
    expected = square_root_update(mean + factor * (E - mean), factor * Y, d)
    torch.testing.assert_close(finite_size_update(E, Y, d), expected, rtol=0, atol=1e-10)


def test_a_certain_prior_keeps_its_mode_and_no_information_no_inflation(rng):
    """u -> (eps / L)^(1 - k): for a factor of 1e9, and for observations that say nothing, where k = 1."""
    Y, d = departures(rng, 8, 5)
    s = torch.linalg.svdvals(Y).square()
    eps, weight = constants(s, 8, 1.0, 0)
    u = dual_inflation(s, d * s.sqrt(), 8, prior_factor=1e9)
    torch.testing.assert_close(u, eps / weight, rtol=1e-7, atol=0)
    E = normal((20, 8, 6), dtype=torch.float64, rng=rng)
    torch.testing.assert_close(finite_size_update(E, 0 * Y, d), E, rtol=0, atol=1e-12)


def test_large_innovations_inflate_and_are_believed(rng):
    """A surprise of 30 spreads: the ETKF stays with its ensemble, the finite-size mean goes to the data."""
    Y, d = departures(rng, 10, 3)
    Y, d = 0.1 * Y, 30 * d.sign()
    left = d - finite_size_update(Y, Y, d).mean(-2)
    assert (left.abs().amax(-1) < 1).all()
    assert ((d - square_root_update(Y, Y, d).mean(-2)).abs().amax(-1) > 20).all()


def test_an_ensemble_that_has_collapsed_gives_finite_numbers(rng):
    """Spread of rounding size, twins, or none at all."""
    Y, d = departures(rng, 6, 4)
    for scale in (0.0, 1e-160, 1e-15):
        E = 1 + scale * Y
        assert torch.isfinite(finite_size_update(E, scale * Y, d)).all()
    assert torch.isfinite(finite_size_update(1 + 0 * Y.float(), 1e-7 * Y.float(), d.float())).all()


def test_finite_size_filter_converges_to_kalman(rng):
    """RMS error of mean and covariance over 64 replicates falls as N^-1/2 and ends below 3 % of the posterior.

    The fitted slope has a standard error of about 0.02 (64 replicates of 6 numbers at 4 sizes), so that
    0.1 is 5 of them: fewer than one false alarm in 1e6 seeds.
    """
    root = torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.2, 0.0], [-0.3, 0.4, 0.8]]).double()
    P, R, y = root @ root.mT, torch.diag(torch.tensor([0.5, 1.0, 2.0])).double(), torch.tensor([1.0, -1, 2])
    gain = P @ torch.linalg.inv(P + R)
    mean, cov = gain @ y.double(), P - gain @ P
    observation = Observation(y.double().expand(64, 3), Select(torch.arange(3), 1), Diagonal(R.diagonal()))
    sizes, errors = [64, 256, 2048, 16384], []
    for size in sizes:
        E = normal((64, size, 3), dtype=torch.float64, rng=rng) @ root.mT
        E = EnKFN(Lorenz96(4)).analyse(E, observation)
        A = E - E.mean(-2, keepdim=True)
        shift = (E.mean(-2) - mean).square().mean(0) / cov.diagonal()
        spread = (A.mT @ A / (size - 1) - cov).square().mean(0) / cov.diagonal().outer(cov.diagonal())
        errors.append((math.sqrt(shift.mean()), math.sqrt(spread.mean())))
    x = torch.tensor(sizes).double().log()
    for values in zip(*errors, strict=True):
        v = torch.tensor(values).double().log()
        slope = ((x - x.mean()) * (v - v.mean())).sum() / (x - x.mean()).square().sum()
        assert abs(float(slope) + 0.5) < 0.1
        assert values[-1] < 0.03


def case(rng):
    """An ensemble of 7 on 12 sites, every second one observed."""
    index = torch.arange(0, 12, 2)
    E = 2 + normal((3, 7, 12), dtype=torch.float64, rng=rng).cumsum(-1) / 2
    y = 2 + 2 * normal((3, 6), dtype=torch.float64, rng=rng)
    return E, Observation(y, Select(index, 1), Diagonal(torch.linspace(0.5, 2.0, 6).double()))


def test_members_observations_and_units_have_no_order_or_scale(rng):
    """Permute members, permute observations, measure in thousandths: the same analysis."""
    E, o = case(rng)
    method = EnKFN(Lorenz96(12), inflation=1.02)
    expected = method.analyse(E, o)
    order = torch.randperm(7, generator=rng)
    torch.testing.assert_close(method.analyse(E[:, order], o), expected[:, order], rtol=0, atol=1e-11)
    order = torch.randperm(6, generator=rng)
    turned = Observation(o.value[:, order], Select(2 * order, 1), o.noise.select(order))
    torch.testing.assert_close(method.analyse(E, turned), expected, rtol=0, atol=1e-11)
    scaled = Observation(1e3 * o.value, o.operator, o.noise.scaled(1e6))
    torch.testing.assert_close(method.analyse(1e3 * E, scaled), 1e3 * expected, rtol=1e-10, atol=0)


def test_a_missing_value_is_an_observation_less(rng):
    """NaN here, a smaller network there; the one works among the members, the other may among the observations."""
    E, o = case(rng)
    kept = torch.tensor([0, 2, 3])
    hidden = torch.full_like(o.value, torch.nan).index_copy_(-1, kept, o.value[:, kept])
    fewer = Observation(o.value[:, kept], Select(2 * kept, 1), o.noise.select(kept))
    method = EnKFN(Lorenz96(12))
    torch.testing.assert_close(
        method.analyse(E, Observation(hidden, o.operator, o.noise)),
        method.analyse(E, fewer),
        rtol=0,
        atol=1e-11,
    )


def test_replicates_have_their_own_inflation(rng):
    """One of (3) alone gives what it gives among the others; single precision stays single."""
    E, o = case(rng)
    method = EnKFN(Lorenz96(12), prior_factor=2.0)
    together = method.analyse(E, o)
    alone = method.analyse(E[1], Observation(o.value[1], o.operator, o.noise))
    torch.testing.assert_close(together[1], alone, rtol=0, atol=1e-11)
    low = Observation(o.value.float(), o.operator, o.noise.to(o.value.float()))
    torch.testing.assert_close(method.analyse(E.float(), low), together.float(), rtol=0, atol=1e-3)


def test_it_stands_between_the_etkf_and_itself(rng):
    """With a certain prior the analysis is the ETKF's up to the prior's mode, which is 1 for large N."""
    E, o = case(rng)
    E = E.repeat(1, 300, 1) + 0.1 * normal((3, 2100, 12), dtype=torch.float64, rng=rng)
    expected = ETKF(Lorenz96(12)).analyse(E, o)
    actual = EnKFN(Lorenz96(12), prior_factor=1e6).analyse(E, o)
    torch.testing.assert_close(actual, expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("setting", [{"prior_factor": 0.0}, {"nullity": -1}])
def test_bad_settings_are_refused(setting):
    """Named, with what came."""
    with pytest.raises(ValueError, match="prior_factor"):
        EnKFN(Lorenz96(12), **setting)
