"""A plan: the passes with their settings, then the export settings. The only thing that the search writes.

The short code of a plan reads from left to right as the work is done; parts that are absent were not done:

    prune30.200.800-r160-wi8ai8-mix3
    │              │    │      └ three named layers stay in float
    │              │    └ weights int8, activations int8 (fp32, fp16; dwi8: dynamic range; wi8au8: uint8 activations)
    │              └ input resolution 160
    └ 30 % of the channels pruned, then trained for 200 and again 800 steps
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pocketfit.core.errors import UserError

PLAN_VERSION = 1
Precision = Literal["float32", "float16", "dynamic-int8", "int8"]


@dataclass(frozen=True)
class Prune:
    """Remove a share of the channels of every coupled group.

    ratio       share of the channels of each prunable group, 0 < ratio < 1
    criterion   "l1" or "l2": norm of the weights that make a channel (Li et al. 2017, section 3.1)
    multiple    the channels that stay are rounded to the nearest multiple of this (kernels work in blocks)
    layers      (regular expression, ratio) pairs that overrule `ratio` for layers whose name matches, first wins
    """

    ratio: float
    criterion: Literal["l1", "l2"] = "l2"
    multiple: int = 8
    layers: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for ratio in (self.ratio, *(r for _, r in self.layers)):
            if not 0 <= ratio < 1:
                raise UserError(
                    f"A pruning ratio of {ratio:g} cannot be carried out: give a share from 0 up to, but not"
                    f" including, 1"
                )
        if self.multiple < 1:
            raise UserError(f"Channels cannot be kept at multiples of {self.multiple}: give a whole number from 1")

    @property
    def code(self) -> str:
        return f"prune{round(self.ratio * 100):d}"


@dataclass(frozen=True)
class Train:
    """Fine-tune for a number of steps, with the unpruned network as teacher where alpha > 0.

    loss = (1 - alpha) CE + alpha T² KL(teacher_T || student_T)   (Hinton et al. 2015, section 2)
    share: train on this share of the training split (a fixed part, drawn by `seed`).
    """

    steps: int
    batch_size: int = 64
    learning_rate: float = 0.02
    temperature: float = 4.0
    alpha: float = 0.9
    share: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1:
            raise UserError("Training needs at least one step and a batch of at least one sample")
        if not 0 < self.share <= 1 or not 0 <= self.alpha <= 1 or self.temperature <= 0:
            raise UserError("Training settings out of range: 0 < share <= 1, 0 <= alpha <= 1, temperature > 0")

    @property
    def code(self) -> str:
        return f".{self.steps}"


@dataclass(frozen=True)
class Resolution:
    """Feed the network a smaller picture: height x width in pixels."""

    height: int
    width: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise UserError(
                f"A picture of {self.height} x {self.width} pixels cannot be fed: give whole numbers from 1"
            )

    @property
    def code(self) -> str:
        return f"r{self.height}" if self.height == self.width else f"r{self.height}x{self.width}"


PassSettings = Prune | Train | Resolution
_KINDS: dict[str, type[Any]] = {"prune": Prune, "train": Train, "resolution": Resolution}


@dataclass(frozen=True)
class ExportSettings:
    """What the runtime's exporter and quantizer are told.

    precision      "float32"; "float16" (weights); "dynamic-int8" (int8 weights, activations quantized while running);
                   "int8" (static: int8 weights per channel, calibrated activations)
    activations    static int8 only: "int8" or "uint8" (ONNX Runtime's S8S8 and U8S8 variants)
    keep_float     dotted names of layers that stay in float32 (static int8: "mixed")
    io             dtype of the file's inputs and outputs: "float32", "uint8", "int8"
    layout         of picture inputs: "NHWC", "NCHW", or "" for what the runtime prefers
    calibration    how many samples of the calibration split set the ranges
    """

    runtime: str
    precision: Precision = "float32"
    activations: Literal["int8", "uint8"] = "int8"
    keep_float: tuple[str, ...] = ()
    io: Literal["float32", "uint8", "int8"] = "float32"
    layout: Literal["", "NHWC", "NCHW"] = ""
    calibration: int = 200

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "float16", "dynamic-int8", "int8"):
            raise UserError(f"Unknown precision '{self.precision}': use float32, float16, dynamic-int8 or int8")
        if self.io != "float32" and self.precision != "int8":
            raise UserError(f"--io {self.io} needs static int8: a {self.precision} file takes float32 inputs")

    @property
    def code(self) -> str:
        short = {"float32": "fp32", "float16": "fp16", "dynamic-int8": "dwi8"}.get(self.precision)
        code = short or f"wi8a{self.activations[0]}8"
        if self.keep_float:
            code += f"-mix{len(self.keep_float)}"
        if self.io != "float32":
            code += f"-io{self.io[0]}8"
        return code if not self.layout else f"{code}-{self.layout.lower()}"


@dataclass(frozen=True)
class Plan:
    """Passes in the order in which they are carried out, then the export.

    >>> plan = Plan((Prune(0.3), Train(200)), ExportSettings("litert", "int8"))
    >>> plan.code
    'prune30.200-wi8ai8'
    >>> Plan.from_json(plan.to_json()) == plan
    True
    """

    passes: tuple[PassSettings, ...]
    export: ExportSettings

    @property
    def code(self) -> str:
        code = ""
        for settings in self.passes:
            joint = "" if isinstance(settings, Train) or not code else "-"
            code += joint + (f"train{settings.code}" if isinstance(settings, Train) and not code else settings.code)
        return f"{code}-{self.export.code}" if code else self.export.code

    @property
    def hash(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def file_stem(self) -> str:
        """Name of the artifact without its extension: <code>-<8 hex of the hash>."""
        return f"{self.code}-{self.hash[:8]}"

    def to_json(self) -> dict[str, Any]:
        kinds = {cls: kind for kind, cls in _KINDS.items()}
        return {
            "plan_version": PLAN_VERSION,
            "passes": [{"pass": kinds[type(p)], **asdict(p)} for p in self.passes],
            "export": asdict(self.export),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Plan:
        """The inverse of `to_json`. Raises UserError, in a sentence, for anything that is not a plan."""
        if not isinstance(data, dict) or "export" not in data or "passes" not in data:
            raise UserError("This is not a plan: it needs the keys 'passes' and 'export'")
        if data.get("plan_version") != PLAN_VERSION:
            raise UserError(
                f"This plan has version {data.get('plan_version')!r}; this pocketfit reads version {PLAN_VERSION}"
            )
        passes = []
        if not isinstance(data["passes"], list) or not all(isinstance(item, dict) for item in data["passes"]):
            raise UserError("This is not a plan: 'passes' must be a list of objects, each with the key 'pass'")
        if not isinstance(data["export"], dict):
            raise UserError("This is not a plan: 'export' must be an object")
        for item in data["passes"]:
            kind = _KINDS.get(str(item.get("pass", "")))
            if kind is None:
                raise UserError(f"Unknown pass {item.get('pass')!r} in the plan: known are {', '.join(_KINDS)}")
            passes.append(_build(kind, {k: v for k, v in item.items() if k != "pass"}))
        return cls(tuple(passes), _build(ExportSettings, data["export"]))


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed. Tuples and lists are the same."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))


def _build(kind: type[Any], data: dict[str, Any]) -> Any:
    known = {f.name for f in fields(kind)}
    if unknown := set(data) - known:
        raise UserError(
            f"Unknown setting {sorted(unknown)[0]!r} for {kind.__name__} in the plan: known are"
            f" {', '.join(sorted(known))}"
        )
    settings, hints = {name: _tuples(value) for name, value in data.items()}, get_type_hints(kind)
    for name, value in settings.items():
        if not _fits(value, hints[name]):
            raise UserError(f"The plan's setting {name!r} for {kind.__name__} cannot be {json.dumps(value)[:80]}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise UserError(f"The plan's settings for {kind.__name__} cannot be read: {error}") from error


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value has the type that a setting is declared with; whole numbers pass as floats, True as neither."""
    kinds = get_args(hint)
    if get_origin(hint) is Literal:
        return value in kinds
    if get_origin(hint) is tuple:
        if not isinstance(value, tuple):
            return False
        if kinds[-1] is Ellipsis:
            return all(_fits(item, kinds[0]) for item in value)
        return len(value) == len(kinds) and all(_fits(item, kind) for item, kind in zip(value, kinds, strict=True))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is hint


def _tuples(value: Any) -> Any:
    return tuple(_tuples(v) for v in value) if isinstance(value, list | tuple) else value
