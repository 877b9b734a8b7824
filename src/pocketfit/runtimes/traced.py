"""The network as torch.export's file: where every runtime's export starts from, in the parent process."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from pocketfit.core.errors import ExportFailed
from pocketfit.core.model import Model
from pocketfit.core.plan import canonical_json
from pocketfit.runtimes.artifact import whole_or_not

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

SIGNATURE = "signature.json"  # the file's own record of model.signature
_ours: set[Path] = set()  # written by this process
EXAMPLE_BATCH = 2  # torch.export takes 0 and 1 for constants


def traced(model: Model, work: Path) -> Path:
    """`<work>/<model.key>.pt2`: the network in eval mode, batch norms folded, any batch size; written once a process.

    What another process has left there is not trusted: such a file may hold code, and an output folder be anybody's.
    Inputs have the shapes of `model.signature` (pictures: NCHW). Raises ExportFailed, naming the layer and the line
    where the network could not be traced.
    """
    import torch

    path = work / f"{model.key}.pt2"
    if path not in _ours or not path.exists():
        program = program_of(model)
        program._example_inputs = None  # they would make the file as large as their batch
        signature = canonical_json(model.signature.to_json())
        archive = BytesIO()  # saved by name, the file would hold that name
        torch.export.save(program, archive, extra_files={SIGNATURE: signature})
        with whole_or_not(path) as partial:
            partial.write_bytes(archive.getbuffer())
        _ours.add(path)
    return path


def program_of(model: Model) -> ExportedProgram:
    """The traced network itself; see `traced`."""
    import torch

    from pocketfit.passes.fold import fold_batch_norm

    if model.level != "torch":
        raise ExportFailed(
            f"A network at level '{model.level}' cannot be traced: this export starts from torch modules"
        )
    examples = tuple(
        torch.zeros(spec.with_batch(EXAMPLE_BATCH), dtype=getattr(torch, spec.dtype)) for spec in model.signature.inputs
    )
    batch = torch.export.Dim("batch")
    shapes = tuple({0: batch} if spec.shape[0] is None else None for spec in model.signature.inputs)
    network = fold_batch_norm(model.network, model.signature).eval()
    for tensor in (*network.parameters(), *network.buffers()):
        # litert-torch 0.10 tells constants apart by their address, after a copy of those that do not lie in one piece:
        # of two such weights with the same shape, one was taken for the other.
        tensor.data = tensor.data.contiguous()
    try:
        with torch.no_grad():
            return torch.export.export(network, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises whatever the network's own code raises
        where = _where(error, network)
        raise ExportFailed(f"torch.export could not trace the network{where}: {_short(error)}") from error


def _where(error: BaseException, network: nn.Module) -> str:
    """ " in layer 'features.3' (net.py, line 12)"."""
    from pocketfit.passes.exported import blamed

    layer, line = blamed(error, network)
    return (f" in layer '{layer}'" if layer else "") + (f" ({line})" if line else "")


def _short(error: BaseException) -> str:
    """The first line that says something, without torch's advice."""
    if "Constraints violated (batch)" in str(error):
        return "its code fixes the size of the batch; take it from the input (x.shape[0]) instead"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
