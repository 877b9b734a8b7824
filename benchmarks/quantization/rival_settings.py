"""Who takes part in quantization.py: every line is a tool with one of its own settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Opponent:
    """A function of rival_quantizers.py, or (NNCF) of openvino_worker.py, with its settings.

    runtime     that runs the file      source  runtime whose float32 file is quantized
    calibrated  whether it is given calibration pictures
    quick       whether it takes part where it is only to be seen that everything runs
    """

    runtime: str
    tool: str
    name: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = True
    quick: bool = False


def _onnxruntime(name: str, *, quick: bool = False, **settings: Any) -> Opponent:
    return Opponent(
        runtime="onnxruntime",
        tool="quantize_static",
        name=name,
        function="onnxruntime_static",
        settings=settings,
        quick=quick,
    )


def _ai_edge(name: str, recipe: str, algorithm: str = "", *, quick: bool = False) -> Opponent:
    settings = {"recipe": recipe} | ({"algorithm": algorithm} if algorithm else {})
    calibrated = recipe.startswith("static")
    return Opponent(
        runtime="litert",
        tool="ai-edge-quantizer",
        name=name,
        function="ai_edge_quantizer",
        settings=settings,
        calibrated=calibrated,
        quick=quick,
    )


def _nncf(name: str, runtime: str = "openvino", *, quick: bool = False, **settings: Any) -> Opponent:
    return Opponent(runtime=runtime, tool="NNCF", name=name, function="quantize", settings=settings, quick=quick)


PER_CHANNEL: dict[str, Any] = {"best": True}
UINT8: dict[str, Any] = {"best": True, "activations": "uint8"}
NOISE_AT_18_DB = 10**-1.8  # of the signal

OPPONENTS = (
    _onnxruntime("static int8, defaults", quick=True),
    _onnxruntime("S8S8 per channel, min-max", **PER_CHANNEL),
    _onnxruntime("U8S8 per channel, min-max", quick=True, **UINT8),
    _onnxruntime("U8S8 per channel, moving average", **UINT8, extra={"CalibMovingAverage": True}),
    _onnxruntime("U8S8 per channel, percentile 99.999", **UINT8, method="Percentile"),
    _onnxruntime("U8S8 per channel, percentile 99.99", **UINT8, method="Percentile", extra={"CalibPercentile": 99.99}),
    _onnxruntime("U8S8 per channel, entropy", **UINT8, method="Entropy"),
    _ai_edge("static wi8 ai8", "static_wi8_ai8", quick=True),
    _ai_edge("static wi8 ai8, MSE", "static_wi8_ai8", "MSE"),
    _ai_edge("static wi8 ai8, OCTAV", "static_wi8_ai8", "OCTAV"),
    _ai_edge("static wi4 ai8", "static_wi4_ai8"),
    _ai_edge("static wi4 ai8, OCTAV", "static_wi4_ai8", "OCTAV"),
    _ai_edge("weight-only wi4", "weight_only_wi4_afp32"),
    _ai_edge("weight-only wi4, OCTAV", "weight_only_wi4_afp32", "OCTAV"),
    _nncf("PTQ performance", quick=True),
    _nncf("PTQ mixed", preset="mixed"),
    _nncf("PTQ performance, full bias correction", fast_bias_correction=False),
    _nncf("PTQ mixed, full bias correction", preset="mixed", fast_bias_correction=False),
    _nncf("accuracy control, agreement within 1 point", control="agreement", max_drop=0.01),
    _nncf("accuracy control, noise at 18 dB", preset="mixed", control="noise", max_drop=NOISE_AT_18_DB),
    _nncf("ONNX PTQ performance", "onnxruntime"),
    _nncf("ONNX PTQ mixed", "onnxruntime", preset="mixed"),
)
