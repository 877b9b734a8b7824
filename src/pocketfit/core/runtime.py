"""The interface of a runtime: a module of `pocketfit.runtimes` with these names is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import Artifact, Contents, OpCost, Quantization
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature

ROWS = 16  # samples that a file is scored on at once; exports are checked with so many

Arrays = Mapping[str, NDArray[np.generic]]
Given = NDArray[Any] | tuple[NDArray[Any], ...]  # of a file's one input, or of each


@dataclass(frozen=True)
class RuntimeInfo:
    """The result of `probe`. `ok` means that a tiny model was exported, loaded and run, and its outputs were right."""

    name: str
    ok: bool
    version: str
    detail: str
    delegates: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)


class Session(Protocol):
    """A loaded file; its signature has names, shapes (None: batch), dtypes and layouts.

    input_quantization, output_quantization: those of the first input and output, None where they are float.
    """

    signature: Signature
    input_quantization: Quantization | None
    output_quantization: Quantization | None

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Arrays by name -> arrays by name, as the file states them (an int8 file gives int8). Never keeps or
        changes the caller's arrays; what it returns is the caller's own."""
        ...

    def close(self) -> None: ...


class LayerOutputs(Protocol):
    """A file whose layers' outputs can be read. `layers`: layer -> name of its tensor; `run` returns these tensors by
    layer, and under "" the file's output, in integers or in float."""

    layers: Mapping[str, str]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]: ...


class Runtime(Protocol):
    """The functions that a runtime's file offers."""

    NAME: str
    EXTRA: str  # pip extra that installs it
    EXTENSION: str  # suffix of its files, with the dot
    ACCEPTS: tuple[str, ...]  # model levels that export() can start from
    HOW: str  # "measured", or "estimated" for analysis runtimes
    PACKAGES: tuple[str, ...]  # PyPI packages whose versions are recorded with its measurements
    LIBRARY: str  # the module that `load` imports; an app has loaded it before its network
    APP_PACKAGE: str  # the PyPI package that runs its files on a user's machine; "" where no bundle is made
    GATHER: (
        str  # "module:function" that sums up the tensors of its float file (runtimes/common/calibration.py); "": none
    )
    LAYER_OUTPUTS: str  # "module:function" that opens a file with its inner tensors (LayerOutputs); "": it shows none
    ARENA: str  # "module:function" that tells the bytes of memory that a file plans for its tensors; "": it plans none
    SOURCES: str  # "module:function" that makes source texts of a file for its bundle, by name; "": none
    LAYER_OUTPUTS_DIFFER: str  # how such a file runs otherwise than the one that ships, as the end of a sentence

    def probe(self) -> RuntimeInfo: ...

    def why_not(self, plan: Plan, signature: Signature) -> list[str]:
        """Why the runtime can't make this plan's file, in sentences for the user; []: it can."""
        ...

    def recipes(self) -> tuple[ExportSettings, ...]:
        """Exports without training that are worth trying, the most promising first; `why_not` may refuse some."""
        ...

    def prelude(self, model: Model) -> tuple[PassSettings, ...]:
        """The passes that a network needs before a static int8 file is made of it."""
        ...

    def tensors_behind(self, path: Path, contents: Contents) -> dict[str, str]:
        """The name of the float file's tensor behind each layer and its activation."""
        ...

    def export(self, model: Model, plan: Plan, calibration: Samples | None, path: Path, *, work: Path) -> Artifact:
        """Write the file that `plan.export` asks for (the passes have been carried out on `model`).

        `work` is a folder for reusable by-products (the float32 file of this network, by `model.key`).
        Raises ExportFailed with the log's tail. Writes `path` whole or not at all.
        """
        ...

    def inspect(self, path: Path) -> Contents: ...

    def load(self, path: Path, *, threads: int = 1) -> Session:
        """Load a file. Raises CannotRunHere with the reason."""
        ...

    def profile(self, path: Path, inputs: Arrays, *, threads: int = 1, runs: int = 30) -> list[OpCost]: ...


def quantize_input(values: NDArray[np.float32], dtype: str, scale: float, zero_point: int) -> NDArray[np.generic]:
    """Float values to the integers that a file with integer inputs takes: round half to even, saturate.

    >>> quantize_input(np.array([0.0, 1.0], np.float32), "uint8", 1 / 255, 0)
    array([  0, 255], dtype=uint8)
    """
    limits = np.iinfo(dtype)
    grid = np.rint(values / np.float32(scale)) + zero_point
    integers: NDArray[np.generic] = np.clip(grid, limits.min, limits.max).astype(dtype)
    return integers


def as_taken(session: Session, values: Given) -> dict[str, NDArray[np.generic]]:
    """The inputs by name as the file takes them: values of its one input, or one array for each, in its order; floats
    are quantized where it takes integers for them."""
    specs, given = session.signature.inputs, values if isinstance(values, tuple) else (values,)
    if len(specs) != len(given):
        raise UserError(f"This network has {len(specs)} inputs, and {len(given)} were given")
    taken: dict[str, NDArray[np.generic]] = {spec.name: array for spec, array in zip(specs, given, strict=True)}
    if (grid := session.input_quantization) is not None:
        first = specs[0]
        taken[first.name] = quantize_input(given[0], first.dtype, grid.scales[0], grid.zero_points[0])
    return taken


def answer(session: Session, values: Given) -> NDArray[np.float32]:
    """Values of the inputs (see as_taken) -> float values of the first output, [n, ...] -> [n, ...], maps with channels
    first.

    Integers that the file takes or gives are quantized and dequantized on the way, as the caller's code would.
    """
    given_back = session.signature.outputs[0]
    raw = session.run(as_taken(session, values))[given_back.name]
    if given_back.layout == "NHWC" and raw.ndim == 4:
        raw = np.ascontiguousarray(raw.transpose(0, 3, 1, 2))
    if (back := session.output_quantization) is None:
        return raw.astype(np.float32, copy=False)
    return ((raw.astype(np.float32) - back.zero_points[0]) * np.float32(back.scales[0])).astype(np.float32)
