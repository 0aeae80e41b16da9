"""Processing of an archive's files to a store on one grid, in chunks of days and commits of years."""

import calendar
import itertools
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files.periods import DAILY_MEAN, Period, bounds, years_of
from slams.data.processing.plan import DayRange, Held, LoadedDays, ProcessingPlan, hold, load, load_here, plan
from slams.data.processing.regrid import Grid, Method
from slams.data.store.manifest import record_history, write_manifest
from slams.data.store.statistics import Statistics, area_weights, summary
from slams.data.store.store import FieldStore
from slams.data.store.writer import locked, repair

TRAINING_YEARS = (2000, 2015)  # of the published system
Report = Callable[[str, int, int | None], None]
_AHEAD = 2  # tasks in flight for each thread of a cluster: enough to keep it busy, few enough to hold


class FieldSource(Protocol):
    """Interface of an archive in processing; `method`, `period` and `transforms` may differ by variable.

    Attributes:
        name: Name in commands.
        variables: Names of its variables.
    """

    name: str

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of its variables."""

    def open(self, path: Path, variable: str) -> xr.DataArray:
        """One file, lazily: (time[, level], lat, lon) with one record a day or several."""


@dataclass
class Processed:
    """Report of a run of `process`.

    Args:
        store: The store, None if no day had a value.
        variable: Its variable.
        added: Days added, by year.
        days: Days there now, by year.
        empty: Days without any value, which are left out.
        absent: Requested years without any day in the sources.
        incomplete: Days with some of their records only, which are left out.
    """

    store: Path | None
    variable: str
    added: dict[int, int] = field(default_factory=dict)
    days: dict[int, int] = field(default_factory=dict)
    empty: list[np.datetime64] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)
    incomplete: int = 0

    @property
    def partial(self) -> dict[int, int]:
        """Years that lack days, and how many they have."""
        return {year: count for year, count in self.days.items() if count < _length(year)}

    def text(self) -> str:
        """The report: what is new, and what is still missing."""
        lines = [
            f"{self.variable}: {sum(self.added.values())} days added, {sum(self.days.values())} in the store"
        ]
        lines += [
            f"  {year}: {count} of {_length(year)} days; run again when the rest is there"
            for year, count in self.partial.items()
        ]
        if self.incomplete:
            lines.append(f"  {self.incomplete} days lack some of their records and are left out")
        if self.empty:
            lines.append(
                f"  {len(self.empty)} days without any value are left out, the first {self.empty[0]}"
            )
        if self.absent:
            lines.append(f"  no file has a day of {', '.join(map(str, self.absent))}")
        return "\n".join(lines)


def process(
    archive: FieldSource,
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    variable: str | None = None,
    grid: Grid | str = "1.5deg",
    years: Sequence[int] | None = None,
    method: Method | None = None,
    threshold: float = 0.5,
    training: tuple[int, int] = TRAINING_YEARS,
    scheduler: str | None = None,
    progress: Report | None = None,
) -> Processed:
    """Regrid the files of an archive, and append new days to the store `out/VARIABLE.zarr`.

    Days that the store has are passed over, so a second run does nothing and a run after a kill completes
    what is missing. Each year is added in one step. Memory holds a chunk of days and a shard, however many
    years there are. Days that come late, before the last one there, make the store anew, from itself and the
    files, again in one step.

    Args:
        archive: Whose files they are.
        sources: Files that the archive opens; each may hold days or decades.
        out: Folder of the store.
        variable: Variable to process; None for the only one of the archive.
        grid: Target grid or its name.
        years: Years wanted; None takes all there are.
        method: Regridding method, as in `Regridder`; None for the archive's.
        threshold: Part of a cell that must be valid.
        training: First and last year of the mean and spread in the store's attributes, which keep those of every
            year as well.
        scheduler: Address of a running dask.distributed scheduler, whose workers see the same files; they read
            and regrid, this process writes.
        progress: Called with (store and year, days done, days in all).

    Returns:
        What was done.

    Raises:
        ValueError: If files overlap or are at fault, nothing is there, or the store has other settings.
        OSError: If the disk is full; the store is as it was after the last whole year.
    """
    name = _only(archive, variable)
    target = Grid.named(grid) if isinstance(grid, str) else grid
    how: Method = method or _of(archive, "method", name, "conservative")
    settings = {"grid": _words(target), "method": how, "threshold": float(threshold)}
    folder = Path(out).expanduser()
    path = folder / f"{name}.zarr"
    held = [hold(archive, Path(source), name) for source in sources]
    done = Processed(path, name, incomplete=sum(one.incomplete for one in held))
    wanted = _wanted(held, years, archive, done)
    job = _Job(archive, name, held, target, settings, _of(archive, "period", name, DAILY_MEAN), done)
    job.transforms = tuple(_of(archive, "transforms", name, ("none",)))
    job.training, job.progress = training, progress or (lambda what, days, total: None)
    # what is missing stays missing only as long as nobody else adds days
    with locked(path), _loader(scheduler) as job.loading:
        store = _standing(path, settings)
        job.run(path, store, plan(held, wanted, None if store is None else store.dates))
        _conclude(path, done, settings | {"archive": archive.name})
    return done


@dataclass
class _Job:
    """One call of `process`: settings, and what it has done so far."""

    archive: FieldSource
    variable: str
    held: Sequence[Held]
    target: Grid
    settings: Mapping[str, Any]
    period: Period
    done: Processed
    transforms: tuple[str, ...] = ("none",)
    training: tuple[int, int] = TRAINING_YEARS
    progress: Report = lambda what, days, total: None
    loading: Callable[[Iterable[tuple[Any, ...]]], Iterator[LoadedDays]] = load_here

    def run(self, path: Path, store: FieldStore | None, todo: ProcessingPlan) -> None:
        """Append year by year, late days first, since they rewrite the store."""
        if store is not None and todo.late and self._any_value(todo.late):
            self._renew(path, store, todo.merged)
            todo = plan(self.held, todo.wanted, FieldStore(path).dates)
        for year, runs in todo.years:
            parts = self._parts(runs, path.name)
            first = next(parts, None)
            if first is not None:
                attrs = _Attrs(self, FieldStore(path).attrs if path.exists() else {}, f"{year}")
                FieldStore.append(path, attrs.watch(itertools.chain([first], parts)), attrs.content)

    def _any_value(self, runs: Sequence[DayRange]) -> bool:
        """Whether late days have values; empty ones may remain in a file."""
        return any(np.isfinite(values).any() for _, _, values in self._loaded(runs))

    def _renew(self, path: Path, store: FieldStore, runs: Sequence[DayRange]) -> None:
        """Rewrite the store with its own and the late days."""
        attrs = _Attrs(self, {**store.attrs, "statistics": {}}, "with late days")
        FieldStore.create(path, attrs.watch(self._parts(runs, path.name, store)), attrs.content)

    def _loaded(self, runs: Iterable[DayRange]) -> Iterator[LoadedDays]:
        """Template, days and regridded values of runs, in their order."""
        tasks = (
            (self.archive, self.held[run.owner], self.variable, run, self.target, self.settings)
            for run in runs
        )
        return self.loading(tasks)

    def _parts(
        self, runs: Sequence[DayRange], what: str, store: FieldStore | None = None
    ) -> Iterator[xr.Dataset]:
        """Fields with time bounds, days without any value left out."""
        total, count = sum(run.stop - run.start for run in runs), 0
        for own, group in itertools.groupby(runs, key=lambda run: run.owner < 0):
            if own:
                assert store is not None
                for run in group:
                    count += run.stop - run.start
                    self.progress(what, count, total)
                    array = store.read(store.dates[run.start : run.stop])
                    yield self._bounded(array)
                continue
            for template, days, values in self._loaded(group):
                there = np.isfinite(values).any(axis=tuple(range(1, values.ndim)))
                self.done.empty += list(days[~there])
                count += days.size
                self.progress(what, count, total)
                for year, number in zip(*np.unique(years_of(days[there]), return_counts=True), strict=True):
                    self.done.added[int(year)] = self.done.added.get(int(year), 0) + int(number)
                if there.any():
                    yield self._bounded(self._labelled(template, days[there], values[there]))

    def _labelled(self, template: xr.DataArray, days: np.ndarray, values: np.ndarray) -> xr.DataArray:
        coords = {"time": days, "lat": self.target.lat, "lon": self.target.lon}
        if "level" in template.dims:
            coords["level"] = template.level.values
        attrs = {key: value for key, value in template.attrs.items() if key != "layout"}
        attrs["cell_methods"] = f"time: {self.period.cell_method}" + (
            " area: mean" if self.settings["method"] == "conservative" else ""
        )
        return xr.DataArray(values, coords, template.dims, self.variable, attrs)

    def _bounded(self, array: xr.DataArray) -> xr.Dataset:
        days = array.time.values.astype("datetime64[D]")
        return array.to_dataset().assign(time_bnds=(("time", "bnds"), bounds(days, self.period)))


class _Attrs:
    """Attributes of a store that grow as its days go by, complete when the last has."""

    def __init__(self, job: _Job, old: Mapping[str, Any], what: str) -> None:
        kept = old.get("statistics", {})
        self.statistics = [
            Statistics.of_store(old, transform) if transform in kept else Statistics(transform)
            for transform in job.transforms
        ]
        self.job, self.what = job, what
        self.content: dict[str, Any] = {**old, **job.settings, "archive": job.archive.name}

    def watch(self, parts: Iterable[xr.Dataset]) -> Iterator[xr.Dataset]:
        """The parts, while counting them in; `content` is looked at when they have run out."""
        days = np.zeros(0, dtype="datetime64[D]")
        for part in parts:
            array = part[self.job.variable]
            new = array.time.values.astype("datetime64[D]")
            for one in self.statistics:
                one.add(array.values, new, area_weights(array, self.job.target.area))
            days = np.concatenate([days, new])
            yield part
        self.content["statistics"] = {one.transform: one.to_json() for one in self.statistics}
        self.content["climatology"] = summary(self.statistics, self.job.training)
        line = f"{self.job.variable}.zarr {self.what}: {days.size} days, {days[0]} to {days[-1]}"
        self.content["history"] = [*self.content.get("history", []), line]


def _conclude(path: Path, done: Processed, settings: Mapping[str, Any]) -> None:
    """Manifest and history from the store's own attributes: a kill may have kept them from being written."""
    if not path.exists():
        done.store = None
        return
    store = FieldStore(path)
    done.days = dict(Counter(years_of(store.dates).tolist()))
    for line in store.attrs.get("history", []):
        record_history(path.parent, line, settings)
    write_manifest(path.parent)


@contextmanager
def _loader(scheduler: str | None) -> Iterator[Callable[[Iterable[tuple[Any, ...]]], Iterator[LoadedDays]]]:
    """Executor of tasks in order: this process, or a cluster with a bounded number in flight."""
    if scheduler is None:
        yield load_here
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidValueError(
            f"a scheduler ({scheduler}) needs the package distributed: pip install distributed, or "
            "leave --scheduler out."
        ) from error
    with Client(scheduler) as client:
        yield partial(_on_cluster, client)


def _on_cluster(client: Any, tasks: Iterable[tuple[Any, ...]]) -> Iterator[LoadedDays]:
    """Results of tasks, in their order."""
    ahead = max(2, _AHEAD * sum(client.nthreads().values()))
    flying: deque[Any] = deque()
    for task in tasks:
        flying.append(client.submit(load, *task, pure=False))
        if len(flying) >= ahead:
            yield flying.popleft().result()
    while flying:
        yield flying.popleft().result()


def _only(archive: FieldSource, variable: str | None) -> str:
    """The variable to process."""
    if variable is None and len(archive.variables) == 1:
        return archive.variables[0]
    if variable not in archive.variables:
        raise InvalidValueError(
            f"the archive {archive.name!r} holds {', '.join(archive.variables)}; name one of them as variable, "
            f"got {variable!r}."
        )
    return variable


def _of(archive: FieldSource, name: str, variable: str, default: Any) -> Any:
    """A property of a variable: one for all, or by name."""
    value = getattr(archive, name, default)
    return value.get(variable, default) if isinstance(value, Mapping) else value


def _standing(path: Path, settings: Mapping[str, Any]) -> FieldStore | None:
    """The store at its last commit, checked for equal settings."""
    if not path.exists():
        return None
    repair(path)
    store = FieldStore(path)
    other = {key: store.attrs.get(key) for key in settings if store.attrs.get(key) != settings[key]}
    if other:
        asked = {key: settings[key] for key in other}
        raise InvalidValueError(
            f"{path} was made with {other}, but asked is {asked}; give another --out, or remove it to make it "
            "anew."
        )
    return store


def _wanted(
    held: Sequence[Held], years: Sequence[int] | None, archive: FieldSource, done: Processed
) -> set[int]:
    """Years to process; those that no source has go to `done.absent`."""
    there = {int(year) for one in held for year in years_of(one.days)}
    wanted = there if years is None else {int(year) for year in years}
    done.absent = sorted(wanted - there)
    if not wanted & there:
        span = f"{min(there)} to {max(there)}" if there else "no year"
        raise InvalidValueError(
            f"the {len(held)} files of {archive.name!r} hold {span}, asked was "
            f"{f'{min(wanted)} to {max(wanted)}' if wanted else 'nothing'}; give other years or more files."
        )
    return wanted


def _length(year: int) -> int:
    return 365 + calendar.isleap(year)


def _words(grid: Grid) -> str:
    return repr(grid)[5:-1]
