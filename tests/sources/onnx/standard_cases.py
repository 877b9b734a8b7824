"""The test models of the ONNX standard itself: each is carried over and gives what is expected, or is refused."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from pocketfit.core.errors import UserError
from pocketfit.sources.onnx.convert import convert
from pocketfit.sources.onnx.file.normalise import written_out
from pocketfit.sources.onnx.file.read import inlined, to_graph
from pocketfit.sources.onnx.file.specialise import with_fixed
from pocketfit.sources.onnx.tensors import DTYPES, INT4, UINT4, _from_numpy, to_torch

Case = tuple[str, onnx.ModelProto, list[tuple[Sequence[Any], Sequence[Any]]], float, float]
LONGEST_S = 60.0


def node_cases(part: int, parts: int) -> dict[str, Any]:
    """Every `parts`-th of the standard's test cases of single operators, as "carried", "refused", "wrong"."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the standard's own formulas
        cases = collect_testcases(None)[part::parts]
    return run((case.name, case.model, case.data_sets, case.rtol, case.atol) for case in cases)


def stored_files(folder: str) -> Iterator[Case]:
    """Models that are stored with inputs and outputs beside them: "simple", "pytorch-converted", ..."""
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data" / folder).glob("*/model.onnx")):
        sets = [
            (_stored(data, "input"), _stored(data, "output")) for data in sorted(path.parent.glob("test_data_set_*"))
        ]
        yield f"{folder}/{path.parent.name}", onnx.load(path), sets, 1e-3, 1e-5


def light_files() -> Iterator[Case]:
    """Classifiers of their time with constants for weights; their input is ones."""
    for path in sorted((Path(onnx.__file__).parent / "backend/test/data/light").glob("*.onnx")):
        proto = onnx.load(path)
        given = {tensor.name for tensor in proto.graph.initializer}
        shapes = [
            [size.dim_value or 1 for size in value.type.tensor_type.shape.dim]
            for value in proto.graph.input
            if value.name not in given
        ]
        wanted = onnx.TensorProto.FromString(path.with_name(f"{path.stem}_output_0.pb").read_bytes())
        inputs = [np.ones(shape, np.float32) for shape in shapes]
        yield f"light/{path.stem}", proto, [(inputs, [numpy_helper.to_array(wanted)])], 1e-3, 1e-5


def _stored(folder: Path, kind: str) -> list[Any]:
    arrays: list[Any] = []
    for i in range(len(list(folder.glob(f"{kind}_*.pb")))):
        data = (folder / f"{kind}_{i}.pb").read_bytes()
        proto = onnx.TensorProto.FromString(data)
        readable = proto.data_type != onnx.TensorProto.UNDEFINED
        arrays.append(numpy_helper.to_array(proto) if readable else [])  # a sequence
    return arrays


def run(cases: Any) -> dict[str, Any]:
    carried: list[str] = []
    refused: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, model, sets, rtol, atol in cases:
        start = time.monotonic()
        try:
            _check(model, sets, rtol, atol)
            carried.append(name)
        except UserError as error:
            refused[name] = str(error)
        except Exception as error:  # anything else is what the test looks for
            wrong[name] = f"{type(error).__name__}: {error}"[:300]
        if time.monotonic() - start > LONGEST_S:
            wrong[name] = f"took {time.monotonic() - start:.0f} s"
    return {"carried": carried, "refused": refused, "wrong": wrong}


def _check(model: onnx.ModelProto, sets: list[tuple[Sequence[Any], Sequence[Any]]], rtol: float, atol: float) -> None:
    graph = to_graph(written_out(inlined(model)), Path())
    names = [value.name for value in graph.inputs]
    try:
        network, _ = convert(graph)
    except UserError:
        # The standard's cases take axes, shapes and weights as inputs, which real files store.
        others = dict(zip(names[1:], sets[0][0][1:], strict=False)) if sets else {}
        if not others or not all(_readable(array) for array in others.values()):
            raise
        fixed = {value.name: _tensor(others[value.name]) for value in graph.inputs if value.name in others}
        graph = with_fixed(graph, fixed)
        network, _ = convert(graph)
    for inputs, outputs in sets:
        feed = dict(zip(names, inputs, strict=False))
        with torch.no_grad():
            answers = network(*(_tensor(feed[value.name]) for value in graph.inputs))
        answers = answers if isinstance(answers, tuple) else (answers,)
        for answer, wanted in zip(answers, map(_tensor, outputs), strict=False):
            loose = answer.dtype in (torch.bfloat16, torch.float16)  # one step of their grid
            torch.testing.assert_close(
                answer, wanted, rtol=max(rtol, 1e-3), atol=1e-2 if loose else max(atol, 1e-5), equal_nan=True
            )


def _readable(array: Any) -> bool:
    """Not a sequence, texts, or numbers of 4 bits."""
    if isinstance(array, onnx.TensorProto):
        return array.data_type in DTYPES and array.data_type not in (UINT4, INT4)
    return not isinstance(array, list | tuple) and hasattr(torch, np.asarray(array).dtype.name)


def _tensor(array: Any) -> torch.Tensor:
    if isinstance(array, onnx.TensorProto):
        return to_torch(array)
    array = np.asarray(array)
    return _from_numpy(array, getattr(torch, array.dtype.name))
