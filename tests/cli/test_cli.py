"""Laws of the command line: it answers at once, passes on what it was given, and tells errors in a line."""

import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import slams.pipeline.assimilate
import slams.pipeline.evaluate
import slams.pipeline.run
from slams.cli import main, train
from slams.core.errors import DataWarning

ROOT = Path(__file__).resolve().parents[2]
ASSIMILATE = ["assimilate", "RUN", "--observations", "a.nc", "--out", "b.nc"]
EVALUATE = ["evaluate", "a.nc", "--truth", "t.nc", "--report", "R"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, from the repository."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )


def ended(*arguments: str) -> int | str | None:
    """Exit code of words that the parser itself answers."""
    with pytest.raises(SystemExit) as raised:
        main(arguments)
    return raised.value.code


def test_help_of_every_command_needs_nothing_heavy():
    """One process asks for all of them; torch alone would take seconds."""
    done = python(
        "import sys\n"
        "from slams.cli import main\n"
        "for words in ([], ['train'], ['assimilate'], ['evaluate'], ['demo']):\n"
        "    try:\n"
        "        main([*words, '--help'])\n"
        "    except SystemExit as end:\n"
        "        assert end.code == 0, words\n"
        "heavy = {'torch', 'numpy', 'xarray', 'scipy', 'rich', 'yaml', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr
    for word in ("train", "assimilate", "evaluate", "--config_filepath", "--members", "--truth"):
        assert word in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        ["fly"],
        [],
        [*ASSIMILATE[:4]],
        ["evaluate"],
        [*ASSIMILATE, "--menbers", "3"],
        [*ASSIMILATE, "--members", "many"],
        [*ASSIMILATE, "steps"],
        [*EVALUATE, "assimilation.steps=3"],
    ],
)
def test_words_that_are_no_command_end_with_two_and_the_usage(words, capsys):
    assert ended(*words) == 2
    streams = capsys.readouterr()
    assert "usage: slams" in streams.err and not streams.out


def test_an_error_is_a_line_on_stderr_and_one(tmp_path, capsys):
    for words in (
        ["train", str(tmp_path / "nothing.yaml")],
        ["train", "planet", "prior.windw=3"],
        ["train", "planet", "prior.hidden=[64"],
        ["train", "planet", "--config_filepath", "iberia"],
        ["train", "planet", "assimilation.members=0"],
        ["assimilate", str(tmp_path), "--observations", "a.nc", "--out", str(tmp_path / "b.nc")],
        ["assimilate", str(tmp_path), "--observations", "a.nc", "--out", str(tmp_path / "b.txt")],
    ):
        assert main(words) == 1
        streams = capsys.readouterr()
        assert streams.err.startswith("slams: ") and streams.err.count("\n") == 1 and not streams.out
    assert list(tmp_path.iterdir()) == []


def test_a_warning_of_the_package_is_a_line_on_stderr_once(monkeypatch, capsys):
    def warned(*args, **keywords):
        for _ in range(2):
            warnings.warn("2 values are left out.", DataWarning, stacklevel=1)

    monkeypatch.setattr(slams.pipeline.evaluate, "evaluate", warned)
    assert main(EVALUATE) == 0
    assert capsys.readouterr().err == "slams: warning: 2 values are left out.\n"
    assert warnings.showwarning.__module__ != "slams.cli"


def test_an_error_has_no_traceback_in_a_process_either():
    done = subprocess.run(
        [sys.executable, "train_da.py", "--config_filepath", "nothing.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("slams: no recipe at nothing.yaml; shipped in slams/configs: convae_0, ")


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys):
    def interrupted(recipe):
        raise KeyboardInterrupt

    monkeypatch.setattr(slams.pipeline.run, "run", interrupted)
    assert main(["train"]) == 130
    assert "the same command resumes" in capsys.readouterr().err


@pytest.fixture
def recipes(monkeypatch) -> list:
    """Recipes that were to be run, instead of running them."""
    asked: list = []
    monkeypatch.setattr(slams.pipeline.run, "run", asked.append)
    return asked


@pytest.mark.parametrize(
    "words",
    [
        ["iberia", "prior.fit.steps=7", "seed=3"],
        ["--config_filepath", "iberia", "prior.fit.steps=7", "seed=3"],
        ["prior.fit.steps=7", "--config_filepath", "iberia", "seed=3"],
        ["--config_filepath", "slams/configs/iberia.yaml", "seed=3", "prior.fit.steps=7"],
        ["seed=3", "prior.fit.steps=7", "--config_filepath=iberia"],
    ],
)
def test_a_recipe_and_its_settings_come_in_any_order(words, recipes, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert train(words) == 0
    (recipe,) = recipes
    assert (recipe.name, recipe.prior.fit.steps, recipe.seed) == ("iberia", 7, 3)


def test_train_without_words_is_the_planet(recipes):
    assert main(["train"]) == 0 and main(["train", "seed=5"]) == 0
    assert [(recipe.name, recipe.seed) for recipe in recipes] == [("planet", 0), ("planet", 5)]


def test_assimilate_passes_on_what_it_was_given(monkeypatch):
    given = {}

    def assimilate(run, observations, out, **settings):
        given.update(run=run, observations=observations, out=out, **settings)

    monkeypatch.setattr(slams.pipeline.assimilate, "assimilate", assimilate)
    words = [*ASSIMILATE, "--observations", "t=c.nc", "--members", "4", "--modalities", "a,b", "--baselines"]
    assert main([*words, "--dates", "1997-12-01..1998-02-28", "assimilation.steps=3", "withhold.s=[1]"]) == 0
    assert given.pop("console") is not None
    assert given == {
        "run": "RUN",
        "observations": ["a.nc", "t=c.nc"],
        "out": "b.nc",
        "members": 4,
        "modalities": ["a", "b"],
        "dates": "1997-12-01..1998-02-28",
        "seed": 0,
        "baselines": True,
        "overrides": ["assimilation.steps=3", "withhold.s=[1]"],
    }


def test_evaluate_passes_on_what_it_was_given(monkeypatch):
    given = []
    monkeypatch.setattr(slams.pipeline.evaluate, "evaluate", lambda *words, console: given.append(words))
    assert main([*EVALUATE, "--truth", "p=q.nc"]) == 0
    assert given == [("a.nc", ["t.nc", "p=q.nc"], "R")]
