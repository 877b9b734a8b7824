"""Eager PyTorch as a runtime: quick, float32 only, for analysis. Its figures are estimates.

Its file is torch.export's .pt2. Reading one runs parts of it as code, so files are refused that hold anything which
torch.export would unpickle or evaluate beyond plain arithmetic on sizes.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import statistics
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Artifact, Contents, FileTensor, OpCost, OpInfo
from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.runtime import Arrays, RuntimeInfo
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.json_file import parse
from pocketfit.core.support.loading import require
from pocketfit.core.support.schema import checked
from pocketfit.runtimes.common.output_file import artifact_of
from pocketfit.runtimes.common.probe import probe_by_export
from pocketfit.runtimes.common.session_inputs import check_inputs
from pocketfit.runtimes.common.traced_network import SIGNATURE, notes_of, traced

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram

NAME = "torch"
EXTRA = ""
EXTENSION = ".pt2"
ACCEPTS = ("torch",)
HOW = "estimated"
PACKAGES = ("torch",)
LIBRARY = "torch"
APP_PACKAGE = GATHER = LAYER_OUTPUTS = LAYER_OUTPUTS_DIFFER = ""
ARENA = SOURCES = ""

MAX_BYTES = 4 * 2**30
# torch.export evaluates expressions and guards over sizes with Python: only these words may stand in them.
_WORDS = re.compile(r"[A-Za-z_]\w*")
_KNOWN_WORDS = {
    *("Symbol", "Integer", "positive", "integer", "nonnegative", "evaluate", "True", "False", "int_oo"),
    *("Add", "Mul", "Pow", "Max", "Min", "Mod", "PythonMod", "FloorDiv", "CeilDiv", "Eq", "Ne", "Le", "Lt", "Ge", "Gt"),
    *("L", "args", "kwargs", "size", "stride", "storage_offset", "and", "or", "not"),
}
_SIZE_NAME = re.compile(r"[suz]\d+")


def probe() -> RuntimeInfo:
    """Trace, load and run a tiny network."""
    return probe_by_export(NAME, lambda: str(require("torch", EXTRA).__version__))


def why_not(plan: Plan, signature: Signature) -> list[str]:
    """Reasons against a plan: this runtime takes float32 in the network's own layout only."""
    settings, reasons = plan.export, []
    if settings.runtime != NAME:
        reasons.append(f"This plan is for the runtime '{settings.runtime}', not for torch")
    if settings.precision != "float32":
        reasons.append(f"The torch runtime is for analysis and runs float32 only, not {settings.precision}")
    if settings.layout == "NHWC":
        reasons.append("The torch runtime takes images as NCHW, as the network does")
    if settings.keep_float and settings.precision == "float32":
        reasons.append("A float32 file keeps every layer in float32: leave keep_float empty")
    return reasons


def recipes() -> tuple[ExportSettings, ...]:
    """The exports worth trying: float32 only."""
    return ()


def prelude(model: Model) -> tuple[PassSettings, ...]:
    """The passes before a static int8 file: none, as there is no such file."""
    return ()


def tensors_behind(path: Path, contents: Contents) -> dict[str, str]:
    """The tensors behind layers: none, as nothing is quantized here."""
    return {}


def export(model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
    """The traced network itself, copied to `path`."""
    if reasons := why_not(plan, model.signature):
        raise UserError(reasons[0])
    source = traced(model, work)
    with whole_or_not(path) as partial:
        shutil.copyfile(source, partial)
    return artifact_of(path, plan, NAME, notes_of(source))


class TorchSession:
    """A traced network in eager mode; the number of threads is set for the whole process, as torch has no other."""

    input_quantization = None
    output_quantization = None

    def __init__(self, module: Any, signature: Signature, threads: int) -> None:
        self.signature = signature
        self._module: Any = module
        self._threads = threads

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays by name -> arrays by name. Raises UserError where a name, shape or dtype does not fit."""
        import torch

        from pocketfit.passes.graph.main_answer import tensors

        if self._module is None:
            raise UserError("This session has been closed")
        check_inputs(self.signature, inputs)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.no_grad():
            results = self._module(*(torch.from_numpy(np.array(inputs[spec.name])) for spec in self.signature.inputs))
        names = [spec.name for spec in self.signature.outputs]
        return {name: value.numpy().copy() for name, value in zip(names, tensors(results), strict=True)}

    def close(self) -> None:
        self._module = None


def load(path: Path, *, threads: int = 1) -> TorchSession:
    """Load a .pt2. Raises UserError for a missing or foreign file, CannotRunHere where this torch cannot read it."""
    program, signature = _read(Path(path))
    return TorchSession(program.module(), signature, threads)


def _read(path: Path) -> tuple[ExportedProgram, Signature]:
    import torch

    _refuse_code(path)
    extra = {SIGNATURE: ""}
    try:
        with warnings.catch_warnings():
            # torch 2.13 warns of its own use of LeafSpec while it copies a program's tree
            warnings.simplefilter("ignore", FutureWarning)
            program = torch.export.load(path, extra_files=extra)
    except Exception as error:  # a damaged archive fails in as many ways as it has parts
        raise CannotRunHere(f"torch cannot read '{path}': {str(error).splitlines()[0][:300]}") from error
    if not extra[SIGNATURE]:
        raise UserError(f"'{path}' was not written by pocketfit: it lacks the names of its inputs and outputs")
    names = f"the names of inputs and outputs in '{path}'"
    signature: Signature = checked(Signature, parse(str(extra[SIGNATURE]).encode(), names), names)
    return program, signature


def _refuse_code(path: Path) -> None:
    """Raise UserError for a file that is no whole .pt2 archive, or holds pickles or expressions beyond plain sizes."""
    import torch

    if not path.is_file():
        raise UserError(f"There is no file '{path}'")
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_BYTES:
                raise UserError(f"'{path}' unpacks to more than 4 GiB")
            for entry in archive.namelist():
                parts = entry.split("/", 1)[-1]
                if parts.startswith("data/sample_inputs/") and archive.getinfo(entry).file_size:
                    torch.load(io.BytesIO(archive.read(entry)), weights_only=True)
                elif parts.endswith(".json") and parts.startswith(("data/", "models/")):
                    for key, value in _pairs(json.loads(archive.read(entry))):
                        if (key == "use_pickle" and value) or (
                            key in ("expr_str", "guards_code") and not _about_sizes(value)
                        ):
                            raise UserError(f"'{path}' holds code ({key}) that pocketfit does not run")
                elif parts.startswith(("data/constants/custom_obj", "data/constants/opaque_obj")):
                    raise UserError(f"'{path}' holds a pickled object, which pocketfit does not load")
    except UserError:
        raise
    except Exception as error:  # bad zip, bad JSON, or a pickle that is not plain tensors
        raise UserError(f"'{path}' is no .pt2 file, or a damaged one") from error


def _about_sizes(value: Any) -> bool:
    """Whether an expression speaks of sizes only.

    >>> _about_sizes("Symbol('s77', positive=True, integer=True)//2"), _about_sizes("__import__('os')")
    (True, False)
    """
    texts = value if isinstance(value, list) else [value]
    words = [word for text in texts for word in _WORDS.findall(str(text))]
    return all(word in _KNOWN_WORDS or _SIZE_NAME.fullmatch(word) for word in words)


def _pairs(data: Any) -> Iterator[tuple[str, Any]]:
    """All (key, value) of nested JSON."""
    if isinstance(data, dict):
        for key, value in data.items():
            yield key, value
            yield from _pairs(value)
    elif isinstance(data, list):
        for value in data:
            yield from _pairs(value)


def inspect(path: Path) -> Contents:
    """The traced graph: one entry an ATen operator."""
    program, signature = _read(Path(path))
    inputs = tuple(FileTensor(s.name, s.shape, s.dtype, None, s.layout) for s in signature.inputs)
    outputs = tuple(FileTensor(s.name, s.shape, s.dtype) for s in signature.outputs)
    return Contents("pt2", inputs, outputs, tuple(_op(program, i, node) for i, node in enumerate(_calls(program))))


def _calls(program: ExportedProgram) -> list[fx.Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _op(program: ExportedProgram, index: int, node: fx.Node) -> OpInfo:
    from pocketfit.passes.graph.aten import macs_of

    about = program.graph_signature
    names = {**about.inputs_to_parameters, **about.inputs_to_buffers}
    weights = [arg for arg in node.all_input_nodes if arg.name in names and arg.meta["val"].ndim > 0]
    weight = max(weights, key=lambda arg: arg.meta["val"].numel(), default=None)
    data = [arg for arg in node.all_input_nodes if arg.name not in names and "val" in arg.meta]
    value = weight.meta["val"] if weight is not None else None
    return OpInfo(
        index=index,
        name=node.name,
        type=_type(node),
        output_shape=_shape(node),
        weight_dtype="" if value is None else _dtype(value),
        compute_dtype=_dtype(data[0].meta["val"]) if data else "",
        weight_shape=() if value is None else tuple(value.shape),
        weight_bytes=0 if value is None else value.numel() * value.element_size(),
        macs=macs_of(node),
        layer=names[weight.name].rpartition(".")[0] if weight is not None else "",
    )


def _type(node: fx.Node) -> str:
    return str(node.target).removeprefix("aten.").removesuffix(".default")


def _dtype(value: Any) -> str:
    return str(getattr(value, "dtype", "")).removeprefix("torch.")


def _shape(node: fx.Node) -> tuple[int | None, ...]:
    value = node.meta.get("val")
    return tuple(size if isinstance(size, int) else None for size in getattr(value, "shape", ()))


def profile(path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]:
    """Median time of every ATen operator, run one by one by torch.fx's interpreter (estimated)."""
    import torch
    from torch import fx

    program, signature = _read(Path(path))
    flat = program.module()
    times: dict[str, list[float]] = {}

    class Timed(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            start = time.perf_counter()
            result = super().run_node(n)
            times.setdefault(n.name, []).append((time.perf_counter() - start) * 1e6)
            return result

    values = [torch.from_numpy(np.array(inputs[spec.name])) for spec in signature.inputs]
    with torch.no_grad(), _threads(threads):
        for _ in range(runs + 2):
            Timed(flat).run(*values)
    index = {node.name: i for i, node in enumerate(_calls(program))}
    costs = []
    for node in flat.graph.nodes:
        if node.op == "call_function" and node.name in index:
            median_us = statistics.median(times[node.name][2:])
            costs.append(OpCost(index[node.name], node.name, _type(node), median_us, "torch eager"))
    return costs


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
