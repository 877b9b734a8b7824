"""The child process of ONNX Runtime's quantization: from the float32 file to another precision, ends included."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.formats.onnx_read import DEQUANTIZE, QUANTIZE, layer_of, set_metadata
from pocketfit.numerics.affine import quantize, symmetric_scale
from pocketfit.numerics.nibbles import pack_int4
from pocketfit.runtimes.common import agreement, correct_biases
from pocketfit.runtimes.onnxruntime import integer_forms, mixed_end
from pocketfit.runtimes.onnxruntime import recurrent as onnxruntime_recurrent
from pocketfit.runtimes.onnxruntime.convert import BATCH, LAYOUT, open_unoptimized, runner, specs
from pocketfit.runtimes.onnxruntime.file_ends import channels_last_input, integer_ends

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

DYNAMIC_ROWS = (
    "ONNX Runtime sets the ranges of this file over all samples of a batch: pocketfit runs them one after the other, "
    "as an app does"
)
INT4_OPSET = 21  # of ONNX: the first whose Cast takes int4


def make(
    source: str,
    path: str,
    plan: dict[str, Any],
    about: Mapping[str, str],
    *,
    ranges: Mapping[str, tuple[float, float]],
    samples: str = "",
) -> list[str]:
    """Turn the float32 file `source` into the file that the plan's export settings ask for; -> sentences on it.

    source   static int8: the prepared file (calibrate.prepare)
    about    the float32 file's notes on itself (LAYOUT, BATCH)
    ranges   static int8: the range of each float tensor of `source`
    samples  static int8: an .npz of samples, by the names of the inputs, to correct biases by; "": they stay
    """
    import onnx

    wanted = Plan.from_json(plan, allow_code=True).export
    model = onnx.load(source)
    said: list[str] = []
    float_nodes = nodes_of_layers(model, wanted.keep_float, "stay in float32")
    nodes_of_layers(model, wanted.keep_int8, "keep int8 weights")
    if wanted.precision == "float16":
        float16_weights(model, float_nodes)
    elif wanted.precision == "weight-only":
        model = integer_weights(model, wanted, weights_of(model))
    elif wanted.precision == "dynamic-int8":
        model = _dynamic(model, path, float_nodes)
    elif wanted.precision == "int8":
        mixed, said = mixed_end.names_and_sentences(model, ranges, wanted.io)
        model = _static(model, wanted, [*float_nodes, *mixed], ranges)
        shield(model, float_nodes)
        if samples:
            with np.load(samples, allow_pickle=False) as archive:
                rows = {name: archive[name] for name in archive.files}
            correct_biases.correct(model, onnx.load(source), rows, open_unoptimized)
    if wanted.precision in ("int8", "dynamic-int8"):
        model = integer_weights(model, wanted, onnxruntime_recurrent.weights_of(model))
    if wanted.io != "float32":
        integer_ends(model)
    noted = dict(about)
    if wanted.layout == "NHWC" and about.get(LAYOUT) == "NCHW":
        channels_last_input(model)
        noted[LAYOUT] = "NHWC"
    set_metadata(model, noted)
    model.producer_name, model.producer_version = "pocketfit", ""
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    check_scales(model)
    onnx.save(model, path)
    if about.get(BATCH) == "1" or wanted.precision not in agreement.ROW_TOLERANCE:
        return said
    if agreement.same_rows(runner(path), specs(path), agreement.ROW_TOLERANCE[wanted.precision]):
        return said
    set_metadata(model, {BATCH: "1"})
    onnx.save(model, path)
    return [*said, DYNAMIC_ROWS if wanted.precision == "dynamic-int8" else agreement.ROW_BY_ROW]


def check_scales(model: ModelProto) -> None:
    """ExportFailed, with the tensor's name, for a scale that is 0, not finite or too small to be multiplied by."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE) and node.input[1] in constants:
            scales = np.asarray(numpy_helper.to_array(constants[node.input[1]]), np.float64)
            if not ((scales >= np.finfo(np.float32).tiny) & np.isfinite(scales)).all():
                worst = float(scales.ravel()[np.argmin(scales)])
                raise ExportFailed(f"The tensor '{node.input[0]}' got a scale of {worst:g}, which no kernel can use")


def nodes_of_layers(model: ModelProto, layers: Sequence[str], wish: str = "stay in float32") -> list[str]:
    """Names of the nodes whose weight is "<layer>.weight". Raises UserError for a layer without one (cannot `wish`)."""
    users: dict[str, list[str]] = {}
    for node in model.graph.node:
        for layer in dict.fromkeys(filter(None, map(layer_of, node.input))):
            users.setdefault(layer, []).append(node.name)
    for layer in layers:
        if layer not in users:
            near = difflib.get_close_matches(layer, users, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"the first of them is '{next(iter(users), '')}'"
            raise UserError(f"No layer with weights is called '{layer}', so it cannot {wish}: {hint}")
    return [name for layer in layers for name in users[layer]]


def float16_weights(model: ModelProto, float_nodes: Sequence[str]) -> None:
    """Store matrices and kernels as float16: weight [float16] -> Cast -> Conv [float32].

    ONNX Runtime carries out the Cast while loading, so that the file computes and costs what the float32 one does;
    a graph converted to float16 throughout gets a Cast around every operator, as x86 has no float16 kernels.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    kept = {name for node in graph.node if node.name in float_nodes for name in node.input}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) < 2 or tensor.name in kept:
            continue
        name, wide = tensor.name, f"{tensor.name}_float32"
        values = numpy_helper.to_array(tensor)
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise ExportFailed(f"'{name}' holds values beyond 65504, the largest that float16 can store")
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
        casts.append(helper.make_node("Cast", [name], [wide], f"{name}/Cast", to=TensorProto.FLOAT))
        for node in graph.node:
            node.input[:] = [wide if given == name else given for given in node.input]
    _put_in_front(model, casts)


def _put_in_front(model: ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Put nodes that read constants only in front of all others. (A message extended by its own nodes loses them.)"""
    whole = [*nodes, *(type(node).FromString(node.SerializeToString()) for node in model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(whole)


def integer_weights(model: ModelProto, settings: ExportSettings, weights: Mapping[str, tuple[int, bool]]) -> ModelProto:
    """Store these weights (as `weights_of` gives them) as integers: weight [int8 or int4] -> Cast -> Mul(scale) ->
    Conv [float32]; those that the settings leave in float stay as they are.

    ONNX Runtime computes Cast and Mul once, while loading, so that the file is as fast as the float32 one. It would
    keep a DequantizeLinear in their place, as half of a QDQ pair, and run it every time (docs/results/notes.md,
    "Kernels").
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    grid = settings.grid
    assert grid is not None
    if settings.weights == "int4" and settings.precision == "weight-only":
        model = onnx.version_converter.convert_version(model, INT4_OPSET)
    graph, new = model.graph, []
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for weight, (axis, depthwise) in weights.items():
        bits = grid.bits(layer_of(weight), depthwise=depthwise)
        if bits is None:
            continue
        values = numpy_helper.to_array(constants[weight])
        scales = channel_scales(values, axis, bits)
        integers = quantize(values, scales, axis=axis)
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        stored, whole, scale = f"{weight}_quantized", f"{weight}_float32", f"{weight}_scale"
        graph.initializer.remove(constants[weight])
        graph.initializer.append(_int4(integers, stored) if bits == 4 else numpy_helper.from_array(integers, stored))
        graph.initializer.append(numpy_helper.from_array(scales.reshape(shape), scale))
        new.append(helper.make_node("Cast", [stored], [whole], f"{weight}/Cast", to=TensorProto.FLOAT))
        new.append(helper.make_node("Mul", [whole, scale], [weight], f"{weight}/Mul"))
    _put_in_front(model, new)
    return model


def _int4(integers: NDArray[np.generic], name: str) -> TensorProto:
    from onnx import TensorProto

    packed = pack_int4(integers).tobytes()
    return TensorProto(name=name, data_type=TensorProto.INT4, dims=integers.shape, raw_data=packed)


def weights_of(model: ModelProto) -> dict[str, tuple[int, bool]]:
    """The stored float32 weights of layers -> (axis of the output channels, whether the convolution is depthwise)."""
    from onnx import TensorProto

    stored = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT and len(t.dims) > 1}
    found = {}
    for node in model.graph.node:
        if len(node.input) < 2 or node.input[1] not in stored:
            continue
        weight, numbers = stored[node.input[1]], {a.name: a.i for a in node.attribute}
        if node.op_type == "Conv":
            found[weight.name] = 0, numbers.get("group", 1) > 1 and weight.dims[1] == 1
        elif node.op_type == "ConvTranspose":
            found[weight.name] = 1, numbers.get("group", 1) > 1 and weight.dims[1] == 1
        elif node.op_type in ("Gemm", "MatMul"):
            found[weight.name] = 0 if numbers.get("transB") else len(weight.dims) - 1, False
    return found | onnxruntime_recurrent.weights_of(model)


def channel_scales(values: NDArray[np.float32], axis: int, bits: int) -> NDArray[np.float32]:
    """[channels] symmetric scales of a weight along `axis`: the largest magnitude / (2^(bits - 1) - 1)."""
    return symmetric_scale(np.abs(values).max(axis=tuple(i for i in range(values.ndim) if i != axis)), bits)


def _dynamic(model: ModelProto, path: str, float_nodes: Sequence[str]) -> ModelProto:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    turn_shared_weights(model)
    # ONNX Runtime's CPU kernel of ConvInteger takes uint8 weights only.
    quantize_dynamic(model, path, weight_type=QuantType.QUInt8, nodes_to_exclude=list(float_nodes))
    return onnx.load(path)


def turn_shared_weights(model: ModelProto) -> None:
    """Gemm(x, W, transB=1), twice with one W  ->  Gemm(x, transposed W), twice.

    ONNX Runtime's quantizer (1.31) makes a MatMul of each and transposes W in place, every time: the second undoes the
    first.
    """
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            if name in stored:
                users.setdefault(name, []).append(node)
    for name, nodes in users.items():
        turned = [[a for a in node.attribute if a.name == "transB" and a.i] for node in nodes]
        if len(nodes) > 1 and all(n.op_type == "Gemm" and n.input[1] == name for n in nodes) and all(turned):
            values = np.ascontiguousarray(numpy_helper.to_array(stored[name]).T)
            stored[name].CopyFrom(numpy_helper.from_array(values, name))
            for (attribute,) in turned:
                attribute.i = 0


def _static(
    model: ModelProto,
    settings: ExportSettings,
    float_nodes: Sequence[str],
    ranges: Mapping[str, tuple[float, float]],
) -> ModelProto:
    """The part of quantize_static after its calibration, with ranges of our own."""
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    biases = _without_grouped_biases(model)
    floats, products = integer_forms.in_float(model, but_outputs=settings.io != "float32")
    symmetric = {"ActivationSymmetric": settings.symmetric, "QuantizeBias": not settings.symmetric}
    ranges, scalars = (ranges, []) if settings.symmetric else integer_forms.align(model, ranges)  # moves zero points
    limits = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    quantizer = QDQQuantizer(
        model,
        per_channel=True,
        reduce_range=False,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if settings.activations == "int8" else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, limits),
        nodes_to_quantize=[],
        nodes_to_exclude=[*float_nodes, *floats],
        op_types_to_quantize=sorted({*QLinearOpsRegistry, *QDQRegistry}),
        extra_options={"TensorQuantOverrides": _narrow_weights(model, settings), **symmetric},
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    made: ModelProto = quantizer.model.model
    for node in made.graph.node:
        if node.name in biases:
            bias = biases[node.name]
            node.input.append(bias.name)
            if all(tensor.name != bias.name for tensor in made.graph.initializer):
                made.graph.initializer.append(bias)
    integer_forms.left_in_float(made, products)
    integer_forms.merge(made, scalars)
    return made


def _without_grouped_biases(model: ModelProto) -> dict[str, TensorProto]:
    """Remove the biases of grouped transposed convolutions and return them by the node's name. ONNX Runtime's quantizer
    has a scale for each of O / groups weights there, and fails on O biases. The kernel computes in float32 anyway."""
    stored, found = {tensor.name: tensor for tensor in model.graph.initializer}, {}
    for node in model.graph.node:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "ConvTranspose" and groups > 1 and len(node.input) > 2 and node.input[2] in stored:
            found[node.name] = type(stored[node.input[2]])()
            found[node.name].CopyFrom(stored[node.input[2]])
            del node.input[2:]
    return found


def _narrow_weights(model: ModelProto, settings: ExportSettings) -> dict[str, list[dict[str, Any]]]:
    """Scales of the weights that get fewer than 8 bits, as ONNX Runtime takes them; with 8 bits its own are the same.

    Its option reduce_range divides by 64, which is a grid of 129 points; ours is that of 7 bits, by 63.
    """
    from onnx import numpy_helper
    from onnxruntime.quantization import QuantType

    grid, overrides = settings.grid, {}
    assert grid is not None
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    recurrent = onnxruntime_recurrent.weights_of(model)
    for weight, (axis, depthwise) in weights_of(model).items():
        if weight in recurrent:  # the quantizer leaves recurrent operators alone
            continue
        bits = grid.bits(layer_of(weight), depthwise=depthwise)
        if bits is not None and bits < 8:
            scales = channel_scales(numpy_helper.to_array(constants[weight]), axis, bits)
            zero, kind = np.int8(0), QuantType.QInt8
            overrides[weight] = [{"axis": axis, "scale": s, "zero_point": zero, "quant_type": kind} for s in scales]
    return overrides


def shield(model: ModelProto, float_nodes: Sequence[str]) -> None:
    """Conv -> QuantizeLinear  becomes  Conv -> LeakyRelu(alpha=1) -> QuantizeLinear  for layers that stay in float.

    While it loads a file, ONNX Runtime (its WeightBiasQuantization step) quantizes the float weights of any layer
    between DequantizeLinear and QuantizeLinear, per tensor. A leaky ReLU of slope 1 prevents that: it changes no value
    and is fused into the float kernel.
    """
    from onnx import helper

    graph = model.graph
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if node.name in float_nodes:
            inner, outer = f"{node.output[0]}_float", node.output[0]
            node.output[0] = inner
            nodes.append(helper.make_node("LeakyRelu", [inner], [outer], f"{node.name}/shield", alpha=1.0))
    rebuilt = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(rebuilt)
