"""What the network is worth: the analysis against exact and network-free methods, paired by window."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from slams.core.errors import InvalidValueError
from slams.evaluation import Scores
from slams.evaluation.metrics import CHANGES
from slams.evaluation.scores import Row
from slams.evaluation.tables import COLUMNS
from slams.pipeline.recipe import Recipe

AGAINST: dict[str, tuple[str, ...]] = {
    method: ("rmse_inf_change", "crps_change") for method in ("no_network", "latent_gaussian", "gaussian")
}
AMOUNTS = tuple(
    f"{score}_change"
    for score in ("crps_log1p", "brier1", "brier5", "crps_3x3", "crps_9x9", "crps_tropics", "variogram")
)
AGAINST_OF_AMOUNTS = dict.fromkeys(("no_network", "clipped", "censored_gaussian"), AMOUNTS)
_VERSUS = "analysis vs "


def comparisons(recipe: Recipe, scores: Scores) -> list[Row]:
    """Rows of metrics.csv on the analysis against other methods, for each set and analysed variable.

    Their method is "analysis vs OTHER", their metric "rmse_inf_change" or "crps_change", of amounts such as rain also
    "crps_log1p_change", "brier1_change" and others: the score of the analysis over that of the other method, minus 1.
    A row is left out where one of the scores does not exist, as that of a single member, or the other method has no
    values at some of the cells.

    Args:
        recipe: Recipe of the run.
        scores: Scores of its test.
    """
    rows: list[Row] = []
    sets = recipe.experiment.sets
    tails = ["" if label == list(sets)[-1] else f":{label}" for label in sets]
    for tail, (variable, other, change) in itertools.product(tails, _pairs(recipe)):
        names = f"analysis{tail}", f"{other}{tail}"
        try:
            found = scores.paired_change(*names, CHANGES[change], variable=variable)
        except (InvalidValueError, KeyError):  # not run, other cells, or a score of grids at stations
            continue
        if not math.isnan(found.value):
            place = (f"{_VERSUS}{other}{tail}", variable, "all", "all", change)
            numbers = found.value, found.lower, found.upper, found.n
            rows.append(dict(zip(COLUMNS, (*place, *numbers), strict=True)))
    return rows


def _pairs(recipe: Recipe) -> list[tuple[str, str, str]]:
    """Variables, methods that the analysis is compared with, and metrics of the changes."""
    against: dict[str, dict[str, tuple[str, ...]]] = {name: dict(AGAINST) for name in recipe.states}
    for name in recipe.amounts.variables:
        own = against.setdefault(name, {})
        for other, changes in AGAINST_OF_AMOUNTS.items():
            own[other] = own.get(other, ()) + changes
    return [
        (name, other, change)
        for name, others in against.items()
        for other, changes in others.items()
        for change in changes
    ]


def comparison_table(rows: Sequence[Mapping[str, Any]], variable: str, main: str) -> list[dict[str, str]]:
    """The comparisons of a variable: a line for each other method and score, a column of changes [%] for each set.

    Args:
        rows: Rows of metrics.csv.
        variable: Name of the variable.
        main: Label of the main set.
    """
    lines: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row["metric"] in CHANGES and row["variable"] == variable:
            other, _, label = str(row["method"]).removeprefix(_VERSUS).partition(":")
            score = CHANGES[row["metric"]]
            line = lines.setdefault((other, score), {"compared with": other, "change of": score})
            low, high = (100 * float(row[bound]) for bound in ("lower", "upper"))
            known = f" ({low:+.1f}, {high:+.1f})" if not math.isnan(low + high) else ""
            line[label or main] = f"{100 * row['value']:+.1f}{known}"
    return list(lines.values())
