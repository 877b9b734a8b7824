"""Files of strangers at the whole door, open_model: the test models of the ONNX standard, and damaged files. Each is a
network that torch.export follows and ONNX Runtime answers as, or one sentence."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx
import pytest
import torch

from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.runtimes import get
from pocketfit.runtimes.common.traced_network import program_of
from pocketfit.sources.models.open_model import open_model
from tests.everything import everything
from tests.sources.models.test_onnx_networks import assert_same, in_onnxruntime, in_torch, inputs
from tests.sources.onnx.mutations import mutated
from tests.sources.onnx.onnx_files import conv_net

DATA = Path(onnx.__file__).parent / "backend/test/data"
FILES = sorted(DATA.glob("**/*.onnx"))
SAMPLE = [
    path for folder in ("simple", "pytorch-converted", "pytorch-operator") for path in FILES if folder in str(path)
]
MUTATIONS = 400
# All its weights are one constant: logits of 1e10 that are equal but for their last bit, which softmax makes 0 or 1.
BY_CHANCE = {"data/light/light_squeezenet.onnx"}


def opened(path: Path) -> Model | str:
    """The Model, or the sentence that refuses it; anything else fails the test."""
    try:
        return open_model(path, input_shape=open_axes(path))
    except UserError as error:
        text = str(error)
        assert "\n" not in text and "Traceback" not in text and 20 < len(text) < 800, text
        return text


def open_axes(path: Path) -> tuple[int, ...] | None:
    """The shape of a sample, 8 for each axis that the file leaves open; None where all of them are known."""
    try:
        graph = onnx.load(path, load_external_data=False).graph
    except Exception:  # a damaged file, which open_model has to refuse
        return None
    stored = {tensor.name for tensor in graph.initializer}
    given = [value for value in graph.input if value.name not in stored]
    sizes = list(given[0].type.tensor_type.shape.dim)[1:] if len(given) == 1 else []
    if all(size.dim_value > 0 for size in sizes):
        return None
    return tuple(size.dim_value if size.dim_value > 0 else 8 for size in sizes)


def node_files(folder: Path, part: int, parts: int) -> list[Path]:
    """Every `parts`-th of the standard's test models of single operators, which its package makes on request."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the standard's own formulas
        cases = collect_testcases(None)[part::parts]
    files = [folder / "nodes" / case.name / "model.onnx" for case in cases]
    for case, path in zip(cases, files, strict=True):
        path.parent.mkdir(parents=True)
        path.write_bytes(case.model.SerializeToString())
    return files


def whole_road(path: Path, folder: Path) -> str:
    """ "carried": traced, out to ONNX Runtime and the same; or why not, as a sentence."""
    found = opened(path)
    if isinstance(found, str):
        return found
    if len(found.signature.inputs) > 1 or found.signature.inputs[0].dtype != "float32":
        return "carried"
    try:
        program = program_of(found)
    except ExportFailed as error:
        return f"torch.export: {error}"
    x = inputs(found)
    assert_same(in_torch(program.module(), x), in_torch(found.network, x), 1e-3)
    made = folder / "again.onnx"
    try:
        get("onnxruntime").export(
            found, Plan((), ExportSettings("onnxruntime", layout="NCHW")), None, made, work=folder
        )
    except ExportFailed as error:
        return f"export: {error}"
    assert_same(in_onnxruntime(made, x), in_torch(found.network, x), 1e-3)
    return "carried"


def ends(files: Sequence[Path], folder: Path) -> tuple[int, dict[str, str]]:
    told = {}
    for number, path in enumerate(files):
        (folder / str(number)).mkdir()
        told["/".join(path.parts[-3:])] = whole_road(path, folder / str(number))
    refused = {name: end for name, end in told.items() if end != "carried"}
    assert all("\n" not in end for end in refused.values()), refused
    return len(told) - len(refused), refused


def test_a_sample_of_the_standards_files(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    carried, refused = ends(SAMPLE[::30], tmp_path)
    assert carried >= 2 and len(refused) < len(SAMPLE[::30])


@everything
@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_every_file_of_the_standard(part: int, tmp_path: Path) -> None:
    carried, refused = ends(FILES[part::4], tmp_path)
    assert carried + len(refused) == len(FILES[part::4]) and carried >= 15, (carried, refused)
    later = {name: end for name, end in refused.items() if end.startswith(("torch.export:", "export:"))}
    failed = {name: end for name, end in later.items() if name not in BY_CHANCE}
    assert not failed, failed


@everything
@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_every_case_of_single_operators(part: int, tmp_path: Path) -> None:
    files = node_files(tmp_path, part, 8)
    carried, refused = ends(files, tmp_path)
    assert carried + len(refused) == len(files), (carried, refused)
    failed = {name: end for name, end in refused.items() if end.startswith(("torch.export:", "export:"))}
    assert not failed, failed


def fuzzed(seeds: Sequence[int], folder: Path) -> Counter[str]:
    (folder.parent / "secret.bin").write_bytes(b"0" * 2**16)
    proto, seen = conv_net("batch", 16, 16).SerializeToString(), Counter[str]()
    for seed in seeds:
        (folder / "net.onnx").write_bytes(mutated(proto, seed))
        seen["refused" if isinstance(opened(folder / "net.onnx"), str) else "opened"] += 1
    return seen


def test_damaged_files_are_opened_or_refused(tmp_path: Path) -> None:
    assert set(fuzzed(range(30), tmp_path)) == {"opened", "refused"}


@everything
@pytest.mark.slow
def test_many_damaged_files_are_opened_or_refused(tmp_path: Path) -> None:
    seen = fuzzed(range(30, MUTATIONS), tmp_path)
    assert min(seen["opened"], seen["refused"]) > 20, seen
