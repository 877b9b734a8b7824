"""Check by reading the .tflite that it is what the plan asked for: quantizer rules that match nothing are silent."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pocketfit.core.artifact import Contents, OpInfo
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.formats import tflite_read
from pocketfit.formats.tflite_read import CASTS, WEIGHTED, TfliteFile, ints
from pocketfit.runtimes.common import mixed_ends

FLOAT = ("float32", "float16")
PADDING = ("PAD", "PADV2")
NARROW = ("CONV_2D", "FULLY_CONNECTED")  # the operators that ai-edge-quantizer gives 4-bit weights


def weight_bits(op: OpInfo, settings: ExportSettings) -> int | None:
    """How many bits the plan gives the weights of an operator; None: float.

    The operator may be of the float file or of the quantized one, where a 1x1 convolution may be a FULLY_CONNECTED.
    """
    grid = settings.grid
    return None if grid is None else grid.bits(op.layer, depthwise=op.type == "DEPTHWISE_CONV_2D")


def check_names(contents: Contents, settings: ExportSettings) -> None:
    """Raise UserError for a name in keep_float or keep_int8 that is no layer of the float file."""
    layers = {op.layer: None for op in contents.ops if op.layer}
    for setting, names in (("keep_float", settings.keep_float), ("keep_int8", settings.keep_int8)):
        if unknown := [name for name in names if name not in layers]:
            listed = ", ".join(f"'{name}'" for name in unknown)
            raise UserError(
                f"{setting} names {listed}, which no operator of the file comes from; its layers are: "
                + ", ".join(layers)
            )


def kept_operators(file: TfliteFile, settings: ExportSettings) -> list[str]:
    """Output tensors of the operators of the float file that stay in float32: the layers that keep_float names, and the
    paddings before them. If the padding were quantized, a first layer's input would be rounded to integers all the
    same."""
    graph = file.graph
    readers: dict[int, list[int]] = defaultdict(list)
    for index, op in enumerate(graph.operators):
        for tensor in ints(op.inputs):
            readers[tensor].append(index)
    kept = [i for i, op in enumerate(graph.operators) if tflite_read.layer_of(file, op) in settings.keep_float]
    for index, op in enumerate(graph.operators):
        if (
            file.op_type(op) in PADDING
            and readers[int(op.outputs[0])]
            and set(readers[int(op.outputs[0])]) <= set(kept)
        ):
            kept.append(index)
    return [file.name(int(graph.operators[index].outputs[0])) for index in sorted(kept)]


def mixed_end(file: TfliteFile, ranges: Mapping[str, Sequence[float]]) -> mixed_ends.End:
    """The operators at the end of the float file that stay in float32, by their index."""
    operators = []
    for op in file.graph.operators:
        sizes = [file.stored_bytes(file.stored[i]) // 4 for i in ints(op.inputs) if i in file.stored]
        operators.append(
            mixed_ends.Operator(
                tuple(file.name(i) for i in ints(op.inputs) if i >= 0),
                tuple(file.name(i) for i in ints(op.outputs)),
                joins=file.op_type(op) == "CONCATENATION",
                weights=max(sizes, default=0) if file.op_type(op) in tflite_read.LAYERED else 0,
            )
        )
    return mixed_ends.mixed_end(operators, {name: (low, high) for name, (low, high) in ranges.items()})


def verify(contents: Contents, settings: ExportSettings) -> list[str]:
    """Compare the file with the settings: sentences on what differs.

    Raises ExportFailed where a named layer is not in float, nothing is quantized, or inputs have another dtype.
    """
    weighted = [op for op in contents.ops if op.layer or op.type in WEIGHTED]
    kept = [op for op in weighted if op.layer in settings.keep_float]
    missing = set(settings.keep_float) - {op.layer for op in kept}
    if wrong := [op.layer for op in kept if not _is_float32(op)] + sorted(missing):
        raise ExportFailed(
            f"These layers should have stayed in float32, but the file says otherwise: {', '.join(wrong)}"
        )
    if wrong := [op.layer for op in weighted if op.layer in settings.keep_int8 and op.weight_dtype != "int8"]:
        raise ExportFailed(f"These layers should have int8 weights, but the file says otherwise: {', '.join(wrong)}")
    others = [op for op in weighted if op.layer not in settings.keep_float]
    done = [op for op in others if _is_as_asked(op, settings)]
    if not done:
        raise ExportFailed(f"Nothing in the file is {_asked(settings)}: the quantizer took no operator")
    for tensor in (*contents.inputs, *contents.outputs):
        whole = tensor.dtype in ("int32", "int64", "bool")  # token ids and masks, which have no grid
        if settings.precision == "int8" and tensor.dtype != settings.io and not whole:
            raise ExportFailed(f"'{tensor.name}' of the file is {tensor.dtype}, where the plan asks for {settings.io}")
    notes = []
    left = [op for op in others if op not in done]
    wider = [
        op for op in left if weight_bits(op, settings) == 4 and op.type not in NARROW and op.weight_dtype == "int8"
    ]
    if wider:
        notes.append(
            f"ai-edge-quantizer has 4-bit weights for convolutions and fully connected layers only: {_named(wider)} "
            f"{'has' if len(wider) == 1 else 'have'} int8 weights"
        )
    if left := [op for op in left if op not in wider]:
        notes.append(f"The quantizer left {len(left)} layers as they were, not {_asked(settings)}: {_named(left)}")
    if settings.precision == "int8":
        floats = [op for op in contents.ops if op not in weighted and _runs_in_float(op)]
        if settings.keep_float:
            floats = [op for op in floats if op.type not in PADDING]  # see `kept_operators`
        if floats:
            notes.append(
                f"Operators without an {settings.activations} form in ai-edge-quantizer, or at an end in float32: "
                f"{_counted(op.type for op in floats)}"
            )
    return notes


def slow_kernels(contents: Contents, settings: ExportSettings) -> list[str]:
    """Sentences on operators without an XNNPACK kernel; the list comes from profiles of ai-edge-litert 2.3.0."""
    if settings.precision == "int8" and settings.activations == "int16":
        return [
            "Not accelerated: XNNPACK has no kernels for 16-bit activations, and LiteRT's builtin ones, which run the "
            "whole network, are tens of times slower"
        ]
    notes, builtin = [], defaultdict(list)
    for op in contents.ops:
        if why := _without_kernel(op, settings):
            builtin[why].append(op)
    for why, ops in builtin.items():
        named = f": {_named(ops)}" if why.startswith("convolutions") and len(ops) <= 5 else ""
        notes.append(f"XNNPACK has no kernel for {why}: LiteRT's slower builtin ones run {len(ops)} of them{named}")
    if settings.precision == "weight-only" and settings.weights == "int8":
        notes.append(
            "The int8 weights are unpacked to float32 when the file is loaded: the file is small, and runs as fast, "
            "and in as much memory, as the float32 file"
        )
    return notes


def _without_kernel(op: OpInfo, settings: ExportSettings) -> str:
    if op.type in NARROW and op.weight_dtype == "int4":
        if settings.precision == "weight-only":
            return "4-bit weights that are unpacked to float32"
        return "convolutions with 4-bit weights and a window larger than 1x1" if op.type == "CONV_2D" else ""
    if op.type == "DEPTHWISE_CONV_2D" and settings.precision == "dynamic-int8" and op.weight_dtype == "int8":
        return "depthwise convolutions with int8 weights and float activations"
    if op.type == "HARD_SWISH" and op.compute_dtype == "int8":
        return "HARD_SWISH in int8"
    return ""


def conversions(file: TfliteFile, settings: ExportSettings) -> list[str]:
    """A sentence on how often a file with float layers converts from float to integers and back inside."""
    if settings.precision != "int8" or not (settings.keep_float or _has_float(file)):
        return []
    ends = {*ints(file.graph.inputs), *ints(file.graph.outputs)}
    inner = [
        op
        for op in file.graph.operators
        if file.op_type(op) in CASTS
        and int(op.inputs[0]) not in file.stored
        and not ends & {int(op.inputs[0]), int(op.outputs[0])}
    ]
    if not inner:
        return []
    counts = _counted(file.op_type(op) for op in inner)
    return [f"Between operators in float32 and in {settings.activations} the file converts: {counts}"]


def _has_float(file: TfliteFile) -> bool:
    return any(_runs_in_float(op) for op in tflite_read.contents(file).ops)


def _is_float32(op: OpInfo) -> bool:
    return op.weight_dtype == "float32" and op.compute_dtype == "float32"


def _is_as_asked(op: OpInfo, settings: ExportSettings) -> bool:
    if settings.precision == "float16":
        return op.weight_dtype == "float16"
    computes = settings.activations if settings.precision == "int8" else "float32"
    return op.weight_dtype == f"int{weight_bits(op, settings)}" and op.compute_dtype == computes


def _asked(settings: ExportSettings) -> str:
    """ "int8"; "dynamic-int8 with int4 weights"."""
    if settings.weights == "int8":
        return settings.precision
    return f"{settings.precision} with {settings.weights} weights"


def _runs_in_float(op: OpInfo) -> bool:
    return op.compute_dtype in FLOAT and op.type not in CASTS


def _named(ops: list[OpInfo]) -> str:
    return ", ".join(op.layer or f"operator {op.index}" for op in ops)


def _counted(names: Iterable[str]) -> str:
    """ "2 ADD, 1 MUL"."""
    return ", ".join(f"{n} {kind}" for kind, n in sorted(Counter(names).items()))
