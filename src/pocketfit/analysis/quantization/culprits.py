"""The layers that add most noise, why they do, and which layers to leave in float: sentences and an exclude list.

Leaving a layer in float does not leave its output tensor in float, as long as an integer kernel reads that. So where
the tensor makes the noise, the layers that read it belong on the list, too.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pocketfit.analysis.quantization.sensitivity import WIDE, Channels, LayerSensitivity
from pocketfit.core.errors import UserError

FALL_DB = 6.0  # below its neighbours: twice the noise
MOST_READERS = 3
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


@dataclass(frozen=True)
class Culprit:
    """A layer that adds much noise.

    cause       why, in words
    keep_float  the layers that must stay in float to avoid the noise; () where leaving layers in float can't
    """

    layer: str
    share: float
    cause: str
    keep_float: tuple[str, ...]


def culprits(layers: Sequence[LayerSensitivity], most: int) -> tuple[Culprit, ...]:
    """The `most` layers with the largest shares of the noise."""
    ranked = sorted(layers, key=lambda one: -one.share)[:most]
    return tuple(Culprit(one.layer, one.share, cause(one, layers), keep_float(one, layers)) for one in ranked)


def tensor_costs(row: LayerSensitivity) -> bool:
    """Whether the tensor behind a layer makes more noise than its weights."""
    if row.weights_db is None or row.activations_db is None:
        return row.weights_db is None
    return row.activations_db < row.weights_db


def keep_float(row: LayerSensitivity, layers: Sequence[LayerSensitivity]) -> tuple[str, ...]:
    """The layers to leave in float: this one, and the readers of its output tensor where that makes the noise."""
    readers = tuple(one.layer for one in layers if one.reads == row.layer and one.weight_bits is not None)
    if row.weight_bits is None:
        is_input = bool(layers) and layers[0].layer == row.layer
        return readers if is_input and len(readers) <= MOST_READERS else ()
    return (row.layer, *readers) if tensor_costs(row) and 0 < len(readers) <= MOST_READERS else (row.layer,)


def cause(row: LayerSensitivity, layers: Sequence[LayerSensitivity]) -> str:
    """Why a layer adds noise, in words: uneven channels around it, or else what is known of it."""
    by_name = {one.layer: one for one in layers}
    source = by_name.get(row.reads)
    tensor, weights = [], []
    if row.outputs is not None and row.outputs.wide:
        tensor.append(f"{_wide(row.outputs, 'its', 'channels')} the median range")
    for reader in layers:
        if reader.reads == row.layer and reader.inputs is not None and reader.inputs.wide:
            tensor.append(f"in {reader.layer}, {_wide(reader.inputs, 'its', 'input channels')} the median weight")
    if row.inputs is not None and row.inputs.wide:
        weights.append(f"{_wide(row.inputs, 'its', 'input channels')} the median weight")
    if source is not None and source.outputs is not None and source.outputs.wide:
        weights.append(
            f"{_wide(source.outputs, 'the', f'channels that it reads from {source.layer}')} the median range"
        )
    told = tensor + weights if tensor_costs(row) else weights + tensor
    if told:
        return told[0]
    if row.own_db is not None and row.neighbours_db is not None and row.own_db <= row.neighbours_db - FALL_DB:
        return f"its tensor has {row.own_db:.0f} dB, its neighbours {row.neighbours_db:.0f}"
    if row.weights_db is None or row.activations_db is None:
        return "no channel stands out"
    part, other = ("tensor", "weights") if tensor_costs(row) else ("weights", "tensor")
    cost, rest = sorted((row.weights_db, row.activations_db))
    return f"its {part} alone leave{'s' if part == 'tensor' else ''} {cost:.1f} dB, its {other} {rest:.1f}"


def check_names(names: Collection[str], known: Collection[str]) -> None:
    """Raise UserError for a name that is no layer; the sentence has the nearest names."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
            hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(list(known)[:5])}, …"
            raise UserError(f"The network has no layer '{name}' that could stay in float: {hint}")


def _wide(channels: Channels, whose: str, what: str) -> str:
    """
    >>> _wide(Channels(144, 60.2, 2, (3, 7)), "its", "channels")
    'two of its 144 channels have up to 60 times'
    """
    assert channels.times >= WIDE
    count = WORDS[channels.wide] if channels.wide < len(WORDS) else str(channels.wide)
    verb = "has" if channels.wide == 1 else "have up to"
    return f"{count} of {whose} {channels.count} {what} {verb} {channels.times:.0f} times"
