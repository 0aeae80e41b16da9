"""`slams bench`: methods side by side on one system, with intervals, figures and a report."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slams import config
from slams.core.console import Console
from slams.core.files import atomic
from slams.evaluation.metrics import METRICS, shown
from slams.evaluation.tables import COLUMNS as SCORE_COLUMNS
from slams.evaluation.tables import console_table
from slams.twin.experiment import Result
from slams.twin.methods import METHODS, entry, starting
from slams.twin.report import overview, write_pages
from slams.twin.runner import Progress, Runner
from slams.twin.setup import Setup, setup

COLUMNS = ("system", "settings", "replicate", *SCORE_COLUMNS)
_USUAL = ("OptInterp", "ThreeDVar", "EnKF", "ETKF", "DEnKF", "EnKFN", "LETKF", "EAKF")
_TUNED = Path(__file__).parent / "tuned"
_STRIDE = 20  # steps between two updates of the bar

Row = dict[str, Any]
Line = tuple[str, dict[str, Any], str, str]  # method, settings, where these are from, label of the row


def bench(
    system: str,
    *,
    methods: Sequence[str] | None = None,
    replicates: int | None = None,
    cycles: int | None = None,
    settings: str | Path | None = None,
    out: str | Path | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Compare methods on truths that no setting was chosen on.

    Args:
        system: lorenz63, lorenz96, linear or doublewell.
        methods: Which; the trivial ones, a tuned EnKF and, on a circle, a tuned LETKF come along.
        replicates: Truths.
        cycles: Scored analyses of each.
        settings: File of `slams tune`; methods that are not in it keep the published or default settings. Without
            `methods`, those in it join the usual selection.
        out: Folder of the results; logs/bench_SYSTEM if None. The same call goes on where it stopped.
        overrides: Of the set-up, such as "truth.forcing=11".
        console: Where progress is shown.

    Returns:
        The folder: metrics.csv, figures/, report.html, runs/.

    Raises:
        ValueError: If a name is unknown (the nearest is told) or the folder is of another set-up.
    """
    console = console or Console()
    chosen = {"replicates": replicates, "cycles": cycles}
    made = setup({"system": system, **{k: v for k, v in chosen.items() if v is not None}}, overrides)
    plan = _plan(made, methods, settings)
    folder = Path(out) if out else config.LOG_DIR / f"bench_{system}"
    compare(made, plan, folder, console)
    return folder


def compare(made: Setup, plan: Sequence[Line], folder: Path, console: Console) -> list[Row]:
    """Run what is planned on one set-up, and write metrics.csv, figures, report and runs.

    Args:
        made: The set-up.
        plan: Of every run its method, settings, where these are from, and a label that no other run has.
        folder: Of the results; the same call goes on where it stopped.
        console: Where progress is shown.

    Returns:
        Rows of metrics.csv.

    Raises:
        ValueError: If a setting is unknown or the folder is of another set-up.
    """
    runner = Runner(made, folder)
    with console.bar("truths and their climate", 1) as advance:
        for name, values, _, _ in plan:  # none begins before the last method's settings are known to be sound
            runner.method(name, values)
        advance(1, f"{made.replicates} x {runner.experiment.length} steps")
    results = [run_with_bar(runner, console, *line) for line in plan]
    origins = [origin for _, _, origin, _ in plan]
    if made.system in ("linear", "doublewell"):
        results.append(runner.exact())
        origins.append("exact")
    rows = [row for result, origin in zip(results, origins, strict=True) for row in rows_of(result, origin)]
    write_rows(folder / "metrics.csv", rows)
    with console.bar("figures and report", 1) as advance:
        write_pages(folder, made, results, rows)
        advance(1, "")
    title = f"{made.system}, truths: {made.replicates}"
    metrics = shown((row["metric"] for row in rows), "console")
    console.rich.print(console_table(overview(rows, metrics, interval=False), title=title, wrap=False))
    console.say(f"report: {(folder / 'report.html').resolve()}")
    return rows


def run_with_bar(  # noqa: PLR0913
    runner: Runner,
    console: Console,
    name: str,
    settings: Mapping[str, Any],
    origin: str,
    label: str,
    *,
    metric: str = "rmse",
) -> Result:
    """Run a method behind a progress bar; losses of track are said at once."""
    steps = runner.experiment.length
    with console.bar(f"{label} ({origin})", steps) as advance:
        result = runner.run(name, settings, label=label, progress=strided(advance, steps))
        # of a trivial method nobody expects that it keeps to the truth
        lost = int(result.scores["divergence_rate"].sum()) if entry(name).kind != "trivial" else 0
        told = f"{metric} {float(result.scores[metric].mean()):.3f}"
        advance(0, f"{told}, {lost} of {runner.setup.replicates} truths lost" if lost else told)
    return result


def rows_of(result: Result, origin: str) -> list[Row]:
    """Rows of metrics.csv: every metric of every replicate, and its mean with a 95 % interval."""
    rows: list[Row] = []
    front = {"system": result.setup["system"], "settings": origin, "method": result.method}
    where = {"variable": "state", "level": "all", "part": "all"}
    for name in (name for name in result.scores if name in METRICS):
        values = result.scores[name].tolist()
        seed = int(result.setup["seed"])
        for r, value in enumerate(values):
            row = {"value": value, "lower": math.nan, "upper": math.nan, "n": 1}
            rows.append({**front, **where, "replicate": seed + r, "metric": name, **row})
        mean, lower, upper = METRICS[name].interval(values)
        last = {"value": mean, "lower": lower, "upper": upper, "n": len(values)}
        rows.append({**front, **where, "replicate": "", "metric": name, **last})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write metrics.csv, whole or not at all; what does not exist is an empty cell."""
    with atomic(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            numbers = {key: row[key] for key in ("value", "lower", "upper")}
            writer.writerow({**row, **{k: "" if math.isnan(v) else f"{v:.7g}" for k, v in numbers.items()}})


def read_settings(path: str | Path, system: str) -> dict[str, dict[str, Any]]:
    """Settings by method from a file of `slams tune`.

    Args:
        path: The file.
        system: That the settings should be of.

    Returns:
        Settings by method.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another system or no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no settings at {path}; make them with slams tune {system} --out {path}.")
    tree = _tuned(path)
    if tree.get("system") != system:
        raise ValueError(f"{path} was tuned for {tree.get('system')}, not {system}; tune for {system}.")
    return {name: dict(values["settings"]) for name, values in tree["methods"].items()}


def _tuned(path: str | Path) -> dict[str, Any]:
    """A file of `slams tune`, its form checked."""
    tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or not isinstance(tree.get("methods"), dict):
        raise ValueError(
            f"{path} holds no settings: expected the keys system and methods, as slams tune writes."
        )
    for name, values in tree["methods"].items():
        if not isinstance(values, dict) or not isinstance(values.get("settings"), dict):
            raise ValueError(f"{path}: {name} lacks the key settings, below which slams tune writes them.")
    return tree


def _plan(made: Setup, methods: Sequence[str] | None, settings: str | Path | None) -> list[Line]:
    """What is run."""
    given = read_settings(settings, made.system) if settings else {}
    shipped = _TUNED / f"{made.system}.yaml"
    known = read_settings(shipped, made.system) if shipped.exists() else {}
    names = list(methods) if methods else [n for n in (*_USUAL, *given) if _fits(n, made.system)]
    for name in (*names, *given):
        entry(name)
    published, shipped_origin, given_origin = (
        word if _same_task(made, other) else f"{word} elsewhere"
        for word, other in (
            ("published", setup({"system": made.system}).plain()),
            ("tuned", _tuned(shipped).get("setup") if known else None),
            ("tuned", _tuned(settings).get("setup") if settings else None),
        )
    )
    plan: list[Line] = []
    trivial = [name for name, each in METHODS.items() if each.kind == "trivial"]
    for name in dict.fromkeys([*trivial, *names]):
        origin, values = starting(name, made.system)
        if name in given:
            origin, values = given_origin, {**values, **given[name]}
        plan.append((name, values, published if origin == "published" else origin, name))
    for name in ("EnKF", "LETKF"):
        best = known if name not in given else given if name not in names else {}
        if name in best and _fits(name, made.system):
            values = {**starting(name, made.system)[1], **best[name]}
            origin = shipped_origin if best is known else given_origin
            plan.append((name, values, origin, f"{name} tuned"))
    return plan


def _same_task(made: Setup, other: Mapping[str, Any] | None) -> bool:
    """Whether settings chosen for another set-up were chosen for this system, model and survey."""
    mine = made.plain()
    return other is None or all(other.get(key) == mine[key] for key in ("truth", "model", "observe"))


def _fits(name: str, system: str) -> bool:
    """Whether a method makes sense there: localization needs a space."""
    return system in ("lorenz96", "linear") or name not in ("LETKF", "EAKF")


def strided(advance: Callable[[int, str], None], steps: int, every: int = _STRIDE) -> Progress:
    """Tell a bar of some steps alone: drawing it costs more than a small analysis."""
    told = [-1]

    def progress(k: int) -> None:
        if k % every == 0 or k == steps - 1:
            advance(k - told[0], "")
            told[0] = k

    return progress
