"""Signs in a network's predictions that its input is wrong, or that its classes stand in another order."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketfit.measurement.run_samples import Scores

ONE_CLASS_SHARE = 0.8
REORDERED, GAINED = 0.5, 0.3  # least accuracy in another order of the classes, and its least gain, to be suspicious
MOST_REORDERED = 2000  # classes


def suspicious(scores: Scores, labels: NDArray[np.int64], classes: int) -> str:
    """A sentence where a network's predictions look as if its input were wrong, else "".

    Near chance: the accuracy is not clearly (two standard errors) above 1 / classes, or above that of always predicting
    the commonest class. One-sided: one class has at least 80 % of the predictions and less than half as much of the
    labels.
    """
    n = len(labels)
    advice = (
        "the preprocessing is probably not the one that the network was trained with:"
        " check mean, std, scale, colour order and the order of the labels"
    )
    if scores.metric == "accuracy" and n:
        if classes <= MOST_REORDERED and (told := _reordered(scores, labels, classes)):
            return told
        commonest = float(np.bincount(labels[labels >= 0]).max()) / n
        for chance, words in ((1 / classes, "chance"), (commonest, "always naming the commonest class")):
            # Where nearly all samples are of one class, two standard errors may reach beyond 100 %.
            margin = min(2 * np.sqrt(chance * (1 - chance) / n), (1 - chance) / 2)
            if scores.mean <= chance + margin:
                return f"The accuracy of {scores.mean:.1%} is hardly above {words} ({chance:.1%}): {advice}"
    answered = scores.answers[scores.answers >= 0]
    if len(answered):
        counts = np.bincount(answered)
        top = int(counts.argmax())
        share, labelled = counts[top] / len(answered), float(np.mean(labels == top))
        if share >= ONE_CLASS_SHARE and labelled < share / 2:
            return f"{share:.0%} of the predictions are class {top}, which {labelled:.0%} of the samples are: {advice}"
    return ""


def _reordered(scores: Scores, labels: NDArray[np.int64], classes: int) -> str:
    """A sentence where the predictions would be right if the classes stood in another order, else "".

    The order is found on every second sample of a class and judged on the others, so that chance gives no such gain.
    """
    known = np.flatnonzero((labels >= 0) & (scores.answers >= 0) & (scores.answers < classes))
    rows = known[np.argsort(labels[known], kind="stable")]
    rank = np.arange(len(rows)) - np.searchsorted(labels[rows], labels[rows])
    told, judged = rows[rank % 2 == 0], rows[rank % 2 == 1]
    if not len(judged):
        return ""
    seen = np.zeros((classes, classes), np.int64)  # label, answer
    np.add.at(seen, (labels[told], scores.answers[told]), 1)
    order = np.full(classes, -1)
    for place in np.argsort(-seen, axis=None, kind="stable"):
        label, answer = divmod(int(place), classes)
        if not seen[label, answer]:
            break
        if order[label] < 0 and answer not in order:
            order[label] = answer
    share = float(np.mean(order[labels[judged]] == scores.answers[judged]))
    if share < REORDERED or share < scores.mean + GAINED:
        return ""
    moved = next(label for label in range(classes) if order[label] not in (label, -1))
    return (
        f"The accuracy of {scores.mean:.1%} would be about {share:.0%} if the classes stood in another order (samples"
        f" of class {moved} are mostly answered as class {order[moved]}, counted from 0): the labels are probably not"
        " in the order of the network's outputs; give them in it with --labels"
    )
