"""Laws of `slams bench`: the columns, the rows that are always there, going on, refusing."""

import csv
import json
import math

import pytest
import torch

from slams.assimilation.ensemble.kalman import EnKF
from slams.cli import main
from slams.evaluation.intervals import interval
from slams.evaluation.metrics import fair_crps, metrics_of
from slams.systems import grid_filter
from slams.twin.benchmark import COLUMNS, _plan, bench
from slams.twin.experiment import TwinExperiment
from slams.twin.runner import Runner
from slams.twin.scores import recovery, summary
from slams.twin.setup import setup

SMALL = ["truth.size=6", "burn_in=10"]


def rows(folder) -> list[dict[str, str]]:
    with open(folder / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


def run(folder, **settings):
    given = {"methods": ["EnKF"], "replicates": 3, "cycles": 30, "overrides": SMALL, **settings}
    bench("linear", out=folder, **given)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("bench") / "linear")


def test_columns_and_metrics_are_those_that_others_read(folder):
    """Of every method every metric, once a truth and once for their mean."""
    table = rows(folder)
    assert (folder / "metrics.csv").read_text().splitlines()[0] == (
        "system,settings,replicate,method,variable,level,part,metric,value,lower,upper,n"
    )
    assert tuple(table[0]) == COLUMNS
    for name in ("EnKF", "Climatology", "Persistence", "FreeRun", "Kalman"):
        mine = [row for row in table if row["method"] == name]
        absent = {
            "recovery",
            "recovered_in_2",
            *(["diverged_fraction"] if name == "Kalman" else []),
        }  # of truths that jump
        expected = [m.name for m in metrics_of("twin") if m.name not in absent]
        for metric in expected:
            assert [r["replicate"] for r in mine if r["metric"] == metric] == ["1000", "1001", "1002", ""]
    assert {row["settings"] for row in table if row["method"] == "EnKF"} == {"default"}
    assert {row["value"] for row in table if row["metric"] == "network_calls"} == {"0"}


def test_the_mean_row_is_the_mean_with_its_interval(folder):
    mine = [r for r in rows(folder) if r["method"] == "EnKF" and r["metric"] == "rmse"]
    each = [float(r["value"]) for r in mine if r["replicate"]]
    (last,) = [r for r in mine if not r["replicate"]]
    got = [float(last[name]) for name in ("value", "lower", "upper")]
    assert got == pytest.approx(interval(each, "log-normal"), rel=1e-5) and last["n"] == "3"


def test_nothing_beats_the_exact_filter_and_anything_beats_the_climate(folder):
    """In CRPS, averaged over 3 truths of 30 analyses of 6 variables: far apart."""
    mean = {
        r["method"]: float(r["value"]) for r in rows(folder) if r["metric"] == "crps" and not r["replicate"]
    }
    assert mean["Kalman"] < mean["EnKF"] < mean["Persistence"] < 1.1 * mean["Climatology"]


def test_report_and_figures_are_there_and_self_contained(folder):
    page = (folder / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3 and "http" not in page.replace("http-equiv", "")
    assert {path.name for path in (folder / "figures").iterdir()} == {"scores.png", "time.png", "ranks.png"}
    assert "default" in page and "Kalman" in page


def test_the_same_call_simulates_and_runs_nothing_anew(folder, monkeypatch):
    """Finished runs are read back: the table is the same, but for what the exact filter's clock said."""
    before = rows(folder)
    monkeypatch.setattr(EnKF, "analyse", None)
    run(folder)
    keep = [r for r in rows(folder) if not (r["metric"] == "cpu_seconds" and r["method"] == "Kalman")]
    assert keep == [r for r in before if not (r["metric"] == "cpu_seconds" and r["method"] == "Kalman")]


def test_another_set_up_in_the_same_folder_is_refused(folder):
    with pytest.raises(ValueError, match=r"cycles: 30 there, 31 here"):
        run(folder, cycles=31)
    with pytest.raises(ValueError, match=r"truth.damping: absent there, 0.5 here"):
        run(folder, overrides=[*SMALL, "truth.damping=0.5"])


def test_tuned_settings_are_read_and_called_so(tmp_path):
    path = tmp_path / "tuned.yaml"
    path.write_text("system: linear\nmethods: {EnKF: {settings: {inflation: 1.2, members: 7}}}\n")
    out = run(tmp_path / "out", settings=path, cycles=10)
    assert {r["settings"] for r in rows(out) if r["method"] == "EnKF"} == {"tuned"}
    told = json.loads((out / "runs" / "EnKF.json").read_text())
    assert told == {"method": "EnKF", "members": 7, "inflation": 1.2}
    path.write_text("system: lorenz96\nmethods: {}\n")
    with pytest.raises(ValueError, match="tuned for lorenz96, not linear"):
        run(tmp_path / "other", settings=path)


def test_what_was_tuned_joins_the_usual_methods_and_the_tuned_ensemble_filter_stays(tmp_path):
    """Without --methods a tuned one is run; with others asked for, EnKF is the tuned row that every table has."""
    path = tmp_path / "tuned.yaml"
    path.write_text(
        "system: linear\nmethods: {EnKF: {settings: {inflation: 1.2}}, Nudging: {settings: {gain: 0.3}}}\n"
    )
    made = setup({"system": "linear"})
    assert ("Nudging", "tuned") in [(each.method, each.origin) for each in _plan(made, None, path)]
    plan = {each.label: (each.settings, each.origin) for each in _plan(made, ["ETKF"], path)}
    assert plan["EnKF tuned"][1] == "tuned" and plan["EnKF tuned"][0]["inflation"] == 1.2


def test_settings_of_another_set_up_are_not_called_its_own():
    """Neither the paper's inflation nor the tuned one was chosen for a model with another forcing."""
    told = {each.label: each.origin for each in _plan(setup({"system": "lorenz96"}), ["ETKF"], None)}
    assert told["ETKF"] == "published" and told["EnKF tuned"] == "tuned"
    other = setup({"system": "lorenz96"}, ["truth.forcing=11", "model.forcing=8"])
    told = {each.label: each.origin for each in _plan(other, ["ETKF"], None)}
    assert told["ETKF"] == "published elsewhere" and told["EnKF tuned"] == "tuned elsewhere"
    assert told["Persistence"] == "default"


def test_no_run_begins_before_all_settings_are_known_to_be_sound(tmp_path):
    path = tmp_path / "tuned.yaml"
    for text, told in (
        ("EnKF: {settings: {inflatoin: 1.2}}", "did you mean inflation"),
        ("EnKF: {settings: {members: 1}}", "at least 2 members, got 1"),
        ("EnKF: {inflation: 1.2}", r"methods.EnKF.inflation.*here are settings"),
    ):
        path.write_text(f"system: linear\nmethods: {{{text}}}\n")
        with pytest.raises(ValueError, match=told):
            run(tmp_path / "out", settings=path)
        assert not (tmp_path / "out" / "runs").exists()


def test_a_truth_that_leaves_the_finite_numbers_is_told_as_such():
    runner = Runner(setup({"system": "lorenz63", "replicates": 1, "cycles": 5}, ["truth.dt=5", "burn_in=0"]))
    with pytest.raises(ValueError, match="truth is not finite"):
        runner.run("EnKF", {"members": 3})


def test_a_lost_truth_is_in_the_table_and_in_the_report(tmp_path):
    """Never silent: few members without inflation on Lorenz-96."""
    bench(
        "lorenz96",
        methods=["EnKF"],
        replicates=2,
        cycles=60,
        out=tmp_path,
        overrides=["truth.size=12", "burn_in=100", "model.forcing=12"],
        settings=_weak(tmp_path),
    )
    out = tmp_path
    (row,) = [
        r
        for r in rows(out)
        if r["method"] == "EnKF" and r["metric"] == "divergence_rate" and not r["replicate"]
    ]
    assert float(row["value"]) == 1 and float(row["upper"]) == 1 and float(row["lower"]) < 0.2
    assert "EnKF" in (out / "report.html").read_text().split("diverged")[1][:200]


def _weak(folder):
    path = folder / "weak.yaml"
    path.write_text("system: lorenz96\nmethods: {EnKF: {settings: {members: 6, inflation: 1.0}}}\n")
    return path


def test_the_exact_row_is_the_kalman_filter_of_the_model():
    """Coverage of its own 90 % interval: 0.9 within 6 sigma of 3 x 60 x 6 correlated values (0.06)."""
    runner = Runner(setup({"system": "linear", "truth": {"size": 6}, "cycles": 200, "replicates": 6}))
    result = runner.exact()
    truth, observations = runner.simulated
    believed = runner.experiment.model.filter(observations)
    scored = list(result.scored)
    error = (believed.mean - truth)[:, scored].square().mean((1, 2)).sqrt()
    torch.testing.assert_close(result.scores["rmse"], error, rtol=1e-12, atol=0)
    assert abs(float(result.scores["coverage90"].mean()) - 0.9) < 0.06
    assert isinstance(runner.experiment, TwinExperiment) and not math.isnan(
        float(result.scores["crps"].mean())
    )
    with pytest.raises(ValueError, match="only linear-Gaussian models and the double well"):
        Runner(setup({"system": "lorenz63", "cycles": 2, "replicates": 1})).exact()


def test_the_exact_row_of_the_double_well_is_calibrated_and_knows_how_it_was_jumped():
    """CRPS of the density is that of 4000 of its draws, to 2 %; coverage 0.9 to 6 sigma of 8 x 100 values; with a linear
    sensor and foresight no jump takes a step to be seen."""
    tree = {"system": "doublewell", "cycles": 100, "burn_in": 0, "replicates": 8}
    runner = Runner(setup(tree, ["model.flip_chance=0.05", "observe.start=0"]))
    result = runner.exact()
    truth, observations = runner.simulated
    belief = grid_filter(runner.experiment.model, observations, count=600)
    rng = torch.Generator().manual_seed(0)
    places = torch.multinomial(belief.density[:2].flatten(0, 1), 4000, replacement=True, generator=rng)
    members = belief.points[places].reshape(2, 100, 4000).movedim(-1, 0)
    crps = fair_crps(members, truth[:2, :, 0]).mean(-1)
    torch.testing.assert_close(result.scores["crps"][:2], crps, rtol=0.02, atol=0)
    assert abs(float(result.scores["coverage90"].mean()) - 0.9) < 6 * (0.09 / 800) ** 0.5
    assert float(result.scores["recovery"].max()) == 0 and float(result.scores["recovered_in_2"].min()) == 1
    blind = Runner(setup(tree, ["observe.start=0"])).exact()
    assert float(blind.scores["rmse"].mean()) > 2 * float(result.scores["rmse"].mean())


def test_steps_until_the_sign_is_right_are_counted_from_each_jump():
    """Jumps at 2 and 5 of 8 steps: two steps, then never; without a jump there is nothing to recover."""
    wrong = torch.tensor([[0, 0, 1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1, 0, 1]]).double()
    found = recovery(wrong, [2, 5])
    assert found["recovery"].tolist() == [2.5, 0.5]
    assert found["recovered_in_2"].tolist() == [0.5, 1.0]
    assert recovery(wrong, []) == {}


def test_a_shifted_sensor_is_that_of_its_argument():
    made = setup({"system": "doublewell"}, ["observe.operator=exp", "observe.shift=-0.6", "observe.scale=2"])
    (instrument,) = made.experiment().survey.instruments.values()
    x = torch.tensor([[0.3]]).double()
    torch.testing.assert_close(instrument.operator(x), (2 * x - 0.6).exp())
    with pytest.raises(ValueError, match="scale and shift are of the argument of a pointwise function"):
        setup({"system": "doublewell"}, ["observe.shift=1"])


def test_the_command_passes_on_what_it_was_given(monkeypatch):
    given = {}
    monkeypatch.setattr("slams.twin.benchmark.bench", lambda system, **rest: given.update(rest, s=system))
    words = ["bench", "lorenz96", "--methods", "EnKF, ETKF", "--replicates", "4", "--cycles", "20"]
    assert main([*words, "--settings", "t.yaml", "--out", "D", "truth.forcing=11", "model.forcing=8"]) == 0
    assert given == {
        "s": "lorenz96",
        "methods": ["EnKF", "ETKF"],
        "replicates": 4,
        "cycles": 20,
        "settings": "t.yaml",
        "out": "D",
        "overrides": ["truth.forcing=11", "model.forcing=8"],
        "progress": True,
    }


def test_errors_are_a_line(tmp_path, capsys):
    out = str(tmp_path / "out")
    for words, told in (
        (["bench", "lorenz69", "--out", out], "did you mean lorenz96?"),
        (["bench", "linear", "--methods", "ENFK", "--out", out], "did you mean EnKF?"),
        (["bench", "linear", "--out", out, "observe.operator=strid"], "did you mean stride?"),
        (["bench", "linear", "--out", out, "cycles=0"], "cycles must be at least 1"),
        (["bench", "linear", "--settings", str(tmp_path / "none.yaml"), "--out", out], "no settings at"),
    ):
        assert main(words) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
    assert not (tmp_path / "out").exists()


def test_analyses_of_ensf_that_are_the_etkfs_are_labelled(tmp_path):
    """A wide kernel in every analysis of a linear sensor: the share is 1; of the ETKF itself nothing is said."""
    settings = {"EnSF": {"members": 40, "kernel": 0.9999999}, "ETKF": {"members": 40}}
    few = {"replicates": 2, "cycles": 5, "overrides": ["truth.size=3", "burn_in=0"]}
    table = bench("linear", methods=["EnSF", "ETKF"], settings=settings, out=tmp_path, **few)
    labels = {line["method"]: line.get("kernel") for line in table.lines}
    assert labels["EnSF"] == "EnSF = ETKF here (100 % of analyses)"
    assert all(label is None for name, label in labels.items() if name != "EnSF")
    shares = [row["value"] for row in rows(tmp_path) if row["metric"] == "one_gaussian"]
    assert shares == ["1", "1", "1"]
    assert "EnSF = ETKF here" in (tmp_path / "report.html").read_text()


def test_tempered_analyses_are_not_the_etkfs():
    """One Gaussian in three of four analyses, of which one had the operator's own likelihood: half."""
    ones = torch.ones(1, 4)
    numbers = {name: ones for name in ("squared_error", "variance", "predictive_variance", "model_calls")}
    numbers |= {"one_gaussian": torch.tensor([[1.0, 1, 1, 0]]), "tempered": torch.tensor([[0.0, 1, 0, 0]])}
    assert float(summary(numbers, range(4))["one_gaussian"]) == 0.5
