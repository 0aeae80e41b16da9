"""Download of files to a data folder: complete, verified, and listed in its manifest."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import requests
from filelock import FileLock, Timeout

from slams.core.errors import InvalidValueError, SlamsError
from slams.core.files import measure, sha256_of
from slams.data.download.transfer import (
    Connection,
    Report,
    Stopped,
    TransferError,
    Version,
    download,
    forget,
    partial_of,
    public,
    version_of,
)
from slams.data.safety import contained, is_address, refuse_pickles
from slams.data.store.manifest import Row, file_row, md5_of, read_manifest, record_files

_RECORD_EVERY = 2.0  # seconds: a manifest of ten thousand files isn't rewritten for each
_NAMED = 10  # files that an error names one by one
_OPENING = threading.Lock()  # the libraries under netCDF crash if two threads open files at once


@dataclass(frozen=True)
class Item:
    """A file to download.

    Args:
        url: An http(s) address, or a local file or folder, which is read where it lies and never copied.
        name: Relative path under the data folder.
        sha256: Published checksum.
        md5: Published checksum.
        size: Published length [bytes].
        check: Opens the file; raises ValueError if its header isn't the expected one.
        grows: The source still adds to it (a year that isn't over): every run asks whether it has changed.
    """

    url: str
    name: str
    sha256: str | None = None
    md5: str | None = None
    size: int | None = None
    check: Callable[[Path], None] | None = None
    grows: bool = False


@dataclass(frozen=True)
class Fetched:
    """A complete and verified file.

    Args:
        item: Requested item.
        path: Path of the file: under the folder, or the local source itself.
        fresh: Whether this run brought it, or found it changed.
    """

    item: Item
    path: Path
    fresh: bool


class FetchError(SlamsError, OSError):
    """Some files failed to download; the others are complete."""


def fetch(
    items: Sequence[Item],
    folder: str | os.PathLike[str],
    *,
    jobs: int = 4,
    offline: bool = False,
    retries: int = 5,
    timeout: float = 30.0,
    progress: Report | None = None,
    sleep: Callable[[float], object] | None = None,
    jitter: Random | None = None,
) -> list[Fetched]:
    """Download files to a folder, verify them, and list them in its manifest.

    What the manifest has, by name, size and time of change, isn't brought again. Bytes come under a temporary
    name beside the target, from where the next run goes on if the server allows and the file is still the
    same; a whole file that passes its checks takes its name in one step. A file that somebody put there by
    hand is taken if it passes them too. A local source is read where it lies.

    Args:
        items: Items to download.
        folder: The data folder.
        jobs: Downloads at a time.
        offline: Use only what is there.
        retries: Attempts in a row that bring nothing new before a file is given up.
        timeout: Longest silence of a server [s].
        progress: Called with (name, bytes so far, bytes in all or None, remark) from several threads; see
            `download_bars`.
        sleep: Function that waits [s]; by default interrupted if another download fails.
        jitter: Source of the randomness in waiting times.

    Returns:
        The files, in the order of `items`.

    Raises:
        FetchError: If some can't be had, with address, what happened and the remedy; all others are there.
        ValueError: If an address or name is refused; nothing is brought then.
        OSError: If the disk is full.
    """
    root = Path(folder).expanduser()
    _check_names(items, root)
    stop, report = threading.Event(), progress or _silent

    def wait(seconds: float) -> None:
        if seconds > 0:
            (sleep or stop.wait)(seconds)
        if stop.is_set():
            raise Stopped

    with nullcontext() if offline else _held(root, report):  # offline needs no right to write
        place = _Folder(root, offline, retries, timeout, wait, jitter or Random(), report)
        return _gather(place, items, jobs, stop)


@contextmanager
def _held(root: Path, report: Report) -> Iterator[None]:
    """Exclusive lock of a folder; reports waiting for another process."""
    root.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / ".fetch.lock")  # the system releases it when its holder is killed
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report("", 0, None, f"waiting for another process that brings files into {root}")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@dataclass
class _Folder:
    """The state of one run in a data folder; its methods serve several threads."""

    root: Path
    offline: bool
    retries: int
    timeout: float
    wait: Callable[[float], None]
    jitter: Random
    report: Report

    def __post_init__(self) -> None:
        self.rows = {row["path"]: row for row in read_manifest(self.root)["files"]}
        self.local = threading.local()

    def get(self, item: Item) -> tuple[Fetched, Row | None]:
        """Fetch one item; returns its row if the manifest lacks it."""
        if not is_address(item.url):
            return self._read_in_place(item)
        target = contained(self.root, item.name)
        row, known = self._standing(item, target), self.rows.get(item.name)
        if row is not None and (self.offline or not item.grows):
            return Fetched(item, target, False), row if row is not known else None
        if self.offline:
            raise FetchError(
                f"it isn't at {target}" if not target.exists() else f"{target} isn't the file expected"
            )
        version = download(
            item.url,
            target,
            partial(_verify, item),
            Connection(self._session(), self.retries, self.timeout, self.wait, self.jitter, self.report),
            size=item.size,
            known=None if row is None else Version(row["url"], row.get("etag"), row.get("last_modified")),
        )
        if version is None:
            return Fetched(item, target, False), row if row is not known else None
        new = _row(target, item, version)
        return Fetched(item, target, row is None or row["sha256"] != new["sha256"]), new

    def _standing(self, item: Item, target: Path) -> Row | None:
        """Manifest row of the target, None unless it is the complete file."""
        if not target.is_file():
            return None
        row = self.rows.get(item.name)
        if row is not None and _fits(item, row) and measure(target) == (row["size"], row.get("mtime_ns")):
            if not self.offline and not partial_of(target)[0].exists():
                forget(target)  # left by a kill just after the row was written
            return row
        # Moved, put there by hand, changed since, or named just before a kill: then its note is still there.
        note = version_of(target)
        size = target.stat().st_size
        came = note is not None and note.length in (None, size) and not partial_of(target)[0].exists()
        evidence = item.size is not None or item.sha256 or item.md5 or item.check is not None
        if not came and row is None and not evidence and not self.offline:
            return None
        try:
            _verify(item, target)
        except ValueError:
            return None
        new = _row(target, item, note if came else None)
        if row is not None and not came:  # what changed since it was checked isn't trusted for its header
            return {**row, "mtime_ns": new["mtime_ns"]} if row["sha256"] == new["sha256"] else None
        return new

    def _read_in_place(self, item: Item) -> tuple[Fetched, Row | None]:
        """A local file or folder, checked where it lies."""
        path = Path(item.url).expanduser().absolute()
        if not path.exists():
            raise FetchError(f"there is no {path}")
        row = self.rows.get(str(path))
        if row is not None and _fits(item, row) and measure(path) == (row["size"], row.get("mtime_ns")):
            return Fetched(item, path, False), None
        try:
            _verify(item, path)
        except ValueError as error:
            raise FetchError(f"{path} isn't the file expected: {error}") from error
        new = file_row(path, str(path), str(path))
        return Fetched(item, path, row is None or row["sha256"] != new["sha256"]), new

    def _session(self) -> requests.Session:
        """The session of this thread, which keeps its connections."""
        if not hasattr(self.local, "session"):
            self.local.session = requests.Session()
        session: requests.Session = self.local.session
        return session


def _gather(place: _Folder, items: Sequence[Item], jobs: int, stop: threading.Event) -> list[Fetched]:
    """Fetch all items, record them periodically, and report the missing ones at the end."""
    done: dict[int, Fetched] = {}
    failed: dict[int, str] = {}
    pending: list[Row] = []
    last = time.monotonic()
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        futures = {pool.submit(place.get, item): i for i, item in enumerate(items)}
        try:
            for future in as_completed(futures):
                i = futures[future]
                try:
                    done[i], row = future.result()
                except (FetchError, TransferError) as error:
                    failed[i] = str(error)
                    continue
                pending += [] if row is None else [row]
                if time.monotonic() - last > _RECORD_EVERY:
                    _record(place, pending)
                    pending, last = [], time.monotonic()
        except BaseException:  # a full disk, Ctrl-C: the others end too, what came so far stays
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            _record(place, pending)
    if failed:
        raise FetchError(_missing(items, failed, place))
    return [done[i] for i in range(len(items))]


def _record(place: _Folder, rows: Iterable[Row]) -> None:
    """Write rows to the manifest, and only then remove the notes that would restore them after a kill."""
    rows = list(rows)
    if place.offline and not os.access(place.root, os.W_OK):
        return  # a folder shared for reading
    record_files(place.root, rows)
    for row in rows:
        if is_address(row["url"]):  # beside a source that is read in place lies nothing of ours
            forget(place.root / row["path"])


def _missing(items: Sequence[Item], failed: dict[int, str], place: _Folder) -> str:
    lines = [f"  {items[i].name}: {failed[i]}" for i in sorted(failed)[:_NAMED]]
    if len(failed) > _NAMED:
        lines.append(f"  ... and {len(failed) - _NAMED} more")
    remedy = "; run without --offline to bring them" if place.offline else ""
    return f"{len(failed)} of {len(items)} files are missing in {place.root}{remedy}:\n" + "\n".join(lines)


def _verify(item: Item, path: Path) -> None:
    """Length, checksums and header of a file; ValueError names the fault."""
    size = measure(path)[0]
    if item.size is not None and size != item.size:
        raise InvalidValueError(f"it has {size} bytes, {item.size} were published")
    for wanted, checksum in ((item.sha256, sha256_of), (item.md5, md5_of)):
        if wanted is not None and (found := checksum(path)) != wanted.lower():
            raise InvalidValueError(f"its checksum is {found}, {wanted} was published")
    refuse_pickles(path)
    if item.check is not None:
        try:
            with _OPENING:
                item.check(path)
        except (OSError, KeyError) as error:  # as netCDF4 says of a truncated file
            raise InvalidValueError(f"it can't be opened ({error})") from error


def _fits(item: Item, row: Row) -> bool:
    """Whether a row is of the file that was published."""
    return item.size in (None, row.get("size")) and item.sha256 in (None, row.get("sha256"))


def _row(target: Path, item: Item, version: Version | None) -> Row:
    version = version or Version(public(item.url))
    return file_row(target, item.name, version.url, etag=version.etag, last_modified=version.last_modified)


def _check_names(items: Sequence[Item], root: Path) -> None:
    """Check addresses and names before any download."""
    seen: dict[Path, str] = {}
    for item in items:
        if not is_address(item.url):
            continue  # read where it lies, whatever its name
        path = contained(root, item.name)
        if seen.setdefault(path, item.url) != item.url:
            raise InvalidValueError(f"{seen[path]} and {item.url} would both be {path}; give them two names.")


def _silent(name: str, done: int, total: int | None, remark: str) -> None:
    """No report."""
