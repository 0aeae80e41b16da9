"""Statistics and anomalies of fields, in pieces of days where they are too large for memory."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from slams.core.codec import SeasonalStandardize, seasonal_basis
from slams.core.days import Days, Values, fits, memory_stride, slices, total

_DAYS = 64


def by_days(
    function: Callable[[Tensor, Tensor], Tensor], x: Values, index: np.ndarray, phase: Tensor
) -> Values:
    """function(x[index], phase), which keeps the shape and treats every day alone.

    Args:
        function: Function of fields (n, *S) and their phases (n).
        x: Fields (T, *S).
        index: Rows of the selected days.
        phase: Phase of the year of these days.

    Returns:
        (n, *S); where that is too large for memory, still to be computed when rows are taken.
    """
    if fits(len(index), x.shape[1:]):
        return function(x[torch.from_numpy(index)], phase)
    days = Days.of(x) if isinstance(x, Tensor) else x
    return days.rows(index).map(lambda part, rows: function(part, phase[rows]))


def fit_statistics(
    x: Values,
    index: np.ndarray,
    phase: Tensor,
    harmonics: int,
    weights: Tensor,
    amount: bool | None = None,
) -> SeasonalStandardize:
    """`SeasonalStandardize.fit` on some days; of large fields by sums over pieces of days.

    With limits, values outside them are left out of a second fit. Limits of large fields are those of days at equal
    distances, as many as memory holds.

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
    if not fits(len(index), x.shape[1:]):
        days = (Days.of(x) if isinstance(x, Tensor) else x).rows(index)
        return _fitted_in_pieces(days, phase, harmonics, weights, amount)
    part = x[torch.from_numpy(index)]
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


def _fitted_in_pieces(
    x: Days, phase: Tensor, harmonics: int, weights: Tensor, amount: bool | None
) -> SeasonalStandardize:
    found = _moments(x, phase, harmonics, weights)
    if amount is None:
        return found
    found = _limited(found, x, phase, amount)
    if not any(bool(found.incredible(x[rows], phase[rows]).any()) for rows in slices(x)):
        return found
    x = without_incredible(found, x, phase)
    return _limited(_moments(x, phase, harmonics, weights), x, phase, amount)


def _moments(x: Days, phase: Tensor, harmonics: int, weights: Tensor) -> SeasonalStandardize:
    """Least squares by sums over days, by normal equations of each point, and the variance in a second pass."""
    basis = seasonal_basis(phase, harmonics).double()
    outer = torch.einsum("ni,nj->nij", basis, basis).flatten(1)
    points = x.shape[1:].numel()

    def sums(part: Tensor, rows: slice) -> Tensor:
        flat = part.flatten(1)
        seen = torch.isfinite(flat)
        return torch.cat(
            [outer[rows].mT @ seen.double(), basis[rows].mT @ torch.where(seen, flat, 0.0).double()]
        )

    found = total(x, sums)
    width = basis.shape[1]
    gram = found[: width**2].mT.reshape(points, width, width)
    ridge = 1e-9 * torch.eye(width, dtype=gram.dtype) * (1 + gram[:, :1, :1])
    solution = torch.linalg.solve(gram + ridge, found[width**2 :].mT[..., None]).squeeze(-1).mT
    coefficients = solution.float().reshape(-1, *x.shape[1:])
    present = (gram[:, 0, 0] > 0).reshape(x.shape[1:])
    mean = SeasonalStandardize(coefficients, torch.ones(()))

    def squares(part: Tensor, rows: slice) -> Tensor:
        anomaly = mean.encode(part, phase[rows])
        weight = torch.where(torch.isfinite(anomaly), weights, 0.0)
        pair = torch.stack([weight * torch.nan_to_num(anomaly).square(), weight])
        return pair.double().sum([1, *range(3, pair.ndim)])

    square, weight = total(x, squares)
    return SeasonalStandardize.of(coefficients, (square / weight.clamp(min=1e-30)).float(), present)


def _limited(found: SeasonalStandardize, x: Days, phase: Tensor, amount: bool) -> SeasonalStandardize:
    """`found` with limits, a channel at a time, from days at equal distances."""
    stride = memory_stride(x)
    some, when = x[::stride], phase[::stride]
    channels = []
    for c in range(x.shape[1]):
        own = slice(c, c + 1)
        one = SeasonalStandardize(found.coefficients[:, own], found.std[own], found.present[own])
        channels.append(one.limited(some[:, own], when, amount=amount))
    low, high = (torch.cat([getattr(each, name) for each in channels]) for name in ("low", "high"))
    return SeasonalStandardize(found.coefficients, found.std, found.present, low, high)


def without_incredible(statistics: SeasonalStandardize, x: Days, phase: Tensor) -> Days:
    """Days whose values outside the limits of the climate are missing.

    Args:
        statistics: Statistics with limits.
        x: Fields (n, *S), after the transform.
        phase: Phase of the year of each field, (n).
    """

    def masked(part: Tensor, rows: Tensor) -> Tensor:
        return part.masked_fill(statistics.incredible(part, phase[rows]), torch.nan)

    return x.map(masked)


def leave_out(statistics: SeasonalStandardize, x: Values, phase: Tensor) -> tuple[int, tuple[int, ...]]:
    """Make values outside the limits of the climate missing, in place; of `Days` they are counted only.

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
            if isinstance(x, Tensor):
                x[int(days[0]) : int(days[-1]) + 1].masked_fill_(wrong, torch.nan)
    return count, first
