"""What a study of surface quasi-geostrophic turbulence does: archive, experiments, runs and bars."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slams.core.settings import known_keys, override, unknown
from slams.papers.bao2024_sqg.methods import FILTERS, TRIVIAL
from slams.papers.bao2024_sqg.problem import Archive, Sensors, Shocks

Tree = dict[str, Any]

SCORED = tuple(
    f"{metric}{lid}"
    for metric in ("rmse", "spread", "spread_skill", "crps", "coverage90")
    for lid in ("", "_lower", "_upper")
)


@dataclass(frozen=True)
class Bar:
    """What a number must be, the mean over truths.

    Attributes:
        experiment: Of which.
        run: Of which.
        against: Another run: the number is then the difference from it, truth by truth.
        metric: A score, over both lids or of one.
        low: Least value.
        high: Largest value.
    """

    experiment: str
    run: str
    against: str = ""
    metric: str = "rmse"
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True)
class Experiment:
    """What is seen, and what is run on it.

    Attributes:
        sensors: What is seen.
        runs: By name "method" and its settings.
        published: What the paper found, in words.
        near: Standard deviation of white noise that makes the first ensemble from the truth [K]; 0 for states of the
            climate.
    """

    sensors: Sensors
    runs: Mapping[str, Tree]
    published: str = ""
    near: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.near < math.inf:
            raise ValueError(
                f"near is a standard deviation [K], or 0 for states of the climate, got {self.near}."
            )


@dataclass(frozen=True)
class Plan:
    """A study.

    Attributes:
        title: What it is.
        source: Where it is from.
        archive: States that are simulated.
        experiments: By name.
        bars: Judged where their runs were made.
        only: Experiments to be made; all if empty.
        seed: Of the first truth.
        truths: How many.
        members: J.
        burn_in: Analyses before those that are scored.
        cycles: Analyses that are scored.
        grid: "quick", or a name in the plan's `grids`, whose settings then replace those of the plan.
    """

    title: str
    source: str
    archive: Archive
    experiments: Mapping[str, Experiment]
    bars: Sequence[Bar] = ()
    only: Sequence[str] = ()
    seed: int = 1000
    truths: int = 4
    members: int = 20
    burn_in: int = 20
    cycles: int = 100
    grid: str = "quick"
    grids: Mapping[str, Tree] = field(default_factory=dict)

    @property
    def chosen(self) -> list[str]:
        """Experiments to be made."""
        return [name for name in self.experiments if not self.only or name in self.only]

    @property
    def seeds(self) -> list[int]:
        """Of the truths."""
        return list(range(self.seed, self.seed + self.truths))


def read_plan(path: Path, overrides: Sequence[str] = ()) -> Plan:
    """A plan from its file.

    Raises:
        ValueError: If a key or a name is unknown (the nearest is named), or a number cannot be.
    """
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    asked = override(copy.deepcopy(tree), overrides)
    grid, grids = asked.get("grid", "quick"), asked.get("grids", {})
    if grid not in ("quick", *grids):
        raise ValueError(f"{path.name}: {unknown('grid', str(grid), ('quick', *grids))}")
    for key, value in grids.get(grid, {}).items():
        override(tree, [f"{key}={value}"])
    tree = override(tree, overrides)
    known_keys(tree, Plan.__dataclass_fields__, path.name)
    try:
        tree["archive"] = _made(Archive, tree.get("archive", {}), "archive")
        tree["bars"] = [_made(Bar, bar, "a bar") for bar in tree.get("bars", [])]
        tree["experiments"] = {name: _experiment(name, part) for name, part in tree["experiments"].items()}
        tree["only"] = [tree["only"]] if isinstance(tree.get("only"), str) else tree.get("only", [])
        plan = Plan(**tree)
        _check_numbers(plan)
    except (TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} has a setting of the wrong kind, or lacks one: {error}.") from error
    return plan


def plain(plan: Plan, name: str) -> Tree:
    """An experiment as plain values: whatever its truths and observations depend on."""
    sensors = plan.experiments[name].sensors
    shocks = {
        key: value if isinstance(value, float) else list(value) for key, value in vars(sensors.shocks).items()
    }
    seen = {key: getattr(sensors, key) for key in ("operator", "std", "seen")}
    numbers = {key: getattr(plan, key) for key in ("seed", "members", "burn_in", "cycles")}
    return {
        "system": "surface_qg",
        "experiment": name,
        **numbers,
        "replicates": plan.truths,
        "near": plan.experiments[name].near,
        "observe": {**seen, "shocks": shocks},
        "archive": dict(vars(plan.archive)),
    }


def _experiment(name: str, tree: Any) -> Experiment:
    """An experiment from its part of the file."""
    where = f"experiments.{name}"
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} holds keys and values, got {tree!r}.")
    names = ("operator", "std", "seen", "shocks", "runs", "published", "near")
    for key in tree:
        if key not in names:
            raise ValueError(unknown("key", f"{where}.{key}", [f"{where}.{each}" for each in names]))
    shocks = _made(Shocks, tree.get("shocks", {}), f"{where}.shocks")
    seen = {key: tree[key] for key in ("operator", "std", "seen") if key in tree}
    runs: dict[str, Tree] = {}
    for label, given in tree.get("runs", {}).items():
        runs[label] = {"method": label, **(given or {})}
        if runs[label]["method"] not in (*TRIVIAL, *FILTERS):
            raise ValueError(
                f"{where}.runs: {unknown('method', runs[label]['method'], (*TRIVIAL, *FILTERS))}"
            )
    return Experiment(Sensors(**seen, shocks=shocks), runs, tree.get("published", ""), tree.get("near", 0.0))


def _made(kind: Any, tree: Any, where: str) -> Any:
    """A dataclass from its part of the file, keys checked."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{where} holds keys and values, got {tree!r}.")
    known_keys(tree, kind.__dataclass_fields__, where)
    return kind(**tree)


def _check_numbers(plan: Plan) -> None:
    for name, least in (("truths", 1), ("members", 2), ("burn_in", 0), ("cycles", 1), ("seed", 0)):
        if getattr(plan, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(plan, name)}.")
    if plan.burn_in + plan.cycles > plan.archive.length:
        raise ValueError(
            f"truths of {plan.archive.length} states are too short for {plan.burn_in} + {plan.cycles} analyses; set "
            "archive.length, burn_in or cycles."
        )
    for name in plan.only:
        if name not in plan.experiments:
            raise ValueError(unknown("experiment", name, plan.experiments))
    for bar in plan.bars:
        if bar.experiment not in plan.experiments:
            raise ValueError(unknown("experiment", bar.experiment, plan.experiments))
        if bar.metric not in SCORED:
            raise ValueError(unknown("metric", bar.metric, SCORED))
        for run in filter(None, (bar.run, bar.against)):
            if run not in plan.experiments[bar.experiment].runs:
                raise ValueError(unknown("run", run, plan.experiments[bar.experiment].runs))
