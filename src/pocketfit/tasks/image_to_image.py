"""A picture for a picture: outputs [n, C, H, W] in the numbers in which the network takes its own pictures.

Where these differ from channel to channel (ImageNet's mean and std), outputs go from 0 to 1. Super-resolution,
denoising and styles are of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.samples import Samples, pixels_to_values
from pocketfit.core.signature import TensorSpec
from pocketfit.core.task.task import Figure, Form, Group, Kept, Metric, Targets
from pocketfit.core.task.task_list import TaskName
from pocketfit.tasks.common.kinds import by_kind
from pocketfit.tasks.common.picture_quality import psnr_db, span_of, ssim

if TYPE_CHECKING:
    from torch import Tensor

NAME: TaskName = "image_to_image"
TITLE = "Pictures"
ANSWERS = "pictures"
FORM: Form = "pictures"
SOFTMAX = False
METRICS: Mapping[str, Metric] = {
    "ssim": Metric("SSIM", "structural similarity with the target; 1 is the same picture"),
    "psnr": Metric(
        "PSNR over 50 dB", "the peak signal-to-noise ratio as a share of 50 dB, at most 1: half a dB a point"
    ),
}
WHOLE_DB = 50.0  # PSNR that counts as right: the error is below a step of 255
AGREED = 0.95  # SSIM from which two pictures count as the same answer
TINY = 1e-12


def why_not(outputs: Sequence[TensorSpec], labels: Sequence[str]) -> str:
    shape = outputs[0].shape
    if len(shape) != 4 or shape[1] not in (1, 3):
        return (
            f"The network gives the shape [batch, {', '.join(map(str, shape[1:]))}], and pictures are [batch, 1 or 3,"
            " height, width]: say with --task what its outputs mean"
        )
    return ""


def read_targets(samples: Samples, labels: Sequence[str]) -> Samples:
    """float16 [n, C, H, W], whose steps are finer than those of 255."""
    given: NDArray[Any] = np.asarray(samples.labels)
    if given.dtype != np.uint8:
        return replace(samples, labels=given.astype(np.float16))
    count, height, width, channels = given.shape
    found: NDArray[Any] = np.empty((count, channels, height, width), np.float16)
    contract = samples.preprocess
    uneven = len(set(contract.mean)) > 1 or len(set(contract.std)) > 1
    for row, pixels in enumerate(given):
        values = pixels / np.float32(255) if uneven else pixels_to_values(pixels, contract)
        found[row] = values.transpose(2, 0, 1)
    return replace(samples, labels=found)


def kept(outputs: NDArray[np.float32]) -> Kept:
    """float16 [n, C, H, W]."""
    if outputs.ndim != 4:
        raise UserError(f"Pictures need outputs [n, C, H, W]; this file gives {list(outputs.shape)}")
    return np.clip(outputs, -6e4, 6e4).astype(np.float16)


def answers(kept: Kept) -> Targets:
    return kept


def has_target(targets: Targets) -> NDArray[np.bool_]:
    """Pictures are targets; the -1 of samples without one are no floats."""
    return np.full(len(targets), targets.dtype.kind == "f")


def scores(metric: str, kept: Kept, targets: Targets) -> NDArray[np.float64]:
    """Numbers beyond black and white count as these."""
    if kept.shape != targets.shape:
        raise UserError(
            f"The target pictures are {list(targets.shape[1:])} (channels, height, width), and the file gives"
            f" {list(kept.shape[1:])}: they need one size"
        )
    low, high = span_of(targets)
    found = np.empty(len(kept))
    for row in range(len(kept)):  # one at a time: all of them as float64 would take four times their memory
        one, other = _pair(kept, targets, row, low, high)
        if metric == "psnr":
            found[row] = np.minimum(1.0, psnr_db(one, other, high - low) / WHOLE_DB)[0]
        else:
            found[row] = ssim(one, other, high - low)[0]
    return found


def _pair(
    kept: Kept, targets: Targets, row: int, low: float, high: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    one, other = (np.clip(np.asarray(x[row : row + 1], np.float64), low, high) for x in (kept, targets))
    return one, other


def same(one: Targets, other: Targets) -> NDArray[np.bool_]:
    agree: NDArray[np.bool_] = scores("ssim", other, one) >= AGREED
    return agree


def words(target: Targets, labels: Sequence[str]) -> str:
    """The size, and how bright it is on average."""
    height, width = target.shape[1:]
    return f"{width} x {height}, mean {float(np.mean(target, dtype=np.float64)):.3g}"


def groups(samples: Samples, labels: Sequence[str]) -> list[Group]:
    return by_kind(samples)


def figures(answers: Targets, targets: Targets, labels: Sequence[str]) -> list[Figure]:
    """The mean PSNR over the pictures, each at most 100 dB."""
    low, high = span_of(targets)
    decibels = [psnr_db(*_pair(answers, targets, row, low, high), span=high - low)[0] for row in range(len(targets))]
    return [Figure("PSNR", float(np.mean(decibels)), "dB")]


def loss(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """L1, the mean over the places (Zhao et al. 2017: sharper than the squared error)."""
    found: Tensor = (outputs - targets.to(outputs.dtype)).abs().flatten(1).mean(1)
    return found


def distance(outputs: Tensor, theirs: Tensor, temperature: float = 1.0) -> Tensor:
    """The squared error as a share of the variance of theirs. A picture with little variance counts as one with a
    tenth of the mean variance."""
    power = theirs.flatten(1).var(1, unbiased=False)
    off = (outputs - theirs).flatten(1).square().mean(1)
    found: Tensor = off / power.clamp(min=float(0.1 * power.mean()) + TINY)
    return found


def influence(outputs: Tensor) -> Tensor:
    """Half the variance as a share of itself."""
    power = outputs.detach().flatten(1).var(1, unbiased=False)
    found: Tensor = outputs.flatten(1).var(1, unbiased=False) / (2 * power.clamp(min=float(0.1 * power.mean()) + TINY))
    return found
