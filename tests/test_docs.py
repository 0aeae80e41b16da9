"""The documentation holds together, and the examples on extending the package run from outside of it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
EXTENDED = [
    "system",
    "operator",
    "filter",
    "guidance",
    "network",
    "metric",
    "data source",
    "figure",
    "paper's table",
]


def sections() -> dict[str, str]:
    """Sections of the page on extending, by heading."""
    _, *parts = re.split(r"^## (.+)\n", (DOCS / "extending.md").read_text(), flags=re.M)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = re.search(r"```\{toctree\}\n(?::.*\n)*\n(.*?)```", (DOCS / "index.md").read_text(), flags=re.S)
    assert listed is not None
    assert set(listed[1].split()) == {page.stem for page in PAGES} - {"index"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        assert "://" in target or (DOCS / target).exists(), target


def test_the_page_on_extending_has_a_section_for_each_kind_of_object() -> None:
    assert [re.sub("^An? ", "", name) for name in sections()] == EXTENDED


@pytest.mark.parametrize("name", sections())
def test_examples_of_a_section_run_from_outside_the_package(name: str, tmp_path: Path) -> None:
    """In an empty folder, in a process of their own."""
    cells = re.findall(r"^```\{code-cell\}.*\n((?:.*\n)*?)```", sections()[name], flags=re.M)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    assert cells
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", "\n".join(cells)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": path, "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
