"""What a user of the quantizers themselves would write: each function runs in a child process and writes one file.

calibration: an .npy file, float32 [n, ...] as the float file takes it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def onnxruntime_static(
    source: str,
    target: str,
    calibration: str,
    *,
    best: bool = False,
    activations: str = "int8",
    reduce_range: bool = False,
) -> None:
    """`quantize_static`, as it comes: QDQ, int8 weights per tensor, int8 activations, minimum and maximum.

    best: what its documentation advises: `quant_pre_process` first, and weights per channel.
    """
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_static

    if not best:
        quantize_static(source, target, _Reader(calibration, source))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(source, prepared)
        quantize_static(
            prepared,
            target,
            _Reader(calibration, prepared),
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
        )


def onnxruntime_dynamic(source: str, target: str, *, weights: str = "") -> None:
    """`quantize_dynamic` as it comes (int8 weights), or with "uint8" weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings = {"weight_type": QuantType.QUInt8} if weights == "uint8" else {}
    quantize_dynamic(source, target, **settings)


def ai_edge_quantizer(source: str, target: str, recipe: str, calibration: str = "") -> None:
    """One of ai-edge-quantizer's own recipes, with its default calibration where the recipe needs one."""
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    tool = quantizer.Quantizer(source, getattr(recipes, recipe)())
    found = None
    if tool.need_calibration:
        signatures = Interpreter(model_path=source).get_signature_list()
        ((key, names),) = signatures.items()
        (name,) = names["inputs"]
        values = np.load(calibration, allow_pickle=False)
        found = tool.calibrate({key: [{name: values[i : i + 1]} for i in range(len(values))]})
    tool.quantize(found).export_model(target, overwrite=True)


class _Reader:
    """Calibration samples, one at a time, as `quantize_static` asks for them."""

    def __init__(self, calibration: str, model: str) -> None:
        import onnx

        name = onnx.load(model, load_external_data=False).graph.input[0].name
        values: NDArray[Any] = np.load(calibration, allow_pickle=False)
        self._rows: Iterator[dict[str, NDArray[Any]]] = ({name: values[i : i + 1]} for i in range(len(values)))

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return next(self._rows, None)
