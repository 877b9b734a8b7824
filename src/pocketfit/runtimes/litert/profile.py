"""Time of every operator of a .tflite, measured inside LiteRT by its own profiler.

The Python wheel has no per-operator profiler; its C library `libLiteRt.so` has one, reached here with ctypes. That
interface is no promise of LiteRT's, so the version is pinned, the size of its event structure is asserted, and the
operators must add up to the whole run. A wrong call could crash, so it happens in a child process.

The profiler names XNNPACK's own operators ("Convolution (NHWC, QC8) IGEMM"), which are not the file's nodes: a node may
be fused into its neighbour, and conversions are added. Both sequences are in execution order and are aligned by kind.
"""

from __future__ import annotations

import ctypes
import importlib.util
import statistics
from collections import defaultdict
from collections.abc import Sequence
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Contents, OpCost
from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.runtime import Arrays
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.formats import tflite_read
from pocketfit.processes import child_process

CHECKED_VERSION = "2.3.0"
EVENT_BYTES = 104
WARMUP_RUNS = 5
START_US = 20  # time of a run outside its operators
SHARE_OF_INVOKE = (0.6, 1.05)  # bounds of the operators' summed time, as shares of the whole run's
BUILTIN, DELEGATE_WHOLE, DELEGATED = 2, 4, 8  # event types: a node outside delegates, a delegate's node, an operator
CPU, WRITE, LOG_LEVEL_OPTION, LOG_ERRORS_ONLY, INT_VALUE = 1, 1, 25, 3, 2  # constants of LiteRT's C headers

# What an XNNPACK operator's name begins with -> the node types that it may have come from.
KERNELS = {
    "fully connected": ("FULLY_CONNECTED", "CONV_2D"),
    "deconvolution": ("TRANSPOSE_CONV",),
    "dwconv": ("DEPTHWISE_CONV_2D", "CONV_2D"),
    "convolution": ("CONV_2D", "DEPTHWISE_CONV_2D"),
    "constant pad": ("PAD", "PADV2"),
    "add": ("ADD",),
    "subtract": ("SUB",),
    "multiply": ("MUL",),
    "divide": ("DIV",),
    "maximum": ("MAXIMUM", "RELU"),
    "minimum": ("MINIMUM",),
    "mean": ("MEAN", "AVERAGE_POOL_2D"),
    "sum": ("SUM", "MEAN", "AVERAGE_POOL_2D"),
    "max pooling": ("MAX_POOL_2D",),
    "average pooling": ("AVERAGE_POOL_2D", "MEAN"),
    "global average pooling": ("MEAN", "AVERAGE_POOL_2D"),
    "softmax": ("SOFTMAX",),
    "transpose": ("TRANSPOSE",),
    "sigmoid": ("LOGISTIC",),
    "hardswish": ("HARD_SWISH",),
    "clamp": ("RELU", "RELU6", "RELU_N1_TO_1", "RELU_0_TO_1"),
    "tanh": ("TANH",),
    "leaky relu": ("LEAKY_RELU", "PRELU"),
    "elu": ("ELU",),
    "copy": ("RESHAPE", "SQUEEZE", "EXPAND_DIMS"),
    "concatenate": ("CONCATENATION",),
    "slice": ("SLICE", "STRIDED_SLICE", "SPLIT"),
    "split": ("SPLIT",),
    "resize bilinear": ("RESIZE_BILINEAR",),
    "batch matrix multiply": ("BATCH_MATMUL",),
    "convert": ("QUANTIZE", "DEQUANTIZE"),
}


class Event(ctypes.Structure):
    """LiteRT's ProfiledEventData."""

    _fields_ = (
        ("tag", c_char_p),
        ("type", c_int),
        ("start_us", c_uint64),
        ("elapsed_us", c_uint64),
        ("memory_before", c_size_t * 3),
        ("memory_after", c_size_t * 3),
        ("node", c_uint64),
        ("subgraph", c_uint64),
        ("source", c_int),
    )


@dataclass(frozen=True)
class Timed:
    """One event of a run: an operator's name, whether a delegate ran it, its node (or its number in the delegate)."""

    tag: str
    delegated: bool
    node: int


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of each operator over `runs` runs on the first row of `inputs`, in the order of `inspect(path)`.

    `ran_on` is "XNNPACK: <its operator>", "XNNPACK: fused" for a node that has no operator of its own (its time is in
    its neighbour's), or "builtin" for what no delegate took. The profiler costs a few percent: take shares from here,
    and latency from a session. Raises CannotRunHere where the times cannot be had or do not add up.
    """
    contents = tflite_read.inspect(path)
    if (found := version("ai-edge-litert")) != CHECKED_VERSION:
        raise CannotRunHere(
            f"Times per operator are read through LiteRT's C interface, checked with {CHECKED_VERSION} only; "
            f"ai-edge-litert {found} is installed"
        )
    if runs < 1 or threads < 1:
        raise UserError(f"A profile needs at least one run and one thread, not {runs} and {threads}")
    with temporary_folder() as folder:
        data = Path(folder, "inputs.npz")
        rows: dict[str, Any] = {str(i): _first_row(t.name, t.shape, inputs) for i, t in enumerate(contents.inputs)}
        np.savez(data, **rows)  # of Any, as numpy's stubs take an array of any name for `allow_pickle`
        measured = child_process.call(
            "pocketfit.runtimes.litert.profile:measure",
            {"path": str(path), "data": str(data), "threads": threads, "runs": runs},
        )
    return costs(contents, [Timed(*event) for event in measured["events"]], measured["times_us"])


def measure(path: str, data: str, threads: int, runs: int) -> dict[str, Any]:
    """In the child: the operators of a run and the time of each in every run, [events][runs] microseconds."""
    if ctypes.sizeof(Event) != EVENT_BYTES:
        raise CannotRunHere(f"LiteRT's profiler events have {EVENT_BYTES} bytes, here they have {ctypes.sizeof(Event)}")
    with np.load(data, allow_pickle=False) as arrays:
        inputs = [arrays[str(i)] for i in range(len(arrays.files))]
    with_times: dict[tuple[int, Timed], list[int]] = defaultdict(list)
    whole_us = []
    model = CompiledModel(path, inputs, threads)
    for run in range(WARMUP_RUNS + runs):
        events = model.run()
        if run < WARMUP_RUNS:
            continue
        whole_us.append(next(e.elapsed_us for e in events if e.tag == b"Invoke"))
        for position, e in enumerate(events):
            if e.type in (BUILTIN, DELEGATE_WHOLE, DELEGATED) and e.subgraph == 0:
                timed = Timed(e.tag.decode(errors="replace"), e.type != BUILTIN, int(e.node))
                with_times[position, timed].append(e.elapsed_us)
    steady = {key: times for key, times in sorted(with_times.items(), key=lambda i: i[0][0]) if len(times) == runs}
    total_us = statistics.median(map(sum, zip(*steady.values(), strict=True))) if steady else 0.0
    invoke_us = statistics.median(whole_us)
    cut_off_us = len(steady) + START_US  # each time is cut to whole microseconds
    if not SHARE_OF_INVOKE[0] * invoke_us - cut_off_us <= total_us <= SHARE_OF_INVOKE[1] * invoke_us + cut_off_us:
        raise CannotRunHere(f"The operators of '{path}' add up to {total_us:.0f} us of a run of {invoke_us:.0f} us")
    events_out = [(t.tag, t.delegated, t.node) for _, t in steady]
    return {"events": events_out, "times_us": list(steady.values()), "whole_us": whole_us}


def costs(contents: Contents, events: Sequence[Timed], times_us: Sequence[Sequence[float]]) -> list[OpCost]:
    """Assign each event's median time to an operator of the file; see `profile`."""
    medians = [statistics.median(times) for times in times_us]
    builtin = {e.node: i for i, e in enumerate(events) if not e.delegated}
    taken = [(op.index, op.type) for op in contents.ops if op.index not in builtin]
    delegated = [i for i, e in enumerate(events) if e.delegated]
    owner = _with_helpers(align(taken, [events[i].tag for i in delegated]), [events[i].tag for i in delegated])
    time_us: dict[int, float] = {node: medians[i] for node, i in builtin.items()}
    ran_on = dict.fromkeys(builtin, "builtin")
    for j, node in owner.items():
        i = delegated[j]
        time_us[node] = time_us.get(node, 0.0) + medians[i]
        own = contents.ops[node].type in kinds(events[i].tag)
        if own or node not in ran_on:
            ran_on[node] = f"XNNPACK: {events[i].tag.strip()}"
    weighted = [op for op in contents.ops if op.type in tflite_read.WEIGHTED and op.index not in ran_on]
    if weighted:
        raise CannotRunHere(
            f"The profiler names no operator that could be node {weighted[0].index} ({weighted[0].type}, "
            f"'{weighted[0].name}'): its times cannot be given to the nodes of this file"
        )
    return [
        OpCost(op.index, op.name, op.type, time_us.get(op.index, 0.0), ran_on.get(op.index, "XNNPACK: fused"))
        for op in contents.ops
    ]


def kinds(tag: str) -> tuple[str, ...]:
    """The node types that an XNNPACK operator may have come from, by the longest name that its tag begins with.

    >>> kinds("Convolution (NHWC, QC8) DWConv")
    ('DEPTHWISE_CONV_2D', 'CONV_2D')
    """
    lowered = tag.strip().lower()
    if "dwconv" in lowered:
        return KERNELS["dwconv"]
    names = [name for name in KERNELS if lowered.startswith(name)]
    return KERNELS[max(names, key=len)] if names else ()


def align(nodes: Sequence[tuple[int, str]], tags: Sequence[str]) -> dict[int, int]:
    """{position of a tag: node}: the longest alignment of the two sequences, both in order, kind with kind.

    >>> align([(0, "PAD"), (1, "CONV_2D")], ["Convert (NC, F32, QD8)", "Convolution (NHWC, F32) IGEMM"])
    {1: 1}
    """
    rows, columns = len(nodes), len(tags)
    fits = [[kind in kinds(tag) for tag in tags] for _, kind in nodes]
    best = [[0] * (columns + 1) for _ in range(rows + 1)]  # of nodes[i:] and tags[j:]
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            best[i][j] = max(best[i + 1][j], best[i][j + 1], best[i + 1][j + 1] + 1 if fits[i][j] else 0)
    i = j = 0
    found = {}
    while i < rows and j < columns:
        if fits[i][j] and best[i][j] == best[i + 1][j + 1] + 1:
            found[j] = nodes[i][0]
            i, j = i + 1, j + 1
        elif best[i + 1][j] >= best[i][j + 1]:
            i += 1
        else:
            j += 1
    return found


def _with_helpers(owner: dict[int, int], tags: Sequence[str]) -> dict[int, int]:
    """Assign operators without a node: to the next node if they convert its input, else to the one before."""
    complete = dict(owner)
    for j, tag in enumerate(tags):
        if j in owner:
            continue
        before = [owner[q] for q in range(j, -1, -1) if q in owner][:1]
        after = [owner[q] for q in range(j, len(tags)) if q in owner][:1]
        nearest = after + before if tag.strip().startswith("Convert") else before + after
        if nearest:
            complete[j] = nearest[0]
    return complete


def _first_row(name: str, shape: tuple[int | None, ...], inputs: Arrays) -> NDArray[np.generic]:
    if name not in inputs:
        raise UserError(f"The input '{name}' was not given to the profile")
    return np.ascontiguousarray(np.asarray(inputs[name])[: shape[0] or 1] if shape else np.asarray(inputs[name]))


class CompiledModel:
    """LiteRT's CompiledModel on the CPU with its profiler on, through libLiteRt.so. The process ends, and frees it."""

    def __init__(self, path: str, inputs: Sequence[NDArray[np.generic]], threads: int) -> None:
        package = importlib.util.find_spec("ai_edge_litert")
        folder = ((package and package.submodule_search_locations) or [""])[0]
        self._library = ctypes.CDLL(str(Path(folder, "libLiteRt.so")))
        log_level = (c_int64 * 3)(LOG_LEVEL_OPTION, INT_VALUE, LOG_ERRORS_ONLY)
        self._environment = self._new("CreateEnvironment", c_int(1), ctypes.cast(log_level, c_void_p))
        self._model = self._new("CreateModelFromFile", self._environment, path.encode())
        options = self._new("CreateOptions")
        self._call("SetOptionsHardwareAccelerators", options, c_int(CPU))
        for name, toml in (
            ("xnnpack", f'kernel_mode = "delegate"\nnum_threads = {threads}\n'),
            ("runtime_options_string", "enable_profiling = true\n"),
        ):
            self._call("AddOpaqueOptions", options, self._opaque(name, toml))
        self._compiled = self._new("CreateCompiledModel", self._environment, self._model, options)
        signature = self._new("GetModelSignature", self._model, c_size_t(0))
        self._inputs, self._outputs = self._buffers(signature, "Input"), self._buffers(signature, "Output")
        if len(inputs) != len(self._inputs):
            raise CannotRunHere(f"LiteRT sees {len(self._inputs)} inputs where the file's graph has {len(inputs)}")
        for buffer, array in zip(self._inputs, inputs, strict=True):
            self._write(buffer, array)
        self._profiler = self._new("CompiledModelGetProfiler", self._compiled)

    def run(self) -> list[Any]:
        """Run once and return the profiler's events."""
        inputs, outputs = (c_void_p * len(self._inputs))(*self._inputs), (c_void_p * len(self._outputs))(*self._outputs)
        self._call("StartProfiler", self._profiler)
        self._call(
            "RunCompiledModel",
            self._compiled,
            c_size_t(0),
            c_size_t(len(inputs)),
            inputs,
            c_size_t(len(outputs)),
            outputs,
        )
        self._call("StopProfiler", self._profiler)
        count = c_int()
        self._call("GetNumProfilerEvents", self._profiler, ctypes.byref(count))
        events = (Event * max(1, count.value))()
        self._call("GetProfilerEvents", self._profiler, count, events)
        return list(events[: count.value])

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, "LiteRt" + name)(*arguments):
            raise CannotRunHere(f"LiteRT's C interface refused LiteRt{name} with status {status}")

    def _new(self, name: str, *arguments: Any) -> c_void_p:
        handle = c_void_p()
        self._call(name, *arguments, ctypes.byref(handle))
        return handle

    def _opaque(self, name: str, toml: str) -> c_void_p:
        libc = ctypes.CDLL(None)  # LiteRT takes the text over and frees it with the function that is given
        libc.strdup.restype, libc.strdup.argtypes = c_void_p, [c_char_p]
        copied = c_void_p(libc.strdup(toml.encode()))
        return self._new("CreateOpaqueOptions", name.encode(), copied, ctypes.cast(libc.free, c_void_p))

    def _buffers(self, signature: c_void_p, side: str) -> list[c_void_p]:
        count = c_size_t()
        self._call(f"GetNumSignature{side}s", signature, ctypes.byref(count))
        buffers = []
        for index in map(c_size_t, range(count.value)):
            kind = (c_int * 64)()  # a RankedTensorType, filled by the library
            tensor = self._new(f"GetSignature{side}TensorByIndex", signature, index)
            self._call("GetRankedTensorType", tensor, ctypes.cast(kind, c_void_p))
            needs = self._new(f"GetCompiledModel{side}BufferRequirements", self._compiled, c_size_t(0), index)
            buffers.append(
                self._new(
                    "CreateManagedTensorBufferFromRequirements", self._environment, ctypes.cast(kind, c_void_p), needs
                )
            )
        return buffers

    def _write(self, buffer: c_void_p, array: NDArray[np.generic]) -> None:
        size_bytes, address = c_size_t(), c_void_p()
        self._call("GetTensorBufferSize", buffer, ctypes.byref(size_bytes))
        if array.nbytes > size_bytes.value:
            raise CannotRunHere(f"An input of {array.nbytes} bytes does not fit LiteRT's buffer of {size_bytes.value}")
        self._call("LockTensorBuffer", buffer, ctypes.byref(address), c_int(WRITE))
        ctypes.memmove(address, array.ctypes.data, array.nbytes)
        self._call("UnlockTensorBuffer", buffer)
