"""`slams tune`: settings from the same number of trials for every method, on truths outside the tests."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import torch
import yaml

from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.core.files import write_text
from slams.core.settings import plain
from slams.evaluation.report import Fact, Section, Table, write_report
from slams.evaluation.tables import PrintedTable, console_table, text
from slams.evaluation.tuning import Space, TrialLog, best, search
from slams.systems.base import Dynamics
from slams.twin.benchmark import TunedMethod, TunedSettings
from slams.twin.methods import Settings, starting
from slams.twin.own import Methods, TwinOptions, methods_of, setup_of
from slams.twin.runner import Runner
from slams.twin.setup import TUNING_SEEDS


@dataclass(frozen=True)
class TuneTable(PrintedTable):
    """Settings that `tune` chose.

    Attributes:
        found: Settings and their scores by method, as in the file.
    """

    found: TunedSettings

    @property
    def title(self) -> str:  # type: ignore[override]
        """System and budget."""
        return f"{self.found.system}: {self.found.budget} trials a method"

    @property
    def rows(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """A row for each method: its score, that of the settings at the start, and the settings."""
        return [
            {"method": name, "score": each.score, "at first": each.first, **each.settings}
            for name, each in self.found.methods.items()
        ]

    @property
    def settings(self) -> dict[str, Settings]:
        """Settings by method, as `bench` takes them."""
        return self.found.by_method()

    def write(self, path: str | Path) -> None:
        """Write the YAML file that `slams bench --settings` reads."""
        tree = plain(self.found)
        ordered = {key: tree[key] for key in ("system", "budget", "setup", "methods")}
        write_text(path, yaml.safe_dump(ordered, sort_keys=False))

    def report(self, folder: str | Path) -> Path:
        """Write settings.yaml and report.html.

        Args:
            folder: Folder of the files.

        Returns:
            Path of report.html.
        """
        self.write(Path(folder) / "settings.yaml")
        page = Path(folder) / "report.html"
        facts = [Fact("system", self.found.system), Fact("trials a method", str(self.found.budget))]
        write_report(
            page, self.title, facts, [Section("Settings", [Table(self.rows, "Scores on tuning truths")])]
        )
        return page


def tune(
    system: str | Dynamics,
    methods: Methods,
    out: str | Path | None = None,
    *,
    budget: int = 64,
    spaces: Mapping[str, Space] | None = None,
    progress: bool = False,
    console: Console | None = None,
    **experiment: Unpack[TwinOptions],
) -> TuneTable:
    """Choose settings by the mean error over tuning truths.

    The first trial of a method is its published or default settings, so that the result is never worse on the
    tuning truths. Half of the others are spread evenly over the space of settings, then the best is refined.

    Args:
        system: System, as in `bench`.
        methods: Methods, as in `bench`.
        out: YAML file of the settings; trials are kept in a file beside it, with which the same call resumes. Nothing
            is written if None.
        budget: Trials of each method.
        spaces: Ranges of settings by method, in place of those of the table; methods of the user's have no others.
        progress: Whether to show progress and the table on the terminal.
        console: Console for both, in place of the terminal.
        **experiment: Options as in `bench`; by default 4 truths of 500 scored analyses from seed 0.

    Returns:
        The settings.

    Raises:
        ValueError: If a name is unknown, the truths are test truths, or the trials are of another set-up.
    """
    console = console or Console(quiet=not progress)
    if budget < 1:
        raise InvalidValueError(f"the budget must be at least 1 trial a method, got {budget}.")
    names, own = methods_of(methods)
    if not names:
        raise InvalidValueError("no method to tune; name some, such as --methods EnKF,LETKF.")
    usual: TwinOptions = {"replicates": 4, "cycles": 500, "seed": 0}
    made = setup_of(system, {**usual, **experiment})
    if made.seeds[-1] not in TUNING_SEEDS:
        raise InvalidValueError(
            f"seeds {made.seeds[0]}..{made.seeds[-1]} are not all below {len(TUNING_SEEDS)}: later ones are for "
            "tests, which must be independent of the tuning."
        )
    runner = Runner(made, detail=False, own=own)
    searched = {name: (spaces or {}).get(name, runner.entry(name).space) for name in dict.fromkeys(names)}
    log = TrialLog(Path(out).with_suffix(".trials.json") if out else None, made.plain())
    found = {name: _tune(name, runner, space, budget, log, console) for name, space in searched.items()}
    table = TuneTable(TunedSettings(made.system, found, budget, made.plain()))
    console.rich.print(console_table(table.rows, title=table.title))
    if out:
        table.write(out)
        console.say(f"settings: {Path(out).resolve()}")
    return table


def score(runner: Runner, name: str, settings: Mapping[str, Any]) -> float:
    """Mean error over the truths; the error on a truth from which the method diverged counts twice.

    Args:
        runner: Runner of the tuning truths.
        name: Name of the method.
        settings: Settings on trial.
    """
    result = runner.run(name, settings)
    error, diverged = result.scores["rmse_time_mean"], result.scores["divergence_rate"] > 0
    worst = float(10 * runner.climate.covariance.diagonal().mean().sqrt())
    error = torch.where(torch.isfinite(error), error, math.inf).clamp(max=worst)
    return float(torch.where(diverged, 2 * error, error).mean())


def _tune(
    name: str, runner: Runner, space: Space, budget: int, log: TrialLog, console: Console
) -> TunedMethod:
    """The best of the trials of one method."""
    begin = {"members": 40} if name in runner.own else starting(name, runner.setup.system)[1]
    trials = search_with_bar(runner, name, name, space, begin, budget, log, console)
    chosen = best(trials)
    return TunedMethod(chosen["settings"], chosen["score"], trials[0]["score"], len(trials))


def search_with_bar(
    runner: Runner,
    name: str,
    label: str,
    space: Space,
    begin: Mapping[str, Any],
    budget: int,
    log: TrialLog,
    console: Console,
) -> list[dict[str, Any]]:
    """Spend the trials of one method behind a progress bar, and return them."""
    with console.bar(f"tuning {label}", budget if space else 1) as advance:
        return search(
            log,
            label,
            space,
            begin,
            lambda settings: score(runner, name, settings),
            budget,
            usual=runner.entry(name).settings,
            advance=lambda units, least: advance(units, f"best {text(least)}"),
        )
