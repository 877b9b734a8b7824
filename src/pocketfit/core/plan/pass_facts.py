"""What is true of a pass whatever its settings, and the ranges of numbers that settings of several passes share."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Annotated

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import Between, shown

MOST_PIXELS = 16_384  # of a side of the network's input
LONGEST_PATTERN = 500  # letters of a regular expression
Cut = Annotated[float, Between(0, 1, below=True)]  # share of what is there that goes: something stays
Steps = Annotated[int, Between(1, 10**7)]
Batch = Annotated[int, Between(1, 10**5)]
Samples = Annotated[int, Between(1, 10**7)]
Rate = Annotated[float, Between(0, 100, above=True)]  # learning rate
Weight = Annotated[float, Between(0, 10**9)]  # of a part of a loss
Pixels = Annotated[int, Between(1, MOST_PIXELS)]


@dataclass(frozen=True, kw_only=True)
class PassFacts:
    """What is true of a pass whatever its settings; each settings class says its own, as FACTS.

    kind            its name in a plan's JSON
    words           what it has done, for a reader; "" where only the settings can say it (report/page/words.py)
    for_file        whether it prepares the network for one quantized file; else all files are made of what it leaves
    on_grid         whether it works for the grid of the plan's export settings
    moves_weights   whether it would take weights that lie on a grid off it again
    folds           whether it begins by folding the batch norms
    on_coarse_grid  whether it looks at the grid where that is coarse (4 bits)
    has_teacher     whether it learns from the teacher that the user gave
    by_all          whether several processes (torchrun) carry it out together; else the first one does
    steps_a_sample  how long it takes a sample that it looks at, in training steps a sample (forward, backward and the
                    teacher); measured on MobileNetV2 at 96 x 96 pixels, one thread, 64 samples. Training in float is
                    counted apart, by the pace that was measured.
    """

    kind: str
    words: str = ""
    for_file: bool = False
    on_grid: bool = False
    moves_weights: bool = False
    folds: bool = False
    on_coarse_grid: bool = False
    has_teacher: bool = False
    by_all: bool = False
    steps_a_sample: float = 0.0


def check_patterns(layers: tuple[tuple[str, float], ...]) -> None:
    """Refuse a name of layers that is no regular expression."""
    for pattern, _ in layers:
        if len(pattern) > LONGEST_PATTERN:
            raise UserError(f"The pattern {shown(pattern)} is too long to name layers")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about what Python may one day read differently
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{shown(pattern)} is no regular expression for names of layers: {error}") from error
