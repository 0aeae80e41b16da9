"""An HTTP server with faults on order, and the ranges and conditions of a real one."""

import socket
import struct
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DAY = 86400.0


@dataclass
class Served:
    """One file of the server: its content and what the server says of its version."""

    content: bytes
    etag: str | None = '"1"'
    modified: float | None = 1.0e9  # seconds since 1970
    ranges: bool = True


@dataclass
class Request:
    """One request as it came, and the status it was answered with."""

    path: str
    headers: dict[str, str]
    status: int = 0


Fault = Callable[["Handler"], bool]  # True: the fault has answered the request


@dataclass
class Archive:
    """What the server has, the faults of its next requests, and the requests so far."""

    files: dict[str, Served] = field(default_factory=dict)
    faults: dict[str, list[Fault | None]] = field(default_factory=lambda: defaultdict(list))
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    pace: float = 0.0  # seconds between two pieces of a body
    ended: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    busy: int = 0
    most_busy: int = 0

    def put(self, name: str, content: bytes, **version) -> str:
        """Serve a file; returns its address."""
        self.files[f"/{name}"] = Served(content, **version)
        return f"{self.url}/{name}"

    def fail(self, name: str, *faults: Fault | None) -> None:
        """What goes wrong at the next requests of a file; None: nothing."""
        self.faults[f"/{name}"] += faults


class Handler(BaseHTTPRequestHandler):
    """Answers GET as RFC 9110 wants it, unless a fault comes first."""

    protocol_version = "HTTP/1.1"
    archive: Archive
    stop_after: int | None = None  # bytes of the body before the connection ends
    reset = False
    lie = 0  # added to Content-Length
    chunked = False
    no_length = False

    def log_message(self, format: str, *arguments) -> None:
        """Nothing to the terminal."""

    def do_GET(self) -> None:
        archive = self.archive
        self.seen = Request(self.path, {key.lower(): value for key, value in self.headers.items()})
        with archive.lock:
            archive.requests.append(self.seen)
            archive.busy += 1
            archive.most_busy = max(archive.most_busy, archive.busy)
            fault = archive.faults[self.path].pop(0) if archive.faults[self.path] else None
        try:
            self.stop_after, self.reset, self.lie, self.chunked, self.no_length = None, False, 0, False, False
            if not (fault and fault(self)):
                self.serve()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        finally:
            with archive.lock:
                archive.busy -= 1

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        """Send a whole answer, or as much of it as the fault allows."""
        self.seen.status = status
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        if self.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif not self.no_length and status != 304:
            self.send_header("Content-Length", str(len(body) + self.lie))
        self.end_headers()
        sent = body if self.stop_after is None else body[: self.stop_after]
        step = max(1, len(sent) // 20) if self.archive.pace else max(1, len(sent))
        for start in range(0, len(sent), step):
            piece = sent[start : start + step]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if self.chunked else piece)
            if self.archive.pace:
                time.sleep(self.archive.pace)
        broken = self.stop_after is not None and self.stop_after < len(body)
        if self.chunked and not broken:
            self.wfile.write(b"0\r\n\r\n")
        if broken or self.lie > 0 or self.no_length:
            self.close_connection = True
        if self.reset:  # RST instead of FIN
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

    def serve(self) -> None:
        """The file, a part of it, or that it hasn't changed."""
        served = self.archive.files.get(self.path)
        if served is None:
            return self.answer(404, {}, b"not here")
        version = {} if served.etag is None else {"ETag": served.etag}
        modified = None if served.modified is None else formatdate(served.modified, usegmt=True)
        if modified:
            version["Last-Modified"] = modified
        asked = self.seen.headers
        same = asked.get("if-none-match") == served.etag if "if-none-match" in asked else None
        if same is None and "if-modified-since" in asked:
            same = asked["if-modified-since"] == modified
        if same:
            return self.answer(304, version)
        start = asked.get("range", "").removeprefix("bytes=").partition("-")[0]
        condition = asked.get("if-range")
        if start and served.ranges and condition in (None, served.etag, modified):
            first, total = int(start), len(served.content)
            if first >= total:
                return self.answer(416, {"Content-Range": f"bytes */{total}"})
            span = {"Content-Range": f"bytes {first}-{total - 1}/{total}"}
            return self.answer(206, version | span, served.content[first:])
        return self.answer(200, version, served.content)


def drop(after: int, reset: bool = False) -> Fault:
    """The connection ends after some bytes of the body."""

    def fault(handler: Handler) -> bool:
        handler.stop_after, handler.reset = after, reset
        return False

    return fault


def stall(after: int, seconds: float) -> Fault:
    """Silence after some bytes of the body."""

    def fault(handler: Handler) -> bool:
        served = handler.archive.files[handler.path]
        handler.seen.status = 200
        handler.send_response(200)
        handler.send_header("ETag", str(served.etag))
        handler.send_header("Content-Length", str(len(served.content)))
        handler.end_headers()
        handler.wfile.write(served.content[:after])
        handler.wfile.flush()
        handler.archive.ended.wait(seconds)
        handler.close_connection = True
        return True

    return fault


def status(code: int, **headers: str) -> Fault:
    """Another status; keywords are headers, with _ for -."""

    def fault(handler: Handler) -> bool:
        handler.answer(code, {key.replace("_", "-"): value for key, value in headers.items()}, b"sorry")
        return True

    return fault


def wrong_length(lie: int) -> Fault:
    """A Content-Length that isn't the body's."""

    def fault(handler: Handler) -> bool:
        handler.lie = lie
        if lie < 0:
            handler.stop_after = len(handler.archive.files[handler.path].content) + lie
        return False

    return fault


def chunked(handler: Handler) -> bool:
    """No length, but an end mark."""
    handler.chunked = True
    return False


def endless(handler: Handler) -> bool:
    """Neither a length nor an end mark."""
    handler.no_length = True
    return False


def both(*faults: Fault) -> Fault:
    """Several faults of one request."""
    return lambda handler: any([fault(handler) for fault in faults])


def change(content: bytes, etag: str | None = '"2"', modified: float = 1.0e9 + DAY) -> Fault:
    """The file changes just before it's asked for again."""

    def fault(handler: Handler) -> bool:
        served = handler.archive.files[handler.path]
        handler.archive.files[handler.path] = Served(
            content, etag if served.etag else None, modified if served.modified else None, served.ranges
        )
        return False

    return fault


@contextmanager
def serving(pace: float = 0.0) -> Iterator[Archive]:
    """A server on a free port of this machine."""
    archive = Archive(pace=pace)
    handler = type("OneHandler", (Handler,), {"archive": archive})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    server.handle_error = lambda request, address: None  # clients that hang up are part of the tests
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        archive.ended.set()
        server.shutdown()
        server.server_close()
        thread.join()
