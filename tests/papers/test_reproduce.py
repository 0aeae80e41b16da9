"""Laws of `slams reproduce`: the band, the verdict, the exit code, and papers that can be run."""

import csv
import dataclasses
import math

import pytest
import torch

from slams.assimilation.base import Posterior
from slams.cli import main
from slams.core.console import Console
from slams.papers import reproduce as module
from slams.papers.reproduce import PAPERS, PaperRow, band, read_paper, reproduce, verdicts_of
from slams.papers.table import Bar, difference, judge, judge_truths
from slams.twin.experiment import Result
from slams.twin.methods import ClimateStatistics, build
from slams.twin.setup import setup

PAPER = """
title: A tiny table
source: nobody
setup: {system: linear, truth: {size: 6}, cycles: 40, burn_in: 5, replicates: 4}
rows:
  - {row: climate, method: Climatology, measured: 1.0, relative: 0.4}
  - {row: filter, method: EnKF, settings: {members: 20, inflation: 1.02}, measured: WANTED}
"""


def result(values, lost=None) -> Result:
    x = torch.tensor(values, dtype=torch.float64)
    rate = torch.zeros_like(x) if lost is None else torch.tensor(lost, dtype=torch.float64)
    return Result("m", {}, Posterior(None), {"rmse_time_mean": x, "divergence_rate": rate})


def write(folder, wanted: float):
    (folder / "tiny2000_a.yaml").write_text(PAPER.replace("WANTED", str(wanted)))
    return folder


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_band_of_a_row_measured_on_three_truths():
    """0.02, or three standard errors of both means together, around what was measured."""
    row = PaperRow("r", "EnKF", published=0.9, measured=0.5, seeds=3)
    assert band(row, 0.001, 8) == pytest.approx((0.48, 0.52))
    half = 3 * 0.1 * math.sqrt(1 / 8 + 1 / 3)
    assert band(row, 0.1, 8) == pytest.approx((0.5 - half, 0.5 + half))


def test_band_of_a_row_of_one_truth_or_none():
    """Between published and measured, 0.03 beyond, however our truths scatter."""
    assert band(PaperRow("r", "EnKF", published=0.29, measured=0.25, seeds=1), 9.0, 8) == pytest.approx(
        (0.22, 0.32)
    )
    assert band(PaperRow("r", "EnKF", published=0.38), 9.0, 8) == pytest.approx((0.35, 0.41))
    with pytest.raises(ValueError, match="neither"):
        band(PaperRow("r", "EnKF"), 0.0, 8)


def test_band_of_a_relative_row_is_at_least_that_share():
    row = PaperRow("r", "EnKF", measured=1.0, seeds=5, relative=0.05)
    assert band(row, 0.0, 8) == pytest.approx((0.95, 1.05))


def test_a_verdict_is_the_mean_in_the_band():
    row = PaperRow("r", "EnKF", measured=0.5)
    (verdict,) = verdicts_of(row, result([0.49, 0.51, 0.50, 0.50]))
    assert (
        verdict.status == "PASS"
        and verdict.value == pytest.approx(0.5)
        and verdict.lower < 0.5 < verdict.upper
    )
    (verdict,) = verdicts_of(row, result([0.60, 0.60, 0.601, 0.599]))
    assert verdict.status == "FAIL"
    (verdict,) = verdicts_of(row, result([0.5, 0.5, 0.5, math.nan]))
    assert verdict.status == "FAIL"


def test_where_a_truth_is_lost_the_median_counts_and_the_losses_are_told():
    values, lost = [0.28] * 6 + [0.29, 2.05], [0] * 7 + [1]
    verdict, losses = verdicts_of(PaperRow("r", "EnKF", measured=0.28), result(values, lost))
    assert verdict.value == pytest.approx(0.28)
    assert verdict.status == "PASS (median, 12 % diverged; not resolved)"  # order statistics reach to 2.05
    assert (losses.metric, losses.value, losses.status) == ("lost", 1 / 8, "INFO")
    verdict, losses = verdicts_of(PaperRow("r", "BootstrapPF", measured=0.28), result([0.28] * 8))
    assert verdict.status == "PASS (median, 0 % diverged)" and losses.value == 0


def test_statuses_tell_medians_losses_and_intervals_that_hold_the_bar():
    """All forms of a status; a bound at an end of the interval counts as within it."""
    bar = Bar("r", "rmse", low=0.1, high=0.3)
    forms = {
        (0.2, 0.15, 0.25): "PASS", (0.2, 0.15, 0.3): "PASS (not resolved)", (0.2, 0.1, 0.25): "PASS (not resolved)",
        (0.4, 0.35, 0.5): "FAIL", (0.4, 0.25, 0.5): "FAIL (not resolved)", (0.05, 0.01, 0.2): "FAIL (not resolved)",
        (0.2, math.nan, math.nan): "PASS", (math.inf, math.nan, math.nan): "FAIL",
    }  # fmt: skip
    assert {numbers: judge(bar, numbers).status for numbers in forms} == forms
    assert judge(bar, (0.2, 0.15, 0.25), diverged=0.25).status == "PASS (median, 25 % diverged)"
    assert judge(bar, (0.4, 0.2, 0.5), diverged=0.0).status == "FAIL (median, 0 % diverged; not resolved)"
    assert judge(bar, (0.4, 0.2, 0.5), diverged=0.5, applies=False).status == "INFO"


def test_more_than_a_tenth_of_lost_truths_is_judged_on_the_median():
    """One of ten may be lost; of two the status tells, and a mean with an infinite number fails."""
    bar, values = Bar("r", "rmse", high=0.5), torch.full((10,), 0.2, dtype=torch.float64)
    lost = torch.zeros(10)
    lost[0] = 1
    assert judge_truths(bar, values, lost).status == "PASS"
    values[:2], lost[1] = math.nan, 1
    verdict = judge_truths(bar, values, lost)
    assert verdict.status == "PASS (median, 20 % diverged; not resolved)" and verdict.value == pytest.approx(
        0.2
    )
    assert judge_truths(bar, values, None).status == "FAIL"
    ours, theirs = torch.tensor([0.1, math.nan, 0.1]), torch.tensor([0.2, 0.2, math.nan])
    assert difference(ours, theirs).tolist() == pytest.approx([-0.1, math.inf, -math.inf])


def test_a_row_of_which_enough_analyses_are_the_etkfs_is_labelled():
    found = result([0.2, 0.21, 0.2, 0.19])
    scores = {**found.scores, "one_gaussian": torch.tensor([1.0, 0.9, 1.0, 0.9])}
    _, label = verdicts_of(
        PaperRow("EnSF N 40", "EnSF", measured=0.2), dataclasses.replace(found, scores=scores)
    )
    assert (label.row, label.metric, label.status) == ("EnSF N 40", "EnSF = ETKF here", "INFO")
    assert label.value == pytest.approx(0.95)


def test_a_bound_from_above_has_no_band():
    row = PaperRow("r", "EnKF", measured=0.1, at_most=0.3)
    assert [v.status for v in verdicts_of(row, result([0.29, 0.28, 0.285]))] == ["PASS"]
    assert [v.status for v in verdicts_of(row, result([0.29, 0.28, 0.3]))] == ["PASS (not resolved)"]
    (verdict,) = verdicts_of(row, result([0.31, 0.32, 0.3]))
    assert (verdict.low, verdict.high, verdict.status) == (-math.inf, 0.3, "FAIL (not resolved)")
    assert verdicts_of(PaperRow("r", "EnKF"), result([0.3, 0.4]))[0].status == "INFO"


@pytest.mark.parametrize("factor, status", [(1.0, "FAIL"), (1.5, "PASS (not resolved)"), (3.0, "PASS")])
def test_a_rival_is_met_truth_by_truth(factor, status):
    """Differences of 0.1 on every truth have no scatter, whatever that of the truths."""
    row = PaperRow("ours", "EnKF", rival="theirs", factor=factor)
    theirs = [0.3, 0.5, 0.6]
    _, verdict = verdicts_of(row, result([x + 0.1 for x in theirs]), result(theirs))
    assert verdict.status == status and "theirs" in verdict.row
    if factor == 1:
        assert (verdict.value, verdict.lower, verdict.upper) == pytest.approx((0.1, 0.1, 0.1))


def test_a_rival_must_stand_above_and_be_of_the_same_setup(tmp_path):
    path = tmp_path / "tiny2000_a.yaml"
    path.write_text(PAPER.replace("measured: WANTED", "rival: later"))
    with pytest.raises(ValueError, match="must be a row above it, got 'later'"):
        read_paper(path)
    path.write_text(PAPER.replace("measured: WANTED", "rival: climate, setup: {cycles: 30}"))
    with pytest.raises(ValueError, match="different set-ups"):
        reproduce("tiny2000", papers=tmp_path, out=tmp_path / "out", console=Console(quiet=True))


def test_a_detailed_paper_leaves_what_bench_leaves_and_knows_the_exact_filter(tmp_path):
    """Of one truth the exact filter may lose to 20 members by chance, on the mean of 4 it does not."""
    path = tmp_path / "tiny2000_a.yaml"
    exact = "{row: best, method: exact}\n  - {row: filter"
    path.write_text(
        "detail: true\n" + PAPER.replace("{row: filter", exact).replace("measured: WANTED", "rival: best")
    )
    reproduce("tiny2000", papers=tmp_path, out=tmp_path / "out", console=Console(quiet=True))
    by_row = {r["row"]: r for r in rows(tmp_path / "out" / "tiny2000_a" / "rows.csv")}
    assert float(by_row["filter less best"]["value"]) > 0 and by_row["filter less best"]["status"].startswith(
        "FAIL"
    )
    folder = tmp_path / "out" / "tiny2000_a" / "setup_0"
    metrics = {(r["method"], r["metric"]) for r in rows(folder / "metrics.csv") if not r["replicate"]}
    assert {("filter", "crps"), ("climate", "coverage90"), ("Kalman", "rmse")} <= metrics
    assert (folder / "report.html").stat().st_size > 10_000


@pytest.mark.parametrize(
    "wanted, status", [(0.47, "PASS (not resolved)"), (0.4, "FAIL (not resolved)"), (0.9, "FAIL")]
)
def test_exit_code_and_files(wanted, status, tmp_path, monkeypatch):
    """One row out of its band is enough for 1; the table is written either way."""
    monkeypatch.setattr(module.reproduce, "__kwdefaults__", {**reproduce.__kwdefaults__, "papers": tmp_path})
    write(tmp_path, wanted)
    assert main(["reproduce", "tiny2000", "--out", str(tmp_path / "out")]) == status.startswith("FAIL")
    folder = tmp_path / "out" / "tiny2000_a"
    assert (folder / "rows.csv").read_text().splitlines()[0] == (
        "row,metric,expected,low,high,value,lower,upper,status"
    )
    table = rows(folder / "rows.csv")
    assert [(r["row"], r["status"]) for r in table if r["status"] != "INFO"] == [
        ("climate", "PASS"),
        ("filter", status),
    ]
    assert (folder / "rows.png").stat().st_size > 1000


def test_a_table_is_the_same_at_every_size(tmp_path):
    """`size=full` is accepted for every study; a table's earlier name of the size too, and no other size."""
    write(tmp_path, 0.47)
    quiet, few = Console(quiet=True), ["cycles=10", "replicates=2"]
    reproduce("tiny2000", papers=tmp_path, out=tmp_path / "a", console=quiet, overrides=few)
    with pytest.warns(FutureWarning, match="is now 'size'"):
        reproduce(
            "tiny2000", papers=tmp_path, out=tmp_path / "b", console=quiet, overrides=[*few, "grid=full"]
        )
    names = [tmp_path / folder / "tiny2000_a" / "rows.csv" for folder in ("a", "b")]
    assert names[0].read_text() == names[1].read_text()
    with pytest.raises(ValueError, match="did you mean full"):
        reproduce("tiny2000", papers=tmp_path, console=quiet, overrides=["size=ful"])


def test_an_unknown_paper_method_or_key_names_the_nearest(tmp_path):
    write(tmp_path, 0.5)
    with pytest.raises(ValueError, match="did you mean tiny2000_a"):
        reproduce("tiny2001_a", papers=tmp_path, console=Console(quiet=True))
    path = tmp_path / "tiny2000_a.yaml"
    path.write_text(path.read_text().replace("method: EnKF", "method: EnFK"))
    with pytest.raises(ValueError, match="did you mean EnKF"):
        read_paper(path)
    path.write_text(path.read_text().replace("method: EnFK", "metod: EnKF"))
    with pytest.raises(ValueError, match=r"did you mean rows\[1\]\.method"):
        read_paper(path)


@pytest.mark.parametrize("path", sorted(PAPERS.glob("tables/*.yaml")), ids=lambda path: path.stem)
def test_a_shipped_paper_can_be_run(path):
    """Every row's method takes its settings, and what is judged is judged on at least 8 truths."""
    paper = read_paper(path)
    for row in paper.rows:
        made = setup({"replicates": 8, **module._merged(paper.setup, row.setup)})
        experiment = made.experiment()
        size = experiment.model.state_shape[0]
        climate = ClimateStatistics(torch.zeros(size).double(), torch.eye(size).double(), 1e3)
        if row.method != module.EXACT:
            build(row.method, experiment, row.settings, climate)
        assert made.seed >= 1000
        if row.published is not None or row.measured is not None:
            low, high = band(row, 0.0, 8)
            assert low < high and made.replicates >= 8
        assert made.replicates >= 8 or (row.at_most is None and not row.rival)
