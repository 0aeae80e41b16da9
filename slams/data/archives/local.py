"""Local files: listing, and contents by their headers."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import xarray as xr

from slams.core.errors import MissingFileError
from slams.data.files import axes
from slams.data.files.canonical import calendar_days
from slams.data.files.periods import years_of
from slams.data.safety import is_address

_SUFFIXES = (".nc", ".nc4", ".zarr")  # and formats of an archive's own


def is_local(source: str | Path) -> Path | None:
    """A local source as a path, None for an address.

    Args:
        source: Source as given by the user.

    Returns:
        The path, which exists.

    Raises:
        FileNotFoundError: If it doesn't.
        ValueError: If it is an address of another scheme.
    """
    if is_address(source):
        return None
    path = Path(source).expanduser()
    if not path.exists():
        raise MissingFileError(f"the source {path} isn't there; give an http(s) address or a folder that is.")
    return path


def years_in(dataset: xr.Dataset, path: Path) -> list[int]:
    """Years with records in an open file.

    Args:
        dataset: The open file.
        path: The file, for messages.

    Returns:
        Years, rising; none if nothing in the file is a time.
    """
    for name, variable in dataset.variables.items():
        if variable.ndim < 2 and axes.role_of(name, variable) == "time":
            days = calendar_days(dataset[name], str(path))
            return np.unique(years_of(days)).tolist()
    return []


def fields_under(top: Path, own: Callable[[Path], object]) -> Iterator[Path]:
    """Paths of possible field files by their suffix, without hidden ones and parts of a zarr.

    Args:
        top: A folder, or one file.
        own: Whether a file is of a format of the archive's own.

    Yields:
        Paths in order.
    """
    if top.suffix == ".zarr" or top.is_file():
        yield top
        return
    for entry in sorted(top.iterdir()):
        if entry.name.startswith(".") or entry.is_symlink() and not entry.exists():
            continue
        if entry.suffix.lower() in _SUFFIXES or own(entry):
            yield entry
        elif entry.is_dir() and not entry.is_symlink():  # a link to a folder may lead in a circle
            yield from fields_under(entry, own)
