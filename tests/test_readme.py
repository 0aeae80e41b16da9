"""The texts at the top keep their word: examples run, recipes load, the tree is the one on disk."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from slams.recipe import from_tree

ROOT = Path(__file__).resolve().parent.parent
TEXTS = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
NUMBER = re.compile(r"\d+\.\d+")


def blocks(name: str, language: str) -> list[str]:
    """Code blocks of one language in a text."""
    return re.findall(rf"^```{language}\n(.*?)^```", (ROOT / name).read_text(), flags=re.M | re.S)


@pytest.mark.parametrize("number", [0, 1])
def test_python_example_prints_what_the_readme_says(tmp_path: Path, number: int) -> None:
    """In a folder without any data; 0.02 is what another BLAS may move in the last printed digit, twice.

    The first two numbers are error and spread, of an ensemble that is calibrated to a quarter.
    """
    example, shown = (blocks("README.md", language)[number] for language in ("python", "text"))
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "-c", example],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert NUMBER.sub("#", done.stdout) == NUMBER.sub("#", shown)
    printed, promised = ([float(x) for x in NUMBER.findall(text)] for text in (done.stdout, shown))
    assert printed == pytest.approx(promised, abs=0.02)
    error, spread, *_ = printed
    assert 0.8 < spread / error < 1.25
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [0, 1])
def test_python_example_is_twelve_lines(number: int) -> None:
    """Imports apart: who needs more to see what this is will not read on."""
    lines = [line for line in blocks("README.md", "python")[number].splitlines() if line]
    assert sum(not line.startswith(("import ", "from ")) for line in lines) <= 12


def test_recipe_of_the_readme_loads() -> None:
    """Every key is known and every name in it is a modality."""
    (text,) = blocks("README.md", "yaml")
    recipe = from_tree(yaml.safe_load(text))
    kinds = {m.kind for m in recipe.modalities().values()}
    roles = {m.role for m in recipe.modalities().values()}
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
    """Paths of the Python files under slams/ in a drawn tree.

    A line names a folder (`│   ├── core/`), or files side by side.
    """
    folder = None
    for line in tree.splitlines():
        entry = line.lstrip("│├└─ ")
        depth = (len(line) - len(entry)) // 4
        if depth == 1:
            folder = "slams/" if entry.startswith("slams/") else None
        elif depth == 2 and folder:
            folder = f"slams/{entry.split()[0]}" if entry.split()[0].endswith("/") else "slams/"
        if folder:
            yield from (folder + file for file in re.findall(r"[\w/]+\.py\b", entry))


def test_architecture_draws_the_tree_that_is_there() -> None:
    """Every module of the package is in the tree, and nothing else is."""
    tree = next(block for block in blocks("ARCHITECTURE.md", "text") if "train_da.py" in block)
    names = list(drawn(tree))
    there = {str(path.relative_to(ROOT)) for path in (ROOT / "slams").rglob("*.py")}
    assert len(names) == len(set(names))
    assert set(names) == {path for path in there if not path.endswith("/__init__.py")} | {"slams/__init__.py"}
