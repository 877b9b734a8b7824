"""Compare a converted network with its file in ONNX Runtime, on random inputs of several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from pocketfit.core.errors import MissingPackage, UserError
from pocketfit.core.support.text import some
from pocketfit.sources.onnx.file.graph import Graph, Value
from pocketfit.sources.onnx.file.read import first_line

# Largest difference allowed, as a share of an output's largest number: both sum in different orders, which costs about
# 1e-6 a layer in float32; in 16 bits the precision of a single number is 1e-3.
TOLERANCE = 1e-3
TOLERANCE_16_BITS = 3e-2
# Sizes of (first axis, second axis, others) that dynamic axes are tried at, until two of them suit ONNX Runtime.
SIZES = ((1, 16, 64), (3, 24, 96), (2, 32, 48), (2, 32, 224), (1, 64, 320), (1, 1, 64), (3, 3, 64), (1, 576, 128))
RUNS = 2
NUDGE = 1e-5  # relative change of each input: the outputs' reaction to it is allowed as a difference on top
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
TOKENS = (256, 10, 2, 1)  # integers are drawn below these, the first that ONNX Runtime takes


@dataclass(frozen=True)
class Checked:
    """The result of a comparison; `difference`: the largest of all outputs, as a share of the output's largest number;
    None: nothing was compared."""

    difference: float | None
    tried: tuple[dict[str, list[int]], ...]
    findings: tuple[str, ...]


def check(
    path: Path, graph: Graph, network: fx.GraphModule, fixed: Mapping[str, Any], *, own_batch: int = 0
) -> Checked:
    """Compare at two sizes of the dynamic axes, or twice at the fixed ones; see which parameters get a gradient.

    own_batch  the batch that the file fixes and the graph leaves open: the file gets so many rows at a time

    Raises UserError where the outputs differ.
    """
    try:
        opened = session(path)
    except MissingPackage:
        raise
    except Exception as error:  # ONNX Runtime's own errors
        reason = f"The network could not be compared with ONNX Runtime, which can't open the file: {reason_of(error)}"
        return Checked(None, (), (reason,))
    worst = 0.0
    tried: list[dict[str, list[int]]] = []
    findings: list[str] = []
    why = ""
    for inputs in trials(graph, own_batch):
        feed = {name: tensor.numpy() for name, tensor in inputs.items()} | _fed(graph, fixed, opened)
        try:
            wanted = answers_of(opened, feed, own_batch)
        except Exception as error:  # the file does not run with these sizes or numbers
            why = reason_of(error)
            continue
        noise = noise_of(opened, feed, wanted, own_batch)
        names = [value.name for value in graph.outputs]
        worst = max(worst, differences(network, list(inputs.values()), wanted, names, noise))
        if not tried:
            findings += _without_gradient(network, list(inputs.values()))
        tried.append({name: list(tensor.shape) for name, tensor in inputs.items()})
        if len(tried) == RUNS:
            break
    if not tried:
        findings.append(
            f"The network could not be compared with ONNX Runtime, which can't run the file on random inputs ({why}): "
            "fix the sizes that it needs (sizes=...), or compare it on samples of your own (check_against_onnxruntime)."
        )
    return Checked(worst if tried else None, tuple(tried), tuple(findings))


def answers_of(opened: Any, feed: Mapping[str, NDArray[Any]], own_batch: int = 0) -> list[Any]:
    """The file's outputs for inputs that have the dtypes of its own, or become so; `own_batch` rows at a time."""
    kinds = {value.name: FLOATS.get(value.type) for value in opened.get_inputs()}
    given = {name: a.astype(kinds[name] or a.dtype) if a.dtype.kind == "f" else a for name, a in feed.items()}
    if not own_batch:
        return list(opened.run(None, given))
    count = len(next(iter(given.values())))
    parts = [
        opened.run(None, {name: array[row : row + own_batch] for name, array in given.items()})
        for row in range(0, count, own_batch)
    ]
    return [np.concatenate(pieces) if np.ndim(pieces[0]) else pieces[0] for pieces in zip(*parts, strict=True)]


def noise_of(opened: Any, feed: Mapping[str, NDArray[Any]], wanted: Sequence[Any], own_batch: int = 0) -> list[float]:
    """How far each output moves, in parts of its largest number, when all inputs are nudged."""
    rng = np.random.default_rng(0)
    nudged = {
        name: (a * (1 + NUDGE * rng.standard_normal(a.shape))).astype(a.dtype) if a.dtype.kind == "f" else a
        for name, a in feed.items()
    }
    return [
        relative(torch.as_tensor(np.asarray(moved)), torch.as_tensor(np.asarray(still)))
        for moved, still in zip(answers_of(opened, nudged, own_batch), wanted, strict=True)
    ]


def reason_of(error: BaseException) -> str:
    """ONNX Runtime's message, without the place in its code."""
    text = first_line(error) if "Status Message: " not in str(error) else str(error).partition("Status Message: ")[2]
    return text.splitlines()[0].strip()[:200]


def _fed(graph: Graph, fixed: Mapping[str, Any], opened: Any) -> dict[str, NDArray[Any]]:
    """The inputs for ONNX Runtime: its file still has the inputs that are fixed in the graph."""
    return {value.name: graph.constants[value.name].numpy() for value in opened.get_inputs() if value.name in fixed}


def trials(graph: Graph, own_batch: int = 0) -> Iterator[dict[str, Tensor]]:
    """Random inputs by name, for one size of the dynamic axes after the other; the batch is a multiple of
    `own_batch`."""
    dynamic = any(not isinstance(size, int) for value in graph.inputs for size in value.shape or ())
    whole = any(not _floating(value) for value in graph.inputs)
    for below in TOKENS if whole else TOKENS[:1]:
        for run, sizes in enumerate(SIZES if dynamic else SIZES[:RUNS]):
            generator = torch.Generator().manual_seed(run)
            at = (sizes[0] * (own_batch or 1), *sizes[1:])
            yield {v.name: random_input(v, shape_at(v, at), below, generator) for v in graph.inputs}


def shape_at(value: Value, sizes: tuple[int, int, int]) -> list[int]:
    """Dynamic axes at these sizes: the first one, the second one, others (a third and a fourth one differ)."""
    first, second, others = sizes
    by_place = (first, second, others, 2 * others)
    return [s if isinstance(s, int) else by_place[min(i, 3)] for i, s in enumerate(value.shape or ())]


def random_input(value: Value, shape: Sequence[int], below: int, generator: torch.Generator) -> Tensor:
    dtype = getattr(torch, value.dtype)
    if dtype is torch.bool:
        return torch.randint(0, 2, tuple(shape), generator=generator).bool()
    if not _floating(value):
        top = min(below, torch.iinfo(dtype).max)
        return torch.randint(0, top, tuple(shape), generator=generator).to(dtype)
    return torch.randn(tuple(shape), generator=generator).to(dtype)


def _floating(value: Value) -> bool:
    dtype = getattr(torch, value.dtype, None)
    return isinstance(dtype, torch.dtype) and (dtype.is_floating_point or dtype.is_complex)


def differences(
    network: Any, inputs: Sequence[Tensor], wanted: Sequence[Any], names: Sequence[str], noise: Sequence[float]
) -> float:
    """The largest difference of all outputs, in parts of each one's largest number.

    `noise`: what each output differs by when the inputs are nudged; it is allowed beside the tolerance.

    Raises UserError for an output of another shape, or one that is too far off.
    """
    try:
        with torch.no_grad():
            answers = network(*inputs)
    except Exception as error:  # whatever torch's operators raise
        raise UserError(f"converted to torch, it can't be run: {first_line(error)}") from error
    answers = answers if isinstance(answers, tuple | list) else (answers,)
    worst = 0.0
    for name, answer, want, own in zip(names, answers, wanted, noise, strict=True):
        if list(answer.shape) != list(np.shape(want)):
            raise UserError(
                f"converted to torch, its output '{name}' has the shape {list(answer.shape)}, in ONNX Runtime "
                f"{list(np.shape(want))}"
            )
        off = relative(answer, torch.as_tensor(np.asarray(want)))
        if not off <= own + (
            TOLERANCE_16_BITS if 2 in (answer.dtype.itemsize, np.asarray(want).itemsize) else TOLERANCE
        ):
            raise UserError(
                f"converted to torch, its output '{name}' differs from ONNX Runtime's by {off:.2g} of its range"
            )
        worst = max(worst, off)
    return worst


def relative(answer: Tensor, wanted: Tensor) -> float:
    """The largest difference in parts of the largest number; the same infinities and NaNs on both sides are equal."""
    first, second = (t.to(torch.complex128 if t.is_complex() else torch.float64) for t in (answer, wanted))
    if first.numel() == 0:
        return 0.0
    same = (first == second) | (first.isnan() & second.isnan())
    gap = torch.where(same, torch.zeros_like(first), (first - second).abs())
    scale = second.abs()[second.isfinite()].max() if bool(second.isfinite().any()) else torch.tensor(1.0)
    return float(gap.abs().max() / max(float(scale), 1e-30))


def _without_gradient(network: fx.GraphModule, inputs: Sequence[Tensor]) -> list[str]:
    """A sentence that names the parameters that no gradient reaches."""
    parameters = dict(network.named_parameters())
    if not parameters:
        return []
    try:
        answers = network(*inputs)
        answers = answers if isinstance(answers, tuple | list) else (answers,)
        loss = sum((a.float().sum() for a in answers if a.is_floating_point() and a.requires_grad), torch.zeros(()))
        found: Sequence[Tensor | None] = [None] * len(parameters)
        if loss.requires_grad:
            found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except Exception as error:  # whatever torch's operators raise
        return [f"The network can't be trained: {first_line(error)}"]
    lost = [name for name, gradient in zip(parameters, found, strict=True) if gradient is None]
    if not lost:
        return []
    return [f"No gradient reaches {some(lost)}: training leaves them as they are"]


def session(path: Path) -> Any:
    """The file in ONNX Runtime, on one thread of the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage("onnxruntime", "onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
