"""Every network of the zoo and of the table of brought networks, and real files: opened from .onnx, the same outputs as
ONNX Runtime, layers under their own names, pruned, and out again to a runtime. A new network joins by its row there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.passes.graph import channel_graph
from pocketfit.passes.prune import prune_channels
from pocketfit.runtimes import get
from pocketfit.runtimes.common.traced_network import program_of
from pocketfit.sources.models.check_network import example
from pocketfit.sources.models.open_model import open_model
from pocketfit.zoo import ARCHITECTURES
from tests.brought.networks import NETWORKS, built
from tests.everything import everything
from tests.sources.models.onnx_zoo import write, zoo_network

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.filterwarnings("ignore:The tensor attribute:UserWarning")  # torch's, of recurrent layers

# Rows that the suite of every day runs; the others are slow.
QUICK = {"channel shuffle", "squeeze excite", "attention", "gru of two layers", "dict of outputs", "mask"}
# torch.export, and so its ONNX exporter, refuses these modules
NOT_EXPORTED = {"data parallel", "torch.compile"}
# What the file has in place of a layer: a norm that went into its convolution, a product, a side head that is not used,
# attention written out.
OTHER_NAMES = {
    *("attention", "convnext", "side head", "googlenet", "transformer encoder", "frozen transformer encoder"),
    *("dead scale live shift", "dead scale live shift padded", "dead channels", "prelu face", "tied weights"),
    *("one dimension", "three dimensions", "weight norm", "spectral norm"),
}
NAMES = [
    name
    for name, row in NETWORKS.items()
    if not {"open", "trace"} & set(row.refused) - NOT_EXPORTED
    and not row.more
    and not row.tokens  # test_several_inputs.py
]
CASES = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ARCHITECTURES),
    *(
        pytest.param(name, marks=() if name in QUICK else (pytest.mark.slow, everything))
        for name in NAMES
        if name not in NOT_EXPORTED
    ),
]


def in_onnxruntime(path: Path, x: torch.Tensor) -> list[np.ndarray]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})


def in_torch(network: nn.Module, x: torch.Tensor) -> list[np.ndarray]:
    with torch.no_grad():
        found = network(x)
    parts = found.values() if isinstance(found, dict) else found if isinstance(found, tuple) else (found,)
    return [part.numpy() for part in parts]


def assert_same(one: list[np.ndarray], other: list[np.ndarray], share: float = 1e-4) -> None:
    for a, b in zip(one, other, strict=True):
        largest = np.abs(b, where=np.isfinite(b), out=np.zeros_like(b)).max()
        np.testing.assert_allclose(a, b, rtol=0, atol=share * max(float(largest), 1e-3))


def inputs(model: Model, rows: int = 3) -> torch.Tensor:
    spec = model.signature.inputs[0]
    if spec.dtype == "float32":
        return torch.randn(spec.with_batch(rows), generator=torch.Generator().manual_seed(3))
    return example(spec.with_batch(rows), spec.dtype, 200)


def out_again(model: Model, runtime: str, folder: Path) -> None:
    """Exported, the file answers as the network does."""
    module, settings = get(runtime), ExportSettings(runtime, layout="NCHW")  # type: ignore[arg-type]
    made = folder / f"again{module.EXTENSION}"
    module.export(model, Plan((), settings), None, made, work=folder)
    session, x = module.load(made), inputs(model, 2)
    try:
        found = session.run({session.signature.inputs[0].name: x.numpy()})
        assert list(found) == [spec.name for spec in session.signature.outputs]
        assert len(found) == len(model.signature.outputs)
        assert_same(list(found.values()), in_torch(model.network, x))
    finally:
        session.close()


@pytest.mark.parametrize("name", CASES)
def test_a_network_comes_back_and_goes_out(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    network, shape = zoo_network(name) if name in ARCHITECTURES else (built(name), NETWORKS[name].shape)
    path = tmp_path / "net.onnx"
    write(network, shape, path)
    model = open_model(path)
    x = inputs(model)
    assert model.signature.inputs[0].shape == (None, *shape)
    assert_same(in_torch(model.network, x), in_onnxruntime(path, x))
    assert_same(in_torch(model.network, x), in_torch(network, x), 1e-3)
    layers = {name for name, layer in network.named_modules() if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)}
    if name not in OTHER_NAMES:
        assert layers <= {name for name, _ in model.network.named_modules()}
    if "trace" not in (NETWORKS[name].refused if name in NETWORKS else {}):
        graph = channel_graph.trace(model.network, model.signature)
        pruned = prune_channels.apply(model, Prune(0.5, multiple=4), None, graph=graph)
        assert [a.shape for a in in_torch(pruned.network, x)] == [
            spec.with_batch(3) for spec in model.signature.outputs
        ]
    out_again(model, "onnxruntime", tmp_path)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize("runtime", ["onnxruntime", pytest.param("litert", marks=everything)])
@pytest.mark.parametrize(
    ("kind", "shape", "labels"), [("rec", "3x48x160", 6625), ("cls", "3x48x192", 0), ("det", "3x64x96", 0)]
)
def test_text_networks_as_people_have_them(
    kind: str, shape: str, labels: int, runtime: str, paddle_ocr: Path, tmp_path: Path
) -> None:
    (path,) = paddle_ocr.glob(f"*{kind}_infer.onnx")
    model = open_model(path, input_shape=shape)
    assert len(model.labels) == labels
    x = inputs(model)
    assert_same(in_torch(model.network, x), in_onnxruntime(path, x), 1e-2 if kind == "det" else 1e-4)
    out_again(model, runtime, tmp_path)


@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(("kind", "shape", "groups"), [("rec", "3x48x320", 26), ("det", "3x320x320", 36)])
def test_a_third_of_the_channels_of_text_networks_can_go(kind: str, shape: str, groups: int, paddle_ocr: Path) -> None:
    torch.set_num_threads(1)
    (path,) = paddle_ocr.glob(f"*{kind}_infer.onnx")
    model = open_model(path, input_shape=shape)
    graph = channel_graph.trace(model.network, model.signature)
    assert sum(group.prunable for group in graph.groups) == groups
    pruned = prune_channels.apply(model, Prune(1 / 3), None, graph=graph)
    x = inputs(model, 2)
    assert [a.shape for a in in_torch(pruned.network, x)] == [a.shape for a in in_torch(model.network, x)]
    before, after = (sum(p.numel() for p in found.network.parameters()) for found in (model, pruned))
    assert after < 0.6 * before


@pytest.mark.slow
@pytest.mark.weights
def test_kinds_of_files(magika: Path) -> None:
    model = open_model(magika)
    x = inputs(model)
    assert (model.signature.inputs[0].shape, model.signature.inputs[0].dtype) == ((None, 2048), "int32")
    assert_same(in_torch(model.network, x), in_onnxruntime(magika, x))
    channel_graph.trace(model.network, model.signature)
    # The export itself compares files on bytes of 0 and 1, where this network's float32 is 1e-3 from its float64.
    program = program_of(model)
    assert_same(in_torch(program.module(), x), in_torch(model.network, x))
