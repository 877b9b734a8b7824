"""Text lines by CTC: outputs [n, steps, symbols] are logits, or their softmax, over the blank and the characters.

The answer is the best path without repeats and blanks (Graves et al. 2006, section 3.2, "best path decoding"). The
first label is the blank, as in PaddleOCR and in torch.nn.CTCLoss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common.probabilities import as_logits

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "text"
TITLE = "Text lines"
ANSWERS = "texts"
FORM: Form = "texts"
SOFTMAX = True
METRICS: Mapping[str, Metric] = {
    "exact-match": Metric("Exact match", "the share of lines without any wrong character"),
    "character-accuracy": Metric("Character accuracy", "1 less the character error rate (edits over characters)"),
}
BLANK = 0
PAD = -1


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 3:
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and a reader of text lines gives"
            " [batch, steps, symbols]: say with --task what its outputs mean"
        )
    if len(labels) != shape[2]:
        have = f"there are {len(labels):,} labels" if labels else "nothing says which is which"
        return (
            f"The network gives {shape[2]:,} symbols, and {have}: give --labels with one a line, the blank first"
            " (PaddleOCR's dictionaries have a space behind the last character)"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """Texts as int64 [n, characters], padded with -1. A character that is no label can't be read by the network: it
    becomes len(labels), which equals no answer. Longer labels go first where several begin at a place."""
    if not len(samples.texts):
        return samples
    index = {label: place for place, label in enumerate(labels)}
    index.pop(labels[BLANK], None)
    longest, unknown = max(map(len, index), default=1), len(labels)

    def symbols(text: str) -> list[int]:
        found, place = [], 0
        while place < len(text):
            for size in range(min(longest, len(text) - place), 0, -1):
                if (symbol := index.get(text[place : place + size])) is not None:
                    break
            found.append(unknown if symbol is None else symbol)
            place += size
        return found

    return replace(samples, labels=_padded([symbols(text) for text in samples.texts]))


def kept(outputs: NDArray[np.float32]) -> Kept:
    """The best symbol of each step, int32 [n, steps]."""
    if outputs.ndim != 3:
        raise UserError(f"Text lines need outputs [n, steps, symbols]; this file gives {list(outputs.shape)}")
    best: Kept = outputs.argmax(axis=2).astype(np.int32)
    return best


def answers(kept: Kept) -> Targets:
    """int64 [n, steps], padded with -1 behind the text.

    >>> answers(np.array([[3, 3, 0, 3, 5], [0, 0, 4, 4, 0]])).tolist()
    [[3, 3, 5], [4, -1, -1]]
    """
    first = np.ones(kept.shape, bool)
    first[:, 1:] = kept[:, 1:] != kept[:, :-1]
    said = first & (kept != BLANK)
    return _padded([row[where].tolist() for row, where in zip(kept, said, strict=True)])


def has_target(targets: Targets) -> NDArray[np.bool_]:
    return np.asarray((targets.reshape(len(targets), -1) >= 0).any(axis=1))


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """1 or 0 for a line; for characters 1 - edits / mean length of the targets, whose mean is 1 - CER."""
    found = answers(kept)
    right = same(found, targets)
    if metric == "exact-match":
        return right.astype(np.float64)
    edits = np.zeros(len(targets))
    for row in np.flatnonzero(~right).tolist():
        edits[row] = edit_distance(_text(targets[row]), _text(found[row]))
    found_scores: NDArray[np.float64] = 1 - edits / max(float((targets >= 0).sum(axis=1).mean()), 1e-9)
    return found_scores


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    width = max(one.shape[1], other.shape[1])
    wide = [np.pad(x, ((0, 0), (0, width - x.shape[1])), constant_values=PAD) for x in (one, other)]
    return np.asarray((wide[0] == wide[1]).all(axis=1))


def words(target: Targets, labels: Sequence[str]) -> str:
    """The text; a character that is no label is shown as a replacement character."""
    return "".join(labels[i] if i < len(labels) else "\N{REPLACEMENT CHARACTER}" for i in _text(target))


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    """The kinds of lines that the data name, in the order of the alphabet."""
    kinds = np.asarray(samples.kinds, str)
    return [Group(kind, np.flatnonzero(kinds == kind)) for kind in sorted(set(samples.kinds))]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The CTC loss of a character (Graves et al. 2006, equation 12). Lines that no path of the steps can give, and
    lines with a character that is no label, have a loss of 0."""
    from torch.nn.functional import ctc_loss

    logs = as_logits(outputs).log_softmax(-1)
    lengths = (targets >= 0).sum(1)
    sound = (targets < logs.shape[2]).all(1)
    found: Tensor = ctc_loss(
        logs.transpose(0, 1),
        targets.clamp(min=0, max=logs.shape[2] - 1),
        lengths.new_full((len(targets),), logs.shape[1]),
        lengths,
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    return found * sound / lengths.clamp(min=1)


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """T² KL(theirs_T || outputs_T), the mean over the steps."""
    from torch.nn.functional import kl_div

    ours, wanted = (as_logits(x).div(temperature).log_softmax(-1) for x in (outputs, theirs))
    return temperature**2 * kl_div(ours, wanted, reduction="none", log_target=True).sum(-1).mean(1)


def influence(outputs: Tensor) -> Tensor:
    """The cross-entropy of the best path, the mean over the steps."""
    from torch.nn.functional import cross_entropy

    logits = as_logits(outputs)
    return cross_entropy(logits.transpose(1, 2), logits.detach().argmax(2), reduction="none").mean(1)


def edit_distance(one: Sequence[object], other: Sequence[object]) -> int:
    """How many insertions, deletions and substitutions make one sequence of the other (Levenshtein 1966).

    >>> edit_distance("kitten", "sitting")
    3
    """
    before = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        now = [i]
        for j, right in enumerate(other, 1):
            now.append(min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (left != right)))
        before = now
    return before[-1]


def _text(target: Targets) -> list[int]:
    return [i for i in target.tolist() if i >= 0]


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    found = np.full((len(rows), max(map(len, rows), default=0) or 1), PAD, np.int64)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
