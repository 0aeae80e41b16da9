"""`slams frontier`: accuracy against cost over many set-ups, from the metrics files of `slams bench`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from slams import config
from slams.core.console import Console
from slams.core.settings import known_keys, unknown
from slams.twin.benchmark import Line, compare
from slams.twin.frontier.advice import advise, overall
from slams.twin.frontier.cases import read_cases
from slams.twin.frontier.page import write_page
from slams.twin.methods import METHODS, entry, starting
from slams.twin.runner import Runner
from slams.twin.setup import Setup, setup
from slams.twin.tune import Trials, proposal, score

PLANS = Path(__file__).parent / "plans"

_TUNING = {"replicates": 4, "cycles": 100, "burn_in": 50, "trials": 0}
_CASE = ("name", "setup", "methods")


@dataclass(frozen=True)
class Contender:
    """A method of a plan.

    Attributes:
        method: Its class.
        sizes: Members; the method's own number if none is said.
        settings: Over those it starts from.
        trials: To tune it at each size; the plan's if None.
        label: Of its rows, before the size; its class if empty.
    """

    method: str
    sizes: Sequence[int] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    label: str = ""


@dataclass(frozen=True)
class Plan:
    """Set-ups, and the methods to be run on each.

    Attributes:
        name: Of its file.
        title: Of the page.
        test: Of all set-ups: replicates, cycles, burn_in.
        tuning: The same of the tuning truths, and `trials` of each method and size.
        cases: By name the set-up and its methods.
    """

    name: str
    title: str
    test: Mapping[str, int]
    tuning: Mapping[str, int]
    cases: Mapping[str, tuple[Mapping[str, Any], Sequence[Contender]]]


def frontier(
    folders: Sequence[str | Path] = (),
    *,
    run: str | None = None,
    out: str | Path | None = None,
    replicates: int | None = None,
    cycles: int | None = None,
    console: Console | None = None,
) -> Path:
    """Draw the frontier of accuracy against cost, and say which method to use when.

    Args:
        folders: Results of `slams bench`, or folders above such.
        run: A plan to run first: "quick", "full" or a YAML file; its results join those of `folders`.
        out: Folder of the page; logs/frontier if None, logs/frontier_PLAN with a plan. The same call goes on where it
            stopped.
        replicates: Truths of each set-up of the plan.
        cycles: Scored analyses of each.
        console: Where progress is shown.

    Returns:
        The page: report.html, beside frontier.csv and figures/.

    Raises:
        FileNotFoundError: If there is no such folder or plan, or no metrics.csv below a folder.
        ValueError: If a folder holds something else, a plan cannot be, or there is nothing to do.
    """
    console = console or Console()
    if not folders and not run:
        raise ValueError("nothing to compare; name folders of slams bench, or run a plan with --run quick.")
    if not run and (replicates or cycles):
        raise ValueError("--replicates and --cycles belong to a plan; add --run quick, or leave them out.")
    plan = read_plan(run) if run else None
    name = f"frontier_{plan.name}" if plan else "frontier"
    folder = Path(out) if out else config.LOG_DIR / name
    found: list[str | Path] = list(folders)
    if plan:
        sizes = {"replicates": replicates, "cycles": cycles}
        found += run_plan(plan, folder, console, {k: v for k, v in sizes.items() if v is not None})
    cases, passed = read_cases(found)
    for line in passed:
        console.say(f"passed over: {line}")
    with console.bar("figures and page", 1) as advance:
        page = write_page(folder, cases, title=plan.title if plan else "Accuracy against cost", passed=passed)
        advance(1, "")
    for case in cases:
        console.say(f"{case.title}: {advise(case).sentences[0]}")
    for sentence in overall(cases):
        console.say(sentence)
    console.say(f"page: {page.resolve()}")
    return page


def read_plan(name: str | Path) -> Plan:
    """A plan that is shipped, or one from a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a key, method or group is unknown (the nearest is named), or a set-up cannot be.
    """
    shipped = {path.stem: path for path in sorted(PLANS.glob("*.yaml"))}
    path = shipped.get(str(name), Path(name))
    if not path.exists():
        raise FileNotFoundError(
            f"no plan at {name}; {unknown('plan', str(name), shipped)} Or name a YAML file."
        )
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(tree, dict) or not isinstance(tree.get("cases"), list) or not tree["cases"]:
        raise ValueError(
            f"{path} is no plan: expected the keys title, test, tuning, groups and a list of cases."
        )
    known_keys(tree, ("title", "test", "tuning", "groups", "cases"), path.name)
    known_keys(tree.get("groups", {}), tuple(tree.get("groups") or ()), f"{path.name}, groups")
    known_keys(tree.get("tuning", {}), tuple(_TUNING), f"{path.name}, tuning")
    known_keys(tree.get("test", {}), ("replicates", "cycles", "burn_in"), f"{path.name}, test")
    groups = {name: _contenders(given, {}, path.name) for name, given in tree.get("groups", {}).items()}
    cases = {}
    for case in tree["cases"]:
        known_keys(case, _CASE, f"a case of {path.name}")
        lacking = [key for key in _CASE if key not in case]
        if lacking or case["name"] in cases:
            wrong = f"lacks {', '.join(lacking)}" if lacking else f"is the second of the name {case['name']}"
            raise ValueError(f"a case of {path.name} {wrong}.")
        setup(case["setup"])
        cases[case["name"]] = (case["setup"], _contenders(case["methods"], groups, path.name))
    title = tree.get("title", "Accuracy against cost")
    return Plan(path.stem, title, tree.get("test", {}), {**_TUNING, **tree.get("tuning", {})}, cases)


def run_plan(plan: Plan, folder: Path, console: Console, sizes: Mapping[str, int]) -> list[Path]:
    """Tune and run every method on every set-up of a plan, or what is left of it.

    Args:
        plan: What to run.
        folder: Gets cases/NAME as of `slams bench`, and tuned/NAME.trials.json.
        console: Where progress is shown.
        sizes: Instead of the plan's replicates and cycles.

    Returns:
        Folders of the set-ups.
    """
    made = [
        setup({**plan.test, **tree, **sizes}) for tree, _ in plan.cases.values()
    ]  # before the first begins
    folders: list[Path] = []
    for test, (name, (tree, contenders)) in zip(made, plan.cases.items(), strict=True):
        console.say(f"{name}, {len(folders) + 1} of {len(plan.cases)} set-ups")
        lines: list[Line] = [
            (n, {"size": e.size}, "default", n) for n, e in METHODS.items() if e.kind == "trivial"
        ]
        tuning = {k: v for k, v in plan.tuning.items() if k != "trials"}
        other = setup({**tree, **tuning, "seed": 0})
        lines += _lines(test, other, contenders, plan.tuning["trials"], folder / "tuned" / name, console)
        compare(test, lines, folder / "cases" / name, console)
        folders.append(folder / "cases" / name)
    return folders


def _lines(
    test: Setup, other: Setup, contenders: Sequence[Contender], trials: int, path: Path, console: Console
) -> list[Line]:
    """Runs of one set-up, settings chosen on other truths where trials are left for it."""
    log, runner = Trials(path.with_suffix(".trials.json"), other), Runner(other, detail=False)
    usual = setup({"system": test.system}).plain()
    same = all(test.plain()[key] == usual[key] for key in ("truth", "model", "observe"))
    lines: list[Line] = []
    for each in contenders:
        origin, begin = starting(each.method, test.system)
        for size in each.sizes or (begin["size"],):
            values = {**begin, **each.settings, "size": size}
            label = each.label or each.method
            label += f" N={size}" if each.sizes else ""
            most = trials if each.trials is None else each.trials
            if most and entry(each.method).space:
                values, told = _tuned(runner, log, each.method, label, values, most, console), "tuned"
            else:
                told = "published" if origin == "published" and same and values == begin else "starting"
            lines.append((each.method, values, told, label))
    return lines


def _tuned(  # noqa: PLR0913
    runner: Runner,
    log: Trials,
    method: str,
    label: str,
    settings: Mapping[str, Any],
    trials: int,
    console: Console,
) -> dict[str, Any]:
    """The best settings of some trials, the first of which are those it starts from."""
    with console.bar(f"tuning {label}", trials) as advance:
        advance(min(len(log.of(label)), trials), "")
        while len(log.of(label)) < trials:
            values = proposal(method, settings, log.of(label), trials)
            log.add(label, {"settings": values, "score": score(runner, method, values)})
            advance(1, "")
    best = min(log.of(label)[:trials], key=lambda trial: float(trial["score"]))
    return dict(best["settings"])


def _contenders(given: Any, groups: Mapping[str, Sequence[Contender]], where: str) -> list[Contender]:
    """Methods from a list of names of groups and of settings, or from the name of a group."""
    out: list[Contender] = []
    if not isinstance(given, str | list):
        raise ValueError(f"{where}: methods are a list or the name of a group, got {given!r}.")
    for item in [given] if isinstance(given, str) else given:
        if isinstance(item, str):
            if item not in groups:
                raise ValueError(f"{where}: {unknown('group', item, groups)}")
            out += groups[item]
            continue
        known_keys(item, tuple(Contender.__dataclass_fields__), f"a method of {where}")
        if "method" not in item or not isinstance(item.get("sizes", []), list):
            raise ValueError(f"{where}: a method needs the key method, and sizes as a list, got {item}.")
        out.append(Contender(**item))
        entry(out[-1].method)
    return out
