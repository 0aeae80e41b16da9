"""`slams reproduce`: published rows beside ours, judged by a stated band."""

import importlib
import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slams import config
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.renamed import renamed
from slams.core.settings import build, read_tree, unknown
from slams.core.stages import file_stem
from slams.evaluation.figures.style import save_figure
from slams.evaluation.figures.twin_plots import against_published
from slams.evaluation.metrics import METRICS
from slams.papers.study import new_name
from slams.papers.table import Bar, Verdict, difference, info, judge_truths, show, write_rows
from slams.twin.benchmark import rows_of, run_with_bar
from slams.twin.benchmark import write_rows as write_metrics
from slams.twin.experiment import Result
from slams.twin.methods import entry
from slams.twin.report import kernel_note, write_pages
from slams.twin.runner import Runner
from slams.twin.scores import KERNEL
from slams.twin.setup import setup

PAPERS = Path(__file__).parent
EXACT = "exact"  # as a row's method: the exact filter of the set-up's model
SIZES = ("quick", "reduced", "full")  # a table is the same at each

_TRUTHS = 8  # of every row, unless the paper's file or an override says otherwise
_BAND = 0.02  # half-width that any row measured with three seeds is given
_WIDENED = 0.03  # beyond published and measured, where hardly any seed was measured


@dataclass(frozen=True)
class PaperRow:
    """One row of a paper's table.

    Attributes:
        row: Name of the row.
        method: Name of our method.
        settings: Settings of the method, `members` among them.
        metric: Name of the compared score.
        published: The paper's number.
        measured: Number from an independent code.
        seeds: Number of truths behind `measured`.
        relative: Least half-width of the band as a fraction of `measured`.
        setup: Overrides of the paper's set-up in this row.
        at_most: Upper bound on our number, in place of a band.
        rival: An earlier row of the same set-up; truth by truth our number less `factor` times the rival's must be 0 or
            less on average.
        factor: Factor on the rival's number.
    """

    row: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "rmse_time_mean"
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
        title: Title of the table.
        source: Reference.
        setup: Settings of the twin experiment.
        rows: Rows of the table.
        detail: Whether each set-up leaves metrics.csv and a report with scores of the whole ensemble.
        name: Stem of the file.
    """

    title: str
    source: str
    setup: Mapping[str, Any]
    rows: Sequence[PaperRow]
    detail: bool = False
    name: str = ""

    @property
    def detailed(self) -> bool:
        """Whether scores beyond errors of the mean, which are cheaper, are needed."""
        return self.detail or any(row.metric in ("crps", "coverage90") for row in self.rows)


def reproduce(
    name: str,
    *,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
    papers: Path = PAPERS,
    train: bool = False,
) -> bool:
    """Run all papers whose name begins with `name`, and judge every row.

    Args:
        name: Stem of a file in `papers`, or the beginning of several.
        out: Folder of the results; logs/reproduce if None. The same call resumes an interrupted run.
        overrides: Overrides of the set-ups, such as "cycles=200".
        console: Console for the progress.
        papers: Folder of the YAML files.
        train: Whether to train the networks of a paper anew instead of using the shipped weights.

    Returns:
        Whether no row fell outside its band.

    Raises:
        ValueError: If no paper has this name (the nearest is named).
    """
    console = console or Console()
    known = sorted(papers.rglob("*.yaml"), key=lambda path: path.stem)
    paths = [path for path in known if path.stem.startswith(name)]
    if not paths:
        raise InvalidValueError(unknown("paper", name, [path.stem for path in known]))
    root = Path(out) if out else config.LOG_DIR / "reproduce"
    fine = True
    for path in paths:
        study = path.parent.relative_to(papers).parts
        if study not in ((), ("tables",)):
            module = importlib.import_module(".".join(("slams.papers", *study, "run")))
            verdicts = module.run(path, root / path.stem, overrides, console, train=train)
        else:
            verdicts = _reproduce(path, root / path.stem, overrides, console)
        fine = fine and not any(verdict.status.startswith("FAIL") for verdict in verdicts)
    return fine


def read_paper(path: Path) -> Paper:
    """A paper's table from its file.

    Raises:
        ValueError: If a key or a method is unknown (the nearest is named), or a value has the wrong type.
    """
    try:
        paper: Paper = build(Paper, {"name": path.stem, **read_tree(path, "table of a paper")})
        for i, row in enumerate(paper.rows):
            if row.method != EXACT:
                entry(row.method)
            if row.rival and row.rival not in [other.row for other in paper.rows[:i]]:
                raise InvalidValueError(f"the rival of {row.row} must be a row above it, got {row.rival!r}.")
        if len({row.row for row in paper.rows}) < len(paper.rows):
            raise InvalidValueError("two rows have one name, which rows.csv needs to be unique; rename one.")
    except ValueError as error:
        raise InvalidValueError(f"{path.name}: {error}") from error
    return paper


def verdicts_of(row: PaperRow, result: Result, rival: Result | None = None) -> list[Verdict]:
    """Verdicts on a row: our number in its band, against its rival's, the share of diverged truths, and EnSF's kernel.

    A row that was measured on at least three truths must come out within max(0.02, 3 combined standard errors) of
    what was measured, the scatter over its truths taken to be that over ours; with `relative`, within max(0.02, that
    share) of it. Others must lie between published and measured, widened by 0.03. With `at_most` there is no band but
    that. A row with none of these is shown and not judged. Where a run diverges, and for particle filters, our number
    is the median over truths, whose standard error is 1.25 times that of the mean; the status says so.

    Args:
        row: Row of the paper.
        result: Our result.
        rival: Result of the row's rival, on the same truths.
    """
    values, lost = result.scores[row.metric], result.scores["divergence_rate"]
    robust = bool(lost.any()) or (row.method != EXACT and entry(row.method).kind == "particle")
    known = [x for x in (row.measured, row.published) if x is not None]
    low, high = math.nan, math.nan
    if row.at_most is not None:
        low, high = -math.inf, row.at_most
    elif known:
        low, high = band(row, _scatter(values, robust), len(values))
    bar = Bar(row.row, row.metric, low, high, published=known[0] if known else math.nan)
    law = METRICS[row.metric].law if row.metric in METRICS else "any"
    verdicts = [judge_truths(bar, values, lost, law=law, median=robust)]
    if rival is not None:
        label = f"{row.row} less {'' if row.factor == 1 else f'{row.factor:g} x '}{row.rival}"
        apart = difference(values, row.factor * rival.scores[row.metric])
        both = torch.maximum(lost, rival.scores["divergence_rate"])
        middle = robust or bool(both.any())
        verdicts.append(judge_truths(Bar(label, row.metric, high=0.0), apart, both, median=middle))
    if robust:
        verdicts.append(info(row.row, "lost", float(lost.mean())))
    if KERNEL in result.scores and kernel_note(share := float(result.scores[KERNEL].mean())):
        verdicts.append(info(row.row, "EnSF = ETKF here", share))
    return verdicts


def band(row: PaperRow, scatter: float, count: int) -> tuple[float, float]:
    """Bounds on our number.

    Args:
        row: Row of the paper.
        scatter: Standard deviation of our number over truths.
        count: Number of our truths.

    Raises:
        ValueError: If the row has no number to compare with.

    >>> band(PaperRow("a", "EnKF", measured=0.5), scatter=0.0, count=8)
    (0.48, 0.52)
    """
    known = [x for x in (row.published, row.measured) if x is not None]
    if not known:
        raise InvalidValueError(f"{row.row} has neither a published nor a measured number; give one.")
    if row.measured is None or row.seeds < 3:
        return min(known) - _WIDENED, max(known) + _WIDENED
    if row.relative:
        half = max(_BAND, row.relative * row.measured)
        return row.measured - half, row.measured + half
    combined = 3 * scatter * math.sqrt(1 / count + 1 / row.seeds)
    half = max(_BAND, combined if math.isfinite(combined) else 0.0)
    return row.measured - half, row.measured + half


def _reproduce(path: Path, folder: Path, overrides: Sequence[str], console: Console) -> list[Verdict]:
    paper = read_paper(path)
    console.say(f"{paper.title} ({paper.source})")
    given = [new_name(text) for text in overrides]
    for text in given:
        if text.startswith("size=") and text.removeprefix("size=") not in SIZES:
            raise InvalidValueError(unknown("size", text.removeprefix("size="), SIZES))
    given = [text for text in given if not text.startswith("size=")]
    parts: dict[str, _Part] = {}
    verdicts: list[Verdict] = []
    for row in paper.rows:
        tree = _merged(paper.setup, row.setup)
        part = parts.get(str(tree))
        if part is None:
            made = setup({"replicates": _TRUTHS, **tree}, given)
            runner = Runner(made, folder / f"setup_{len(parts)}", detail=paper.detailed)
            part = parts[str(tree)] = _Part(runner)
        result = _result(part.runner, row, console)
        if row.rival and row.rival not in part.results:
            raise InvalidValueError(f"{row.row} and its rival {row.rival} are of different set-ups.")
        part.results[row.row] = result
        verdicts += verdicts_of(row, result, part.results[row.rival] if row.rival else None)
        write_rows(folder / "rows.csv", verdicts)
    if paper.detailed:
        for part in parts.values():
            part.write({row.row for row in paper.rows if row.method == EXACT})
    if any(len(part.runner.setup.seeds) < _TRUTHS for part in parts.values()):
        console.say(
            f"fewer than {_TRUTHS} truths: their scatter makes the bands too wide for PASS to mean much"
        )
    drawn = [
        vars(v) for v in verdicts if v.metric not in ("lost", "EnSF = ETKF here") and " less " not in v.row
    ]
    save_figure(against_published(drawn, title=paper.title), folder / "rows.png")
    show(console, verdicts, folder, title=paper.name, every=True)
    return verdicts


@dataclass(frozen=True)
class _Part:
    """One set-up of a paper and the results on it."""

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


def _result(runner: Runner, row: PaperRow, console: Console) -> Result:
    if row.method == EXACT:
        return runner.exact()
    settings = {"members": entry(row.method).members, **renamed("method setting", row.settings)}
    label = file_stem(row.row)
    return run_with_bar(runner, console, row.method, settings, "published", label, metric=row.metric)


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `more` put in, one level deep."""
    out = dict(base)
    for key, value in more.items():
        out[key] = {**out[key], **value} if isinstance(out.get(key), Mapping) else value
    return out


def _scatter(values: torch.Tensor, robust: bool) -> float:
    """Standard deviation over truths; from the median distance to the median where some diverged."""
    if len(values) < 2:
        return math.nan
    if not robust:
        return float(values.std())
    distance = (values - values.quantile(0.5)).abs()
    return 1.25 * 1.4826 * float(distance.quantile(0.5))
