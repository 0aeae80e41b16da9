"""The `slams` command: argument parsing only; the work is imported when it is asked for."""

import argparse
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_CONFIGS = Path(__file__).parent.parent / "configs"

_TRUST: dict[str, Any] = {
    "action": "append",
    "default": [],
    "metavar": "PACKAGE",
    "help": "trusted package of a network of your own (. is the working folder)",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: Words after `slams`; those of the process if None.

    Returns:
        Exit code: 0, 1 after a reported error, 130 if interrupted.
    """
    parser = _parser()
    parsed, extra = parser.parse_known_args(arguments)
    takes = hasattr(parsed, "settings")
    wrong = [word for word in extra if not takes or word.startswith("-") or "=" not in word]
    if wrong:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    # argparse gives up on trailing words once an option stood between
    if takes:
        parsed.settings = [*parsed.settings, *extra]
    try:
        with _warnings_as_lines():
            return int(parsed.run(parsed))
    except Exception as error:
        if not _expected(error):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        print(f"slams: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("slams: interrupted; the same command resumes.", file=sys.stderr)
        return 130


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Warnings of the package as one line each, without the place in the source; the same text once."""
    from slams.core.errors import SlamsWarning

    with warnings.catch_warnings():
        others: Any = warnings.showwarning
        told: set[str] = set()

        def show(message: Any, category: Any, *place: Any, **more: Any) -> None:
            if not issubclass(category, SlamsWarning):
                others(message, category, *place, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(f"slams: warning: {message}", file=sys.stderr)

        warnings.showwarning = show
        warnings.simplefilter("always", SlamsWarning)
        yield


def _expected(error: Exception) -> bool:
    """Whether an error is the package's or a builtin one whose message is for the user; others are faults of ours."""
    from slams.core.errors import SlamsError

    known = (SlamsError, ValueError, FileNotFoundError, KeyError, FloatingPointError, OSError)
    return isinstance(error, known)


def train(arguments: Sequence[str] | None = None) -> int:
    """`python train_da.py …` is `slams train …`."""
    return main(["train", *(sys.argv[1:] if arguments is None else arguments)])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="slams", description="Score-based latent assimilation in multimodal settings."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("train", help="train a recipe, analyse its test period, score and report")
    add.add_argument("recipe", nargs="?", help="YAML file or the name of a shipped recipe (default: planet)")
    add.add_argument("--config_filepath", help="the same, as in the published code")
    add.add_argument(
        "settings",
        nargs="*",
        default=[],
        metavar="key=value",
        help="overrides such as prior.fit.steps=200 or out=DIR",
    )
    add.add_argument("--trust", **_TRUST)
    add.set_defaults(run=_train)
    add = commands.add_parser("assimilate", help="analyse observations with a trained run")
    add.add_argument("trained", metavar="RUN", help="folder of a trained run")
    add.add_argument("--observations", action="append", required=True, metavar="[NAME=]FILE")
    add.add_argument("--out", required=True, metavar="PATH", help="analysis to write, .nc or .zarr")
    add.add_argument("--members", type=int, help="ensemble size (default: the recipe's)")
    add.add_argument("--modalities", help="names of the modalities to use, separated by commas")
    add.add_argument("--dates", metavar="A..B", help="first and last day")
    add.add_argument("--seed", type=int, default=0)
    add.add_argument("--baselines", action="store_true", help="write the baselines' analyses too")
    add.add_argument(
        "--filter",
        action="store_true",
        help="use no observation after a day in its analysis: past and present only",
    )
    add.add_argument(
        "--overwrite", action="store_true", help="replace a file of another run or of other settings"
    )
    add.add_argument("settings", nargs="*", default=[], metavar="key=value")
    add.add_argument("--trust", **_TRUST)
    add.set_defaults(run=_assimilate)
    from slams.cli.forecast import add_forecast

    add_forecast(commands, _TRUST)
    add = commands.add_parser("evaluate", help="score an analysis against truth")
    add.add_argument("analysis", metavar="ANALYSIS")
    add.add_argument("--truth", action="append", required=True, metavar="[NAME=]FILE")
    add.add_argument("--report", required=True, metavar="DIR")
    add.set_defaults(run=_evaluate)
    add = commands.add_parser(
        "demo", help="assimilate three shipped days with a shipped model, in less than a minute"
    )
    add.add_argument("--out", metavar="DIR", help="folder of the figure (default: logs/demo)")
    add.add_argument("--members", type=int, default=16, help="ensemble size (default: 16)")
    add.add_argument("--seed", type=int, default=0)
    add.set_defaults(run=_demo)
    _add_data(commands)
    _add_twins(commands)
    return parser


def _add_data(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands on real data."""
    from slams.data.archives import SOURCES

    add = commands.add_parser("data", help="fetch and process real data, report its status, verify it")
    actions = add.add_subparsers(required=True, metavar="SOURCE|status|verify")
    for name, source in SOURCES.items():
        add = actions.add_parser(name, help=source.text, description=source.text)
        add.add_argument(
            "--years", metavar="A-B", help="years such as 2000-2015,2020 (default: those of slams/config.py)"
        )
        add.add_argument(
            "--source", metavar="URL|DIR", help="mirror or local folder (default: slams/config.py)"
        )
        add.add_argument("--out", metavar="DIR", help="folder of the store (default: slams/config.py)")
        add.add_argument(
            "--jobs", type=int, default=4, metavar="N", help="simultaneous downloads (default: 4)"
        )
        add.add_argument("--offline", action="store_true", help="use local files only, and list missing ones")
        add.add_argument(
            "--scheduler",
            metavar="ADDRESS",
            help="address of a dask.distributed scheduler for the processing",
        )
        add.add_argument(
            "--grid", default="1.5deg", help="1.5deg (ERA5's 121 x 240) or 1.5deg-published (120 x 240)"
        )
        for option, text in source.options.items():
            add.add_argument(f"--{option}", metavar="a,b", help=text)
        add.set_defaults(run=_prepare, what=name)
    for name, text in (
        ("status", "list the data: years, gaps, sizes, units, ranges, and a figure of coverage"),
        ("verify", "read everything: checksums, headers, axes, times, ranges; 1 on a fault"),
    ):
        add = actions.add_parser(name, help=text, description=text)
        add.add_argument(
            "folder", nargs="?", metavar="DIR", help="(default: the data folder of slams/config.py)"
        )
        add.add_argument("--json", action="store_true", help="print JSON")
        if name == "status":
            add.add_argument("--figure", metavar="FILE.png", help="(default: DIR/coverage.png)")
        add.set_defaults(run=_status if name == "status" else _verify)


def _add_twins(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The commands on simulated truths."""
    systems = "lorenz63, lorenz96, linear, doublewell, or one of your own as package.module:name"
    override = "overrides of the set-up such as truth.forcing=11 model.forcing=8"
    add = commands.add_parser("bench", help="compare methods on a simulated truth")
    add.add_argument("system", metavar="SYSTEM", help=systems)
    add.add_argument("--methods", help="names separated by commas (default: a usual selection)")
    add.add_argument("--replicates", type=int, help="independent truths (default: 16)")
    add.add_argument("--cycles", type=int, help="scored analyses of each (default: 2000)")
    add.add_argument("--settings", dest="tuned", metavar="FILE.yaml", help="settings written by slams tune")
    add.add_argument("--out", metavar="DIR", help="folder of the results (default: logs/bench_SYSTEM)")
    add.add_argument("settings", nargs="*", default=[], metavar="key=value", help=override)
    add.set_defaults(run=_bench)
    add = commands.add_parser("tune", help="choose settings of methods, the same number of trials for each")
    add.add_argument("system", metavar="SYSTEM", help=systems)
    add.add_argument("--methods", required=True, help="separated by commas")
    add.add_argument("--budget", type=int, default=64, help="trials of each method (default: 64)")
    add.add_argument("--out", required=True, metavar="FILE.yaml")
    add.add_argument("settings", nargs="*", default=[], metavar="key=value", help=override)
    add.set_defaults(run=_tune)
    add = commands.add_parser("frontier", help="accuracy against cost, and which method to use when")
    add.add_argument(
        "folders",
        nargs="*",
        default=[],
        metavar="FOLDER",
        help="results of slams bench, or folders above such",
    )
    add.add_argument(
        "--run",
        dest="plan",
        nargs="?",
        const="quick",
        metavar="PLAN",
        help="run set-ups first: quick, full or a YAML file",
    )
    add.add_argument("--replicates", type=int, help="truths of each set-up of the plan")
    add.add_argument("--cycles", type=int, help="scored analyses of each")
    add.add_argument("--out", metavar="DIR", help="folder of the page (default: logs/frontier[_PLAN])")
    add.set_defaults(run=_frontier)
    add = commands.add_parser("reproduce", help="published tables beside ours, row by row; 1 if a row fails")
    add.add_argument(
        "name", metavar="NAME", help="a paper such as sakov2008_l96, or the beginning of several names"
    )
    add.add_argument("--out", metavar="DIR", help="folder of the results (default: logs/reproduce)")
    add.add_argument(
        "--train", action="store_true", help="train a paper's networks anew instead of using the shipped ones"
    )
    add.add_argument("settings", nargs="*", default=[], metavar="key=value", help=override)
    add.set_defaults(run=_reproduce)


def _train(parsed: argparse.Namespace) -> int:
    from slams.core.foreign import trusting
    from slams.pipeline.recipe import load
    from slams.pipeline.run import run

    settings = list(parsed.settings)
    chosen = parsed.recipe
    if chosen and "=" in chosen:
        settings.insert(0, chosen)
        chosen = None
    if chosen and parsed.config_filepath:
        from slams.core.errors import InvalidValueError

        raise InvalidValueError(
            f"the recipe is given twice, as {chosen!r} and by --config_filepath; leave out one."
        )
    chosen = parsed.config_filepath or chosen or "planet"
    shipped = _CONFIGS / f"{chosen}.yaml"
    with trusting(parsed.trust):
        run(load(shipped if shipped.exists() else chosen, settings))
    return 0


def _assimilate(parsed: argparse.Namespace) -> int:
    from slams.core.console import Console
    from slams.core.foreign import trusting
    from slams.pipeline.assimilate import assimilate

    with trusting(parsed.trust):
        assimilate(
            parsed.trained,
            parsed.observations,
            parsed.out,
            members=parsed.members,
            modalities=parsed.modalities.split(",") if parsed.modalities else None,
            dates=parsed.dates,
            seed=parsed.seed,
            baselines=parsed.baselines,
            **({"only_past": True} if parsed.filter else {}),
            overrides=parsed.settings,
            console=Console(),
            **({"overwrite": True} if parsed.overwrite else {}),
        )
    return 0


def _evaluate(parsed: argparse.Namespace) -> int:
    from slams.core.console import Console
    from slams.pipeline.evaluate import evaluate

    evaluate(parsed.analysis, parsed.truth, parsed.report, console=Console())
    return 0


def _demo(parsed: argparse.Namespace) -> int:
    from slams import config
    from slams.papers.qu2024.demo import demo

    demo(parsed.out or config.LOG_DIR / "demo", members=parsed.members, seed=parsed.seed)
    return 0


def _prepare(parsed: argparse.Namespace) -> int:
    from slams.cli.data import prepare
    from slams.data.archives import SOURCES

    chosen: dict[str, Any] = {
        option: _names(getattr(parsed, option)) for option in SOURCES[parsed.what].options
    }
    prepare(
        parsed.what,
        years=parsed.years,
        base=parsed.source,
        out=parsed.out,
        jobs=parsed.jobs,
        offline=parsed.offline,
        scheduler=parsed.scheduler,
        grid=parsed.grid,
        **chosen,
    )
    return 0


def _status(parsed: argparse.Namespace) -> int:
    from slams.cli.data import show_status
    from slams.core.console import Console

    return show_status(parsed.folder, as_json=parsed.json, figure=parsed.figure, console=Console())


def _verify(parsed: argparse.Namespace) -> int:
    from slams.cli.data import show_verify
    from slams.core.console import Console

    return show_verify(parsed.folder, as_json=parsed.json, console=Console())


def _bench(parsed: argparse.Namespace) -> int:
    from slams import config
    from slams.core.stages import file_stem
    from slams.twin.benchmark import bench

    numbers = {"replicates": parsed.replicates, "cycles": parsed.cycles}
    bench(
        parsed.system,
        methods=_names(parsed.methods),
        settings=parsed.tuned,
        out=parsed.out or config.LOG_DIR / f"bench_{file_stem(parsed.system)}",
        overrides=parsed.settings,
        progress=True,
        **{key: value for key, value in numbers.items() if value is not None},
    )
    return 0


def _tune(parsed: argparse.Namespace) -> int:
    from slams.twin.tuning import tune

    names = _names(parsed.methods) or []
    tune(parsed.system, names, parsed.out, budget=parsed.budget, overrides=parsed.settings, progress=True)
    return 0


def _frontier(parsed: argparse.Namespace) -> int:
    from slams.twin.frontier.run import frontier

    sizes = {"replicates": parsed.replicates, "cycles": parsed.cycles}
    frontier(parsed.folders, run=parsed.plan, out=parsed.out, **sizes)
    return 0


def _reproduce(parsed: argparse.Namespace) -> int:
    from slams.papers.reproduce import reproduce

    return 0 if reproduce(parsed.name, out=parsed.out, overrides=parsed.settings, train=parsed.train) else 1


def _names(words: str | None) -> list[str] | None:
    return [word.strip() for word in words.split(",") if word.strip()] if words else None
