"""The texts at the top keep their word: examples run, recipes load, the tree is the one on disk."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slams.pipeline.recipe import from_tree

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
NUMBER = re.compile(r"\d+\.\d+")


def blocks(name: str, language: str) -> list[str]:
    """Code blocks of one language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), flags=re.M | re.S)


def executed(example: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A Python example, run in a folder by a process of its own."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", example],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_a_run_is_opened_as_the_readme_says(tmp_path: Path) -> None:
    """With the run of the fixture in the place of the recipe's."""
    fixture = ROOT / "tests" / "fixtures" / "v0_1"
    shutil.copytree(fixture / "run", tmp_path / "logs" / "iberia")
    shutil.copy(fixture / "observations.nc", tmp_path / "today.nc")
    shutil.copy(fixture / "truth.nc", tmp_path)
    example = blocks("README.md", "python")[1].replace("members=64", "members=4")
    assert "rmse" in executed(example, tmp_path).stdout.lower()


def test_the_first_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    """In a folder without any data; 0.02 is what another BLAS may move in the last printed digit, twice.

    Error and spread are those of an ensemble that is calibrated to a quarter.
    """
    example, shown = blocks("README.md", "python")[0], blocks("README.md", "text")[0]
    done = executed(example, tmp_path)
    assert NUMBER.sub("#", done.stdout).split() == NUMBER.sub("#", shown).split()
    printed, promised = ([float(x) for x in NUMBER.findall(text)] for text in (done.stdout, shown))
    assert printed == pytest.approx(promised, abs=0.02)
    error, _, spread, *_ = printed
    assert 0.8 < spread / error < 1.25
    assert not list(tmp_path.iterdir())


def test_the_example_of_a_bench_prints_its_table_and_writes_its_report(tmp_path: Path) -> None:
    done = executed(blocks("README.md", "python")[2], tmp_path)
    assert "ETKF" in done.stdout and "EnKFN" in done.stdout
    assert (tmp_path / "reports" / "lorenz96" / "report.html").exists()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_python_examples_are_short(number: int) -> None:
    """Imports apart, five lines: who needs more to see what this is will not read on."""
    lines = [line for line in blocks("README.md", "python")[number].splitlines() if line]
    assert sum(not line.startswith(("import ", "from ")) for line in lines) <= 5


def test_recipe_of_the_readme_loads() -> None:
    """Every key is known and every name in it is a modality."""
    (text,) = blocks("README.md", "yaml")
    recipe = from_tree(yaml.safe_load(text))
    kinds = {m.kind for m in recipe.modalities.values()}
    roles = {m.role for m in recipe.modalities.values()}
    assert kinds == {"grid", "stations"} and roles == {"state", "observation"}


def test_overrides_of_the_readme_are_settings() -> None:
    """`a.b=c` in a training command names a key that recipes have."""
    known = yaml.safe_load((ROOT / "slams" / "configs" / "iberia.yaml").read_text())
    for line in "".join(blocks("README.md", "bash")).splitlines():
        if line.startswith(("slams train", "python train_da.py")):
            settings = [word for word in line.split("#")[0].split() if "=" in word]
            for setting in settings:
                from_tree(_with(known, *setting.split("=")))


def _with(tree: dict, key: str, value: str) -> dict:
    first, _, rest = key.partition(".")
    return {**tree, first: _with(tree.get(first, {}), rest, value) if rest else yaml.safe_load(value)}


@pytest.mark.parametrize("name", TEXTS)
def test_links_lead_somewhere(name: str) -> None:
    """Files that a text links to or shows are in the repository."""
    text = (ROOT / name).read_text()
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (ROOT / target).exists(), f"{name} links to {target}, which is not there."


def drawn(tree: str) -> Iterator[str]:
    """Folders of a drawn tree, as paths; a line names one folder (`│   ├── core/`) or files."""
    parents: list[str] = []
    for line in tree.splitlines():
        entry = line.lstrip("│├└─ ")
        depth = (len(line) - len(entry)) // 4
        name = entry.split()[0]
        if name.endswith("/"):
            parents = [*parents[: depth - 1], name.rstrip("/")]
            yield "/".join(parents)


def test_architecture_draws_the_tree_that_is_there() -> None:
    """Every folder of the package is in the tree, and nothing else is; weights and plans belong to their package."""
    tree = next(block for block in blocks("ARCHITECTURE.md", "text") if "train_da.py" in block)
    names = [name for name in drawn(tree) if name.startswith("slams")]
    tracked = subprocess.run(
        ["git", "ls-files", "slams"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    there = {str(Path(path).parent) for path in tracked}
    for path in list(there):
        there |= {str(parent) for parent in Path(path).parents if str(parent) != "."}
    assert len(names) == len(set(names))
    inner = {name for name in there if name.startswith("slams/weights/") or name.endswith("/plans")}
    studies = {"slams/papers/rozet2023/lorenz63", "slams/papers/rozet2023/kolmogorov"}
    assert set(names) == there - inner - studies
