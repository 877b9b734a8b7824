"""The headline of `explain`, and its exclude list."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from pocketfit.analysis.quantization.culprits import Culprit
from pocketfit.analysis.quantization.measured_files import Measured

HARMLESS_DB = 30.0  # SQNR at which the noise is about 3 % of the outputs
WORTH_DB = 0.5  # smallest gain that is worth a layer in float, or a sentence


def excluded(kept: Sequence[Measured], plain: Measured) -> tuple[str, ...]:
    """The layers that are worth leaving in float: judged by points where these exceed noise, else by decibels."""
    if is_harmless(plain):
        return ()
    worth = [one for one in kept if _certain(one) or one.gain_db >= WORTH_DB]
    return tuple(dict.fromkeys(name for one in worth for name in one.keep_float))


def headline(blamed: Sequence[Culprit], files: Sequence[Measured]) -> str:
    """The finding in one sentence: in points where these exceed noise, else in decibels."""
    plain = next(one for one in files if one.kind == "plain")
    if not blamed:
        return f"Nothing is quantized: the file has {plain.sqnr_db:.1f} dB."
    first = blamed[0]
    file = next((one for one in files if one.kind == "kept" and one.layer == first.layer), None)
    if is_harmless(plain):
        lost = "" if plain.drop is None else f" and a loss of {plain.drop.points:.1f} points, which may be none"
        return (
            f"There is nothing to mend: the plain file has {plain.sqnr_db:.1f} dB{lost}; of what noise there is,"
            f" {first.share:.0%} come from {first.layer} (estimated)."
        )
    in_points = file is not None and plain.drop is not None and _certain(file)
    if in_points and file is not None and file.cost is not None and plain.drop is not None:
        told = f"{first.layer} costs {file.cost.points:.1f} of the {plain.drop.points:.1f} points"
    elif file is not None and file.gain_db >= WORTH_DB:
        what = "it" if len(file.keep_float) == 1 else _and(file.keep_float)
        told = (
            f"{first.layer} costs {file.gain_db:.1f} dB (the plain file has {plain.sqnr_db:.1f} dB, and"
            f" {file.sqnr_db:.1f} dB with {what} in float)"
        )
    else:
        told = (
            f"No single layer is guilty of the plain file's {plain.sqnr_db:.1f} dB; {first.layer} costs most,"
            f" {first.share:.0%} of the noise (estimated)"
        )
    return f"{told}: {first.cause}{_bought(files, plain, points=in_points)}."


def is_harmless(plain: Measured) -> bool:
    """Whether a file is as good as float: little noise, and no loss of points that is more than chance."""
    return plain.sqnr_db >= HARMLESS_DB and (plain.drop is None or plain.drop.low <= 0)


def _certain(file: Measured) -> bool:
    return file.cost is not None and file.cost.low > 0


def _bought(files: Sequence[Measured], plain: Measured, *, points: bool) -> str:
    """What the best rung gained for the whole file, in words; "" where none helped."""
    steps = [plain, *(one for one in files if one.kind == "rung")]
    gains = [(after.sqnr_db - before.sqnr_db, after) for before, after in itertools.pairwise(steps)]
    gain, best = max(gains, key=lambda pair: pair[0], default=(0.0, plain))
    if not gain >= WORTH_DB:
        return ""
    if points and best.drop is not None:
        return f"; {best.name} took the file's loss to {best.drop.points:.1f}"
    return f"; {best.name} took the file to {best.sqnr_db:.1f} dB"


def _and(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
