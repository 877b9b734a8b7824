"""Facts about a pass that do not depend on its settings, and ranges of numbers that several passes' settings share."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from typing import Annotated

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import Between, shown

MOST_PIXELS = 16_384  # of a side of the network's input
LONGEST_PATTERN = 500  # letters of a regular expression
Cut = Annotated[float, Between(0, 1, below=True)]  # share that is removed: below 1, so that something stays
Steps = Annotated[int, Between(1, 10**7)]
Batch = Annotated[int, Between(1, 10**5)]
Samples = Annotated[int, Between(1, 10**7)]
Rate = Annotated[float, Between(0, 100, above=True)]  # learning rate
Weight = Annotated[float, Between(0, 10**9)]  # of a part of a loss
Pixels = Annotated[int, Between(1, MOST_PIXELS)]


@dataclass(frozen=True, kw_only=True)
class PassFacts:
    """Facts about a pass that do not depend on its settings; each settings class has them as FACTS.

    kind            its name in a plan's JSON
    words           what it does, for a reader; "" where that depends on the settings (report/page/words.py)
    for_file        whether it prepares the network for one quantized file; else all files are made after it
    on_grid         whether it works for the grid of the plan's export settings
    moves_weights   whether it would move weights off a grid on which they lie
    folds           whether it begins by folding the batch norms
    on_coarse_grid  whether it looks at the grid where that is coarse (4 bits)
    has_teacher     whether it learns from the teacher that the user gave
    by_all          whether several processes (torchrun) carry it out together; else the first one does
    steps_a_sample  its time for one sample, as a multiple of a sample's time in a training step (forward, backward and
                    the teacher); measured on MobileNetV2 at 96 x 96 pixels, one thread, 64 samples. Training in float
                    is not counted here: its speed is measured in each run.
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
                warnings.simplefilter("ignore")  # about syntax that Python may one day read differently
                re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise UserError(f"{shown(pattern)} is no regular expression for names of layers: {error}") from error
