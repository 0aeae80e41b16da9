"""Tensors and facts in one safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slams.core.files import atomic


def write_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Tensors as they are, and facts as JSON in the metadata."""
    kept = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    with atomic(path) as temporary:
        save_file(kept, temporary, {key: json.dumps(value) for key, value in facts.items()})


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and facts of a file that `write_weights` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of weights.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"there are no weights at {path}; train them with --train, or check the path."
        )
    try:
        with safe_open(path, "pt") as file:
            facts = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            return {key: file.get_tensor(key) for key in file.keys()}, facts  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no file of weights ({error}); restore it or train again.") from error
