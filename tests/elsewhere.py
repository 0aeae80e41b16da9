"""A pretended second device: tensors on it report "meta", hold numbers, and refuse those of the CPU as a GPU would."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ELSEWHERE = torch.device("meta")

# A GPU takes indices from the CPU, and copies from one device to another.
_MIXED = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_"}


class Remote(Tensor):
    """A tensor of the pretended device; `numbers` are on the CPU."""

    numbers: Tensor

    @staticmethod
    def __new__(cls, numbers: Tensor) -> "Remote":
        self = Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=ELSEWHERE,
        )
        self.numbers = numbers
        return self

    def __repr__(self, **_: Any) -> str:
        return f"Remote({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _compute(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """What torch makes of Python lists without telling anyone: indices and `torch.tensor`."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == ELSEWHERE:
            return torch.tensor(*args, **{k: v for k, v in kwargs.items() if k != "device"}).to(ELSEWHERE)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], Remote):
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part) if isinstance(part, list) else part for part in parts)
            args = (args[0], index if isinstance(args[1], tuple) else index[0], *args[2:])
        return func(*args, **kwargs)


class Elsewhere(TorchDispatchMode):
    """While it is on, the pretended device can be moved to and computed on.

    Attributes:
        products: Matrix products and convolutions there, and on the CPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.products = {"there": 0, "here": 0}
        self.lists = _Lists()

    def __enter__(self) -> "Elsewhere":
        self.lists.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.lists.__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split(".")[0]
        if name in ("aten::mm", "aten::addmm", "aten::bmm", "aten::convolution"):
            self.products["there" if _remote(args) else "here"] += 1
        return _compute(func, args, kwargs or {})


def _remote(args: Any) -> bool:
    found = []
    tree_map(lambda x: found.append(x) if isinstance(x, Remote) else None, args)
    return bool(found)


def _compute(func: Any, args: tuple, kwargs: dict) -> Any:
    name = func.name().split(".")[0]
    tensors: list[Tensor] = []
    tree_map(lambda x: tensors.append(x) if isinstance(x, Tensor) else None, (args, kwargs))
    there = any(isinstance(x, Remote) for x in tensors)
    astray = [x for x in tensors if not isinstance(x, Remote) and x.ndim > 0]
    assert not any(x.is_meta for x in astray), f"{name} got a meta tensor, which this device does not know of"
    if there and astray and name not in _MIXED:
        raise RuntimeError(
            f"{name} got tensors of two devices; on the CPU is one of shape {tuple(astray[0].shape)}."
        )
    if "device" in kwargs and kwargs["device"] is not None:
        there = torch.device(kwargs["device"]) == ELSEWHERE
        kwargs = {**kwargs, "device": torch.device("cpu")}
    if name == "aten::copy_":
        there = isinstance(args[0], Remote)
    plain = [x.numbers if isinstance(x, Remote) else x for x in tensors]
    args, kwargs = tree_map(lambda x: x.numbers if isinstance(x, Remote) else x, (args, kwargs))
    out = func(*args, **kwargs)
    if not there:
        return out

    def place(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        for own, original in zip(plain, tensors, strict=True):
            if x is own and isinstance(original, Remote):  # written in place
                return original
        return Remote(x)

    return tree_map(place, out)
