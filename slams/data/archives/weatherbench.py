"""ERA5 from a zarr on the web (WeatherBench2, ARCO): only the chunks of the wanted variables and moments."""

import json
import math
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from slams.core.errors import InvalidValueError
from slams.core.files import write_text
from slams.data.archives.base import Report, span
from slams.data.download.fetch import Item, fetch
from slams.data.files.canonical import aliases
from slams.data.files.periods import years_of
from slams.data.safety import refuse_pickles

_METADATA = ".zmetadata"
_MOST_CHUNKS = 1_000_000  # of one variable; metadata may claim any number


def obtain(
    url: str,
    years: Sequence[int],
    folder: Path,
    variables: Sequence[str],
    *,
    hour: int = 0,
    jobs: int = 4,
    offline: bool = False,
    progress: Report | None = None,
) -> list[Path]:
    """Copy what is wanted of a consolidated zarr (format 2) into the data folder.

    The copy is sparse: it holds the records of `hour` in the chunks that were fetched, everything else in it is
    missing.

    Args:
        url: Address of the zarr.
        years: The years wanted.
        folder: The data folder.
        variables: Short names.
        hour: Hour of the snapshots [UTC].
        jobs: Downloads at a time.
        offline: Use only what is there.
        progress: Progress bars, as in `fetch`.

    Returns:
        The path of the copy.

    Raises:
        ValueError: If the zarr isn't consolidated, lacks a variable, or has no record in these years.
    """
    url, name = url.rstrip("/"), url.rstrip("/").rsplit("/", 1)[1]
    copy = folder / name
    metadata = Item(f"{url}/{_METADATA}", f"{name}.metadata.json", grows=True)
    entries = _entries(fetch([metadata], folder, offline=offline, progress=progress)[0].path, url)
    write_text(copy / _METADATA, json.dumps({"zarr_consolidated_format": 1, "metadata": entries}, indent=1))
    write_text(copy / ".zgroup", json.dumps({"zarr_format": 2}))
    refuse_pickles(copy)
    axes = [key.removesuffix("/.zarray") for key in entries if _is_axis(entries, key)]
    keys = [chunk for axis in axes for chunk in _chunks(entries, axis, None)]
    settings: dict[str, Any] = {"jobs": jobs, "offline": offline, "progress": progress}
    fetch([Item(f"{url}/{key}", f"{name}/{key}") for key in keys], folder, **settings)
    with xr.open_zarr(copy, chunks=None, consolidated=True) as dataset:
        stamps = dataset["time"].values.astype("datetime64[h]")
    wanted = np.isin(years_of(stamps), list(years))
    records = np.flatnonzero(wanted & (stamps.astype(int) % 24 == hour))
    if not records.size:
        raise InvalidValueError(
            f"{url} has no record at {hour:02d} UTC in {span(years)}; it runs from {stamps[0]} to {stamps[-1]}."
        )
    keys = [
        chunk for variable in variables for chunk in _chunks(entries, _name(entries, variable, url), records)
    ]
    fetch([Item(f"{url}/{key}", f"{name}/{key}") for key in keys], folder, **settings)
    return [copy]


def _entries(path: Path, url: str) -> dict[str, Any]:
    """The consolidated metadata of a zarr of format 2, by key."""
    try:
        entries = dict(json.loads(path.read_text(encoding="utf-8"))["metadata"])
        for key, entry in entries.items():
            if key.endswith("/.zarray") and np.dtype(entry["dtype"]).kind == "f":
                entry["fill_value"] = "NaN"  # chunks that aren't fetched are missing, and no zeros
        return entries
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidValueError(
            f"{url} has no consolidated metadata of a zarr of format 2 ({error}); give the zarr's own address."
        ) from error


def _is_axis(entries: dict[str, Any], key: str) -> bool:
    """Whether a key is that of a coordinate: an array along one dimension of its own name."""
    name = key.removesuffix("/.zarray")
    return key.endswith("/.zarray") and _dims(entries, name) == [name]


def _dims(entries: dict[str, Any], name: str) -> list[str]:
    """Names of an array's dimensions."""
    return list(entries.get(f"{name}/.zattrs", {}).get("_ARRAY_DIMENSIONS", []))


def _name(entries: dict[str, Any], variable: str, url: str) -> str:
    """The variable's name in the zarr."""
    names = (variable, *aliases(variable))
    for name in names:
        if f"{name}/.zarray" in entries:
            return name
    held = sorted(key.removesuffix("/.zarray") for key in entries if key.endswith("/.zarray"))
    raise InvalidValueError(f"{url} has no variable {' or '.join(names)}; it has {', '.join(held[:20])}.")


def _chunks(entries: dict[str, Any], name: str, records: np.ndarray | None) -> list[str]:
    """Keys of an array's chunks: all, or those that hold the records along time."""
    array, dims = entries[f"{name}/.zarray"], _dims(entries, name)
    counts = [range(-(-size // chunk)) for size, chunk in zip(array["shape"], array["chunks"], strict=True)]
    if records is not None:
        if "time" not in dims:
            raise InvalidValueError(f"{name} has the dimensions {dims}, none of which is time.")
        axis = dims.index("time")
        counts[axis] = sorted(set((records // array["chunks"][axis]).tolist()))  # type: ignore[call-overload]
    if (number := math.prod(len(count) for count in counts)) > _MOST_CHUNKS:
        raise InvalidValueError(
            f"{name} lies in {number} chunks, more than {_MOST_CHUNKS}; ask for fewer years at a time."
        )
    separator = array.get("dimension_separator", ".")
    return [f"{name}/{separator.join(map(str, index))}" for index in product(*counts)]
