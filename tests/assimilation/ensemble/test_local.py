"""The localized filters: their limits, their symmetries, and readable twins."""

import pytest
import torch

from slams.assimilation.ensemble.inflation import random_rotation
from slams.assimilation.ensemble.kalman import ETKF
from slams.assimilation.ensemble.local import EAKF, LETKF, Domains, Reach, local_update, serial_update
from slams.assimilation.keywords import settings_of
from slams.assimilation.score.ensf import EnSF
from slams.core.covariance import Dense, Diagonal
from slams.core.geometry.localization import Localization, half_width
from slams.core.geometry.places import Geometry
from slams.core.random import normal
from slams.observation.observation import Observation
from slams.observation.operators import Identity, Pointwise, Select, Stride
from slams.observation.survey import Survey
from slams.systems import KolmogorovFlow, Lorenz63, Lorenz96

SIZE = 20
RADIUS = half_width(2.0)
LOCAL = [LETKF, EAKF]


def ring(positions: torch.Tensor, radius: float = RADIUS, size: int = SIZE) -> Localization:
    """Sites of a circle and observations on it."""
    return Localization.periodic(size, positions.double(), radius)


def case(rng, members=7, batch=(3,), index=None, variance=None):
    """An ensemble on a circle, some sites of it observed."""
    index = torch.arange(0, SIZE, 2) if index is None else index
    E = 2 + normal((*batch, members, SIZE), dtype=torch.float64, rng=rng).cumsum(-1) / 3
    y = 2 + normal((*batch, len(index)), dtype=torch.float64, rng=rng)
    noise = Diagonal(torch.linspace(0.5, 2.0, len(index)).double() if variance is None else variance)
    return E, Observation(y, Select(index, 1), noise), ring(index)


def moments(E):
    """Mean and covariance."""
    A = E - E.mean(-2, keepdim=True)
    return E.mean(-2), A.mT @ A / (E.shape[-2] - 1)


@pytest.mark.parametrize("members", [5, 30])
@pytest.mark.parametrize("holes", [False, True])
def test_letkf_of_infinite_radius_is_the_etkf(members, holes, rng):
    """One domain of all variables; members fewer and more than observations, all seen or not."""
    E, o, _ = case(rng, members)
    if holes:
        value = o.value.clone()
        value[0, 2] = value[1, 5:] = torch.nan
        o = Observation(value, o.operator, o.noise)
    expected = ETKF(Lorenz96(SIZE)).analyse(E, o)
    near = ring(torch.arange(0, SIZE, 2), float("inf"))
    for localization in (None, near, lambda _: near):
        actual = LETKF(Lorenz96(SIZE), localization=localization).analyse(E, o)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("members", [4, 30])
def test_letkf_is_a_tapered_transform_at_each_variable(members, rng):
    """The twin inverts and takes the root of an N x N matrix per variable, with R^-1 tapered, as in the paper."""
    E, o, near = case(rng, members, batch=())
    actual = LETKF(Lorenz96(SIZE), localization=near).analyse(E, o)
    mean, c = E.mean(0), members - 1
    A, Y, d = E - mean, o.predict(E - mean), o.value - o.predict(mean)
    for j in range(SIZE):
        precision = near.rho_xy[j] / o.noise.variance
        P = torch.linalg.inv(torch.eye(members) * c + Y * precision @ Y.mT)
        s, U = torch.linalg.eigh(c * P)
        weights = (P @ (Y * precision @ d))[None] + U @ (s.sqrt()[:, None] * U.mT)
        torch.testing.assert_close(actual[:, j], mean[j] + weights @ A[:, j], rtol=0, atol=1e-10)


@pytest.mark.parametrize("members", [4, 30])
def test_local_analyses_in_pieces_or_shared_are_the_same(members, rng):
    """Two channels share a domain; 1 element of budget gives one analysis at a time."""
    E, o, near = case(rng, members)
    E, near = torch.cat([E, -2 * E.roll(3, -1)], -1), near.repeated(2)
    Y, d = (
        o.whiten(E[..., : 2 * o.value.shape[-1]].diff(dim=-2, append=E[..., :1, : 2 * 10])[..., ::2]),
        o.value,
    )
    Y = Y - Y.mean(-2, keepdim=True)
    shared = Domains.of(near)
    assert [tuple(block.variables.shape) for block in shared] == [(SIZE, 2)]
    expected = local_update(E, Y, d, Domains.of(near, shared=False))
    for budget in (1, 2000, None):
        torch.testing.assert_close(local_update(E, Y, d, shared, budget=budget), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", LOCAL)
def test_only_neighbours_of_an_observation_change(method, rng):
    """Bit for bit, for LETKF; EAKF adds a zero to mean and anomalies apart, which costs one rounding."""
    index = torch.tensor([4])
    E, o, near = case(rng, index=index)
    change = (method(Lorenz96(SIZE), localization=near).analyse(E, o) - E).abs().amax((0, 1))
    reached = near.rho_xy[:, 0] > 0
    assert (change[reached] > 1e-4).all()
    assert (change[~reached] <= (0.0 if method is LETKF else 1e-15 * E.abs().max() * 4)).all()


@pytest.mark.parametrize("every", [1, 2])
def test_letkf_commutes_with_a_shift_of_the_circle(every, rng):
    """Nothing singles out a site: shift ensemble, observations and network together."""
    index = torch.arange(0, SIZE, every)
    E, o, near = case(rng, index=index, variance=torch.ones(len(index)).double())
    method = LETKF(Lorenz96(SIZE), localization=near, inflation=1.1, rtps=0.3)
    shifted = Observation(o.value.roll(3, -1), o.operator, o.noise)
    torch.testing.assert_close(
        method.analyse(E.roll(3 * every, -1), shifted),
        method.analyse(E, o).roll(3 * every, -1),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("method", LOCAL)
def test_members_have_no_order(method, rng):
    """A permuted ensemble has a permuted analysis."""
    E, o, near = case(rng)
    order = torch.randperm(7, generator=rng)
    filter_ = method(Lorenz96(SIZE), localization=near, inflation=1.05, rtpp=0.2)
    torch.testing.assert_close(
        filter_.analyse(E[:, order], o), filter_.analyse(E, o)[:, order], rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("method", LOCAL)
def test_units_do_not_matter(method, rng):
    """State, observations and errors in thousandths."""
    E, o, near = case(rng)
    filter_ = method(Lorenz96(SIZE), localization=near, inflation=1.05)
    scaled = Observation(o.value * 1e3, o.operator, o.noise.scaled(1e6))
    torch.testing.assert_close(
        filter_.analyse(E * 1e3, scaled), filter_.analyse(E, o) * 1e3, rtol=1e-11, atol=1e-9
    )


@pytest.mark.parametrize("method", LOCAL)
def test_a_missing_value_is_an_observation_less(method, rng):
    """NaN here, and a smaller network there, give the same; `columns` and a function of the observation too."""
    E, o, near = case(rng)
    kept = torch.tensor([0, 1, 3, 4, 6, 9])
    hidden = torch.full_like(o.value, torch.nan).index_copy_(-1, kept, o.value[..., kept])
    expected = method(Lorenz96(SIZE), localization=near).analyse(E, Observation(hidden, o.operator, o.noise))
    value, operator, noise = o.value[..., kept], Select(2 * kept, 1), o.noise.select(kept)
    moving = method(Lorenz96(SIZE), localization=lambda seen: ring(seen.operator.index))
    torch.testing.assert_close(
        moving.analyse(E, Observation(value, operator, noise)), expected, rtol=0, atol=1e-12
    )
    part = Observation(value, operator, noise, columns=kept)
    torch.testing.assert_close(
        method(Lorenz96(SIZE), localization=near).analyse(E, part), expected, rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("members", [5, 30])
def test_serial_analysis_has_the_moments_of_the_joint_one(members, rng):
    """Independent errors and a linear operator: one at a time is all at once."""
    E, o, _ = case(rng, members)
    expected = moments(ETKF(Lorenz96(SIZE)).analyse(E, o))
    actual = moments(EAKF(Lorenz96(SIZE)).analyse(E, o))
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


def test_order_of_observations_is_irrelevant_without_localization(rng):
    """In mean and covariance, for a linear operator."""
    E, o, _ = case(rng)
    order = torch.randperm(10, generator=rng)
    turned = Observation(o.value[..., order], Select(o.operator.index[order], 1), o.noise.select(order))
    method = EAKF(Lorenz96(SIZE))
    torch.testing.assert_close(
        moments(method.analyse(E, turned)), moments(method.analyse(E, o)), rtol=0, atol=1e-10
    )


def test_serial_analysis_is_one_scalar_update_after_the_other(rng):
    """The twin predicts anew after each observation, and adjusts to the exact scalar posterior, as in the paper."""
    E, o, near = case(rng, batch=())
    actual = EAKF(Lorenz96(SIZE), localization=near).analyse(E, o)
    for j, site in enumerate(o.operator.index.tolist()):
        h, r = E[:, site], o.noise.variance[j]
        prior = h.var()
        posterior = 1 / (1 / prior + 1 / r)
        mean = posterior * (h.mean() / prior + o.value[j] / r)
        moved = mean + (posterior / prior).sqrt() * (h - h.mean()) - h
        covariance = ((E - E.mean(0)) * (h - h.mean())[:, None]).sum(0) / (len(E) - 1)
        E = E + moved[:, None] * covariance / prior * near.rho_xy[:, j]
    torch.testing.assert_close(actual, E, rtol=0, atol=1e-12)


def test_serial_analysis_by_lists_is_that_by_whole_rows(rng):
    """A circle long enough for lists."""
    size = 200
    near = ring(torch.arange(0, size, 3), size=size)
    E = normal((2, 6, size), dtype=torch.float64, rng=rng)
    Y, d = (E - E.mean(-2, keepdim=True))[..., ::3], normal((2, 67), dtype=torch.float64, rng=rng)
    lists = Reach.of(near)
    assert lists.index is not None
    rows = Reach(None, torch.cat([near.rho_xy.mT, near.rho_yy], -1))
    torch.testing.assert_close(
        serial_update(E, Y, d, lists), serial_update(E, Y, d, rows), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("method", LOCAL)
def test_replicates_do_not_see_each_other(method, rng):
    """Each of (2, 3) replicates alone gives what all give together, and single precision stays single."""
    E, o, near = case(rng, batch=(2, 3))
    filter_ = method(Lorenz96(SIZE), localization=near)
    together = filter_.analyse(E, o)
    alone = filter_.analyse(E[1, 2], Observation(o.value[1, 2], o.operator, o.noise))
    torch.testing.assert_close(together[1, 2], alone, rtol=0, atol=1e-12)
    low = Observation(o.value.float(), o.operator, o.noise.to(o.value.float()))
    torch.testing.assert_close(filter_.analyse(E.float(), low), together.float(), rtol=0, atol=1e-4)


def test_rotation_keeps_mean_and_covariance_of_a_local_analysis(rng):
    """The rotation of the filter is the one that keeps the first two moments."""
    E, o, near = case(rng)
    plain = LETKF(Lorenz96(SIZE), localization=near).analyse(E, o)
    turned = LETKF(Lorenz96(SIZE), localization=near, rotate=True).analyse(E, o, rng=rng)
    assert (turned - plain).abs().max() > 0.1
    torch.testing.assert_close(moments(turned), moments(plain), rtol=0, atol=1e-12)
    assert random_rotation(plain, rng=rng).shape == plain.shape


@pytest.mark.parametrize("method", LOCAL)
def test_nonlinear_operators_stay_near_the_tangent_for_small_spread(method, rng):
    """exp of a spread of 1e-5: the analysis is that of exp's tangent to second order."""
    index = torch.arange(0, SIZE, 2)
    centre = normal((SIZE,), dtype=torch.float64, rng=rng)
    A = 1e-5 * normal((6, SIZE), dtype=torch.float64, rng=rng)
    E, near = centre + A - A.mean(0), ring(torch.arange(SIZE))
    slope = centre.exp()
    d = 1e-5 * normal((SIZE,), dtype=torch.float64, rng=rng)
    noise = Diagonal(1e-10 * torch.ones(SIZE).double())
    curved = Observation(slope + d, Pointwise("exp"), noise)
    straight = Observation(centre + d / slope, Identity(), Diagonal(noise.variance / slope.square()))
    filter_ = method(Lorenz96(SIZE), localization=near)
    difference = filter_.analyse(E, curved) - filter_.analyse(E, straight)
    assert len(index) and difference.abs().max() < 1e-8  # 1e-5 squared, times a few


@pytest.mark.parametrize("method", LOCAL)
def test_bad_localization_is_refused(method, rng):
    """Correlated errors, and a network of another size."""
    E, o, near = case(rng)
    correlated = Observation(o.value, o.operator, Dense(torch.eye(10).double() + 0.1))
    with pytest.raises(ValueError, match="whiten"):
        method(Lorenz96(SIZE), localization=near).analyse(E, correlated)
    with pytest.raises(ValueError, match="10 values"):
        method(Lorenz96(SIZE), localization=ring(torch.arange(4))).analyse(E, o)
    assert torch.isfinite(method(Lorenz96(SIZE)).analyse(E, correlated)).all()


@pytest.mark.parametrize("method", [LETKF, EAKF])
def test_a_radius_is_the_localization_that_the_geometry_gives(method, rng):
    """To the bit, by radius and by half-width, with one operator after the other in the same filter."""
    system = Lorenz96(SIZE)
    by_radius, by_width = method(system, radius=2.0), method(system, half_width=RADIUS)
    for index in (torch.arange(0, SIZE, 2), torch.arange(1, SIZE, 3), torch.arange(0, SIZE, 2)):
        E, o, near = case(rng, index=index)
        expected = method(system, localization=near).analyse(E, o)
        assert torch.equal(by_radius.analyse(E, o), expected)
        assert torch.equal(by_width.analyse(E, o), expected)


def test_the_score_filter_builds_localization_and_patch_from_a_radius(rng):
    """The patch holds what is within 2.25 radii, or within `reach`."""
    system, (E, o, near) = Lorenz96(SIZE), case(rng)
    for reach in (None, 6.0):
        patch = Localization.periodic(
            SIZE, torch.arange(SIZE).double(), (4.5 if reach is None else reach) / 2
        )
        expected = EnSF(system, localization=near, patch=patch, steps=5).analyse(E, o)
        assert torch.equal(EnSF(system, radius=2.0, reach=reach, steps=5).analyse(E, o), expected)


def test_several_event_axes_need_no_flattening_and_are_localized_on_the_torus(rng):
    """Velocities on a torus seen at every fourth point: as by hand, with observations and variables in order."""
    flow = KolmogorovFlow(16)
    truth = flow.initial(1, rng=rng)
    seen = Survey(Stride(4, axes=2), 0.01).observe(truth, event=3, rng=rng)
    points = torch.cartesian_prod(torch.arange(0, 16, 4), torch.arange(0, 16, 4)).double()
    near = Localization.torus((16, 16), points.repeat(2, 1), half_width(3.0)).repeated(2)
    runs = [
        LETKF(flow, **settings).assimilate(seen, 5, rng=1).samples
        for settings in ({"radius": 3.0}, {"localization": near})
    ]
    assert runs[0].shape == (5, 1, 2, 16, 16)
    torch.testing.assert_close(*runs, rtol=0, atol=1e-6)


def test_a_radius_without_a_place_or_beside_another_is_refused():
    with pytest.raises(ValueError, match="Lorenz63 does not state where its variables are"):
        LETKF(Lorenz63(), radius=1.0)
    with pytest.raises(ValueError, match="radius and half_width state the same"):
        EAKF(Lorenz96(8), radius=1.0, half_width=2.0)
    with pytest.raises(ValueError, match="a localization radius must be positive, got -1"):
        EnSF(Lorenz96(8), radius=-1.0)
    own = Lorenz63()
    own.geometry = Geometry.circle(3)
    assert LETKF(own, radius=1.0).half_width == pytest.approx(1.82)


def test_settings_of_a_filter_are_its_own_and_those_it_hands_on():
    found = settings_of(EnSF)
    assert list(found)[:2] == ["patch", "reach"] and found["radius"].default is None
    assert found["inflation"].default == 1.0 and found["failure"].default == "stop"
    assert "dynamics" not in found and "common" not in found
    with pytest.raises(TypeError, match="inflatoin"):
        LETKF(Lorenz96(8), inflatoin=1.1)


@pytest.mark.parametrize("radius", [None, 3.0])
def test_iterations_change_nothing_where_the_operator_is_linear(radius, rng):
    """Slopes about any mean are the same; missing values included."""
    E, o, near = case(rng, 9)
    value = o.value.clone()
    value[0, 2] = value[1, 5:] = torch.nan
    o = Observation(3 - value, lambda x: 3 - x[..., ::2], o.noise)
    localization = None if radius is None else near
    once, thrice = (
        LETKF(Lorenz96(SIZE), localization=localization, iterations=n, inflation=1.1).analyse(E, o)
        for n in (1, 3)
    )
    torch.testing.assert_close(thrice, once, rtol=0, atol=1e-11)


@pytest.mark.parametrize("radius", [None, 2.0])
@pytest.mark.parametrize("function", ["arctan", "exp"])
def test_iterations_reach_the_posterior_s_mode_for_an_operator_that_bends(radius, function, rng):
    """Sites apart, prior N(0.2, 0.5^2) each, errors of 1 %: the mean is the minimum of both misfits, by bisection.

    One analysis is off by a tenth of the prior's deviation and more, six by a hundredth at most: the members' sampling
    error enters the prior of both, so that only what the slopes average over the analysis's spread is left.
    """
    size, sites = 4, torch.arange(4)
    A = normal((1, 400, size), dtype=torch.float64, rng=rng)
    A = A - A.mean(1, keepdim=True)
    A = A @ torch.linalg.inv(torch.linalg.cholesky(A.mT @ A / 399)).mT
    E = 0.2 + 0.5 * A
    operator = Pointwise(function)
    y = operator(torch.tensor([[1.2, -0.9, 0.8, -0.6]], dtype=torch.float64))
    o = Observation(y, operator, Diagonal(torch.full((size,), 1e-4, dtype=torch.float64)))
    low, high = torch.full_like(y, -3.0), torch.full_like(y, 3.0)
    for _ in range(60):
        middle = ((low + high) / 2).requires_grad_()
        cost = ((middle - 0.2) / 0.5).square() / 2 + (y - operator(middle)).square() / 2e-4
        (slope,) = torch.autograd.grad(cost.sum(), middle)
        low, high = (
            torch.where(slope < 0, middle, low).detach(),
            torch.where(slope < 0, high, middle).detach(),
        )
    near = None if radius is None else ring(sites, 0.4, size)
    model = Lorenz96(size)

    def error(n):
        mean = LETKF(model, localization=near, iterations=n).analyse(E, o).mean(1)
        return float((mean - low).abs().max())

    assert error(6) < 5e-3 < 0.05 < error(1)


def test_no_iteration_is_refused():
    with pytest.raises(ValueError, match="at least one analysis in turn, got iterations=0"):
        LETKF(Lorenz96(SIZE), iterations=0)
