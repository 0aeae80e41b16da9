"""`slams bench`: methods side by side on one system, with intervals, figures and a report."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from slams import config
from slams.core.files import atomic
from slams.evaluation.evaluate import mean_interval, share_interval
from slams.evaluation.tables import COLUMNS as SCORE_COLUMNS
from slams.evaluation.tables import console_table
from slams.experiments.benchmark_report import overview, write_pages
from slams.experiments.methods import METHODS, entry, starting
from slams.experiments.progress import Console
from slams.experiments.runner import Progress, Runner
from slams.experiments.setup import Setup, setup
from slams.experiments.twin import Result

COLUMNS = ("system", "settings", "replicate", *SCORE_COLUMNS)
METRICS = (
    "rmse",
    "spread",
    "spread_skill",
    "crps",
    "coverage90",
    "rmse_a",
    "spread_a",
    "divergence_rate",
    "lost_share",
    "model_calls",
    "network_calls",
    "cpu_seconds",
)
_USUAL = ("OptInterp", "ThreeDVar", "EnKF", "ETKF", "DEnKF", "EnKFN", "LETKF", "EAKF")
_TUNED = Path(__file__).parent / "tuned"
_STRIDE = 20  # steps between two updates of the bar

Row = dict[str, Any]


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
        settings: File of `slams tune`; methods that are not in it keep the published or default settings.
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
    runner = Runner(made, folder)
    results = [run_with_bar(runner, console, *line) for line in plan]
    origins = [origin for _, _, origin, _ in plan]
    if system == "linear":
        results.append(runner.exact())
        origins.append("exact")
    rows = [row for result, origin in zip(results, origins, strict=True) for row in rows_of(result, origin)]
    write_rows(folder / "metrics.csv", rows)
    with console.bar("figures and report", 1) as advance:
        write_pages(folder, made, results, rows)
        advance(1, "")
    console.rich.print(
        console_table(overview(rows, interval=False), title=f"{system}, {made.replicates} truths")
    )
    console.say(f"report: {(folder / 'report.html').resolve()}")
    return folder


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
        result = runner.run(name, settings, label=label, progress=_strided(advance, steps))
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
    for metric in METRICS:
        if metric == "network_calls":
            values = [0.0] * int(result.setup["replicates"])
        elif metric in result.scores:
            values = result.scores[metric].tolist()
        else:
            continue
        seed = int(result.setup["seed"])
        for r, value in enumerate(values):
            row = {"value": value, "lower": math.nan, "upper": math.nan, "n": 1}
            rows.append({**front, **where, "replicate": seed + r, "metric": metric, **row})
        if metric == "divergence_rate":
            mean, lower, upper = share_interval(int(sum(values)), len(values))
        else:
            mean, lower, upper = mean_interval(values)
        last = {"value": mean, "lower": lower, "upper": upper, "n": len(values)}
        rows.append({**front, **where, "replicate": "", "metric": metric, **last})
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

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is of another system or no such file.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"no settings at {path}; make them with slams tune {system} --out {path}.")
    tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    if not isinstance(tree, dict) or not isinstance(tree.get("methods"), dict):
        raise ValueError(
            f"{path} holds no settings: expected the keys system and methods, as slams tune writes."
        )
    if tree.get("system") != system:
        raise ValueError(f"{path} was tuned for {tree.get('system')}, not {system}; tune for {system}.")
    return {name: dict(values["settings"]) for name, values in tree["methods"].items()}


def _plan(
    made: Setup, methods: Sequence[str] | None, settings: str | Path | None
) -> list[tuple[str, dict[str, Any], str, str]]:
    """(method, settings, origin, label) of every run."""
    given = read_settings(settings, made.system) if settings else {}
    shipped = _TUNED / f"{made.system}.yaml"
    known = read_settings(shipped, made.system) if shipped.exists() else {}
    names = list(methods) if methods else [n for n in _USUAL if _fits(n, made.system)]
    for name in (*names, *given):
        entry(name)
    plan = []
    trivial = [name for name, each in METHODS.items() if each.kind == "trivial"]
    for name in dict.fromkeys([*trivial, *names]):
        origin, values = starting(name, made.system)
        if name in given:
            origin, values = "tuned", {**values, **given[name]}
        plan.append((name, values, origin, name))
    for name in ("EnKF", "LETKF"):
        if name in known and name not in given and _fits(name, made.system):
            plan.append((name, {**starting(name, made.system)[1], **known[name]}, "tuned", f"{name} tuned"))
    return plan


def _fits(name: str, system: str) -> bool:
    """Whether a method makes sense there: localization needs a space."""
    return system in ("lorenz96", "linear") or name not in ("LETKF", "EAKF")


def _strided(advance: Any, steps: int) -> Progress:
    """Tell the bar of every twentieth step: drawing it costs more than a small analysis."""
    told = [-1]

    def progress(k: int) -> None:
        if k % _STRIDE == 0 or k == steps - 1:
            advance(k - told[0], "")
            told[0] = k

    return progress
