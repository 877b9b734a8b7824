"""Which operator came from which layer."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.artifact import OpInfo
from pocketfit.formats import tflite_read
from pocketfit.runtimes.litert import convert, runtime
from tests.runtimes.litert.network import LAYERS, export


def test_layers_with_the_same_weights_are_told_apart_by_order() -> None:
    file = tflite_read.read(Path(export().path))
    weights = {op.layer: _stored(file, op) for op in runtime.inspect(Path(export().path)).ops if op.layer}
    of_op = {op.index: op.layer for op in runtime.inspect(Path(export().path)).ops if op.layer}
    assert convert.match_layers(file, weights, list(LAYERS)) == of_op
    project = next(index for index, layer in of_op.items() if layer == "project")
    twins = {**weights, "twin": weights["project"]}  # two layers, one operator: nobody can say which
    assert project not in convert.match_layers(file, twins, [*LAYERS, "twin"])
    scaled = {**weights, "project": weights["project"] * np.linspace(1, 3, 16, dtype=np.float32).reshape(-1, 1, 1, 1)}
    assert convert.match_layers(file, scaled, list(LAYERS))[project] == "project"
    other = {**weights, "project": -weights["project"]}
    assert project not in convert.match_layers(file, other, list(LAYERS))


def _stored(file: tflite_read.TfliteFile, op: OpInfo) -> NDArray[np.float32]:
    """A file's weight, back in torch's order."""
    weight = np.asarray(file.constant(file.weight(file.graph.operators[op.index])))
    if op.type == "FULLY_CONNECTED":
        return weight
    return weight.transpose(3, 0, 1, 2) if op.type == "DEPTHWISE_CONV_2D" else weight.transpose(0, 3, 1, 2)
