"""Whether arrays fit what a file takes; for runtimes that do not say it in a sentence themselves."""

from __future__ import annotations

from pocketfit.core.errors import UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.signature import Signature


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
