"""What every layer of a file gives on its way to the answer, so that two files can be compared layer by layer.

A layer is an operator with weights, together with the activation that follows it: quantized files fold the activation
into the layer or into its quantization, so that only behind it do both mean the same tensor.

    ONNX    Conv -> Clip -> QuantizeLinear -> DequantizeLinear: read behind the last of these
            ConvInteger -> Cast -> Mul (scale) -> Add (bias) -> Clip: read behind the last of these
    LiteRT  CONV_2D (its activation is fused): read its output, dequantized
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes
from pocketfit.core.artifact import OpInfo
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer, quantize_input
from pocketfit.core.samples import Samples
from pocketfit.measurement.run_samples import fed
from pocketfit.numerics import sqnr
from pocketfit.numerics.affine import dequantize

ACTIVATIONS = ("Relu", "LeakyRelu", "Clip")
INTEGER = ("ConvInteger", "MatMulInteger")
Arrays = dict[str, NDArray[np.generic]]


class Tapped(Protocol):
    """A file whose layers can be read: `layers` name -> tensor name; `run` gives those tensors, by layer."""

    layers: Mapping[str, str]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]: ...


def drift_in_child(*, runtime: str, a: str, b: str, array: str, preprocess: str, threads: int) -> dict[str, Any]:
    """Run both files on the samples of `array` and compare their layers, in the order of the first file.

    -> {"layers": [[name, signal, noise], …] (sums of squares over all samples),
        "tapped_db": [a, b], SQNR of the answers of the file whose layers are read against the file as it ships}
    """
    stored = np.load(array, mmap_mode="r", allow_pickle=False)
    contract = Preprocess.from_json(json.loads(preprocess))
    samples = Samples(stored, np.full(len(stored), -1, np.int64), [], "", "", contract)
    module = runtimes.get(runtime)
    files = [_File(runtime, module, Path(path), threads) for path in (a, b)]
    pairs = matched(files[0].tapped.layers, files[1].tapped.layers)
    sums = {ours: [0.0, 0.0] for ours in pairs}
    different: set[str] = set()
    for row in range(len(samples)):
        first, second = (file.read(samples, row) for file in files)
        for ours, theirs in pairs.items():
            if first[ours].shape != second[theirs].shape:
                different.add(ours)
                continue
            signal, noise = sqnr.energies(first[ours], second[theirs])
            sums[ours][0] += signal
            sums[ours][1] += noise
    layers = [[name, *both] for name, both in sums.items() if name not in different]
    return {"layers": layers, "tapped_db": [file.tapped_db() for file in files]}


def matched(a: Mapping[str, str], b: Mapping[str, str]) -> dict[str, str]:
    """Layers of a -> layers of b: by name; where no name is common and both have as many, by order.

    >>> matched({"stem": "t1", "head": "t2"}, {"head": "u1"})
    {'head': 'head'}
    >>> matched({"x": "t1", "y": "t2"}, {"1": "u1", "2": "u2"})
    {'x': '1', 'y': '2'}
    """
    common = {name: name for name in a if name in b}
    if not common and len(a) == len(b):
        return dict(zip(a, b, strict=True))
    return common


class _File:
    """A file twice: as it ships, and with its layers laid open."""

    def __init__(self, runtime: str, module: Any, path: Path, threads: int) -> None:
        self.shipped = module.load(path, threads=threads)
        operators = [op for op in module.inspect(path).ops if op.weight_dtype and op.macs]
        self.tapped = _OPENERS[runtime](path, operators, threads)
        self._signal = self._noise = 0.0

    def read(self, samples: Samples, row: int) -> dict[str, NDArray[np.float32]]:
        spec, quantization = self.shipped.signature.inputs[0], self.shipped.input_quantization
        values = fed(samples, slice(row, row + 1), spec)
        given: NDArray[np.generic] = values
        if quantization is not None:
            given = quantize_input(values, spec.dtype, quantization.scales[0], quantization.zero_points[0])
        found = self.tapped.run({spec.name: given})
        signal, noise = sqnr.energies(answer(self.shipped, values), found.pop(""))
        self._signal, self._noise = self._signal + signal, self._noise + noise
        return found

    def tapped_db(self) -> float:
        return min(200.0, sqnr.ratio_db(self._signal, self._noise))


@dataclass
class _Onnx:
    """ONNX Runtime with the layers' tensors as further outputs of a copy in memory."""

    session: Any
    layers: Mapping[str, str]
    output: str
    output_quantization: Any

    @classmethod
    def open(cls, path: Path, operators: list[OpInfo], threads: int) -> _Onnx:
        import onnx
        import onnxruntime

        model = onnx.load(str(path), load_external_data=False)
        nodes = [node for node in model.graph.node if node.op_type != "Constant"]
        readers: dict[str, list[Any]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        constants = {tensor.name for tensor in model.graph.initializer}
        for node in model.graph.node:
            if all(name in constants for name in node.input):
                constants.update(node.output)
        layers = {}
        for op in operators:
            node = nodes[op.index]
            layers[op.layer or node.output[0]] = behind_activation(node, readers, constants)
        stated = [value.name for value in model.graph.output]
        types = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
        for tensor in dict.fromkeys(layers.values()):
            if tensor not in stated:
                model.graph.output.append(types.get(tensor) or onnx.ValueInfoProto(name=tensor))
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 3, threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        shipped = runtimes.get("onnxruntime").load(path, threads=threads)
        return cls(session, layers, stated[0], shipped.output_quantization)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        wanted = [self.output, *self.layers.values()]
        values = self.session.run(wanted, inputs)
        if self.output_quantization is not None:
            one = self.output_quantization
            values[0] = dequantize(values[0], one.scales[0], one.zero_points[0])
        return {"": values[0]} | dict(zip(self.layers, values[1:], strict=True))


def behind_activation(node: Any, readers: Mapping[str, list[Any]], constants: Container[str]) -> str:
    """The float tensor behind a layer's scale, bias, activation and quantize pair, as long as only they read it.

    constants: names of tensors that do not depend on the input (a sum with one is a bias, with another a shortcut)
    """
    tensor = str(node.output[0])
    while following := readers.get(tensor, []):
        after = following[0]
        if after.op_type == "QuantizeLinear" and len(following) == 1:
            pair = readers.get(after.output[0], [])
            if not pair or any(one.op_type != "DequantizeLinear" for one in pair):
                return tensor  # the file's own integer output
            after = pair[0]
            following = pair[:1]  # one integer tensor, dequantized for each of its readers
        elif node.op_type in INTEGER and after.op_type in ("Cast", "Mul", "Add"):
            others = [name for name in after.input if name != tensor]
            if after.op_type == "Add" and not all(name in constants for name in others):
                return tensor
        elif after.op_type not in ACTIVATIONS:
            return tensor
        if len(following) != 1:
            return tensor
        tensor = str(after.output[0])
    return tensor


@dataclass
class _LiteRT:
    """LiteRT's reference to itself: all tensors kept, no delegate, as XNNPACK keeps none of its inner tensors."""

    interpreter: Any
    layers: Mapping[str, str]
    indices: Mapping[str, int]
    details: Mapping[int, Any]

    @classmethod
    def open(cls, path: Path, operators: list[OpInfo], threads: int) -> _LiteRT:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        interpreter = Interpreter(
            model_path=str(path),
            num_threads=threads,
            experimental_preserve_all_tensors=True,
            experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        )
        interpreter.allocate_tensors()
        details = {one["index"]: one for one in interpreter.get_tensor_details()}
        by_name = {one["name"]: index for index, one in details.items()}
        layers = {op.layer or op.name: op.name for op in operators if op.name in by_name}
        return cls(interpreter, layers, {name: by_name[tensor] for name, tensor in layers.items()}, details)

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        for given, detail in zip(inputs.values(), self.interpreter.get_input_details(), strict=True):
            self.interpreter.set_tensor(detail["index"], given)
        self.interpreter.invoke()
        found = {"": self._real(self.interpreter.get_output_details()[0]["index"])}
        return found | {name: self._real(index) for name, index in self.indices.items()}

    def _real(self, index: int) -> NDArray[np.float32]:
        values, stated = self.interpreter.get_tensor(index), self.details[index]["quantization_parameters"]
        if values.dtype.kind == "f" or len(stated["scales"]) == 0:
            return np.asarray(values, np.float32)
        axis = int(stated["quantized_dimension"]) if len(stated["scales"]) > 1 else None
        return dequantize(values, stated["scales"], stated["zero_points"], axis=axis)


_OPENERS: Mapping[str, Any] = {"onnxruntime": _Onnx.open, "litert": _LiteRT.open}


def why_not(runtime_a: str, runtime_b: str) -> str:
    """ "" where the layers of two such files can be compared, else the sentence that says why not."""
    if runtime_a != runtime_b:
        return (
            f"Layers of a {runtime_a} file and a {runtime_b} file are laid out and fused differently:"
            " they can be compared between two files of the same format"
        )
    if runtime_a not in _OPENERS:
        return f"The {runtime_a} runtime does not show what its layers give"
    return ""
