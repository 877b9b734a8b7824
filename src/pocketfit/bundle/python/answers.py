"""What the output of a network means, in code for an app. It stands alone: a bundle holds a copy, which needs numpy.

read(task, values, labels, ...) -> one answer as a dict, and an array for whoever wants it whole
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SHOWN = ("shape", "lowest", "highest", "mean", "cosine", "same", "saved")  # of an answer, where it has them
BLANK = 0  # label of the CTC blank


def read(
    task: str, values: Any, labels: Sequence[str], *, probabilities: bool, top: int, boxes: Any = None
) -> tuple[dict[str, Any], Any]:
    """(the answer, an array to be saved) of float64 values [1, ...], the output of one sample.

    classification  {"top": [{"label", "probability"}, ...]}             array: probabilities [classes]
    text            {"text", "confidence"}                               array: best symbols [steps]
    segmentation    {"shares": {class: share of the picture}}            array: classes uint8 [H, W]
    embedding       {"embedding": numbers of length 1}                   array: the embedding [width]
    detection       {"boxes": [{"label", "score", "box"}, ...]}            array: boxes [m, 6]
    fidelity        {"shape", "lowest", "highest", "mean"} of the output array: the output
    """
    if task == "text":
        return _text(values[0], labels, probabilities)
    if task == "segmentation":
        return _segmentation(values[0], labels)
    if task == "embedding":
        unit = values[0] / max(float(np.linalg.norm(values[0])), 1e-12)
        return {"embedding": [round(float(x), 6) for x in unit]}, unit
    if task == "detection":
        return _detection(boxes, labels)
    if task == "fidelity":
        described = {"lowest": values.min(), "highest": values.max(), "mean": values.mean()}
        return {"shape": list(values.shape[1:]), **{key: round(float(x), 6) for key, x in described.items()}}, values[0]
    shares = values.reshape(-1) if probabilities else softmax(values.reshape(-1))
    best = np.argsort(-shares, kind="stable")[:top]
    named = [{"label": labels[i], "probability": round(float(shares[i]), 6)} for i in best]
    return {"top": named}, shares


class Matcher:
    """How like embeddings of length 1 are to the first one that it is called with, and whether that is above the
    threshold, where one is known."""

    def __init__(self, verification: dict[str, Any] | None) -> None:
        self.threshold = verification["threshold"] if verification else None
        self.first: Any = None

    def __call__(self, embedding: Any) -> dict[str, Any]:
        if self.first is None:
            self.first = embedding
            return {}
        cosine = float((self.first * embedding).sum())
        same = {} if self.threshold is None else {"same": cosine > self.threshold}
        return {"cosine": round(cosine, 6), **same}


def readable(found: dict[str, Any]) -> str:
    """An answer for a terminal, with the file and the times that run.py has put into it."""
    times = f"preprocess {found['preprocess_ms']:.1f} ms, inference {found['inference_ms']:.1f} ms"
    lines = [f"{100 * best['probability']:6.1f} %  {best['label']}" for best in found.get("top", ())]
    if "text" in found:
        lines = [f"  {found['text']}  ({100 * found['confidence']:.1f} %)"]
    lines += [f"{100 * share:6.1f} %  {label}" for label, share in found.get("shares", {}).items()]
    lines += [
        f"{100 * b['score']:6.1f} %  {b['label']}  {' '.join(map(str, b['box']))}" for b in found.get("boxes", ())
    ]
    lines += [f"  {key}: {found[key]}" for key in SHOWN if key in found]
    return "\n".join([f"{found['file']}: {times}", *lines])


def softmax(values: Any) -> Any:
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _text(values: Any, labels: Sequence[str], probabilities: bool) -> tuple[dict[str, Any], Any]:
    """The best path without repeats and blanks; the confidence is the mean probability of its characters."""
    shares = values if probabilities else softmax(values)
    best = shares.argmax(axis=-1)
    first = np.append(True, best[1:] != best[:-1])
    kept = np.flatnonzero(first & (best != BLANK))
    confidence = float(shares[kept, best[kept]].mean()) if len(kept) else 0.0
    return {"text": "".join(labels[i] for i in best[kept]), "confidence": round(confidence, 6)}, best


def _detection(boxes: Any, labels: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Boxes [m, 6], x1, y1, x2, y2, score, class: the places in pixels of the picture, from its left and upper edge."""
    found = []
    for *place, score, label in boxes.tolist():
        name = labels[int(label)] if int(label) < len(labels) else str(int(label))
        found.append({"label": name, "score": round(score, 6), "box": [round(x, 1) for x in place]})
    return {"boxes": found}, boxes


def _segmentation(values: Any, labels: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """One map is foreground or not: probabilities above 0.5, or logits above 0."""
    if len(values) > 1:
        classes = values.argmax(axis=0)
    else:
        is_share = values.min() >= 0 and values.max() <= 1
        classes = values[0] > (0.5 if is_share else 0.0)
    found, counts = np.unique(classes, return_counts=True)
    names = [labels[i] if i < len(labels) else str(int(i)) for i in found.astype(int)]
    shares = {name: round(float(n) / classes.size, 6) for name, n in zip(names, counts.tolist())}  # noqa: B905 (3.9)
    return {"shares": shares}, classes.astype("uint8")
