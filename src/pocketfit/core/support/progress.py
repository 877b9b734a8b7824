"""How long work tells a person what it does: the effects are the caller's (a progress bar, log lines, nothing)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Tick = Callable[[int, int], None]  # (done, total)


class Watch(Protocol):
    """Somebody who looks on."""

    def say(self, sentence: str) -> None:
        """One sentence that the user should see once."""
        ...

    def step(self, what: str) -> Tick:
        """A piece of work begins; the returned function takes (done, total) as it goes on."""
        ...

    def best(self, words: str) -> None:
        """The best plan so far, in a few words."""
        ...


class Silent:
    """Nobody looks on."""

    def say(self, sentence: str) -> None:
        return

    def step(self, what: str) -> Tick:
        return lambda done, total: None

    def best(self, words: str) -> None:
        return
