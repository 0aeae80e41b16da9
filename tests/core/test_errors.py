"""Every error that the package raises on purpose is a `SlamsError` and the builtin error it refines."""

import ast
import inspect
from pathlib import Path

import pytest
import torch

import slams
from slams.core import errors
from slams.core.errors import warn_diverged

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


def test_a_divergence_that_ended_is_told_with_both_its_steps(recwarn):
    """Analyses at every second step; the first 100 do not count, but a divergence that reaches into them does."""
    flags = torch.full((2, 400), torch.nan)
    flags[:, 1::2] = 0.0
    flags[1, 151:301:2] = 1.0  # the 76th to the 150th analysis: 50 of the 100 that count
    warn_diverged(flags, "Any")
    flags[0, 351::2] = 1.0
    warn_diverged(flags, "Any")
    warn_diverged(flags[:1, :350], "Any")  # before it diverged
    first, second = (str(each.message) for each in recwarn)
    assert (
        "Any has diverged in 1 of 2 replicates, first from step 151 to step 299, where it recovered" in first
    )
    assert "in 2 of 2 replicates, first from step 151 on" in second
