"""Laws of twin experiments with the user's own systems, surveys and methods, and of old names."""

import csv
import functools
import json
import sys

import pytest
import torch

from slams.assimilation import ETKF, EnKF
from slams.assimilation.base import Assimilator, Posterior
from slams.cli import main
from slams.core.covariance import Isotropic
from slams.core.random import normal
from slams.core.renamed import renamed
from slams.evaluation.tuning import Range
from slams.observation import Survey, operators
from slams.systems import Lorenz96
from slams.systems.base import Dynamics
from slams.twin import TwinExperiment, bench, tune
from slams.twin.benchmark import read_settings
from slams.twin.frontier.cases import read_cases
from slams.twin.methods import METHODS
from slams.twin.runner import Runner
from slams.twin.setup import imported_system, setup

SHORT = {"replicates": 2, "cycles": 8, "burn_in": 3}


class Decay(Dynamics):
    """x' = rate x + e on a small field."""

    state_shape = (2, 3)
    dt = 1.0

    def __init__(self, rate: float = 0.9):
        super().__init__()
        self.rate = rate

    def initial(self, *shape, rng=None):
        return normal((*shape, 2, 3), dtype=torch.float64, rng=rng)

    def forward(self, x, *, rng=None):
        return self.rate * x + 0.3 * normal(x.shape, like=x, rng=rng)


class Guess(Assimilator):
    """Draws around the truth's mean, whatever is observed."""

    def assimilate(self, observations, members, *, rng=None):
        return Posterior(
            normal((*observations.batch, members, observations.steps, 2, 3), dtype=torch.float64, rng=rng)
        )


def scores(table, method):
    return {r["metric"]: r["value"] for r in table.rows if r["method"] == method and r["replicate"] == ""}


def test_a_system_of_the_users_gives_the_numbers_of_the_same_system_by_name():
    """Bit for bit: the set-up by name and the object with its settings are one experiment."""
    named = bench(
        "lorenz96", methods=["ETKF"], overrides=["truth.size=8"], settings={"ETKF": {"members": 6}}, **SHORT
    )
    own = bench(
        Lorenz96(8, dtype=torch.float64),
        methods=[ETKF],
        settings={"ETKF": {"members": 6, "inflation": 1.01, "rotate": True}},
        **SHORT,
    )
    mine, theirs = scores(own, "ETKF"), scores(named, "ETKF")
    assert all(mine[key] == theirs[key] for key in theirs if key != "cpu_seconds")


def test_fields_classes_functions_and_instances_stand_in_one_table(tmp_path):
    class Mine(EnKF):
        """A filter of the user's."""

    table = bench(
        Decay(),
        methods={"class": Mine, "function": lambda model: EnKF(model, inflation=1.1), "draws": Guess()},
        noise=0.5,
        settings={"class": {"members": 20, "inflation": 1.1}, "function": {"members": 20}},
        **SHORT,
    )
    assert {"class", "function", "draws", "Climatology", "Persistence", "FreeRun"} == {
        r.method for r in table.results
    }
    assert scores(table, "class")["rmse"] < scores(table, "draws")["rmse"]
    assert "function" in str(table) and "<table" in table._repr_html_()
    assert len(table.to_dataframe()) == len(table.rows)
    page = table.report(tmp_path / "report")
    with open(page.parent / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(table.rows) and page.stat().st_size > 10_000
    assert not (tmp_path / "report" / "runs").exists()


def test_an_operator_a_survey_and_a_wrong_model_may_be_objects():
    """A survey of the same operator, times and errors gives the same table; noise is a standard deviation."""
    model = Lorenz96(8, dtype=torch.float64)
    given = {"methods": ["EnKF"], "truth": Lorenz96(8, forcing=9.0, dtype=torch.float64), **SHORT}
    one = bench(model, stride=2, every=2, noise=0.5, **given)
    survey = Survey(operators.Stride(2), Isotropic(0.25), every=2, start=2)
    other = bench(model, survey=survey, **given)
    assert scores(one, "EnKF")["rmse"] == scores(other, "EnKF")["rmse"]
    assert one.setup.truth["forcing"] == 9 and one.setup.model["forcing"] == 8
    third = bench(model, operator=lambda x: x[..., ::2], every=2, noise=0.5, **given)
    assert scores(third, "EnKF")["rmse"] == scores(one, "EnKF")["rmse"]


def test_runs_in_a_folder_are_resumed_and_those_of_another_object_refused(tmp_path, monkeypatch):
    given = {"methods": ["EnKF"], "out": tmp_path, **SHORT}
    before = bench(Decay(0.9), **given)
    monkeypatch.setattr(EnKF, "analyse", None)
    assert scores(bench(Decay(0.9), **given), "EnKF")["rmse"] == scores(before, "EnKF")["rmse"]
    with pytest.raises(ValueError, match=r"truth.rate: 0.9 there, 0.8 here"):
        bench(Decay(0.8), **given)


def test_tuning_takes_own_methods_and_ranges_and_bench_takes_what_it_chose(tmp_path):
    class Mine(ETKF):
        """A filter of the user's."""

    found = tune(
        Lorenz96(8, dtype=torch.float64),
        [Mine],
        tmp_path / "t.yaml",
        budget=3,
        spaces={"Mine": {"inflation": Range(1.0, 1.2)}},
        **SHORT,
    )
    (row,) = found.rows
    assert (
        row["method"] == "Mine"
        and row["score"] <= row["at first"]
        and found.found.methods["Mine"].trials == 3
    )
    assert read_settings(tmp_path / "t.yaml", "Lorenz96") == found.settings
    assert found.report(tmp_path / "report").exists() and "Mine" in str(found)
    table = bench(Lorenz96(8, dtype=torch.float64), methods=[Mine], settings=found.settings, **SHORT)
    assert scores(table, "Mine")["rmse"] > 0


def test_objects_of_the_wrong_kind_are_refused_with_the_remedy():
    with pytest.raises(TypeError, match="make an instance of the class"):
        bench(Decay)
    with pytest.raises(TypeError, match="methods is a list"):
        bench(Decay(), methods="EnKF")
    with pytest.raises(TypeError, match="a method is a name, a class"):
        bench(Decay(), methods=[3])
    with pytest.raises(ValueError, match="needs a name of its own, got <lambda>"):
        bench(Decay(), methods=[lambda model: EnKF(model)])
    with pytest.raises(TypeError, match="m made a int"):
        bench(Decay(), methods={"m": lambda model: 3}, **SHORT)
    with pytest.raises(ValueError, match="leave out operator, stride, every and noise"):
        bench(Decay(), survey=Survey(operators.Identity(2), 1.0), noise=0.1)
    with pytest.raises(ValueError, match="both given"):
        bench("lorenz96", stride=2, operator="exp")
    with pytest.raises(ValueError, match="takes no settings"):
        bench(Decay(), overrides=["truth.rate=0.5"])
    with pytest.raises(ValueError, match="positions of the values"):
        bench("lorenz96", operator=lambda x: x**2, methods=["LETKF"], **SHORT)


MODULE = """
from slams.systems import Lorenz96

class Mine(Lorenz96):
    def __init__(self, pull: float = 8.0, dtype=None):
        super().__init__(6, pull, dtype=dtype)

made = Mine()
number = 3
"""


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    imported_system.cache_clear()
    monkeypatch.delitem(sys.modules, "mine_of_a_test", raising=False)
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "mine_of_a_test.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(folder))
    return folder


def test_the_command_takes_a_system_by_import_path(elsewhere, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["--methods", "EnKF", "--replicates", "2", "--cycles", "5", "--out", str(out), "burn_in=2"]
    assert main(["bench", "mine_of_a_test:Mine", *words, "truth.pull=9", "model.pull=8"]) == 0
    made = json.loads((out / "setup.json").read_text())
    assert (made["system"], made["truth"], made["model"]) == ("mine_of_a_test:Mine", {"pull": 9}, {"pull": 8})
    capsys.readouterr()
    for name, told in (
        ("mine_of_a_test:Mien", "cannot be imported"),
        ("mine_of_a_testt:Mine", "cannot be imported"),
        ("mine_of_a_test:number", "is 3, but a system is a slams.systems.Dynamics"),
        ("json:loads", "loads"),
    ):
        assert main(["bench", name, *words]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
    assert main(["bench", "mine_of_a_test:Mine", *words, "truth.pul=9"]) == 1
    assert "did you mean truth.pull?" in capsys.readouterr().err


def test_the_working_folder_is_searched_only_if_pythonpath_names_it(elsewhere, monkeypatch):
    """`python -m slams` puts the working folder first on the path; a foreign module there is not imported."""
    monkeypatch.chdir(elsewhere)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(ValueError, match="PYTHONPATH"):
        imported_system("mine_of_a_test:Mine")
    monkeypatch.setenv("PYTHONPATH", str(elsewhere))
    assert imported_system("mine_of_a_test:made").state_shape == (6,)


def test_a_file_does_not_name_code_to_import(elsewhere):
    """Only a user's own words do: the command line and Python."""
    with pytest.raises(ValueError, match="unknown system 'mine_of_a_test:Mine'"):
        setup({"system": "mine_of_a_test:Mine"})


def test_the_standard_deviation_replaces_the_variance_and_both_are_an_error():
    assert setup({"system": "lorenz63"}, ["observe.noise_std=3"]).observe.noise == 9
    assert setup({"system": "lorenz63", "observe": {"noise_std": 0.5}}).observe.noise == 0.25
    with pytest.raises(ValueError, match="both given"):
        setup({"system": "lorenz63"}, ["observe.noise_std=3", "observe.noise=9"])
    with pytest.raises(ValueError, match="observe.noise_std must be float"):
        setup({"system": "lorenz63"}, ["observe.noise_std=large"])


def test_types_of_settings_are_checked():
    for override, told in (
        ("cycles=many", "cycles must be int, got 'many'"),
        ("observe.every=1.5", "observe.every must be int, got 1.5"),
        ("truth.size=big", "truth.size must be int, got 'big'"),
        ("model.forcing=[8]", "model.forcing must be float"),
        ("truth=3", "truth holds settings of its own, got 3"),
    ):
        with pytest.raises(ValueError, match=told.replace("[", r"\[")):
            setup({"system": "lorenz96"}, [override])
    runner = Runner(setup({"system": "lorenz96", "truth": {"size": 6}, "replicates": 1, "cycles": 2}))
    with pytest.raises(ValueError, match="inflation must be float, got 'much'"):
        runner.method("EnKF", {"inflation": "much"})


def test_block_means_are_an_operator_of_set_ups_too():
    made = setup(
        {"system": "lorenz96", "truth": {"size": 8}}, ["observe.operator=block_mean", "observe.size=4"]
    )
    (instrument,) = made.experiment().survey.instruments.values()
    x = torch.arange(8.0, dtype=torch.float64)[None]
    assert instrument.operator(x).tolist() == [[1.5, 5.5]]
    assert setup(made.plain()) == made and "size" not in setup({"system": "lorenz96"}).plain()["observe"]


def test_old_names_work_with_a_warning_that_names_the_new_one(tmp_path):
    runner = Runner(
        setup({"system": "lorenz96", "truth": {"size": 6}, "replicates": 2, "cycles": 3, "burn_in": 0})
    )
    with pytest.warns(FutureWarning, match="'size' is now 'members'"):
        result = runner.run("EnKF", {"size": 5})
    assert result.settings == {"members": 5}
    with pytest.warns(FutureWarning, match="'rmse_a' is now 'rmse_time_mean'"):
        assert result.scores["rmse_a"] is result.scores["rmse_time_mean"]
    with pytest.raises(KeyError):
        result.scores["rmse_b"]
    path = tmp_path / "tuned.yaml"
    path.write_text("system: linear\nmethods: {EnKF: {settings: {inflation: 1.2, size: 7}}}\n")
    with pytest.warns(FutureWarning, match="'members'"):
        assert read_settings(path, "linear") == {"EnKF": {"inflation": 1.2, "members": 7}}
    truth, observations = runner.simulated
    method = EnKF(runner.experiment.model)
    with pytest.warns(FutureWarning, match="'members'"):
        runner.experiment.run(method, size=4, truth=truth, observations=observations, rng=torch.Generator())
    with pytest.raises(ValueError, match="given twice"), pytest.warns(FutureWarning):
        renamed("method setting", {"members": 3, "size": 3})


def test_folders_of_earlier_versions_go_on_and_are_read(tmp_path, monkeypatch):
    """A finished run whose settings say `size`, whose metrics.csv says rmse_a, and whose steps say hits and lost."""
    given = {"methods": ["EnKF"], "overrides": ["truth.size=6"], "out": tmp_path, **SHORT}
    before = scores(bench("linear", **given), "EnKF")
    run = tmp_path / "runs" / "EnKF.json"
    run.write_text(run.read_text().replace("members", "size"))
    table = tmp_path / "metrics.csv"
    new_to_old = {
        "rmse_time_mean": "rmse_a",
        "spread_time_mean": "spread_a",
        "diverged_fraction": "lost_share",
    }
    table.write_text(
        functools.reduce(lambda text, pair: text.replace(*pair), new_to_old.items(), table.read_text())
    )
    ((case,), _) = read_cases([tmp_path])
    (point,) = [p for p in case.points if p.label == "EnKF"]
    assert point.members == 40 and point.value("rmse_time_mean") == pytest.approx(
        before["rmse_time_mean"], rel=1e-6
    )
    monkeypatch.setattr(EnKF, "analyse", None)
    assert scores(bench("linear", **given), "EnKF") == before


def test_a_run_resumed_across_versions_has_all_its_steps():
    """Steps scored under the old name and under the new one are one series."""
    from slams.twin.scores import summary

    nothing = torch.full((1, 4), torch.nan)
    plain = {
        name: torch.ones(1, 4)
        for name in ("squared_error", "variance", "predictive_variance", "model_calls", "cpu_seconds")
    }
    old, new = nothing.clone(), nothing.clone()
    old[:, :2], new[:, 2:] = 0.5, 1.0
    assert float(summary({**plain, "hits": old, "covered": new}, range(4))["coverage90"]) == 0.75


def test_every_setting_that_is_searched_is_one_that_the_experiment_starts_from_or_a_keyword():
    """`members` is no setting that is searched: every trial of a method costs the same."""
    assert all("members" not in each.space for each in METHODS.values())
    assert isinstance(setup({"system": "linear"}).experiment(), TwinExperiment)
