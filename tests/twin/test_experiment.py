"""Laws of twin experiments: seeds, scores on the way, costs, kill and resume."""

import pytest
import torch
import xarray as xr

from slams.assimilation.base import Assimilator, Posterior
from slams.assimilation.ensemble.kalman import ETKF, EnKF
from slams.core.covariance import Isotropic
from slams.core.random import fork
from slams.evaluation import CRPS, RMSE, SPREAD, evaluate
from slams.observation import Survey, operators
from slams.systems import Lorenz63, Lorenz96
from slams.twin import TwinExperiment
from slams.twin.methods import METHODS, ClimateStatistics, build, starting
from slams.twin.runner import Runner
from slams.twin.setup import setup


def small(*overrides: str):
    return setup(
        {"system": "lorenz96", "cycles": 25, "burn_in": 5, "replicates": 3, "truth": {"size": 8}}, overrides
    )


class Interrupted(Exception):
    """What kills a run in these tests."""


def test_the_example_of_the_design_runs():
    """As it stands there; 200 states, the first of them observed, and a filter that beats its observations."""
    rng = torch.Generator().manual_seed(0)
    system = Lorenz96(size=40, forcing=8.0, dt=0.05)
    survey = Survey(operators.Stride(2), Isotropic(1.0), every=1)
    truth, observations = TwinExperiment(system, survey, length=200).simulate(rng)
    method = ETKF(system, inflation=1.02)
    post = method.assimilate(observations, members=32, rng=rng)
    table = evaluate(post.samples, truth, metrics=[RMSE, SPREAD, CRPS])
    assert truth.shape == (200, 40) and observations.steps == 200 and observations.step(0) is not None
    assert set(table) == {"rmse", "spread", "crps"} and table["rmse"].value < 0.5


def test_a_truth_belongs_to_its_seed_alone():
    """Asked for alone or with others, with noise or without, the same bits."""
    for override in ("truth.noise=0.0", "truth.noise=0.1"):
        experiment = small(override).experiment()
        truth, seen = experiment.simulate_seeds([7, 8, 9])
        again, alone = experiment.simulate_seeds([8])
        assert torch.equal(truth[1], again[0]) and not torch.equal(truth[1], truth[0])
        assert torch.equal(
            seen["observation"].value[1].nan_to_num(), alone["observation"].value[0].nan_to_num()
        )


def test_the_model_may_differ_from_the_truth():
    experiment = setup({"system": "lorenz96"}, ["truth.forcing=11", "model.forcing=8"]).experiment()
    assert (experiment.system.forcing, experiment.model.forcing) == (11, 8)


def test_scores_on_the_way_equal_those_of_kept_members():
    """RMSE, spread, CRPS and coverage of members, computed once they are all there."""
    made = small()
    runner = Runner(made)
    truth, observations = runner.simulated
    method = EnKF(runner.experiment.model, inflation=1.05)
    result = runner.experiment.run(method, 9, truth, observations, rng=fork(0, "run"), keep="members")
    scored = slice(1 + made.burn_in, None)  # the first state is not observed
    table = evaluate(result.posterior.samples[:, :, scored], truth[:, scored], batch=1)
    for name, score in table.items():
        torch.testing.assert_close(
            result.scores[name], torch.tensor(score.replicates, dtype=torch.float64), rtol=1e-12, atol=1e-12
        )
    error = (result.posterior.mean - truth)[:, scored].square().mean(-1).sqrt().mean(-1)
    torch.testing.assert_close(result.scores["rmse_time_mean"], error, rtol=1e-12, atol=0)
    ranks = result.posterior.diagnostics["rank"]
    for k in (0, 5, 30):
        below = (result.posterior.samples[:, :, k, k % 8] < truth[:, None, k, k % 8]).sum(1)
        assert torch.equal(ranks[:, k], below.double())


def test_what_is_kept_does_not_change_the_run():
    runner = Runner(small())
    truth, observations = runner.simulated
    results = []
    for keep, detail in (("members", True), ("scores", False)):
        method = ETKF(runner.experiment.model, inflation=1.05, rotate=True)
        rng = fork(0, "run")
        results.append(
            runner.experiment.run(method, 9, truth, observations, rng=rng, keep=keep, detail=detail)
        )
    assert torch.equal(results[0].scores["rmse"], results[1].scores["rmse"])
    assert results[1].posterior.samples is None and results[1].posterior.mean is None


def test_model_calls_count_every_member_once():
    """N a step, and none for the first state; the linearization of a model is counted column by column."""
    runner = Runner(small())
    steps = runner.experiment.length
    calls = runner.run("EnKF", {"members": 9}).scores["model_calls"]
    torch.testing.assert_close(calls, torch.full((3,), 9 * (steps - 1) / steps, dtype=torch.float64))
    assert float(runner.run("Climatology", {"members": 9}).scores["model_calls"].sum()) == 0
    assert not runner.experiment.model._forward_hooks and "mean" not in vars(runner.experiment.model)


@pytest.mark.parametrize(
    "name", ["EnKF", "ETKF", "EnKFN", "LETKF", "EKF", "ThreeDVar", "EnKS", "BootstrapPF"]
)
def test_a_killed_run_ends_as_one_that_was_not(name, tmp_path):
    """Bit for bit in every number of every step, time apart, killed between two saves."""
    made, (_, settings) = small("cycles=20"), starting(name, "lorenz96")
    settings = {**settings, "members": 12}
    whole = Runner(made).run(name, settings)

    def kill(k: int) -> None:
        if k == 14:
            raise Interrupted

    with pytest.raises(Interrupted):
        Runner(made, tmp_path, every=4).run(name, settings, progress=kill)
    told = []
    resumed = Runner(made, tmp_path, every=4).run(name, settings, progress=told.append)
    assert told[0] == 12
    for key, value in whole.posterior.diagnostics.items():
        if key != "cpu_seconds":
            torch.testing.assert_close(
                resumed.posterior.diagnostics[key], value, rtol=0, atol=0, equal_nan=True, msg=key
            )
    for key in set(whole.scores) - {"cpu_seconds"}:
        torch.testing.assert_close(resumed.scores[key], whole.scores[key], rtol=0, atol=0, equal_nan=True)


def test_a_folder_of_another_set_up_is_refused_with_what_differs(tmp_path):
    Runner(small(), tmp_path).run("EnKF", {"members": 5})
    with pytest.raises(ValueError, match="model.forcing: absent there, 9 here"):
        Runner(small("model.forcing=9"), tmp_path)
    with pytest.raises(ValueError, match="inflation: absent there, 1.1 here"):
        Runner(small(), tmp_path).run("EnKF", {"members": 5, "inflation": 1.1})


def test_a_dataset_has_named_dimensions_and_comes_back_from_its_file(tmp_path):
    runner = Runner(small())
    truth, observations = runner.simulated
    result = runner.experiment.run(
        EnKF(runner.experiment.model), 4, truth, observations, rng=fork(0, "run"), keep="members"
    )
    result.to_netcdf(tmp_path / "a.nc")
    with xr.open_dataset(tmp_path / "a.nc") as data:
        assert data["members"].dims == ("replicate", "time", "member", "state")
        sizes = (3, runner.experiment.length, 4, 8)
        assert data["members"].shape == sizes and data["mean"].dims == ("replicate", "time", "state")
        got = torch.from_numpy(data["members"].values).movedim(2, 1)
        assert torch.equal(got, result.posterior.samples) and data["rmse"].dims == ("replicate",)
        assert float(data["time"][-1]) == pytest.approx((runner.experiment.length - 1) * 0.05)


def test_a_method_without_steps_is_scored_like_the_others():
    """Members of all steps at once give the numbers that a filter with those members has."""
    runner = Runner(small())
    truth, observations = runner.simulated
    model = runner.experiment.model
    kept = runner.experiment.run(EnKF(model), 6, truth, observations, rng=fork(0, "run"), keep="members")

    class AtOnce(Assimilator):
        def assimilate(self, observations, size, *, rng=None):
            return Posterior(kept.posterior.samples)

    result = runner.experiment.run(AtOnce(), 6, truth, observations, rng=fork(0, "run"))
    for name in ("rmse", "spread", "crps", "coverage90", "rmse_time_mean"):
        torch.testing.assert_close(result.scores[name], kept.scores[name], rtol=1e-12, atol=0)


def test_a_filter_that_has_lost_the_truth_is_reported():
    """Without inflation and with few members an EnKF loses Lorenz-96, and says so in every replicate."""
    made = setup({"system": "lorenz96", "cycles": 150, "burn_in": 50, "replicates": 3})
    result = Runner(made, detail=False).run("EnKF", {"members": 8, "inflation": 1.0})
    assert float(result.scores["rmse"].min()) > 1 and result.scores["divergence_rate"].tolist() == [1, 1, 1]


def test_a_loss_in_a_run_too_short_to_settle_is_reported_too():
    """Of 60 analyses only the last is looked at: it decides."""
    made = setup({"system": "lorenz96", "cycles": 60, "replicates": 3}, ["burn_in=0", "model.forcing=14"])
    scores = Runner(made, detail=False).run("EnKF", {"members": 6, "inflation": 1.0}).scores
    assert float(scores["rmse"].min()) > 1 and scores["divergence_rate"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_table_takes_its_settings(name):
    """The starting settings, and any of the space that is searched, are keywords of the class."""
    for system in ("lorenz63", "lorenz96"):
        if system == "lorenz63" and name in (
            "LETKF",
            "BiasAwareLETKF",
            "EAKF",
            "GenerativeEnKF",
            "PseudoEnKF",
        ):
            continue
        experiment = setup({"system": system}).experiment()
        size = experiment.model.state_shape[0]
        climate = ClimateStatistics(torch.zeros(size).double(), torch.eye(size).double(), 1e3)
        _, settings = starting(name, system)
        searched = {key: each.at(0.5) for key, each in METHODS[name].space.items()}
        build(name, experiment, {**settings, **searched}, climate)


def test_bad_input_is_told_with_the_remedy():
    runner = Runner(small())
    with pytest.raises(ValueError, match="did you mean EnKF"):
        runner.run("EnFK", {})
    with pytest.raises(ValueError, match="did you mean inflation"):
        runner.run("EnKF", {"members": 5, "inflaton": 1.1})
    with pytest.raises(ValueError, match="at least 2 members"):
        runner.run("EnKF", {"members": 1})
    with pytest.raises(ValueError, match="did you mean truth.forcing"):
        small("truth.forcng=8")
    with pytest.raises(ValueError, match="did you mean lorenz96"):
        setup({"system": "lorenz69"})
    with pytest.raises(ValueError, match="did you mean observe.noise"):
        small("observe.nose=1")
    system, survey = Lorenz63(dt=0.01), Survey(operators.Identity(), Isotropic(1.0))
    with pytest.raises(ValueError, match="same state"):
        TwinExperiment(system, survey, 10, model=Lorenz96(8))
    with pytest.raises(ValueError, match="not finite"):
        TwinExperiment(Lorenz63(dt=2.0), survey, 50).simulate(fork(0, "truth"))
    experiment = TwinExperiment(system, survey, 10)
    truth, observations = experiment.simulate(fork(0, "truth"))
    with pytest.raises(ValueError, match="truth has shape"):
        experiment.run(EnKF(system), 4, truth[1:], observations, rng=fork(0, "run"))


def test_a_parameter_in_the_state_is_estimated_and_the_system_s_variables_are_scored(tmp_path):
    """F is 10 and starts at 8 +- 2: found within 0.1, half the error of the plain filter; a killed run resumes alike."""
    made = setup(
        {"system": "lorenz96", "cycles": 60, "replicates": 2},
        ["burn_in=60", "truth.forcing=10", "model.forcing=8"],
    )
    runner = Runner(made)
    settings = {"members": 32, "radius": 5.0, "inflation": 1.05}
    given = {**settings, "estimate": {"forcing": 2.0}, "walk": 0.05}
    found, plain = runner.run("LETKF", given, keep="moments"), runner.run("LETKF", settings)
    numbers = found.posterior.diagnostics
    assert float((numbers["forcing"][:, -40:].mean(-1) - 10).abs().max()) < 0.1
    assert found.scores["rmse"].shape == (2,)
    assert float(found.scores["rmse"].mean()) < 0.5 * float(plain.scores["rmse"].mean())
    truth = runner.simulated[0]
    direct = (found.posterior.mean[..., :40] - truth).square().mean(-1)
    torch.testing.assert_close(numbers["squared_error"], direct)
    kept = Runner(made, tmp_path).run("LETKF", given)
    assert torch.equal(kept.posterior.diagnostics["forcing"], numbers["forcing"])
    again = Runner(made, tmp_path).run("LETKF", given)
    assert torch.equal(again.posterior.diagnostics["forcing"], numbers["forcing"])
    with pytest.raises(ValueError, match="only coefficients of Lorenz96, which are \\['forcing'\\]"):
        runner.run("LETKF", {**settings, "estimate": {"forcng": 2.0}})
