"""A network with everything that is needed to feed it and to read its outputs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pocketfit.core.learned import Learned
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature
from pocketfit.core.support.rules import Seed, Sha256, Size, Text
from pocketfit.core.support.schema import build
from pocketfit.core.task.task_list import TaskKey

Level = Literal["torch", "onnx"]
Label = Annotated[str, Text(".{1,1000}", "a name")]
Labels = Annotated[tuple[Label, ...], Size(0, 10**6, unique=True)]


@dataclass(frozen=True)
class Origin:
    """How the unpruned network is built again, from a name to an nn.Module.

    kind    "zoo" (`name` with `arguments`: width, classes), "factory" (`name` is "package.module:function"), "onnx"
            (`name` is that of the file; `arguments` say how it was read: the sizes of axes that it leaves open, as
            "input:dimension", and how its batch became dynamic, "free"), or "object" (handed over in Python; it cannot
            be built again from a name)
    sha256  of the .onnx file that the model folder keeps; "" for other kinds
    """

    kind: Literal["zoo", "factory", "onnx", "object"]
    name: Annotated[str, Text(".{1,500}", "a name")]
    arguments: Mapping[str, int | float] = field(default_factory=dict)
    sha256: Annotated[str, Text("([0-9a-f]{64})?", "64 hexadecimal digits")] = ""

    def to_json(self) -> dict[str, Any]:
        told = {"kind": self.kind, "name": self.name, "arguments": dict(self.arguments)}
        return told | ({"sha256": self.sha256} if self.sha256 else {})

    @classmethod
    def from_json(cls, data: Any) -> Origin:
        """The inverse of `to_json`. Raises Violation."""
        return build(cls, data)


@dataclass(frozen=True, kw_only=True)
class ModelFile:
    """The content of a model folder's model.json, beside the weights."""

    format_version: Literal[1]
    origin: Origin
    signature: Signature
    preprocess: Preprocess
    labels: Labels
    split_seed: Seed
    sha256: Sha256
    weights_sha256: Sha256
    learned: Learned
    findings: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Model:
    """A network (`torch.nn.Module` at level "torch") with its contract.

    network     in eval mode; passes never change it in place, they return a new Model
    sha256      hash of the weights and the structure; with the signature it identifies the files made of it (`key`)
    task        what its outputs mean, a name of core.task.task_list.py
    learned     results of passes for the export
    findings    sentences for the user about the passes so far (layers that could not be pruned, …)
    file        the .onnx file that `origin` names, for its model folder; b"" for other origins
    """

    network: Any
    signature: Signature
    preprocess: Preprocess
    labels: tuple[str, ...]
    origin: Origin
    split_seed: int = 0
    level: Level = "torch"
    sha256: str = ""
    task: TaskKey = "classification"
    learned: Learned = field(default_factory=Learned)
    findings: tuple[str, ...] = ()
    file: bytes = field(default=b"", repr=False)

    @property
    def key(self) -> str:
        """64 hex digits that identify this network at this input size; files made of it are named so."""
        text = f"{self.sha256} {json.dumps(self.signature.to_json(), sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()
