"""Selection of the computing device."""

import torch

from slams.core.errors import InvalidValueError


def computing_device(setting: str) -> torch.device:
    """The device named by a setting.

    Args:
        setting: "auto" (a GPU where there is one), "cpu" or "cuda".

    Returns:
        The device.

    Raises:
        ValueError: If a GPU is requested but unavailable, or the setting is unknown.

    >>> computing_device("cpu")
    device(type='cpu')
    """
    if setting not in ("auto", "cpu", "cuda"):
        raise InvalidValueError(f"device is 'auto', 'cpu' or 'cuda', got {setting!r}.")
    if setting == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda")
    if setting == "cuda":
        raise InvalidValueError(
            "device is 'cuda', but torch finds no GPU here; set device=cpu (or auto), or install a CUDA build of torch."
        )
    return torch.device("cpu")
