"""What a run tells before it reads data or trains."""

from pathlib import Path

import pytest

from slams.core.console import Console
from slams.core.settings import override
from slams.pipeline import run as runs
from slams.pipeline.inputs import checks
from slams.pipeline.recipe import Recipe, from_tree, to_tree
from slams.pipeline.run import run
from tests.pipeline.conftest import tiny_recipe, weather


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    folder = tmp_path_factory.mktemp("checks")
    weather(260).to_netcdf(folder / "archive.nc")
    tree = to_tree(tiny_recipe(folder / "archive.nc", folder / "store"))
    return from_tree(override(tree, [f"out={folder / 'run'}"]))


class Reads(Exception):
    """That data are read."""


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch) -> None:
    def read(*arguments):
        raise Reads

    monkeypatch.setattr(runs, "load_fields", read)


def changed(recipe: Recipe, *settings: str) -> Recipe:
    return from_tree(override(to_tree(recipe), settings))


def test_a_recipe_without_faults_is_read(recipe):
    with pytest.raises(Reads):
        run(recipe, console=Console(quiet=True))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.validation=[2001-06-19, 2001-07-19]", "data.train and data.validation share the days 2001-06-19 to"),
        ("data.test=[2001-07-01, 2001-09-17]", "data.validation and data.test share the days 2001-07-01 to 2001-07-19"),
        ("data.test=[2001-01-01, 2001-12-31]", "data.train and data.test share"),
        ("data.test=['', '']", r"data\.test is a first and a later last day"),
        ("data.train=[2001-06-19, 2001-01-01]", r"data\.train is a first and a later last day"),
        ("data.train=[soon, later]", r"data\.train is a first and a last day"),
        ("data.test=[2001-07-20, 2001-07-21]", r"data\.test has 2 days, fewer than prior\.window, 3"),
        ("data.test=[2011-07-20, 2011-09-21]", "the files of temp hold 2001-01-01 to 2001-09-17"),
        ("experiment.windows=5", "has 4 windows 15 days apart, but 5 are wanted"),
        ("device=cuda", "torch finds no GPU"),
        ("data.modalities.stn.variable=stx", "has no variable 'stx' .*modality 'stn'.* did you mean 'stn'"),
        ("data.modalities.coarse.files=/nowhere/*.nc", "no file matches /nowhere"),
    ],
)  # fmt: skip
def test_a_fault_is_told_before_anything_is_read(setting, message, recipe, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(changed(recipe, setting), console=Console(quiet=True))


@pytest.mark.parametrize("where", ["out", "data.store"])
def test_a_folder_that_cannot_be_made_is_told(where, recipe, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file is a file; let the result go elsewhere"):
        run(changed(recipe, f"{where}={tmp_path / 'file' / 'run'}"), console=Console(quiet=True))


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("assimilation.members=1", "spread, CRPS and coverage stay empty"),
        ("experiment.sets={}", "nothing is assimilated"),
    ],
)
def test_what_stays_empty_is_told(setting, line, recipe):
    said: list[str] = []
    checks.check_settings(changed(recipe, setting), Path(recipe.out), said.append)
    assert [text for text in said if line in text]
    said.clear()
    checks.check_settings(recipe, Path(recipe.out), said.append)
    assert said == []
