"""Explicit randomness: draws from a given generator, and independent generators from one seed."""

import hashlib
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

Rng = torch.Generator | None


def normal(
    shape: Sequence[int],
    *,
    like: Tensor | None = None,
    dtype: torch.dtype | None = None,
    rng: Rng = None,
) -> Tensor:
    """Standard normal draws, made on the generator's device and moved to that of `like`.

    Args:
        shape: Shape of the result.
        like: Tensor whose dtype and device the result takes.
        dtype: Overrides the dtype of `like`.
        rng: Generator; the global one if None.

    Returns:
        Independent N(0, 1) values, shape `shape`.
    """
    dtype = dtype or (like.dtype if like is not None else torch.get_default_dtype())
    device = rng.device if rng is not None else torch.device("cpu")
    draw = torch.randn(tuple(shape), dtype=dtype, device=device, generator=rng)
    return draw if like is None else draw.to(like.device)


def fork(seed: int, *labels: str | int) -> torch.Generator:
    """A generator for one named purpose, independent of those of other names.

    The labels are hashed with the seed, so that adding a stage to a run does not shift the random numbers of
    the stages after it.

    Args:
        seed: The run's seed.
        labels: What the numbers are for, such as ("prior", 3).

    Returns:
        A seeded CPU generator.

    >>> bool(torch.rand(1, generator=fork(0, "a")) == torch.rand(1, generator=fork(0, "a")))
    True
    """
    text = "/".join(str(part) for part in (seed, *labels))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def generator(rng: torch.Generator | int | None, *purpose: str | int) -> torch.Generator:
    """The generator of one named purpose.

    Args:
        rng: A generator, used as it is; a seed, whose numbers differ from purpose to purpose; None for a fresh seed.
        purpose: What the numbers are for, such as ("truth",).

    Returns:
        A generator; its `initial_seed()` is what reproduces the numbers.

    Raises:
        TypeError: If `rng` is neither.

    >>> a, b = generator(0, "truth"), generator(0, "first members")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    False
    """
    if isinstance(rng, torch.Generator):
        return rng
    if rng is None:
        return torch.Generator().manual_seed(secrets.randbits(62))
    if isinstance(rng, bool) or not isinstance(rng, int):
        raise TypeError(
            f"rng is a seed (an int) or a torch.Generator, got {rng!r} of type {type(rng).__name__}."
        )
    return fork(rng, *purpose)
