"""A test on every training season by the fit without it, joined to the tables and the report of a run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.stages import Stage, Stages
from slams.evaluation.report import Section, Table
from slams.evaluation.tables import read_metrics, write_metrics
from slams.pipeline.baselines.file import FILE_NAME, load_baselines
from slams.pipeline.baselines.fit import Baselines
from slams.pipeline.inputs.fields import Fields
from slams.pipeline.left_out.folds import FOLDER, Fold, fit_folds, others
from slams.pipeline.left_out.season import METHOD, Row, analysed, summaries
from slams.pipeline.model.model import Model
from slams.pipeline.results.outcome import Outcome, load_scores
from slams.pipeline.results.run_report import write_summary
from slams.pipeline.results.scoring import Test
from slams.pipeline.rivals.join import stored_analysis
from slams.pipeline.train import FILES, stages_of

_VERSION = 1
_CAPTION = (
    "Each training season analysed by the exact posterior of the closed form of the fit without it, without a network; "
    "errors, factors and spreads are those of the other seasons left out. Average over seasons; numbers of seasons whose "
    "fair coverage of the 90 % interval is below .75 and .50, and of those whose mean error over area and days lies in "
    "its predicted 90 % interval."
)


def join_left_out(model: Model, fields: Fields, out: Path, console: Console) -> None:
    """Analyse each training season by the fold without it, and write the rows to metrics.csv and the report.

    A season is analysed by the exact posterior of its fold's closed form, without a network: its own decoders, biases of
    the other years, and errors, factors and spreads from the other folds alone. (The fits of those other folds have seen
    the season; their residuals on it are not used.) Finished seasons are stored and not computed again.

    Args:
        model: Trained model of the run, with `prior.leave_out`.
        fields: Fields of all days.
        out: Folder of the run, whose test is finished.
        console: Console for the progress.

    Raises:
        ValueError: If the run kept no scores to write its report with.
    """
    plan = stages_of(model.recipe, fields, out)
    baselines, own = load_baselines(model, out / FILE_NAME), load_scores(Stages(out), plan["report"])
    if own is None:
        raise InvalidValueError(
            f"the test in {out} kept no scores; remove metrics.csv there and train again."
        )
    folds = fit_folds(model.recipe, fields, out, plan["codec"].inputs, console, model.device)
    stages, rows = Stages(out / FOLDER, console.say), list[Row]()
    for number, fold in enumerate(folds):
        stage = Stage(f"season {fold.name}", plan["report"].key, _VERSION)
        if not stages.path(stage).exists():
            console.say(f"season {number + 1} of {len(folds)}, from {fold.name}, by the fit without it")
        make = partial(_made, fold, others(folds, fold), fields, baselines, console)
        rows += stages.keep(stage, make)[1]["rows"]
    rows += summaries(rows)
    kept = [row for row in read_metrics(out / "metrics.csv") if row["method"].partition(":")[0] != METHOD]
    rows = [*kept, *rows]
    write_metrics(out / "metrics.csv", rows)
    test = Test(model, baselines, fields)
    outcome = Outcome(own, test.dates, test.truth, *stored_analysis(model, out), baselines.interpolators)
    write_summary(model, baselines, fields, outcome, rows, out, [section_of(model, rows)])
    Stages(out, console.say).finish(plan["report"], (*FILES["report"], "report.html"))


def _made(
    fold: Fold, folds: Sequence[Fold], fields: Fields, baselines: Baselines, console: Console
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return {}, {"rows": analysed(fold, folds, fields, baselines, console)}


def section_of(model: Model, rows: Sequence[Row]) -> Section:
    """The summary of each set, and every season's coverage and mean error."""
    tables = []
    for name in model.states:
        mine = [row for row in rows if row["method"].startswith(f"{METHOD}:") and row["variable"] == name]
        whole = [row for row in mine if row["part"] == "all"]
        labels = list(dict.fromkeys(row["method"].partition(":")[2] for row in mine))
        found = []
        for label in labels:
            own = {row["metric"]: row for row in whole if row["method"] == f"{METHOD}:{label}"}
            count = int(own["mean_errors_inside"]["n"])
            found.append(
                {
                    "set": label,
                    "coverage": f"{own['coverage90_fair']['value']:.3f}",
                    "CRPS": f"{own['crps']['value']:.3f}",
                    "RMSE": f"{own['rmse']['value']:.3f}",
                    "below .75": f"{own['seasons_below_75']['value']:.0f} of {count}",
                    "below .50": f"{own['seasons_below_50']['value']:.0f} of {count}",
                    "mean error inside": f"{own['mean_errors_inside']['value']:.0f} of {count}",
                }
            )
        tables.append(Table(found, f"{name}. {_CAPTION}"))
        seasons = list(dict.fromkeys(row["part"] for row in mine if row["part"] != "all"))
        each = []
        for season in seasons:
            line = {"season from": season}
            for label in labels:
                own = {
                    row["metric"]: row
                    for row in mine
                    if row["part"] == season and row["method"] == f"{METHOD}:{label}"
                }
                error = own["mean_error"]
                line[label] = (
                    f"{own['coverage90_fair']['value']:.2f}; {error['value']:+.2f} (± {error['upper']:.2f})"
                )
            each.append(line)
        tables.append(Table(each, f"{name}: coverage; mean error and half its predicted 90 % interval"))
    return Section("Each training season by the fit without it", tables)
