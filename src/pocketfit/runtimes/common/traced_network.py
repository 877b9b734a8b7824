"""The network as torch.export's file, made in the parent process: every runtime's export starts from it."""

from __future__ import annotations

import json
import warnings
import zipfile
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import ExportFailed
from pocketfit.core.model import Model
from pocketfit.core.plan.plan import canonical_json
from pocketfit.core.support.files import whole_or_not

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

SIGNATURE = "signature.json"  # the file's own record of model.signature
_ours: set[Path] = set()  # written by this process
NOTES = "notes.json"
TINY = 1e-30
EXAMPLE_BATCH = 2  # torch.export treats sizes of 0 and 1 as constants


def traced(model: Model, work: Path) -> Path:
    """`<work>/<model.key>.pt2`: the network in eval mode, batch norms folded, any batch size; written once a process.
    `notes_of` says how the network was changed.

    A file of another process is not trusted: it may hold code, and anybody may have written to the output folder.
    Inputs have the shapes of `model.signature` (images: NCHW). Raises ExportFailed, naming the layer and the line where
    the network could not be traced.
    """
    import torch

    path = work / f"{model.key}.pt2"
    if path not in _ours or not path.exists():
        program = program_of(model)
        program._example_inputs = None  # they would make the file as large as their batch
        program._guards_code = []  # Python over the sizes of several inputs; sessions check these themselves
        signature = canonical_json(model.signature.to_json())
        archive = BytesIO()  # saved under a name, the file would contain that name
        notes = json.dumps(program.graph_module.meta.get(NOTES, []))
        torch.export.save(program, archive, extra_files={SIGNATURE: signature, NOTES: notes})
        with whole_or_not(path) as partial:
            partial.write_bytes(archive.getbuffer())
        _ours.add(path)
    return path


def notes_of(path: Path) -> list[str]:
    """Sentences on how the network was changed when the file `path` was traced."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith(f"/{NOTES}"):
                return list(json.loads(archive.read(name)))
    return []


def program_of(model: Model) -> ExportedProgram:
    """The traced network itself; see `traced`."""
    import torch

    from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm

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
    flushed = flush_denormals(network)
    for tensor in (*network.parameters(), *network.buffers()):
        # litert-torch 0.10 tells constants apart by their address in memory, after a temporary copy of those that are
        # not contiguous: of two such weights with the same shape, one was taken for the other.
        tensor.data = tensor.data.contiguous()
    network.register_forward_hook(_flat)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # torch warns of the list in which recurrent layers keep their weights, though it exports them correctly
            warnings.filterwarnings("ignore", message=r"The tensor attributes? self\.[\s\S]* assigned during export")
            program = torch.export.export(network, examples, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises whatever the network's own code raises
        where = _where(error, network)
        raise ExportFailed(f"torch.export could not trace the network{where}: {_short(error)}") from error
    program.graph_module.meta[NOTES] = [flushed] if flushed else []
    return program


def _flat(_: nn.Module, __: Any, answer: Any) -> Any:
    """The outputs in one tuple, whatever the network packs them in: converters know tensors and tuples."""
    from torch import Tensor
    from torch.utils._pytree import tree_leaves

    return answer if isinstance(answer, Tensor) else tuple(tree_leaves(answer))


def flush_denormals(network: nn.Module) -> str:
    """Set tiny weights to 0, in place: those below float32's smallest normal number, and those below TINY where the
    largest of their tensor is 1e10 times as large. -> a sentence on how many, "" where there are none.

    A product with a denormal number takes processors a hundred times as long, and adds less than the last bit to a sum.
    """
    import torch

    smallest, count, tensors = torch.finfo(torch.float32).tiny, 0, 0
    with torch.no_grad():
        for tensor in (*network.parameters(), *network.buffers()):
            if tensor.dtype != torch.float32 or not tensor.numel():
                continue
            size = tensor.abs()
            tiny = (size > 0) & ((size < smallest) | ((size < TINY) & (size < 1e-10 * size.max())))
            if found := int(tiny.sum()):
                tensor.data = tensor.masked_fill(tiny, 0.0)
                count, tensors = count + found, tensors + 1
    if not count:
        return ""
    return (
        f"{count:,} weights in {tensors} tensors are so small (below {TINY:g}) that they change no output, and would "
        "make processors a hundred times slower: they are 0 in the file"
    )


def _where(error: BaseException, network: nn.Module) -> str:
    """ " in layer 'features.3' (net.py, line 12)"."""
    from pocketfit.sources.models.check_network import blamed

    layer, line = blamed(error, network)
    return (f" in layer '{layer}'" if layer else "") + (f" ({line})" if line else "")


def _short(error: BaseException) -> str:
    """The first line that says something, without torch's advice."""
    if "Constraints violated (batch)" in str(error):
        return "its code fixes the size of the batch; take it from the input (x.shape[0]) instead"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
