"""`manifest.json`: contents of a data folder, their sources, and the history of processing."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import zarr
from filelock import FileLock

from slams.core.files import measure, sha256_of, write_text

NAME = "manifest.json"
Row = dict[str, Any]
Manifest = dict[str, list[Row]]


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """The manifest of a folder: {"files": [...], "stores": [...], "history": [...]}, empty where there is none.

    Args:
        folder: The data folder.

    Returns:
        Rows. Files: path (under the folder; absolute if it is read where it lies), url, date, size [bytes],
        sha256, version, mtime_ns, etag, last_modified. Stores: path, url, date, size, sha256, version.
        History: date, what, settings, version.

    Raises:
        ValueError: If the file there isn't a manifest of this package.
    """
    path = Path(folder).expanduser() / NAME
    empty: Manifest = {"files": [], "stores": [], "history": []}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return empty
    except ValueError as error:
        raise _not_ours(path, str(error)) from error
    if isinstance(found, list):  # the form before files were listed
        found = {"stores": found}
    if not isinstance(found, dict) or not all(
        key in empty and isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        for key, rows in found.items()
    ):
        raise _not_ours(path, "expected lists of rows under `files`, `stores` and `history`")
    if any("path" not in row for key in ("files", "stores") for row in found.get(key, [])):
        raise _not_ours(path, "a row has no `path`")
    return {**empty, **found}


def file_row(
    path: str | os.PathLike[str],
    name: str,
    url: str,
    *,
    etag: str | None = None,
    last_modified: str | None = None,
) -> Row:
    """The manifest's row of a file or folder that was fetched; reads all of it.

    Args:
        path: Path of the file.
        name: Its name in the manifest.
        url: Address of its source.
        etag: Entity tag of its version, from the server.
        last_modified: Likewise.

    Returns:
        The row.
    """
    size, mtime = measure(path)
    return {
        "path": name,
        "url": url,
        "date": _now(),
        "size": size,
        "sha256": sha256_of(path),
        "version": processing_version(),
        "mtime_ns": mtime,
        "etag": etag,
        "last_modified": last_modified,
    }


def md5_of(path: str | os.PathLike[str]) -> str:
    """MD5 checksum of a file, as published by older archives; detects accidental damage only."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def record_files(folder: str | os.PathLike[str], rows: Sequence[Row]) -> None:
    """Add or replace rows of files, by path; the rest of the manifest stays.

    Args:
        folder: The data folder.
        rows: New rows, from `file_row`.
    """

    def change(manifest: Manifest) -> None:
        known = {row["path"]: row for row in manifest["files"]} | {row["path"]: row for row in rows}
        manifest["files"] = [known[path] for path in sorted(known)]

    if rows:
        _update(folder, change)


def record_history(folder: str | os.PathLike[str], what: str, settings: Mapping[str, Any]) -> None:
    """Add a line to the history: what was processed when, by which version, with which settings.

    A line that is there already, apart from its date, isn't repeated: a run after a kill leaves the history
    of an undisturbed one.

    Args:
        folder: The data folder.
        what: Such as "precip.zarr: 1979".
        settings: JSON-serializable settings.
    """
    line = {"what": what, "settings": dict(settings), "version": processing_version()}
    line = json.loads(json.dumps(line))  # as it will be read, tuples as lists

    def change(manifest: Manifest) -> None:
        said = [{key: row.get(key) for key in line} for row in manifest["history"]]
        if line not in said:
            manifest["history"].append({"date": _now(), **line})

    _update(folder, change)


def write_manifest(folder: str | os.PathLike[str]) -> list[Row]:
    """List the stores of a folder in its manifest, from the attributes of each; files and history stay.

    Args:
        folder: Folder of the stores.

    Returns:
        The rows of stores: path, url, date, size [bytes], sha256 and version of each.
    """
    rows: list[Row] = []

    def change(manifest: Manifest) -> None:  # listed under the lock: two writers may finish at once
        rows.extend(_stores(Path(folder).expanduser(), manifest["stores"]))
        manifest["stores"] = rows

    _update(folder, change)
    return rows


def processing_version() -> str:
    """Version of the package, where it's installed."""
    try:
        return version("slams")
    except PackageNotFoundError:
        return "source tree"


def _update(folder: str | os.PathLike[str], change: Callable[[Manifest], None]) -> None:
    """Read, change and replace the manifest, alone among threads and processes."""
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".manifest.lock"):  # the system releases it when its holder is killed
        manifest = read_manifest(root)
        before = json.dumps(manifest)
        change(manifest)
        if json.dumps(manifest) != before or not (root / NAME).exists():
            write_text(root / NAME, json.dumps(manifest, indent=2) + "\n")


def _stores(folder: Path, old: Sequence[Row]) -> list[Row]:
    """Rows of the stores of a folder; one whose content is what it was keeps its date."""
    dates = {(row["path"], row.get("sha256")): row.get("date") for row in old}
    rows = []
    for path in sorted(folder.glob("[!.]*.zarr")):  # a dot: not finished
        try:
            attrs = dict(zarr.open_group(path, mode="r").attrs)
        except (OSError, ValueError):
            continue  # another program's zarr, such as an older format; not ours to list
        if "fingerprint" in attrs:
            seal = str(attrs["fingerprint"])
            row = {"path": path.name, "url": attrs.get("url"), "date": dates.get((path.name, seal)) or _now()}
            rows.append(row | {"size": measure(path)[0], "sha256": seal, "version": attrs.get("version")})
    return rows


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _not_ours(path: Path, why: str) -> ValueError:
    return ValueError(
        f"{path} isn't a manifest of this package ({why}); move it away: the next run lists anew what lies in "
        "the folder."
    )
