"""A Model from an .onnx file, and its unpruned network again from the copy of the file that a model folder keeps."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.text import some
from pocketfit.sources.input_contract import Inputs, read_inputs, read_labels, read_preprocess
from pocketfit.sources.models.check_network import check_weights, signature_of
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.onnx.open import Converted, open_for_model

NAME = r"[^\s\x00-\x1f]{1,200}"  # of an input or output that a TensorSpec can have
LONGEST_NAMES = 10**6  # characters of metadata that name the classes
ENTRY = r"""(\d{1,6})\s*:\s*(?:'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)")"""


def is_onnx_file(spec: str | Path) -> bool:
    """Whether this names an .onnx file, there or not.

    >>> is_onnx_file("net.ONNX"), is_onnx_file("package.onnx:factory")
    (True, False)
    """
    return Path(spec).suffix.lower() == ".onnx"


def open_onnx_model(
    path: Path,
    *,
    preprocess: Preprocess | str | Path | None,
    labels: Sequence[str] | str | Path | None,
    input_shape: Inputs | None,
) -> Model:
    """The Model of an .onnx file, compared with ONNX Runtime; `open_model` describes the arguments.

    Axes besides the batch that the file leaves open get the sizes of `input_shape`, else those of `preprocess`. Labels
    that nobody gives are read from the file's metadata.
    """
    shape = None if input_shape is None else _shapes(read_inputs(input_shape), named=_are_named(input_shape))
    one = shape if isinstance(shape, tuple) else None
    given, said = read_preprocess(preprocess, one) if preprocess is not None else (None, ())
    pixels = None if given is None else given.shape
    found = open_for_model(path, shape=shape or pixels, exact=shape is not None)
    found.network.eval()
    try:
        check_weights(found.network)
        signature = _signature(found, is_sound=given is not None and given.sound is not None)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    fed = tuple(size or 1 for size in signature.inputs[0].shape[1:])
    picture = signature.inputs[0].layout == "NCHW" or given is not None
    contract, assumed = read_preprocess(given, fed) if picture else (Preprocess(resize="none"), ())
    names, where = (read_labels(labels), ()) if labels is not None else labels_of(found.metadata, signature)
    sha256 = hashlib.sha256(found.file).hexdigest()
    return Model(
        network=found.network,
        signature=signature,
        preprocess=contract,
        labels=names,
        origin=Origin("onnx", path.name[-500:], found.arguments, sha256),
        sha256=fingerprint(found.network),
        findings=(*found.findings, *said, *assumed, *where),
        file=found.file,
    )


def _are_named(given: Inputs) -> bool:
    return isinstance(given, Mapping) or (isinstance(given, str) and "=" in given)


def _shapes(inputs: Sequence[TensorSpec], *, named: bool) -> tuple[int, ...] | dict[str, tuple[int, ...]]:
    shapes = {spec.name: tuple(size or 1 for size in spec.shape[1:]) for spec in inputs}
    return shapes if named else shapes[inputs[0].name]


def build_again(path: Path, origin: Origin) -> nn.Module:
    """The unpruned network of the .onnx file in a model folder.

    Raises UserError where the file is not the one that the origin describes.
    """
    if not path.is_file():
        raise UserError(f"There is no {path}, from which the network is built: make the folder again")
    found = open_for_model(path, arguments={name: int(size) for name, size in origin.arguments.items()})
    if found.sha256 != origin.sha256:
        raise UserError(f"{path} is not the file that the model was made from: make the folder again")
    return found.network.eval()


def labels_of(metadata: Mapping[str, str], signature: Signature) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(labels that the file itself names, sentences about them); none where their number is not that of the outputs.

    PaddleOCR: "character", one a line, with a blank before and a space behind them. Ultralytics: "names", a dict of
    Python written out.
    """
    shape = signature.outputs[0].shape
    for key, read in (("character", _characters), ("names", _names)):
        text = metadata.get(key, "")
        names = read(text) if 0 < len(text) <= LONGEST_NAMES else ()
        if not names:
            continue
        if len(shape) not in (2, 3) or shape[-1] != len(names):
            return (), (f"The file's metadata name {len(names)} labels ('{key}'), and the network has not as many"
                        " outputs: they are left out; give --labels.",)  # fmt: skip
        twice = [name for name in set(names) if names.count(name) > 1] if len(set(names)) < len(names) else []
        if twice or not all(re.fullmatch(".{1,1000}", name, re.DOTALL) for name in names):
            odd = f"{some(sorted(twice))} twice" if twice else "an empty one"
            return (), (
                f"The labels in the file's metadata ('{key}') are left out, as they hold {odd}: give --labels.",
            )
        how = ", with a blank before and a space behind them" if key == "character" else ""
        return names, (f"The {len(names)} labels are those in the file's metadata ('{key}'){how}.",)
    return (), ()


def _characters(text: str) -> tuple[str, ...]:
    """
    >>> _characters("a\\nb\\n")
    ('blank', 'a', 'b', ' ')
    """
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    return ("blank", *lines, " ")


def _names(text: str) -> tuple[str, ...]:
    """
    >>> _names('''{0: 'person', 1: "bird's nest"}'''), _names("person")
    (('person', "bird's nest"), ())
    """
    if not re.fullmatch(r"\s*\{.*\}\s*", text, re.DOTALL):
        return ()
    found = {int(number): one or other for number, one, other in re.findall(ENTRY, text)}
    if sorted(found) != list(range(len(found))):
        return ()
    return tuple(re.sub(r"\\(.)", r"\1", found[number]) for number in range(len(found)))


def _signature(found: Converted, *, is_sound: bool) -> Signature:
    """The file's own names, where they can stand in a file of ours."""
    given, outputs = found.signature.inputs, found.signature.outputs
    sound = all(re.fullmatch(NAME, spec.name) for spec in given)
    fallback = ["input"] if len(given) == 1 else [f"input_{i}" for i in range(len(given))]
    inputs: list[TensorSpec] = []
    for spec, other in zip(given, fallback, strict=True):
        shape = tuple(size or 1 for size in spec.shape[1:])  # all are known
        picture = len(shape) == 3 and shape[0] in (1, 3) and spec.dtype == "float32" and not inputs and not is_sound
        inputs.append(TensorSpec(spec.name if sound else other, (None, *shape), spec.dtype, "NCHW" if picture else ""))
    first = tuple(size or 1 for size in inputs[0].shape[1:])
    names = [spec.name for spec in outputs if re.fullmatch(NAME, spec.name)]
    taken = {spec.name for spec in inputs}
    kept = names if len(set(names) - taken) == len(outputs) else [f"output_{i}" for i in range(len(outputs))]
    return signature_of(found.network, first, given=inputs[0], more=inputs[1:], outputs=kept)
