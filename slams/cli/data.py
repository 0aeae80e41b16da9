"""`slams data`: fetch and process a source, list what is there, verify it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from slams import config
from slams.core.console import Console
from slams.core.errors import InvalidValueError
from slams.data.archives import REGISTRY, Archive, Stations
from slams.data.download.bars import download_bars
from slams.data.download.fetch import FetchError
from slams.data.processing.process import Processed, process
from slams.data.safety import is_address
from slams.data.status import FolderStatus, StoreStatus, status
from slams.data.store.manifest import record_history
from slams.data.verify import verify
from slams.evaluation.figures.plots import coverage_by_modality
from slams.evaluation.figures.style import save_figure


def prepare(
    source: str,
    *,
    years: str | None = None,
    base: str | None = None,
    out: str | Path | None = None,
    jobs: int = 4,
    offline: bool = False,
    scheduler: str | None = None,
    grid: str = "1.5deg",
    variables: Sequence[str] | None = None,
    stations: Sequence[str] | None = None,
    console: Console | None = None,
) -> Path:
    """Fetch missing files of a source, and process new ones.

    Args:
        source: Name in `slams.data.archives.SOURCES`.
        years: Years such as "2000-2015,2020"; None takes those of slams/config.py from an address, all from a folder.
        base: Address of a mirror or a local folder; None takes the source's own.
        out: Folder of the store; None takes the source's own.
        jobs: Number of simultaneous downloads.
        offline: Whether to use local files only.
        scheduler: Address of a running dask.distributed scheduler that processes.
        grid: Name of the grid.
        variables: Names of the variables; None takes all of the source.
        stations: Names of weather stations, as Integrated Surface Database has them.
        console: Console for the progress.

    Returns:
        The folder of the store.

    Raises:
        FetchError: If downloads fail; the available files are processed nevertheless.
        ValueError: If years, variables or files are invalid.
    """
    console = console or Console()
    archive = REGISTRY[source]
    folder = Path(out) if out is not None else archive.folder
    wanted = _years(years, base)
    options: dict[str, Any] = {"jobs": jobs, "offline": offline}
    if isinstance(archive, Stations):
        paths, missing = _obtain(archive, wanted, base, folder, options | {"stations": stations or ()})
        if paths:
            table = archive.process(paths, folder / archive.table, wanted)
            files = _count(len(paths), "file")
            record_history(folder, f"{table.name}: {files}", {"years": wanted})
            console.say(f"{table}: observations of {files}")
    else:
        names = _variables(archive, variables)
        paths, missing = _obtain(archive, wanted, base, folder, options | {"variables": names})
        holding = _holding(archive, paths, names, chosen=bool(variables)) if paths else {}
        # where files are missing, what is there
        there = wanted if missing is None else None
        done = _process(archive, holding, folder, console, grid=grid, years=there, scheduler=scheduler)
        if years and missing is None:
            _check_years(done, base or f"the archive {source!r}")
    if missing is not None:
        raise missing
    return folder


def _years(years: str | None, base: str | None) -> list[int] | None:
    """The years to fetch: those named; else of an address those of slams/config.py, and all of a folder."""
    if years:
        return parse_years(years)
    remote = base is None or base in ("cds", "weatherbench") or is_address(base)
    return list(range(config.YEARS[0], config.YEARS[1] + 1)) if remote else None


def _process(
    archive: Archive, holding: dict[str, list[Path]], folder: Path, console: Console, **settings: Any
) -> list[Processed]:
    """Each variable's files to its store."""
    found = []
    for name, files in holding.items():
        with _days(console) as progress:
            found.append(process(archive, files, folder, variable=name, progress=progress, **settings))
        console.say(f"{folder / name}.zarr: {found[-1].text()}")
    return found


def _check_years(found: Sequence[Processed], source: str) -> None:
    """Raise an error if years requested by name are missing."""
    lacking = {done.variable: done.absent for done in found if done.absent}
    if lacking:
        years = "; ".join(f"{name}: {', '.join(map(str, absent))}" for name, absent in lacking.items())
        raise InvalidValueError(
            f"{source} has no day of some years that --years asks for ({years}); the others are processed."
        )


def parse_years(text: str) -> list[int]:
    """Years of "2000-2003,2007".

    Raises:
        ValueError: If it isn't of that form.

    >>> parse_years("2000-2003,2007")
    [2000, 2001, 2002, 2003, 2007]
    """
    years: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdigit() and (last.isdigit() or not dash)):
            raise InvalidValueError(f"--years looks like 2000-2015 or 2000-2003,2007, got {text!r}.")
        end = int(last) if dash else int(first)
        if end < int(first) or end - int(first) > 300:
            raise InvalidValueError(f"--years runs from an earlier to a later year, got {part!r}.")
        years.update(range(int(first), end + 1))
    return sorted(years)


def _variables(archive: Archive, variables: Sequence[str] | None) -> tuple[str, ...]:
    for name in variables or ():
        archive.quantity(name)
    return tuple(variables) if variables else archive.variables


def _holding(
    archive: Archive, paths: Sequence[Path], names: Sequence[str], *, chosen: bool
) -> dict[str, list[Path]]:
    """Files of each variable; variables not requested by name may be missing."""
    found: dict[str, list[Path]] = {}
    lacking: list[ValueError] = []
    for name in names:
        try:
            files = archive.holding(paths, name)
            # all days of an archive are alike, and a look into each of thousands takes minutes
            if files[0].is_dir() and not archive.has(files[0], name):
                raise InvalidValueError(
                    f"{files[0]} has no variable {name!r}; name those it has by --variables."
                )
            found[name] = files
        except ValueError as error:
            if chosen:
                raise
            lacking.append(error)
    if not found:
        raise lacking[0]
    return found


def _obtain(
    archive: Archive | Stations,
    years: list[int] | None,
    base: str | None,
    folder: Path,
    options: dict[str, Any],
) -> tuple[list[Path], FetchError | None]:
    """Available paths, and the errors of the others."""
    with download_bars() as progress:
        try:
            return archive.obtain(years or [], base, folder, progress=progress, **options), None
        except FetchError as error:
            found: dict[Path, None] = {}
            for year in years or []:
                try:
                    obtained = archive.obtain([year], base, folder, **options | {"offline": True})
                except (FetchError, ValueError):
                    continue
                found.update(dict.fromkeys(obtained))
            return list(found), error


@contextmanager
def _days(console: Console) -> Iterator[Callable[[str, int, int | None], None]]:
    """A bar for each year under way, with the remaining time."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days, left"),
        TimeRemainingColumn(),
    )
    hidden = console.quiet or not console.rich.is_terminal
    with Progress(*columns, console=console.rich, transient=True, disable=hidden) as bars:
        task: TaskID = bars.add_task("reading headers", total=None)

        def progress(what: str, done: int, total: int | None) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield progress


def show_status(
    folder: str | Path | None, *, as_json: bool = False, figure: str | Path | None = None, console: Console
) -> int:
    """List the contents of a data folder, and draw its years.

    Args:
        folder: The folder; None takes that of slams/config.py.
        as_json: Whether to print JSON instead of a table.
        figure: Picture to write; None takes FOLDER/coverage.png, and none with JSON.
        console: Console for the output.

    Returns:
        Exit code: 1 if the folder has faults, otherwise 0.
    """
    root = Path(folder) if folder is not None else config.DATA_DIR
    found = status(root)
    if as_json:
        print(json.dumps(found.to_json(), indent=2))
    else:
        _print(found, console)
    if found.stores and (figure or not as_json):
        target = Path(figure) if figure else root / "coverage.png"
        save_figure(coverage(found.stores), target)
        if not as_json:
            console.say(f"coverage by year: {target}")
    return 1 if found.faults else 0


def show_verify(folder: str | Path | None, *, as_json: bool = False, console: Console) -> int:
    """Read all files of a data folder and list the faults.

    Args:
        folder: The folder; None takes that of slams/config.py.
        as_json: Whether to print JSON instead of lines.
        console: Console for the output.

    Returns:
        Exit code: 1 if the folder has faults, otherwise 0.
    """
    root = Path(folder) if folder is not None else config.DATA_DIR
    # of an archive of daily files, thousands: they go by on one line of a terminal
    live = console.rich.is_terminal and not (as_json or console.quiet)
    with console.rich.status("reading") if live else nullcontext() as shown:
        count, faults = verify(root, lambda name: shown.update(f"reading {name}") if shown else None)
    if as_json:
        print(json.dumps({"folder": str(root), "read": count, "faults": faults}, indent=2))
    else:
        for fault in faults:
            console.say(f"FAULT {fault}")
        console.say(
            f"{_count(count, 'store or file', 'stores and files')} read, {_count(len(faults), 'fault')}"
        )
    return 1 if faults else 0


def coverage(stores: Sequence[StoreStatus]) -> Figure:
    """Share of the days of each year that each store has.

    Args:
        stores: Stores of the folder.

    Returns:
        The coverage figure.
    """
    first = min(min(store.years) for store in stores)
    last = max(max(store.years) for store in stores)
    years = np.arange(first, last + 1)
    starts = np.arange(first, last + 2).astype(str).astype("datetime64[Y]").astype("datetime64[D]")
    lengths = np.diff(starts).astype(int)
    several = len({store.variable for store in stores}) < len(stores)
    shares = {
        store.path if several else store.variable: np.array(
            [store.years.get(first + k, 0) / days for k, days in enumerate(lengths)]
        )
        for store in stores
    }
    figure = coverage_by_modality(years, shares, title="Fraction of days with data in each year (grey: none)")
    figure.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _print(found: FolderStatus, console: Console) -> None:
    table = Table("store", "unit", "days", "years", "missing", "range", "valid", "size", box=None)
    table.columns[0].no_wrap = True
    for store in found.stores:
        gaps = f"{store.missing} in {_count(len(store.gaps), 'gap')}" if store.gaps else "none"
        table.add_row(
            store.path,
            store.units,
            str(store.days),
            f"{store.first} to {store.last}",
            gaps,
            f"{store.lowest:.4g} to {store.highest:.4g}",
            f"{store.valid:.1%}",
            _size(store.size),
        )
    if found.stores:
        console.rich.print(table)
    for store in found.stores:
        levels = f"{len(store.levels)} levels, " if store.levels else ""
        console.say(f"{store.path}: {levels}{store.grid}")
    for store in found.stores:
        longest = sorted(store.gaps, key=lambda gap: np.datetime64(gap[1]) - np.datetime64(gap[0]))[-3:]
        if longest:
            console.say(f"{store.path} lacks {', '.join(f'{a} to {b}' for a, b in sorted(longest))}")
    for name, size in found.tables.items():
        console.say(f"{name}: station table, {_size(size)}")
    for name, (count, size) in found.files.items():
        console.say(f"{name}: {_count(count, 'fetched file')}, {_size(size)}")
    for name, count in found.published.items():
        console.say(f"{name}: {_count(count, 'daily store')} of the published layout")
    for fault in found.faults:
        console.say(f"FAULT {fault}")


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"


def _size(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size = size / 1000
    return f"{size:.3g} TB"
