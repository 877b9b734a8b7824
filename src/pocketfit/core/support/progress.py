"""Progress reports of long work; the caller decides what becomes of them: a progress bar, log lines, nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tick = Callable[[int, int], None]  # (done, total)


class Watch(Protocol):
    """The receiver of progress reports."""

    def say(self, sentence: str) -> None:
        """Report a sentence that the user should see once."""
        ...

    def step(self, what: str) -> Tick:
        """Report that a piece of work begins; the returned function is called with (done, total) as it goes on."""
        ...

    def best(self, words: str) -> None:
        """Report the best plan so far, in a few words."""
        ...


class Silent:
    """A Watch that drops all reports."""

    def say(self, sentence: str) -> None:
        return

    def step(self, what: str) -> Tick:
        return lambda done, total: None

    def best(self, words: str) -> None:
        return
