"""`slams bench`: methods compared on one system, with intervals, figures and a report."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from slams.assimilation.base import Assimilator
from slams.core.console import Console
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.files import atomic
from slams.core.renamed import renamed
from slams.core.settings import build, read_tree
from slams.evaluation.intervals import interval
from slams.evaluation.metrics import METRICS, shown
from slams.evaluation.tables import COLUMNS as SCORE_COLUMNS
from slams.evaluation.tables import PrintedTable, console_table
from slams.systems.base import Dynamics
from slams.twin.exact import has_exact
from slams.twin.experiment import Result
from slams.twin.methods import METHODS, Factory, Settings, entry
from slams.twin.own import Methods, OwnSetup, TwinOptions, methods_of, setup_of, starting_of
from slams.twin.report import overview, write_pages
from slams.twin.runner import Progress, Runner
from slams.twin.scores import KERNEL
from slams.twin.setup import SYSTEMS, Setup, setup

if TYPE_CHECKING:
    pass

COLUMNS = ("system", "settings", "replicate", *SCORE_COLUMNS)
_USUAL = ("OptInterp", "ThreeDVar", "EnKF", "ETKF", "DEnKF", "EnKFN", "LETKF", "EAKF")
_TUNED = Path(__file__).parent / "tuned"
_STRIDE = 20  # steps between two updates of the bar

Row = dict[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """A method with its settings.

    Attributes:
        method: Name of the method.
        settings: Settings of the method, `members` among them.
        origin: Origin of the settings.
        label: Unique name of its rows.
    """

    method: str
    settings: Settings
    origin: str
    label: str


@dataclass(frozen=True)
class BenchTable(PrintedTable):
    """Scores of methods on one set-up.

    Attributes:
        setup: The experiment.
        results: Results of the methods, with scores of every replicate.
        rows: Rows of metrics.csv: every metric of every replicate, and its mean with a 95 % interval.
    """

    setup: Setup
    results: Sequence[Result]
    rows: Sequence[Row]

    @property
    def title(self) -> str:  # type: ignore[override]
        """System and number of replicates."""
        return f"{self.setup.system}, truths: {self.setup.replicates}"

    @property
    def lines(self) -> list[dict[str, str]]:
        """Means over replicates of the most common metrics, one line a method, the smallest error first."""
        return overview(self.rows, shown((row["metric"] for row in self.rows), "console"), interval=False)

    def report(self, folder: str | Path) -> Path:
        """Write metrics.csv, report.html and figures/.

        Args:
            folder: Folder of the files.

        Returns:
            Path of report.html.
        """
        write_rows(Path(folder) / "metrics.csv", self.rows)
        write_pages(Path(folder), self.setup, self.results, self.rows)
        return Path(folder) / "report.html"


def bench(
    system: str | Dynamics,
    *,
    methods: Methods | None = None,
    settings: str | Path | Mapping[str, Mapping[str, Any]] | None = None,
    out: str | Path | None = None,
    progress: bool = False,
    console: Console | None = None,
    **experiment: Unpack[TwinOptions],
) -> BenchTable:
    """Compare methods on truths that no tuning has used.

    Args:
        system: Name (lorenz63, lorenz96, linear or doublewell), import path "package.module:name", or a system.
        methods: Names, classes, functions that take the model, or instances; the trivial ones, a tuned EnKF and, on
            a circle, a tuned LETKF are added.
        settings: File of `slams tune`, or settings by method; other methods keep the published or default settings.
            Without `methods`, those with settings join the usual selection.
        out: Folder of the results; nothing is written if None. The same call resumes where it stopped.
        progress: Whether to show progress and the table on the terminal.
        console: Console for both, in place of the terminal.
        **experiment: Truth, observations and length of the experiment, as in `TwinOptions`.

    Returns:
        The table; `report(folder)` writes it with figures.

    Raises:
        ValueError: If a name is unknown (the nearest is named) or the folder is of another set-up.

    >>> table = bench("linear", methods=["EnKF"], replicates=2, cycles=5, burn_in=0)
    >>> sorted({row["method"] for row in table.rows})[:3]
    ['Climatology', 'EnKF', 'EnKF tuned']
    """
    made = setup_of(system, experiment)
    names, own = methods_of(methods)
    plan = _plan(made, names, settings, own)
    return compare(made, plan, Path(out) if out else None, console or Console(quiet=not progress), own)


def compare(
    made: Setup,
    plan: Sequence[PlannedRun],
    folder: Path | None,
    console: Console,
    own: Mapping[str, Factory | Assimilator] | None = None,
) -> BenchTable:
    """Make the planned runs on one set-up, and write metrics.csv, figures, report and runs.

    Args:
        made: The set-up.
        plan: The runs.
        folder: Folder of the results; nothing is written if None. The same call resumes where it stopped.
        console: Console for the progress.
        own: Methods of the user's by name.

    Returns:
        The table.

    Raises:
        ValueError: If a setting is unknown or the folder is of another set-up.
    """
    runner = Runner(made, folder, own=own)
    with console.bar("truths and their climate", 1) as advance:
        for each in plan:  # all settings are validated before the first run begins
            runner.method(each.method, each.settings)
        advance(1, f"{made.replicates} x {runner.experiment.length} steps")
    results = [run_with_bar(runner, console, p.method, p.settings, p.origin, p.label) for p in plan]
    origins = [each.origin for each in plan]
    if has_exact(runner.experiment.model):
        results.append(runner.exact())
        origins.append("exact")
    rows = [row for result, origin in zip(results, origins, strict=True) for row in rows_of(result, origin)]
    table = BenchTable(made, results, rows)
    if folder is not None:
        with console.bar("figures and report", 1) as advance:
            table.report(folder)
            advance(1, "")
    console.rich.print(console_table(table.lines, title=table.title, wrap=False))
    if folder is not None:
        console.say(f"report: {(folder / 'report.html').resolve()}")
    return table


def run_with_bar(
    runner: Runner,
    console: Console,
    name: str,
    settings: Mapping[str, Any],
    origin: str,
    label: str,
    *,
    metric: str = "rmse",
) -> Result:
    """Run a method behind a progress bar, which reports diverged replicates."""
    steps = runner.experiment.length
    with console.bar(f"{label} ({origin})", steps) as advance:
        result = runner.run(name, settings, label=label, progress=strided(advance, steps))
        # trivial methods diverge by construction
        diverged = int(result.scores["divergence_rate"].sum()) if runner.entry(name).kind != "trivial" else 0
        message = f"{metric} {float(result.scores[metric].mean()):.3f}"
        advance(
            0,
            f"{message}, {diverged} of {runner.setup.replicates} replicates diverged"
            if diverged
            else message,
        )
    return result


def rows_of(result: Result, origin: str) -> list[Row]:
    """Rows of metrics.csv: every metric of every replicate, and its mean with a 95 % interval."""
    rows: list[Row] = []
    front = {"system": result.setup["system"], "settings": origin, "method": result.method}
    where = {"variable": "state", "level": "all", "part": "all"}
    for name in (name for name in result.scores if name in METRICS or name == KERNEL):
        values = result.scores[name].tolist()
        seed = int(result.setup["seed"])
        for r, value in enumerate(values):
            row = {"value": value, "lower": math.nan, "upper": math.nan, "n": 1}
            rows.append({**front, **where, "replicate": seed + r, "metric": name, **row})
        mean, lower, upper = interval(values, METRICS[name].law if name in METRICS else "share")
        last = {"value": mean, "lower": lower, "upper": upper, "n": len(values)}
        rows.append({**front, **where, "replicate": "", "metric": name, **last})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv atomically; missing values are empty cells."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {key: row[key] for key in ("value", "lower", "upper")}
            writer.writerow({**row, **{k: "" if math.isnan(v) else f"{v:.7g}" for k, v in numbers.items()}})


@dataclass(frozen=True)
class TunedMethod:
    """Settings of one method in a file of `slams tune`.

    Attributes:
        settings: The settings.
        score: Their score on the tuning truths.
        first: Score of the initial settings.
        trials: Number of trials.
    """

    settings: Mapping[str, Any]
    score: float = math.nan
    first: float = math.nan
    trials: int = 0


@dataclass(frozen=True)
class TunedSettings:
    """A file of `slams tune`.

    Attributes:
        system: Name of the system.
        methods: Settings by method.
        budget: Trials of each method.
        setup: Set-up of the tuning truths; empty if unknown.
    """

    system: str
    methods: Mapping[str, TunedMethod]
    budget: int = 0
    setup: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path, system: str) -> "TunedSettings":
        """The settings in a file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is of another system or of another format.
        """
        if not Path(path).exists():
            raise MissingFileError(f"no settings at {path}; make them with slams tune {system} --out {path}.")
        made: TunedSettings = build(cls, read_tree(path, "file of slams tune"), f"{Path(path).name}.")
        if made.system != system:
            raise InvalidValueError(f"{path} was tuned for {made.system}, not {system}; tune for {system}.")
        return made

    def by_method(self) -> dict[str, Settings]:
        """Settings by method."""
        return {name: renamed("method setting", each.settings) for name, each in self.methods.items()}


def read_settings(path: str | Path, system: str) -> dict[str, Settings]:
    """Settings by method from a file of `slams tune`; raises as `TunedSettings.read`."""
    return TunedSettings.read(path, system).by_method()


def _plan(
    made: Setup,
    methods: Sequence[str] | None,
    settings: str | Path | Mapping[str, Mapping[str, Any]] | None,
    own: Mapping[str, Any] | None = None,
) -> list[PlannedRun]:
    """The runs of `bench`."""
    own, system = own or {}, made.system
    if isinstance(settings, Mapping):
        given = {name: renamed("method setting", values) for name, values in settings.items()}
        task: Mapping[str, Any] = {}
    else:
        tuned = TunedSettings.read(settings, system) if settings else TunedSettings(system, {})
        given, task = tuned.by_method(), tuned.setup
    path = _TUNED / f"{system}.yaml"
    shipped = TunedSettings.read(path, system) if path.exists() else TunedSettings(system, {})
    usual = setup({"system": system}).plain() if system in SYSTEMS else {}
    names = list(methods) if methods else [n for n in (*_USUAL, *given) if _fits(n, made)]
    for name in (*names, *given):
        if name not in own:
            entry(name)

    def origin(word: str, task: Mapping[str, Any]) -> str:
        return word if not task or made.shares_task(task) else f"{word} elsewhere"

    given_origin = "given" if isinstance(settings, Mapping) else origin("tuned", task)
    plan = []
    trivial = [name for name, each in METHODS.items() if each.kind == "trivial"]
    for name in dict.fromkeys([*trivial, *names]):
        begin, values = starting_of(name, system, own)
        where = origin("published", usual) if begin == "published" else begin
        if name in given:
            where, values = given_origin, {**values, **given[name]}
        plan.append(PlannedRun(name, values, where, name))
    known = shipped.by_method()
    for name in ("EnKF", "LETKF"):
        best = known if name not in given else given if name not in names else {}
        if name in best and _fits(name, made):
            values = {**starting_of(name, system, own)[1], **best[name]}
            where = origin("tuned", shipped.setup) if best is known else given_origin
            plan.append(PlannedRun(name, values, where, f"{name} tuned"))
    return plan


def _fits(name: str, made: Setup) -> bool:
    """Whether a method suits a system: localization needs a geometry."""
    placed = made.system in ("lorenz96", "linear") and not isinstance(made, OwnSetup)
    return placed or name not in ("LETKF", "EAKF")


def strided(advance: Callable[[int, str], None], steps: int, every: int = _STRIDE) -> Progress:
    """Progress callback that updates a bar at every few steps: drawing costs more than a small analysis."""
    shown = [-1]

    def progress(k: int) -> None:
        if k % every == 0 or k == steps - 1:
            advance(k - shown[0], "")
            shown[0] = k

    return progress
