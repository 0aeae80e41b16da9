"""Safety of external input: it may name files, but neither choose their location nor run code."""

import gzip
import json
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from slams.core.errors import InvalidValueError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+):")  # two letters at least: C:\data is a path
_PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill"}
_ZARR_METADATA = {".zarray", ".zmetadata", "zarr.json"}
_MAX_METADATA = 1 << 27  # bytes; the consolidated metadata of a large archive has a few million


def is_address(source: str | os.PathLike[str]) -> bool:
    """Whether a source is an http(s) address (True) or a local path (False).

    Args:
        source: Address or path.

    Returns:
        True for http and https.

    Raises:
        ValueError: If the address has any other scheme, `file:` included.

    >>> is_address("https://example.org/precip.1998.nc"), is_address("mirror/precip.1998.nc")
    (True, False)
    """
    match = _SCHEME.match(source) if isinstance(source, str) else None
    if match is None:
        return False
    if match[1].lower() not in ("http", "https"):
        raise InvalidValueError(
            f"{source} has the scheme {match[1]!r}, but only http and https addresses and local paths are "
            "read; download it by other means and give its folder (write ./ before a local name with a "
            "colon)."
        )
    return True


def contained(folder: str | os.PathLike[str], name: str) -> Path:
    """The path of `name` under `folder`, if it stays there.

    Args:
        folder: The data folder; it may itself be a link.
        name: Relative path, with slashes.

    Returns:
        The absolute path.

    Raises:
        ValueError: If it is absolute, climbs out by `..` or by a link, has characters that no file of ours
            has, or would replace what the package keeps there itself (`manifest.json`, names with a dot in
            front).

    >>> contained("/data", "../etc/passwd")
    Traceback (most recent call last):
    slams.core.errors.InvalidValueError: the name '../etc/passwd' leaves the folder /data or is reserved in it; refused.
    """
    root = Path(folder).expanduser().resolve()
    parts = PurePosixPath(name).parts
    plain = name.isprintable() and "\\" not in name and ".." not in parts and not name.startswith("/")
    if not parts or not plain or parts[0].startswith(".") or parts == ("manifest.json",) or ":" in parts[0]:
        raise InvalidValueError(f"the name {name!r} leaves the folder {root} or is reserved in it; refused.")
    path = root.joinpath(*parts)
    if path.is_symlink() or not path.parent.resolve().is_relative_to(root):
        raise InvalidValueError(
            f"{path} is, or lies behind, a symbolic link that may lead out of {root}; refused: remove the "
            "link (the folder itself may be one)."
        )
    return path


def refuse_pickles(path: str | os.PathLike[str]) -> None:
    """Reject a file or folder (such as a zarr) that contains pickles, which can run any code.

    Args:
        path: The file or folder.

    Raises:
        ValueError: If it is a pickle, an npy of objects or a zarr with a pickle codec, or holds one.
    """
    top = Path(path)
    for file in _walk(top) if top.is_dir() else [top]:
        if file.suffix.lower() in _PICKLES:
            raise _refusal(file, "a pickle")
        if file.suffix == ".npy":
            with file.open("rb") as handle:
                _refuse_objects(handle, file)
        elif file.suffix == ".npz":
            with zipfile.ZipFile(file) as archive:
                for name in archive.namelist():
                    with archive.open(name) as member:
                        _refuse_objects(member, file)
        elif file.name in _ZARR_METADATA and _has_pickle_codec(_metadata(file)):
            raise _refusal(file, "a zarr with the codec `pickle`")


def read_packed(path: Path, most: int, first_line: bool = False) -> bytes:
    """Content of a file, unpacked where its first bytes say gzip, and never much more than expected.

    Args:
        path: The file.
        most: Largest length [bytes]; of a longer one, one byte more is read.
        first_line: Read the first line only, at most 4096 bytes of it.

    Raises:
        ValueError: If it is cut short or damaged.
    """
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if packed else file
        try:
            return stream.readline(4096) if first_line else stream.read(most + 1)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise InvalidValueError(f"{path} is cut short or damaged ({error}); fetch it again.") from error


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, files in os.walk(folder):
        for name in files:
            yield Path(parent, name)


def _refusal(file: Path, what: str) -> ValueError:
    return ValueError(
        f"{file} is {what}, which could run any code when read; refused: ask its author for netCDF or for a "
        "zarr of plain numbers."
    )


def _refuse_objects(handle: IO[bytes], file: Path) -> None:
    """Read the header of an npy, never its data."""
    try:
        version = np.lib.format.read_magic(handle)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        dtype = read(handle)[2]
    except ValueError as error:
        raise InvalidValueError(f"{file} isn't a readable npy ({error}); fetch it again.") from error
    if dtype.hasobject:
        raise _refusal(file, "an npy of Python objects")


def _metadata(file: Path) -> Any:
    if file.stat().st_size > _MAX_METADATA:
        raise InvalidValueError(
            f"{file} has {file.stat().st_size} bytes, too many for a zarr's metadata; refused."
        )
    try:
        return json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidValueError(
            f"{file} isn't readable as a zarr's metadata ({error}); fetch it again."
        ) from error


def _has_pickle_codec(node: Any) -> bool:
    """Whether a codec anywhere in a zarr's metadata unpickles: `id` in format 2, `name` in format 3."""
    if isinstance(node, list):
        return any(map(_has_pickle_codec, node))
    if not isinstance(node, dict):
        return False
    if any("pickle" in str(node.get(key, "")).lower() for key in ("id", "name")):
        return True
    return any(
        _has_pickle_codec(value) for key, value in node.items() if key not in ("attributes", ".zattrs")
    )
