"""A loaded .tflite: any number of rows, and wrong inputs in a sentence."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfit.core.errors import CannotRunHere, UserError
from pocketfit.formats import tflite_read, tflite_write
from pocketfit.runtimes.litert import runtime
from tests.runtimes.litert.network import CLASSES, SAMPLES, SIZE, export


def test_batches_and_single_rows_agree() -> None:
    session = runtime.load(Path(export("int8").path))
    values = SAMPLES.inputs(slice(0, 7), layout="NHWC")
    before = values.copy()
    together = session.run({"image": values})["scores"]
    alone = np.concatenate([session.run({"image": values[i : i + 1]})["scores"] for i in range(7)])
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(values, before)
    first = session.run({"image": values})["scores"]
    session.run({"image": values[::-1].copy()})
    np.testing.assert_array_equal(first, together)  # what was returned is the caller's own


def test_a_file_with_a_fixed_batch_inside_runs_row_by_row(tmp_path: Path) -> None:
    file = tflite_read.read(Path(export().path))
    _append_fixed_reshape(file)
    path = tmp_path / "fixed.tflite"
    path.write_bytes(tflite_write.serialize(file.model))
    session = runtime.load(path)
    values = SAMPLES.inputs(slice(0, 3), layout="NHWC")
    plain = runtime.load(Path(export().path)).run({"image": values})["scores"]
    np.testing.assert_allclose(session.run({"image": values})["scores"], plain, atol=1e-6)


def _append_fixed_reshape(file: tflite_read.TfliteFile) -> None:
    """scores [1, 5] -> RESHAPE to the constant [1, 5]."""
    from ai_edge_litert import schema_py_generated as schema

    graph, model = file.graph, file.model
    model.buffers.append(schema.BufferT(data=np.frombuffer(np.array([1, CLASSES], np.int32).tobytes(), np.uint8)))
    shape = schema.TensorT(shape=[2], type=schema.TensorType.INT32, buffer=len(model.buffers) - 1, name=b"shape")
    output = schema.TensorT(shape=[1, CLASSES], type=schema.TensorType.FLOAT32, buffer=0, name=b"reshaped")
    graph.tensors += [shape, output]
    model.operatorCodes.append(
        schema.OperatorCodeT(builtinCode=schema.BuiltinOperator.RESHAPE, deprecatedBuiltinCode=22, version=1)
    )
    last = len(graph.tensors) - 1
    graph.operators.append(
        schema.OperatorT(
            opcodeIndex=len(model.operatorCodes) - 1, inputs=[int(graph.outputs[0]), last - 1], outputs=[last]
        )
    )
    graph.outputs = [last]
    model.signatureDefs[0].outputs[0].tensorIndex = last


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({}, "has an input 'image', which was not given"),
        ({"image": np.zeros((1, SIZE, SIZE, 3), np.float64)}, "is float32, not float64"),
        ({"image": np.zeros((1, 3, SIZE, SIZE), np.float32)}, r"has shape \[n, 48, 48, 3\], not \[1, 3, 48, 48\]"),
        ({"image": np.zeros((0, SIZE, SIZE, 3), np.float32)}, "at least one"),
    ],
)
def test_wrong_inputs_are_refused_in_a_sentence(inputs: dict[str, Any], sentence: str) -> None:
    session = runtime.load(Path(export().path))
    with pytest.raises(UserError, match=sentence):
        session.run(inputs)
    session.close()
    with pytest.raises(CannotRunHere, match="closed"):
        session.run({"image": np.zeros((1, SIZE, SIZE, 3), np.float32)})


def test_stdout_stays_clean() -> None:
    """stdout carries the command's JSON, and LiteRT's INFO lines do not belong on the terminal."""
    program = (
        "import sys, numpy as np; from pathlib import Path; from pocketfit.runtimes.litert.runtime import load;"
        f"load(Path(sys.argv[1])).run({{'image': np.zeros((2, {SIZE}, {SIZE}, 3), np.float32)}})"
    )
    done = subprocess.run([sys.executable, "-c", program, export().path], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "INFO" not in done.stderr
