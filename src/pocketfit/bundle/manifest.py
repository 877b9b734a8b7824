"""The types of a bundle's manifest.json. run.py, which knows nothing of pocketfit, checks its seal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict

from pocketfit.bundle.python.run import is_name
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Labels
from pocketfit.core.plan.export import RuntimeName
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Dimension, DType, Layout
from pocketfit.core.support.json_file import load
from pocketfit.core.support.rules import Between, FileName, Positive, Sha256, Size, Text, shown
from pocketfit.core.support.schema import Violation, checked, reading
from pocketfit.core.task.task_list import TaskName

Limit = Annotated[float, Between(0, 1e15)]
BoxForm = Literal["yolov8", "yolov8-rows", "yolov5", "yolox", "corners", "nms"]  # tasks/common/boxes.py
GoldenName = Annotated[str, Text(r"golden/[^/\\:\x00]+", "the name of a file in golden/")]


class File(TypedDict):
    name: FileName
    sha256: Sha256
    bytes: Positive
    download_bytes: Positive


class Runtime(TypedDict):
    name: RuntimeName
    package: str
    version: str


class Grid(TypedDict):
    """real = (q - zero_point) * scale"""

    scale: Annotated[float, Between(0, 1e15, above=True)]
    zero_point: int


class Further(TypedDict):
    """A further input of the network, in the order in which it takes them."""

    name: str
    shape: Annotated[tuple[Dimension, ...], Size(1, 8)]
    dtype: DType


class Input(TypedDict):
    kind: Literal["picture", "array", "sound"]
    name: str
    shape: Annotated[tuple[Dimension, ...], Size(1, 8)]
    dtype: DType
    layout: Layout
    quantization: Grid | None
    more: NotRequired[list[Further]]


class Output(TypedDict):
    name: str
    shape: Annotated[tuple[Dimension, ...], Size(1, 8)]
    dtype: DType
    quantization: Grid | None
    values: Literal["probabilities", "logits"]
    threshold: NotRequired[Annotated[float, Between(0, 1)]]  # of a probability, from which it is a yes
    span: NotRequired[tuple[float, float]]  # black and white of pictures


class Pair(TypedDict):
    """Names of files: the input, its tensor, the output."""

    input: GoldenName
    geometry_done: bool
    tensor: GoldenName
    output: GoldenName


class Tolerance(TypedDict):
    tensor_max: Limit
    tensor_mean: Limit
    output_same_place: Limit
    output_elsewhere: Limit
    output_unit: str


class Golden(TypedDict):
    pairs: Annotated[list[Pair], Size(1, 1000)]
    tolerance: Tolerance


class Verification(TypedDict):
    """Two pictures count as the same above this cosine: `far` of the impostor pairs were, and `tar` of the genuine."""

    asked: Limit
    threshold: Annotated[float, Between(-1, 1.001)]
    low: Annotated[float, Between(-1, 1.001)]
    high: Annotated[float, Between(-1, 1.001)]
    tar: Limit
    far: Limit
    genuine: int
    impostors: int


class Manifest(TypedDict):
    """`seal`: sha256 over everything else, from version 2 on."""

    bundle_version: Literal[1, 2]
    file: File
    runtime: Runtime
    code: str
    plan: Plan
    notes: list[str]
    input: Input
    output: Output
    preprocess: Preprocess
    task: NotRequired[TaskName]
    boxes: NotRequired[BoxForm]
    labels: Labels
    verification: NotRequired[Verification | None]
    golden: Golden
    environment: Mapping[str, str]
    measurements: Mapping[str, Measurement]
    files: Mapping[str, Sha256]
    seal: NotRequired[Sha256]


def read_manifest(path: Path) -> dict[str, Any]:
    """A bundle's manifest as it stands in the file. Raises UserError, naming the place, for anything else."""
    mend = "make the bundle again"
    data: dict[str, Any] = checked(Manifest, load(path, "manifest", mend), str(path), mend)
    with reading(str(path), mend):
        for name in data["files"]:
            if not is_name(name):
                raise Violation(f"names {shown(name)}: that is no file of its folder", "files")
        named = data.get("task", "classification") in ("classification", "text")
        if named and len(data["labels"]) not in (0, data["output"]["shape"][-1]):
            raise Violation(f"are {len(data['labels'])} for the output {data['output']['shape']}", "labels")
    return data
