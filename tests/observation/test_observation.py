"""Laws of observations and their likelihood."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from slams.core.covariance import Dense, Diagonal
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten, Select

L, D = 3, 4


def matrix(size: int, rng: torch.Generator) -> torch.Tensor:
    root = torch.randn(size, size, dtype=torch.float64, generator=rng)
    return root @ root.mT + torch.eye(size, dtype=torch.float64)


@pytest.fixture
def observations(rng) -> Observations:
    """Two modalities of two windows, some values and one whole step missing."""
    first = torch.randn(2, L, D, dtype=torch.float64, generator=rng)
    first[0, 0, 1] = first[1, 2, 0] = float("nan")
    first[0, 1] = float("nan")
    second = torch.randn(2, L, 2, dtype=torch.float64, generator=rng)
    return Observations(
        {
            "full": Observation(first, Flatten(1), Dense(matrix(D, rng))),
            "part": Observation(
                second,
                Select(torch.tensor([2, 0]), 1),
                Diagonal(torch.tensor([0.3, 2.0], dtype=torch.float64)),
            ),
        }
    )


def noise_matrix(observation: Observation) -> torch.Tensor:
    noise = observation.noise
    return noise.matrix if isinstance(noise, Dense) else noise.variance.diag()


def log_density(observations: Observations, x: torch.Tensor, w: int) -> torch.Tensor:
    """Normal density of all that was seen in window w, by torch's distribution."""
    total = torch.zeros((), dtype=torch.float64)
    for o in observations.values():
        for k in range(L):
            seen = torch.isfinite(o.value[w, k])
            if seen.any():
                r = noise_matrix(o)[seen][:, seen]
                total = total + MultivariateNormal(o.operator(x[k])[seen], r).log_prob(o.value[w, k][seen])
    return total


def test_likelihood_is_the_normal_density_of_what_was_seen(observations, rng):
    """Differences between states, so that the constant drops out; ensemble axis in front."""
    x = torch.randn(5, 2, L, D, dtype=torch.float64, generator=rng)
    found = observations.log_likelihood(x)
    expected = torch.stack(
        [torch.stack([log_density(observations, x[n, w], w) for w in range(2)]) for n in range(5)]
    )
    torch.testing.assert_close(found - found[0], expected - expected[0], rtol=0, atol=1e-11)


def test_likelihood_has_a_finite_gradient_that_is_zero_where_nothing_was_seen(observations):
    full = Observations({"full": observations["full"]})
    x = torch.zeros(2, L, D, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(full.log_likelihood(x).sum(), x)
    assert bool(torch.isfinite(gradient).all())
    assert bool((gradient[0, 1] == 0).all()) and float(gradient[0, 0, 1]) == 0


def test_information_equals_the_curvature_of_the_likelihood(observations):
    """sum_m G^T R^-1 G is minus the second derivative where operators are linear."""
    jacobians = {
        "full": torch.eye(D, dtype=torch.float64),
        "part": torch.eye(D, dtype=torch.float64)[[2, 0]],
    }
    for w in range(2):
        one = Observations(
            {name: Observation(o.value[w], o.operator, o.noise) for name, o in observations.items()}
        )
        zero = torch.zeros(L, D, dtype=torch.float64)
        hessian = torch.autograd.functional.hessian(one.log_likelihood, zero)
        information = observations.information(jacobians, w)
        for k in range(L):
            torch.testing.assert_close(information[k], -hessian[k, :, k], rtol=0, atol=1e-11)
            others = [j for j in range(L) if j != k]
            assert bool((hessian[k][:, others] == 0).all())


def test_widened_adds_to_the_variance(observations):
    wide = observations.widened(0.5)
    for name, o in observations.items():
        eye = torch.eye(o.noise.size, dtype=torch.float64)
        torch.testing.assert_close(noise_matrix(wide[name]), noise_matrix(o) + 0.5 * eye, rtol=0, atol=0)


def test_pullback_is_the_likelihood_of_the_decoded_state(observations, rng):
    """h_m after decode_m; another decoder for each modality."""
    decode = {name: torch.randn(D, 3, dtype=torch.float64, generator=rng) for name in observations}
    pulled = observations.pullback({name: (lambda z, a=a: z @ a.mT) for name, a in decode.items()})
    z = torch.randn(2, L, 3, dtype=torch.float64, generator=rng)
    expected = sum(o.log_likelihood(z @ decode[name].mT).sum(-1) for name, o in observations.items())
    torch.testing.assert_close(pulled.log_likelihood(z), expected, rtol=0, atol=1e-12)


def test_windows_of_a_trajectory_are_its_slices(rng):
    value = torch.randn(6, D, dtype=torch.float64, generator=rng)
    noise = Diagonal(torch.ones(D, dtype=torch.float64))
    windows = Observations({"a": Observation(value, Flatten(1), noise)}).windows(L)
    assert windows.batch == (4,) and windows.steps == L
    for w in range(4):
        assert torch.equal(windows["a"].value[w], value[w : w + L])
    with pytest.raises(ValueError, match="observations of 6 steps are shorter than a window of 7"):
        Observations({"a": Observation(value, Flatten(1), noise)}).windows(7)


def test_patterns_group_windows_that_saw_the_same_values(rng):
    value = torch.randn(5, L, D, generator=rng)
    value[1, 0, 0] = value[3, 0, 0] = value[4, 0, 1] = float("nan")
    index, first = Observations({"a": Observation(value, Flatten(1), Diagonal(torch.ones(D)))}).patterns()
    assert index == [0, 1, 0, 1, 2] and first == [0, 1, 4]


def test_shapes_that_do_not_fit_are_refused(rng):
    value = torch.randn(L, D, generator=rng)
    with pytest.raises(ValueError, match="4 values but its noise covariance 3"):
        Observation(value, Flatten(1), Diagonal(torch.ones(3)))
    with pytest.raises(ValueError, match=r"gives values of shape \(2,\), but \(4,\) were observed"):
        Observation(value, Select(torch.tensor([0, 1]), 1), Diagonal(torch.ones(D))).log_likelihood(value)
    short = Observation(value[:2], Flatten(1), Diagonal(torch.ones(D)))
    with pytest.raises(ValueError, match="one common number of steps"):
        Observations({"a": Observation(value, Flatten(1), Diagonal(torch.ones(D))), "b": short})
    with pytest.raises(ValueError, match="one common number of steps"):
        Observations({})
