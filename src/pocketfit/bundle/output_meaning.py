"""What the numbers of an output are, for the manifest: logits or probabilities, and black and white of pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Quantization
from pocketfit.core.model import Model
from pocketfit.core.samples import value_range
from pocketfit.tasks.common.picture_quality import span_of
from pocketfit.tasks.common.probabilities import are_sigmoids

THRESHOLD = 0.5
AMPLIFIED = (1.0, 10.0, 100.0)  # inputs of these sizes drive logits out of 0..1, and no sigmoid
TRIED = 16  # random inputs of each size


def meaning(model: Model, answers: NDArray[np.generic], grid: Quantization | None) -> dict[str, Any]:
    """Entries of the manifest's "output"; `answers` are golden outputs of the file as it gives them."""
    values = answers.astype(np.float64)
    if grid is not None:
        values = (values - grid.zero_points[0]) * grid.scales[0]
    if model.task == "image_to_image":
        return {"values": "logits", "span": list(_span(model, values))}
    steps = model.task == "ordinal" and values.shape[-1] == len(model.labels) - 1
    if model.task in ("binary", "multilabel") or steps:
        shares = are_sigmoids(float(values.min()), float(values.max())) and _ends_in_sigmoid(model)
        return {"values": "probabilities" if shares else "logits", "threshold": THRESHOLD}
    return {"values": "probabilities" if all(_sums_to_one(answer, grid) for answer in answers) else "logits"}


def _ends_in_sigmoid(model: Model) -> bool:
    """Whether the outputs stay from 0 to 1, however large the inputs are. Of several inputs, and of whole numbers,
    which can't be made larger at will, this is not asked."""
    import torch

    from pocketfit.passes.graph.main_answer import main_answer

    random = torch.Generator().manual_seed(0)
    spec, *more = model.signature.inputs
    if more or not spec.dtype.startswith("float"):
        return True
    shape = spec.with_batch(TRIED)
    with torch.inference_mode():
        for size in AMPLIFIED:
            found = main_answer(model.network(size * torch.randn(shape, generator=random))).nan_to_num()
            if not are_sigmoids(float(found.min()), float(found.max())):
                return False
    return True


def _span(model: Model, values: NDArray[np.float64]) -> tuple[float, float]:
    """Black and white: as the network takes pictures, or as its outputs show where these reach beyond."""
    contract = model.preprocess
    uneven = len(set(contract.mean)) > 1 or len(set(contract.std)) > 1
    expected, seen = (0.0, 1.0) if uneven else value_range(contract), span_of(values)
    beyond = 0.25 * (expected[1] - expected[0])
    return expected if expected[0] - beyond <= seen[0] and seen[1] <= expected[1] + beyond else seen


def _sums_to_one(raw: NDArray[np.generic], grid: Quantization | None) -> bool:
    """Whether an output sums to one over its last axis, up to half a step of its grid for each class (0.1 in all)."""
    values = raw.astype(np.float64).reshape(-1, raw.shape[-1] if raw.ndim else 1)
    slack = 1e-3
    if grid is not None:
        values = (values - grid.zero_points[0]) * grid.scales[0]
        slack = min(0.1, slack + values.shape[1] * grid.scales[0] / 2)
    return bool(values.min() >= 0 and np.abs(values.sum(axis=1) - 1).max() <= slack)
