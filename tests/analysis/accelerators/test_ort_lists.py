"""The lists of the installed ONNX Runtime, against its own checker."""

from __future__ import annotations

import onnx
import pytest
from onnxruntime.tools.mobile_helpers import usability_checker
from onnxruntime.tools.onnx_model_utils import ModelProtoWithShapeInfo

from pocketfit.analysis.accelerators import ort_lists, targets
from pocketfit.analysis.accelerators.coverage import coverage
from pocketfit.core.errors import CannotRunHere
from pocketfit.formats import onnx_read
from tests.analysis.accelerators.graphs import quantized_layer

CHECKERS = {
    "nnapi": lambda model: usability_checker.check_nnapi_partitions(model, False),
    "coreml": lambda model: usability_checker.check_coreml_partitions(
        model, False, "coreml_supported_mlprogram_ops.md"
    ),
}


@pytest.mark.parametrize(("target", "taken"), [("nnapi", 4), ("coreml", 1)])
def test_operators_and_partitions_are_those_of_onnx_runtimes_checker(tmp_path, target, taken):
    path = quantized_layer(tmp_path / "net.onnx")
    ours = coverage(onnx_read.contents(path), targets.tables(target)[0])
    theirs = CHECKERS[target](ModelProtoWithShapeInfo(path).model_with_shape_info)
    assert ours.taken == theirs.num_supported_nodes == taken
    assert ours.operators == theirs.num_nodes
    assert len(ours.runs) == theirs.num_partitions == 1


def test_no_row_of_a_list_is_lost():
    for target, file in (("nnapi", "nnapi_supported_ops.md"), ("coreml", "coreml_supported_mlprogram_ops.md")):
        text = (ort_lists.Path(onnx.__file__).parents[1] / "onnxruntime" / ort_lists.FOLDER / file).read_text()
        rows = sum(line.startswith(("|ai.", "|com.")) for line in text.splitlines())
        assert len(targets.tables(target)[0].operators) == rows > 40


def test_a_package_without_the_list_is_a_sentence():
    with pytest.raises(CannotRunHere, match="ships no list of operators for 'mine'"):
        ort_lists.provider_table("mine", "Mine", "none.md", ())
