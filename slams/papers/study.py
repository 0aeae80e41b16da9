"""What all studies do alike: read a plan, simulate pieces of an archive, find weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.renamed import renamed
from slams.core.settings import build, read_tree, sized
from slams.core.stages import Stage, Stages

P = TypeVar("P")

SPLITS = ("train", "valid", "test")
WEIGHTS = Path(__file__).parents[1] / "weights"


def read_study(cls: type[P], path: Path, overrides: Sequence[str] = ()) -> P:
    """A study's plan from its file, at the size that is asked for.

    Args:
        cls: Dataclass of the plan.
        path: YAML file; what differs in each size is under `sizes`.
        overrides: Such as "size=full" or "archive.count=8".

    Raises:
        ValueError: If a key is unknown (the nearest is named), is lacking, or a value has the wrong type.
    """
    try:
        plan: P = build(cls, study_tree(path, overrides))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    return plan


def study_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Nested settings of a study's file; earlier names of keys are taken for the new ones."""
    tree = renamed("size preset", read_tree(path, "plan of a study"))
    tree = sized(tree, [new_name(text) for text in overrides])
    if isinstance(tree.get("bars"), list):
        tree["bars"] = [renamed("bar", bar) if isinstance(bar, Mapping) else bar for bar in tree["bars"]]
    return tree


def new_name(override: str) -> str:
    """An override whose key has the name of this version."""
    key, equals, value = override.partition("=")
    return "".join((*renamed("size preset", {key: value}), equals, value))


def rows_of(split: str, count: int) -> range:
    """Numbers of an archive's trajectories in a part: 8 of 10 for training, one each for validation and test."""
    ends = (0, int(0.8 * count), int(0.9 * count), count)
    part = SPLITS.index(split)
    return range(ends[part], ends[part + 1])


def simulated(
    folder: Path, settings: Any, pieces: Mapping[str, Callable[[], Tensor]], *, title: str,
    console: Console | None = None, version: int = 1,
) -> list[Tensor]:  # fmt: skip
    """Simulated pieces of an archive, each in a file of its own; a killed run goes on with its next piece.

    Args:
        folder: Of the archive.
        settings: All that its numbers depend on.
        pieces: By name, what simulates each.
        title: Of the progress bar.
        console: Where progress is shown.
        version: Of the simulation; raised where its numbers change.

    Returns:
        One tensor a piece.
    """
    console = console or Console(quiet=True)
    stages = Stages(folder, console.say)
    found = {name: stages.load(Stage(name, settings, version)) for name in pieces}
    missing = [name for name in pieces if found[name] is None]
    if missing:
        with console.bar(f"simulate {title}", len(missing)) as advance:
            for name in missing:
                x = pieces[name]()
                stages.save(Stage(name, settings, version), {"x": x}, {})
                found[name] = {"x": x}, {}
                advance(1, "")
    return [kept[0]["x"] for kept in found.values() if kept is not None]


def draw_pieces(x: Tensor, shape: int | Sequence[int], length: int, rng: torch.Generator) -> Tensor:
    """Random pieces of trajectories (n, T, *Z), (*shape, length, *Z)."""
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    rows = torch.randint(len(x), shape, generator=rng)
    starts = torch.randint(x.shape[1] - length + 1, shape, generator=rng)
    return x[rows[..., None], starts[..., None] + torch.arange(length)]


def finite(x: Tensor, message: str) -> Tensor:
    """The states, if all are finite.

    Raises:
        FloatingPointError: If one is not.
    """
    if not bool(torch.isfinite(x).all()):
        raise FloatingPointError(message)
    return x


def at_least(settings: Any, **least: float) -> None:
    """Refuse numbers that are too small.

    Raises:
        ValueError: Which names the setting, its bound and its value.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if not bound <= value < math.inf:
            raise ValueError(f"{name} must be at least {bound}, got {value}.")
