"""Downloads on the terminal: bars with rate and remaining time; plain lines where there is no terminal."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from slams.data.download.transfer import Report


@contextmanager
def download_bars(console: Console | None = None) -> Iterator[Report]:
    """Progress bars of current downloads; each finished file prints one line.

    Args:
        console: Output console; by default the standard error.

    Yields:
        What `fetch` wants as `progress`.
    """
    console = console or Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[remark]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Bars(progress, console)


class _Bars:
    """Turns reports into bars and lines."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self.progress, self.console = progress, console
        self.tasks: dict[str, tuple[TaskID, float]] = {}
        self.lock = threading.Lock()

    def __call__(self, name: str, done: int, total: int | None, remark: str) -> None:
        with self.lock:
            if remark:
                self.console.print(f"{name}: {remark}" if name else remark, markup=False)
            if not name:
                return
            if name not in self.tasks:
                self.tasks[name] = self.progress.add_task(name, total=total, remark=""), time.monotonic()
            task, start = self.tasks[name]
            self.progress.update(task, completed=done, total=total, remark=remark)
            if total is not None and done >= total:
                self.progress.remove_task(task)
                del self.tasks[name]
                self.console.print(
                    f"{name}: {decimal(done)} in {time.monotonic() - start:.0f} s", markup=False
                )
