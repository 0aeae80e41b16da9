"""`slams reproduce`: each published row beside ours, inside a stated band or not."""

import csv
import importlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from slams import config
from slams.core.console import Console
from slams.core.files import atomic
from slams.core.settings import known_keys, unknown
from slams.core.stages import file_stem
from slams.evaluation.evaluate import mean_interval, median_interval
from slams.evaluation.figures.twin_plots import against_published
from slams.evaluation.tables import console_table
from slams.twin.benchmark import rows_of, run_with_bar
from slams.twin.benchmark import write_rows as write_metrics
from slams.twin.experiment import Result
from slams.twin.methods import entry
from slams.twin.report import write_pages
from slams.twin.runner import Runner
from slams.twin.setup import setup

PAPERS = Path(__file__).parent
EXACT = "exact"  # as a row's method: the exact filter of the set-up's model
COLUMNS = ("row", "metric", "expected", "low", "high", "value", "lower", "upper", "status")

_TRUTHS = 8  # of every row, unless the paper's file or an override says otherwise
_BAND = 0.02  # half-width that any row measured with three seeds is given
_WIDENED = 0.03  # beyond published and measured, where hardly any seed was measured


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table.

    Attributes:
        row: Its name.
        method: Ours.
        settings: `size` among them.
        metric: A score of ours.
        published: The paper's number.
        measured: By an independent code.
        seeds: Truths behind `measured`.
        relative: Share of `measured` that half the band is at least.
        setup: What differs from the paper's set-up in this row.
        at_most: What our number must not exceed, in place of a band.
        rival: An earlier row of the same set-up; truth by truth our number less `factor` times the rival's must be 0 or
            less on average.
        factor: On the rival's number.
    """

    row: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "rmse_a"
    published: float | None = None
    measured: float | None = None
    seeds: int = 3
    relative: float = 0.0
    setup: Mapping[str, Any] = field(default_factory=dict)
    at_most: float | None = None
    rival: str = ""
    factor: float = 1.0


@dataclass(frozen=True)
class Paper:
    """A table to be reproduced.

    Attributes:
        name: Stem of its file.
        title: What it is.
        source: Where it is from.
        setup: Of the experiment.
        rows: Of the table.
        detail: Whether each set-up leaves metrics.csv and a report with scores of the whole ensemble.
    """

    name: str
    title: str
    source: str
    setup: Mapping[str, Any]
    rows: Sequence[PaperRow]
    detail: bool = False


@dataclass(frozen=True)
class Verdict:
    """A row of rows.csv."""

    row: str
    metric: str
    expected: float
    low: float
    high: float
    value: float
    lower: float
    upper: float
    status: str


def reproduce(
    name: str,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    papers: Path = PAPERS,
    train: bool = False,
) -> bool:
    """Run all papers whose name begins so, and judge every row.

    Args:
        name: Stem of a file in `papers`, or how some begin.
        out: Folder of the results; logs/reproduce if None. The same call goes on where it stopped.
        overrides: Of the set-ups, such as "cycles=200".
        console: Where progress is shown.
        papers: Folder of the YAML files.
        train: Train the nets of a paper anew instead of using those that are shipped.

    Returns:
        Whether no row fell outside its band.

    Raises:
        ValueError: If no paper is called so (the nearest is named).
    """
    console = console or Console()
    known = sorted(papers.rglob("*.yaml"), key=lambda path: path.stem)
    paths = [path for path in known if path.stem.startswith(name)]
    if not paths:
        raise ValueError(unknown("paper", name, [path.stem for path in known]))
    root = Path(out) if out else config.LOG_DIR / "reproduce"
    fine = True
    for path in paths:
        study = path.parent.relative_to(papers).parts
        if study not in ((), ("tables",)):
            module = importlib.import_module(".".join(("slams.papers", *study, "run")))
            verdicts = module.run(path, root / path.stem, overrides, console, train=train)
        else:
            verdicts = _reproduce(read_paper(path), root / path.stem, overrides, console)
        fine = fine and all(verdict.status != "FAIL" for verdict in verdicts)
    return fine


def read_paper(path: Path) -> Paper:
    """A paper's table from its file.

    Raises:
        ValueError: If a key or a method is unknown (the nearest is named).
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    known_keys(tree, ("title", "source", "setup", "rows", "detail"), path.name)
    rows = []
    for row in tree["rows"]:
        known_keys(row, PaperRow.__dataclass_fields__, f"a row of {path.name}")
        rows.append(PaperRow(**row))
        if rows[-1].method != EXACT:
            entry(rows[-1].method)
        if rows[-1].rival and rows[-1].rival not in [other.row for other in rows[:-1]]:
            raise ValueError(
                f"{path.name}: the rival of {rows[-1].row} must be a row above it, got {rows[-1].rival!r}."
            )
    if len({row.row for row in rows}) < len(rows):
        raise ValueError(f"{path.name} has two rows of one name; rows.csv could not tell them apart.")
    return Paper(
        path.stem, tree["title"], tree["source"], tree["setup"], rows, bool(tree.get("detail", False))
    )


def judge(row: PaperRow, result: Result, rival: Result | None = None) -> list[Verdict]:
    """Our number in the row's band or not, against its rival's, and, where a truth was lost, how many.

    A row that was measured on at least three truths must come out within max(0.02, 3 combined standard errors) of
    what was measured, the scatter over its truths taken to be that over ours; with `relative`, within max(0.02, that
    share) of it. Others must lie between published and measured, widened by 0.03. With `at_most` there is no band but
    that. A row with none of these is shown and not judged. Where a truth is lost, and for particle filters, our number
    is the median over truths, whose standard error is 1.25 times that of the mean.

    Args:
        row: Of the paper.
        result: Ours.
        rival: That of the row's rival, on the same truths.
    """
    values = result.scores[row.metric]
    count, lost = len(values), int(result.scores["divergence_rate"].sum())
    robust = lost > 0 or (row.method != EXACT and entry(row.method).kind == "particle")
    middle = median_interval if robust else mean_interval
    value, lower, upper = middle(values.tolist())
    known = [x for x in (row.measured, row.published) if x is not None]
    expected = known[0] if known else math.nan
    low, high, status = math.nan, math.nan, "INFO"
    if row.at_most is not None or known:
        bounds = (
            band(row, _scatter(values, robust), count) if row.at_most is None else (-math.inf, row.at_most)
        )
        low, high = bounds
        status = "PASS" if low <= value <= high else "FAIL"
    verdicts = [Verdict(row.row, row.metric, expected, low, high, value, lower, upper, status)]
    if rival is not None:
        apart = middle((values - row.factor * rival.scores[row.metric]).tolist())
        label = f"{row.row} less {'' if row.factor == 1 else f'{row.factor:g} x '}{row.rival}"
        status = "PASS" if apart[0] <= 0 else "FAIL"
        verdicts.append(Verdict(label, row.metric, math.nan, -math.inf, 0.0, *apart, status))
    if robust:
        nothing = (math.nan,) * 3
        share = (lost / count, math.nan, math.nan)
        verdicts.append(Verdict(row.row, "lost", *nothing, *share, "INFO"))
    return verdicts


def band(row: PaperRow, scatter: float, count: int) -> tuple[float, float]:
    """Where our number must lie.

    Args:
        row: Of the paper.
        scatter: Standard deviation over truths.
        count: Our truths.

    Raises:
        ValueError: If the row has no number to compare with.

    >>> band(PaperRow("a", "EnKF", measured=0.5), scatter=0.0, count=8)
    (0.48, 0.52)
    """
    known = [x for x in (row.published, row.measured) if x is not None]
    if not known:
        raise ValueError(f"{row.row} has neither a published nor a measured number; give one.")
    if row.measured is None or row.seeds < 3:
        return min(known) - _WIDENED, max(known) + _WIDENED
    if row.relative:
        half = max(_BAND, row.relative * row.measured)
        return row.measured - half, row.measured + half
    combined = 3 * scatter * math.sqrt(1 / count + 1 / row.seeds)
    half = max(_BAND, combined if math.isfinite(combined) else 0.0)
    return row.measured - half, row.measured + half


def write_rows(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write rows.csv, whole or not at all."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for verdict in verdicts:
            writer.writerow(
                [_plain(x) if isinstance(x, float) else x for x in (getattr(verdict, c) for c in COLUMNS)]
            )


def _reproduce(paper: Paper, folder: Path, overrides: Sequence[str], console: Console) -> list[Verdict]:
    console.say(f"{paper.title} ({paper.source})")
    parts: dict[str, _Part] = {}
    detail = _detailed(paper)
    verdicts: list[Verdict] = []
    for row in paper.rows:
        tree = _merged(paper.setup, row.setup)
        part = parts.get(str(tree))
        if part is None:
            made = setup({"replicates": _TRUTHS, **tree}, overrides)
            part = parts[str(tree)] = _Part(Runner(made, folder / f"setup_{len(parts)}", detail=detail))
        result = _result(part.runner, row, console)
        if row.rival and row.rival not in part.results:
            raise ValueError(f"{row.row} and its rival {row.rival} are of different set-ups.")
        part.results[row.row] = result
        verdicts += judge(row, result, part.results[row.rival] if row.rival else None)
        write_rows(folder / "rows.csv", verdicts)
    if detail:
        for part in parts.values():
            part.write({row.row for row in paper.rows if row.method == EXACT})
    lines = [_line(verdict) for verdict in verdicts]
    console.rich.print(console_table(lines, title=paper.name))
    if any(len(part.runner.setup.seeds) < _TRUTHS for part in parts.values()):
        console.say(
            f"fewer than {_TRUTHS} truths: their scatter makes the bands too wide for PASS to mean much"
        )
    judged = [vars(verdict) for verdict in verdicts if verdict.status != "INFO"]
    drawn = [vars(v) for v in verdicts if v.metric != "lost" and " less " not in v.row]
    with atomic(folder / "rows.png") as temporary:
        against_published(drawn, title=paper.title).savefig(temporary, dpi=120)
    failed = sum(verdict.status == "FAIL" for verdict in verdicts)
    console.say(f"{len(judged) - failed} of {len(judged)} rows within their band: {folder.resolve()}")
    return verdicts


@dataclass(frozen=True)
class _Part:
    """One set-up of a paper and what ran on it."""

    runner: Runner
    results: dict[str, Result] = field(default_factory=dict)

    def write(self, exact: Set[str]) -> None:
        """metrics.csv, figures and report, as those of `slams bench`; `exact` names rows of the exact filter."""
        assert self.runner.folder is not None
        results = list(self.results.values())
        origins = ["exact" if name in exact else "published" for name in self.results]
        rows = [row for each in zip(results, origins, strict=True) for row in rows_of(*each)]
        write_metrics(self.runner.folder / "metrics.csv", rows)
        write_pages(self.runner.folder, self.runner.setup, results, rows)


def _detailed(paper: Paper) -> bool:
    """Whether a paper's table asks for more than errors of the mean, which is cheaper."""
    return paper.detail or any(row.metric in ("crps", "coverage90") for row in paper.rows)


def _result(runner: Runner, row: PaperRow, console: Console) -> Result:
    if row.method == EXACT:
        return runner.exact()
    settings = {"size": entry(row.method).size, **row.settings}
    label = file_stem(row.row)
    return run_with_bar(runner, console, row.method, settings, "published", label, metric=row.metric)


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `more` put in, one level deep."""
    out = dict(base)
    for key, value in more.items():
        out[key] = {**out[key], **value} if isinstance(out.get(key), Mapping) else value
    return out


def _scatter(values: torch.Tensor, robust: bool) -> float:
    """Standard deviation over truths; from the median distance to the median where some are lost."""
    if len(values) < 2:
        return math.nan
    if not robust:
        return float(values.std())
    distance = (values - values.quantile(0.5)).abs()
    return 1.25 * 1.4826 * float(distance.quantile(0.5))


def _line(verdict: Verdict) -> dict[str, Any]:
    if verdict.metric == "lost":
        return {"row": "  lost", "ours": f"{verdict.value:.0%} of the truths"}
    bounded = math.isfinite(verdict.high)
    low = f"{verdict.low:.3f} … " if math.isfinite(verdict.low) else "at most "
    return {
        "row": verdict.row,
        "expected": f"{verdict.expected:.3f}" if math.isfinite(verdict.expected) else "",
        "band": f"{low}{verdict.high:.3f}" if bounded else "",
        "ours": f"{verdict.value:.3f}",
        "status": verdict.status if bounded else "",
    }


def _plain(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
