"""A Model from a zoo name, a factory, a module, an .onnx file or a model folder; and back into a folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.text import some
from pocketfit.core.support.user_code import Allowed
from pocketfit.sources.input_contract import Inputs, read_inputs, read_labels, read_preprocess
from pocketfit.sources.models.build_network import build, counts_classes
from pocketfit.sources.models.check_network import check_weights, counts_fit, signature_of
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.fit_layer_shapes import resize_to
from pocketfit.sources.models.match_weights import match
from pocketfit.sources.models.model_folder import is_model_folder, load_model, save_model
from pocketfit.sources.models.onnx_model import is_onnx_file, open_onnx_model
from pocketfit.sources.models.unwrap import bare, computing
from pocketfit.sources.models.weights_file import read_state_dict, read_weights
from pocketfit.zoo import ARCHITECTURES, head

SOUND = TensorSpec("sound", ())

__all__ = [
    "fingerprint",
    "is_model_folder",
    "load_model",
    "model_from_module",
    "open_model",
    "read_state_dict",
    "resize_to",
    "save_model",
]


def open_model(
    spec: str | Path,
    *,
    weights: str | Path | None = None,
    preprocess: Preprocess | str | Path | None = None,
    labels: Sequence[str] | str | Path | None = None,
    input_shape: Inputs | None = None,
    classes: int | None = None,
    allow_code: Allowed = False,
) -> Model:
    """A Model from a model folder, an .onnx file, a name of the zoo, or "package.module:factory".

    weights      a .safetensors file or a state dict; the zoo's width and the class count are read off its shapes
    preprocess   a Preprocess, a JSON file, "imagenet", "log-mel" and so on, or None for what the architecture was
                 published with
    labels       names in the order of the outputs, or a file with one a line (or a JSON list)
    input_shape  shape of one sample: (3, 224, 224) or "3x224x224", for several inputs "image=3x32x32,facts=5", with
                 whole numbers "64:int64"; of an .onnx file it fixes the axes left open
    classes      outputs of the classifier; where the weights have another number, the head starts anew
    allow_code   whether a factory that a model folder names may be called: True, or the names that may. A factory that
                 is given here, as `spec`, is called anyway

    Raises UserError for everything that does not fit together, naming the file or the layer.
    """
    path = Path(spec)
    if is_model_folder(path):
        if weights is not None or classes is not None:
            raise UserError(
                f"The model folder {path} has its own weights and classes: leave out --weights and --classes"
            )
        model = load_model(path, allow_code=allow_code)
        return _with_contract(model, preprocess, labels, input_shape)
    if is_onnx_file(path):
        if weights is not None or classes is not None:
            raise UserError(f"The file {path} has its own weights and classes: leave out --weights and --classes")
        model = open_onnx_model(path, preprocess=preprocess, labels=labels, input_shape=input_shape)
        _check_labels(model.labels, model.signature)
        return model
    if os.path.isdir(path):  # noqa: PTH112 (a name that is too long is none, and no error)
        raise UserError(f"The folder {path} holds no model (it has no model.json): make one with pocketfit train")
    name = str(spec)
    if name not in ARCHITECTURES and ":" not in name:
        raise UserError(
            f"'{name}' is no model folder, no .onnx file, no name of the zoo ({', '.join(sorted(ARCHITECTURES))}) and"
            " no package.module:factory"
        )
    origin = Origin("zoo" if name in ARCHITECTURES else "factory", name)
    if weights is None:
        network, origin = _without_weights(origin, classes)
        findings: tuple[str, ...] = (f"No weights were given: {name} starts from random ones, and needs training.",)
    else:
        network, origin, findings = _with_weights(origin, Path(weights), classes)
    model = model_from_module(
        network,
        preprocess=preprocess if preprocess is not None else _published(name),
        labels=labels or (),
        input_shape=input_shape,
        origin=origin,
    )
    return replace(model, findings=(*findings, *model.findings))


def model_from_module(
    module: nn.Module,
    *,
    preprocess: Preprocess | str | Path | None = None,
    labels: Sequence[str] | str | Path = (),
    input_shape: Inputs | None = None,
    origin: Origin | None = None,
) -> Model:
    """A Model around a module, which is put into eval mode and otherwise left as it is.

    The Model holds the module itself, taken out of its wrappers (nn.DataParallel, torch.compile); where layers compute
    their weights at every call (weight norms, spectral norms, masks), it holds a copy with the weights as they are.

    `input_shape` of one sample is (channels, height, width) for images; left out, it follows from `preprocess`. Of a
    network with several inputs, or with whole numbers, it is a mapping in words: "image=3x32x32,facts=5",
    {"input_ids": "64:int64"}.
    Raises UserError where the network does not run at this shape, gives anything but tensors of floats with the batch
    first, gives other outputs for the same input, or is not in float32.
    """
    if not isinstance(module, nn.Module):
        raise UserError(f"A {type(module).__name__} is no network: hand over a torch.nn.Module")
    check_weights(module)
    computed, module = computing(module), bare(module)
    contract, findings, signature = _contract(module, preprocess, input_shape)
    if computed:
        findings = (
            *findings,
            f"The weights of {some(computed)} are computed at each call (a weight norm, a spectral norm, a mask): they"
            " were taken as they are in eval mode.",
        )
    names = read_labels(labels)
    _check_labels(names, signature)
    return Model(
        network=module,
        signature=signature,
        preprocess=contract,
        labels=names,
        origin=origin or Origin("object", type(module).__qualname__),
        sha256=fingerprint(module),
        findings=findings,
    )


def _contract(
    module: nn.Module, preprocess: Preprocess | str | Path | None, input_shape: Inputs | None
) -> tuple[Preprocess, tuple[str, ...], Signature]:
    """(how images are prepared, what there is to say about it, the inputs and outputs)."""
    inputs = () if input_shape is None else read_inputs(input_shape)
    described = next((spec for spec in inputs if spec.layout), inputs[0] if inputs else None)
    shape = None if described is None else tuple(size or 1 for size in described.shape[1:])
    contract, findings = read_preprocess(preprocess, shape)
    given = SOUND if contract.sound is not None else inputs[0] if inputs else None
    first = tuple(size or 1 for size in inputs[0].shape[1:]) if inputs else contract.shape
    return contract, findings, signature_of(module, first, given=given, more=inputs[1:])


def _published(name: str) -> Preprocess | None:
    """The preprocessing with which the zoo's published weights were trained."""
    if name not in ARCHITECTURES:
        return None
    architecture = ARCHITECTURES[name]
    return Preprocess(
        height=architecture.image_size,
        width=architecture.image_size,
        resize_px=architecture.resize,
        filter=architecture.interpolation,
        mean=architecture.mean,
        std=architecture.std,
    )


def _without_weights(origin: Origin, classes: int | None) -> tuple[nn.Module, Origin]:
    if classes is not None:
        origin = counts_classes(origin, classes)
    return build(origin), origin


def _with_weights(origin: Origin, path: Path, classes: int | None) -> tuple[nn.Module, Origin, tuple[str, ...]]:
    """The network of this origin with the weights of the file, built for as many classes as they have."""
    weights = read_weights(path)
    network, origin, state = match(origin, weights.state, path)
    notes = weights.notes
    name = _head_name(network)
    if classes is not None and name and classes != state[f"{name}.weight"].shape[0]:
        had = state[f"{name}.weight"].shape[0]
        origin = counts_classes(origin, classes)
        network = build(origin)
        fresh = {key: tensor for key, tensor in network.state_dict().items() if key.startswith(f"{name}.")}
        state = {**state, **fresh}
        notes = (*notes, f"The weights have {had} classes: {name} starts anew with {classes}, and needs training.")
    resize_to(network, state)
    return network, origin, notes


def _head_name(network: nn.Module) -> str:
    return head(network)[0] if any(isinstance(layer, nn.Linear) for layer in network.modules()) else ""


def _check_labels(labels: tuple[str, ...], signature: Signature) -> None:
    shape = signature.outputs[0].shape
    twice = [name for name, count in Counter(labels).items() if count > 1]
    if twice:
        raise UserError(
            f"The label '{twice[0]}' stands for several outputs ({labels.index(twice[0])} is the first): give each"
            " output a name of its own"
        )
    if labels and len(shape) == 2 and not counts_fit(len(labels), shape):  # of others, the task says
        raise UserError(
            f"There are {len(labels)} labels, but the network has {shape[-1]} outputs: give one label for each"
        )


def _with_contract(model: Model, preprocess: Any, labels: Any, input_shape: Any) -> Model:
    """The same network with what the user says about its input instead of what was stored."""
    inputs = read_inputs(input_shape) if input_shape is not None else ()
    own = model.signature.inputs
    if inputs and (len(inputs) > 1 or len(own) > 1 or inputs[0].dtype != own[0].dtype):
        names = [spec.name for spec in model.signature.outputs]
        first = tuple(size or 1 for size in inputs[0].shape[1:])
        signature = signature_of(model.network, first, given=inputs[0], more=inputs[1:], outputs=names)
        model = replace(model, signature=signature)
    elif len(own) == 1 and own[0].dtype == "float32" and (preprocess is not None or inputs):
        shape = tuple(size or 1 for size in inputs[0].shape[1:]) if inputs else None
        contract, findings = read_preprocess(model.preprocess if preprocess is None else preprocess, shape)
        signature = _signature_at(model, shape or contract.shape)
        model = replace(model, preprocess=contract, signature=signature, findings=(*model.findings, *findings))
    if labels is not None:
        model = replace(model, labels=read_labels(labels))
    _check_labels(model.labels, model.signature)
    return model


def _signature_at(model: Model, shape: tuple[int, ...]) -> Signature:
    """The signature at another input shape, under the same names."""
    given, names = model.signature.inputs[0], [spec.name for spec in model.signature.outputs]
    same = len(shape) + 1 == len(given.shape)
    return signature_of(model.network, shape, given=given if same else None, outputs=names)
