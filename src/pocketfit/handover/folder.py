"""The folder that a network is handed over in: what it takes to run and to train it without pocketfit."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.support.files import whole_or_not
from pocketfit.handover.source import source_of
from pocketfit.passes.graph import aten
from pocketfit.passes.graph.layers.layered import Layered, layered
from pocketfit.sources.models.check_network import example
from pocketfit.sources.models.weights_file import save_tensors

SOURCE, WEIGHTS, PROGRAM, LAYERS, CONTRACT = (
    *("network.py", "weights.safetensors", "network.pt2", "layers.json", "preprocess.json"),
)
FILES = (SOURCE, WEIGHTS, PROGRAM, LAYERS, CONTRACT)
CLOSE = 1e-5  # share of the largest answer by which answers may differ: float32's rounding
TRIED = 3  # samples; none of the sizes that torch treats as constants


@dataclass(frozen=True)
class Handed:
    """What was written.

    files      names, in the folder
    layers     rows of layers.json
    findings   sentences
    """

    folder: Path
    files: tuple[str, ...]
    layers: tuple[Mapping[str, Any], ...]
    findings: tuple[str, ...]


def hand_over(model: Model, folder: Path, *, unpruned: nn.Module | None = None) -> Handed:
    """Write the network to `folder`: network.py with weights.safetensors, network.pt2 for any batch size, layers.json
    with the width of each layer, preprocess.json.

    unpruned  the network before it was pruned: layers.json says how wide its layers were

    What is written is run, and compared with the network. Where no source can be written, network.py is left out, and a
    finding says why. Raises UserError where torch.export can't follow the network.
    """
    written, findings = [PROGRAM, LAYERS, CONTRACT], list(model.findings)
    found: Layered | None = None
    try:
        found = layered(model.network, model.signature)
        text = source_of(found, _title(model), _inputs(model))
        network: nn.Module = found.network
        _check(_executed(text, found), model, f"the module of {SOURCE}")
    except UserError as error:
        reason = str(error).rstrip(".")
        findings.append(f"No {SOURCE} was written: {reason}. {PROGRAM} holds the whole network, {LAYERS} the widths.")
        network, state = model.network, dict(model.network.state_dict())
    else:
        findings += found.findings
        state = dict(found.network.state_dict())
        written.insert(0, SOURCE)
    program = _program(network, model)
    _check(program.module(), model, f"{PROGRAM}")
    folder.mkdir(parents=True, exist_ok=True)
    if SOURCE in written:
        _write(folder / SOURCE, text)
    else:
        (folder / SOURCE).unlink(missing_ok=True)
    with whole_or_not(folder / WEIGHTS) as partial:
        save_tensors(_apart(state), partial)
    archive = BytesIO()  # saved under a name, the file would contain that name
    torch.export.save(program, archive)
    with whole_or_not(folder / PROGRAM) as partial:
        partial.write_bytes(archive.getbuffer())
    rows = _rows(model.network, unpruned)
    _write(folder / LAYERS, json.dumps({"layers": rows}, indent=1) + "\n")
    contract = {**model.preprocess.to_json(), "labels": list(model.labels)}
    _write(folder / CONTRACT, json.dumps(contract, indent=1, ensure_ascii=False) + "\n")
    return Handed(folder, (*written, WEIGHTS), tuple(rows), tuple(dict.fromkeys(findings)))


def _title(model: Model) -> str:
    return f"{model.origin.name}, {sum(p.numel() for p in model.network.parameters()):,} parameters."


def _inputs(model: Model) -> dict[str, tuple[int, ...]]:
    return {spec.name: spec.with_batch(1)[1:] for spec in model.signature.inputs}


def _write(path: Path, text: str) -> None:
    with whole_or_not(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _executed(text: str, found: Layered) -> nn.Module:
    """The module that the source makes, with the weights that it will load."""
    space: dict[str, Any] = {"__name__": "network", "__file__": SOURCE}
    exec(compile(text, SOURCE, "exec"), space)
    network = space["Network"]()
    assert isinstance(network, nn.Module)
    network.load_state_dict(found.network.state_dict())
    return network.eval()


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies that share no memory: the file's format wants that, and tied weights are tied again by the source."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in state.items()}


def _program(network: nn.Module, model: Model) -> torch.export.ExportedProgram:
    """torch.export's program for any batch size, without the examples and the lines of code that it came from."""
    program = aten.export(network, model.signature, free_batch=True)
    program._example_inputs = None
    for part in program.graph_module.modules():
        for node in part.graph.nodes if hasattr(part, "graph") else ():
            node.meta.pop("stack_trace", None)
    return program


def _check(again: nn.Module, model: Model, what: str) -> None:
    """Raises UserError where the answers are others than the network's own."""
    given = tuple(example(spec.with_batch(TRIED), spec.dtype) for spec in model.signature.inputs)
    with torch.no_grad():
        try:
            answers = [pytree.tree_leaves(one(*given)) for one in (again, model.network)]
        except (RuntimeError, ValueError, TypeError, AttributeError, NameError) as error:
            cause = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(f"{what} does not run ({cause})") from error
    for one, other in zip(*answers, strict=True):
        most = max(float(other.abs().max()), 1e-3) if other.numel() else 1.0
        off = float((one - other).abs().max()) / most if one.shape == other.shape and one.numel() else math.inf
        if not off <= CLOSE:
            raise UserError(f"{what} answers otherwise than the network does, by {off:.1g} of its largest answer")


def _rows(network: nn.Module, unpruned: nn.Module | None) -> list[dict[str, Any]]:
    """One row for each parameter and buffer with a size: its name, the layer's class, its shape now and before."""
    before = {} if unpruned is None else {name: list(t.shape) for name, t in unpruned.state_dict().items()}
    kinds = {name: type(layer).__name__ for name, layer in network.named_modules()}
    rows = []
    for name, tensor in network.state_dict().items():
        if tensor.ndim:
            row: dict[str, Any] = {"tensor": name, "layer": kinds.get(name.rpartition(".")[0], "")}
            row["shape"] = list(tensor.shape)
            if name in before and before[name] != row["shape"]:
                row["was"] = before[name]
            rows.append(row)
    return rows
