"""A deployable file, and its contents as read back from it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from pocketfit.core.plan.export import RuntimeName
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.rules import Positive, RelativePath, Sha256
from pocketfit.core.support.schema import build


@dataclass(frozen=True)
class Quantization:
    """real = (q - zero_point) * scale; one entry, or one a channel along `axis` (-1: per tensor)."""

    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int = -1


@dataclass(frozen=True)
class FileTensor:
    """A tensor as the file states it."""

    name: str
    shape: tuple[int | None, ...]
    dtype: str
    quantization: Quantization | None = None
    layout: str = ""


@dataclass(frozen=True, kw_only=True)
class OpInfo:
    """One operator as the file states it.

    type           the format's own name, e.g. "CONV_2D", "Conv"
    weight_dtype   dtype of its largest constant as stored ("float32", "float16", "int8", "int4"), "" without one
    compute_dtype  dtype of its first non-constant input, after looking through the format's dequantize nodes:
                   an ONNX Conv between QDQ pairs is "int8" or "uint8"
    """

    index: int
    name: str
    type: str
    output_shape: tuple[int | None, ...]
    weight_dtype: str = ""
    compute_dtype: str = ""
    weight_shape: tuple[int, ...] = ()
    weight_bytes: int = 0
    macs: int = 0
    layer: str = ""  # dotted name of the torch layer that it came from, where known


@dataclass(frozen=True)
class Contents:
    """The contents of a file as `inspect` read them back."""

    format: str
    inputs: tuple[FileTensor, ...]
    outputs: tuple[FileTensor, ...]
    ops: tuple[OpInfo, ...]

    def op_counts(self) -> dict[str, int]:
        return dict(Counter(op.type for op in self.ops))

    def weight_dtypes(self) -> dict[str, int]:
        """How many bytes of weights are stored in which dtype: {"int8": 3400000, "float32": 1200}."""
        total: Counter[str] = Counter()
        for op in self.ops:
            if op.weight_dtype:
                total[op.weight_dtype] += op.weight_bytes
        return dict(total)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class OpCost:
    """What one operator cost in one profile. `ran_on`: the delegate, provider or kernel that ran it."""

    index: int
    name: str
    type: str
    time_us: float
    ran_on: str = ""


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file, its hash, its plan and what was read back from it. `download_bytes` is after deflate (level 9)."""

    path: RelativePath
    sha256: Sha256
    bytes: Positive
    download_bytes: Positive
    runtime: RuntimeName
    plan: Plan
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Without the plan, which stands beside it wherever an artifact is written."""
        return {
            "path": self.path,
            "sha256": self.sha256,
            "bytes": self.bytes,
            "download_bytes": self.download_bytes,
            "runtime": self.runtime,
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, data: Any, plan: Plan) -> Artifact:
        """The inverse of `to_json`; the path is relative to the folder of the JSON's file. Raises Violation."""
        return build(cls, data, given={"plan": plan})
