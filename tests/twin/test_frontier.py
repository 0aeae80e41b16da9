"""Laws of `slams frontier`: the Pareto set, ties, advice that follows the numbers, bad folders, going on."""

import csv
import json

import numpy as np
import pytest
import torch

from slams.assimilation.ensemble.kalman import EnKF
from slams.cli import main
from slams.core.console import Console
from slams.evaluation.frontier import mean_error, pareto, tied_with_best, worse
from slams.twin.benchmark import COLUMNS
from slams.twin.frontier.advice import RULES, advise, overall, sweeps
from slams.twin.frontier.cases import COSTS, read_cases
from slams.twin.frontier.page import COLUMNS as PAGE_COLUMNS
from slams.twin.frontier.run import SIZES, frontier, read_plan
from slams.twin.scores import summary
from slams.twin.setup import setup

QUIET = Console(quiet=True)


def bench_folder(folder, methods, *, truths=8, system="lorenz96", **tree):
    """A folder as `slams bench` writes it, of made-up numbers: label -> (rmse or list, cpu, model calls, more)."""
    made = setup({"system": system, "replicates": truths, "cycles": 10, "burn_in": 0, **tree}).plain()
    folder.mkdir(parents=True)
    (folder / "setup.json").write_text(json.dumps(made))
    with open(folder / "metrics.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for label, (rmse, cpu, calls, *more) in methods.items():
            errors = list(rmse) if np.ndim(rmse) else [rmse + 0.01 * r for r in range(truths)]
            scores = {
                "spread_skill": 1.0,
                "divergence_rate": 0.0,
                "network_calls": 0.0,
                **(more[0] if more else {}),
            }
            scores |= {"rmse": float(np.mean(errors)), "cpu_seconds": cpu, "model_calls": calls}
            front = {
                "system": system,
                "settings": "tuned",
                "method": label,
                "variable": "state",
                "level": "all",
            }
            for seed, error in enumerate(errors, 1000):
                row = {"replicate": seed, "metric": "rmse", "value": error, "lower": "", "upper": "", "n": 1}
                writer.writerow({**front, "part": "all", **row})
            for metric, value in scores.items():
                row = {"replicate": "", "metric": metric, "value": value, "lower": value, "upper": value}
                writer.writerow({**front, "part": "all", **row, "n": truths})
    return folder


PLAIN = {
    "Climatology": (3.6, 1e-5, 0),
    "Persistence": (1.0, 1e-5, 0),
    "LETKF N=20": (0.200, 8e-4, 20),
    "ETKF N=40": (0.2001, 1e-4, 40),
    "ThreeDVar": (0.44, 1e-5, 1),
    "EnKF N=10": (2.0, 5e-5, 10),
}


def cases(*folders):
    return read_cases(folders)[0]


@pytest.mark.parametrize("seed", range(20))
def test_the_pareto_set_is_that_of_brute_force(seed):
    """On a coarse grid, so that ties in cost, in error and in both come often."""
    draw = np.random.default_rng(seed).integers(0, 6, (2, 15)).astype(float)
    draw[0, 3] = np.nan
    costs, errors = draw
    sound = [k for k in range(15) if np.isfinite(costs[k])]

    def beaten(k):
        return any(
            costs[j] <= costs[k] and errors[j] <= errors[k] and (costs[j], errors[j]) != (costs[k], errors[k])
            for j in sound
        )

    assert pareto(costs, errors) == [k in sound and not beaten(k) for k in range(15)]


def test_the_best_method_is_rarely_left_out():
    """Six equal methods on 8 truths with a common part: the first, say, is the best in truth, and is left out in at most
    5 % of 2000 draws. False alarm of this test: binomial, 140 or more of 2000 at 5 % is 5e-5; the bound is not sharp."""
    rng = np.random.default_rng(0)
    left_out = 0
    for _ in range(2000):
        common = rng.normal(size=8)
        drawn = {name: 5 + common + 0.1 * rng.normal(size=8) for name in "abcdef"}
        errors = {name: dict(enumerate(values)) for name, values in drawn.items()}
        left_out += "a" not in tied_with_best(errors)
    assert left_out < 140


def test_pairing_tells_apart_what_intervals_do_not():
    """Errors that differ by 0.1 +- 0.01 on truths that differ by 1; unpaired, on other truths, the two are tied."""
    rng = np.random.default_rng(1)
    truths, noise = rng.normal(5, 1, 8), rng.normal(0, 0.01, 8)
    one, other = dict(enumerate(truths)), dict(enumerate(truths + 0.1 + noise))
    assert tied_with_best({"one": one, "other": other}) == {"one"}
    elsewhere = {seed + 100: error for seed, error in other.items()}
    assert tied_with_best({"one": one, "other": elsewhere}) == {"one", "other"}


def test_what_cannot_be_compared_is_not_called_tied():
    one, lost = {0: 1.0, 1: 1.1}, {0: 1.0, 1: float("nan")}
    assert tied_with_best({"one": one, "lost": lost}) == {"one"} and mean_error(lost) == float("inf")
    assert tied_with_best({"one": {0: 1.0}, "other": {0: 1.001}}) == {"one"}
    assert not worse(one, one, 0.05) and tied_with_best({}) == set()


def test_the_advice_is_the_cheapest_of_those_tied_with_the_best(tmp_path):
    near = [0.2001 + 0.01 * r + (-1) ** r * 0.001 for r in range(8)]
    (case,) = cases(bench_folder(tmp_path / "a", {**PLAIN, "ETKF N=40": (near, 1e-4, 40)}))
    advice = advise(case)
    assert advice.best.label == "LETKF N=20" and advice.use.label == "ETKF N=40"
    told = " ".join(advice.sentences)
    assert "use ETKF N=40" in told and "8.00 times less" in told
    assert "Where the model is what costs: LETKF N=20, 20.0 model calls" in told
    assert "With a tenth of its CPU time: ThreeDVar" in told
    assert "No better than Persistence (rmse 1.0" in told and "): EnKF N=10." in told


def test_the_advice_changes_with_the_numbers(tmp_path):
    """The same difference of means, but the same on every truth: now it is told apart."""
    (case,) = cases(bench_folder(tmp_path / "a", PLAIN))
    assert advise(case).use.label == "LETKF N=20" and "Use LETKF N=20." in advise(case).sentences[0]
    (case,) = cases(bench_folder(tmp_path / "b", {**PLAIN, "LETKF N=20": (1.2, 8e-4, 20)}))
    assert advise(case).use.label == "ETKF N=40"
    (case,) = cases(bench_folder(tmp_path / "c", {k: v for k, v in PLAIN.items() if v[0] >= 1}))
    assert advise(case).use is None and "Nothing beats Persistence" in advise(case).sentences[0]


def test_a_method_that_loses_truths_or_is_far_off_is_not_advised(tmp_path):
    """Its one lost truth makes the difference so uncertain that no test tells it apart."""
    lost = [0.2 + 0.01 * r for r in range(7)] + [1.2]
    rows = {**PLAIN, "ETKF N=40": (lost, 1e-4, 40, {"divergence_rate": 1 / 8})}
    (case,) = cases(bench_folder(tmp_path / "a", rows))
    assert [p.label for p in case.tied] == ["LETKF N=20"]
    assert "Diverged, in share of the truths: ETKF N=40 12%." in advise(case).sentences
    (case,) = cases(bench_folder(tmp_path / "b", {**PLAIN, "ETKF N=40": (lost, 1e-4, 40)}))
    assert [p.label for p in case.tied] == ["LETKF N=20", "ETKF N=40"]
    assert advise(case).use.label == "LETKF N=20"


def test_calibration_and_score_filters_are_judged(tmp_path):
    narrow, ratio = {"spread_skill": 0.5}, {"network_calls": 640.0}
    rows = {**PLAIN, "LETKF N=20": (0.2, 8e-4, 20, narrow), "SSLS N=40": (0.4, 8e-2, 40, ratio)}
    (case,) = cases(bench_folder(tmp_path / "a", rows))
    told = " ".join(advise(case).sentences)
    assert "Its spread is too small, 0.500 of its error, and that of no tied method fits" in told
    assert (
        "The best score filter, SSLS N=40 (rmse 0.435), is worse than LETKF N=20 by 85% at 100 times" in told
    )
    (point,) = [p for p in case.points if p.label == "SSLS N=40"]
    assert point.value("network_calls") == 640


def test_costs_are_of_an_analysis(tmp_path):
    """Observed at every fifth step, an analysis costs what five steps cost."""
    (case,) = cases(bench_folder(tmp_path / "a", PLAIN, observe={"every": 5}))
    (point,) = [p for p in case.points if p.label == "ETKF N=40"]
    assert point.value("model_calls") == 200 and point.value("cpu_seconds") == pytest.approx(5e-4)


def test_chains_vary_one_factor_in_its_order(tmp_path):
    seen = {"operator": "stride", "step": 4}
    bench_folder(tmp_path / "r" / "sparse", PLAIN, observe=seen)
    bench_folder(tmp_path / "r" / "dense", PLAIN)
    bench_folder(tmp_path / "r" / "arctan", PLAIN, observe={"operator": "arctan", "noise": 0.01})
    bench_folder(tmp_path / "r" / "wrong", PLAIN, truth={"forcing": 11.0}, model={"forcing": 8.0})
    bench_folder(
        tmp_path / "r" / "both", PLAIN, truth={"forcing": 11.0}, model={"forcing": 8.0}, observe=seen
    )
    found = cases(tmp_path / "r")
    got = {(factor, *(case.title for case in group)) for factor, group in sweeps(found)}
    names = {case.title.removeprefix("lorenz96, "): case.title for case in found}
    dense, sparse = names["all seen, noise 1"], names["every 4th seen, noise 1"]
    arctan = names["arctan(x) seen, noise 0.1"]
    wrong = names["all seen, noise 1, truth forcing 11.0, model forcing 8.0"]
    both = names["every 4th seen, noise 1, truth forcing 11.0, model forcing 8.0"]
    assert got == {
        ("density", dense, sparse),
        ("density", wrong, both),
        ("sensor", dense, arctan),
        ("model", dense, wrong),
        ("model", sparse, both),
    }
    told = " ".join(overall(found))
    assert "Advised: LETKF in 5 of 5." in told and "Never better than the best trivial row" in told


def test_folders_of_one_set_up_are_one_case_and_pair_their_truths(tmp_path):
    bench_folder(tmp_path / "a", PLAIN)
    bench_folder(tmp_path / "b", {"SSLS N=40": (0.19, 1e-1, 40)})
    (case,) = cases(tmp_path / "a", tmp_path / "b")
    assert advise(case).best.label == "SSLS N=40" and case.climate == pytest.approx(3.635)
    assert len(cases(tmp_path)) == 1


def test_the_page_holds_figures_advice_and_every_method(tmp_path):
    bench_folder(tmp_path / "r" / "a", {**PLAIN, "LETKF N=10": (0.25, 4e-4, 10, {"network_calls": 9.0})})
    bench_folder(tmp_path / "r" / "b", PLAIN, observe={"operator": "stride", "step": 2})
    page = frontier([tmp_path / "r"], out=tmp_path / "out", console=QUIET)
    text = page.read_text()
    names = {path.stem for path in (tmp_path / "out" / "figures").iterdir()}
    assert names == {*COSTS, "density"} and text.count("data:image/png;base64,") == len(names)
    assert "Use LETKF N=20" in text and RULES[:60] in text
    with open(tmp_path / "out" / "frontier.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == PAGE_COLUMNS and len(rows) == 2 * len(PLAIN) + 1
    first = {row["method"]: row for row in rows if "all seen" in row["case"]}
    assert first["LETKF N=20"]["on_frontier"] == "cpu_seconds model_calls network_calls"
    assert first["ETKF N=40"]["on_frontier"] == "cpu_seconds" and first["EnKF N=10"]["on_frontier"] == ""
    assert {name for name, row in first.items() if row["tied_with_best"] == "1"} == {"LETKF N=20"}


def test_bad_folders_are_told_in_a_line(tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "metrics.csv").write_text("method,variable,level,part,metric,value,lower,upper,n\n")
    bare = bench_folder(tmp_path / "bare", PLAIN)
    (bare / "setup.json").unlink()
    rowless = bench_folder(tmp_path / "rowless", {})
    empty = tmp_path / "empty"
    empty.mkdir()
    for words, told in (
        ([], "nothing to compare"),
        ([str(tmp_path / "none")], "not found; make one with slams bench"),
        ([str(empty)], "holds no metrics.csv"),
        ([str(other)], "is not of slams bench: its columns are method, variable"),
        ([str(bare)], "lacks setup.json"),
        ([str(rowless)], "has no rows"),
        (["--run", "quikc"], "did you mean quick?"),
        ([str(bare), "--cycles", "3"], "belong to a plan"),
    ):
        assert main(["frontier", *words, "--out", str(tmp_path / "out")]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and told in error
    assert not (tmp_path / "out").exists()


def test_what_lies_between_results_is_passed_over_and_said(tmp_path):
    bench_folder(tmp_path / "r" / "a", PLAIN)
    (tmp_path / "r" / "other").mkdir()
    (tmp_path / "r" / "other" / "metrics.csv").write_text("method,value\n")
    found, passed = read_cases([tmp_path / "r"])
    assert len(found) == 1 and "other/metrics.csv is not of slams bench" in passed[0]


TINY = """
test: {replicates: 2, cycles: 8, burn_in: 4}
tuning: {trials: 2, replicates: 2, cycles: 8, burn_in: 4}
groups:
  both: [{method: EnKF, members: [5, 8]}, {method: OptInterp, trials: 0}]
cases:
  - {name: dense, methods: both, setup: {system: lorenz96, truth: {size: 8}}}
"""


def test_a_killed_run_goes_on_to_the_same_page(tmp_path, monkeypatch):
    """Killed within the tuning, then within the test runs; what was done is not done again."""
    plan = tmp_path / "tiny.yaml"
    plan.write_text(TINY)
    monkeypatch.setattr("slams.twin.benchmark.write_pages", lambda *given: None)  # it draws for seconds
    whole = frontier(run=str(plan), out=tmp_path / "whole", console=QUIET)
    assert {row["settings"] for row in _rows(whole) if row["method"] == "EnKF"} <= {"tuned"}
    analyse, left = EnKF.analyse, [18]

    def dying(self, *given, **more):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return analyse(self, *given, **more)

    monkeypatch.setattr(EnKF, "analyse", dying)
    for survives in (18, 40):  # of the 2 x 2 x 12 analyses of tuning, and the 2 x 12 of the test
        left[0] = survives
        with pytest.raises(KeyboardInterrupt):
            frontier(run=str(plan), out=tmp_path / "killed", console=QUIET)
    assert (
        len(json.loads((tmp_path / "killed/tuned/dense.trials.json").read_text())["trials"]["EnKF N=8"]) == 2
    )
    left[0] = 10**6
    again = frontier(run=str(plan), out=tmp_path / "killed", console=QUIET)
    assert 10**6 - left[0] < 2 * 12 + 1
    skipped = ("cpu_seconds", "on_frontier", "tied_with_best")
    cut = [
        [{k: v for k, v in row.items() if k not in skipped} for row in _rows(page)] for page in (whole, again)
    ]
    assert cut[0] == cut[1]


def _rows(page):
    with open(page.parent / "frontier.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", SIZES)
def test_shipped_plans_are_sound(name):
    """Set-ups and methods exist; every label of a set-up is its own."""
    plan = read_plan(name)
    for case in plan.cases:
        setup({**plan.test.given(), **case.setup})
        labels = [f"{c.label or c.method} {n}" for c in case.methods for n in c.members or (0,)]
        assert len(set(labels)) == len(labels)


def test_bad_plans_are_told(tmp_path):
    path = tmp_path / "plan.yaml"
    for old, new, told in (
        ("method: EnKF", "method: ENFK", "did you mean EnKF?"),
        ("methods: both", "methods: bothe", "did you mean both?"),
        ("trials: 2", "trails: 2", "did you mean tuning.trials?"),
        ("name: dense, ", "", "needs name"),
        ("size: 8}", "sise: 8}", "did you mean truth.size?"),
        ("cases:", "cases: 3", "is invalid YAML"),
        ("cases:", "other:", "is no plan"),
    ):
        path.write_text(TINY.replace(old, new))
        with pytest.raises(ValueError, match=told.replace("?", r"\?")):
            read_plan(path)


def test_network_calls_that_a_method_reports_are_counted_like_model_calls():
    """A mean over all steps of the run, those without an analysis (NaN) included; none reported are none."""
    ones = torch.ones(2, 4)
    plain = {
        name: ones
        for name in ("squared_error", "variance", "predictive_variance", "model_calls", "cpu_seconds")
    }
    assert summary(plain, [1, 2, 3])["network_calls"].tolist() == [0, 0]
    calls = torch.tensor([[float("nan"), 8.0, float("nan"), 8.0], [float("nan"), 8.0, 4.0, 8.0]])
    assert summary({**plain, "network_calls": calls}, [1, 2, 3])["network_calls"].tolist() == [4, 5]


def test_methods_that_are_given_more_are_stated_apart(tmp_path):
    """The most accurate is told which coefficient is wrong: not advised, but compared; by its settings alone."""
    informed = {
        "LETKF, F estimated N=20": (0.05, 1e-4, 20),
        "BiasAwareLETKF N=20": (0.3, 1e-4, 20),
        "BiasAwareLETKF N=40": (0.19, 2e-3, 40),
    }
    folder = bench_folder(
        tmp_path / "a", {**PLAIN, **informed}, truth={"forcing": 11.0}, model={"forcing": 8.0}
    )
    (folder / "runs").mkdir()
    settings = {
        "LETKF, F estimated N=20": {"method": "LETKF", "members": 20, "estimate": {"forcing": 2.0}},
        "BiasAwareLETKF N=20": {"method": "BiasAwareLETKF", "members": 20, "uniform": True},
        "BiasAwareLETKF N=40": {"method": "BiasAwareLETKF", "members": 40, "uniform": False},
    }
    for label, given in settings.items():
        (folder / "runs" / f"{label}.json").write_text(json.dumps(given))
    (case,) = cases(folder)
    assert [p.label for p in case.role("informed")] == ["LETKF, F estimated N=20", "BiasAwareLETKF N=20"]
    advice = advise(case)
    assert advice.best.label == "BiasAwareLETKF N=40" and "estimate" in RULES
    told = " ".join(advice.sentences)
    use = advice.use
    less, more = 1 - (0.05 + 0.035) / use.rmse, (0.3 + 0.035) / use.rmse - 1
    assert (
        f"wrong: LETKF, F estimated N=20, rmse 0.0850 [0.0850, 0.0850], {less:.0%} less than {use.label}."
        in told
    )
    assert (
        f"same at all sites: BiasAwareLETKF N=20, rmse 0.335 [0.335, 0.335], {more:.0%} more than {use.label}."
        in told
    )
