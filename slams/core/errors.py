"""Errors and warnings of the package, each error also the builtin error that it refines; the criterion of divergence."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

DIVERGED_FRACTION = 0.1  # of the analyses, beyond which a replicate counts as diverged
SETTLED = 100  # analyses until the running mean of innovations has forgotten a poor first guess


class SlamsError(Exception):
    """Base of all errors that the package raises on purpose."""


class InvalidValueError(SlamsError, ValueError):
    """A value of the right type that a method, file or setting does not allow."""


class InvalidTypeError(SlamsError, TypeError):
    """An object of another type than expected."""


class MissingFileError(SlamsError, FileNotFoundError):
    """A file that is not there."""


class NonFiniteError(SlamsError, FloatingPointError):
    """Numbers that are not finite: a model, filter or sampler that diverged."""


class UntrustedCodeError(SlamsError, PermissionError):
    """Code of another package that was not named as trusted."""


class SlamsWarning(UserWarning):
    """Base of all warnings of the package."""


class DivergenceWarning(SlamsWarning):
    """A filter lost the truth, or its ensemble degenerated; results after that step are not trustworthy."""


class DataWarning(SlamsWarning):
    """Values that were left out, converted or filled on reading."""


def diverged_fraction(diverged: "Tensor", before: int = 0) -> "Tensor":
    """Share of analyses at which a method had diverged, of those from the 100th on (of a shorter run the last).

    More than `DIVERGED_FRACTION` of them is a diverged replicate: a passing excursion on Lorenz-63 is none.

    Args:
        diverged: Flags of the analyses in order, (*B, n).
        before: Analyses before the first of these.

    Returns:
        (*B), float64.
    """
    return diverged[..., _settled(diverged, before) :].double().mean(-1)


def warn_diverged(diverged: "Tensor", who: str, *, first: int = 0, stacklevel: int = 2) -> None:
    """Warn of the replicates in which a method has diverged, with the step from which on.

    Args:
        diverged: 1 at steps at which it had, 0 where it had not, NaN at steps without an analysis, (*B, L).
        who: Name of the method.
        first: First step that counts.
        stacklevel: As in `warnings.warn`.
    """
    flat = diverged.reshape(-1, diverged.shape[-1])
    steps = (~flat.isnan()).any(0).nonzero().squeeze(-1)
    before, steps = int((steps < first).sum()), steps[steps >= first]
    if not len(steps):
        return
    flags = flat[:, steps].nan_to_num() > 0.5  # (R, n)
    lost = diverged_fraction(flags, before) > DIVERGED_FRACTION
    if not bool(lost.any()):
        return
    spans = []
    for row in flags[lost].tolist():
        start = row.index(True, _settled(flags, before))
        while start > 0 and row[start - 1]:
            start -= 1
        spans.append(
            (int(steps[start]), None if row[-1] else int(steps[len(row) - 1 - row[::-1].index(True)]))
        )
    among = f" in {len(spans)} of {len(lost)} replicates, first" if len(lost) > 1 else ""
    ends = [end for _, end in spans if end is not None]
    until = f"to step {max(ends)}, where it recovered" if len(ends) == len(spans) else "on"
    warnings.warn(
        f"{who} has diverged{among} from step {min(start for start, _ in spans)} {until}: its innovations are more than "
        "twice as large, in variance, as its spread and the observation errors allow, or its mean is not finite. Do not "
        "use its results there; inflate more, localize, take more members, start nearer to the truth, or check the model "
        "and the observation errors.",
        DivergenceWarning,
        stacklevel=stacklevel + 1,
    )


def _settled(flags: "Tensor", before: int) -> int:
    return min(max(SETTLED - before, 0), flags.shape[-1] - 1)


@contextlib.contextmanager
def divergence_counted() -> Iterator[None]:
    """Context without warnings of divergence, for tables that have a column for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergenceWarning)
        yield
