"""Common parts of all studies: plans, simulated archives, training and weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from slams.core.console import Console
from slams.core.errors import InvalidValueError, NonFiniteError
from slams.core.files import sha256_of
from slams.core.renamed import renamed
from slams.core.settings import build, read_tree, sized
from slams.core.stages import Stage, Stages
from slams.core.tensorfile import read_facts, read_tensors
from slams.diffusion.denoiser import Denoiser
from slams.diffusion.schedule import Schedule
from slams.training.fit import FitSettings, History, fit

P = TypeVar("P")

SPLITS = ("train", "valid", "test")
WEIGHTS = Path(__file__).parents[1] / "weights"


def read_study(cls: type[P], path: Path, overrides: Sequence[str] = ()) -> P:
    """A study's plan from its file, at the requested size.

    Args:
        cls: Dataclass of the plan.
        path: YAML file, with the overrides of each size under `sizes`.
        overrides: Overrides such as "size=full" or "archive.count=8".

    Raises:
        ValueError: If a key is unknown (the nearest is named), is lacking, or a value has the wrong type.
    """
    try:
        plan: P = build(cls, study_tree(path, overrides))
    except ValueError as error:
        raise InvalidValueError(f"{path.name}: {error}") from error
    return plan


def study_tree(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Nested settings of a study's file; earlier names of keys are taken for the new ones."""
    tree = renamed("setting of a study", read_tree(path, "plan of a study"))
    tree = sized(tree, [new_name(text) for text in overrides])
    if isinstance(tree.get("bars"), list):
        tree["bars"] = [renamed("bar", bar) if isinstance(bar, Mapping) else bar for bar in tree["bars"]]
    return tree


def new_name(override: str) -> str:
    """An override whose key has the name of this version."""
    key, equals, value = override.partition("=")
    return "".join((*renamed("setting of a study", {key: value}), equals, value))


def rows_of(split: str, count: int) -> range:
    """Numbers of an archive's trajectories in a part: 8 of 10 for training, one each for validation and test."""
    ends = (0, int(0.8 * count), int(0.9 * count), count)
    part = SPLITS.index(split)
    return range(ends[part], ends[part + 1])


def simulated(
    folder: Path, settings: Any, pieces: Mapping[str, Callable[[], Tensor]], *, title: str,
    console: Console | None = None, version: int = 1,
) -> list[Tensor]:  # fmt: skip
    """Simulated pieces of an archive, one file each; an interrupted run resumes with the next piece.

    Args:
        folder: Folder of the archive.
        settings: Plain values that the numbers depend on.
        pieces: Functions that simulate each piece, by name.
        title: Title of the progress bar.
        console: Console for the progress.
        version: Version of the simulation; raised where its numbers change.

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
        raise NonFiniteError(message)
    return x


def at_least(settings: Any, **least: float) -> None:
    """Raise an error for numbers below their bounds.

    Raises:
        ValueError: If a number is below its bound.
    """
    for name, bound in least.items():
        value = getattr(settings, name)
        if not bound <= value < math.inf:
            raise InvalidValueError(f"{name} must be at least {bound}, got {value}.")


def train_denoiser(
    denoiser: nn.Module, loss: Callable[..., Tensor], validate: Callable[..., float], net: Any, *,
    name: str, checkpoint: Path | None, console: Console | None,
) -> History:  # fmt: skip
    """Train a denoiser; an interrupted run resumes from its checkpoint.

    Args:
        denoiser: Denoiser to train in place, as for `fit`.
        loss: Training loss, as for `fit`.
        validate: Validation loss, as for `fit`.
        net: Settings `steps`, `batch`, `learning_rate`, `ema` and `seed` of the training.
        name: Name in messages and in the seeds of random draws.
        checkpoint: File of the resume state.
        console: Console for the progress.
    """
    every = max(net.steps // 20, 1)
    settings = FitSettings(
        net.steps, net.batch, net.learning_rate, weight_decay=1e-3, ema=net.ema, clip=1.0, every=every
    )
    with (console or Console(quiet=True)).bar(f"train {name}", net.steps) as advance:
        return fit(
            denoiser,
            loss,
            validate,
            settings,
            seed=net.seed,
            name=name,
            checkpoint=checkpoint,
            progress=advance,
        )


def stratified_times(schedule: Schedule, low: float, high: float, rows: int, rng: torch.Generator) -> Tensor:
    """Times uniform in log(sigma / alpha) from `low` to `high`, one in each of `rows` intervals, (rows)."""
    place = (torch.arange(rows) + torch.rand(rows, generator=rng)) / rows
    return schedule.time(torch.exp(-(low + (high - low) * place)))


def load_denoiser(
    path: Path, make: Callable[[dict[str, Tensor], Any], Denoiser]
) -> tuple[Denoiser, dict[str, Any]]:
    """A trained denoiser from its file, and the file's facts.

    Args:
        path: File of weights.
        make: Function that builds the denoiser from tensors and the fact "net", the settings of its network.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the weights do not fit the settings in the file.
    """
    tensors, facts = read_tensors(path, remedy="train it with --train, or check the path")
    try:
        denoiser = make(tensors, facts["net"])
    except (KeyError, TypeError, RuntimeError, IndexError) as error:
        fault = str(error).splitlines()[0]
        raise InvalidValueError(
            f"{path} holds weights that do not fit its settings ({fault}); restore it or train again."
        ) from error
    return denoiser.eval(), facts


def weights_file(
    own: Path, shipped: Path, train: bool, same: Callable[[Any], bool], make: Callable[[], None]
) -> tuple[Path, str]:
    """Trained weights of the results' folder, else shipped ones, else newly trained, and their fingerprint.

    Args:
        own: File in the folder of the results.
        shipped: File in the package.
        train: Whether to ignore shipped weights.
        same: Predicate on a file's facts, true for weights of the requested training.
        make: Function that trains and writes `own`.
    """
    path = own if train or own.exists() else shipped
    if not path.exists() or (train and not same(read_facts(path))):
        make()
        path = own
    return path, sha256_of(path)[:16]
