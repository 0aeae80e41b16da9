"""Inventory of a data folder: stores with years, gaps, sizes, units and ranges; tables; fetched files."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from slams.core.errors import InvalidValueError, MissingFileError
from slams.data.files.grids import describe
from slams.data.files.periods import years_of
from slams.data.store.manifest import Row, measure, read_manifest
from slams.data.store.store import FieldStore
from slams.data.windows import find_gaps

_SAMPLED = 60  # days that a range is taken from


@dataclass(frozen=True)
class StoreStatus:
    """One store.

    Args:
        path: Under the folder.
        variable: Its variable.
        units: Unit of the values.
        first: First day.
        last: Last day.
        days: Number of days.
        years: Days of each year.
        gaps: First and last missing day of each gap.
        missing: Number of missing days between the first and the last.
        size: Size on disk [bytes].
        grid: Description of the grid.
        levels: Pressure levels [hPa].
        lowest: Smallest value on some days, spread over all.
        highest: Largest value on these days.
        valid: Share of values that aren't missing on these days.
        url: Address of the files' source.
    """

    path: str
    variable: str
    units: str
    first: str
    last: str
    days: int
    years: dict[int, int]
    gaps: list[tuple[str, str]]
    missing: int
    size: int
    grid: str
    levels: list[float]
    lowest: float
    highest: float
    valid: float
    url: str | None


@dataclass
class FolderStatus:
    """A data folder.

    Args:
        folder: The folder.
        stores: Stores found.
        files: Number and size of fetched files by subfolder.
        tables: Station tables with their size.
        published: Number of daily zarrs of the published layout by subfolder.
        faults: Faults, one sentence each.
    """

    folder: str
    stores: list[StoreStatus] = field(default_factory=list)
    files: dict[str, tuple[int, int]] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    published: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)


def status(folder: Path) -> FolderStatus:
    """Inventory of a folder and its subfolders, from headers and a few days.

    Args:
        folder: Such as `data`, or one source's folder in it.

    Returns:
        The status; what can't be read is among its faults.

    Raises:
        FileNotFoundError: If the folder isn't there.
        ValueError: If it holds nothing of this package.
    """
    found = FolderStatus(str(folder))
    for path in store_paths(folder):
        try:
            found.stores.append(_store(path, folder))
        except (ValueError, OSError, KeyError, IndexError, RuntimeError) as error:
            known = str(path) in str(error)
            found.faults.append(
                str(error) if known else f"{path} can't be read ({error}); run `slams data verify`."
            )
    for each in data_folders(folder):
        name = str(each.relative_to(folder))
        daily = len(list(each.glob("*_1.5deg_[0-9]*.zarr")))
        if daily:
            found.published[name] = daily
        for table in sorted(each.glob("observations.*")):
            found.tables[str(table.relative_to(folder))] = measure(table)[0]
        try:
            rows = read_manifest(each)["files"]
        except ValueError as error:
            found.faults.append(str(error))
            continue
        if rows:
            found.files[name] = (len(rows), sum(row.get("size") or 0 for row in rows))
            found.faults += [fault for row in rows if (fault := changed(each, row))]
    if not (found.stores or found.files or found.tables or found.published or found.faults):
        raise InvalidValueError(
            f"{folder} holds no data of this package; fetch some with `slams data era5`, `cpc`, `olr` or `stations`, or "
            "name the folder that has them."
        )
    return found


def data_folders(folder: Path) -> list[Path]:
    """A folder and those in it that may hold data, two levels deep.

    Raises:
        FileNotFoundError: If it isn't there.
    """
    if not folder.is_dir():
        raise MissingFileError(f"there is no folder {folder}; name the one that holds the data.")
    found = [folder]
    for top in (folder, *_subfolders(folder)):
        found += _subfolders(top)
    return list(dict.fromkeys(found))


def _subfolders(folder: Path) -> list[Path]:
    """Folders that are neither stores, nor hidden, nor copies for fast reading."""
    inside = sorted(path for path in folder.iterdir() if path.suffix != ".zarr" and path.name != "cache")
    return [path for path in inside if path.is_dir() and not path.name.startswith(".")]


def store_paths(folder: Path) -> list[Path]:
    """Stores of a folder and its subfolders: zarrs of this package, complete or not."""
    paths = [path for each in data_folders(folder) for path in sorted(each.glob("[!.]*.zarr"))]
    return [path for path in paths if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    """Whether a zarr is a store or was one: the published daily zarrs, of an older format, aren't."""
    listed = {row["path"] for row in _stores_listed(path.parent)}
    if path.name in listed:
        return True
    root = path / "zarr.json"
    return root.exists() and '"fingerprint"' in root.read_text(encoding="utf-8", errors="replace")


def _stores_listed(folder: Path) -> list[Row]:
    try:
        return read_manifest(folder)["stores"]
    except ValueError:
        return []  # a fault that `status` lists elsewhere


def changed(folder: Path, row: Row) -> str:
    """Faults of a fetched file by a quick check, empty if none.

    Args:
        folder: Folder of the manifest.
        row: Its row.

    Returns:
        A sentence.
    """
    path = folder / row["path"]
    if not path.exists():
        return f"{path} is in the manifest but not there; fetch it again."
    size = measure(path)[0]
    if row.get("size") not in (None, size):
        return f"{path} has {size} bytes, fetched were {row['size']}; remove it and fetch it again."
    return ""


def _store(path: Path, folder: Path) -> StoreStatus:
    store = FieldStore(path)
    days = store.dates
    gaps = find_gaps(days)
    some = days[np.unique(np.linspace(0, days.size - 1, _SAMPLED).astype(int))]
    sample = store.read(some)
    values = sample.values[np.isfinite(sample.values)]
    years, counts = np.unique(years_of(days), return_counts=True)
    return StoreStatus(
        path=str(path.relative_to(folder)),
        variable=store.variable,
        units=store.units,
        first=str(days[0]),
        last=str(days[-1]),
        days=int(days.size),
        years={int(year): int(count) for year, count in zip(years, counts, strict=True)},
        gaps=[(str(first), str(last)) for first, last in gaps],
        missing=sum(int((last - first).astype(int)) + 1 for first, last in gaps),
        size=measure(path)[0],
        grid=describe(sample),
        levels=np.atleast_1d(sample["level"].values).astype(float).tolist()
        if "level" in sample.coords
        else [],
        lowest=float(values.min()) if values.size else float("nan"),
        highest=float(values.max()) if values.size else float("nan"),
        valid=values.size / max(1, sample.size),
        url=str(store.attrs["url"]) if store.attrs.get("url") else None,
    )
