"""EKF: the exact Kalman filter on linear models, its convention of inflation on all."""

import pytest
import torch

from slams.assimilation.memory import Memory
from slams.assimilation.variational.extended import EKF
from slams.core.covariance import Dense
from slams.observation.operators import Select
from slams.observation.survey import Survey
from slams.systems import LinearGaussian, Lorenz63, Lorenz96

DOUBLE = torch.float64


def spd(size, rng, scale=1.0):
    A = torch.randn(size, size, generator=rng, dtype=DOUBLE)
    return scale * (A @ A.mT / size + 0.3 * torch.eye(size, dtype=DOUBLE))


@pytest.fixture
def linear(rng):
    """A stable system of 4 variables, with noise."""
    transition = torch.randn(4, 4, generator=rng, dtype=DOUBLE)
    transition = 0.95 * transition / torch.linalg.eigvals(transition).abs().max()
    mean = torch.randn(4, generator=rng, dtype=DOUBLE)
    return LinearGaussian(transition, spd(4, rng, 0.2), mean, spd(4, rng))


def test_on_a_linear_model_it_is_the_kalman_filter(linear, rng):
    """Correlated errors of 3 values, a third missing, 5 replicates: the same means and variances as the oracle."""
    truth = linear.trajectory(linear.initial(5, rng=rng), 30, rng=rng)
    survey = Survey(Select(torch.tensor([0, 2, 3]), event=1), Dense(spd(3, rng)), missing=0.3)
    observations = survey.observe(truth, rng=rng)
    exact = linear.filter(observations)
    x0 = linear.start.mean.expand(5, 1, 4)
    posterior = EKF(linear).assimilate(observations, 1, x0=x0, keep="moments")
    torch.testing.assert_close(posterior.mean, exact.mean, rtol=0, atol=1e-10)
    variance = exact.cov.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(posterior.variance, variance, rtol=0, atol=1e-10)


def test_draws_have_the_covariance_it_carries(linear, rng):
    """20 000 draws: each entry within 6 standard errors, one false alarm in 5e7."""
    truth = linear.trajectory(linear.initial(rng=rng), 3, rng=rng)
    observations = Survey(Select(torch.tensor([0, 1]), event=1), 0.5).observe(truth, rng=rng)
    x0 = linear.start.mean.expand(20_000, 4)
    samples = EKF(linear).assimilate(observations, 20_000, x0=x0, rng=rng).samples[:, -1]
    P = linear.filter(observations).cov[-1]
    deviation = samples.T.cov() - P
    scale = P.diagonal().sqrt()
    assert (deviation.abs() <= 6 * (scale[:, None] * scale * 2**0.5) / 20_000**0.5).all()


@pytest.mark.parametrize("substeps", [1, 5])
def test_inflation_is_a_factor_on_the_covariance_per_unit_of_time(substeps, rng):
    """M P M^T scaled by infl^dt, M by central differences of the model (error 1e-8)."""
    system = Lorenz63(dt=0.05, substeps=substeps, dtype=DOUBLE)
    x = system.initial(2, 1, rng=rng)
    method = EKF(system, inflation=180.0, covariance=2 * torch.eye(3, dtype=DOUBLE))
    memory = Memory()
    method.forecast(method.start(x, memory), memory)
    eye = 1e-5 * torch.eye(3, dtype=DOUBLE)
    M = (system(x + eye) - system(x - eye)).mT / 2e-5
    expected = 180.0**0.05 * 2 * M @ M.mT
    torch.testing.assert_close(memory.carry["covariance"], expected, rtol=1e-7, atol=1e-7)


def test_frozen_tendency_differs_from_the_exact_derivative_by_second_order(rng):
    """||M exact - exp(dt f'(x_1))|| falls as dt^2, as the tendency's derivative is that of one end only."""
    difference = []
    for dt in (0.02, 0.01):
        system = Lorenz96(8, dt=dt, dtype=DOUBLE)
        x = system.trajectory(3 * system.initial(1, rng=torch.Generator().manual_seed(1)), 4)[:, -1:] + 1.0
        P = []
        for frozen in (True, False):
            memory = Memory()
            method = EKF(system, frozen=frozen, covariance=torch.eye(8, dtype=DOUBLE))
            method.forecast(method.start(x, memory), memory)
            P.append(memory.carry["covariance"])
        difference.append((P[0] - P[1]).abs().max())
    assert 3.5 < difference[0] / difference[1] < 4.5


def test_noise_of_a_flow_enters_the_forecast(rng):
    """Exactly known states spread by noise^2 dt in one step."""
    system = Lorenz96(8, noise=0.3, dtype=DOUBLE)
    method = EKF(system, covariance=torch.zeros(8, dtype=DOUBLE))
    memory = Memory()
    x = method.start(system.initial(1, rng=rng), memory)
    x = method.forecast(x, memory)
    torch.testing.assert_close(memory.carry["covariance"], 0.3**2 * 0.05 * torch.eye(8, dtype=DOUBLE))


def test_innovations_of_a_calibrated_filter_have_unit_variance(linear, rng):
    """Mean over 64 replicates and 40 steps of 2 values: 1 within 6 standard errors, one false alarm in 5e8."""
    truth = linear.trajectory(linear.initial(64, rng=rng), 40, rng=rng)
    observations = Survey(Select(torch.tensor([0, 1]), event=1), 0.5).observe(truth, rng=rng)
    x0 = linear.start.mean.expand(64, 1, 4)
    posterior = EKF(linear).assimilate(observations, 1, x0=x0, keep="scores")
    mean = posterior.diagnostics["innovation"].mean()
    assert abs(mean - 1) <= 6 * (2 / (64 * 41 * 2)) ** 0.5 * 2**0.5  # sqrt(2): the two values correlate
    assert not posterior.diagnostics["diverged"][:, -1].any()


def test_a_first_covariance_that_cannot_be_known_is_refused(rng):
    system = Lorenz63(dtype=DOUBLE)
    with pytest.raises(ValueError, match="inflation must be positive"):
        EKF(system, inflation=0.0)
    with pytest.raises(ValueError, match=r"has shape \(2, 2\), but the state has 3"):
        EKF(system, covariance=torch.eye(2))
    with pytest.raises(ValueError, match="must not have negative eigenvalues"):
        EKF(system, covariance=torch.tensor([1.0, 1.0, -1.0]))
