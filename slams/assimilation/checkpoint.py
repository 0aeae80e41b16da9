"""Checkpoint of a run on disk: its state and settings."""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from slams.core.errors import InvalidValueError
from slams.core.files import atomic

Settings = dict[str, Any]


class Checkpoint:
    """The saved state of one run, which resumes only with the same settings.

    Args:
        path: File of the checkpoint.
        settings: Settings of the run, as returned by `describe`.
    """

    def __init__(self, path: str | Path, settings: Settings) -> None:
        self.path = Path(path)
        self.settings = settings

    @classmethod
    def of(
        cls,
        path: str | Path,
        method: object,
        observations: Mapping[str, object],
        *,
        rng: torch.Generator,
        **settings: object,
    ) -> "Checkpoint":
        """The checkpoint of a method, its observations and further settings."""
        whole = {"method": method, "observations": dict(observations), "seed": rng.initial_seed(), **settings}
        return cls(path, describe(whole))

    def load(self) -> dict[str, Tensor] | None:
        """The saved tensors, None where nothing was saved.

        Raises:
            ValueError: If the save is of another set-up, with what differs.
        """
        if not self.path.exists():
            return None
        with safe_open(str(self.path), framework="pt") as file:
            before = json.loads((file.metadata() or {}).get("settings", "{}"))
            different = [
                f"{key}: {before.get(key, 'absent')} there, {self.settings.get(key, 'absent')} here"
                for key in sorted({*before, *self.settings})
                if before.get(key) != self.settings.get(key)
            ]
            if different:
                raise InvalidValueError(
                    f"{self.path} was saved by another set-up: {'; '.join(different[:6])}. Give this run a file "
                    "of its own, or remove that one."
                )
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the file as a whole."""
        whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        with atomic(self.path) as temporary:
            save_file(whole, str(temporary), {"settings": json.dumps(self.settings)})


def describe(thing: object, name: str = "") -> Settings:
    """Public attributes of an object, nested ones by dotted name; tensors by shape and digest.

    >>> describe({"size": 3, "noise": torch.zeros(2)})["size"]
    3
    """
    if isinstance(thing, Tensor):
        # a clone, because an expanded tensor of one element has stride 0 and passes for contiguous
        data = thing.detach().cpu().clone(memory_format=torch.contiguous_format)
        digest = hashlib.sha256(data.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]
        return {name: f"{tuple(data.shape)} {digest}"}
    if thing is None or isinstance(thing, bool | int | float | str):
        return {name: thing}
    if isinstance(thing, Mapping):
        parts = {str(key): value for key, value in thing.items()}
    elif isinstance(thing, list | tuple | set | frozenset):
        parts = {str(i): value for i, value in enumerate(thing)}
    elif hasattr(thing, "__dict__") and not isinstance(thing, type):
        cached = {key for key in vars(thing) if isinstance(getattr(type(thing), key, None), cached_property)}
        parts = {key: v for key, v in vars(thing).items() if key not in cached and not key.startswith("_")}
        if isinstance(thing, nn.Module):
            parts.pop("training", None)
            parts |= thing._parameters | thing._buffers | thing._modules
        parts["kind"] = getattr(thing, "__qualname__", type(thing).__qualname__)
    else:
        return {name: getattr(thing, "__qualname__", type(thing).__qualname__)}
    out: Settings = {}
    for key, value in parts.items():
        out |= describe(value, f"{name}.{key}" if name else key)
    return out
