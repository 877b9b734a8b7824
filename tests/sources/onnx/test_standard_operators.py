"""The ONNX standard's own test models, all of them: right, or refused in one sentence; no crash, no hang."""

from __future__ import annotations

from typing import Any

import pytest

from pocketfit.processes import child_process
from tests.sources.onnx.standard_cases import light_files, run, stored_files


def one_sentence(message: str) -> bool:
    return 20 < len(message) < 500 and "\n" not in message and "Traceback" not in message


@pytest.mark.parametrize(
    ("folder", "carried", "refused"),
    [("simple", 14, 9), ("pytorch-converted", 82, 0), ("pytorch-operator", 35, 0)],
)
def test_stored_models_answer_as_expected(folder: str, carried: int, refused: int) -> None:
    done = run(stored_files(folder))
    assert done["wrong"] == {}
    assert all(map(one_sentence, done["refused"].values()))
    assert (len(done["carried"]), len(done["refused"])) == (carried, refused)


@pytest.mark.slow
def test_classifiers_of_their_time() -> None:
    done = run(light_files())
    assert done["wrong"] == done["refused"] == {}
    assert len(done["carried"]) == 9


@pytest.mark.slow
def test_every_case_of_the_standard() -> None:
    done: dict[str, Any] = child_process.call(
        "tests.sources.onnx.standard_cases:node_cases", {"part": 0, "parts": 1}, timeout_s=600
    )
    assert done["wrong"] == {}
    assert [m for m in done["refused"].values() if not one_sentence(m)] == []
    assert len(done["carried"]) >= 1425, len(done["carried"])
