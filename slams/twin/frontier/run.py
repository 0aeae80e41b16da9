"""`slams frontier`: accuracy against cost over many set-ups, from the metrics files of `slams bench`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slams import config
from slams.core.console import Console
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.renamed import renamed
from slams.core.settings import build, read_tree, sized, unknown
from slams.evaluation.tuning import TrialLog, best
from slams.twin.benchmark import PlannedRun, compare
from slams.twin.frontier.advice import advise, overall
from slams.twin.frontier.cases import read_cases
from slams.twin.frontier.page import write_page
from slams.twin.methods import METHODS, entry, starting
from slams.twin.runner import Runner
from slams.twin.setup import Setup, setup
from slams.twin.tuning import search_with_bar

PLAN = Path(__file__).parent / "plan.yaml"
SIZES = ("quick", "full")


@dataclass(frozen=True)
class Candidate:
    """A method of a plan.

    Attributes:
        method: Name of its class.
        members: Ensemble sizes; the method's own if empty.
        settings: Settings in place of the initial ones.
        trials: Tuning trials at each ensemble size; the plan's if None.
        label: Name of its rows, before the ensemble size; its class if empty.
    """

    method: str
    members: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    label: str = ""

    def __post_init__(self) -> None:
        entry(self.method)
        object.__setattr__(self, "settings", renamed("method setting", self.settings))


@dataclass(frozen=True)
class PlannedCase:
    """A set-up and its methods.

    Attributes:
        name: Name of its folder.
        setup: Settings of the set-up.
        methods: The methods.
    """

    name: str
    setup: Mapping[str, Any]
    methods: tuple[Candidate, ...]


@dataclass(frozen=True)
class BenchLength:
    """Length of the test runs of all set-ups; None for that of the set-up."""

    replicates: int | None = None
    cycles: int | None = None
    burn_in: int | None = None

    def given(self) -> dict[str, int]:
        """Values that are not None, by name."""
        return {key: value for key, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class TuningLength:
    """Length of the tuning runs, and `trials` of each method and ensemble size."""

    replicates: int = 4
    cycles: int = 100
    burn_in: int = 50
    trials: int = 0


@dataclass(frozen=True)
class FrontierPlan:
    """Set-ups and the methods to run on each.

    Attributes:
        cases: The set-ups and their methods.
        name: Stem of its file, or its size.
        title: Title of the page.
        test: Length of the test runs.
        tuning: Length of the tuning runs.
        size: Size of the plan.
    """

    cases: tuple[PlannedCase, ...]
    name: str = ""
    title: str = "Accuracy against cost"
    test: BenchLength = BenchLength()
    tuning: TuningLength = TuningLength()
    size: str = "quick"


def frontier(
    folders: Sequence[str | Path] = (),
    *,
    run: str | None = None,
    out: str | Path | None = None,
    replicates: int | None = None,
    cycles: int | None = None,
    console: Console | None = None,
) -> Path:
    """Draw the frontier of accuracy against cost, with advice on the choice of a method.

    Args:
        folders: Results of `slams bench`, or folders above such.
        run: A plan to run first: "quick", "full" or a YAML file; its results join those of `folders`.
        out: Folder of the page; logs/frontier if None, logs/frontier_PLAN with a plan. The same call resumes where it
            stopped.
        replicates: Truths of each set-up of the plan.
        cycles: Scored analyses of each truth.
        console: Console for the progress.

    Returns:
        Path of report.html, beside frontier.csv and figures/.

    Raises:
        FileNotFoundError: If a folder or plan is missing, or a folder has no metrics.csv.
        ValueError: If a folder or plan is invalid, or none is given.
    """
    console = console or Console()
    if not folders and not run:
        raise InvalidValueError(
            "nothing to compare; name folders of slams bench, or run a plan with --run quick."
        )
    if not run and (replicates or cycles):
        raise InvalidValueError(
            "--replicates and --cycles belong to a plan; add --run quick, or leave them out."
        )
    plan = read_plan(run) if run else None
    name = f"frontier_{plan.name}" if plan else "frontier"
    folder = Path(out) if out else config.LOG_DIR / name
    found: list[str | Path] = list(folders)
    if plan:
        found += run_plan(plan, folder, console, BenchLength(replicates, cycles).given())
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


def read_plan(name: str | Path) -> FrontierPlan:
    """The shipped plan at a size, or a plan from a file.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If a key, method or group is unknown (the nearest is named), or a set-up is invalid.
    """
    shipped = str(name) in SIZES
    path = PLAN if shipped else Path(name)
    if not path.exists():
        raise MissingFileError(f"no plan at {name}; {unknown('plan', str(name), SIZES)} Or name a YAML file.")
    tree = sized(read_tree(path, "plan"), [f"size={name}"] if shipped else [])
    if not isinstance(tree.get("cases"), list) or not tree["cases"]:
        raise InvalidValueError(
            f"{path} is no plan: expected the keys title, test, tuning, groups and a list of cases."
        )
    groups: dict[str, list[Any]] = {}
    for group, given in (tree.pop("groups", None) or {}).items():
        groups[group] = _expanded(given, {}, path.name)
    tree["cases"] = [
        {**case, "methods": _expanded(case.get("methods", []), groups, path.name)}
        if isinstance(case, dict)
        else case
        for case in tree["cases"]
    ]
    plan: FrontierPlan = build(FrontierPlan, {**tree, "name": str(name) if shipped else path.stem})
    names = [case.name for case in plan.cases]
    for case in plan.cases:
        if names.count(case.name) > 1:
            raise InvalidValueError(f"{path.name} has two cases of the name {case.name}; rename one.")
        setup(case.setup)
    return plan


def run_plan(plan: FrontierPlan, folder: Path, console: Console, lengths: Mapping[str, int]) -> list[Path]:
    """Tune and run every method on every set-up of a plan, or resume such a run.

    Args:
        plan: The plan.
        folder: Folder of cases/NAME, as of `slams bench`, and of tuned/NAME.trials.json.
        console: Console for the progress.
        lengths: Numbers of replicates and cycles in place of the plan's.

    Returns:
        Folders of the set-ups.
    """
    # all are validated before the first begins
    made = [setup({**plan.test.given(), **case.setup, **lengths}) for case in plan.cases]
    tuning = {key: value for key, value in vars(plan.tuning).items() if key != "trials"}
    trivial = [
        PlannedRun(name, {"members": each.members}, "default", name)
        for name, each in METHODS.items()
        if each.kind == "trivial"
    ]
    folders: list[Path] = []
    for test, case in zip(made, plan.cases, strict=True):
        console.say(f"{case.name}, {len(folders) + 1} of {len(plan.cases)} set-ups")
        other = setup({**case.setup, **tuning, "seed": 0})
        path = folder / "tuned" / f"{case.name}.trials.json"
        runs = _planned(test, other, case.methods, plan.tuning.trials, path, console)
        compare(test, [*trivial, *runs], folder / "cases" / case.name, console)
        folders.append(folder / "cases" / case.name)
    return folders


def _planned(
    test: Setup, other: Setup, methods: Sequence[Candidate], trials: int, path: Path, console: Console
) -> list[PlannedRun]:
    """Runs of one set-up, settings chosen on other truths where there are trials."""
    log, runner = TrialLog(path, other.plain()), Runner(other, detail=False)
    usual = test.shares_task(setup({"system": test.system}).plain())
    runs: list[PlannedRun] = []
    for each in methods:
        origin, begin = starting(each.method, test.system)
        for members in each.members or (begin["members"],):
            values = {**begin, **each.settings, "members": members}
            label = each.label or each.method
            label += f" N={members}" if each.members else ""
            most = trials if each.trials is None else each.trials
            space = entry(each.method).space
            if most and space:
                done = search_with_bar(runner, each.method, label, space, values, most, log, console)
                runs.append(PlannedRun(each.method, dict(best(done)["settings"]), "tuned", label))
                continue
            where = "published" if origin == "published" and usual and values == begin else "starting"
            runs.append(PlannedRun(each.method, values, where, label))
    return runs


def _expanded(given: Any, groups: Mapping[str, list[Any]], where: str) -> list[Any]:
    """Methods of a list of groups and of settings, or of the name of a group, each as its settings."""
    if not isinstance(given, str | list):
        raise InvalidValueError(f"{where}: methods are a list or the name of a group, got {given!r}.")
    out: list[Any] = []
    for item in [given] if isinstance(given, str) else given:
        if not isinstance(item, str):
            out.append(renamed("plan key", item) if isinstance(item, dict) else item)
        elif item in groups:
            out += groups[item]
        else:
            raise InvalidValueError(f"{where}: {unknown('group', item, groups)}")
    return out
