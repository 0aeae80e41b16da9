"""`slams tune`: the same number of trials for every method, on truths that no test uses."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from scipy.stats import qmc

from slams.core.console import Console
from slams.core.files import write_text
from slams.core.settings import differences
from slams.evaluation.tables import console_table, text
from slams.twin.methods import Entry, Range, entry, starting
from slams.twin.runner import Runner
from slams.twin.setup import TUNING_SEEDS, Setup, setup

_EXPLORED = 0.5  # share of the budget that looks everywhere; the rest looks around the best so far

Trial = dict[str, Any]


def tune(
    system: str,
    methods: Sequence[str],
    out: str | Path,
    *,
    budget: int = 64,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> Path:
    """Choose settings by the mean error over tuning truths.

    The first trial of a method are its published or default settings, so that what is chosen is never worse on the
    tuning truths. Half of the others are spread evenly over the space of settings, then the best is refined.

    Args:
        system: As of `slams bench`.
        methods: Which.
        out: YAML file of the settings; trials are kept in a file beside it, with which the same call goes on.
        budget: Trials of each method.
        overrides: Of the set-up; by default 4 truths of 500 scored analyses from seed 0.
        console: Where progress is shown.

    Returns:
        The file.

    Raises:
        ValueError: If a name is unknown, the truths are test truths, or the trials are of another set-up.
    """
    console = console or Console()
    if budget < 1:
        raise ValueError(f"the budget must be at least 1 trial a method, got {budget}.")
    if not methods:
        raise ValueError("there is nothing to tune; name methods, such as --methods EnKF,LETKF.")
    made = setup({"system": system, "replicates": 4, "cycles": 500, "seed": 0}, overrides)
    if made.seeds[-1] not in TUNING_SEEDS:
        raise ValueError(
            f"seeds {made.seeds[0]}..{made.seeds[-1]} are not all below {len(TUNING_SEEDS)}: later ones are for "
            "tests, which must not know what was tuned on them."
        )
    for name in methods:
        entry(name)
    out = Path(out)
    log = Trials(out.with_suffix(".trials.json"), made)
    runner = Runner(made, detail=False)
    found = {}
    for name in dict.fromkeys(methods):
        found[name] = _tune(name, runner, budget, log, console)
    tree = {"system": system, "budget": budget, "setup": made.plain(), "methods": found}
    write_text(out, yaml.safe_dump(tree, sort_keys=False))
    lines = [
        {"method": n, "score": v["score"], "at first": v["first"], **v["settings"]} for n, v in found.items()
    ]
    console.rich.print(console_table(lines, title=f"{system}: {budget} trials a method"))
    console.say(f"settings: {out.resolve()}")
    return out


class Trials:
    """Every trial so far, on disk.

    Args:
        path: The file.
        made: The set-up.

    Raises:
        ValueError: If the file is of another set-up, with what differs.
    """

    def __init__(self, path: Path, made: Setup) -> None:
        self.path = path
        self.tree: dict[str, Any] = {"setup": json.loads(json.dumps(made.plain())), "trials": {}}
        if path.exists():
            before = json.loads(path.read_text(encoding="utf-8"))
            different = differences(before["setup"], self.tree["setup"])
            if different:
                raise ValueError(
                    f"{path} holds trials of another set-up: {'; '.join(different[:6])}. Choose another --out, or "
                    "remove that file."
                )
            self.tree = before

    def of(self, name: str) -> list[Trial]:
        """Trials of a method, in order."""
        trials: list[Trial] = self.tree["trials"].setdefault(name, [])
        return trials

    def add(self, name: str, trial: Trial) -> None:
        """Note one."""
        self.of(name).append(trial)
        write_text(self.path, json.dumps(self.tree, indent=1))


def score(runner: Runner, name: str, settings: Mapping[str, Any]) -> float:
    """Mean error over the truths; the error on a truth that is lost counts twice.

    Args:
        runner: Of the tuning truths.
        name: Of the method.
        settings: On trial.
    """
    result = runner.run(name, settings)
    error, lost = result.scores["rmse_time_mean"], result.scores["divergence_rate"] > 0
    worst = float(10 * runner.climate.covariance.diagonal().mean().sqrt())
    error = torch.where(torch.isfinite(error), error, math.inf).clamp(max=worst)
    return float(torch.where(lost, 2 * error, error).mean())


def proposal(name: str, settings: Mapping[str, Any], trials: Sequence[Trial], budget: int) -> dict[str, Any]:
    """The settings to try next, a function of the trials so far alone.

    Args:
        name: Of the method.
        settings: Where it starts.
        trials: So far.
        budget: In all.

    Returns:
        Settings.
    """
    method, count = entry(name), len(trials)
    if count == 0 or not method.space:
        return dict(settings)
    names = list(method.space)
    explored = max(1, round(budget * _EXPLORED))
    if count <= explored:
        point = qmc.Halton(len(names), scramble=False).random(count + 1)[count]
    else:
        best = min(trials, key=lambda trial: float(trial["score"]))["settings"]
        centre = [method.space[key].share(float(best.get(key, _middle(method, key)))) for key in names]
        width = 0.25 * 0.1 ** ((count - explored) / max(budget - explored, 1))
        rng = torch.Generator().manual_seed(count)
        draw = torch.randn(len(names), generator=rng, dtype=torch.float64)
        point = [min(max(c + width * float(d), 0.0), 1.0) for c, d in zip(centre, draw, strict=True)]
    values = {key: method.space[key].at(float(p)) for key, p in zip(names, point, strict=True)}
    return {**settings, **{key: round(v, 5) for key, v in values.items()}}


def _tune(name: str, runner: Runner, budget: int, log: Trials, console: Console) -> dict[str, Any]:
    """The best of `budget` trials of one method."""
    _, settings = starting(name, runner.setup.system)
    most = budget if entry(name).space else 1
    with console.bar(f"tuning {name}", most) as advance:
        advance(min(len(log.of(name)), most), "")
        while len(log.of(name)) < most:
            values = proposal(name, settings, log.of(name), budget)
            log.add(name, {"settings": values, "score": score(runner, name, values)})
            advance(1, f"best {text(min(float(t['score']) for t in log.of(name)))}")
    trials = log.of(name)[:most]
    best = min(trials, key=lambda trial: float(trial["score"]))
    return {
        "settings": best["settings"],
        "score": best["score"],
        "first": trials[0]["score"],
        "trials": len(trials),
    }


def _middle(method: Entry, key: str) -> float:
    scale: Range = method.space[key]
    return float(method.settings.get(key, scale.at(0.5)))
