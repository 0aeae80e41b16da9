"""Writing files so that a reader sees the old content or the new one, never half of it."""

import ctypes
import errno
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

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
        path: Where the finished file or folder shall be; its parent is created.

    Yields:
        The temporary path, in the same folder (a rename across file systems isn't atomic) and with the same
        suffix.

    Raises:
        OSError: If the disk is full, with the remedy; what stood at `path` before is untouched.
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
    _remove_leftovers(target)
    temporary = target.with_name(
        f"{_prefix(target)}{os.getpid()}-{uuid.uuid4().hex[:8]}.partial{target.suffix}"
    )
    try:
        yield temporary
        if not temporary.exists():
            raise FileNotFoundError(f"nothing was written to {temporary}, which should become {target}.")
        _flush(temporary)
        _replace(temporary, target)
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


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, atomically.

    Args:
        path: The file, replaced as a whole.
        text: Its new content.
    """
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _prefix(target: Path) -> str:
    """Name of a temporary file up to the process id: a process id means something on its own machine only."""
    host = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:32]
    return f".{target.stem}.{host}-"


def _remove_leftovers(target: Path) -> None:
    """Remove what processes of this machine that are no longer alive left while writing `target`."""
    prefix = _prefix(target)
    pattern = re.compile(re.escape(prefix) + r"(\d+)-[0-9a-f]{8}\.partial" + re.escape(target.suffix) + "$")
    for entry in os.scandir(target.parent):
        match = pattern.match(entry.name)
        if match and not _alive(int(match.group(1))):
            _remove(Path(entry.path))


def _alive(pid: int) -> bool:
    """Whether a process of this number runs."""
    import psutil  # `os.kill(pid, 0)` would interrupt the process on Windows

    return bool(psutil.pid_exists(pid))


def _flush(path: Path) -> None:
    """Ask the disk to hold the content before the name points to it."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with open(file, "r+b" if _WINDOWS else "rb") as handle:  # Windows flushes only what may be written
            os.fsync(handle.fileno())


def _replace(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`, replacing a file or a folder."""
    if not target.is_dir() or target.is_symlink():
        _replace_file(temporary, target)
    elif _exchange(temporary, target):
        _remove(temporary)
    else:  # no atomic exchange of folders here: two renames, the first undone if the second fails
        aside = temporary.with_name(temporary.name + ".old")
        os.rename(target, aside)
        try:
            os.rename(temporary, target)
        except BaseException:
            os.rename(aside, target)
            raise
        _remove(aside)


def _replace_file(temporary: Path, target: Path) -> None:
    """Rename a file; where an open file can't be replaced (Windows), wait a little for its readers."""
    pauses = list(_PAUSES) if _WINDOWS else []
    while True:
        try:
            return os.replace(temporary, target)
        except PermissionError as error:
            if not _WINDOWS:
                raise
            if not pauses:
                raise PermissionError(
                    f"{target} can't be replaced, because another program has it open; close it there and run this again."
                ) from error
            time.sleep(pauses.pop(0))


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
