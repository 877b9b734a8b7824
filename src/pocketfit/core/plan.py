"""A plan: the passes with their settings, then the export settings. The only thing that the search writes.

The short code of a plan reads from left to right as the work is done; parts that are absent were not done:

    prune30.200.800-r160-eq-round-wi8ai8-mse-mix3
    │              │    │  │     │      │   └ three named layers stay in float
    │              │    │  │     │      └ ranges of the activations by least squared error (nothing: min-max)
    │              │    │  │     └ weights int8, activations int8 (fp32, fp16; dwi8: dynamic range; wo8: weights only)
    │              │    │  └ learned rounding ("bias": bias correction; "qat300": 300 steps of training on the grid)
    │              │    └ equalized
    │              └ input resolution 160
    └ 30 % of the channels pruned ("k9": nine groups to widths of their own), then trained for 200 and again 800 steps
      (with "bn": batch norms taken anew; "sparse50", "sparse2of4": single weights set to zero)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

from pocketfit.core.errors import UserError
from pocketfit.core.pass_settings import (
    KINDS,
    CorrectBias,
    Criterion,
    Equalize,
    OptimizerName,
    PassSettings,
    Piecewise,
    Prune,
    QuantTrain,
    Recalibrate,
    Resolution,
    Round,
    Sparsify,
    Train,
)
from pocketfit.core.support.rules import Between, OneOf, shown
from pocketfit.core.support.schema import Violation, at, build, check_rules, reading

__all__ = [
    "KINDS",
    "PLAN_VERSION",
    "CorrectBias",
    "Criterion",
    "Equalize",
    "ExportSettings",
    "Grid",
    "OptimizerName",
    "PassSettings",
    "Piecewise",
    "Plan",
    "Precision",
    "Prune",
    "QuantTrain",
    "RangeMethod",
    "Recalibrate",
    "Resolution",
    "Round",
    "RuntimeName",
    "Sparsify",
    "Train",
    "Weights",
    "canonical_json",
]
PLAN_VERSION = 7  # older ones knew fewer settings, and those that they lack have the meaning that they had
READABLE_VERSIONS = (1, 2, 3, 4, 5, 6, 7)
RuntimeName = Annotated[str, OneOf(("litert", "onnxruntime", "torch"))]
Precision = Literal["float32", "float16", "dynamic-int8", "int8", "weight-only"]
Weights = Literal["int8", "int7", "int4"]
RangeMethod = Literal["min-max", "moving-average", "percentile", "mse", "kl"]  # from what calibration saw
RangeSource = Literal["min-max", "moving-average", "percentile", "mse", "kl", "batch-norm"]
_WEIGHT_BITS: dict[str, int] = {"int8": 8, "int7": 7, "int4": 4}
_RANGE_CODES: dict[str, str] = {
    "moving-average": "ema",
    "percentile": "pct",
    "mse": "mse",
    "kl": "kl",
    "batch-norm": "bn",
}


@dataclass(frozen=True)
class Grid:
    """Onto how many bits an export puts the weights of a layer, and the activations.

    weight_bits      of convolutions and linear layers; depthwise convolutions have 8 in place of 4, as nine weights
                     a channel save nothing and lose much
    activation_bits  8 or 16; None where activations stay in float
    """

    weight_bits: int
    activation_bits: int | None
    keep_float: tuple[str, ...] = ()
    keep_int8: tuple[str, ...] = ()

    @property
    def coarse(self) -> bool:
        """Whether the weights' noise counts beside that of 8-bit tensors, and is above it in depthwise convolutions."""
        return self.weight_bits < 7

    def bits(self, layer: str, *, depthwise: bool = False) -> int | None:
        """Of a layer's weights; None where they stay in float.

        >>> ExportSettings("litert", "int8", weights="int4", keep_float=("stem",)).grid.bits("stem") is None
        True
        """
        if layer in self.keep_float:
            return None
        if layer in self.keep_int8 or (depthwise and self.coarse):
            return 8
        return self.weight_bits


@dataclass(frozen=True)
class ExportSettings:
    """What the runtime's exporter and quantizer are told.

    precision      "float32"; "float16" (weights); "dynamic-int8" (int8 weights, activations quantized while running);
                   "int8" (static: int8 weights per channel, calibrated activations); "weight-only" (computes in float)
    activations    static int8 only: "int8", or "uint8" (ONNX Runtime's U8S8 files), or "int16" (LiteRT's 16x8)
    keep_float     dotted names of layers that stay in float32 (static int8: "mixed")
    io             dtype of the file's inputs and outputs: "float32", "uint8", "int8"
    layout         of picture inputs: "NHWC", "NCHW", or "" for what the runtime prefers
    calibration    how many samples of the calibration split set the ranges
    weights        of quantized layers: "int8"; "int7" (for processors whose 8-bit products overflow); "int4", where
                   depthwise convolutions have int8
    keep_int8      dotted names of layers that have int8 weights where the others have fewer bits
    ranges         how the range of an activation follows from what calibration saw (numerics/quantization_ranges.py);
                   "batch-norm": from what batch norms remember, without data (passes/quantize/data_free_ranges.py)
    """

    runtime: RuntimeName
    precision: Precision = "float32"
    activations: Literal["int8", "uint8", "int16"] = "int8"
    keep_float: tuple[str, ...] = ()
    io: Literal["float32", "uint8", "int8"] = "float32"
    layout: Literal["", "NHWC", "NCHW"] = ""
    calibration: Annotated[int, Between(1, 10**7)] = 200
    weights: Weights = "int8"
    keep_int8: tuple[str, ...] = ()
    ranges: RangeSource = "min-max"

    def __post_init__(self) -> None:
        known = get_args(Precision)
        if self.precision not in known:
            raise UserError(f"Unknown precision '{self.precision}': use {', '.join(known[:-1])} or {known[-1]}")
        check_rules(self)
        if self.io != "float32" and self.precision != "int8":
            raise UserError(f"--io {self.io} needs static int8: a {self.precision} file takes float32 inputs")
        if self.precision in ("float32", "float16") and (self.weights != "int8" or self.keep_int8):
            raise UserError(f"A {self.precision} file has no {self.weights} weights: ask for a quantized precision")

    @property
    def range_method(self) -> RangeMethod:
        """By which calibration sets the ranges that nothing else is known about."""
        return "min-max" if self.ranges == "batch-norm" else self.ranges

    @property
    def grid(self) -> Grid | None:
        """Where the weights and activations of the file will lie; None for a file in float."""
        if self.precision in ("float32", "float16"):
            return None
        activation_bits = (16 if self.activations == "int16" else 8) if self.precision == "int8" else None
        return Grid(_WEIGHT_BITS[self.weights], activation_bits, self.keep_float, self.keep_int8)

    @property
    def code(self) -> str:
        bits = _WEIGHT_BITS[self.weights]
        short = {"float32": "fp32", "float16": "fp16", "dynamic-int8": f"dwi{bits}", "weight-only": f"wo{bits}"}
        code = short.get(self.precision) or f"wi{bits}a{self.activations.replace('int', 'i').replace('ui', 'u')}"
        if self.precision == "int8" and self.ranges != "min-max":
            code += f"-{_RANGE_CODES[self.ranges]}"
        if self.keep_float:
            code += f"-mix{len(self.keep_float)}"
        if self.keep_int8:
            code += f"-wide{len(self.keep_int8)}"
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

    def __post_init__(self) -> None:
        on_grid = [number for number, settings in enumerate(self.passes) if settings.FACTS.on_grid]
        if on_grid and self.export.grid is None:
            raise UserError(
                f"The pass '{self.passes[on_grid[0]].code}' works for the grid of a quantized file, and a"
                f" {self.export.precision} file has none: ask for a quantized precision, or leave the pass out"
            )
        if sum(isinstance(settings, Round) for settings in self.passes) > 1:
            raise UserError("A plan rounds its weights once: the second 'round' would find them on the grid already")
        for settings in self.passes[on_grid[0] + 1 :] if on_grid else ():
            if settings.FACTS.moves_weights:
                raise UserError(
                    f"'{settings.FACTS.kind}' behind '{self.passes[on_grid[0]].code}' would take the weights"
                    " off the grid again: put it in front"
                )

    @property
    def code(self) -> str:
        code = ""
        for settings in self.passes:
            if isinstance(settings, Train):  # ".200" behind what it trains
                code += settings.code if code else f"train{settings.code}"
            else:
                code += f"-{settings.code}" if code else settings.code
        return f"{code}-{self.export.code}" if code else self.export.code

    @property
    def called(self) -> tuple[str, ...]:
        """Names of functions of the Python environment that carrying it out calls."""
        return tuple(p.criterion for p in self.passes if isinstance(p, Prune) and p.calls_code)

    @cached_property
    def hash(self) -> str:
        """sha256 of the canonical JSON."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()

    @property
    def file_stem(self) -> str:
        """Name of the artifact without its extension: <code>-<8 hex of the hash>."""
        return f"{self.code}-{self.hash[:8]}"

    def to_json(self) -> dict[str, Any]:
        return {
            "plan_version": PLAN_VERSION,
            "passes": [{"pass": p.FACTS.kind, **asdict(p)} for p in self.passes],
            "export": asdict(self.export),
        }

    @classmethod
    def from_json(cls, data: Any, source: str = "The plan", *, allow_code: bool = False) -> Plan:
        """The inverse of `to_json`. Raises UserError, in a sentence that begins with `source`, for anything that is not
        a plan, and unless allow_code for a plan that calls a pruning criterion of the Python environment."""
        with reading(source):
            plan = cls.read(data)
        if plan.called and not allow_code:
            raise UserError(
                f"{source} calls {shown(plan.called[0])} of your Python environment: give allow_code=True to let it"
            )
        return plan

    @classmethod
    def read(cls, data: Any) -> Plan:
        """As `from_json`, where the plan is part of a larger file: raises Violation."""
        if not isinstance(data, Mapping):
            raise Violation(f"is {shown(data)}: give an object with 'passes' and 'export'")
        version = data.get("plan_version")
        if type(version) is not int or version not in READABLE_VERSIONS:
            raise Violation(f"is {shown(version)}: this pocketfit reads plans up to {PLAN_VERSION}", "plan_version")
        if not isinstance(data.get("passes"), list | tuple):
            raise Violation("is no list of objects, each with the key 'pass'", "passes")
        passes = []
        for number, item in enumerate(data["passes"]):
            with at("passes"), at(f"[{number}]"):
                passes.append(_read_pass(item, version))
        whole = {key: value for key, value in data.items() if key != "plan_version"}
        return build(cls, whole, given={"passes": tuple(passes)}, ignored=("passes",))


def _read_pass(item: Any, version: int) -> PassSettings:
    if not isinstance(item, Mapping):
        raise Violation(f"is {shown(item)}: give an object with the key 'pass'")
    name = item.get("pass")
    kind = KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise Violation(f"is {shown(name)}: known passes are {', '.join(KINDS)}", "pass")
    meant = _meant_of_old(kind, version)
    settings: PassSettings = build(kind, meant | {key: value for key, value in item.items() if key != "pass"})
    return settings


def _meant_of_old(kind: type[Any], version: int) -> dict[str, Any]:
    """Settings that plans of this version did not know, with what they meant."""
    meant: dict[str, Any] = {"optimizer": "sgd"} if kind is Train and version < 5 else {}
    return meant | ({"guarded": False} if kind in (Train, QuantTrain) and version < 7 else {})


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: the form that is hashed. Tuples and lists are the same."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"))
