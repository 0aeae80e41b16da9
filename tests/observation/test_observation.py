"""Laws of observations and their likelihood."""

import pytest
import torch
from torch.distributions import MultivariateNormal

from slams.core.covariance import Dense, Diagonal, Isotropic
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Flatten, Identity, Select, Stride

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


def test_one_step_holds_what_the_modalities_saw_then(observations, rng):
    """Its likelihood is the modalities' at that step, for each member of an ensemble."""
    x = torch.randn(5, 2, D, dtype=torch.float64, generator=rng)
    for k in range(L):
        step = observations.step(k)
        expected = sum(
            Observation(o.value[:, k], o.operator, o.noise).log_likelihood(x) for o in observations.values()
        )
        torch.testing.assert_close(step.log_likelihood(x), expected, rtol=0, atol=1e-12)
        assert torch.equal(step.seen, torch.isfinite(step.value)) and step.all_seen == bool(step.seen.all())


def test_a_step_leaves_out_modalities_that_saw_nothing():
    """`columns` says which values remain; a step without any is None."""
    a, b = torch.zeros(2, 4, D), torch.ones(2, 4, 2, 1)
    a[:, 1:3] = b[:, 2:] = b[1, 0, 1] = float("nan")
    seen = Observations(
        {
            "a": Observation(a, Identity(), Isotropic(1.0)),
            "b": Observation(b, lambda x: x[..., :2, None], Diagonal(torch.tensor([2.0, 3.0])), event=2),
        }
    )
    assert seen.step(2) is None and seen.seen_steps == [0, 1, 3]
    both, only_b, only_a = seen.step(0), seen.step(1), seen.step(3)
    assert both.columns is None and not both.all_seen and both.value.shape == (2, 6)
    assert only_b.columns.tolist() == [4, 5] and only_b.all_seen
    assert only_a.columns.tolist() == [0, 1, 2, 3] and only_a.all_seen
    assert torch.equal(both.noise.dense().diagonal(), torch.tensor([1.0, 1, 1, 1, 2, 3]))
    x = torch.arange(4.0)
    assert torch.equal(both.operator(x), torch.tensor([0.0, 1, 2, 3, 0, 1]))


def test_innovations_and_whitening_take_members_after_the_replicates(observations, rng):
    """The same as for each replicate and member alone, with exact zeros where nothing was seen."""
    ensemble = torch.randn(2, 6, D, dtype=torch.float64, generator=rng)
    for k in range(L):
        step = observations.step(k)
        innovation = step.innovation(ensemble)
        white = step.whiten(innovation)
        for b in range(2):
            alone = Observation(step.value[b], step.operator, step.noise)
            for n in range(6):
                assert torch.equal(innovation[b, n], alone.residual(ensemble[b, n]))
                single = alone.whiten(innovation[b, n])
                torch.testing.assert_close(white[b, n], single, rtol=0, atol=1e-13)
                torch.testing.assert_close(
                    -0.5 * single.square().sum(), alone.log_likelihood(ensemble[b, n]), rtol=1e-12, atol=1e-12
                )
            assert bool((white[b, :, ~step.seen[b]] == 0).all())
        torch.testing.assert_close(step.innovation(ensemble[:, 0]), innovation[:, 0], rtol=0, atol=0)


def test_members_may_be_named_where_axes_do_not_tell():
    """As many members as replicates, values without replicates."""
    shared = Observation(torch.tensor([1.0, float("nan")]), Identity(), Isotropic(4.0))
    x = torch.zeros(3, 2)
    expected = torch.tensor([[0.5, 0.0]]).expand(3, 2)
    for members in (True, False, None):
        assert torch.equal(shared.whiten(shared.innovation(x, members=members), members=members), expected)


def test_withheld_locations_and_the_rest_make_the_whole(observations, rng):
    """Each observed location is on one side at all times and in all replicates; the shares are as asked."""
    value = torch.randn(3, 8, 50, generator=rng)
    value[:, :, 10:20] = value[0, 3] = float("nan")
    whole = Observations({"a": Observation(value, Identity(), Isotropic(1.0))})
    kept, withheld = whole.withhold(0.25, rng)
    one, other = kept["a"].seen, withheld["a"].seen
    assert not bool((one & other).any()) and torch.equal(one | other, whole["a"].seen)
    assert torch.equal(
        torch.where(one, kept["a"].value, withheld["a"].value).nan_to_num(), value.nan_to_num()
    )
    assert not bool((one.flatten(0, 1).any(0) & other.flatten(0, 1).any(0)).any())
    assert int(other.flatten(0, 1).any(0).sum()) == 10
    again = whole.withhold(0.25, torch.Generator().manual_seed(7))[1]["a"].seen
    same = whole.withhold(0.25, torch.Generator().manual_seed(7))[1]["a"].seen
    assert torch.equal(again, same) and not torch.equal(again, other)
    with pytest.raises(ValueError, match="between 0 and 1, got 1"):
        whole.withhold(1.0)


def test_more_values_than_variables_are_legal():
    twice = Observations(
        {name: Observation(torch.ones(3, D), Identity(), Isotropic(1.0)) for name in ("a", "b", "c")}
    )
    assert twice.step(0).innovation(torch.zeros(5, D)).shape == (5, 12)


def test_values_that_do_not_match_the_operator_are_refused_at_the_first_innovation():
    seen = Observations({"a": Observation(torch.ones(3, D), Stride(2), Isotropic(1.0))})
    with pytest.raises(
        ValueError, match=r"Stride\(\) gives values of shape \(2,\), but \(4,\) were observed"
    ):
        seen.step(0).innovation(torch.zeros(5, D))
    apart = {n: Observation(torch.ones(n, 3, D), Identity(), Isotropic(1.0)) for n in (1, 2)}
    with pytest.raises(ValueError, match="need the same replicates"):
        Observations({"a": apart[1], "b": apart[2]}).step(0)


def test_missing_values_are_filled_with_zero():
    seen = Observation(torch.tensor([[1.0, torch.nan], [torch.nan, 2.0]]), lambda x: x, Isotropic(1.0))
    assert torch.equal(seen.filled, torch.tensor([[1.0, 0.0], [0.0, 2.0]]))


def test_infinite_values_are_refused_and_nan_is_missing():
    """An infinite value is a fault, not a gap."""
    with pytest.raises(ValueError, match="2 observed values are infinite; NaN marks a missing value"):
        Observation(torch.tensor([1.0, torch.inf, -torch.inf]), lambda x: x, Isotropic(1.0))
    assert Observation(torch.tensor([1.0, torch.nan]), lambda x: x, Isotropic(1.0)).seen.tolist() == [
        True,
        False,
    ]
