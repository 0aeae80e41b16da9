"""Atomic writing of files: a reader sees the old content or the new one, never a part of it; sizes and checksums."""

import ctypes
import errno
import hashlib
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from slams.core.errors import MissingFileError, UntrustedCodeError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_NEARLY_FULL = 1 << 20  # bytes; libraries that swallow the errno leave less than this behind
_WINDOWS = os.name == "nt"
_PAUSES = (0.05, 0.2, 0.8, 2.0)  # [s] before another attempt to replace an open file


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary sibling of `path` which takes its place when the block ends without an error.

    The block writes a file or creates a folder under the yielded name. The name starts with a dot, so that
    globs such as `*.nc` pass over what a killed process left behind; such leftovers are removed by the next
    write of the same path.

    Args:
        path: Final path of the file or folder; its parent is created.

    Yields:
        The temporary path, in the same folder (a rename across file systems isn't atomic) and with the same
        suffix.

    Raises:
        OSError: If the disk is full, with the remedy; earlier content of `path` is untouched.
        FileNotFoundError: If the block wrote nothing.
        PermissionError: If the folder is read-only or, on Windows, another program keeps the file open.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic(folder / "a.txt") as temporary:
    ...     _ = temporary.write_text("whole")
    >>> [p.name for p in folder.iterdir()]
    ['a.txt']
    """
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(target)
    temporary = target.with_name(
        f"{_prefix(target)}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial{target.suffix}"
    )
    try:
        yield temporary
        if not temporary.exists():
            raise MissingFileError(f"nothing was written to {temporary}, which should become {target}.")
        flush(temporary)
        replace(temporary, target)
    except BaseException as error:  # KeyboardInterrupt too must leave nothing behind
        full = _is_full(error, target.parent)
        _remove(temporary)
        if full:
            raise OSError(
                errno.ENOSPC,
                f"the disk is full, {target} could not be written (what was there before is untouched): "
                "free some space, or let the result go elsewhere",
            ) from error
        raise


def writable(path: str | os.PathLike[str]) -> None:
    """Check that a file or folder can be made at `path` before hours of work go into it.

    Raises:
        PermissionError: If its folder is read-only.
        NotADirectoryError: If a file is where its folder should be.
    """
    target = Path(path).expanduser()
    folder = next(each for each in target.absolute().parents if each.exists())
    if not folder.is_dir():
        raise OSError(
            errno.ENOTDIR, f"{target} can't be written, {folder} is a file; let the result go elsewhere"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(  # which is a PermissionError by its number
            errno.EACCES, f"{target} can't be written, {folder} is read-only; let the result go elsewhere"
        )


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically.

    Args:
        path: The file, replaced as a whole.
        text: Its new content.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _prefix(target: Path) -> str:
    """Prefix of a temporary file's name: host before process id, which is unique on one machine only."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]
    return f".{target.stem}.{host}-"


def remove_leftovers(target: Path) -> None:
    """Remove temporary files of `target` left by processes of this machine that have ended."""
    prefix = _prefix(target)
    pattern = re.compile(
        re.escape(prefix) + r"(\d+)-[0-9a-f]{8}\.partial" + re.escape(target.suffix) + r"(\.old)?$"
    )
    for entry in os.scandir(target.parent):
        match = pattern.match(entry.name)
        if match and not _alive(int(match.group(1))) and (not match.group(2) or target.exists()):
            _remove(Path(entry.path))


def _alive(pid: int) -> bool:
    """Whether a process with this id is running."""
    import psutil  # `os.kill(pid, 0)` would interrupt the process on Windows

    return bool(psutil.pid_exists(pid))


def flush(path: Path) -> None:
    """Flush the content of a file or folder to disk before it is renamed."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "r+b" if _WINDOWS else "rb") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())


def replace(source: Path, target: Path) -> None:
    """Rename `source` to `target`, replacing a file or a folder.

    Args:
        source: A file or folder beside `target`.
        target: Its new name.

    Raises:
        PermissionError: If another program holds the target open, which Windows refuses to replace.
    """
    if not target.is_dir() or target.is_symlink():
        _rename(source, target)
    elif _exchange(source, target):
        _remove(source)
    else:  # no atomic exchange of folders here: two renames, the first undone if the second fails
        aside = source.with_name(source.name + ".old")
        _rename(target, aside)
        try:
            _rename(source, target)
        except BaseException:
            _rename(aside, target)
            raise
        _remove(aside)


def _rename(source: Path, target: Path) -> None:
    """Rename in one step; on Windows wait for programs that hold one of the paths open."""
    for pause in (*_PAUSES, None):
        try:
            return os.replace(source, target)
        except PermissionError as error:
            if not _WINDOWS:
                raise
            if pause is None:
                raise UntrustedCodeError(
                    f"{target} can't be replaced, because another program has it open; close it there and run this again."
                ) from error
            time.sleep(pause)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two paths in one step (Linux `renameat2`); False where the system can't."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, os.fsencode(first), here, os.fsencode(second), swap) == 0


def _remove(path: Path) -> None:
    """Remove a file or a folder that may not exist."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error means a full disk; HDF5 reports a nameless RuntimeError then."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return isinstance(error, (OSError, RuntimeError)) and shutil.disk_usage(folder).free < _NEARLY_FULL


def measure(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Size [bytes] and time of change [ns] of a file or of all in a folder: a cheap test of whether it changed."""
    stats = [os.stat(file) for file in _files(Path(path))]
    return sum(stat.st_size for stat in stats), max((stat.st_mtime_ns for stat in stats), default=0)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Checksum of a file, or of a folder: of its files' names and contents in order of name."""
    top = Path(path)
    if top.is_file():
        with top.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for each in _files(top):
        digest.update(f"{each.relative_to(top).as_posix()}\0{sha256_of(each)}\n".encode())
    return digest.hexdigest()


def _files(top: Path) -> Iterable[Path]:
    """The file, or the files of a folder in order of name."""
    if not top.is_dir():
        return [top]
    found = (Path(parent, name) for parent, _, names in os.walk(top) for name in names)
    return sorted(found, key=lambda file: file.relative_to(top).as_posix())
