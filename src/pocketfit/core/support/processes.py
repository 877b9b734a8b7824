"""Which of several processes this one is, where a launcher such as torchrun has started many for one command.

torchrun says so by environment variables (docs.pytorch.org/docs/stable/elastic/run.html): RANK, WORLD_SIZE, LOCAL_RANK.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pocketfit.core.errors import UserError

LAUNCHED = ("apply", "train")  # the verbs that several processes can carry out together


@dataclass(frozen=True)
class Rank:
    """One of `count` processes, number 0 first; `local` counts those of this machine."""

    number: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this process exports, prints and writes."""
        return self.number == 0

    @property
    def part(self) -> slice:
        """This process's rows of a batch.

        >>> [list(range(5))[Rank(number, 2).part] for number in (0, 1)], Rank().part
        ([[0, 2, 4], [1, 3]], slice(None, None, None))
        """
        return slice(None) if self.count == 1 else slice(self.number, None, self.count)


def rank() -> Rank:
    """The Rank of this process: 0 of 1 where no launcher has started it."""
    count = _whole_number("WORLD_SIZE", 1)
    if count < 2:
        return Rank()
    return Rank(_whole_number("RANK"), count, _whole_number("LOCAL_RANK"))


def check_alone(verb: str) -> None:
    """Refuse several processes for a verb that one process carries out; the sentence says what to start instead."""
    count = rank().count
    if count > 1 and verb not in LAUNCHED:
        raise UserError(
            f"pocketfit {verb} runs in one process, and {count} were started: start it without torchrun; several can"
            " train together in pocketfit apply and pocketfit train"
        )


def _whole_number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "")
    if text.isdecimal():
        return int(text)
    if not text and default is not None:
        return default
    raise UserError(
        f"The environment says that several processes work together (WORLD_SIZE), and {name} is '{text}': start them"
        " with torchrun, or unset WORLD_SIZE"
    )
