"""Named inputs and outputs of a network or a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pocketfit.core.support.rules import Between, Size, Text
from pocketfit.core.support.schema import build

MOST_DIMENSIONS = 8
Dimension = Annotated[int, Between(1, 10**7)]
DType = Annotated[str, Text("b?float(16|32|64)|u?int(8|16|32|64)|bool", 'the name of a dtype, such as "float32"')]
Layout = Annotated[str, Text("(NCHW|NHWC)?", '"NCHW", "NHWC" or ""')]


@dataclass(frozen=True)
class TensorSpec:
    """One named tensor. `shape` has None for the batch; `layout` is "NCHW", "NHWC" or "" (no image).

    >>> TensorSpec("image", (None, 3, 224, 224), "float32", "NCHW").with_batch(2)
    (2, 3, 224, 224)
    """

    name: Annotated[str, Text(".{1,200}", "a name")]
    shape: Annotated[tuple[Dimension | None, ...], Size(1, MOST_DIMENSIONS)]
    dtype: DType = "float32"
    layout: Layout = ""

    def with_batch(self, batch: int) -> tuple[int, ...]:
        """The shape with the batch filled in: (None, 3, 8, 8), 4 -> (4, 3, 8, 8)."""
        return tuple(batch if size is None else size for size in self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"name": self.name, "shape": list(self.shape), "dtype": self.dtype, "layout": self.layout}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> TensorSpec:
        return build(cls, data)


@dataclass(frozen=True)
class Signature:
    """The inputs and outputs of a network, in order."""

    inputs: Annotated[tuple[TensorSpec, ...], Size(1, 100)]
    outputs: Annotated[tuple[TensorSpec, ...], Size(1, 100)]

    def to_json(self) -> dict[str, Any]:
        return {"inputs": [t.to_json() for t in self.inputs], "outputs": [t.to_json() for t in self.outputs]}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Signature:
        return build(cls, data)


def ends_in_integers(signature: Signature) -> str:
    """Why a file of this network can't take and give integers on a grid, as a sentence; "" where it can."""
    if len(signature.inputs) > 1:
        return f"This network has {len(signature.inputs)} inputs: its files take float32, so ask for io float32"
    if not signature.inputs[0].dtype.startswith("float"):
        return f"This network takes {signature.inputs[0].dtype}, which has no grid: ask for io float32"
    return ""
