"""Sensors that bend within the forecast's spread: EnSF against quadrature, the ETKF and other filters."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.bent_sensors import PRIORS, SENSORS, Sensor, distance, measured, posterior, problem, still
from slams.assimilation import ETKF, SSLS, EnKF, EnSF
from slams.assimilation.ensemble.kalman import Departures
from slams.assimilation.memory import Memory
from slams.assimilation.score.true_likelihood import bent, thinned
from slams.core.covariance import Isotropic
from slams.core.geometry.localization import Localization
from slams.observation import Observation, operators
from slams.systems import Lorenz96

DOUBLE = torch.float64


def analysed(
    method: EnSF, E: Tensor, observation: Observation, seed: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    memory = Memory()
    return method.analyse(
        E, observation, rng=torch.Generator().manual_seed(seed), memory=memory
    ), memory.diagnostics


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("size, members", [(1, 200), (3, 40), (10, 40), (40, 40), (40, 20)])
def test_one_gaussian_and_a_linearized_likelihood_have_the_moments_of_the_etkf(sensor, size, members):
    """Mean within 1e-6 deviations and covariance within 1e-6 of its largest element, of the ETKF's."""
    E, observation = problem("normal", sensor, 4, members, size)
    ours, numbers = analysed(EnSF(still(size), likelihood="linearized", kernel=1 - 1e-9), E, observation)
    exact = ETKF(still(size)).analyse(E, observation)
    assert (((ours.mean(1) - exact.mean(1)) / exact.std(1)).abs() < 1e-6).all()
    a, b = (torch.stack([torch.cov(x.mT) for x in y]).reshape(4, -1) for y in (ours, exact))
    assert ((a - b).abs() < 1e-6 * b.abs().amax(-1, keepdim=True)).all()
    assert (numbers["one_gaussian"] == 1).all() and (numbers["tempered"] == 0).all()


def test_members_that_depend_on_each_other_do_not_explain_a_bent_sensor():
    """20 members of 40 variables in 6 directions, fewer than members or variables."""
    rng = torch.Generator().manual_seed(3)
    few, turn = (torch.randn(*shape, generator=rng, dtype=DOUBLE) for shape in ((2, 20, 6), (6, 40)))
    _, observation = problem("normal", "square", 2, 20, 40)
    E = few @ turn / 6**0.5
    ours = EnSF(still(40), likelihood="linearized", kernel=1 - 1e-9).analyse(E, observation)
    exact = ETKF(still(40)).analyse(E, observation)
    torch.testing.assert_close(ours.mean(1), exact.mean(1), rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.var(1), exact.var(1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("prior", PRIORS)
@pytest.mark.parametrize("size", [1, 3])
def test_it_is_as_near_to_quadrature_as_the_better_of_enkf_and_ssls(prior, sensor, size):
    """Wasserstein-1 in posterior deviations over 20 seeds, at most the better one's + 0.05, with 40 members.

    EnSF is 0.12 to 0.34, the better of both 0.15 to 0.45. Differences of single seeds have a deviation of 0.1 at most, so
    that the mean of 20 has one of 0.02; the closest case is 0.01 below the better one, three deviations from the bound:
    one false alarm in 700 for a fresh seed. The seed is fixed.
    """
    methods = {"EnSF": EnSF(still(size)), "EnKF": EnKF(still(size)), "SSLS": SSLS(still(size))}
    found = {name: float(w.mean()) for name, w in measured(prior, sensor, size, 40, 20, methods).items()}
    assert found["EnSF"] < min(found["EnKF"], found["SSLS"]) + 0.05


@pytest.mark.parametrize("sensor, bound", [("arctan", 0.6), ("square", 0.55)])
def test_ten_independent_coordinates_with_two_peaks_each(sensor, bound):
    """With 40 members 0.41 and 0.30 over 6 seeds, where one Gaussian as prior is at 1.4 and EnKF at 0.77 and 0.63."""
    found = measured("two peaks", sensor, 10, 40, 6, {"EnSF": EnSF(still(10))})
    assert float(found["EnSF"].mean()) < bound


def test_two_peaks_are_met_nearly_as_by_independent_draws_of_the_posterior():
    """200 members, mean over four sensors and 20 seeds below 0.12; 0.10, and 0.08 if the prior's family were known.

    The deviation over seeds is 0.04 for a sensor, 0.005 for the mean: one false alarm in 1e4 fresh seeds.
    """
    found = [measured("two peaks", s, 1, 200, 20, {"EnSF": EnSF(still(1))})["EnSF"].mean() for s in SENSORS]
    assert float(torch.stack(found).mean()) < 0.12


def test_one_gaussian_as_prior_still_has_the_operators_likelihood():
    """kernel near 1, h = x^2: two peaks; within 0.2 of quadrature, EnKF and ETKF beyond 0.4 (four seeds)."""
    E, observation = problem("normal", "square", 4, 200, 1)
    cdf, deviation = posterior("normal", "square", observation.value)
    after, numbers = analysed(EnSF(still(1), kernel=1 - 1e-9), E, observation)
    assert float(distance(after, cdf, deviation).mean()) < 0.2
    assert (numbers["one_gaussian"] == 1).all() and (numbers["tempered"] == 1).all()
    assert (numbers["acceptance"] > 0.2).all()
    kalman = ETKF(still(1)).analyse(E, observation)
    assert float(distance(kalman, cdf, deviation).mean()) > 0.4


def test_a_linear_operator_is_seen_as_such_and_keeps_the_closed_form():
    """The same bits whatever the likelihood, also in single precision with large values."""
    rng = torch.Generator().manual_seed(1)
    for dtype, shift in ((DOUBLE, 0.0), (torch.float32, 300.0)):
        E = (torch.randn(2, 9, 5, generator=rng, dtype=DOUBLE) + shift).to(dtype)
        H = operators.Select(torch.tensor([0, 3]), event=1)
        observation = Observation(torch.full((2, 2), shift + 0.4, dtype=dtype), H, Isotropic(0.01).sized(2))
        exact, numbers = analysed(EnSF(Lorenz96(5, dtype=dtype)), E, observation)
        linearized, _ = analysed(EnSF(Lorenz96(5, dtype=dtype), likelihood="linearized"), E, observation)
        assert torch.equal(exact, linearized)
        assert (numbers["tempered"] == 0).all() and numbers["acceptance"].isnan().all()


@pytest.mark.parametrize("sensor", SENSORS)
def test_bends_show_where_members_are_few_or_in_order(sensor):
    """Regression explains all of few members, and neighbours in order lie on nearly straight pieces."""
    function, error = SENSORS[sensor]
    for E in (
        torch.randn(1, 3, 8, generator=torch.Generator().manual_seed(2), dtype=DOUBLE),
        torch.linspace(-2, 2, 500, dtype=DOUBLE)[None, :, None],
    ):
        size = E.shape[-1]
        observation = Observation(
            torch.zeros(1, size, dtype=DOUBLE), Sensor(function), Isotropic(error**2).sized(size)
        )
        assert float(bent(E, Departures.of(E, observation), observation)) > 0.1


class Outside(torch.nn.Module):
    """arctan by another library, without gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(np.arctan(x.numpy()))


class Root(torch.nn.Module):
    """Defined for positive values only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_operators_without_gradient_and_with_a_bounded_domain():
    """Without gradient within 0.15 of quadrature; where the root isn't defined there are no members."""
    E, observation = problem("normal", "arctan", 8, 200, 1)
    cdf, deviation = posterior("normal", "arctan", observation.value)
    after, _ = analysed(EnSF(still(1)), E, Observation(observation.value, Outside(), observation.noise))
    assert float(distance(after, cdf, deviation).mean()) < 0.15
    positive = E.abs() + 0.01
    y = torch.full((8, 1), 0.2, dtype=DOUBLE)
    after, numbers = analysed(EnSF(still(1)), positive, Observation(y, Root(), Isotropic(0.01).sized(1)))
    assert torch.isfinite(after).all() and (numbers["tempered"] == 1).all()
    assert (after > -0.02).all()  # the map to the moments of all moves them by little


def test_thinned_particles_have_mean_and_covariance_of_all():
    rng = torch.Generator().manual_seed(4)
    x = torch.randn(2, 300, 3, generator=rng, dtype=DOUBLE).exp()
    few = thinned(x, 10, rng)
    torch.testing.assert_close(few.mean(1), x.mean(1))
    for a, b in zip(few, x, strict=True):
        torch.testing.assert_close(torch.cov(a.mT), torch.cov(b.mT))


def test_diagnostics_tell_the_share_of_analyses_with_one_gaussian():
    """In every step of a run, with the operator bent at some of them only, also where replicates are done in parts."""
    from slams.observation import Survey
    from slams.systems import DoubleWell

    system = DoubleWell(dtype=DOUBLE)
    rng = torch.Generator().manual_seed(5)
    truth = system.trajectory(system.initial(2, rng=rng), 4, rng=rng)
    seen = Survey(operators.Pointwise("arctan"), Isotropic(0.04)).observe(truth, rng=rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        numbers = EnSF(system).assimilate(seen, 40, keep="moments", rng=rng).diagnostics
    for name in ("kernel", "one_gaussian", "tempered", "effective_size"):
        assert numbers[name].shape == (2, 5) and torch.isfinite(numbers[name]).all()
    share = numbers["one_gaussian"].mean()
    assert 0 <= float(share) <= 1


def test_wrong_likelihoods_are_refused():
    near = Localization.periodic(6, torch.arange(6), 1.0)
    with pytest.raises(ValueError, match="linearized"):
        EnSF(Lorenz96(6), likelihood="true")
    with pytest.raises(ValueError, match="no exact likelihood"):
        EnSF(Lorenz96(6), localization=near, patch=near, likelihood="exact")
    with pytest.raises(ValueError, match="particles"):
        EnSF(Lorenz96(6), particles=1)
    assert EnSF(Lorenz96(6), particles=2).particles == 2
    assert EnSF(Lorenz96(6), localization=near, patch=near).likelihood == "linearized"
    assert EnSF(Lorenz96(6)).likelihood == "exact"
