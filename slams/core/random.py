"""Explicit randomness: draws from a given generator, and independent generators from one seed."""

import hashlib
import secrets
from collections.abc import Sequence

import torch
from torch import Tensor

from slams.core.errors import InvalidTypeError

# A source of random numbers as a user gives it: a generator, a seed, or None for a fresh seed.
Rng = torch.Generator | int | None


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
        rng: Generator or seed; a fresh seed if None.

    Returns:
        Independent N(0, 1) values, shape `shape`.
    """
    source = generator(rng, "normal")
    dtype = dtype or (like.dtype if like is not None else torch.get_default_dtype())
    draw = torch.randn(tuple(shape), dtype=dtype, device=source.device, generator=source)
    return draw if like is None else draw.to(like.device)


def uniform(
    shape: Sequence[int], *, like: Tensor, dtype: torch.dtype | None = None, rng: Rng = None
) -> Tensor:
    """Uniform draws in [0, 1), made on the generator's device and moved to that of `like`.

    Args:
        shape: Shape of the result.
        like: Tensor whose device the result takes.
        dtype: Type of the result; the default one if None.
        rng: Generator or seed; a fresh seed if None.

    Returns:
        Independent values, shape `shape`.
    """
    source = generator(rng, "uniform")
    return torch.rand(tuple(shape), dtype=dtype, device=source.device, generator=source).to(like.device)


def permutation(count: int, *, rng: Rng = None) -> Tensor:
    """The numbers 0, ..., count - 1 in random order, on the generator's device.

    Args:
        count: Length of the permutation.
        rng: Generator or seed; a fresh seed if None.
    """
    source = generator(rng, "permutation")
    return torch.randperm(count, generator=source, device=source.device)


def fork(seed: int, *labels: str | int) -> torch.Generator:
    """A generator for one named purpose, independent of those of other names.

    The labels are hashed with the seed, so that adding a stage to a run does not shift the random numbers of
    the stages after it.

    Args:
        seed: Seed of the run.
        labels: Purpose of the numbers, such as ("prior", 3).

    Returns:
        A seeded CPU generator.

    >>> bool(torch.rand(1, generator=fork(0, "a")) == torch.rand(1, generator=fork(0, "a")))
    True
    """
    text = "/".join(str(part) for part in (seed, *labels))
    digest = hashlib.sha256(text.encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") % 2**63)


def generator(rng: Rng, *purpose: str | int) -> torch.Generator:
    """The generator of one named purpose.

    Args:
        rng: A generator, used as it is; a seed, whose numbers differ from purpose to purpose; None for a fresh seed.
        purpose: Purpose of the numbers, such as ("truth",).

    Returns:
        A generator; its `initial_seed()` is what reproduces the numbers.

    Raises:
        TypeError: If `rng` is neither.

    >>> a, b = generator(0, "truth"), generator(0, "first members")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    False
    """
    source, _ = settled(rng)
    return source if isinstance(source, torch.Generator) else fork(source, *purpose)


def settled(rng: Rng) -> tuple[torch.Generator | int, int]:
    """A definite source of random numbers and its seed, to be stored with the results.

    Args:
        rng: A generator, a seed, or None for a fresh seed.

    Returns:
        The generator or the seed, and the seed (a generator's `initial_seed()`).

    Raises:
        TypeError: If `rng` is neither.
    """
    if isinstance(rng, torch.Generator):
        return rng, rng.initial_seed()
    seed = secrets.randbits(31) if rng is None else rng
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InvalidTypeError(
            f"rng is a seed (an int) or a torch.Generator, got {rng!r} of type {type(rng).__name__}."
        )
    return seed, seed
