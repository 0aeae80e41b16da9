"""Pseudo-ensembles: exact where the generator is, harmless where it is not, and conditioned on the right observations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from slams.assimilation import LETKF, GenerativeEnKF, PseudoEnKF
from slams.assimilation.ensemble.bias_aware import shrunk
from slams.assimilation.ensemble.generative import merge
from slams.assimilation.ensemble.pseudo import sites_of
from slams.assimilation.memory import Memory
from slams.core.covariance import Isotropic
from slams.core.errors import DivergenceWarning
from slams.core.geometry.localization import Localization
from slams.core.random import normal
from slams.observation import Observation, Observations, Survey, operators
from slams.systems import LinearGaussian, Lorenz96

DOUBLE = torch.float64
D = 8
SYSTEM = Lorenz96(D, dtype=DOUBLE)
NEAR = Localization.periodic(D, torch.arange(0, D, 2, dtype=DOUBLE), 2.0)


class Stub:
    """Draws N(mean, covariance) for any observations, and records them."""

    def __init__(self, mean: Tensor, covariance: Tensor, memory: int = 3) -> None:
        self.mean, self.root = mean, torch.linalg.cholesky(covariance)
        self.memory, self.size, self.evaluations = memory, len(mean), 5
        self.conditioned: list[tuple[Tensor, Tensor]] = []

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        self.conditioned.append((values.clone(), seen.clone()))
        return self.mean + normal(x.shape, like=self.mean, rng=rng) @ self.root.mT


class Broken(Stub):
    """Not finite in one replicate."""

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        members = super().draw(x, values, seen, rng=rng)
        members[0, 0, 0] = torch.nan
        return members


class Raising(Stub):
    """Stands for a sampler that diverged."""

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        raise FloatingPointError


def climate() -> tuple[Tensor, Tensor]:
    return torch.full((D,), 2.3, dtype=DOUBLE), 13.0 * torch.eye(D, dtype=DOUBLE)


def twin(replicates: int = 2, steps: int = 10) -> tuple[Observations, Tensor]:
    rng = torch.Generator().manual_seed(5)
    start = SYSTEM.trajectory(SYSTEM.initial(replicates, rng=rng), 80)[:, -1]
    seen = Survey(operators.Stride(2), Isotropic(0.25)).observe(SYSTEM.trajectory(start, steps - 1), rng=rng)
    return seen, start[:, None] + normal((replicates, 10, D), like=start, rng=rng)


def assimilate(method, observations: Observations, x0: Tensor, **settings):
    rng = torch.Generator().manual_seed(7)
    return method.assimilate(observations, x0.shape[-2], x0=x0, rng=rng, **settings)


def test_a_pseudo_ensemble_of_the_true_prior_gives_the_kalman_analysis():
    """Six standard errors of 4000 draws, at 3 sites: one false alarm in 10^8."""
    mean = torch.tensor([1.0, -2.0, 0.5], dtype=DOUBLE)
    P = torch.tensor([[2.0, 0.8, 0.1], [0.8, 1.5, -0.4], [0.1, -0.4, 1.0]], dtype=DOUBLE)
    H = torch.eye(3, dtype=DOUBLE)[:1]
    R = torch.tensor([[0.5]], dtype=DOUBLE)
    y = torch.tensor([3.0], dtype=DOUBLE)
    K = P @ H.mT @ torch.linalg.inv(H @ P @ H.mT + R)
    expected, covariance = mean + K @ (y - H @ mean), P - K @ H @ P
    eye = torch.eye(3, dtype=DOUBLE)
    system = LinearGaussian(eye, eye, torch.zeros(3, dtype=DOUBLE), eye)
    method = PseudoEnKF(system, generator=Stub(mean, P), draws=4000, blend=1.0)
    observation = Observation(y, operators.Stride(3), Isotropic(0.5))
    memory = Memory()
    forecast = torch.zeros(1, 3, dtype=DOUBLE)
    got = method.analyse(forecast, observation, rng=torch.Generator().manual_seed(1), memory=memory)[0]
    # the gain is of the sample, too: at most the prior's own error
    assert ((got - expected).abs() <= 6 * (covariance.diagonal() + P.diagonal()).sqrt() / 4000**0.5).all()
    half = PseudoEnKF(system, generator=Stub(mean, P), draws=4000, blend=0.5)
    again = half.analyse(forecast, observation, rng=torch.Generator().manual_seed(1), memory=Memory())[0]
    torch.testing.assert_close(again, 0.5 * got)


def test_without_weight_it_is_the_letkf_bit_for_bit():
    observations, x0 = twin()
    settings = {"localization": NEAR, "inflation": 1.05, "rotate": True}
    generator = Stub(*climate())
    ours = GenerativeEnKF(SYSTEM, generator=generator, trust=0.0, horizon=0, **settings)
    one, other = assimilate(ours, observations, x0), assimilate(LETKF(SYSTEM, **settings), observations, x0)
    assert torch.equal(one.samples, other.samples)
    assert not generator.conditioned


def test_merging_is_the_kalman_update_of_each_site():
    """A member's mean and variance with an observation N(mean p, q^2 / trust), in closed form."""
    rng = torch.Generator().manual_seed(2)
    x, p = normal((30, 4), dtype=DOUBLE, rng=rng), 1 + 2 * normal((20, 4), dtype=DOUBLE, rng=rng)
    merged, share = merge(x, p, torch.tensor(0.5, dtype=DOUBLE))
    s, q = x.var(0), p.var(0) / 0.5
    torch.testing.assert_close(merged.mean(0), x.mean(0) + s / (s + q) * (p.mean(0) - x.mean(0)))
    torch.testing.assert_close(merged.var(0), s * q / (s + q))
    torch.testing.assert_close(share, (s / (s + q)).mean())


def test_merging_survives_ensembles_without_spread():
    x, p = torch.zeros(3, 2, dtype=DOUBLE), torch.ones(3, 2, dtype=DOUBLE)
    wide = torch.tensor([[-1.0, -1.0], [0.0, 0.0], [1.0, 1.0]], dtype=DOUBLE)
    one = torch.ones((), dtype=DOUBLE)
    assert torch.equal(merge(x, wide, one)[0], x)  # no spread, no doubt
    torch.testing.assert_close(merge(wide, p, one)[0], p, rtol=0, atol=1e-6)
    assert torch.isfinite(merge(x, p, one)[0]).all()


@pytest.mark.parametrize("uniform", [True, False])
def test_the_error_of_a_model_is_found(uniform):
    """Draws of the truth's own law: the running mean is the model's error, within 6 standard errors of it."""
    rng = torch.Generator().manual_seed(3)
    A = 0.9 * torch.eye(D, dtype=DOUBLE)
    error = torch.full((D,), 0.2, dtype=DOUBLE) if uniform else torch.linspace(-1, 1, D, dtype=DOUBLE)
    eye, zero = torch.eye(D, dtype=DOUBLE), torch.zeros(D, dtype=DOUBLE)
    model = LinearGaussian(A, 1e-6 * eye, zero, eye)
    truth = error / (1 - 0.9)  # where x = A x + error stays
    generator = Stub(truth, 0.1 * eye)
    steps, horizon, draws = 300, 200, 8
    value = truth + 0.1 * normal((steps, D), dtype=DOUBLE, rng=rng)
    observations = Observations({"all": Observation(value, operators.Identity(), Isotropic(0.01))})
    method = GenerativeEnKF(model, generator=generator, draws=draws, horizon=horizon)
    seen: dict[str, Tensor] = {}

    def look(k, belief):
        seen["error"] = method._error(belief.memory)
        return {}

    assimilate(
        method, observations, truth + normal((10, D), dtype=DOUBLE, rng=rng), monitor=look, keep="moments"
    )
    # successive samples share their draws; the sum of all but the first and last cancels up to a tenth of it
    deviation = (0.1 * (1 + 0.81) / draws / horizon) ** 0.5
    assert (seen["error"] - error).abs().max() < 6 * deviation
    if uniform:  # then the sites' differences are taken for chance
        assert seen["error"].std() < 0.5 * deviation


class Certain(Stub):
    """Draws members whose mean is the truth now, which the test sets."""

    def draw(self, x: Tensor, values: Tensor, seen: Tensor, *, rng: torch.Generator | None = None) -> Tensor:
        members = normal(x.shape, like=self.mean, rng=rng)
        return self.mean + members - members.mean(-2, keepdim=True)


@pytest.mark.parametrize("gaps", [(1,) * 14, (4,) * 14, (1, 3, 2, 5, 2, 1, 4) * 2])
def test_an_error_is_that_of_one_step_however_long_it_was_to_the_last_analysis(gaps):
    """x -> x, the truth x -> x + c: every sample is c, before and after the estimate is applied, to rounding."""
    eye, zero = torch.eye(D, dtype=DOUBLE), torch.zeros(D, dtype=DOUBLE)
    c = torch.linspace(-0.3, 0.7, D, dtype=DOUBLE)
    generator = Certain(zero, eye)
    method = GenerativeEnKF(LinearGaussian(eye, 0 * eye, zero, eye), generator=generator, trust=0.0)
    memory, x = Memory(), normal((10, D), dtype=DOUBLE, rng=torch.Generator().manual_seed(1))
    method.start(x, memory)
    rng = torch.Generator().manual_seed(2)
    for count, gap in enumerate(gaps):
        for _ in range(gap):
            x = method.forecast(x, memory)
            generator.mean = generator.mean + c
        observation = Observation(generator.mean, operators.Identity(event=1), Isotropic(0.1))
        x = method.analyse(x, observation, rng=rng, memory=memory)
        if count:
            torch.testing.assert_close(memory.carry["draws_mean"], c, rtol=0, atol=1e-6)
            torch.testing.assert_close(memory.carry["draws_square"], c.square(), rtol=0, atol=1e-6)
        assert float(memory.carry["draws_count"]) == count
        assert float(memory.carry["age"]) == 0
    torch.testing.assert_close(method._error(memory), c, rtol=0, atol=1e-6)


@pytest.mark.parametrize("gap", [1, 2, 5])
def test_a_mean_increment_is_that_of_one_step(gap):
    """As above, from an exact observation of everything."""
    eye, zero = torch.eye(D, dtype=DOUBLE), torch.zeros(D, dtype=DOUBLE)
    c = torch.linspace(-0.3, 0.7, D, dtype=DOUBLE)
    method = GenerativeEnKF(
        LinearGaussian(eye, 0 * eye, zero, eye), generator=Stub(zero, eye), trust=0.0, horizon=0, closure=50
    )
    memory, x = Memory(), normal((30, D), dtype=DOUBLE, rng=torch.Generator().manual_seed(1))
    method.start(x, memory)
    truth = x.mean(0) + gap * c
    for _ in range(gap):
        x = method.forecast(x, memory)
    method.analyse(x, Observation(truth, operators.Identity(event=1), Isotropic(1e-10)), memory=memory)
    torch.testing.assert_close(memory.carry["increments_mean"], c, rtol=0, atol=1e-6)


def test_an_error_known_to_be_uniform_is_the_mean_over_the_sites():
    _, x0 = twin()
    errors = []
    for uniform in (False, True):
        method = GenerativeEnKF(
            SYSTEM, generator=Stub(*climate()), horizon=9, gain=2.0, uniform=uniform, trust=0.0
        )
        memory = Memory()
        method.start(x0, memory)
        rng = torch.Generator().manual_seed(1)
        memory.carry["draws_square"] = torch.ones(2, D, dtype=DOUBLE)
        memory.carry["draws_mean"] = normal((2, D), dtype=DOUBLE, rng=rng)
        memory.carry["draws_count"] = torch.full((2,), 50.0, dtype=DOUBLE)
        errors.append(method._error(memory))
    assert torch.equal(errors[1], errors[1][:, :1].expand(2, D)) and errors[0].std() > 0.1
    torch.testing.assert_close(errors[1].mean(-1), errors[0].mean(-1))


def test_shrinking_keeps_differences_that_chance_does_not_explain():
    rng = torch.Generator().manual_seed(4)
    samples = normal((400, 50), dtype=DOUBLE, rng=rng)
    for spread, low, high in ((0.0, 0.0, 0.6), (1.0, 0.95, 1.0)):
        x = samples + spread * torch.linspace(-1, 1, 50, dtype=DOUBLE)
        mean = x.mean(0)
        got = shrunk(mean, x.square().mean(0), torch.tensor(400.0, dtype=DOUBLE))
        torch.testing.assert_close(got.mean(), mean.mean())
        assert low <= float(got.std() / mean.std()) <= high


def test_the_generator_is_told_the_last_observations_newest_first_and_only_where_seen():
    observations, x0 = twin(steps=4)
    observations["observation"].value[1, 2, 1] = torch.nan
    generator = Stub(*climate())
    assimilate(GenerativeEnKF(SYSTEM, generator=generator, localization=NEAR), observations, x0)
    values, seen = generator.conditioned[-1]
    y = observations["observation"].value  # (2, 4, 4), every second site
    network = torch.arange(D) % 2 == 0
    assert torch.equal(seen[0], network.expand(3, D))
    assert not seen[1, 1, 2] and int(seen[1].sum()) == 11
    for age in range(3):
        torch.testing.assert_close(values[0, age, ::2], y[0, 3 - age].float())
    published = Stub(*climate())
    assimilate(PseudoEnKF(SYSTEM, generator=published, localization=NEAR), observations, x0)
    assert not published.conditioned[-1][1][:, 0].any()  # the newest is left for the analysis
    assert published.conditioned[-1][1][0, 1].sum() == 4
    blind = Stub(*climate())
    assimilate(GenerativeEnKF(SYSTEM, generator=blind, window=0, localization=NEAR), observations, x0)
    assert not any(seen.any() for _, seen in blind.conditioned)


@pytest.mark.parametrize("kind", [Broken, Raising])
@pytest.mark.parametrize("method", [GenerativeEnKF, PseudoEnKF])
def test_draws_that_are_not_finite_leave_the_forecast_and_are_reported(kind, method):
    observations, x0 = twin()
    with pytest.warns(
        DivergenceWarning, match="draws of the generator .* left out at 10 of 10 steps, first at step 0"
    ):
        broken = assimilate(method(SYSTEM, generator=kind(*climate()), localization=NEAR), observations, x0)
    lost = torch.nan_to_num(broken.diagnostics["draws_lost"])[0]
    assert lost[1:].all() and torch.isfinite(broken.samples).all()
    if method is GenerativeEnKF:  # nothing is ever drawn: the LETKF
        alone = assimilate(LETKF(SYSTEM, localization=NEAR), observations, x0)
    else:  # nothing is ever analysed: the forecast
        alone = replace(broken, samples=SYSTEM.trajectory(x0, 9))
    torch.testing.assert_close(broken.samples[0], alone.samples[0], rtol=1e-6, atol=1e-6)


def test_an_observation_without_values_changes_nothing():
    """Compared with no observation at that step at all."""
    observations, x0 = twin()
    settings = {"localization": NEAR, "horizon": 0}
    method = GenerativeEnKF(SYSTEM, generator=Stub(*climate()), **settings)
    memory = Memory()
    method.start(x0, memory)
    first = observations.step(1)
    x = method.analyse(x0, first, rng=torch.Generator().manual_seed(1), memory=memory)
    pseudo = memory.carry["pseudo"].clone()
    empty = replace(first, value=torch.full_like(first.value, torch.nan))
    memory.step = 1
    forecast = method.forecast(x, memory)
    moved = memory.carry["pseudo"].clone()
    method.analyse(forecast, empty, rng=torch.Generator().manual_seed(2), memory=memory)
    assert torch.equal(memory.carry["pseudo"], moved)
    torch.testing.assert_close(moved, SYSTEM(pseudo))


def test_network_calls_are_those_of_all_draws():
    observations, x0 = twin()
    post = assimilate(
        GenerativeEnKF(SYSTEM, generator=Stub(*climate()), draws=6, localization=NEAR), observations, x0
    )
    assert post.diagnostics["network_calls"][:, 1:].unique().tolist() == [30.0]


def test_bad_input_is_told_with_the_remedy():
    generator = Stub(*climate())
    with pytest.raises(ValueError, match="train one for this system"):
        GenerativeEnKF(Lorenz96(12), generator=generator)
    with pytest.raises(ValueError, match="at least 2 draws"):
        GenerativeEnKF(SYSTEM, generator=generator, draws=1)
    with pytest.raises(ValueError, match="0 to 3 times"):
        GenerativeEnKF(SYSTEM, generator=generator, window=4)
    with pytest.raises(ValueError, match="not be negative"):
        GenerativeEnKF(SYSTEM, generator=generator, trust=-1.0)
    with pytest.raises(ValueError, match="blend"):
        PseudoEnKF(SYSTEM, generator=generator, blend=0.0)
    value = torch.zeros(D, dtype=DOUBLE)
    for operator in (
        torch.arctan,
        lambda x: x.flip(-1) + 1.0,
        lambda x: 2.0 * x,
        lambda x: torch.where(x < 1.5, x + 0.3, x),
    ):
        with pytest.raises(ValueError, match="Identity, Stride, Mask or Select"):
            sites_of(Observation(value, operator, Isotropic(1.0)), D)
    flipped = Observation(value, lambda x: x.flip(-1), Isotropic(1.0))
    assert sites_of(flipped, D).tolist() == list(range(D))[::-1]
