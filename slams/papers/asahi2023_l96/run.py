"""`slams reproduce asahi2023_l96`: the generative ensemble Kalman filter where the model's forcing is wrong."""

from collections.abc import Sequence
from pathlib import Path

from slams.core.console import Console
from slams.evaluation.figures.style import save_figure
from slams.evaluation.tables import console_table
from slams.papers.asahi2023_l96.figures import error_figure, model_error_figure
from slams.papers.asahi2023_l96.plan import METRIC, read_plan
from slams.papers.asahi2023_l96.problem import judge_cell, run_cell, won
from slams.papers.table import Verdict, show, write_rows
from slams.twin.experiment import Result
from slams.twin.generator import FILE, GeneratorSettings, train_generator


def run(
    path: Path, folder: Path, overrides: Sequence[str], console: Console, *, train: bool = False
) -> list[Verdict]:
    """Runs, tables and figures of all cells; the same call goes on where it stopped.

    Args:
        path: File of the plan.
        folder: Folder of the results.
        overrides: Overrides of the plan, see `read_plan`.
        console: Console for the progress.
        train: Whether to train the generator anew, into the folder, instead of using shipped weights.

    Returns:
        Verdicts of all cells, from `judge_cell`.

    Raises:
        ValueError: If a cell, a size or a setting is unknown (the nearest is named).
    """
    plan = read_plan(path, overrides)
    console.say(f"{plan.title} ({plan.source})")
    for cell in plan.chosen:
        plan.setup_of(cell)  # checked before anything is trained
    weights = _weights(folder / "weights", train, console)
    found: dict[str, dict[str, Result]] = {}
    verdicts: list[Verdict] = []
    for cell in plan.chosen:
        found[cell.name] = run_cell(plan, cell, folder / cell.name, weights, console)
        verdicts = [v for c in plan.chosen if c.name in found for v in judge_cell(plan, c, found[c.name])]
        verdicts += won(plan, found)
        write_rows(folder / "rows.csv", verdicts)
    save_figure(error_figure(plan, found), folder / "error.png")
    save_figure(model_error_figure(plan, found), folder / "gain.png")
    lines = [
        {"cell": name} | {label: f"{float(r.scores[METRIC].mean()):.3f}" for label, r in results.items()}
        for name, results in found.items()
    ]
    console.rich.print(console_table(lines, title=f"{METRIC}, means over truths"))
    for verdict in verdicts:
        if verdict.metric == "count":
            console.say(f"{verdict.row}: {verdict.value:g}")
    show(console, verdicts, folder)
    return verdicts


def _weights(own: Path, train: bool, console: Console) -> Path | None:
    """Weights trained into the folder; None for the shipped ones."""
    if train:
        train_generator(own, GeneratorSettings(), console)
    return own / FILE if (own / FILE).exists() else None
