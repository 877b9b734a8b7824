"""Named inputs and outputs of a network or a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape` has `None` where the batch stands; `layout` is "NCHW", "NHWC" or "" (no picture).

    >>> TensorSpec("image", (None, 3, 224, 224), "float32", "NCHW").with_batch(2)
    (2, 3, 224, 224)
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "float32"
    layout: str = ""

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch filled in: (None, 3, 8, 8), 4 -> (4, 3, 8, 8)."""
        return tuple(batch if size is None else size for size in self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "layout": self.layout}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return cls(data["name"], tuple(data["shape"]), data["dtype"], data["layout"])


@dataclass(frozen=True)
class Signature:
    """What a network takes and gives, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        return cls(
            tuple(TensorSpec.from_json(t) for t in data["inputs"]),
            tuple(TensorSpec.from_json(t) for t in data["outputs"]),
        )
