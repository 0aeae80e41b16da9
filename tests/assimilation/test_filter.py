"""Laws of the cycle: what is kept, kill and resume, members that are not credible, and knowing when one is lost."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

import slams
from slams.assimilation.baseline.filters import FreeRun
from slams.assimilation.ensemble.kalman import ETKF, DEnKF, EnKF
from slams.assimilation.ensemble.smoother import EnKS, IEnKS
from slams.assimilation.filter import Filter
from slams.assimilation.memory import Memory
from slams.assimilation.particle.bootstrap import AuxiliaryPF, BootstrapPF
from slams.core.covariance import Dense, Isotropic
from slams.core.errors import DIVERGED_FRACTION, DivergenceWarning, diverged_fraction
from slams.core.random import normal
from slams.evaluation.evaluate import evaluate
from slams.observation import Survey, operators
from slams.observation.observation import Observation, Observations
from slams.systems import LinearGaussian, Lorenz96
from tests.assimilation.twin import DOUBLE, Linear, stable


class Killed(Exception):
    """Stands for a signal."""


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def twin(rng):
    return Linear.simulate(rng, length=20, replicates=(2,))


def kill_at(step):
    def progress(k):
        if k == step:
            raise Killed

    return progress


@pytest.mark.parametrize("keep", ["scores", "moments", "members"])
@pytest.mark.parametrize("settings", [{"rotate": True}, {"adaptive": True}])
def test_killed_run_ends_like_an_uninterrupted_one(tmp_path, twin, keep, settings):
    """Bit for bit: ensemble, generator, what is kept, explanations; killed twice, between saves."""

    def run(**extra):
        method = ETKF(twin.system, **settings)
        return method.assimilate(
            twin.observations, 6, keep=keep, explain=[2, 14], rng=generator(), monitor=monitor, **extra
        )

    def monitor(k, belief):
        return {"first": belief.moments()[0][..., 0]}

    whole = run()
    path = tmp_path / "run.safetensors"
    for step in (7, 16):
        with pytest.raises(Killed):
            run(checkpoint=path, every=3, progress=kill_at(step))
    steps = []
    resumed = run(checkpoint=path, every=3, progress=steps.append)
    assert steps[0] == 15  # the save after step 14
    for name in ("samples", "mean", "variance"):
        one, other = getattr(whole, name), getattr(resumed, name)
        assert (one is None) == (other is None)
        if one is not None:
            assert torch.equal(one, other)
    assert whole.diagnostics.keys() == resumed.diagnostics.keys()
    for name, value in whole.diagnostics.items():
        torch.testing.assert_close(value, resumed.diagnostics[name], rtol=0, atol=0, equal_nan=True)
    for k in (2, 14):
        for name, value in vars(whole.explain(k)).items():
            assert torch.equal(value, getattr(resumed.explain(k), name))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"inflation": 1.2}, "inflation"),
        ({"size": 8}, "size"),
        ({"keep": "moments"}, "keep"),
        ({"seed": 4}, "seed"),
        ({"method": DEnKF}, "kind"),
        ({"other": True}, "observations"),
    ],
)
def test_resume_with_another_set_up_is_refused_and_says_what_differs(tmp_path, twin, rng, change, named):
    def run(*, method=EnKF, inflation=1.1, size=6, keep="scores", seed=3, other=False, **extra):
        observations = (
            Linear.simulate(rng, length=20, replicates=(2,)).observations if other else twin.observations
        )
        filtering = method(twin.system, inflation=inflation)
        filtering.assimilate(
            observations, size, keep=keep, rng=generator(seed), checkpoint=tmp_path / "run", **extra
        )

    with pytest.raises(Killed):
        run(every=3, progress=kill_at(7))
    with pytest.raises(ValueError, match=named):
        run(**change)
    run()  # the same one goes on


def test_checkpoint_without_a_generator_is_refused(tmp_path, twin):
    with pytest.raises(ValueError, match="generator"):
        EnKF(twin.system).assimilate(twin.observations, 6, checkpoint=tmp_path / "run")


def test_what_is_kept_does_not_change_the_run(twin):
    """Moments and scores are those of the members, and looking on draws no random numbers."""

    def monitor(k, belief):
        return {"mean": belief.members().mean((-2, -1))}

    members = EnKF(twin.system).assimilate(twin.observations, 6, rng=generator())
    moments = EnKF(twin.system).assimilate(twin.observations, 6, keep="moments", rng=generator())
    scores = EnKF(twin.system).assimilate(
        twin.observations, 6, keep="scores", monitor=monitor, rng=generator()
    )
    torch.testing.assert_close(moments.mean, members.samples.mean(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(moments.variance, members.samples.var(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(scores.diagnostics["mean"], members.samples.mean((1, 3)), rtol=0, atol=1e-12)
    assert moments.samples is None
    assert scores.samples is None
    assert scores.mean is None


def test_memory_holds_only_what_is_kept(twin):
    """With keep="scores" nothing is as large as a state per step."""
    post = EnKF(twin.system).assimilate(twin.observations, 6, keep="scores", rng=generator())
    assert all(value.shape == (2, 20) for value in post.diagnostics.values())


def test_step_without_observation_is_a_forecast(twin):
    post = EnKF(twin.system.__class__(twin.system.transition, torch.zeros(3, 3).double(), *_start(twin)))
    samples = post.assimilate(twin.observations, 6, rng=generator()).samples
    torch.testing.assert_close(
        samples[..., 3, :], samples[..., 2, :] @ twin.system.transition.mT, rtol=0, atol=1e-12
    )


def _start(twin):
    return twin.system.start.mean, twin.system.start.cov


@pytest.mark.parametrize("method", [DEnKF, partial(EnKS, lag=2), BootstrapPF, AuxiliaryPF], ids=str)
def test_time_varying_model_is_followed(method, rng):
    """The model of step k moves step k to k + 1, whether anything is seen there or not."""
    M = torch.stack([stable(3, rng) for _ in range(4)])
    system = LinearGaussian(M, torch.zeros(3, 3).double(), torch.zeros(3).double(), torch.eye(3).double())
    truth = system.trajectory(system.initial(rng=rng).double(), 4)
    # seen so badly at step 2 that no analysis moves a member and no weight matters
    observations = Survey(operators.Identity(), 1e30, times=[2]).observe(truth, rng=rng)
    samples = method(system).assimilate(observations, 5, rng=rng).samples
    for k in range(4):
        torch.testing.assert_close(samples[:, k + 1], samples[:, k] @ M[k].mT, rtol=0, atol=1e-12)


class Broken(EnKF):
    """Spoils members at step 4."""

    which: slice = slice(0, 2)

    def analyse(self, forecast, observation, *, rng=None, memory=None):
        x = super().analyse(forecast, observation, rng=rng, memory=memory)
        if memory is not None and memory.step == 4:
            x = x.clone()
            x[1, self.which] = torch.tensor([torch.nan, 1e9, 0.0], dtype=x.dtype)
        return x


def test_spoilt_members_stop_the_run(twin):
    with pytest.raises(FloatingPointError, match=r"step 4 \(replicates: \[1\]\)"):
        Broken(twin.system).assimilate(twin.observations, 6, rng=generator())


class Infinite(Broken):
    """An infinite value where `Broken` has none at all."""

    def analyse(self, forecast, observation, *, rng=None, memory=None):
        x = super().analyse(forecast, observation, rng=rng, memory=memory)
        return x.nan_to_num(nan=torch.inf)


def test_infinite_members_are_spoilt_without_a_bound(twin):
    with pytest.raises(FloatingPointError, match=r"not finite at step 4 \(replicates: \[1\]\)"):
        Infinite(twin.system).assimilate(twin.observations, 6, rng=generator())
    post = Infinite(twin.system, failure="replace").assimilate(twin.observations, 6, rng=generator())
    assert torch.isfinite(post.samples).all() and post.diagnostics["replaced"][1, 4] == 2


def test_moments_are_unbiased_and_a_single_member_has_no_variance(twin, rng):
    x, method = normal((2, 4, 3), dtype=DOUBLE, rng=rng), EnKF(twin.system)
    mean, variance = method.moments(x, Memory())
    by_hand = sum((x[:, i] - x.mean(1)).square() for i in range(4)) / 3
    torch.testing.assert_close(variance, by_hand)
    mean, variance = method.moments(x[:, :1], Memory())
    assert torch.equal(mean, x[:, 0]) and torch.equal(variance, torch.zeros_like(mean))


def test_spoilt_members_are_replaced_by_sound_ones(twin):
    post = Broken(twin.system, failure="replace", bound=1e6).assimilate(twin.observations, 6, rng=generator())
    assert torch.isfinite(post.samples).all()
    assert post.diagnostics["replaced"][1, 4] == 2
    healthy = EnKF(twin.system).assimilate(twin.observations, 6, rng=generator())
    assert torch.equal(post.samples[1, 2:, 4], healthy.samples[1, 2:, 4])  # the sound ones stay
    assert torch.equal(post.samples[1, :2, 4], healthy.samples[1, 2:4, 4])
    assert torch.equal(post.samples[0, :, :5], healthy.samples[0, :, :5])


def test_ensemble_without_a_sound_member_starts_anew_and_counts_as_lost(twin):
    method = Broken(twin.system, failure="replace")
    method.which = slice(None)
    post = method.assimilate(twin.observations, 6, rng=generator())
    assert torch.isfinite(post.samples).all()
    assert post.diagnostics["diverged"][1, 4] == 1


def lorenz_track(forcing: float, inflation: float, rng) -> torch.Tensor:
    system = Lorenz96(dtype=DOUBLE)
    start = system.trajectory(system.initial(4, rng=rng), 100)[:, -1]
    truth = system.trajectory(start, 150)
    observations = Survey(operators.Identity(), Isotropic(1.0)).observe(truth, rng=rng)
    model = Lorenz96(forcing=forcing, dtype=DOUBLE)
    x0 = start.unsqueeze(1) + normal((4, 20, 40), like=start, rng=rng)
    return (
        ETKF(model, inflation=inflation, rotate=True)
        .assimilate(observations, 20, x0=x0, keep="scores", rng=rng)
        .diagnostics["diverged"]
    )


def test_filter_knows_when_it_is_lost(rng):
    """Too small an ensemble without inflation loses Lorenz-96 in all replicates; with inflation it tracks."""
    assert lorenz_track(8.0, 0.9, rng)[:, -50:].all()
    assert not lorenz_track(8.0, 1.06, rng).any()


def test_explanation_is_what_the_analysis_did(rng):
    """For an exact ensemble: innovation y - Hm in units of its error, increment K (y - Hm), influence
    diag(R^-1 H P_a H^T)."""
    twin = Linear.simulate(rng, dense=False, missing=False)
    system = twin.system
    from tests.assimilation.twin import exact_ensemble

    x0 = exact_ensemble(system.start.mean, system.start.cov, 12, rng)
    post = ETKF(system).assimilate(twin.observations, 12, x0=x0, explain=[0], rng=rng)
    found, observation = post.explain(0), twin.observations.step(0)
    H, R, P = observation.operator.h, observation.noise.dense(), system.start.cov
    K = P @ H.mT @ torch.linalg.inv(H @ P @ H.mT + R)
    d = observation.value - H @ system.start.mean
    after = P - K @ H @ P
    expected = {
        "innovation": d / R.diagonal().sqrt(),
        "increment": K @ d,
        "influence": (H @ after @ H.mT).diagonal() / R.diagonal(),
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), value, rtol=0, atol=1e-10)
    assert found.effective_size == 12
    with pytest.raises(ValueError, match=r"explain=\[5\]"):
        post.explain(5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"members": 1}, "at least 2 members"),
        ({"x0": torch.zeros(2, 6, 5)}, "expected"),
        ({"x0": torch.full((2, 6, 3), torch.nan)}, "finite"),
        ({"keep": "all"}, "keep must be"),
    ],
)
def test_bad_arguments_are_told_at_the_door(twin, arguments, message):
    with pytest.raises(ValueError, match=message):
        EnKF(twin.system).assimilate(**{"observations": twin.observations, "members": 6, **arguments})


def test_unknown_policy_is_refused(twin):
    with pytest.raises(ValueError, match="stop"):
        EnKF(twin.system, failure="ignore")
    assert Filter.least == 2


def lorenz(forcing: float, steps: int, replicates: int = 3) -> tuple[Observations, torch.Tensor]:
    """Truths of which the first follows another forcing than the model, the others the model's."""
    model = Lorenz96(20, dtype=DOUBLE)
    right = slams.Twin(model, noise=1.0, steps=steps, replicates=replicates, seed=1)
    wrong = slams.Twin(
        model, truth=Lorenz96(20, forcing, dtype=DOUBLE), noise=1.0, steps=steps, replicates=1, seed=2
    )
    value = right.observations["observation"].value.clone()
    value[0] = wrong.observations["observation"].value[0]
    observations = Observations({"y": replace(right.observations["observation"], value=value)})
    truth = right.truth.clone()
    truth[0] = wrong.truth[0]
    return observations, truth


def of_divergence(caught) -> list[str]:
    return [str(each.message) for each in caught if each.category is DivergenceWarning]


def test_a_filter_that_lost_the_truth_warns_once_with_the_step_as_the_table_counts(recwarn):
    """One of three truths has another forcing: the warning, `evaluate` and the table's column agree on which."""
    observations, truth = lorenz(16.0, 160)
    post = ETKF(Lorenz96(20, dtype=DOUBLE), inflation=1.02, rotate=True).assimilate(observations, 24, rng=0)
    (message,) = of_divergence(recwarn)
    flags = post.diagnostics["diverged"]
    seen = observations.seen_steps
    rate = diverged_fraction(flags[:, seen]) > DIVERGED_FRACTION
    assert rate.tolist() == [True, False, False]
    counted = seen[100]  # the first analysis that counts
    first = max(k for k in seen if k <= counted and flags[0, k] == 0) + 1
    assert f"ETKF has diverged in 1 of 3 replicates, first from step {first} on" in message
    recwarn.clear()
    evaluate(post, truth)
    assert of_divergence(recwarn) == [message]
    assert all(Path(each.filename) == Path(__file__) for each in recwarn)


def test_a_poor_first_guess_a_sound_filter_and_a_free_run_do_not_warn(recwarn):
    """A start 4 deviations off is forgotten; a free run diverges by construction."""
    observations, truth = lorenz(8.0, 120)
    model = Lorenz96(20, dtype=DOUBLE)
    start = 4 + truth[:, :1] + normal((3, 24, 20), like=truth, rng=generator())
    post = ETKF(model, inflation=1.05, rotate=True).assimilate(observations, 24, x0=start, rng=0)
    assert float(post.diagnostics["diverged"][:, 1:6].max()) == 1
    evaluate(post, truth)
    evaluate(FreeRun(model).assimilate(observations, 24, rng=0), truth)
    assert not of_divergence(recwarn)


def test_replaced_members_and_members_that_are_not_finite_are_told_with_the_step(twin, recwarn):
    Broken(twin.system, failure="replace", bound=1e6).assimilate(twin.observations, 6, rng=generator())
    (message,) = of_divergence(recwarn)
    assert "replaced" in message and "at 1 of 20 steps, first at step 4" in message
    recwarn.clear()
    members = torch.zeros(6, 20, 2)
    members[3, 7:, 1] = torch.nan
    evaluate(members, torch.zeros(20, 2), metrics=["rmse"])
    (message,) = of_divergence(recwarn)
    assert "the posterior has diverged from step 7 on" in message


def test_tables_count_divergence_without_a_warning(recwarn):
    """`bench` has a column for it."""
    table = slams.bench(
        "lorenz96",
        methods=["ETKF"],
        replicates=2,
        cycles=60,
        burn_in=60,
        overrides=["truth.forcing=16", "model.forcing=8"],
    )
    (etkf,) = (each for each in table.results if each.method == "ETKF")
    assert float(etkf.scores["divergence_rate"].mean()) == 1
    assert not of_divergence(recwarn)


def rivers_and_lakes(dtype=torch.float64):
    """Two modalities on Lorenz-96, the first absent at odd steps; their errors have standard deviations 1 and 2."""
    system = Lorenz96(size=8, forcing=8.0, dt=0.05)
    truth = system.trajectory(system.initial(1, rng=generator(1)), 5)[0].to(dtype)
    rivers = truth[:, :3] + torch.randn(6, 3, generator=generator(2), dtype=dtype)
    rivers[1::2] = torch.nan
    lakes = truth[:, 3:] + 2 * torch.randn(6, 5, generator=generator(3), dtype=dtype)
    start = truth[0] + torch.randn(20, 8, generator=generator(4), dtype=dtype)
    return system, {"rivers": rivers, "lakes": lakes}, start


def observed(values):
    """Values by name as observations of the first three and the last five variables."""
    parts = {"rivers": (slice(0, 3), 1.0), "lakes": (slice(3, 8), 4.0)}
    return Observations(
        {
            name: Observation(values[name], operators.Select(torch.arange(8)[at], 1), Isotropic(variance))
            for name, (at, variance) in parts.items()
        }
    )


@pytest.mark.parametrize("method", [EnKF, ETKF, BootstrapPF, IEnKS])
def test_a_gross_error_is_named_with_its_modality_and_step_before_members_overflow(method, recwarn):
    system, values, start = rivers_and_lakes()
    make = method(system)
    make.assimilate(observed(values), 20, x0=start, rng=0)
    assert not [w for w in recwarn if "standard deviations of error" in str(w.message)]
    values["lakes"][3, 1] = 1e8
    said = ""
    try:
        make.assimilate(observed(values), 20, x0=start, rng=0)
    except FloatingPointError as error:
        said = str(error)
    said += " ".join(str(w.message) for w in recwarn if issubclass(w.category, DivergenceWarning))
    assert re.search(
        r"value 1 of 'lakes' at step 3, 1e\+08, lies [345][.\d]*e\+07 standard deviations of error", said
    )


def test_many_accurate_values_seen_by_a_wide_ensemble_are_no_gross_errors(recwarn):
    """Innovations of hundreds of error deviations that the spread explains."""
    size = 20_000
    system = Lorenz96(size=size, forcing=8.0, dt=0.01)
    y = torch.randn(1, size, generator=generator(5))
    start = torch.randn(20, size, generator=generator(6))
    seen = Observations({"y": Observation(y, operators.Identity(), Isotropic(0.005**2))})
    ETKF(system).assimilate(seen, 20, x0=start, rng=0)
    assert not [w for w in recwarn if "standard deviations of error" in str(w.message)]


def test_the_wrong_one_of_values_with_correlated_errors_is_named():
    system = Lorenz96(size=4, forcing=8.0, dt=0.05)
    y = torch.zeros(3, 4)
    y[2, 0], y[2, 3] = 1e4, torch.nan
    noise = Dense(0.9 * torch.ones(4, 4) + 0.1 * torch.eye(4))
    seen = Observations({"y": Observation(y, operators.Identity(), noise)})
    with pytest.warns(DivergenceWarning, match="value 0 of 'y' at step 2, 1e\\+04"):
        ETKF(system).assimilate(seen, 20, x0=torch.randn(20, 4, generator=generator(7)), rng=0)


def test_members_that_are_all_equal_are_told_at_the_first_analysis():
    system, values, start = rivers_and_lakes()
    values["lakes"][0] = values["rivers"][0] = torch.nan
    with pytest.warns(DivergenceWarning, match="ETKF: all members are equal at the first analysis, step 1,"):
        ETKF(system).assimilate(observed(values), 20, x0=start[:1].expand(20, 8), rng=0)
