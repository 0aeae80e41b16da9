"""Download of one file over HTTP: streamed, resumed, retried, verified, and renamed atomically."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from random import Random
from urllib.parse import urlsplit, urlunsplit

import requests
import urllib3

from slams.core.errors import SlamsError
from slams.core.files import replace, write_text
from slams.data.store.manifest import processing_version

Report = Callable[[str, int, int | None, str], None]

_BLOCK = 1 << 16  # bytes; what a connection that breaks may lose
_RETRIED = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT = 120.0  # seconds, also where a server asks for more
_STRONG_AFTER = 60.0  # seconds; a younger Last-Modified may hide a second change (RFC 9110, 8.8.2.2)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TransferError(SlamsError, OSError):
    """A failed download; names the address, the cause and the remedy."""


class Stopped(Exception):
    """Stopped by a fatal error of another download."""


@dataclass(frozen=True)
class Version:
    """Version of the content of an address.

    Args:
        url: The address.
        etag: Entity tag from the server.
        last_modified: Date of last modification from the server.
        strong: Validator for If-Range, equal only if every byte is.
        length: Length of the whole file [bytes].
    """

    url: str
    etag: str | None = None
    last_modified: str | None = None
    strong: str | None = None
    length: int | None = None


@dataclass(frozen=True)
class Connection:
    """Settings of the connection to servers.

    Args:
        session: Session of this thread.
        retries: Attempts in a row that may bring nothing new.
        timeout: Longest silence [s].
        wait: Sleeps [s]; raises `Stopped` if all shall end.
        jitter: Random factor of the back-off, so that clients do not retry simultaneously.
        report: Called with name, bytes so far, bytes in all, remark.
    """

    session: requests.Session
    retries: int
    timeout: float
    wait: Callable[[float], None]
    jitter: Random
    report: Report


class _Again(Exception):
    """A transient failure of an attempt."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class _Wrong(Exception):
    """Complete content that fails verification."""


def public(url: str) -> str:
    """The address without a user's name and password."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def partial_of(target: Path) -> tuple[Path, Path]:
    """Partial file of a download, and the version of its content."""
    part = target.with_name(f".{target.stem}.part{target.suffix}")  # readers may go by the suffix
    return part, target.with_name(f".{target.name}.part.json")


def version_of(target: Path) -> Version | None:
    """Note on a target's bytes, kept during the download and until the manifest records them."""
    note = partial_of(target)[1]
    try:
        return Version(**json.loads(note.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None  # no note: the bytes, if any, are of no known version, and start anew


def download(
    url: str,
    target: Path,
    verify: Callable[[Path], None],
    connection: Connection,
    *,
    size: int | None = None,
    known: Version | None = None,
) -> Version | None:
    """Download one file.

    Args:
        url: Its address.
        target: Target file; replaced only by a complete, checked file. Its note stays until `forget`.
        verify: Raises ValueError if the bytes aren't the file.
        connection: Connection settings.
        size: Published length [bytes].
        known: The version that lies at `target`: nothing is brought if it's still that one.

    Returns:
        What came; None if `known` still holds.

    Raises:
        TransferError: If it can't be had.
        OSError: If the disk is full; what has come stays, and the next run goes on from there.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    furthest, failures, wrong = _size(partial_of(target)[0]), 0, 0
    while True:
        try:
            version = _attempt(url, target, connection, size, known)
            if version is not None:
                _finish(target, verify)
            return version
        except _Wrong as error:
            forget(target)
            partial_of(target)[0].unlink(missing_ok=True)
            wrong += 1
            if wrong > 1:  # once is an accident on the way, twice is the file
                raise TransferError(
                    f"{public(url)} came twice and isn't the file expected: {error}. Its source may have changed "
                    "it: look there, or take another source."
                ) from error
        except _Again as error:
            have = _size(partial_of(target)[0])
            failures = 0 if have > furthest else failures + 1
            furthest = max(have, furthest)
            if failures > connection.retries:
                raise TransferError(
                    f"{public(url)} failed {failures} times in a row: {error}. Run the command again later (it "
                    "goes on from what has come), or take another source."
                ) from error
            back_off = 2.0 ** max(0, failures - 1) * connection.jitter.uniform(0.5, 1.0)
            pause = min(error.after or back_off, _LONGEST_WAIT)
            connection.report(target.name, have, None, f"{error}; again in {pause:.0f} s")
            connection.wait(pause)


def forget(target: Path) -> None:
    """Remove the note of a file that the manifest now has."""
    partial_of(target)[1].unlink(missing_ok=True)


def _attempt(
    url: str, target: Path, connection: Connection, size: int | None, known: Version | None
) -> Version | None:
    """Send one request and store its body; None if the server reports `known` as current."""
    part = partial_of(target)[0]
    have = version_of(target)
    offset = _size(part) if have is not None and have.url == public(url) and have.strong else 0
    if have is not None and offset and offset == have.length:
        return have  # killed between the last byte and the name
    headers = {"Accept-Encoding": "identity", "User-Agent": f"slams/{processing_version().replace(' ', '-')}"}
    if offset and have is not None:
        headers |= {"Range": f"bytes={offset}-", "If-Range": str(have.strong)}
    elif known is not None and known.etag:
        headers["If-None-Match"] = known.etag
    elif known is not None and known.last_modified:
        headers["If-Modified-Since"] = known.last_modified
    try:
        with connection.session.get(
            url, headers=headers, stream=True, timeout=connection.timeout
        ) as response:
            if response.status_code == 304 and known is not None:
                return None
            version, offset = _judge(response, url, target, have if offset else None, offset)
            _check_length(response, version, size)
            _pour(response, target, version, offset, connection)
            return version
    except (requests.exceptions.InvalidSchema, requests.exceptions.InvalidURL) as error:
        raise TransferError(
            f"{public(url)} leads to an address that isn't http or https ({error}); refused."
        ) from error
    except requests.TooManyRedirects as error:
        raise TransferError(f"{public(url)} leads in circles ({error}); take another source.") from error
    except (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError, TimeoutError) as error:
        raise _Again(_plain(error)) from error


def _judge(
    response: requests.Response, url: str, target: Path, have: Version | None, offset: int
) -> tuple[Version, int]:
    """Version of the content of a response, and the offset of its first byte."""
    status, headers = response.status_code, response.headers
    if status == 200:
        return _version(response, url), 0
    if status == 206 and have is not None:
        start, total = _content_range(response)
        marks = ((headers.get("ETag"), have.etag), (headers.get("Last-Modified"), have.last_modified))
        same = all(now is None or then is None or now == then for now, then in marks)
        if same and start == offset and have.length in (None, total):
            return Version(**{**asdict(have), "length": total}), offset
    if status in (206, 416):
        partial_of(target)[0].unlink(missing_ok=True)
        raise _Again(f"status {status} doesn't fit the {offset} bytes that have come; from the start")
    if status in _RETRIED:
        raise _Again(f"status {status} {response.reason}", _retry_after(response))
    remedy = {
        401: "log in there",
        403: "log in there",
        404: "correct the address or the years",
        410: "it is gone",
    }
    raise TransferError(
        f"{public(url)} answered {status} {response.reason}: {remedy.get(status, 'look at it in a browser')}, or "
        "take another source."
    )


def _version(response: requests.Response, url: str) -> Version:
    """The version a whole response belongs to."""
    headers = response.headers
    etag, modified = headers.get("ETag"), headers.get("Last-Modified")
    length = headers.get("Content-Length", "")
    strong = etag if etag and not etag.startswith("W/") else None
    if etag is None and modified and _age(modified, headers.get("Date")) >= _STRONG_AFTER:
        strong = modified
    return Version(public(url), etag, modified, strong, int(length) if length.isdecimal() else None)


def _check_length(response: requests.Response, version: Version, size: int | None) -> None:
    """Reject a body of undefined length, or one that differs from the published file."""
    if size is not None and version.length not in (None, size):
        raise TransferError(
            f"{version.url} has {version.length} bytes, but {size} were published: its source has changed it; "
            "look there, or take another source."
        )
    if version.length is None and size is None and not getattr(response.raw, "chunked", False):
        raise TransferError(
            f"{version.url} comes without a length, so its end is unknown; take another source."
        )


def _pour(
    response: requests.Response, target: Path, version: Version, offset: int, connection: Connection
) -> None:
    """Write a body behind the first `offset` bytes of the partial file."""
    part, note = partial_of(target)
    try:
        if not offset:
            part.unlink(missing_ok=True)  # never the old bytes under the new note
            write_text(note, json.dumps(asdict(version)))
        _check_space(target, version, offset)
        with part.open("ab") as out:
            size = offset
            connection.report(target.name, size, version.length, "")
            # undecoded: the archive's bytes are what checksums are of, also where it serves .gz as an encoding
            while block := response.raw.read(_BLOCK, decode_content=False):
                out.write(block)
                out.flush()
                size += len(block)
                connection.report(target.name, size, version.length, "")
                connection.wait(0.0)
            os.fsync(out.fileno())
    except OSError as error:
        if error.errno in _FULL:
            raise _full(target, error) from error
        raise
    if version.length is not None and size != version.length:
        raise _Again(f"the connection ended after {size} of {version.length} bytes")


def _finish(target: Path, verify: Callable[[Path], None]) -> None:
    """Verify the bytes, then rename the file."""
    part = partial_of(target)[0]
    try:
        verify(part)
    except ValueError as error:
        raise _Wrong(str(error)) from error
    replace(part, target)


def _check_space(target: Path, version: Version, offset: int) -> None:
    free = shutil.disk_usage(target.parent).free
    needed = (version.length or 0) - offset
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed} bytes are to come and {free} are free")


def _full(target: Path, error: OSError) -> OSError:
    return OSError(
        errno.ENOSPC,
        f"the disk is full, {target} could not be finished ({error.strerror}). Nothing is lost: free some space "
        "and run the command again, it goes on from what has come",
    )


def _content_range(response: requests.Response) -> tuple[int, int | None]:
    """First byte and total length of `bytes 7-99/100`; -1 where it can't be read, which fits no offset."""
    span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    first = span.partition("-")[0].strip()
    return int(first) if first.isdecimal() else -1, int(total) if total.isdecimal() else None


def _retry_after(response: requests.Response) -> float | None:
    """Retry delay requested by the server [s], from a number or a date."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    return max(0.0, -_age(text, None)) if text else None


def _age(date: str, now: str | None) -> float:
    """Seconds from an HTTP date to another, by default the present; 0 if either can't be read."""
    try:
        end = parsedate_to_datetime(now) if now else datetime.now(UTC)
        return (end - parsedate_to_datetime(date)).total_seconds()
    except (ValueError, TypeError):
        return 0.0


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _plain(error: Exception) -> str:
    """Cause of a network error, without the layers of libraries."""
    if isinstance(error, (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError)):
        return "the server was silent for too long"
    if isinstance(error, urllib3.exceptions.ProtocolError):
        return "the connection broke"
    cause = re.findall(r"\[Errno -?\d+\] ([^'\")]+)", str(error))
    return f"the connection failed ({cause[-1] if cause else error})"
