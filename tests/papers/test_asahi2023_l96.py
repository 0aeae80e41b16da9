"""Laws of the study of a wrong forcing: every bar judged on the same truths, and again without work."""

import csv
import dataclasses

import pytest
import torch
import yaml

from slams.core.console import Console
from slams.papers.asahi2023_l96 import run as model_error
from slams.papers.asahi2023_l96.plan import ModelErrorCell, ModelErrorLine, read_plan
from slams.papers.asahi2023_l96.problem import judge_cell, won
from slams.papers.reproduce import PAPERS, reproduce
from slams.twin.generator import GeneratorSettings

SHIPPED = PAPERS / "asahi2023_l96" / "asahi2023_l96.yaml"
PLAN = {
    "title": "tiny",
    "source": "nobody",
    "setup": {
        "system": "lorenz96",
        "model": {"forcing": 8.0},
        "observe": {"noise": 1.0},
        "cycles": 6,
        "burn_in": 14,
        "replicates": 2,
    },
    "ours": "ours",
    "exact": {"F8_every_1": 20.0},
    "only": ["F5_every_2"],
    "sizes": {"full": {"only": []}},
    "lines": {
        "nudging": {"method": "Nudging", "settings": {"members": 2}, "tuned": "nudging", "rival": True},
        "letkf": {"method": "LETKF", "settings": {"members": 8}, "tuned": "letkf", "rival": True},
        "ours": {"method": "GenerativeEnKF", "settings": {"members": 8, "draws": 2}, "tuned": "letkf"},
        "blind": {
            "method": "GenerativeEnKF",
            "settings": {"members": 8, "draws": 2, "window": 0},
            "extra": True,
        },
    },
    "cells": [
        {
            "forcing": f,
            "stride": s,
            "tuned": {"nudging": {"gain": 0.3}, "letkf": {"inflation": 1.1, "radius": 3.0}},
        }
        for f, s in ((5, 2), (8, 1), (11, 4))
    ],
}


@pytest.fixture
def papers(tmp_path):
    folder = tmp_path / "papers"
    (folder / "asahi2023_l96").mkdir(parents=True)
    (folder / "asahi2023_l96" / "tiny2023_l96.yaml").write_text(yaml.safe_dump(PLAN))
    return folder


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_from_nothing_to_rows_and_again_without_work(papers, tmp_path, monkeypatch):
    """Quick cells and lines; a second call moves no member, and reads the same numbers."""
    out, quiet = tmp_path / "out", Console(quiet=True)
    reproduce("tiny", out=out, papers=papers, console=quiet)
    rows = table(out / "tiny2023_l96" / "rows.csv")
    by_name = {(row["row"], row["metric"]): row for row in rows}
    apart = float(by_name["F5_every_2 ours less letkf", "rmse_time_mean"]["value"])
    ours, letkf = (
        float(by_name[f"F5_every_2 {name}", "rmse_time_mean"]["value"]) for name in ("ours", "letkf")
    )
    assert apart == pytest.approx(ours - letkf, abs=2e-5)
    assert (by_name["F5_every_2 ours less letkf", "rmse_time_mean"]["status"].startswith("PASS")) == (
        apart <= 0
    )
    assert float(by_name["cells won against letkf, of 1", "count"]["value"]) == (apart < 0)
    metrics = table(out / "tiny2023_l96" / "F5_every_2" / "metrics.csv")
    calls = [float(m["value"]) for m in metrics if m["metric"] == "network_calls" and m["method"] == "ours"]
    assert calls[0] == pytest.approx(
        20 / 21 * 2 * 6
    )  # a step without an observation, two draws of six evaluations
    assert {m["method"] for m in metrics} == {"nudging", "letkf", "ours"}
    assert (out / "tiny2023_l96" / "error.png").stat().st_size > 10_000

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a filter was run again")

    monkeypatch.setattr("slams.assimilation.filter.Filter.forecast", forbidden)
    reproduce("tiny", out=out, papers=papers, console=quiet)
    assert table(out / "tiny2023_l96" / "rows.csv") == rows


def test_settings_of_a_line_come_before_what_was_tuned():
    """An ablation turns off what the cell has tuned."""
    cell = ModelErrorCell(5.0, 1, {"tuned": {"trust": 0.3, "gain": 2.0}})
    line = ModelErrorLine("GenerativeEnKF", {"trust": 0.0}, tuned="tuned")
    assert line.settings_in(cell) == {"trust": 0.0, "gain": 2.0}
    assert line.settings_in(cell, SHIPPED)["weights"] == str(SHIPPED)
    assert "weights" not in ModelErrorLine("LETKF").settings_in(cell, SHIPPED)


@dataclasses.dataclass
class Scored:
    scores: dict[str, torch.Tensor]
    setup: dict[str, dict[str, float]]


def test_a_cell_is_won_by_the_mean_over_truths(papers):
    plan = read_plan(papers / "asahi2023_l96" / "tiny2023_l96.yaml")
    cell = plan.cells[0]

    def result(*values: float) -> Scored:
        return Scored(
            {"rmse_time_mean": torch.tensor(values), "cpu_seconds": torch.tensor([3.0, 2.0])},
            {"model": {"forcing": 8.0}},
        )

    found = {"nudging": result(2.0, 2.0), "letkf": result(1.0, 1.2), "ours": result(0.9, 1.4)}
    verdicts = {(v.row, v.metric): v for v in judge_cell(plan, cell, found)}
    assert verdicts["F5_every_2 ours less nudging", "rmse_time_mean"].status == "PASS (not resolved)"
    assert verdicts["F5_every_2 ours less letkf", "rmse_time_mean"].status == "FAIL (not resolved)"
    assert verdicts["F5_every_2 ours", "cpu_seconds"].status == "FAIL"
    right = {v.row: v for v in judge_cell(plan, plan.cells[1], found) if v.metric == "rmse_time_mean"}
    assert (
        right["F8_every_1 ours"].status == "PASS (not resolved)" and "F8_every_1 ours less letkf" not in right
    )
    counts = {v.row: v.value for v in won(plan, {cell.name: found})}
    assert counts == {
        "cells won against nudging, of 1": 1,
        "cells won against letkf, of 1": 0,
        "cells won against all rivals, of 1": 0,
    }


def test_the_net_is_trained_anew_on_demand_and_then_used(papers, tmp_path, monkeypatch):
    """Two steps of training suffice to see whose weights are taken."""
    made = []
    train = model_error.train_generator

    def short(folder, net, console):
        made.append(folder)
        return train(
            folder, GeneratorSettings(steps=2, batch=2, runs=4, length=20, hidden=(8, 8), encoder=(8, 8))
        )

    monkeypatch.setattr(model_error, "train_generator", short)
    out = tmp_path / "out"
    verdicts = model_error.run(
        papers / "asahi2023_l96" / "tiny2023_l96.yaml",
        out,
        ["cell=F5_every_2"],
        Console(quiet=True),
        train=True,
    )
    assert made == [out / "weights"] and verdicts
    assert "weights" in (out / "F5_every_2" / "runs" / "ours.json").read_text()


def test_the_shipped_plan_tunes_every_rival_in_every_cell():
    plan = read_plan(SHIPPED)
    tuned = {line.tuned for line in plan.lines.values() if line.tuned}
    assert all(set(cell.tuned) == tuned for cell in plan.cells)
    assert {line.method for line in plan.lines.values() if line.rival} == {
        "LETKF",
        "Nudging",
        "BiasAwareLETKF",
    }
    assert plan.setup_of(plan.cells[0]).cycles >= 500
    everything = read_plan(SHIPPED, ["size=full"])
    assert everything.chosen == list(plan.cells) and set(everything.methods) == set(plan.lines)
    assert len(plan.chosen) == 2 and set(plan.lines) - set(plan.methods) == {
        label for label, line in plan.lines.items() if line.extra
    }
    with pytest.warns(FutureWarning, match="is now 'size'"):
        assert read_plan(SHIPPED, ["grid=full"]) == everything


def test_bad_input_is_told_with_the_remedy(papers, tmp_path):
    path = papers / "asahi2023_l96" / "tiny2023_l96.yaml"
    with pytest.raises(ValueError, match="F5_every_2"):
        model_error.run(path, tmp_path, ["cell=F5_every_3"], Console(quiet=True))
    with pytest.raises(ValueError, match="did you mean full"):
        read_plan(path, ["size=fll"])
    path.write_text(yaml.safe_dump({**PLAN, "only": ["F5_every_3"]}))
    with pytest.raises(ValueError, match="did you mean F5_every_2"):
        read_plan(path)
    path.write_text(yaml.safe_dump({**PLAN, "rings": 1}))
    with pytest.raises(ValueError, match="unknown key 'rings'"):
        read_plan(path)
