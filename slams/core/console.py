"""Progress on the terminal: bars with rate and remaining time, plain lines where there is no terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SILENCE = 30.0  # seconds without a line
_LOG_WIDTH = (
    126  # a file has no edge at 80 characters, where tables of twelve columns would break their cells
)

Advance = Callable[[int, str], None]


class Console:
    """Output of a run on the terminal: progress bars and status lines.

    Args:
        quiet: Whether to suppress all output.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.rich = RichConsole(quiet=quiet, highlight=False)
        if not self.rich.is_terminal:
            self.rich.width = max(self.rich.width, _LOG_WIDTH)
        self.quiet = quiet

    def say(self, text: str) -> None:
        """One line."""
        self.rich.print(text)

    def reused(self, what: str) -> None:
        """Report a stage whose result is reused from an earlier run."""
        self.say(f"{what}: reused, its inputs are unchanged")

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """A bar of `total` units; the block calls advance(units, message).

        Without a terminal, a line about twice a minute says what is done and about how long the rest takes.
        """
        start = time.monotonic()
        last, done, told = [""], [0], [start]
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[message]}"),
        )
        quiet = self.quiet or not self.rich.is_terminal  # a log would get an empty line for every bar
        with Progress(*columns, console=self.rich, transient=True, disable=quiet) as progress:
            task = progress.add_task(title, total=total, message="")

            def advance(units: int = 1, message: str = "") -> None:
                last[0] = message or last[0]
                done[0] += units
                progress.update(task, advance=units, message=last[0])
                now = time.monotonic()
                if not self.rich.is_terminal and now - told[0] > _SILENCE and 0 < done[0] < total:
                    told[0] = now
                    left = (now - start) * (total - done[0]) / done[0]
                    self.say(
                        f"{title}: {done[0]} of {total}, {now - start:.0f} s, about {left:.0f} s left  {last[0]}"
                    )

            yield advance
        self.say(f"{title}: {time.monotonic() - start:.0f} s  {last[0]}")
