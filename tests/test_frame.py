"""What holds the package together: requirements, version, files, and the promises of the README."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

import slams

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = {"torch", "numpy", "scipy", "xarray", "pandas", "zarr", "netCDF4", "dask", "matplotlib", "cartopy"}
README = ROOT / "README.md"
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SOURCES = sorted((ROOT / "slams").rglob("*.py"))


def console_lines(text: str) -> list[str]:
    """Commands in the shell blocks of a markdown text, one per line, prompts and comments removed."""
    blocks = re.findall(r"^```(?:bash|console|sh|shell)\n(.*?)^```", text, flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ").split(" #")[0].strip() for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_make_targets_that_exist(workflow: Path) -> None:
    """What runs on the server is what runs here."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for job in yaml.safe_load(workflow.read_text())["jobs"].values():
        commands = "\n".join(step.get("run", "") for step in job["steps"])
        assert set(re.findall(r"\bmake ([a-z]+)", commands)) <= targets


def test_every_python_of_the_classifiers_is_tested() -> None:
    """And no other; the set-up script looks for each of them."""
    named = [text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", text)]
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == named
    assert all(f"python{number}" in (ROOT / "tools" / "install.sh").read_text() for number in named)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, from the repository."""
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_requirements_equal_pyproject() -> None:
    """requirements.txt is the runtime: core, [data] and [maps]."""
    extras = PROJECT["optional-dependencies"]
    wanted = PROJECT["dependencies"] + extras["data"] + extras["maps"]
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == wanted


def test_every_dependency_has_a_lower_bound() -> None:
    """The versions that `uv pip install --resolution lowest-direct` takes are tested."""
    for named in [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]:
        for requirement in named:
            assert re.fullmatch(r"[\w.-]+(\[[\w,]+\])?>=[\d.]+", requirement), requirement
    extras = PROJECT["optional-dependencies"]
    assert set(extras["distributed"]) <= set(extras["dev"])


def test_constraints_pin_one_torch() -> None:
    """An open torch would take several GB of CUDA packages; the set-up reads exactly this line."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line.startswith("torch")]
    assert len(pins) == 1 and re.fullmatch(r"torch==\d+\.\d+\.\d+", pins[0])


def test_version_is_the_installed_one() -> None:
    """One version, written once, in slams/__init__.py."""
    assert PROJECT["dynamic"] == ["version"]
    try:
        installed = version("slams")
    except PackageNotFoundError:
        pytest.skip("slams runs from its folder, uninstalled")
    assert slams.__version__ == installed, "the installed metadata are old: pip install -e ."


def test_data_folder_is_ignored_and_the_package_data_is_not() -> None:
    """`data/` without its anchor would ignore slams/data/ too."""
    rules = (ROOT / ".gitignore").read_text().splitlines()
    assert "/data/*" in rules and "!/data/.gitkeep" in rules and (ROOT / "data" / ".gitkeep").exists()
    assert not {"data", "data/", "data/*", "logs/"} & set(rules)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_file_is_short_and_named_for_one_thing(path: Path) -> None:
    """At most 400 lines, and no drawer for what has no place."""
    assert len(path.read_text().splitlines()) <= 400
    assert path.stem not in {"utils", "util", "helpers", "helper", "common", "misc"}


def test_help_imports_nothing_heavy() -> None:
    """torch alone takes seconds; `--help` must not."""
    done = run("-X", "importtime", "-m", "slams", "--help")
    assert done.returncode == 0, done.stderr[-2000:]
    imported = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert not imported & HEAVY


@pytest.fixture(scope="module")
def readme_commands() -> list[str]:
    """The README's console examples."""
    if not README.exists():
        pytest.skip("there is no README yet")
    commands = console_lines(README.read_text())
    assert "make demo" in commands and "make test" in commands
    return commands


def test_readme_names_make_targets_and_scripts_that_exist(readme_commands: list[str]) -> None:
    """Every `make X`, `python X.py` and recipe of the README is there."""
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    for command in readme_commands:
        words = command.split()
        if words[:1] == ["make"]:
            named = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
            assert named <= targets, command
        for word in words:
            if word.endswith(".py") or re.match(r"(slams|tests|tools)/\S*\.\w+$", word):
                assert (ROOT / word).exists(), command


def test_readme_names_commands_that_exist(readme_commands: list[str]) -> None:
    """Every `slams VERB` of the README answers to --help."""
    pattern = re.compile(r"(?:^|&& |python -m )slams ([a-z]+)")
    for verb in sorted({match for command in readme_commands for match in pattern.findall(command)}):
        done = run("-m", "slams", verb, "--help")
        assert done.returncode == 0, f"slams {verb} --help: {done.stderr[-2000:]}"
