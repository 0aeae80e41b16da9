"""Choice of settings by trials: search space, proposals, and the trials on disk."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from scipy.stats import qmc

from slams.core.files import write_text
from slams.core.renamed import renamed
from slams.core.settings import plain
from slams.core.stages import same

Trial = dict[str, Any]

_EXPLORED = 0.5  # fraction of the budget for global search; the rest is for local search around the best


@dataclass(frozen=True)
class Range:
    """Range of a setting; "log" for factors, "integer" for counts."""

    low: float
    high: float
    scale: Literal["linear", "log", "integer"] = "linear"

    def at(self, share: float) -> float:
        """The value at a share in [0, 1] of the range."""
        if self.scale == "log":
            return math.exp(math.log(self.low) + share * math.log(self.high / self.low))
        value = self.low + share * (self.high - self.low)
        return round(value) if self.scale == "integer" else value

    def share(self, value: float) -> float:
        """Inverse of `at`, kept in [0, 1]."""
        if self.scale == "log":
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(max(share, 0.0), 1.0)


Space = Mapping[str, Range]


class TrialLog:
    """All trials by name, on disk if a file is given.

    Args:
        path: JSON file of the trials; None keeps them in memory.
        setup: Plain values that the scores depend on.

    Raises:
        ValueError: If the file is of another set-up (the differences are named).
    """

    def __init__(self, path: Path | None, setup: Mapping[str, Any]) -> None:
        self.path = path
        self.tree: dict[str, Any] = {"setup": json.loads(json.dumps(plain(setup))), "trials": {}}
        if path is not None and path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            same(path, before["setup"], self.tree["setup"])
            self.tree = before
            for trial in (trial for trials in before["trials"].values() for trial in trials):
                trial["settings"] = renamed("method setting", trial["settings"], warn=False)

    def of(self, name: str) -> list[Trial]:
        """Trials of a name, in order: "settings" and "score"."""
        trials: list[Trial] = self.tree["trials"].setdefault(name, [])
        return trials

    def add(self, name: str, trial: Trial) -> None:
        """Append a trial."""
        self.of(name).append(trial)
        if self.path is not None:
            write_text(self.path, json.dumps(self.tree, indent=1))


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the smallest score, the first of equals."""
    return min(trials, key=lambda trial: float(trial["score"]))


def search(
    log: TrialLog,
    name: str,
    space: Space,
    start: Mapping[str, Any],
    score: Callable[[Mapping[str, Any]], float],
    budget: int,
    *,
    usual: Mapping[str, Any] | None = None,
    advance: Callable[[int, float], None] = lambda units, best: None,
) -> list[Trial]:
    """Spend a budget of trials, those of the log included, and return them.

    Args:
        log: Log of the trials.
        name: Name of the trials in the log.
        space: Ranges of the searched settings; a single trial if empty.
        start: Settings of the first trial.
        score: Score of settings; the smallest is the best.
        budget: Number of trials.
        usual: Centre of the search for settings missing in the best trial.
        advance: Callback with the number of new trials and the best score.

    Returns:
        At most `budget` trials, in order.
    """
    count = budget if space else 1
    if log.of(name):
        advance(min(len(log.of(name)), count), float(best(log.of(name)[:count])["score"]))
    while len(log.of(name)) < count:
        values = proposal(space, start, log.of(name), budget, usual=usual)
        log.add(name, {"settings": values, "score": score(values)})
        advance(1, float(best(log.of(name))["score"]))
    return log.of(name)[:count]


def proposal(
    space: Space,
    start: Mapping[str, Any],
    trials: Sequence[Trial],
    budget: int,
    *,
    usual: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings of the next trial, a function of the earlier trials alone.

    The first trial is the start. Half of the budget is spread evenly over the space (a Halton sequence); the rest
    are normal draws around the best trial, whose width falls from a quarter to a fortieth of the space.

    Args:
        space: Ranges of the searched settings.
        start: Settings of the first trial, with those that are not searched.
        trials: Earlier trials.
        budget: Number of all trials.
        usual: Centre of the search for settings missing in the best trial; the middle if None.

    Returns:
        Settings of the next trial.
    """
    count = len(trials)
    if count == 0 or not space:
        return dict(start)
    explored = max(1, round(budget * _EXPLORED))
    if count <= explored:
        point = qmc.Halton(len(space), scramble=False).random(count + 1)[count]
    else:
        known = {**(usual or {}), **best(trials)["settings"]}
        centre = [limits.share(float(known.get(key, limits.at(0.5)))) for key, limits in space.items()]
        width = 0.25 * 0.1 ** ((count - explored) / max(budget - explored, 1))
        rng = torch.Generator().manual_seed(count)
        draw = torch.randn(len(space), generator=rng, dtype=torch.float64)
        point = [min(max(c + width * float(d), 0.0), 1.0) for c, d in zip(centre, draw, strict=True)]
    values = {key: limits.at(float(p)) for (key, limits), p in zip(space.items(), point, strict=True)}
    return {**start, **{key: round(v, 5) for key, v in values.items()}}
