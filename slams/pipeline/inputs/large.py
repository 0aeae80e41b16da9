"""Fields too large for memory: processed a few days at a time into memory-mapped files."""

import tempfile
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slams.core.codec import SeasonalStandardize

IN_MEMORY = 1 << 30  # bytes of one modality that may stay in memory
_DAYS = 64


def scratch(shape: tuple[int, ...]) -> Tensor:
    """An empty float32 tensor in a temporary file that is removed with it (TMPDIR sets the disk)."""
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))


def is_large(rows: int, x: Tensor) -> bool:
    """Whether some rows of a field exceed the memory limit."""
    return rows * x[0].numel() * 4 > IN_MEMORY


def by_days(
    function: Callable[[Tensor, Tensor], Tensor], x: Tensor, index: np.ndarray, phase: Tensor
) -> Tensor:
    """function(x[index], phase), which keeps the shape and treats every day alone.

    Args:
        function: Function of fields (n, *S) and their phases (n).
        x: Fields (T, *S).
        index: Rows of the selected days.
        phase: Phase of the year of these days.

    Returns:
        (n, *S), in a temporary file if it is large.
    """
    rows = torch.from_numpy(index)
    if not is_large(len(rows), x):
        return function(x[rows], phase)
    out = scratch((len(rows), *x.shape[1:]))
    for chunk in torch.arange(len(rows)).split(_DAYS):
        out[chunk] = function(x[rows[chunk]], phase[chunk])
    return out


def fit_statistics(
    x: Tensor,
    index: np.ndarray,
    phase: Tensor,
    harmonics: int,
    weights: Tensor,
    amount: bool | None = None,
) -> SeasonalStandardize:
    """`SeasonalStandardize.fit` on some days; of large fields a channel at a time.

    With limits, values outside them are left out of a second fit.

    Args:
        x: Fields (T, C, *space).
        index: Rows of the training days.
        phase: Phase of the year of these days.
        harmonics: Yearly harmonics of the mean.
        weights: Area weights (*space).
        amount: Whether x is the logarithm of an amount, which sets its limits; None sets no limits.

    Returns:
        The statistics.
    """
    rows = torch.from_numpy(index)

    def fitted(part: Tensor) -> SeasonalStandardize:
        found = SeasonalStandardize.fit(part, phase, harmonics=harmonics, weights=weights)
        if amount is None:
            return found
        found = found.limited(part, phase, amount=amount)
        wrong = found.incredible(part, phase)
        if not bool(wrong.any()):
            return found
        part = part.masked_fill(wrong, torch.nan)
        return SeasonalStandardize.fit(part, phase, harmonics=harmonics, weights=weights).limited(
            part, phase, amount=amount
        )

    if not is_large(len(rows), x):
        return fitted(x[rows])
    parts = [fitted(x[:, c : c + 1][rows]) for c in range(x.shape[1])]
    return SeasonalStandardize(
        torch.cat([part.coefficients for part in parts], 1),
        *(torch.cat([getattr(part, name) for part in parts]) for name in ("std", "present", "low", "high")),
    )


def leave_out(statistics: SeasonalStandardize, x: Tensor, phase: Tensor) -> tuple[int, tuple[int, ...]]:
    """Make values outside the limits of the climate missing, in place.

    Args:
        statistics: Statistics of the training.
        x: Fields (n, *S), after the transform.
        phase: Phase of the year of each field, (n).

    Returns:
        Their number, and the index of the first.
    """
    count, first = 0, ()
    for days in torch.arange(len(x)).split(_DAYS):
        wrong = statistics.incredible(x[days], phase[days])
        if bool(wrong.any()):
            at = wrong.nonzero()
            first = first if count else (int(days[0] + at[0, 0]), *at[0, 1:].tolist())
            count += len(at)
            # of a mapped file only the pages of these values are copied
            x[int(days[0]) : int(days[-1]) + 1].masked_fill_(wrong, torch.nan)
    return count, first
