"""Feed the network a smaller image; its weights stay."""

from __future__ import annotations

from dataclasses import replace

import torch

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.signature import Signature
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.main_answer import main_answer


def apply(model: Model, settings: Resolution) -> Model:
    """The same network with signature and preprocess at height x width pixels.

    Raises UserError where the input is no image, or where the network does not run at this size or has outputs of
    another shape.
    """
    picture = model.signature.inputs[0]
    if picture.layout not in ("NCHW", "NHWC"):
        raise UserError(f"The input {picture.name} is no image, so it has no resolution to change")
    batch, channels = picture.shape[0], picture.shape[1 if picture.layout == "NCHW" else 3]
    size = (settings.height, settings.width)
    shape = (batch, channels, *size) if picture.layout == "NCHW" else (batch, *size, channels)
    signature = Signature((replace(picture, shape=shape), *model.signature.inputs[1:]), model.signature.outputs)
    try:
        with torch.no_grad():
            answers = model.network(*aten.zeros(signature, aten.BATCH))
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        cause = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"The network does not run at {settings.height} x {settings.width} pixels ({cause}); keep its resolution"
        ) from error
    first = main_answer(answers)
    expected = model.signature.outputs[0].with_batch(aten.BATCH)
    if tuple(first.shape) != expected:
        raise UserError(
            f"At {settings.height} x {settings.width} pixels the network has outputs of the shape {tuple(first.shape)} "
            f"instead of {expected}; keep its resolution"
        )
    preprocess = model.preprocess.at(settings.height, settings.width)
    return replace(model, signature=signature, preprocess=preprocess)
