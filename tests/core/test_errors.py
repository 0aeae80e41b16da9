"""Every error that the package raises on purpose is a `SlamsError` and the builtin error it refines."""

import ast
import inspect
from pathlib import Path

import pytest

import slams
from slams.core import errors

ROOT = Path(__file__).resolve().parents[2]
REFINED = ("ValueError", "TypeError", "FileNotFoundError", "FloatingPointError", "PermissionError")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "slams").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_no_module_raises_a_bare_builtin_error(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.Raise)
            and isinstance(node.exc, ast.Call)
            and isinstance(node.exc.func, ast.Name)
        ):
            assert node.exc.func.id not in REFINED, f"{path}:{node.lineno} raises {node.exc.func.id}"


def test_each_error_is_the_builtin_it_was():
    kinds = [
        kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__name__.endswith("Error")
    ]
    for kind in kinds:
        assert issubclass(kind, errors.SlamsError)
    with pytest.raises(ValueError, match="steps >= 1") as caught:
        slams.Twin(slams.Lorenz63(), steps=0)
    assert isinstance(caught.value, slams.SlamsError)
