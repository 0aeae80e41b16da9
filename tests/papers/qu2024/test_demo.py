"""`slams demo`: the shipped model and days are small, and the analysis is what it promises."""

import pytest

from slams.cli import main
from slams.core.console import Console
from slams.papers.qu2024.archive import DAYS, STATE, shipped_truths
from slams.papers.qu2024.demo import FOLDER, demo
from slams.papers.qu2024.plan import MODELS, read_plan
from slams.papers.qu2024.prior import load_prior
from slams.papers.qu2024.training import CLIMATE
from slams.papers.study import WEIGHTS
from tests.papers.qu2024.conftest import FILE


def megabytes(paths) -> float:
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def test_shipped_weights_are_small():
    """The study's models and climate; all weights of the package; what the demo reads."""
    assert megabytes(path for path in FOLDER.iterdir() if path.name != DAYS) <= 5
    assert megabytes(WEIGHTS.rglob("*")) <= 25
    assert megabytes(FOLDER / name for name in (CLIMATE, DAYS, "lsda_2.safetensors")) <= 3


@pytest.mark.parametrize("name", MODELS)
def test_every_model_is_shipped(name):
    plan = read_plan(FILE)
    prior = load_prior(FOLDER / f"{name}.safetensors", plan.prior, name, plan.cells)
    assert prior.basis.shape[1] <= 100 and set(prior.facts["calibrated"]) == {"coarse", "noise", "sparse"}


def test_more_days_than_are_shipped_are_refused():
    with pytest.raises(ValueError, match="are 2 trajectories of 5 days, and the plan has 3 of 5"):
        shipped_truths(FOLDER / DAYS, read_plan(FILE, ["size=reduced", "trajectories=3"]))
    truth = shipped_truths(FOLDER / DAYS, read_plan(FILE, ["size=reduced", "length=3"]))
    assert truth.anomalies[STATE].shape == (2, 3, 10, 32, 64)


def test_the_demo_prints_scores_and_draws_a_figure(tmp_path, capsys):
    assert main(["demo", "--out", str(tmp_path), "--members", "8"]) == 0
    assert (tmp_path / "demo.png").stat().st_size > 20_000
    text = capsys.readouterr().out
    assert "analysis, temperature + rain" in text and "demo.png" in text


def test_the_demos_analysis_is_better_with_more_modalities(tmp_path):
    """The seed is fixed; a fifth is far more than rounding on another machine."""
    scores = demo(tmp_path, members=8, console=Console(quiet=True))
    crps = {name.split(", ")[-1]: each["crps"] for name, each in scores.items()}
    rivals = min(crps[name] for name in ("temperature alone", "interpolation", "climatology"))
    assert crps["temperature + rain + radiation"] < 0.8 * rivals
    with pytest.raises(ValueError, match="at least 2 members"):
        demo(tmp_path, members=1)
