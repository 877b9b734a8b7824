"""What the output of a network means, in code for an app. It stands alone: a bundle holds a copy, which needs numpy,
and Pillow to save a picture.

read(task, values, labels, ...) -> one answer as a dict, and an array for whoever wants it whole
readable(answer) -> its lines; save(stem, array, ...) -> the name of the file that holds it
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SHOWN = ("shape", "lowest", "highest", "mean", "cosine", "same", "saved")  # of an answer, where it has them
BLANK = 0  # label of the CTC blank


def read(
    task: str,
    values: Any,
    labels: Sequence[str],
    *,
    probabilities: bool,
    top: int,
    boxes: Any = None,
    threshold: float = 0.5,
    span: Sequence[float] = (0.0, 1.0),
) -> tuple[dict[str, Any], Any]:
    """(the answer, an array to be saved) of float64 values [1, ...], the output of one sample.

    classification  {"top": [{"label", "probability"}, ...]}             array: probabilities [classes]
    text            {"text", "confidence"}                               array: best symbols [steps]
    segmentation    {"shares": {class: share of the picture}}            array: classes uint8 [H, W]
    embedding       {"embedding": numbers of length 1}                   array: the embedding [width]
    detection       {"boxes": [{"label", "score", "box"}, ...]}            array: boxes [m, 6]
    binary          {"label", "probability"}, of the second label        array: its probability [1]
    multilabel      {"tags": those above the threshold, likeliest first} array: probabilities [tags]
    ordinal         {"label", "place"} from 0                            array: probabilities [classes] or [steps]
    regression      {"values": {name: number}}                           array: the numbers
    image_to_image  {"shape", "mean"} of the picture                     array: picture uint8 [H, W] or [H, W, 3]
    fidelity        {"shape", "lowest", "highest", "mean"} of the output array: the output
    """
    readers: dict[str, Callable[[], tuple[dict[str, Any], Any]]] = {
        "text": lambda: _text(values[0], labels, probabilities),
        "segmentation": lambda: _segmentation(values[0], labels),
        "embedding": lambda: _embedding(values[0]),
        "detection": lambda: _detection(boxes, labels),
        "binary": lambda: _yes_or_no(values.reshape(-1), labels, probabilities, threshold),
        "multilabel": lambda: _tags(values.reshape(-1), labels, probabilities, threshold),
        "ordinal": lambda: _ordinal(values.reshape(-1), labels, probabilities),
        "regression": lambda: _numbers(values[0], labels),
        "image_to_image": lambda: _picture(values[0], span),
        "fidelity": lambda: _outputs(values[0]),
    }
    return readers.get(task, lambda: _classes(values.reshape(-1), labels, probabilities, top))()


def _classes(values: Any, labels: Sequence[str], probabilities: bool, top: int) -> tuple[dict[str, Any], Any]:
    shares = values if probabilities else softmax(values)
    best = np.argsort(-shares, kind="stable")[:top]
    named = [{"label": labels[i], "probability": round(float(shares[i]), 6)} for i in best]
    return {"top": named}, shares


def _embedding(values: Any) -> tuple[dict[str, Any], Any]:
    unit = values / max(float(np.linalg.norm(values)), 1e-12)
    return {"embedding": [round(float(x), 6) for x in unit]}, unit


def _outputs(values: Any) -> tuple[dict[str, Any], Any]:
    described = {"lowest": values.min(), "highest": values.max(), "mean": values.mean()}
    return {"shape": list(values.shape), **{key: round(float(x), 6) for key, x in described.items()}}, values


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
    lines += [f"{100 * tag['probability']:6.1f} %  {tag['label']}" for tag in found.get("tags", ())]
    lines += ["         no tag"] if found.get("tags") == [] else []
    if "label" in found:
        lines = [f"{'' if 'place' in found else '{:6.1f} %  '.format(100 * found['probability'])}{found['label']}"]
    lines += [f"  {name}: {number:g}" for name, number in found.get("values", {}).items()]
    lines += [f"  {key}: {found[key]}" for key in SHOWN if key in found]
    return "\n".join([f"{found['file']}: {times}", *lines])


def save(stem: Path, array: Any, task: str, colour: str) -> str:
    """Write an array as .npy, a picture in the network's colours as .png; returns the file's name."""
    if task != "image_to_image":
        np.save(f"{stem}.npy", array, allow_pickle=False)
        return f"{stem}.npy"
    from PIL import Image

    swapped = array.ndim == 3 and colour == "BGR"
    Image.fromarray(np.ascontiguousarray(array[:, :, ::-1] if swapped else array)).save(f"{stem}.png")
    return f"{stem}.png"


def softmax(values: Any) -> Any:
    """Over the last axis."""
    powers = np.exp(values - values.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def _numbers(values: Any, labels: Sequence[str]) -> tuple[dict[str, Any], Any]:
    numbers = values.reshape(-1).tolist()
    names = labels if len(labels) == len(numbers) else [str(place) for place in range(len(numbers))]
    return {"values": {name: float(f"{x:.7g}") for name, x in zip(names, numbers)}}, values  # noqa: B905 (3.9)


def _picture(values: Any, span: Sequence[float]) -> tuple[dict[str, Any], Any]:
    """Numbers from black to white [C, H, W] as uint8 [H, W, 3] or [H, W]."""
    low, high = span
    picture = np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype("uint8").transpose(1, 2, 0)
    picture = picture[:, :, 0] if picture.shape[2] == 1 else picture
    return {"shape": list(picture.shape), "mean": round(float(picture.mean()), 3)}, picture


def sigmoid(values: Any) -> Any:
    return 0.5 + 0.5 * np.tanh(values / 2)


def _yes_or_no(values: Any, labels: Sequence[str], probabilities: bool, threshold: float) -> tuple[dict[str, Any], Any]:
    shares = values if probabilities else sigmoid(values)
    named = list(labels) if len(labels) == 2 else ["0", "1"]
    return {"label": named[int(shares[0] > threshold)], "probability": round(float(shares[0]), 6)}, shares


def _tags(values: Any, labels: Sequence[str], probabilities: bool, threshold: float) -> tuple[dict[str, Any], Any]:
    shares = values if probabilities else sigmoid(values)
    best = [i for i in np.argsort(-shares, kind="stable").tolist() if shares[i] > threshold]
    named = [labels[i] if i < len(labels) else str(i) for i in best]
    tags = [{"label": n, "probability": round(float(shares[i]), 6)} for n, i in zip(named, best)]  # noqa: B905 (3.9)
    return {"tags": tags}, shares


def _ordinal(values: Any, labels: Sequence[str], probabilities: bool) -> tuple[dict[str, Any], Any]:
    """One output a class, or one for each step from a class to the next (one less than labels)."""
    if len(values) == len(labels) - 1:
        shares = values if probabilities else sigmoid(values)
        place = int((shares > 0.5).sum())
    else:
        shares = values if probabilities else softmax(values)
        place = int(shares.argmax())
    return {"label": labels[place] if place < len(labels) else str(place), "place": place}, shares


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
