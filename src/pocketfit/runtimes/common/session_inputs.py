"""What sessions do alike: whether arrays fit what a file takes, samples one by one, the grid of integer ends."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import FileTensor, Quantization
from pocketfit.core.errors import UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature

Outputs = dict[str, NDArray[np.generic]]


def check_inputs(signature: Signature, inputs: Arrays) -> int:
    """How many samples they hold. Raises UserError where a name, shape or dtype does not fit the file."""
    wanted = [spec.name for spec in signature.inputs]
    if sorted(inputs) != sorted(wanted):
        raise UserError(f"The inputs are called {', '.join(wanted)}, not {', '.join(inputs) or 'nothing'}")
    for spec in signature.inputs:
        given = inputs[spec.name]
        fits = given.ndim == len(spec.shape) and spec.with_batch(len(given)) == given.shape
        if not fits or str(given.dtype) != spec.dtype:
            raise UserError(
                f"The inputs do not fit the file: '{spec.name}' is {given.dtype} {given.shape}, "
                f"the file takes {spec.dtype} {spec.shape}"
            )
    return len(inputs[wanted[0]])


def row_by_row(run: Callable[[Arrays], Outputs], inputs: Arrays, count: int) -> Outputs:
    """The outputs of `count` samples, which are run one after the other."""
    parts = [run({name: value[i : i + 1] for name, value in inputs.items()}) for i in range(count)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def grid_of(tensor: FileTensor) -> Quantization | None:
    """How the integers of a file's input or output stand for values; None where it is in float."""
    return tensor.quantization if tensor.dtype in ("int8", "uint8", "int16") else None
