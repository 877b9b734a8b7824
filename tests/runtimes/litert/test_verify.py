"""A file that breaks the plan is not handed over; what is otherwise than asked is said."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.runtimes.litert import runtime, verify
from tests.runtimes.litert.network import LAYERS, SIZE, by_layer, export


def test_a_file_that_breaks_the_plan_is_not_handed_over() -> None:
    stated = runtime.inspect(Path(export("int8").path))
    with pytest.raises(ExportFailed, match="should have stayed in float32, but the file says otherwise: project"):
        verify.verify(stated, ExportSettings("litert", "int8", keep_float=("project",)))
    with pytest.raises(ExportFailed, match="Nothing in the file is int8"):
        verify.verify(runtime.inspect(Path(export().path)), ExportSettings("litert", "int8"))
    with pytest.raises(ExportFailed, match="is float32, where the plan asks for uint8"):
        verify.verify(stated, ExportSettings("litert", "int8", io="uint8"))
    half = replace(
        stated, ops=tuple(replace(o, compute_dtype="float32") if o.layer == "project" else o for o in stated.ops)
    )
    assert "project" in verify.verify(half, ExportSettings("litert", "int8"))[0]


def test_four_bits_where_they_were_asked_for() -> None:
    narrow = export("int8", weights="int4", keep_int8=("stem.0",))
    assert [op.weight_dtype for op in by_layer(narrow).values()] == ["int8", "int8", "int4", "int4"]
    assert [op.weight_bytes for op in by_layer(narrow).values()] == [432, 144, 128, 40]
    assert narrow.notes == ()
    stated = runtime.inspect(Path(narrow.path))
    with pytest.raises(ExportFailed, match="should have int8 weights, but the file says otherwise: project"):
        verify.verify(stated, ExportSettings("litert", "int8", weights="int4", keep_int8=("project",)))
    (note,) = verify.verify(stated, ExportSettings("litert", "int8", weights="int4"))
    assert "1 layers as they were, not int8 with int4 weights: stem.0" in note
    with pytest.raises(ExportFailed, match="Nothing in the file is dynamic-int8 with int4 weights"):
        verify.verify(stated, ExportSettings("litert", "dynamic-int8", weights="int4"))


def test_what_has_no_four_bit_form_is_said() -> None:
    stated = runtime.inspect(Path(export("int8", weights="int4").path))
    changed = tuple(
        replace(op, type="TRANSPOSE_CONV", weight_dtype="int8") if op.layer == "project" else op for op in stated.ops
    )
    (note,) = verify.verify(replace(stated, ops=changed), ExportSettings("litert", "int8", weights="int4"))
    assert note.endswith("fully connected layers only: project has int8 weights")


def test_a_layer_to_keep_that_is_not_there_is_named() -> None:
    with pytest.raises(UserError, match=r"keep_int8 names 'nose', which no operator .* stem\.0, depthwise\.0"):
        export("int8", weights="int4", keep_int8=("nose", "project"))


BUILTIN = [  # settings, the layers that XNNPACK has no kernel for, words of the note
    ({"precision": "int8", "weights": "int4"}, ["stem.0"], "a window larger than 1x1: .* 1 of them: stem.0"),
    ({"precision": "dynamic-int8"}, ["depthwise.0"], "depthwise convolutions with int8 weights and float"),
    ({"precision": "weight-only"}, [], "unpacked to float32 when the file is loaded"),
    pytest.param(
        {"precision": "weight-only", "weights": "int4"},
        ["stem.0", "project", "classifier"],
        "4-bit weights that are unpacked to float32: .* 3 of them",
        marks=pytest.mark.slow,
    ),
    ({"precision": "int8", "activations": "int16"}, LAYERS, "Not accelerated"),
]


@pytest.mark.parametrize(("settings", "layers", "words"), BUILTIN)
def test_what_is_not_accelerated_is_said_and_so_it_is(settings: dict[str, Any], layers: list[str], words: str) -> None:
    artifact = export(**settings)
    (note,) = artifact.notes
    assert re.search(words, note)
    path = Path(artifact.path)
    costs = runtime.profile(path, {"image": np.zeros((1, SIZE, SIZE, 3), np.float32)}, runs=3)
    by_index = {op.index: op.layer for op in runtime.inspect(path).ops}
    assert [by_index[c.index] for c in costs if c.ran_on == "builtin" and by_index[c.index]] == list(layers)


def test_conversions_between_float_and_integers_are_counted() -> None:
    (note,) = export("int8", keep_float=("project",)).notes
    assert note == "Between operators in float32 and in int8 the file converts: 1 DEQUANTIZE, 1 QUANTIZE"
    first = export("int8", keep_float=("stem.0",))  # with the padding before it
    assert first.notes == ("Between operators in float32 and in int8 the file converts: 1 QUANTIZE",)
    assert [op.type for op in runtime.inspect(Path(first.path)).ops][:3] == ["PAD", "CONV_2D", "QUANTIZE"]
