"""Laws of `slams tune`: it finds better settings, on truths that tests never see, and goes on."""

import json

import pytest
import yaml

from slams.cli import main
from slams.evaluation.tuning import Range, proposal
from slams.twin import tuning as module
from slams.twin.experiment import TwinExperiment
from slams.twin.methods import METHODS
from slams.twin.runner import Runner
from slams.twin.setup import setup
from slams.twin.tuning import tune

SMALL = ["truth.size=8", "burn_in=20", "cycles=60", "replicates=2"]
BAD = {"members": 6, "inflation": 1.0}


@pytest.fixture
def poor_start(monkeypatch):
    """A default that loses the truth."""
    monkeypatch.setattr(module, "starting", lambda name, system: ("default", dict(BAD)))


def run(path, budget=8):
    tune("lorenz96", ["EnKF"], path, budget=budget, overrides=SMALL)
    return path


def test_tuning_improves_on_a_bad_start_on_test_truths_too(tmp_path, poor_start):
    """On truths from seed 1000; the start is off by several observation errors."""
    found = yaml.safe_load(run(tmp_path / "t.yaml").read_text())["methods"]["EnKF"]
    assert found["score"] < 0.7 * found["first"] and found["trials"] == 8
    runner = Runner(setup({"system": "lorenz96"}, [*SMALL, "replicates=3"]), detail=False)
    errors = [float(runner.run("EnKF", s).scores["rmse"].mean()) for s in (found["settings"], BAD)]
    assert errors[0] < errors[1]


def test_only_tuning_seeds_are_simulated(tmp_path, monkeypatch):
    """Whoever tunes on what is tested finds what was there."""
    seen: set[int] = set()
    simulate = TwinExperiment.simulate_seeds

    def watched(self, seeds):
        seen.update(seeds)
        return simulate(self, seeds)

    monkeypatch.setattr(TwinExperiment, "simulate_seeds", watched)
    run(tmp_path / "t.yaml", budget=2)
    assert seen and max(seen) < 1000
    for override in ("seed=999", "seed=1000"):
        with pytest.raises(ValueError, match="not all below 1000"):
            tune("lorenz96", ["EnKF"], tmp_path / "x.yaml", overrides=[*SMALL, override])
    assert not (tmp_path / "x.yaml").exists()


def test_a_killed_tuning_ends_as_one_that_was_not(tmp_path, monkeypatch):
    whole = yaml.safe_load(run(tmp_path / "whole.yaml", 6).read_text())
    score, done = module.score, []

    def killed(*given):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(1)
        return score(*given)

    monkeypatch.setattr(module, "score", killed)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "t.yaml", 6)
    assert len(json.loads((tmp_path / "t.trials.json").read_text())["trials"]["EnKF"]) == 3
    calls = []
    monkeypatch.setattr(module, "score", lambda *given: calls.append(1) or score(*given))
    assert yaml.safe_load(run(tmp_path / "t.yaml", 6).read_text()) == whole and len(calls) == 3


def test_trials_of_another_set_up_are_refused(tmp_path):
    run(tmp_path / "t.yaml", 1)
    with pytest.raises(ValueError, match="model.forcing: absent there, 9 here"):
        tune("lorenz96", ["EnKF"], tmp_path / "t.yaml", overrides=[*SMALL, "model.forcing=9"])


def test_every_method_gets_the_same_number_of_trials(tmp_path):
    path = tmp_path / "t.yaml"
    tune("lorenz96", ["EnKF", "ETKF"], path, budget=3, overrides=SMALL)
    found = yaml.safe_load(path.read_text())["methods"]
    assert {name: each["trials"] for name, each in found.items()} == {"EnKF": 3, "ETKF": 3}


@pytest.mark.parametrize("name", [name for name, each in METHODS.items() if each.space])
def test_proposals_stay_in_the_space_and_are_not_repeated(name):
    space, settings = METHODS[name].space, {"members": 9, **METHODS[name].settings}
    trials = []
    for count in range(24):
        values = proposal(space, settings, trials, 24, usual=METHODS[name].settings)
        trials.append({"settings": values, "score": abs(count - 10)})
        for key, limits in space.items():
            assert count == 0 or limits.low - 1e-5 <= values[key] <= limits.high + 1e-5
        assert values["members"] == 9
    assert len({str(t["settings"]) for t in trials}) > 12


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_a_share_of_a_range_is_undone_by_its_inverse(scale):
    limits = Range(0.5, 8.0, scale)
    assert [limits.share(limits.at(s)) for s in (0.0, 0.3, 1.0)] == pytest.approx([0.0, 0.3, 1.0])


def test_the_command_needs_methods_that_are_there(tmp_path, capsys):
    words = ["tune", "lorenz96", "--out", str(tmp_path / "t.yaml"), *SMALL]
    assert main([*words, "--methods", "LETFK"]) == 1
    assert "did you mean LETKF?" in capsys.readouterr().err
    assert main([*words, "--methods", "EnKF", "--budget", "0"]) == 1
    assert "at least 1 trial" in capsys.readouterr().err and list(tmp_path.iterdir()) == []
