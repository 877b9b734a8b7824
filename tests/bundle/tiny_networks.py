"""Tiny networks written by hand: the average over the picture, then one linear layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec

LABELS = ("ash", "birch", "cedar", "elm", "fir", "gingko")
SCALE = {"image": 5.4 / 255, "pooled": 5.4 / 255, "weight": 1 / 64, "logits": 6 / 255}


def weights(channels: int) -> tuple[Any, Any]:
    """[classes, channels] and [classes], multiples of the int8 grid so that both runtimes get the same network."""
    rng = np.random.default_rng(7)
    weight = rng.integers(-100, 100, (len(LABELS), channels)) * SCALE["weight"]
    return weight.astype(np.float32), np.linspace(-0.2, 0.2, len(LABELS), dtype=np.float32)


def write_onnx(path: Path, preprocess: Preprocess, io: str, *, softmax: bool = False, layout: str = "NCHW") -> None:
    """[(DequantizeLinear)] -> GlobalAveragePool -> Flatten -> Gemm -> [Softmax] -> [(QuantizeLinear)]"""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weight, bias = weights(preprocess.channels)
    kind = {"float32": TensorProto.FLOAT, "uint8": TensorProto.UINT8, "int8": TensorProto.INT8}[io]
    constants = {"weight": weight, "bias": bias}
    nodes, metadata, source, target = [], {"pocketfit.layout": layout}, "image", "logits"
    if io != "float32":
        zero = np.array(128 if io == "uint8" else 0, io)
        constants |= {"zero": zero, "image_scale": np.float32(SCALE["image"]), "scale": np.float32(SCALE["logits"])}
        nodes.append(helper.make_node("DequantizeLinear", ["image", "image_scale", "zero"], ["real"]))
        source, target = "real", "real_logits"
        for word, scale in (("input", SCALE["image"]), ("output", SCALE["logits"])):
            metadata |= {f"pocketfit.{word}_scale": repr(float(scale)), f"pocketfit.{word}_zero_point": str(int(zero))}
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [source], ["first"], perm=[0, 3, 1, 2]))
        source = "first"
    nodes.append(helper.make_node("GlobalAveragePool", [source], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["flat"]))
    nodes.append(helper.make_node("Gemm", ["flat", "weight", "bias"], ["linear" if softmax else target], transB=1))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["linear"], [target]))
    if io != "float32":
        nodes.append(helper.make_node("QuantizeLinear", ["real_logits", "scale", "zero"], ["logits"]))
    channels, height, width = preprocess.channels, preprocess.height, preprocess.width
    shape = ["n", channels, height, width] if layout == "NCHW" else ["n", height, width, channels]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", kind, shape)],
        [helper.make_tensor_value_info("logits", kind, ["n", len(LABELS)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.save(model, str(path))


def write_tflite(path: Path, preprocess: Preprocess, io: str) -> None:
    """AVERAGE_POOL_2D over the whole picture -> FULLY_CONNECTED, all float32 or all int8."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    weight, bias = weights(preprocess.channels)
    height, width, channels = preprocess.height, preprocess.width, preprocess.channels
    kind = {"float32": schema.TensorType.FLOAT32, "int8": schema.TensorType.INT8}[io]
    if io == "int8":
        weight = np.rint(weight / SCALE["weight"]).astype(np.int8)
        bias = np.rint(bias / (SCALE["pooled"] * SCALE["weight"])).astype(np.int32)

    def buffer(array: Any) -> Any:
        made = schema.BufferT()
        made.data = None if array is None else np.frombuffer(array.tobytes(), np.uint8)
        return made

    def tensor(name: str, shape: list[int], index: int, dtype: int, scale: float) -> Any:
        made = schema.TensorT()
        made.name, made.shape, made.buffer, made.type = name, shape, index, dtype
        if io == "int8":
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale, made.quantization.zeroPoint = [scale], [0]
        return made

    def operator(code: int, inputs: list[int], output: int, options_type: int, options: Any) -> Any:
        made = schema.OperatorT()
        made.opcodeIndex, made.inputs, made.outputs = code, inputs, [output]
        made.builtinOptionsType, made.builtinOptions = options_type, options
        return made

    def code(builtin: int, version: int) -> Any:
        made = schema.OperatorCodeT()
        made.builtinCode, made.deprecatedBuiltinCode, made.version = builtin, builtin, version
        return made

    pool, linear = schema.Pool2DOptionsT(), schema.FullyConnectedOptionsT()
    pool.padding, pool.filterHeight, pool.filterWidth, pool.strideH, pool.strideW = 1, height, width, 1, 1
    bias_kind = schema.TensorType.INT32 if io == "int8" else kind
    graph = schema.SubGraphT()
    graph.tensors = [
        tensor("image", [1, height, width, channels], 0, kind, SCALE["image"]),
        tensor("pooled", [1, 1, 1, channels], 0, kind, SCALE["pooled"]),
        tensor("weight", list(weight.shape), 1, kind, SCALE["weight"]),
        tensor("bias", [len(LABELS)], 2, bias_kind, SCALE["pooled"] * SCALE["weight"]),
        tensor("logits", [1, len(LABELS)], 0, kind, SCALE["logits"]),
    ]
    graph.inputs, graph.outputs = [0], [4]
    options = schema.BuiltinOptions
    graph.operators = [
        operator(0, [0], 1, options.Pool2DOptions, pool),
        operator(1, [1, 2, 3], 4, options.FullyConnectedOptions, linear),
    ]
    model = schema.ModelT()
    model.version, model.subgraphs = 3, [graph]
    model.buffers = [buffer(None), buffer(weight), buffer(bias)]
    operators = schema.BuiltinOperator
    model.operatorCodes = [code(operators.AVERAGE_POOL_2D, 2), code(operators.FULLY_CONNECTED, 4)]
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def samples_for(preprocess: Preprocess, count: int = 7) -> Samples:
    shape = (count, preprocess.height, preprocess.width, preprocess.channels)
    array = np.random.default_rng(3).integers(0, 256, shape, np.uint8)
    names = [f"{number}.jpg" for number in range(count)]
    return Samples(
        array=array,
        labels=np.arange(count) % len(LABELS),
        names=names,
        split="search",
        sha256="00",
        preprocess=preprocess,
        class_names=LABELS,
    )


def model_for(preprocess: Preprocess, labels: tuple[str, ...] = LABELS) -> Model:
    image = TensorSpec("image", (None, preprocess.channels, preprocess.height, preprocess.width), layout="NCHW")
    signature = Signature((image,), (TensorSpec("logits", (None, len(LABELS))),))
    return Model(
        network=None, signature=signature, preprocess=preprocess, labels=labels, origin=Origin("object", "tiny")
    )


RGB = Preprocess(height=16, width=20, resize_px=18)
GREY = Preprocess(height=12, width=12, resize="exact", colour="GRAY", mean=(0.5,), std=(0.5,))
BGR = Preprocess(height=16, width=16, resize="longer", resize_px=16, filter="bicubic", colour="BGR")
LINE = Preprocess(
    height=16, width=40, resize="height", colour="BGR", background=(127,) * 3, mean=(0.5,) * 3, std=(0.5,) * 3
)
MEASURED = {
    "size_bytes": Measurement(quantity="size_bytes", unit="B", value=1234.0),
    "latency_ms": Measurement(
        quantity="latency_ms", unit="ms", value=0.25, n=3, low=0.2, high=0.3, samples=(0.2, 0.25, 0.3)
    ),
    "memory_bytes": Measurement.not_possible("memory_bytes", "B", "no /proc on this system"),
}
