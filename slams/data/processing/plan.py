"""Plan of processing: days, files, order and chunks; and the processing of one chunk."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.data.files.opening import reading
from slams.data.files.periods import average, records_per, years_of
from slams.data.processing.regrid import Grid, Regridder

# of float32: smaller costs time at every look at a lazy array, larger at every page of memory first touched
PIECE_BYTES = 1 << 24
_BATCH = 16  # fields regridded at a time: the float64 of a piece isn't in memory as a whole
# netCDF's library has one lock, and a worker of a cluster its place
_ONE_THREAD = {"scheduler": "synchronous"}
_STORE = -1

LoadedDays = tuple[xr.DataArray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Held:
    """The days that one file holds.

    Args:
        path: The file.
        days: Whole days, rising, datetime64[D].
        first: Position of the first record of each.
        records: Records of a day.
        step: Days of a piece.
        incomplete: Days that lack some of their records, not among `days`.
    """

    path: Path
    days: np.ndarray
    first: np.ndarray
    records: int
    step: int
    incomplete: int = 0


@dataclass(frozen=True)
class DayRange:
    """Consecutive entries of one owner.

    Args:
        owner: Index of the file, or -1 for the store itself.
        start: First entry among the owner's days.
        stop: One after the last.
    """

    owner: int
    start: int
    stop: int


@dataclass(frozen=True)
class ProcessingPlan:
    """Plan of the work.

    Args:
        years: Runs by year, of days after the last of the store.
        late: Runs of days before it that the store lacks.
        merged: The store's own days and the late ones, in order.
        wanted: The years asked for.
    """

    years: list[tuple[int, list[DayRange]]]
    late: list[DayRange]
    merged: list[DayRange]
    wanted: set[int]


def hold(archive: Any, path: Path, variable: str) -> Held:
    """Days of a file, from its header and time stamps.

    Args:
        archive: Whose file it is.
        path: The file.
        variable: Variable to read from it.

    Returns:
        Its days.

    Raises:
        ValueError: If stamps don't rise strictly.
    """
    with dask.config.set(_ONE_THREAD):
        array = archive.open(path, variable)
    try:
        stamps = array.time.values.astype("datetime64[s]")
        wrong = np.flatnonzero(np.diff(stamps) <= np.timedelta64(0, "s"))
        if wrong.size:
            raise InvalidValueError(
                f"{path}: times must rise strictly, but {stamps[wrong[0] + 1]} follows {stamps[wrong[0]]} "
                f"({wrong.size} such steps); sort the file, and drop what comes twice."
            )
        records = records_per(stamps) if stamps.size > 1 else 1
        days, first, counts = np.unique(stamps.astype("datetime64[D]"), return_index=True, return_counts=True)
        if counts.size and counts.max() > records:
            records = int(counts.max())
        step = max(1, PIECE_BYTES // max(1, records * 4 * int(np.prod(array.shape[1:]))))
    finally:
        array.close()
    whole = counts == records
    return Held(path, days[whole], first[whole], records, step, int((~whole).sum()))


def plan(held: Sequence[Held], wanted: set[int], there: np.ndarray | None) -> ProcessingPlan:
    """Order the days of all files, without those in the store.

    Args:
        held: Contents of the files.
        wanted: Years.
        there: Days of the store, None if there is none.

    Returns:
        The plan.

    Raises:
        ValueError: If a day lies in two files.
    """
    owner = np.concatenate([np.full(one.days.size, k) for k, one in enumerate(held)])
    slot = np.concatenate([np.arange(one.days.size) for one in held])
    days = np.concatenate([one.days for one in held])
    order = np.argsort(days, kind="stable")
    owner, slot, days = owner[order].astype(np.int64), slot[order].astype(np.int64), days[order]
    _refuse_twice(held, owner, days)
    year = years_of(days)
    known = np.zeros(0, dtype="datetime64[D]") if there is None else there
    keep = np.isin(year, list(wanted)) & ~np.isin(days, known)
    owner, slot, days, year = owner[keep], slot[keep], days[keep], year[keep]
    late = days < known[-1] if known.size else np.zeros(days.size, dtype=bool)
    later = [
        (int(y), _runs(held, owner[pick], slot[pick]))
        for y in np.unique(year[~late])
        for pick in [~late & (year == y)]
    ]
    both = np.concatenate([days[late], known])
    place = np.argsort(both, kind="stable")
    merged_owner = np.concatenate([owner[late], np.full(known.size, _STORE)])[place].astype(np.int64)
    merged_slot = np.concatenate([slot[late], np.arange(known.size)])[place].astype(np.int64)
    return ProcessingPlan(
        later, _runs(held, owner[late], slot[late]), _runs(held, merged_owner, merged_slot), wanted
    )


def load_here(tasks: Iterable[tuple[Any, ...]]) -> Iterator[LoadedDays]:
    """Run tasks sequentially in this process; a file stays open for its successive tasks.

    Args:
        tasks: Arguments of `load`.

    Yields:
        What `load` returns, in the order of the tasks.
    """
    path, array = None, None
    try:
        for archive, held, variable, *rest in tasks:
            if array is None or held.path != path:
                if array is not None:
                    array.close()
                with dask.config.set(_ONE_THREAD):
                    path, array = held.path, archive.open(held.path, variable)
            yield _regridded(array, held, *rest)
    finally:
        if array is not None:
            array.close()


def load(
    archive: Any, held: Held, variable: str, run: DayRange, target: Grid, settings: Mapping[str, Any]
) -> LoadedDays:
    """Read a run of days of one file and bring it to a grid; a task of its own for a cluster.

    Args:
        archive: Whose file it is.
        held: Contents of the file.
        variable: Variable to read from it.
        run: Days of the chunk.
        target: Target grid.
        settings: Method and threshold of the regridding.

    Returns:
        An empty array with the attributes and levels of the file; the days; the values, float32.
    """
    with dask.config.set(_ONE_THREAD):
        array = archive.open(held.path, variable)
    try:
        return _regridded(array, held, run, target, settings)
    finally:
        array.close()


def _regridded(
    array: xr.DataArray, held: Held, run: DayRange, target: Grid, settings: Mapping[str, Any]
) -> LoadedDays:
    """A run of days of an open file."""
    first, last = int(held.first[run.start]), int(held.first[run.stop - 1]) + held.records
    part = array.isel(time=slice(first, last))
    if held.records > 1:
        part = average(part, records=held.records)
    with reading(f"{array.name!r} in {held.path}"):
        part = part.compute(**_ONE_THREAD)
    days = held.days[run.start : run.stop]
    wanted = np.isin(part.time.values.astype("datetime64[D]"), days)
    part = part if wanted.all() else part.isel(time=np.flatnonzero(wanted))  # a selection would be a copy
    regridder = _regridder(_bytes(Grid.of(part)), _bytes(target), settings["method"], settings["threshold"])
    values = np.empty((*part.shape[:-2], target.lat.size, target.lon.size), dtype=np.float32)
    if regridder is None:
        values[...] = part.values
    else:
        for start in range(0, days.size, _BATCH):
            values[start : start + _BATCH] = regridder(part.values[start : start + _BATCH])[0]
    return part.isel(time=slice(0, 0), lat=slice(0, 0), lon=slice(0, 0)), days, values


def _bytes(grid: Grid) -> tuple[bytes, bytes]:
    """A grid as a key, to keep the weights of the last few."""
    return grid.lat.tobytes(), grid.lon.tobytes()


@lru_cache(maxsize=8)
def _regridder(
    source: tuple[bytes, bytes], target: tuple[bytes, bytes], method: Any, threshold: float
) -> Regridder | None:
    """Weights, made once; None where the grids are the same."""
    here, there = (Grid(*map(np.frombuffer, key)) for key in (source, target))
    return None if here.same(there) else Regridder(here, there, method, threshold)


def _runs(held: Sequence[Held], owner: np.ndarray, slot: np.ndarray) -> list[DayRange]:
    """Cut where the owner changes, its days aren't neighbours, or a piece is full."""
    if not owner.size:
        return []
    apart = (np.diff(owner) != 0) | (np.diff(slot) != 1)
    edges = [0, *(np.flatnonzero(apart) + 1).tolist(), owner.size]
    runs = []
    for start, stop in zip(edges[:-1], edges[1:], strict=True):
        k, first, last = int(owner[start]), int(slot[start]), int(slot[stop - 1]) + 1
        step = held[k].step if k != _STORE else min(one.step for one in held)
        cuts = sorted(
            {first, *range(-(-first // step) * step, last, step), last}
        )  # where the file's pieces end
        runs += [DayRange(k, a, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    return runs


def _refuse_twice(held: Sequence[Held], owner: np.ndarray, days: np.ndarray) -> None:
    twice = np.flatnonzero(np.diff(days) == np.timedelta64(0))
    if twice.size:
        one, two = held[owner[twice[0]]].path, held[owner[twice[0] + 1]].path
        raise InvalidValueError(
            f"{twice.size} days lie in two files, the first {days[twice[0]]} in {one} and {two}; give one file "
            "for each day."
        )
