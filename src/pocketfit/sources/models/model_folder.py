"""The model folder: weights.safetensors, and model.json that says how to build and feed the network; model.onnx where
the network came from an .onnx file."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model, ModelFile, Origin
from pocketfit.core.signature import Signature
from pocketfit.core.support import user_code
from pocketfit.core.support.files import force
from pocketfit.core.support.json_file import load
from pocketfit.core.support.rules import shown
from pocketfit.core.support.schema import Violation, checked, reading
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.sources.models.build_network import build
from pocketfit.sources.models.check_network import BY_LAYERS, counts_fit, example, tensors_of
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.fit_layer_shapes import fit_unweighted, resize_to
from pocketfit.sources.models.onnx_model import build_again
from pocketfit.sources.models.unwrap import bare, copied
from pocketfit.sources.models.weights_file import read_weights, save_tensors

FORMAT_VERSION = 1
MOST_VALUES = 2**25  # of one input
AGAIN = "make the folder again"
WEIGHTS, DESCRIPTION, ONNX = "weights.safetensors", "model.json", "model.onnx"


def is_model_folder(path: Path) -> bool:
    try:
        return (path / DESCRIPTION).is_file()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def save_model(model: Model, folder: str | Path) -> None:
    """Write the model folder; a new one appears whole or not at all.

    An existing model folder gets new files (weights first: a crash in between is noticed on loading, by the hash).
    Raises UserError where `folder` is a file or a folder with anything else in it, and for a network that was written
    anew by its layers, as its class builds it with another number of attention heads.
    """
    folder = Path(folder)
    if getattr(model.network, "meta", {}).get(BY_LAYERS):
        raise UserError(
            "A model folder builds its network from its class, and the class has another number of attention heads:"
            " write it with pocketfit.export, or keep the plan"
        )
    if folder.exists() and not is_model_folder(folder) and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} exists and is no model folder: name another place, nothing was overwritten")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(folder.parent) as work:
        partial = Path(work, "model")
        partial.mkdir()
        state = {name: tensor.detach().cpu().clone() for name, tensor in model.network.state_dict().items()}
        save_tensors({name: tensor.contiguous() for name, tensor in state.items()}, partial / WEIGHTS)
        text = json.dumps(_description(model, _sha256(partial / WEIGHTS)), indent=2, ensure_ascii=False)
        (partial / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
        if model.origin.kind == "onnx":
            (partial / ONNX).write_bytes(model.file)
        force(partial)
        if folder.exists() and any(folder.iterdir()):
            for name in (ONNX, WEIGHTS, DESCRIPTION):
                if (partial / name).exists():
                    (partial / name).replace(folder / name)
                else:
                    (folder / name).unlink(missing_ok=True)
        else:
            partial.replace(folder)


def load_model(
    folder: str | Path, *, unpruned: nn.Module | None = None, allow_code: user_code.Allowed = False
) -> Model:
    """The Model of a folder: the network is built from its origin and every layer resized to the stored tensors.

    unpruned    the unpruned network, for an origin that can't be built from a name (kind "object"); it is not changed
    allow_code  whether a factory that the folder names may be imported and called: True, or the names that may

    Raises UserError naming the file for anything that is missing, damaged or does not fit together, and for a factory
    that the user has not agreed to.
    """
    folder = Path(folder)
    path, weights = folder / DESCRIPTION, folder / WEIGHTS
    if not path.is_file():
        raise UserError(f"There is no {path}: {folder} is no model folder")
    told: ModelFile = checked(ModelFile, load(path, "model", AGAIN), str(path), AGAIN)
    with reading(str(path), AGAIN):
        _check_agreement(told)
    if unpruned is None and told.origin.kind == "factory":
        closed = user_code.consent(allow_code).check(told.origin.name, path, "factory")
        user_code.function(told.origin.name, "factory", closed)
    tensors = read_weights(weights).state
    if _sha256(weights) != told.weights_sha256:
        raise UserError(f"{weights} is not the file that {path} describes: {AGAIN}")
    network = bare(copied(unpruned) if unpruned is not None else _built(told.origin, folder))
    try:
        resize_to(network, tensors)
    except UserError as error:
        raise UserError(f"{weights} doesn't fit the network that {told.origin.name} builds: {error}") from error
    _check_answers(network, told.signature, weights)
    with reading(str(path), AGAIN):
        _check_learned(network, told.learned)
    findings, found = told.findings, fingerprint(network)
    if found != told.sha256:
        changed = f"The layers that {told.origin.name} builds have changed since {folder} was saved; its weights fit."
        findings = (*findings, changed)
    return Model(
        network=network,
        signature=told.signature,
        preprocess=told.preprocess,
        labels=told.labels,
        origin=told.origin,
        split_seed=told.split_seed,
        sha256=found,
        learned=told.learned,
        findings=findings,
        file=(folder / ONNX).read_bytes() if told.origin.kind == "onnx" else b"",
    )


def _built(origin: Origin, folder: Path) -> nn.Module:
    if origin.kind == "onnx":
        return build_again(folder / ONNX, origin)
    try:
        return build(origin)
    except UserError as error:
        raise UserError(f"{folder / DESCRIPTION}: {error}") from error


def _check_agreement(told: ModelFile) -> None:
    """Raises Violation where parts of the description contradict each other."""
    inputs, outputs = told.signature.inputs, told.signature.outputs
    for side, specs in (("inputs", inputs), ("outputs", outputs)):
        if any(spec.shape[0] is not None or None in spec.shape[1:] for spec in specs):
            raise Violation("must have null for the batch, and numbers behind it", f"signature.{side}")
        if len({spec.name for spec in specs}) < len(specs):
            raise Violation("has two tensors of one name", f"signature.{side}")
    shape, contract = inputs[0].shape[1:], told.preprocess
    for number, spec in enumerate(inputs):
        if math.prod(size or 1 for size in spec.shape) > MOST_VALUES:
            place = f"signature.inputs[{number}].shape"
            raise Violation(f"is {shown(spec.shape)}: no network is fed so much at once", place)
    if inputs[0].layout == "NHWC":
        raise Violation('is "NHWC": networks take images as NCHW', "signature.inputs[0].layout")
    if (inputs[0].layout == "NCHW" or contract.sound is not None) and shape != contract.shape:
        made = shown(contract.shape)
        raise Violation(f"is {shown(shape)}, and 'preprocess' makes {made}", "signature.inputs[0].shape")
    if told.labels and len(outputs[0].shape) == 2 and not counts_fit(len(told.labels), outputs[0].shape):
        count = f"are {len(told.labels)} for {outputs[0].shape[-1]} outputs"
        raise Violation(f"{count}: give one label for each", "labels")


def _check_answers(network: nn.Module, signature: Signature, weights: Path) -> None:
    """Refuse weights with which the outputs do not fit the signature, or are NaN."""
    shape = signature.inputs[0].with_batch(2)
    # of zeros, some networks would make 0 / 0; of whole numbers, zeros may say that nothing counts
    some = [example(spec.with_batch(2), spec.dtype) for spec in signature.inputs]
    try:
        fit_unweighted(network, *some)
        with torch.no_grad():
            answer = network(*some)
        found = tensors_of(answer, [spec.name for spec in signature.outputs])
    except Exception as error:  # a network of a factory may raise anything
        cause = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise UserError(f"With {weights} the network does not run on {shown(shape)} ({cause}): {AGAIN}") from error
    gives = {name: tuple(one.shape) for name, one in found.items()}
    wanted = {spec.name: spec.with_batch(2) for spec in signature.outputs}
    if len(gives) == len(wanted) == 1:  # a single output's name is not the network's own
        gives = dict(zip(wanted, gives.values(), strict=True))
    if gives != wanted:
        told, said = (", ".join(map(shown, shapes.values())) for shapes in (gives, wanted))
        raise UserError(
            f"With {weights} the network gives {told} for two samples, its description says {said}: {AGAIN}"
        )
    if not all(bool(torch.isfinite(one).all()) for one in found.values()):
        raise UserError(f"With {weights} the outputs of the network are NaN or infinity: {AGAIN}")


def _check_learned(network: nn.Module, learned: Learned) -> None:
    """Raises Violation where `learned` names layers that the network does not have."""
    layers = dict(network.named_modules())
    for key, names in (
        ("sparse", learned.sparse),
        ("patterns", learned.patterns),
        ("normal", learned.normal),
    ):
        for name in names:
            if not isinstance(getattr(layers.get(name), "weight", None), Tensor):
                raise Violation(f"names {shown(name)}, which is no layer with weights", f"learned.{key}")
    for name, (means, deviations) in learned.normal.items():
        made = getattr(layers[name], "out_channels", None) or getattr(layers[name], "out_features", None)
        if len(means) != len(deviations) or made not in (None, len(means)):
            raise Violation(f"has {len(means)} means and {len(deviations)} deviations", f"learned.normal.{name}")
    for name, (low, high) in learned.ranges.items():
        if low > high:
            raise Violation("is no range: its low end is above its high end", f"learned.ranges.{name}")


def _description(model: Model, weights_sha256: str) -> dict[str, Any]:
    return {
        "format_version": FORMAT_VERSION,
        "origin": model.origin.to_json(),
        "signature": model.signature.to_json(),
        "preprocess": model.preprocess.to_json(),
        "labels": list(model.labels),
        "split_seed": model.split_seed,
        "sha256": model.sha256,
        "weights_sha256": weights_sha256,
        "learned": model.learned.to_json(),
        "findings": list(model.findings),
    }


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
