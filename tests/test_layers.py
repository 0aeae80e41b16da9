"""Who may import whom: the layers of ARCHITECTURE.md, read from the source without running it."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Layer -> what it may import besides itself. A dotted name allows that module only.
ROOTS = {"core", "config"}
PARTS = ROOTS | {"systems", "observation", "networks", "data"}
METHODS = PARTS | {"diffusion", "assimilation", "evaluation", "training"}
ALLOWED = {
    "core": set(),
    "config": set(),
    "systems": {"core"},
    "observation": {"core"},
    "networks": {"core"},
    "data": {"core", "config"},
    "diffusion": {"core", "observation"},
    "assimilation": {"core", "systems.base", "observation", "diffusion"},
    "evaluation": {"core"},
    "training": {"core", "config", "data"},
    "pipeline": METHODS,
    "twin": METHODS,
    "papers": METHODS | {"pipeline", "twin"},
    "cli": METHODS | {"pipeline", "twin", "papers"},
    "__main__": {"cli"},
    "__init__": set(),
    "experiments": set(),  # an error that names the new places
}

# Foreign packages that stay at the border: tensors inside, labelled arrays, files and HTTP outside.
BORDER = {
    "data": {"xarray", "zarr", "netCDF4", "h5netcdf", "dask"}
    | {"cdsapi", "fsspec", "pooch", "requests", "urllib"},
    "pipeline": {"xarray", "zarr", "netCDF4", "dask"},
    "twin": {"xarray", "zarr", "netCDF4", "dask"},
    "papers": {"xarray", "zarr", "netCDF4", "dask"},
    "cli": {"xarray", "dask"},
}
HANDED_OVER = {"slams.assimilation.base": {"xarray"}, "slams.assimilation.labelled": {"xarray"}}  # posteriors
GUARDED = set.union(*BORDER.values())


def module_name(path: Path) -> str:
    """Dotted name of a source file: slams/core/__init__.py -> slams.core."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


SOURCES = {module_name(path): path for path in sorted((ROOT / "slams").rglob("*.py"))}


def imports(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """Modules that a file imports, at any depth; of `from a import b`, a.b where that is a module of ours."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in SOURCES else node.module or "", node


def ours(path: Path) -> Iterator[tuple[str, ast.stmt]]:
    """The imports of our own modules."""
    return ((name, node) for name, node in imports(path) if name == "slams" or name.startswith("slams."))


def layer(module: str) -> str:
    """slams.core.random -> core; the top package, which holds the version only, -> __init__."""
    return module.split(".")[1] if "." in module else "__init__"


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_only_layers_above(module: str) -> None:
    """Each layer imports only from lines above it, and packages of one line never from each other."""
    home = layer(module)
    assert home in ALLOWED, f"{home} is not a layer: add it to ALLOWED and to ARCHITECTURE.md, or move it."
    for target, node in ours(SOURCES[module]):
        inner = target.removeprefix("slams.")
        allowed = ALLOWED[home] | {home}
        fine = layer(target) in allowed | {"__init__"} or any(
            inner == name or inner.startswith(f"{name}.") for name in allowed
        )
        assert fine, f"{module}:{node.lineno} imports {target}; {home} may import {sorted(ALLOWED[home])}."


@pytest.mark.parametrize("module", SOURCES)
def test_module_imports_absolutely(module: str) -> None:
    """Absolute and explicit: no `from . import`, no star."""
    for node in ast.walk(ast.parse(SOURCES[module].read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno} imports relatively."
            assert all(alias.name != "*" for alias in node.names), f"{module}:{node.lineno} imports *."


@pytest.mark.parametrize("module", SOURCES)
def test_labelled_arrays_and_http_stay_at_the_border(module: str) -> None:
    """Only data, the pipeline, twins and papers import xarray; only data imports HTTP clients."""
    for target, node in imports(SOURCES[module]):
        foreign = target.split(".")[0]
        if foreign in GUARDED:
            allowed = BORDER.get(layer(module), set()) | HANDED_OVER.get(module, set())
            assert foreign in allowed, f"{module}:{node.lineno} imports {target}."


def test_command_line_imports_what_is_heavy_only_where_it_runs() -> None:
    """`--help` and argument errors answer at once: at module level only the standard library and config."""
    path = ROOT / "slams" / "cli" / "__init__.py"
    tree = ast.parse(path.read_text())
    inside = {
        node.lineno
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    for target, node in ours(path):
        if node.lineno not in inside:
            assert layer(target) in {"__init__", "config"}, f"slams/cli.py:{node.lineno} imports {target}."


def test_modules_import_each_other_in_no_cycle() -> None:
    """Zero cycles, also between the files of one package."""
    graph = {module: {name for name, _ in ours(path)} - {module} for module, path in SOURCES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import cycle: " + " <- ".join(error.args[1]))
