"""What a user of the quantizers themselves would write: each function runs in a child process and writes one file.

calibration: an .npy file, float32 [n, ...] as the float file takes it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

HISTOGRAM_STRIDE = 20  # pictures whose tensors are held at a time: a histogram calibrator holds them all otherwise


def onnxruntime_static(
    source: str,
    target: str,
    calibration: str,
    *,
    best: bool = False,
    activations: str = "int8",
    reduce_range: bool = False,
    method: str = "MinMax",
    extra: dict[str, Any] | None = None,
) -> None:
    """`quantize_static`, as it comes: QDQ, int8 weights per tensor, int8 activations, minimum and maximum.

    best    what its documentation advises: `quant_pre_process` first, and weights per channel
    method  of calibration: "MinMax", "Percentile", "Entropy" (with `best`)
    extra   its `extra_options` (with `best`)
    """
    from onnxruntime.quantization import CalibrationMethod, QuantType, quant_pre_process, quantize_static

    if not best:
        quantize_static(source, target, _Reader(calibration, source))
        return
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        prepared = str(Path(folder, "prepared.onnx"))
        quant_pre_process(source, prepared)
        reader = _Reader(calibration, prepared)
        options = dict(extra or {})
        if method != "MinMax" and len(reader) % HISTOGRAM_STRIDE == 0:
            options["CalibStridedMinMax"] = HISTOGRAM_STRIDE  # despite its name it holds for every calibrator
        quantize_static(
            prepared,
            target,
            reader,
            per_channel=True,
            reduce_range=reduce_range,
            activation_type=QuantType.QInt8 if activations == "int8" else QuantType.QUInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options=options,
        )


def onnxruntime_dynamic(source: str, target: str, *, weights: str = "") -> None:
    """`quantize_dynamic` as it comes (int8 weights), or with "uint8" weights."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    settings = {"weight_type": QuantType.QUInt8} if weights == "uint8" else {}
    quantize_dynamic(source, target, **settings)


def ai_edge_quantizer(source: str, target: str, recipe: str, calibration: str = "", *, algorithm: str = "") -> None:
    """One of ai-edge-quantizer's own recipes, with its default calibration where the recipe needs one.

    recipe     a function of its recipe module, or "static_wi4_ai8": static with int4 weights, which is none of them
    algorithm  "MSE", "OCTAV", …; "" is the recipe's own, minimum and maximum
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    key = {"algorithm_key": AlgorithmName[algorithm]} if algorithm else {}
    chosen = _static_int4(key) if recipe == "static_wi4_ai8" else getattr(recipes, recipe)(**key)
    tool = quantizer.Quantizer(source, chosen)
    found = None
    if tool.need_calibration:
        signatures = Interpreter(model_path=source).get_signature_list()
        ((key_of_signature, names),) = signatures.items()
        (name,) = names["inputs"]
        values = np.load(calibration, allow_pickle=False)
        found = tool.calibrate({key_of_signature: [{name: values[i : i + 1]} for i in range(len(values))]})
    tool.quantize(found).export_model(target, overwrite=True)


def _static_int4(key: dict[str, Any]) -> Any:
    """int4 weights in convolutions and linear layers, int8 in the rest, which has no int4 kernel."""
    from ai_edge_quantizer import qtyping, recipe_manager

    names = qtyping.TFLOperationName
    rules = recipe_manager.RecipeManager()
    for operation, bits in ((names.ALL_SUPPORTED, 8), (names.CONV_2D, 4), (names.FULLY_CONNECTED, 4)):
        rules.add_static_config(
            regex=".*", operation_name=operation, activation_num_bits=8, weight_num_bits=bits, **key
        )
    return rules.get_quantization_recipe()


class _Reader:
    """Calibration samples, one at a time, as `quantize_static` asks for them."""

    def __init__(self, calibration: str, model: str) -> None:
        import onnx

        self._name = onnx.load(model, load_external_data=False).graph.input[0].name
        self._values: NDArray[Any] = np.load(calibration, allow_pickle=False)
        self._next, self._end = 0, len(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        if self._next >= self._end:
            return None
        self._next += 1
        return {self._name: self._values[self._next - 1 : self._next]}
