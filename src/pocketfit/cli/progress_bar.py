"""Progress on stderr: a bar with the time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from pocketfit.core.support.processes import rank
from pocketfit.core.support.progress import Tick

if TYPE_CHECKING:
    from rich.progress import Progress

QUIET_S = 2.0  # shorter work shows no bar


class PlainWatch:
    """Sentences on stderr, no bars: for logs and pipes."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet

    def __enter__(self) -> PlainWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def say(self, sentence: str) -> None:
        if not self._quiet:
            with contextlib.suppress(OSError):  # a run goes on without the log that it writes to
                click.echo(sentence, err=True)

    def step(self, what: str) -> Tick:
        return lambda done, total: None

    def best(self, words: str) -> None:
        self.say(f"best so far: {words}")


class BarWatch:
    """One line at the bottom of the terminal: the present work, a bar with the time left, the best plan so far."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeRemainingColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[best]}", style="green"),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, best="")
        self._words = ""

    def __enter__(self) -> BarWatch:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        from rich.markup import escape

        self._progress.console.print(escape(sentence), highlight=False)

    def step(self, what: str) -> Tick:
        started = time.monotonic()
        self._progress.reset(self._task, description=what, total=None, best=self._words)

        def tick(done: int, total: int) -> None:
            if time.monotonic() - started > QUIET_S or done == total:
                self._progress.update(self._task, completed=done, total=total)

        return tick

    def best(self, words: str) -> None:
        self._words = f"best so far: {words}"
        self._progress.update(self._task, best=self._words)


def watch_for_terminal(quiet: bool = False) -> PlainWatch | BarWatch:
    """The bar where stderr is a terminal, else plain lines; of several processes only the first one prints."""
    quiet = quiet or not rank().first
    return BarWatch() if sys.stderr.isatty() and not quiet else PlainWatch(quiet)
