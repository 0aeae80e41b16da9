"""Laws of the ensemble Kalman filters: the exact filter, invariances, and what inflation and rotation may change."""

import math

import pytest
import torch

from slams.assimilation.ensemble.inflation import Inflation, random_rotation, uniform_orthogonal
from slams.assimilation.ensemble.kalman import (
    ETKF,
    DEnKF,
    Departures,
    EnKF,
    gain,
    perturbed_update,
    rotated_root_update,
    square_root_update,
)
from slams.assimilation.memory import Memory
from slams.core.covariance import Dense, Diagonal
from slams.core.random import normal
from slams.observation.observation import Observation
from tests.assimilation.twin import DOUBLE, Linear, Matrix, exact_ensemble, spread

CLOSE = {"rtol": 0.0, "atol": 1e-10}


def draw(rng, *shape):
    return normal(shape, dtype=DOUBLE, rng=rng)


def centred(E):
    return E - E.mean(-2, keepdim=True)


def covariance(E):
    A = centred(E)
    return A.mT @ A / (E.shape[-2] - 1)


@pytest.fixture(params=[(6, 4), (6, 9)], ids=["fewer observations than members", "more"])
def problem(request, rng):
    """Members (2, N, 5), whitened predictions (2, N, O) and innovation (2, O)."""
    size, seen = request.param
    E = draw(rng, 2, size, 5)
    return E, centred(E @ draw(rng, 5, seen)), draw(rng, 2, seen)


def kalman(E, Y, d):
    """Mean and covariance of the textbook update with R = I and sample covariances."""
    size = E.shape[-2]
    A = centred(E)
    K = (A.mT @ Y / (size - 1)) @ torch.linalg.inv(
        Y.mT @ Y / (size - 1) + torch.eye(Y.shape[-1], dtype=DOUBLE)
    )
    mean = E.mean(-2) + (K @ d.unsqueeze(-1)).squeeze(-1)
    return mean, covariance(E) - K @ (Y.mT @ A / (size - 1)), K


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("size", [8, 40])
def test_etkf_from_the_exact_prior_is_the_kalman_filter(rng, size, rotate):
    """Linear and without model noise, no inflation: equal to 1e-10 at every step, values missing here and there."""
    twin = Linear.simulate(rng, d=4, seen=3, length=25, noisy=False)
    exact = twin.system.filter(twin.observations)
    x0 = exact_ensemble(twin.system.start.mean, twin.system.start.cov, size, rng)
    post = ETKF(twin.system, rotate=rotate).assimilate(twin.observations, size, x0=x0, rng=rng)
    torch.testing.assert_close(post.mean, exact.mean, **CLOSE)
    torch.testing.assert_close(covariance(post.samples.movedim(1, 0)), exact.cov, **CLOSE)


def test_square_root_has_the_kalman_mean_and_covariance(problem):
    E, Y, d = problem
    mean, cov, _ = kalman(E, Y, d)
    found = square_root_update(E, Y, d)
    torch.testing.assert_close(found.mean(-2), mean, **CLOSE)
    torch.testing.assert_close(covariance(found), cov, **CLOSE)


def test_square_root_is_symmetric(problem):
    """The transform of the anomalies is the positive root: E_a - m = T A with T = T^T, also if O < N."""
    E, Y, d = problem
    size = E.shape[-2]
    basis = torch.eye(size, dtype=DOUBLE).expand(2, size, size)  # members as unit vectors: T itself comes out
    T = centred(square_root_update(basis, Y, torch.zeros_like(d)))
    torch.testing.assert_close(T, T.mT, **CLOSE)
    C = torch.eye(size, dtype=DOUBLE) + Y @ Y.mT / (size - 1)
    centring = torch.eye(size, dtype=DOUBLE) - 1 / size
    torch.testing.assert_close(T @ T, centring @ torch.linalg.inv(C) @ centring, **CLOSE)


def test_rotated_root_has_the_kalman_mean_and_covariance(problem, rng):
    E, Y, d = problem
    found = rotated_root_update(E, Y, d, uniform_orthogonal(E, rng=rng))
    mean, cov, _ = kalman(E, Y, d)
    torch.testing.assert_close(found.mean(-2), mean, **CLOSE)
    torch.testing.assert_close(covariance(found), cov, **CLOSE)


def test_perturbed_update_moves_each_member_by_the_gain(problem, rng):
    E, Y, d = problem
    noise = draw(rng, *Y.shape)
    _, _, K = kalman(E, Y, d)
    expected = E + (d.unsqueeze(-2) + noise - Y) @ K.mT
    torch.testing.assert_close(perturbed_update(E, Y, d, noise), expected, **CLOSE)


def test_gain_is_the_same_in_ensemble_and_observation_space(rng):
    """Columns of zeros say nothing, but push the solution from one space to the other."""
    E, residual = draw(rng, 6, 5), draw(rng, 6, 4)
    Y = centred(draw(rng, 6, 4))
    padded = [torch.cat([t, torch.zeros(6, 9, dtype=DOUBLE)], -1) for t in (Y, residual)]
    torch.testing.assert_close(gain(E, *padded), gain(E, Y, residual), **CLOSE)


def test_denkf_halves_the_gain_of_the_anomalies(rng):
    twin = Linear.simulate(rng)
    E = draw(rng, 7, 3)
    observation = twin.observations.step(0)
    departures = Departures.of(E, observation)
    mean, _, K = kalman(E, departures.Y, departures.d)
    expected = mean + centred(E) - 0.5 * departures.Y @ K.mT
    found = DEnKF(twin.system).update(E, departures, observation=observation, memory=Memory())
    torch.testing.assert_close(found, expected, **CLOSE)


@pytest.mark.parametrize("kernel", ["perturbed", "square root"])
def test_members_and_observations_have_no_order(problem, rng, kernel):
    """Permuting members, their draws with them, or observations changes one analysis by rounding."""
    E, Y, d = problem
    noise = draw(rng, *Y.shape)

    def update(E, Y, d, noise):
        return perturbed_update(E, Y, d, noise) if kernel == "perturbed" else square_root_update(E, Y, d)

    members, values = torch.randperm(E.shape[-2], generator=rng), torch.randperm(Y.shape[-1], generator=rng)
    found = update(E[:, members], Y[:, members][..., values], d[..., values], noise[:, members][..., values])
    torch.testing.assert_close(found, update(E, Y, d, noise)[:, members], **CLOSE)


@pytest.mark.parametrize("method", [EnKF, ETKF, DEnKF])
def test_units_do_not_matter(rng, method):
    """State in units of 1/1000, each observation in one of its own, R with them."""
    twin = Linear.simulate(rng)
    E, observation = draw(rng, 8, 3), twin.observations.step(0)
    scale = torch.tensor([1e-3, 50.0], dtype=DOUBLE)
    other = Observation(
        observation.value * scale,
        Matrix(scale[:, None] * observation.operator.h / 1000),
        Dense(scale[:, None] * observation.noise.matrix * scale),
    )
    seeds = [torch.Generator().manual_seed(5) for _ in range(2)]
    found = method(twin.system, inflation=1.1).analyse(1000 * E, other, rng=seeds[0])
    expected = method(twin.system, inflation=1.1).analyse(E, observation, rng=seeds[1])
    torch.testing.assert_close(found / 1000, expected, **CLOSE)


@pytest.mark.parametrize("method", [EnKF, ETKF, DEnKF])
def test_missing_value_is_an_observation_less(rng, method):
    E = draw(rng, 8, 3)
    R = spread(3, rng)
    h, y = draw(rng, 3, 3), draw(rng, 3)
    y[1] = torch.nan
    keep = torch.tensor([0, 2])
    whole = Observation(y, Matrix(h), Dense(R))
    part = Observation(y[keep], Matrix(h[keep]), Dense(R[keep][:, keep]))
    filters = method(Linear.simulate(rng).system)
    found, expected = (filters.analyse(E, o, rng=torch.Generator().manual_seed(1)) for o in (whole, part))
    tolerance = {"rtol": 0.0, "atol": 1e-10} if method is not EnKF else None
    if tolerance:
        torch.testing.assert_close(found, expected, **tolerance)
    else:  # its draws differ; its mean does not, for perturbations are centred
        # to the rounding of float32, in which they are drawn
        torch.testing.assert_close(found.mean(0), expected.mean(0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [EnKF, ETKF, DEnKF])
def test_replicates_are_runs_of_their_own(rng, method):
    """Three replicates at once equal three runs, for the methods without draws."""
    twin = Linear.simulate(rng, replicates=(3,), noisy=False)
    x0 = draw(rng, 3, 10, 3)
    together = method(twin.system).assimilate(twin.observations, 10, x0=x0, rng=rng)
    if method is EnKF:
        assert together.samples.shape == (3, 10, 12, 3)
        return
    from dataclasses import replace

    from slams.observation import Observations

    o = twin.observations["y"]
    for b in range(3):
        one = Observations({"y": replace(o, value=o.value[b])})
        alone = method(twin.system).assimilate(one, 10, x0=x0[b], rng=rng)
        torch.testing.assert_close(together.samples[b], alone.samples, **CLOSE)


def test_rotation_keeps_mean_and_covariance(rng):
    E = draw(rng, 4, 9, 5)
    found = random_rotation(E, rng=rng)
    torch.testing.assert_close(found.mean(-2), E.mean(-2), **CLOSE)
    torch.testing.assert_close(covariance(found), covariance(E), **CLOSE)
    assert (found - E).abs().max() > 0.1


def test_rotations_are_uniform(rng):
    """Of a uniform orthogonal matrix of side n, E tr Q = 0, E (tr Q)^2 = 1 and E Q_11^2 = 1/n.

    20 000 draws, five standard errors: a false alarm in 6e5 for each of three numbers.
    """
    count, n = 20_000, 5
    Q = uniform_orthogonal(torch.zeros(count, n + 1, 1, dtype=DOUBLE), rng=rng)
    trace, corner = Q.diagonal(dim1=-2, dim2=-1).sum(-1), Q[:, 0, 0].square()
    for values, expected in ((trace, 0.0), (trace.square(), 1.0), (corner, 1 / n)):
        assert abs(values.mean() - expected) < 5 * values.std() / count**0.5


def test_relaxations_are_their_formulas(rng):
    before, after = draw(rng, 6, 4), 0.3 * draw(rng, 6, 4)
    rtps = Inflation(rtps=0.7).relax(after, before)
    expected = 0.3 * after.std(0) + 0.7 * before.std(0)
    torch.testing.assert_close(rtps.std(0), expected, **CLOSE)
    torch.testing.assert_close(rtps.mean(0), after.mean(0), **CLOSE)
    rtpp = Inflation(1.2, rtpp=0.4).relax(after, before)
    mixed = 0.6 * centred(after) + 0.4 * centred(before)
    torch.testing.assert_close(rtpp, after.mean(0) + 1.2 * mixed, **CLOSE)


def test_estimated_inflation_finds_the_missing_spread(rng):
    """Anomalies half as large as the errors are: the running factor settles at 2.

    Squared factor over 400 analyses of 30 values, averaged over the last 50: its standard error is about 1.3 %;
    10 % is seven of them.
    """
    memory, inflation = Memory(), Inflation(adaptive=True)
    for _ in range(400):
        x = 2 * draw(rng, 41, 30)  # truth and members from one distribution
        Y = 0.5 * centred(x[1:])
        d = x[0] - x[1:].mean(0) + draw(rng, 30)
        factor = inflation.estimate(Y, d, None, memory)
    assert abs(float(factor) - 2) < 0.2


def test_innovations_of_a_calibrated_ensemble_have_unit_ratio(rng):
    """Truth and members from one distribution, 200 members: a bias below 0.01.

    2000 cases of 10 values: standard error 0.01; 0.07 is six of them.
    """
    x = draw(rng, 2000, 201, 10)
    noise = Diagonal(torch.full((10,), 0.25, dtype=DOUBLE))
    value = x[:, 0] + noise.sample(2000, rng=rng)
    observation = Observation(value, torch.nn.Identity(), noise)
    ratio = Departures.of(x[:, 1:], observation).chi2().mean()
    assert abs(ratio - 1) < 0.07


def test_estimated_inflation_is_its_formula_over_what_was_seen(rng):
    """One step of the running mean from 1, by loops over replicates and values; without values the estimate stays."""
    size, horizon = 5, 8
    Y, d = 0.7 * centred(draw(rng, 3, size, 6)), 2 * draw(rng, 3, 6)
    seen = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 0, 1, 0, 1], [0, 0, 0, 0, 0, 0]], dtype=torch.bool)
    memory, expected = Memory(), torch.ones(3, dtype=DOUBLE)
    estimated = Inflation(adaptive=True, horizon=horizon).estimate(
        Y * seen.unsqueeze(-2), d * seen, seen, memory
    )
    for k in range(2):
        values = [j for j in range(6) if seen[k, j]]
        excess = sum(float(d[k, j]) ** 2 - 1 for j in values)
        ratio = excess / sum(float(Y[k, :, j].var()) for j in values)
        assert 0.25 < ratio < 25  # else the clamp is tested
        expected[k] += (ratio - 1) / horizon
    torch.testing.assert_close(estimated, expected.sqrt(), **CLOSE)
    torch.testing.assert_close(memory.carry["inflation"], expected, **CLOSE)
    alone = Memory()
    one = Inflation(adaptive=True, horizon=horizon).estimate(Y[0], d[0], None, alone)
    torch.testing.assert_close(one, estimated[0], **CLOSE)


@pytest.mark.parametrize("ratio, single, limit", [(100.0, 25.0, 9.0), (-0.9, 0.25, 0.81)])
def test_estimated_inflation_is_kept_within_its_limits(ratio, single, limit):
    """A single estimate in [0.25, 25], the factor squared in [0.81, 9]; what is remembered is not cut off."""
    Y = torch.tensor([[-1.0], [1.0]], dtype=DOUBLE)  # variance 2
    d, memory = torch.tensor([(1 + 2 * ratio if ratio > 0 else 0.1) ** 0.5], dtype=DOUBLE), Memory()
    inflation = Inflation(adaptive=True, horizon=4)
    first = inflation.estimate(Y, d, None, memory)
    expected = 1 + (single - 1) / 4
    assert float(first) == pytest.approx(expected**0.5 if expected > 0.81 else 0.9)
    for _ in range(60):
        last = inflation.estimate(Y, d, None, memory)
    assert float(last) == pytest.approx(limit**0.5)
    assert float(memory.carry["inflation"]) == pytest.approx(single, rel=1e-5)


@pytest.mark.parametrize("size", [5, 8])
@pytest.mark.parametrize("error", [0.1, 1.0])
def test_innovations_of_a_small_calibrated_ensemble_have_the_ratio_of_quadrature(rng, size, error):
    """E[d^2 / (1 + (N + 1)/N s^2)], d ~ N(0, R + (N + 1)/N) and (N - 1) s^2 chi-square, by the trapezoid rule.

    60 000 cases of 4 values, half of them missing; 6 standard errors: one false alarm in 5e8.
    """
    x = draw(rng, 60_000, size + 1, 4)
    noise = Diagonal(torch.full((4,), error**2, dtype=DOUBLE))
    value = x[:, 0] + noise.sample(60_000, rng=rng)
    value[:, 2:] = torch.nan
    ratio = Departures.of(x[:, 1:], Observation(value, torch.nn.Identity(), noise)).chi2()
    s, k = torch.linspace(0, 60, 200_001, dtype=DOUBLE)[1:], size - 1  # chi-square of k degrees of freedom
    density = torch.exp((k / 2 - 1) * s.log() - s / 2 - k / 2 * math.log(2) - math.lgamma(k / 2))
    factor = (size + 1) / size
    expected = torch.trapezoid(density * (error**2 + factor) / (error**2 + factor * s / k), s)
    assert abs(ratio.mean() - expected) < 6 * ratio.std() / 60_000**0.5


@pytest.mark.parametrize("settings", [{"inflation": 0.0}, {"rtps": 1.5}, {"rtpp": -0.1}])
def test_inflation_out_of_range_is_refused(settings, rng):
    with pytest.raises(ValueError, match="must"):
        ETKF(Linear.simulate(rng).system, **settings)
