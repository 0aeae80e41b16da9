"""Safe unpacking of foreign archives: confined to the folder, without code execution, limited in size, atomic."""

import errno
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import IO, BinaryIO

from filelock import FileLock

from slams.core.errors import InvalidValueError, MissingFileError
from slams.core.files import atomic
from slams.data.safety import contained, refuse_pickles
from slams.data.store.manifest import Row, file_row, measure, read_manifest, record_files

_DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    struct.error,
)
_BLOCK = 1 << 20
_RECORD_EVERY = 2.0  # seconds
_END, _END64, _LOCATOR64 = b"PK\5\6", b"PK\6\6", b"PK\6\7"
_LONGEST_END = 22 + 65535 + 20 + 56  # end record with the longest comment, and the two before it in zip64


@dataclass(frozen=True)
class _Member:
    """One file of an archive."""

    name: str
    size: int
    mark: str  # identifies the content without reading it
    open: Callable[[], IO[bytes]]


def unpack(
    archive: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    limit: int | None = None,
    progress: Callable[[str, int, int | None, str], None] | None = None,
) -> list[Path]:
    """Unpack a zip (also in parts) or a tar; each file or zarr appears whole or not at all.

    What is there already from the same archive is left alone, so that a run after a kill goes on. Each piece
    is listed in the folder's manifest.

    Args:
        archive: The file, or its parts in order; see `parts_of`.
        folder: Output folder.
        wanted: Predicate on the names of members; others are not read.
        limit: Most bytes to write; by default what the disk has free.
        progress: Called with (archive's name, bytes so far, bytes in all, remark).

    Returns:
        The files and zarr folders that are there now, in the archive's order.

    Raises:
        ValueError: If a member leaves the folder, is a link or device, or would load pickles, or if the
            archive is damaged. Members are judged before the first is written.
        OSError: If the disk is full.
    """
    parts = [archive] if isinstance(archive, (str, os.PathLike)) else list(archive)
    files = [Path(part).expanduser().absolute() for part in parts]
    root = Path(folder).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / ".fetch.lock"):
        try:
            with _opened(files) as members:
                pieces = _pieces([member for member in members if wanted(member.name)], root)
                return _extract(pieces, root, files[-1], limit, progress)
        except _DAMAGED as error:
            raise InvalidValueError(
                f"{files[-1]} isn't a whole zip or tar archive ({error}); fetch it, and all its parts, again."
            ) from error


def parts_of(path: str | os.PathLike[str]) -> list[Path]:
    """The parts of a split archive beside one of them, in order.

    Args:
        path: `NAME.zip` (with NAME.z01, NAME.z02, ... beside it) or `NAME.zip.001`.

    Returns:
        All parts; `[path]` if it is in one piece.

    Raises:
        FileNotFoundError: If a part in between is missing.
    """
    last = Path(path)
    counted = re.fullmatch(r"(.*\.)\d{3}", last.name)
    prefix = counted[1] if counted else f"{last.stem}.z"
    pattern = re.compile(re.escape(prefix) + (r"(\d{3})" if counted else r"(\d{2,})"))
    matches = (pattern.fullmatch(entry.name) for entry in os.scandir(last.absolute().parent))
    found = {int(match[1]): last.with_name(match.string) for match in matches if match}
    missing = sorted(set(range(1, max(found, default=0) + 1)) - set(found))
    if missing:
        raise MissingFileError(f"part {missing[0]} of {last} is missing beside it; fetch it.")
    return [found[n] for n in sorted(found)] + ([] if counted else [last])


@contextmanager
def _opened(files: Sequence[Path]) -> Iterator[list[_Member]]:
    """The members of an archive, which can be read while the block lasts."""
    with ExitStack() as stack:
        handles: list[BinaryIO] = [stack.enter_context(file.open("rb")) for file in files]
        lengths = [file.stat().st_size for file in files]
        if len(files) == 1 and tarfile.is_tarfile(files[0]):
            tar = stack.enter_context(tarfile.open(files[0]))
            yield list(_tar_members(tar, files[0]))
            return
        joined, starts = _Joined(handles, lengths), [0, *accumulate(lengths)]
        ending = _single_disk(io.BufferedReader(_Joined(handles, lengths)), lengths)
        if ending is not None:
            tail, position = ending
            spans = [min(max(position - start, 0), n) for start, n in zip(starts, lengths, strict=False)]
            joined = _Joined([*handles, io.BytesIO(tail)], [*spans, len(tail)])
        archive = stack.enter_context(zipfile.ZipFile(io.BufferedReader(joined, _BLOCK)))
        yield list(_zip_members(archive, files[-1], starts))


def _zip_members(archive: zipfile.ZipFile, path: Path, starts: Sequence[int]) -> Iterator[_Member]:
    for info in archive.infolist():
        info.header_offset += starts[info.volume]  # of its part, until here
        if hasattr(info, "_end_offset"):
            info._end_offset = None  # newer Pythons compare it with offsets that ignore parts
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _refused(path, info.filename, "a link or device")
        if info.flag_bits & 1:
            raise _refused(path, info.filename, "encrypted")
        if not info.is_dir():
            yield _Member(info.filename, info.file_size, f"{info.CRC:08x}", partial(archive.open, info))


def _tar_members(archive: tarfile.TarFile, path: Path) -> Iterator[_Member]:
    for info in archive:
        if not info.isreg() and not info.isdir():
            raise _refused(path, info.name, "a link or device")
        if info.isreg():
            yield _Member(info.name, info.size, f"{info.mtime}", partial(_tar_content, archive, info))
    rest = archive.fileobj
    while rest is not None and rest.read(_BLOCK):
        pass  # to the checksum at the end of what is compressed: nothing else detects damaged content


def _tar_content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    handle = archive.extractfile(info)
    assert handle is not None, "only regular files are members"
    return handle


def _refused(path: Path, name: str, what: str) -> ValueError:
    return ValueError(f"{path} holds {name!r}, which is {what}; refused, nothing was unpacked.")


def _pieces(members: Sequence[_Member], root: Path) -> dict[str, list[_Member]]:
    """Members grouped by unit of unpacking: a zarr, or a single file."""
    pieces: dict[str, list[_Member]] = {}
    seen: set[str] = set()
    for member in members:
        contained(root, member.name)
        parts = PurePosixPath(member.name).parts
        name = "/".join(parts)
        if name in seen:
            raise InvalidValueError(f"the archive holds {name!r} twice; refused, nothing was unpacked.")
        seen.add(name)
        depth = next((i + 1 for i, part in enumerate(parts) if part.endswith(".zarr")), len(parts))
        pieces.setdefault("/".join(parts[:depth]), []).append(member)
    return pieces


def _extract(
    pieces: dict[str, list[_Member]],
    root: Path,
    archive: Path,
    limit: int | None,
    progress: Callable[[str, int, int | None, str], None] | None,
) -> list[Path]:
    """Write the missing pieces, one at a time."""
    rows = {row["path"]: row for row in read_manifest(root)["files"]}
    marks = {name: _mark(members) for name, members in pieces.items()}
    todo = [name for name in pieces if not _stands(root / name, rows.get(name), marks[name])]
    total = sum(member.size for name in todo for member in pieces[name])
    _check_room(total, root, archive, limit)
    new: list[Row] = []
    done, last = 0, time.monotonic()
    try:
        for name in todo:
            _write(root / name, name, pieces[name], archive)
            new.append(file_row(root / name, name, str(archive), etag=marks[name]))
            done += sum(member.size for member in pieces[name])
            if progress:
                progress(archive.name, done, total, "")
            if time.monotonic() - last > _RECORD_EVERY:
                record_files(root, new)
                new, last = [], time.monotonic()
    finally:
        record_files(root, new)
    return [root / name for name in pieces]


def _write(target: Path, name: str, members: Sequence[_Member], archive: Path) -> None:
    """One file or zarr, in one step."""
    with atomic(target) as temporary:
        for member in members:
            inner = "/".join(PurePosixPath(member.name).parts).removeprefix(name).strip("/")
            file = temporary / inner if inner else temporary
            file.parent.mkdir(parents=True, exist_ok=True)
            size = 0
            with member.open() as source, file.open("xb") as out:
                while block := source.read(_BLOCK):
                    size += len(block)
                    if size > member.size:
                        break
                    out.write(block)
            if size != member.size:
                raise InvalidValueError(
                    f"{archive}: {member.name!r} isn't the {member.size} bytes it claims; fetch it again."
                )
        refuse_pickles(temporary)


def _mark(members: Sequence[_Member]) -> str:
    """Fingerprint of a piece's content, from the archive's own list."""
    listed = sorted(f"{member.name}\0{member.size}\0{member.mark}" for member in members)
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def _stands(path: Path, row: Row | None, mark: str) -> bool:
    """Whether a piece was unpacked before, and hasn't changed since."""
    known = row is not None and row.get("etag") == mark and path.exists()
    return known and row is not None and measure(path) == (row["size"], row["mtime_ns"])


def _check_room(total: int, root: Path, archive: Path, limit: int | None) -> None:
    if limit is not None and total > limit:
        raise InvalidValueError(f"{archive} would unpack to {total} bytes, {limit} are allowed; refused.")
    free = shutil.disk_usage(root).free
    if total > free:
        raise OSError(
            errno.ENOSPC,
            f"{archive} unpacks to {total} bytes, but {root} has {free} free: free some space, or let it go elsewhere",
        )


class _Joined(io.RawIOBase):
    """Several files one after the other, read as one."""

    def __init__(self, handles: Sequence[BinaryIO], lengths: Sequence[int]) -> None:
        self.handles, self.ends = handles, list(accumulate(lengths))
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.ends[-1]}[whence]
        self.position = max(0, base + offset)
        return self.position

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        for i, end in enumerate(self.ends):
            if self.position < end:
                start = self.ends[i - 1] if i else 0
                self.handles[i].seek(self.position - start)
                block = self.handles[i].read(min(len(buffer), end - self.position))
                buffer[: len(block)] = block
                self.position += len(block)
                return len(block)
        return 0


def _single_disk(whole: IO[bytes], lengths: Sequence[int]) -> tuple[bytes, int] | None:
    """The end of a zip in parts as if it were in one: with positions in the whole instead of in the parts.

    Always in the 64-bit form: parts of 1 GB each need none of it, a hundred of them in a row do.

    Returns:
        The end records and where they belong; None if the zip is in one piece, or was merely cut.
    """
    total = sum(lengths)
    base = max(0, total - _LONGEST_END)
    whole.seek(base)
    tail = whole.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it has no end record")
    disk, disk_of_list, _, entries, size, offset = struct.unpack_from("<4H2L", tail, end + 4)
    record = end - 20 - 56
    if record >= 0 and tail[end - 20 : end - 16] == _LOCATOR64 and tail[record : record + 4] == _END64:
        disk, disk_of_list, _, entries, size, offset = struct.unpack_from("<2L4Q", tail, record + 16)
    if disk == 0:
        return None
    if disk + 1 != len(lengths):
        raise zipfile.BadZipFile(f"it has {disk + 1} parts, {len(lengths)} are there")
    first = sum(lengths[:disk_of_list]) + offset
    position = first + size
    end64 = struct.pack("<4sQ2H2L4Q", _END64, 44, 45, 45, 0, 0, entries, entries, size, first)
    locator = struct.pack("<4sLQL", _LOCATOR64, 0, position, 1)
    return end64 + locator + struct.pack(
        "<4s4H2LH", _END, 0, 0, *[0xFFFF] * 2, *[0xFFFFFFFF] * 2, 0
    ), position
