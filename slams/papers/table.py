"""Rows of a study: published bounds, verdicts, rows.csv and the console table."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slams.core.console import Console
from slams.core.files import atomic
from slams.evaluation.intervals import Law, interval, median_interval
from slams.evaluation.tables import console_table

COLUMNS = ("row", "metric", "expected", "low", "high", "value", "lower", "upper", "status")

LOST = 0.1  # share of diverged truths, beyond which a mean means nothing

Numbers = tuple[float, float, float]  # a value and its 95 % interval


@dataclass(frozen=True)
class Bar:
    """Bounds on a score of one run.

    Attributes:
        row: Name of the run; of a verdict, name of the row.
        metric: Name of the score.
        low: Lower bound on the score; NaN, as `high`, for a row without a verdict.
        high: Largest value that passes.
        against: Name of the run for a comparison, replicate by replicate; none if empty.
        published: The paper's number.
        case: Part of the study that holds the run, such as an experiment.
    """

    row: str
    metric: str
    low: float = -math.inf
    high: float = math.inf
    against: str = ""
    published: float = math.nan
    case: str = ""


@dataclass(frozen=True)
class Verdict:
    """A row of rows.csv.

    Attributes:
        row: Name of the row.
        metric: Name of the score.
        expected: Published or measured number.
        low: Least value that passes.
        high: Largest value that passes.
        value: Our number.
        lower: Lower end of its 95 % interval.
        upper: Upper end.
        status: PASS or FAIL, with remarks behind it: "(not resolved)" where the interval contains a bound,
            "(median, N % diverged)" where the number is a median over truths, of which N % are lost, or both, "(median,
            N % diverged; not resolved)". INFO without bounds.
    """

    row: str
    metric: str
    expected: float
    low: float
    high: float
    value: float
    lower: float
    upper: float
    status: str

    @property
    def judged(self) -> bool:
        """Whether the row can fail."""
        return self.status != "INFO"


def judge(
    bar: Bar,
    numbers: Numbers,
    *,
    tested: float | None = None,
    applies: bool = True,
    diverged: float | None = None,
) -> Verdict:
    """Verdict on a number; it is not resolved where the closed interval contains a bound.

    Args:
        bar: Bounds on the number.
        numbers: Value and 95 % interval.
        tested: Number to test against the bounds, such as an end of the interval; the value if None.
        applies: Whether the bounds apply.
        diverged: Of a median over truths, the share of these that are lost; None for a mean.

    >>> judge(Bar("ETKF", "rmse", high=0.2), (0.19, 0.18, 0.195)).status
    'PASS'
    >>> judge(Bar("PF", "rmse", high=0.2), (0.21, 0.18, 0.25), diverged=0.125).status
    'FAIL (median, 12 % diverged; not resolved)'
    """
    number = numbers[0] if tested is None else tested
    free = not applies or (math.isnan(bar.low) and math.isnan(bar.high))
    status = "INFO" if free else "PASS" if bar.low <= number <= bar.high else "FAIL"
    remarks = [] if diverged is None else [f"median, {100 * diverged:.0f} % diverged"]
    if any(math.isfinite(bound) and numbers[1] <= bound <= numbers[2] for bound in (bar.low, bar.high)):
        remarks.append("not resolved")
    if remarks and not free:
        status = f"{status} ({'; '.join(remarks)})"
    return Verdict(bar.row, bar.metric, bar.published, bar.low, bar.high, *numbers, status)


def judge_truths(
    bar: Bar, values: Tensor, lost: Tensor | None = None, *, law: Law = "any", median: bool = False
) -> Verdict:
    """Verdict on the mean over truths; on their median if so wished, and where more than a tenth of them is lost.

    Args:
        bar: Bounds on the number.
        values: Score of each truth (R), or `difference` of scores. Where one is not finite the mean is infinite, and
            fails unless only the rival's is.
        lost: Truths that the method lost, or one of the compared methods, 0 or 1 (R); none if None.
        law: Law of the values, for the interval of their mean.
        median: Whether to take the median anyway.
    """
    share = 0.0 if lost is None else float(lost.double().mean())
    if median or share > LOST:
        worst = values.where(~values.isnan(), values.new_tensor(math.inf))
        return judge(bar, median_interval(worst.tolist()), diverged=share)
    if bool(values.isfinite().all()):
        return judge(bar, interval(values.tolist(), law))
    mean = values.where(
        ~values.isnan(), values.new_tensor(math.inf)
    ).mean()  # -inf where only the rival is lost
    return judge(bar, (float(mean), math.nan, math.nan))


def lost_by(*scores: Mapping[str, Tensor]) -> Tensor | None:
    """Truths that one of these methods lost, 0 or 1 (R), from their scores; None if none says."""
    rates = [each["divergence_rate"] for each in scores if "divergence_rate" in each]
    return torch.stack(rates).amax(0) if rates else None


def difference(one: Tensor, other: Tensor) -> Tensor:
    """Difference of two scores truth by truth (R); one that is not finite counts as infinite."""
    a, b = (x.where(x.isfinite(), x.new_tensor(math.inf)) for x in (one, other))
    return a - b


def info(row: str, metric: str, value: float, lower: float = math.nan, upper: float = math.nan) -> Verdict:
    """Row of a number without a verdict."""
    return judge(Bar(row, metric, math.nan, math.nan), (value, lower, upper))


def write_rows(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write rows.csv atomically."""
    lines = [{column: getattr(verdict, column) for column in COLUMNS} for verdict in verdicts]
    write_lines(path, [{key: _text(value) for key, value in line.items()} for line in lines], COLUMNS)


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    """Write lines of one kind as CSV, atomically; without lines and columns nothing is written."""
    columns = columns or list(lines[0] if lines else ())
    if not columns:
        return
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def line(verdict: Verdict) -> dict[str, str]:
    """A verdict as text, for tables."""
    low, high = (f"{bound:.4g}" if math.isfinite(bound) else "" for bound in (verdict.low, verdict.high))
    band = (
        f"{low} … {high}" if low and high else f"at most {high}" if high else f"at least {low}" if low else ""
    )
    interval = "" if math.isnan(verdict.lower) else f" [{verdict.lower:.3g}, {verdict.upper:.3g}]"
    return {
        "row": verdict.row,
        "metric": verdict.metric,
        "published": "" if math.isnan(verdict.expected) else f"{verdict.expected:g}",
        "bar": band,
        "ours": f"{verdict.value:.3g}{interval}",
        "status": verdict.status,
    }


def show(
    console: Console, verdicts: Sequence[Verdict], folder: Path, *, title: str = "bars", every: bool = False
) -> None:
    """Print the judged rows, with `every` also the others, and the number that passed."""
    judged = [verdict for verdict in verdicts if verdict.judged]
    lines = [line(verdict) for verdict in (verdicts if every else judged)]
    if lines:
        console.rich.print(console_table(lines, title=title))
    open_ones = sum("not resolved" in verdict.status for verdict in judged)
    told = f", {open_ones} not resolved (the interval contains the bar)" if open_ones else ""
    console.say(f"{passed(judged)} of {len(judged)} rows within their band{told}: {folder.resolve()}")


def passed(verdicts: Sequence[Verdict]) -> int:
    """Number of rows that passed, resolved or not."""
    return sum(verdict.status.startswith("PASS") for verdict in verdicts)


def _text(value: Any) -> Any:
    """Numbers to six digits, nothing where there is none."""
    if not isinstance(value, float):
        return value
    return "" if math.isnan(value) else f"{value:.6g}"
