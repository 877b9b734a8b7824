"""Settings of an export: runtime, precision, grid."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Literal, get_args

from pocketfit.core.errors import UserError
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.support.rules import Between, OneOf
from pocketfit.core.support.schema import check_rules

RuntimeName = Annotated[str, OneOf(RUNTIMES)]
Precision = Literal["float32", "float16", "dynamic-int8", "int8", "weight-only"]
Weights = Literal["int8", "int7", "int4"]
RangeMethod = Literal["min-max", "moving-average", "percentile", "mse", "kl"]  # how calibration sets a range
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
    """How many bits the weights of layers, and the activations, have in an export.

    weight_bits      bits in convolutions and linear layers; depthwise convolutions have 8 in place of 4, because nine
                     weights a channel save nothing and lose much
    activation_bits  8 or 16; None where activations stay in float
    """

    weight_bits: int
    activation_bits: int | None
    keep_float: tuple[str, ...] = ()
    keep_int8: tuple[str, ...] = ()

    @property
    def coarse(self) -> bool:
        """Whether the weights have so few bits that their noise matters beside that of 8-bit tensors."""
        return self.weight_bits < 7

    def bits(self, layer: str, *, depthwise: bool = False) -> int | None:
        """The bits of a layer's weights; None where they stay in float.

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
    """The settings of a runtime's exporter and quantizer.

    precision      "float32"; "float16" (weights); "dynamic-int8" (int8 weights, activations quantized while running);
                   "int8" (static: int8 weights per channel, calibrated activations); "weight-only" (computes in float)
    activations    static int8 only: "int8", or "uint8" (ONNX Runtime's U8S8 files), or "int16" (LiteRT's 16x8)
    keep_float     dotted names of layers that stay in float32 (static int8: "mixed")
    io             dtype of the file's inputs and outputs: "float32", "uint8", "int8"
    layout         layout of image inputs: "NHWC", "NCHW", or "" for the one that the runtime prefers
    calibration    how many samples of the calibration split set the ranges
    weights        dtype in quantized layers: "int8"; "int7" (for processors whose 8-bit products overflow); "int4",
                   where depthwise convolutions have int8
    keep_int8      dotted names of layers that have int8 weights where the others have fewer bits
    ranges         how calibration computes the range of an activation (numerics/quantization_ranges.py);
                   "batch-norm": from statistics of batch norms, without data (passes/quantize/data_free_ranges.py)
    symmetric      static int8 of ONNX Runtime only: zero points are 0 and biases stay in float, as TensorRT asks
                   (docs/accelerators.md)
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
    symmetric: bool = False

    def __post_init__(self) -> None:
        known = get_args(Precision)
        if self.precision not in known:
            raise UserError(f"Unknown precision '{self.precision}': use {', '.join(known[:-1])} or {known[-1]}")
        check_rules(self)
        if self.io != "float32" and self.precision != "int8":
            raise UserError(f"--io {self.io} needs static int8: a {self.precision} file takes float32 inputs")
        if self.symmetric and (self.precision, self.activations) != ("int8", "int8"):
            raise UserError("Symmetric quantization is for static int8 with int8 activations")
        if self.precision in ("float32", "float16") and (self.weights != "int8" or self.keep_int8):
            raise UserError(f"A {self.precision} file has no {self.weights} weights: ask for a quantized precision")

    def to_json(self) -> dict[str, Any]:
        """All settings; `symmetric` where it is set, so that the hashes of other plans are those from before it."""
        return {name: value for name, value in asdict(self).items() if name != "symmetric" or value}

    @property
    def range_method(self) -> RangeMethod:
        """The method of calibration, for ranges that do not come from training or batch norms."""
        return "min-max" if self.ranges == "batch-norm" else self.ranges

    @property
    def grid(self) -> Grid | None:
        """The grid of the file's weights and activations; None for a file in float."""
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
        if self.symmetric:
            code += "-sym"
        if self.keep_float:
            code += f"-mix{len(self.keep_float)}"
        if self.keep_int8:
            code += f"-wide{len(self.keep_int8)}"
        if self.io != "float32":
            code += f"-io{self.io[0]}8"
        return code if not self.layout else f"{code}-{self.layout.lower()}"
