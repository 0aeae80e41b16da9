"""The grid filter against the Kalman filter, brute force and symmetry."""

import math

import pytest
import torch
from torch import Tensor

from slams.core.covariance import Isotropic
from slams.observation import Survey, operators
from slams.systems import DoubleWell, Gaussian, LinearGaussian, Lorenz63, grid_filter

DOUBLE = torch.float64


class Relaxation(DoubleWell):
    """x' = -x: a linear system of one variable."""

    def tendency(self, x: Tensor, **coefficients) -> Tensor:
        return -x


def observed(system, steps: int, std: float, every: int = 1):
    rng = torch.Generator().manual_seed(3)
    truth = system.trajectory(system.initial(2, rng=rng), steps - 1, rng=rng)
    survey = Survey(operators.Identity(event=1), Isotropic(std**2), every=every, missing=0.2)
    return truth, survey.observe(truth, rng=rng)


def test_equals_the_kalman_filter_of_a_linear_system():
    """Missing values and steps without any included; the midpoint rule is exact to rounding."""
    system = Relaxation(start=Gaussian(-0.3, std=0.2), dtype=DOUBLE)
    _, observations = observed(system, 12, 0.3, every=2)
    one = torch.ones(1, 1, dtype=DOUBLE)
    exact = LinearGaussian(
        (1 - system.dt) * one, system.noise**2 * system.dt * one, -0.3 * one[0], 0.04 * one, dt=system.dt
    ).filter(observations)
    posterior = grid_filter(system, observations)
    torch.testing.assert_close(posterior.mean, exact.mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(posterior.variance[..., 0], exact.cov[..., 0, 0], rtol=0, atol=1e-10)


def test_the_density_is_one_and_follows_a_flip_only_where_flips_are_foreseen():
    """With f = 1/2 the forecast from any posterior is even, so that the sign comes from the observation alone."""
    system = DoubleWell(dtype=DOUBLE)
    _, observations = observed(system, 3, 0.1, every=3)
    posterior = grid_filter(DoubleWell(flip_chance=0.5, dtype=DOUBLE), observations)
    assert torch.equal(posterior.density, grid_filter(system, observations, flips=0.5).density)
    step = float(posterior.points[1] - posterior.points[0])
    torch.testing.assert_close(posterior.density.sum(-1) * step, torch.ones(2, 3, dtype=DOUBLE))
    torch.testing.assert_close(posterior.density[:, 1], posterior.density[:, 1].flip(-1), rtol=0, atol=1e-12)
    assert float(posterior.mean[:, 0].abs().min()) > 0.5


def test_two_steps_equal_brute_force():
    """The two-step forecast of a point start, by weighting a million simulated paths.

    Four standard errors on the mean of each of two replicates: one false alarm in 8000 changes of the seed.
    """
    system = DoubleWell(start=Gaussian(-0.2, std=0.0), dtype=DOUBLE)
    _, observations = observed(system, 3, 0.2, every=2)
    posterior = grid_filter(system, observations, count=4000)
    rng = torch.Generator().manual_seed(0)
    x = torch.full((1_000_000, 1), -0.2, dtype=DOUBLE)
    for _ in range(2):
        x = system(x, rng=rng)
    seen = observations.step(2)
    misfit = seen.whiten(seen.innovation(x.unsqueeze(0).expand(2, -1, -1), members=True), members=True)
    weights = (-0.5 * misfit.square().sum(-1)).softmax(-1)
    mean = (weights * x[:, 0]).sum(-1)
    error = (weights.square() * (x[:, 0] - mean[:, None]).square()).sum(-1).sqrt()
    assert (
        (mean - posterior.mean[:, 2, 0]).abs() < 4 * error + 2e-3
    ).all()  # 2e-3: the start has a grid step's width


@pytest.mark.parametrize(
    "system, settings, word",
    [
        (Lorenz63(noise=1.0), {}, "one variable"),
        (DoubleWell(noise=0.0), {}, "noise"),
        (DoubleWell(), {"count": 20}, "more points"),
        (DoubleWell(), {"flips": 1.5}, "flips"),
    ],
)
def test_what_it_cannot_do_is_refused(system, settings, word):
    with pytest.raises(ValueError, match=word):
        grid_filter(system, observed(DoubleWell(), 2, 0.1)[1], **settings)


def test_the_model_error_of_unforeseen_flips_is_large():
    """A truth that flips every 20 steps, seen with 0.1: RMSE 0.07 where flips are foreseen, over 0.1 where not.

    Over 40 truths the means differ by ten standard errors.
    """
    truth_system = DoubleWell(flip_every=20, dtype=DOUBLE)
    rng = torch.Generator().manual_seed(1)
    truth = truth_system.trajectory(truth_system.initial(40, rng=rng), 99, rng=rng)
    observations = Survey(operators.Identity(event=1), Isotropic(0.01)).observe(truth, rng=rng)

    def rmse(flips: float) -> float:
        error = grid_filter(truth_system, observations, flips=flips, count=400).mean - truth
        return math.sqrt(float(error.square().mean()))

    assert rmse(0.05) < 0.1 < rmse(0.0)


def test_old_name_of_the_posterior_warns():
    """GridBelief is GridPosterior until version 0.4."""
    import slams.systems

    with pytest.warns(FutureWarning, match="GridPosterior"):
        assert slams.systems.GridBelief is slams.systems.GridPosterior
