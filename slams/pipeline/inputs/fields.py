"""A recipe's files as tensors on common dates."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from slams import config
from slams.core.codec import SeasonalStandardize
from slams.core.days import Days, Values, fits, slices
from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.files import write_text
from slams.data.archives import REGISTRY
from slams.data.files import read as files
from slams.data.files.modality import Modality
from slams.data.files.units import conversion, is_missing, same
from slams.data.joining import matching_lags
from slams.data.store.mapped import map_store
from slams.data.store.store import FieldStore, write_manifest
from slams.data.windows import GapReport, common_dates
from slams.pipeline.inputs.large import fit_statistics, leave_out, without_incredible
from slams.pipeline.inputs.layout import Layout
from slams.pipeline.recipe import Recipe


@dataclass
class Fields:
    """Modalities on common dates, after their transforms.

    Attributes:
        dates: Dates (n), datetime64[D].
        values: Values (n, *S) by name, NaN where missing; `Days` where they are too large for memory.
        layouts: Layouts by name.
        report: Days of each modality.
        statistics: Climate of the training days by modality, by which gross errors were left out.
    """

    dates: np.ndarray
    values: dict[str, Values]
    layouts: dict[str, Layout]
    report: GapReport
    statistics: dict[str, SeasonalStandardize] = field(default_factory=dict)

    def part(self, span: tuple[str, str]) -> np.ndarray:
        """Indices of the days from the first to the last of `span`.

        Raises:
            ValueError: If no day is in it.
        """
        first, last = (np.datetime64(day, "D") for day in span)
        index = np.flatnonzero((self.dates >= first) & (self.dates <= last))
        if not len(index):
            raise InvalidValueError(
                f"no day from {first} to {last}; the modalities share {self.dates[0]} to {self.dates[-1]}."
            )
        return index


def phase_of(dates: np.ndarray) -> Tensor:
    """Phase of the year of each day, in [0, 1)."""
    day = (dates - dates.astype("datetime64[Y]")).astype(int)
    return torch.tensor(day / 365.25, dtype=torch.float32)


def as_tensor(array: xr.DataArray, modality: Modality) -> Tensor:
    """(n, *S) with a channel axis, after the transform."""
    tensor = torch.from_numpy(modality.transformed.forward(array.values.astype(np.float32)))
    return tensor if "level" in array.dims else tensor.unsqueeze(1)


def read_file(
    modality: Modality, layout: Layout, *, dates: np.ndarray | None = None
) -> tuple[np.ndarray, Tensor]:
    """Values of a modality in new files, on the points and in the unit of the training.

    Args:
        modality: Modality with the files to read.
        layout: Layout of the training.
        dates: Days to read, as states are dated; all if None.

    Returns:
        Days (n) and values (n, *S); days without any value are kept.

    Raises:
        ValueError: As `slams.data.files.read.read` and `align`.
    """
    lag = np.timedelta64(layout.lag, "D")
    wanted = None if dates is None else np.asarray(dates, dtype="datetime64[D]") + lag
    array = files.read(modality, wanted, allow_empty_days=True, trained=layout.units)
    array = files.align(array, layout.array())
    return array.time.values.astype("datetime64[D]") - lag, as_tensor(array, modality)


def load_fields(recipe: Recipe, progress: Callable[[str], None] = lambda message: None) -> Fields:
    """Read every modality of a recipe through its store, and keep the common days.

    Files that are a store of this package already are read as they are; of others a store is made, and made again when
    files (names, sizes, times of change) or settings change.

    Args:
        recipe: Recipe with the modalities.
        progress: Callback with a description of the current step.

    Returns:
        The fields; those too large for memory stay in files.
    """
    folder = Path(config.resolve(recipe.data.store))
    modalities = recipe.modalities
    stores: dict[str, FieldStore] = {}
    for name, modality in modalities.items():
        progress(f"reading {name}")
        stores[name] = _standing(modality) or _store(folder / f"{name}.zarr", modality)
    if any(store.path.parent == folder for store in stores.values()):
        write_manifest(folder)
    _check_direct(recipe, {name: store.units for name, store in stores.items()})
    lags, rule = matching_lags(stores, recipe.states[0], recipe.data.match)  # type: ignore[arg-type]
    shifts = {name: np.timedelta64(lag, "D") for name, lag in lags.items()}
    dates, report = common_dates({name: store.dates - shifts[name] for name, store in stores.items()})
    values, layouts, left = {}, {}, []
    for name, store in stores.items():
        first = store.read(store.dates[:1])
        left += [first.attrs["left_out"]] if "left_out" in first.attrs else []
        layouts[name] = Layout.of(first, lags[name])
        values[name] = _values(store, first, dates + shifts[name], modalities[name], folder, progress)
    fields = Fields(dates, values, layouts, replace(report, rule=rule))
    left += _leave_out_gross_errors(fields, recipe)
    fields.report = replace(fields.report, left_out=tuple(left))
    return fields


def _leave_out_gross_errors(fields: Fields, recipe: Recipe) -> list[str]:
    """Fit the climate of the training days, and make values far outside it missing; a sentence each modality."""
    found = []
    first, last = (np.datetime64(day, "D") for day in recipe.data.train)
    train_days = np.flatnonzero((fields.dates >= first) & (fields.dates <= last))
    for name, modality in recipe.modalities.items():
        if not modality.gross_errors or not train_days.size:
            continue
        amount, weights = modality.transformed.lower is not None, fields.layouts[name].weights()
        x, phase = fields.values[name], phase_of(fields.dates)
        statistics = fit_statistics(
            x, train_days, phase[torch.from_numpy(train_days)], recipe.data.harmonics, weights, amount
        )
        fields.statistics[name] = statistics
        told = far_from_climate(modality, statistics, x, fields.dates)
        if told and isinstance(x, Days):
            fields.values[name] = without_incredible(statistics, x, phase)
        found += told
    return found


def far_from_climate(
    modality: Modality, statistics: SeasonalStandardize, x: Values, dates: np.ndarray
) -> list[str]:
    """Make values far outside the training's climate missing, in place of a tensor; a sentence if there were any.

    Args:
        modality: Their modality.
        statistics: Statistics of the training, with limits.
        x: Values (n, *S), after the transform.
        dates: Their days (n).
    """
    if not modality.gross_errors:
        return []
    total = sum(int(torch.isfinite(x[rows]).sum()) for rows in slices(x))
    count, first = leave_out(statistics, x, phase_of(dates))
    if not count:
        return []
    return [
        f"{modality.name}: {count} of {total} values are left out, far outside the training's climate (the first on "
        f"{dates[first[0]]})"
    ]


def _check_direct(recipe: Recipe, units: Mapping[str, str]) -> None:
    """Modalities that measure one quantity directly differ by an offset at most, such as that of K and degC.

    A unit that a file doesn't state is taken to be the other's.

    Raises:
        ValueError: If the units or transforms of two don't compare.
    """
    for state, group in recipe.data.direct.items():
        for name in group:
            one, other = recipe.modalities[name], recipe.modalities[state]
            where = f"data.direct.{state} lists {name!r}, which"
            remedy = (
                "list only modalities of the same quantity, or give both the same `units` and `transform`."
            )
            if one.transform != other.transform:
                raise InvalidValueError(
                    f"{where} has the transform {one.transform!r}, but {state!r} {other.transform!r}; {remedy}"
                )
            if units[name] == units[state] or is_missing(units[name]) or is_missing(units[state]):
                continue
            scale, _ = conversion(units[name], units[state], f"{where} is to compare with {state!r},")
            if scale != 1.0:
                raise InvalidValueError(
                    f"{where} is in {units[name]!r}, {scale:g} times the unit of {state!r}, {units[state]!r}; {remedy}"
                )


def _values(
    store: FieldStore,
    first: xr.DataArray,
    days: np.ndarray,
    modality: Modality,
    folder: Path,
    progress: Callable[[str], None],
) -> Values:
    """The fields of some days (n, *S), after the transform."""
    if fits(days.size, first.shape[1:]):
        return as_tensor(store.read(days), modality)
    mapped, channels = map_store(store, folder / "cache", progress), "level" in first.dims

    def transformed(part: Tensor, rows: Tensor) -> Tensor:
        x = torch.from_numpy(modality.transformed.forward(part.numpy()))
        return x if channels else x.unsqueeze(1)

    return Days.of_file(mapped.path).rows(np.searchsorted(store.dates, days)).map(transformed)


def _standing(modality: Modality) -> FieldStore | None:
    """The store among the files of a modality, if they are one and fit the recipe."""
    path = Path(modality.files[0]).expanduser()
    if not path.exists() and path.suffix == ".zarr":
        commands = {each.folder.name: name for name, each in REGISTRY.items() if hasattr(each, "folder")}
        if path.parent.name in commands:
            raise MissingFileError(
                f"{path} is not there; make it with `slams data {commands[path.parent.name]}` (docs/data.md), or correct "
                f"data.modalities.{modality.name}.files."
            )
    if len(modality.files) > 1 or path.suffix != ".zarr" or not path.is_dir():
        return None
    try:
        store = FieldStore(path)
    except ValueError:  # another program's zarr
        return None
    wanted = modality.units is None or same(modality.units, store.units)
    if not wanted or modality.variable != store.variable:
        return None
    if modality.levels is not None:
        first = store.read(store.dates[:1])
        if "level" not in first.coords or first.level.values.tolist() != list(modality.levels):
            return None
    return store


def _store(path: Path, modality: Modality) -> FieldStore:
    inputs: list[Any] = [[str(p), *_state_of(p)] for p in files.find(modality.files)]
    settings = [modality.variable, modality.units, modality.levels, modality.kind, files.VERSION]
    key = json.dumps(
        [inputs, *settings, {"gross_errors": modality.gross_errors, "transform": modality.transform}]
    )
    key_file = path.with_suffix(".json")
    if path.exists() and key_file.exists() and key_file.read_text() == key:
        return FieldStore(path)
    array = files.read(modality, allow_empty_days=modality.role == "observation")
    key_file.unlink(missing_ok=True)  # a store that is replaced but not yet marked is made again
    store = FieldStore.create(path, array)
    write_text(key_file, key)
    return store


def _state_of(path: Path) -> list[Any]:
    """Name, size and time of change of a file; of a store those of its root file."""
    root = path / "zarr.json"
    seen = (root if root.exists() else path).stat()
    return [seen.st_size, seen.st_mtime_ns]
