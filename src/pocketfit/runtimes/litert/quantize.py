"""The child processes between the float .tflite and the deployed one: sum up its tensors, quantize it.

ai-edge-quantizer gets the ranges of the activations from us. It quantizes weights per channel and symmetrically: scale
max|w| / (2^(bits - 1) - 1), zero point 0, for 8 and for 4 bits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import ExportFailed
from pocketfit.core.support.cpus import usable
from pocketfit.formats import tflite_write
from pocketfit.formats.tflite_read import TfliteFile, ints, read, text
from pocketfit.numerics import affine
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.numerics.nibbles import pack_int4
from pocketfit.runtimes.common import agreement
from pocketfit.runtimes.litert.session import LiteRTSession

Limits = dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]  # by tensor: minimum and maximum of each sample
MOVING = ("PADV2", "PAD", "TRANSPOSE", "RESHAPE", "SLICE", "STRIDED_SLICE")
# Operators with a bias: which inputs are the data and the bias; the weight is input 1.
WITH_BIAS = {"CONV_2D": (0, 2), "DEPTHWISE_CONV_2D": (0, 2), "FULLY_CONNECTED": (0, 2), "TRANSPOSE_CONV": (2, 3)}
# How large a bias may be, in steps: its channel's sum of products is added to it in 32 bits. XNNPACK's kernels for
# 4-bit weights add 16 times both.
LARGEST_BIAS = {"int8": 2**30, "int4": 2**26}
FLOAT16_SQNR_DB = 20.0  # least SQNR of a float16 file; MobileNetV2 at 64 pixels has 39 dB, a wrong file about 0


def gather(source: str, samples: str, target: str, histograms: bool) -> None:
    """Run the float file on samples and write a Summary of each computed tensor, with quantization_ranges.save.

    samples: an .npz file, by input name float32 [n, ...] in the file's layout.
    """
    file, rows = read(Path(source)), _rows(samples)
    observers = {}
    for name, (minima, maxima) in _limits(file, rows).items():
        observers[name] = numerics.Observer()
        observers[name].limit(minima, maxima)
    if histograms:
        for tensors in _tensors(file, rows):
            for name, values in tensors.items():
                if name in observers:
                    observers[name].count(values)
    found = {name: observer.summary() for name, observer in observers.items()}
    numerics.save(padded_with_infinity(file, found), Path(target))


def fingerprints(source: str, samples: str, target: str) -> None:
    """Write, as JSON by name, quantization_ranges.fingerprint of each float tensor of the float file, its inputs
    included, over a few samples (as for `gather`)."""
    file = read(Path(source))
    seen: dict[str, list[NDArray[np.float32]]] = {}
    for tensors in _tensors(file, _rows(samples)):
        for name, values in tensors.items():
            seen.setdefault(name, []).append(values)
    prints = {name: numerics.fingerprint(np.concatenate(parts)) for name, parts in seen.items()}
    Path(target).write_text(json.dumps(prints, sort_keys=True))


def _rows(samples: str) -> list[dict[str, NDArray[np.float32]]]:
    """One dictionary a sample, each array with a batch of 1."""
    with np.load(samples, allow_pickle=False) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    count = len(next(iter(columns.values())))
    return [{name: column[i : i + 1] for name, column in columns.items()} for i in range(count)]


def _limits(file: TfliteFile, rows: list[dict[str, NDArray[np.float32]]]) -> Limits:
    """Minimum and maximum of every tensor, [n] each.

    ai-edge-quantizer's profiler-based calibration reads them inside the C++ interpreter, 3 to 5 times as fast as
    keeping all tensors for Python. It would sum them up as a moving average, which cuts off rare values.
    """
    from ai_edge_quantizer import calibrator, recipe_manager

    def append(before: dict[str, Any], sample: dict[str, Any]) -> dict[str, Any]:
        return {end: np.concatenate([before[end], sample[end]]) for end in ("min", "max")}

    observer = calibrator.Calibrator(
        str(file.path),
        num_threads=usable(),
        mode=calibrator.CalibrationMode.CALIBRATION_PROFILER_BASED,
        qsv_update_func=append,
    )
    signature = text(file.model.signatureDefs[0].signatureKey)
    observer.calibrate({signature: rows}, recipe_manager.RecipeManager())
    floats = {file.name(index) for index in range(len(file.graph.tensors)) if file.dtype(index) == "float32"}
    seen = observer.get_model_qsvs()
    return {name: (found["min"], found["max"]) for name, found in seen.items() if name in floats}


def _tensors(file: TfliteFile, rows: list[dict[str, NDArray[np.float32]]]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each sample, all float tensors that the file computes, by name. A delegate would hide its own ones."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    session = Interpreter(
        model_path=str(file.path),
        num_threads=usable(),
        experimental_op_resolver_type=OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        experimental_preserve_all_tensors=True,
    )
    session.allocate_tensors()
    given = {text(item.name): int(item.tensorIndex) for item in file.model.signatureDefs[0].inputs}
    computed = [*ints(file.graph.inputs), *(i for op in file.graph.operators for i in ints(op.outputs))]
    floats = [index for index in dict.fromkeys(computed) if file.dtype(index) == "float32"]
    for row in rows:
        for name, values in row.items():
            session.set_tensor(given[name], values)
        session.invoke()
        yield {file.name(index): session.get_tensor(index) for index in floats}


def padded_with_infinity(file: TfliteFile, found: dict[str, numerics.Summary]) -> dict[str, numerics.Summary]:
    """The summaries, with a finite range for padding with minus infinity (before max pooling), whose own range has no
    scale. It gets the range of the tensor that it pads; its constant becomes the lowest integer. Operators that only
    move the padded tensor (a transpose) get the same range."""
    repaired = dict(found)
    for op in file.graph.operators:
        name, source = file.name(int(op.outputs[0])), file.name(int(op.inputs[0]))
        if file.op_type(op) in MOVING and name in repaired and not repaired[name].usable and source in repaired:
            repaired[name] = repaired[source]
    return repaired


def quantize(
    source: str,
    target: str,
    *,
    precision: str,
    activation_bits: int | None,
    kept: list[str],
    narrow: list[str],
    io: str,
    ranges: dict[str, list[float]],
) -> list[str]:
    """The float32 file -> the deployed file of another precision; -> sentences on it.

    activation_bits  8 or 16 of static quantization, None where activations stay in float
    kept             output tensors of the operators that stay in float32
    narrow           output tensors of the operators that get 4-bit weights; the others get 8
    io               "float32", "int8" or "uint8" inputs and outputs (static int8)
    ranges           [low, high] of each computed tensor (static int8; else empty)
    """
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(source)
    _set_recipe(tool, precision, activation_bits, kept, narrow)
    if precision == "int8":
        _set_ends(tool, io)
    statistics = _statistics(read(Path(source)), ranges)
    result = tool.quantize(statistics or None, enable_progress_report=False, enable_progress_bar=False)
    Path(target).write_bytes(bytes(result.quantized_model))
    before, file = read(Path(source)), read(Path(target))
    keep_biases(before, file)
    check_scales(file)
    tflite_write.pointwise_as_fully_connected(file)
    Path(target).write_bytes(tflite_write.compact(file))
    _check_runs(source, target, FLOAT16_SQNR_DB if precision == "float16" else None)
    if before.notes.get("batch") == "1" or precision not in agreement.ROW_TOLERANCE or _same_rows(target, precision):
        return []
    tflite_write.annotate(Path(target), before.notes | {"batch": "1"})
    return [agreement.ROW_BY_ROW]


def check_scales(file: TfliteFile) -> None:
    """ExportFailed, with the tensor's name, for a scale that is 0, not finite or too small to be multiplied by."""
    for index in range(len(file.graph.tensors)):
        stated = file.quantization(index)
        if stated is not None and not all(np.finfo(np.float32).tiny <= scale < np.inf for scale in stated.scales):
            raise ExportFailed(
                f"The tensor '{file.name(index)}' got a scale of {min(stated.scales):g}, which no kernel can use"
            )


def _same_rows(target: str, precision: str) -> bool:
    session = LiteRTSession(Path(target), 1)

    def run(arrays: agreement.Arrays) -> agreement.Arrays:
        found = session.run({spec.name: a for spec, a in zip(session.signature.inputs, arrays, strict=True)})
        return [found[spec.name] for spec in session.signature.outputs]

    return agreement.same_rows(run, session.signature.inputs, agreement.ROW_TOLERANCE[precision])


def _statistics(file: TfliteFile, ranges: dict[str, list[float]]) -> dict[str, dict[str, NDArray[np.float64]]]:
    """The ranges in ai-edge-quantizer's form, with as many dimensions as the tensor: it computes the scale of a
    constant in a concatenation from them."""
    ranks = {file.name(index): len(file.shape(index)) for index in range(len(file.graph.tensors))}
    return {
        name: {"min": np.full((1,) * ranks.get(name, 1), low), "max": np.full((1,) * ranks.get(name, 1), high)}
        for name, (low, high) in ranges.items()
    }


def _set_recipe(tool: Any, precision: str, activation_bits: int | None, kept: list[str], narrow: list[str]) -> None:
    """Give the tool its rules. A later rule wins where it matches and the tool supports it. An operator is matched by
    its scope: the names of its output tensors, each with a semicolon behind it."""
    from ai_edge_quantizer import algorithm_manager, qtyping

    every, algorithms = qtyping.TFLOperationName.ALL_SUPPORTED, algorithm_manager.AlgorithmName
    if precision == "float16":
        half = qtyping.TensorQuantizationConfig(
            num_bits=16,
            symmetric=True,
            granularity=qtyping.QuantGranularity.TENSORWISE,
            dtype=qtyping.TensorDataType.FLOAT,
        )
        config = qtyping.OpQuantizationConfig(
            weight_tensor_config=half, compute_precision=qtyping.ComputePrecision.FLOAT, explicit_dequantize=True
        )
        tool.update_quantization_recipe(".*", every, config, algorithms.FLOAT_CASTING)
    else:
        for regex, bits in ((".*", 8), *((_scope(name), 4) for name in narrow)):
            if precision == "dynamic-int8":
                tool.add_dynamic_config(regex, every, num_bits=bits)
            elif precision == "weight-only":
                tool.add_weight_only_config(regex, every, num_bits=bits)
            else:
                tool.add_static_config(regex, every, activation_num_bits=activation_bits, weight_num_bits=bits)
    for name in kept:
        tool.update_quantization_recipe(_scope(name), every, algorithm_key=algorithms.NO_QUANTIZE)


def _scope(name: str) -> str:
    return f"^{re.escape(name)};"


def _set_ends(tool: Any, io: str) -> None:
    """Set the dtype of the file's inputs and outputs.

    Rules with the same regular expression share a place in the order. This one must not be ".*" again: otherwise the
    rule for a kept last layer, which matches the graph's output too, would come later and decide its dtype.
    """
    from ai_edge_quantizer import algorithm_manager, qtyping

    for side in (qtyping.TFLOperationName.INPUT, qtyping.TFLOperationName.OUTPUT):
        if io == "float32":
            tool.update_quantization_recipe("", side, algorithm_key=algorithm_manager.AlgorithmName.NO_QUANTIZE)
            continue
        kind = qtyping.TensorDataType.UINT if io == "uint8" else qtyping.TensorDataType.INT
        config = qtyping.OpQuantizationConfig(
            activation_tensor_config=qtyping.TensorQuantizationConfig(
                8, False, qtyping.QuantGranularity.TENSORWISE, kind
            ),
            weight_tensor_config=qtyping.TensorQuantizationConfig(8, True, qtyping.QuantGranularity.CHANNELWISE),
            compute_precision=qtyping.ComputePrecision.INTEGER,
            explicit_dequantize=False,
        )
        tool.update_quantization_recipe("", side, config)


def keep_biases(source: TfliteFile, file: TfliteFile) -> int:
    """Make room for biases that do not fit into 32 bits; returns for how many channels that was needed.

    A bias counts in steps of (input scale x weight scale). Where a channel's weights are all but zero (a channel that
    training has switched off), ai-edge-quantizer's scale is so small that the bias saturates and is lost. The scale of
    such a channel becomes the smallest one that its bias fits into; its weights round to zero or near it.
    """
    originals = {source.name(int(op.outputs[0])): op for op in source.graph.operators}
    users: dict[int, list[tuple[Any, Any]]] = {}  # weight -> its operators, in this file and in the float file
    for op in file.graph.operators:
        third = _bias(file, op)
        if third in file.stored and file.dtype(third) in ("int32", "int64"):
            name = file.name(int(op.outputs[0]))
            if name not in originals:
                raise ExportFailed(f"'{name}' of the quantized file is not in the float file: its bias went unchecked")
            users.setdefault(int(op.inputs[1]), []).append((op, originals[name]))
    changed = 0
    for weight, pairs in users.items():
        stated = file.quantization(weight)
        if stated is None:
            raise ExportFailed(f"The integer weight of '{file.name(int(pairs[0][0].outputs[0]))}' has no scale")
        scales, largest = np.array(stated.scales, np.float32), LARGEST_BIAS[file.dtype(weight)]
        steps = [_input_scale(file, op) for op, _ in pairs]
        biases = [np.asarray(source.constant(_bias(source, original)), np.float64) for _, original in pairs]
        needed = np.max([np.abs(b) / (step * largest) for b, step in zip(biases, steps, strict=True)], axis=0)
        if not (needed > scales).any():
            continue
        changed += int((needed > scales).sum())
        wider = np.maximum(scales, needed).astype(np.float32)
        real = np.asarray(source.constant(int(pairs[0][1].inputs[1])), np.float32)
        axis = stated.axis if len(wider) > 1 else None
        integers = affine.quantize(real, wider if axis is not None else wider[0], axis=axis)
        _store(file, weight, pack_int4(integers) if file.dtype(weight) == "int4" else integers, wider)
        for (op, _), bias, step in zip(pairs, biases, steps, strict=True):
            index, each = _bias(file, op), step * wider.astype(np.float64)
            _store(file, index, np.rint(bias / each).astype(file.dtype(index)), each.astype(np.float32))
    return changed


def _bias(file: TfliteFile, op: Any) -> int:
    """The tensor that is an operator's bias, -1 without one."""
    _, place = WITH_BIAS.get(file.op_type(op), (0, len(op.inputs)))
    return int(op.inputs[place]) if place < len(op.inputs) else -1


def _input_scale(file: TfliteFile, op: Any) -> float:
    stated = file.quantization(int(op.inputs[WITH_BIAS[file.op_type(op)][0]]))
    if stated is None:
        raise ExportFailed(f"'{file.name(int(op.outputs[0]))}' has an integer bias, but its input has no scale")
    return stated.scales[0]


def _store(file: TfliteFile, index: int, integers: NDArray[np.generic], scales: NDArray[np.float32]) -> None:
    """Give a constant tensor another value, in a buffer of its own."""
    tensor, buffers = file.graph.tensors[index], file.model.buffers
    buffers.append(type(buffers[0])(data=np.frombuffer(integers.tobytes(), np.uint8)))
    tensor.buffer, tensor.quantization.scale = len(buffers) - 1, scales


def _check_runs(source: str, target: str, least_sqnr_db: float | None) -> None:
    """Run a new file once, on noise. Raises ExportFailed where its outputs are not finite, or their SQNR against the
    float file's is below `least_sqnr_db`. (Interpreter raises by itself where a file does not load.)"""
    expected, got = _on_noise(source), _on_noise(target)
    if not all(np.isfinite(values).all() for values in got):
        raise ExportFailed("The quantized file has outputs for noise that are not finite")
    for a, b in zip(expected, got, strict=True):
        if least_sqnr_db is not None and np.sum((a - b) ** 2) > np.sum(a**2) * 10 ** (-least_sqnr_db / 10):
            raise ExportFailed("The float16 file does not compute what the float32 file computes")


def _on_noise(path: str) -> list[NDArray[np.float64]]:
    from ai_edge_litert.interpreter import Interpreter

    session, noise = Interpreter(model_path=path), np.random.default_rng(0)
    session.allocate_tensors()
    for tensor in session.get_input_details():
        wide = tensor["dtype"] in (np.int32, np.int64)  # rows of a table, or what counts: 0 and 1 are always there
        values = noise.integers(0, 2, tensor["shape"]) if wide else noise.standard_normal(tensor["shape"])
        session.set_tensor(tensor["index"], values.astype(tensor["dtype"]))
    session.invoke()
    return [session.get_tensor(t["index"]).astype(np.float64) for t in session.get_output_details()]
