"""Laws of a reproduction with nets: from nothing to rows, again without work, and what cannot be."""

import csv
import dataclasses
import json

import pytest
import torch
import yaml

from slams.cli import main
from slams.core.console import Console
from slams.core.covariance import Isotropic
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.schedule import VPCosine
from slams.observation.observation import Observation, Observations
from slams.observation.operators import Select
from slams.papers.reproduce import PAPERS, reproduce
from slams.papers.rozet2023.guidance import cost_of, guidance_of
from slams.papers.rozet2023.lorenz63 import run as sda_l63
from slams.papers.rozet2023.lorenz63.plan import read_plan
from slams.papers.rozet2023.lorenz63.run import SMOOTHER, judge_process, run
from slams.papers.rozet2023.outcome import SDAOutcome
from slams.papers.study import WEIGHTS
from slams.papers.table import Bar

SHIPPED = PAPERS / "rozet2023" / "lorenz63" / "rozet2023_l63.yaml"
PLAN = {
    "title": "tiny",
    "source": "nobody",
    "replicates": 2,
    "members": 6,
    "particles": 512,
    "archive": {"count": 20, "spin_up": 70, "length": 80},
    "processes": {"lo": {"every": 4, "std": 0.05, "length": 17}},
    "nets": {"local1": {"order": 1, "width": 8, "gates": 8, "dilations": [0], "steps": 4, "batch": 8}},
    "samplers": {
        "fast": {"steps": 16, "order": 2, "time_grid": "snr"},
        "slow": {"steps": 4, "corrections": 1},
    },
    "guidances": {"sda": {"kind": "sda", "gamma": 0.03}},
    "runs": ["local1 / fast / sda"],
    "full": ["local1 / slow / sda"],
    "sizes": {"full": {"more": ["full"]}, "reduced": {}},
    "bars": [{"case": "lo", "row": "local1 / fast / sda", "metric": "w1_ratio", "high": 1e9}],
}


@pytest.fixture
def papers(tmp_path, monkeypatch):
    monkeypatch.setattr("slams.config.DATA_DIR", tmp_path / "data")
    folder = tmp_path / "papers"
    (folder / "rozet2023" / "lorenz63").mkdir(parents=True)
    (folder / "rozet2023" / "lorenz63" / "tiny2023_l63.yaml").write_text(yaml.safe_dump(PLAN))
    return folder


def table(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_from_nothing_to_rows_and_again_without_work(papers, tmp_path, monkeypatch):
    """Without shipped weights nets are trained; a second call does nothing, a larger grid only what is new."""
    out = tmp_path / "out"
    quiet = Console(quiet=True)
    assert reproduce("tiny", out=out, papers=papers, console=quiet)
    folder = out / "tiny2023_l63"
    row, blown, ancestors = table(folder / "rows.csv")
    assert row["status"] == f"PASS (median, {100 * (float(blown['value']) > 0.1):.0f} % diverged)"
    assert row["metric"] == "w1_ratio"
    assert (blown["metric"], blown["status"]) == ("blown", "INFO") and 0 <= float(blown["value"]) <= 1
    assert (ancestors["metric"], ancestors["status"]) == ("ancestors", "INFO")
    assert 1 <= float(ancestors["value"]) <= PLAN["members"]
    before = {line["method"]: line for line in table(folder / "results.csv")}
    assert {SMOOTHER, "EnKS", "4D-Var", "climatology", "interpolation", "local1 / fast / sda"} <= set(before)
    assert float(before["local1 / fast / sda"]["evaluations"]) == 16 * 3
    assert (folder / "quality.png").exists() and (folder / "draws_lo.png").exists()

    def never(*_, **__):
        raise AssertionError("this was done before")

    monkeypatch.setattr(sda_l63, "train_net", never)
    monkeypatch.setattr(sda_l63, "smoothed", never)
    with monkeypatch.context() as patch:
        patch.setattr(sda_l63, "SDA", never)
        assert reproduce("tiny", out=out, papers=papers, console=quiet)
    assert reproduce("tiny", out=out, papers=papers, console=quiet, overrides=["size=full"])
    after = {line["method"]: line for line in table(folder / "results.csv")}
    assert "local1 / slow / sda" in after and after["EnKS"] == before["EnKS"]


def test_a_row_outside_its_band_fails(papers, tmp_path):
    console = Console(quiet=True)
    done = reproduce(
        "tiny", out=tmp_path / "out", papers=papers, console=console, overrides=["bars=[]", "members=4"]
    )
    assert done
    plan = read_plan(papers / "rozet2023" / "lorenz63" / "tiny2023_l63.yaml")
    floor = SDAOutcome({"w1": torch.tensor([1.0, 2.0]), "log_prior": torch.tensor([80.0, 82.0])}, {})
    ours = SDAOutcome({"w1": torch.tensor([1.2, 2.4]), "log_prior": torch.tensor([75.0, 77.0])}, {})
    bars = [
        Bar("ours", "w1_ratio", high=1.1, case="lo"),
        Bar("ours", "log_prior", low=-6.0, case="lo"),
        Bar("ours", "absolute_log_prior", low=75.5, case="lo"),
        Bar("ours", "w1_ratio", high=1.1, case="hi"),
    ]
    found = judge_process(type(plan)(**{**vars(plan), "bars": bars}), "lo", {SMOOTHER: floor, "ours": ours})
    told = " (median, 0 % diverged)"
    assert [v.status for v in found] == [f"FAIL{told}", f"PASS{told}", f"PASS{told}", "INFO"]
    assert found[0].value == pytest.approx(1.2) and found[1].value == pytest.approx(-5.0)


def test_a_cheaper_run_is_held_against_a_dearer_one(papers):
    """Medians over truths of W1's ratio, of how much further log p(x) is off, and the evaluations saved."""
    plan = read_plan(papers / "rozet2023" / "lorenz63" / "tiny2023_l63.yaml")

    def outcome(w1, log_prior, evaluations):
        values = {"w1": torch.tensor(w1), "log_prior": torch.tensor(log_prior), "blown": torch.zeros(2)}
        return SDAOutcome(values, {}, evaluations)

    found = {
        SMOOTHER: outcome([5.0, 5.0], [80.0, 80.0], 0.0),
        "slow": outcome([6.0, 8.0], [70.0, 72.0], 512.0),
        "fast": outcome([3.0, 4.0], [83.0, 79.0], 64.0),
    }
    limits = {"saved": {"low": 5.0}, "w1_ratio": {"high": 1.0}, "log_prior_gap": {"high": -8.0}}
    bars = [Bar("fast", metric, against="slow", case="lo", **limit) for metric, limit in limits.items()]
    bars.append(Bar("fast", "saved", against="absent", case="lo"))
    rows = judge_process(type(plan)(**{**vars(plan), "bars": bars}), "lo", found)
    assert [(v.value, v.status) for v in rows[:3]] == [
        (8.0, "PASS (median, 0 % diverged)"),
        (0.5, "PASS (median, 0 % diverged)"),
        (-7.0, "FAIL (median, 0 % diverged)"),
    ]
    assert [v.status for v in rows[3:]] == ["INFO"] and rows[3].value == 0


@pytest.mark.parametrize(
    "kind, cost", [("sda", 3), ("detached", 1), ("dps", 3), ("pseudo", 3), ("moments", 9), ("covariance", 1)]
)
def test_what_a_guidance_costs_is_counted(kind, cost):
    """Forward passes, and backward ones twice, counted in one guided mean whose solver needs all its steps."""
    calls = {"forward": 0, "backward": 0}

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            calls["forward"] += 1
            return x.sin() + x.roll(1, -2)

        @staticmethod
        def backward(ctx, g):
            calls["backward"] += 1
            return g * torch.linspace(0.1, 3, 27).reshape(9, 3)

    class Net(Denoiser):
        schedule = VPCosine()

        def forward(self, x_t, t):
            return Counted.apply(x_t)

    settings = {"kind": kind} | ({"iterations": 3, "tolerance": 1e-12} if kind == "moments" else {})
    seen = Observations(
        {"a": Observation(torch.randn(2, 9, 1), Select(torch.tensor([0]), event=1), Isotropic(0.01))}
    )
    guided = guidance_of(settings, torch.eye(27))(Net(), seen)
    guided(torch.randn(2, 9, 3), torch.tensor(0.5))
    assert calls["forward"] + 2 * calls["backward"] == cost == cost_of(settings)


@pytest.mark.parametrize(
    "override, message",
    [
        ("replicats=3", "replicates"),
        ("runs=[local2 / fast / sda]", "local1"),
        ("runs=[local1]", "net / sampler"),
        ("size=huge", "reduced"),
        ("nets.local1.widht=3", "widht"),
    ],
)
def test_unknown_names_are_reported(papers, override, message):
    with pytest.raises(ValueError, match=message):
        read_plan(papers / "rozet2023" / "lorenz63" / "tiny2023_l63.yaml", [override])


def test_too_many_observations_are_told(papers, tmp_path):
    path = papers / "rozet2023" / "lorenz63" / "tiny2023_l63.yaml"
    with pytest.raises(ValueError, match="test trajectories"):
        run(path, tmp_path / "out", ["replicates=3"], Console(quiet=True))


def test_the_command_takes_train(monkeypatch):
    seen = {}
    monkeypatch.setattr("slams.papers.reproduce.reproduce", lambda name, **rest: seen.update(rest) or True)
    assert main(["reproduce", "rozet2023_l63", "--train"]) == 0 and seen["train"] is True
    assert main(["reproduce", "rozet2023_l63"]) == 0 and seen["train"] is False


def test_shipped_weights_are_those_of_the_plan():
    """Small, readable, of the settings in the plan, and trained."""
    plan = read_plan(SHIPPED)
    for path in sorted((WEIGHTS / SHIPPED.stem).glob("*.safetensors")):
        assert path.stat().st_size < 6e6
        _, meta = sda_l63.load_net(path)
        assert meta["net"] == json.loads(json.dumps(dataclasses.asdict(plan.nets[path.stem])))
        assert (
            meta["best_step"] > 0
            and meta["archive"].partition("(")[2] == repr(plan.archive).partition("(")[2]
        )
