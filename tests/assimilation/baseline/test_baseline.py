"""The floor of every table, against closed forms."""

import pytest
import torch

from slams.assimilation.baseline.filters import Climatology, FreeRun, Nudging, OptInterp, Persistence
from slams.core.covariance import Dense
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Identity, Select
from slams.observation.survey import Survey
from slams.systems import LinearGaussian, Lorenz96

DOUBLE = torch.float64


def matrix(size, rng):
    A = torch.randn(size, size, generator=rng, dtype=DOUBLE)
    return A @ A.mT / size + 0.3 * torch.eye(size, dtype=DOUBLE)


def linear(transition, mean=None):
    size = len(transition)
    zero = torch.zeros(size, dtype=DOUBLE)
    return LinearGaussian(
        transition,
        torch.zeros(size, size, dtype=DOUBLE),
        zero if mean is None else mean,
        torch.eye(size, dtype=DOUBLE),
    )


def test_climatology_does_not_depend_on_the_data(rng):
    """Also its innovations are calibrated: the truth is drawn from it (6 standard errors: 1 in 5e8)."""
    system, mean, cov = Lorenz96(6, dtype=DOUBLE), torch.arange(6.0, dtype=DOUBLE), matrix(6, rng)
    truth = mean + torch.randn(200, 8, 6, generator=rng, dtype=DOUBLE) @ torch.linalg.cholesky(cov).mT
    observations = Survey(Identity(1), 0.4).observe(truth, rng=rng)
    posterior = Climatology(system, mean, cov).assimilate(observations, 3, keep="moments", rng=rng)
    torch.testing.assert_close(posterior.mean, mean.expand_as(truth))
    torch.testing.assert_close(posterior.variance, cov.diagonal().expand_as(truth))
    # variance of the mean of 6 correlated squares is at most 2, over 1600 cases
    assert abs(posterior.diagnostics["innovation"].mean() - 1) <= 6 * (2 / 1600) ** 0.5


def test_members_of_climatology_have_its_covariance(rng):
    """40 000 draws, 6 standard errors of each entry: one false alarm in 3e7."""
    mean, cov = torch.arange(4.0, dtype=DOUBLE), matrix(4, rng)
    observations = Observations({"y": Observation(torch.zeros(1, 4, dtype=DOUBLE), Identity(1), Dense(cov))})
    samples = (
        Climatology(Lorenz96(4, dtype=DOUBLE), mean, cov)
        .assimilate(observations, 40_000, rng=rng)
        .samples[:, 0]
    )
    scale = cov.diagonal().sqrt()
    assert ((samples.mean(0) - mean).abs() <= 6 * scale / 200).all()
    assert ((samples.T.cov() - cov).abs() <= 6 * 2**0.5 * scale[:, None] * scale / 200).all()


def test_optimal_interpolation_is_the_explicit_formula(rng):
    """K = B H^T (H B H^T + R)^-1 with what was seen, replicate by replicate; the climate where nothing was."""
    mean, B, R = torch.randn(5, generator=rng, dtype=DOUBLE), matrix(5, rng), matrix(3, rng)
    index = torch.tensor([0, 3, 4])
    value = torch.randn(2, 3, 3, generator=rng, dtype=DOUBLE)
    value[1, 0, 1] = torch.nan
    value[:, 1] = torch.nan
    observations = Observations({"y": Observation(value, Select(index, event=1), Dense(R))})
    posterior = OptInterp(Lorenz96(5, dtype=DOUBLE), mean, B).assimilate(
        observations, 1, keep="moments", rng=rng
    )
    for b in range(2):
        for k in range(3):
            seen = torch.isfinite(value[b, k])
            H, Rs = torch.eye(5, dtype=DOUBLE)[index][seen], R[seen][:, seen]
            K = B @ H.T @ torch.linalg.inv(H @ B @ H.T + Rs)
            expected = mean + K @ (value[b, k][seen] - H @ mean)
            torch.testing.assert_close(posterior.mean[b, k], expected, rtol=0, atol=1e-12)
            variance = (B - K @ H @ B).diagonal()
            torch.testing.assert_close(posterior.variance[b, k], variance, rtol=0, atol=1e-12)


@pytest.mark.parametrize("adjoint", [False, True])
def test_nudging_contracts_the_error_of_what_is_seen(adjoint, rng):
    """Model a I, y = x_truth without error: the error is (a (1 - g))^k where seen, a^k where not."""
    a, g = 1.05, 0.3
    system = linear(a * torch.eye(4, dtype=DOUBLE))
    truth = system.trajectory(torch.randn(3, 4, generator=rng, dtype=DOUBLE), 10)
    seen = torch.tensor([1, 2])
    observations = Observations(
        {"y": Observation(truth[..., seen], Select(seen, event=1), Dense(matrix(2, rng)))}
    )
    x0 = torch.randn(3, 6, 4, generator=rng, dtype=DOUBLE)
    samples = Nudging(system, gain=g, adjoint=adjoint).assimilate(observations, 6, x0=x0, rng=rng).samples
    k = torch.arange(11, dtype=DOUBLE)[:, None]
    factor = a**k * torch.ones(4, dtype=DOUBLE)
    factor[:, seen] *= (1 - g) ** (k + 1)  # the first state is analysed too
    expected = (x0 - truth[:, None, 0])[:, :, None] * factor
    torch.testing.assert_close(samples - truth[:, None], expected, rtol=0, atol=1e-12)


def test_nudging_takes_off_the_same_share_of_any_linear_departure(rng):
    """h(x_a) - y = (1 - g) (h(x_f) - y) for a full matrix h, and for more values than variables in its range."""
    system = linear(torch.eye(4, dtype=DOUBLE))
    for count in (3, 6):
        H = torch.randn(count, 4, generator=rng, dtype=DOUBLE)
        value = torch.randn(4, generator=rng, dtype=DOUBLE) @ H.T
        x = torch.randn(5, 4, generator=rng, dtype=DOUBLE)
        observation = Observation(value, lambda z, H=H: z @ H.T, Dense(torch.eye(count, dtype=DOUBLE)))
        after = Nudging(system, gain=0.25).analyse(x, observation)
        torch.testing.assert_close(value - after @ H.T, 0.75 * (value - x @ H.T), rtol=0, atol=1e-12)


def test_persistence_keeps_the_latest_value_and_else_the_first_guess(rng):
    """The mean is the raw value where one ever came, whatever the model; missing ones change nothing."""
    system = Lorenz96(5, dtype=DOUBLE)
    value = torch.randn(2, 4, 3, generator=rng, dtype=DOUBLE)
    value[0, 1, 0] = value[1, 2, 2] = value[0, 3, 0] = torch.nan
    value[:, 0, 1] = torch.nan
    index = torch.tensor([0, 2, 3])
    observations = Observations({"y": Observation(value, Select(index, event=1), Dense(matrix(3, rng)))})
    x0 = torch.randn(2, 7, 5, generator=rng, dtype=DOUBLE)
    posterior = Persistence(system).assimilate(observations, 7, x0=x0, keep="moments", rng=rng)
    expected = x0.mean(1)[:, None].repeat(1, 4, 1)
    for k in range(4):
        now = expected[:, k - 1].clone() if k else expected[:, 0].clone()
        now[:, index] = torch.where(value[:, k].isfinite(), value[:, k], now[:, index])
        expected[:, k] = now
    torch.testing.assert_close(posterior.mean, expected, rtol=0, atol=1e-12)


def test_persistence_has_the_spread_of_the_error(rng):
    """10 000 members: variance R within 6 standard errors, one false alarm in 5e8."""
    observations = Observations(
        {"y": Observation(torch.zeros(1, 4, dtype=DOUBLE), Identity(1), Dense(matrix(4, rng)))}
    )
    posterior = Persistence(Lorenz96(4, dtype=DOUBLE)).assimilate(
        observations, 10_000, keep="moments", rng=rng
    )
    R = observations["y"].noise.dense().diagonal()
    assert ((posterior.variance[0] / R - 1).abs() <= 6 * (2 / 10_000) ** 0.5).all()


def test_free_run_is_the_trajectory_of_the_model(rng):
    system = Lorenz96(8, dtype=DOUBLE)
    truth = system.trajectory(system.initial(2, rng=rng), 6)
    x0 = system.initial(2, 3, rng=rng)
    posterior = FreeRun(system).assimilate(Survey(Identity(1), 1.0).observe(truth, rng=rng), 3, x0=x0)
    torch.testing.assert_close(posterior.samples, system.trajectory(x0, 6), rtol=0, atol=1e-12)
    assert posterior.diagnostics["innovation"].isfinite().all()


def test_settings_that_cannot_be_are_refused():
    system = Lorenz96(8, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"gain must lie in \(0, 1\], got 1.5"):
        Nudging(system, gain=1.5)
    with pytest.raises(ValueError, match=r"mean has shape \(7,\), but a state is \(8,\)"):
        Climatology(system, torch.zeros(7), torch.eye(8))
