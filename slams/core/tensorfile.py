"""Tensors and metadata in one safetensors file, written atomically."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.files import atomic


def write_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as they are, and facts as JSON in the metadata.

    Args:
        path: The file, replaced as a whole.
        tensors: Tensors by name; views are copied.
        facts: JSON-serializable metadata by name.
    """
    kept = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in tensors.items()
    }
    with atomic(path) as temporary:
        save_file(kept, str(temporary), {key: json.dumps(value) for key, value in (facts or {}).items()})


def read_tensors(
    path: str | Path, *, remedy: str = "restore it or train again"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file.

    Args:
        path: A file of `write_tensors`.
        remedy: Advice for a missing or damaged file, for messages.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not in safetensors format or is truncated.
    """
    if not Path(path).exists():
        raise MissingFileError(f"there is no file of tensors at {path}; {remedy}.")
    try:
        with safe_open(str(path), "pt") as file:
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            # clones: in the file a tensor lies where the length of the facts puts it, and rounding depends on alignment
            return {key: file.get_tensor(key).clone() for key in file.keys()}, facts  # noqa: SIM118
    except (SafetensorError, json.JSONDecodeError, OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is not a valid safetensors file ({error}); {remedy}.") from error


def read_facts(path: str | Path, *, remedy: str = "restore it or train again") -> dict[str, Any]:
    """Facts of a file alone, without its tensors; raises as `read_tensors`."""
    if not Path(path).exists():
        raise MissingFileError(f"there is no file of tensors at {path}; {remedy}.")
    try:
        with safe_open(str(path), "pt") as file:
            return {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, json.JSONDecodeError, OSError, UnicodeDecodeError) as error:
        raise InvalidValueError(f"{path} is not a valid safetensors file ({error}); {remedy}.") from error


def grouped(tensors: Mapping[str, Tensor], separator: str = "/") -> dict[str, dict[str, Tensor]]:
    """Tensors named "group/name" as nested mappings.

    >>> grouped({"scores/rmse": torch.ones(1)})
    {'scores': {'rmse': tensor([1.])}}
    """
    groups: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        group, _, name = key.partition(separator)
        groups.setdefault(group, {})[name] = value
    return groups


def flat(groups: Mapping[str, Mapping[str, Tensor]], separator: str = "/") -> dict[str, Tensor]:
    """Inverse of `grouped`."""
    return {f"{group}{separator}{name}": x for group, named in groups.items() for name, x in named.items()}


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str | Path) -> None:
    """Load weights into a module with exactly these parameters.

    Args:
        module: Module built from the settings stored with the weights.
        tensors: State of the module by name.
        path: File of the weights, for messages.

    Raises:
        ValueError: If a tensor is missing, superfluous or of another shape.
    """
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(tensors))
    wrong += [key for key in own if key in tensors and own[key].shape != tensors[key].shape]
    if wrong:
        raise InvalidValueError(
            f"{path} does not hold the weights of its recipe ({len(wrong)} tensors differ, such as {wrong[0]}); "
            "it was written by another recipe or version, train again."
        )
    module.load_state_dict(dict(tensors))
