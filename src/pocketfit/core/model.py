"""A network with everything that is needed to feed it and to read its answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature

Level = Literal["torch", "onnx"]


@dataclass(frozen=True)
class Origin:
    """How the unpruned network is built again: the road from a name to an nn.Module.

    kind    "zoo" (`name` with `arguments`: width, classes), "factory" (`name` is "package.module:function"), or
            "object" (handed over in Python; it cannot be built again from a name)
    """

    kind: Literal["zoo", "factory", "object"]
    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "arguments": dict(self.arguments)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Origin:
        return cls(data["kind"], data["name"], data["arguments"])


@dataclass(frozen=True)
class Model:
    """A network (`torch.nn.Module` at level "torch") with its contract.

    network     in eval mode; passes never change it in place, they return a new Model
    sha256      of the weights and the structure; with the signature it decides what files are made (`key`)
    learned     what passes learned for the export, by layer name (activation ranges, bits); empty for now
    findings    sentences for the user that came up on the way here (layers that could not be pruned, …)
    """

    network: Any
    signature: Signature
    preprocess: Preprocess
    labels: tuple[str, ...]
    origin: Origin
    split_seed: int = 0
    level: Level = "torch"
    sha256: str = ""
    learned: Mapping[str, Any] = field(default_factory=dict)
    findings: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Names what is made of this network at this input size: 64 hex digits."""
        text = f"{self.sha256} {json.dumps(self.signature.to_json(), sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()
