"""A file that breaks the plan is not handed over; what is otherwise than asked is said."""

from dataclasses import replace
from pathlib import Path

import pytest
from litert_net import export

from pocketfit.core.errors import ExportFailed
from pocketfit.core.plan import ExportSettings
from pocketfit.runtimes import litert, litert_verify


def test_a_file_that_breaks_the_plan_is_not_handed_over() -> None:
    stated = litert.inspect(Path(export("int8").path))
    with pytest.raises(ExportFailed, match="should have stayed in float32, but the file says otherwise: project"):
        litert_verify.verify(stated, ExportSettings("litert", "int8", keep_float=("project",)))
    with pytest.raises(ExportFailed, match="Nothing in the file is int8"):
        litert_verify.verify(litert.inspect(Path(export().path)), ExportSettings("litert", "int8"))
    with pytest.raises(ExportFailed, match="is float32, where the plan asks for uint8"):
        litert_verify.verify(stated, ExportSettings("litert", "int8", io="uint8"))
    half = replace(
        stated, ops=tuple(replace(o, compute_dtype="float32") if o.layer == "project" else o for o in stated.ops)
    )
    assert "project" in litert_verify.verify(half, ExportSettings("litert", "int8"))[0]
