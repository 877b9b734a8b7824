"""PP-OCRv4, magika and silero, as people have them: their own files out of published packages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.passes.graph import channel_graph
from pocketfit.passes.prune import prune_channels
from pocketfit.passes.rewrite.fold.fold import fold
from pocketfit.sources.onnx.open import check_against_onnxruntime, open_onnx

pytestmark = [pytest.mark.slow, pytest.mark.weights]
DIM = torch.export.Dim.DYNAMIC


def prunable(network: nn.Module, shape: tuple[int, ...]) -> tuple[set[str], set[str]]:
    """Layers whose outputs may be pruned, and all convolutions."""
    signature = Signature((TensorSpec("x", (None, *shape), "float32", "NCHW"),), ())
    found = channel_graph.trace(network, signature)
    may = {layer for group in found.groups if group.prunable for layer in group.layers}
    return may, {name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)}


def half(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Half of all channels that may go, cut away by the project's own pass."""
    signature = Signature((TensorSpec("x", (None, *shape), "float32", "NCHW"),), (TensorSpec("y", (None,)),))
    whole = Model(
        network=network, signature=signature, preprocess=Preprocess(), labels=(), origin=Origin("object", "ocr")
    )
    return prune_channels.apply(whole, Prune(0.5), None).network


def kinds(network: Any) -> Counter[str]:
    return Counter(
        type(network.get_submodule(node.target)).__name__ if node.op == "call_module" else node.target.__name__
        for node in network.graph.nodes
        if node.op in ("call_module", "call_function")
    )


def test_the_recogniser(paddle_ocr: Path) -> None:
    file = paddle_ocr / "ch_PP-OCRv4_rec_infer.onnx"
    opened = open_onnx(file, sizes={"x:2": 48})
    assert opened.difference is not None and opened.difference < 1e-4 and opened.findings == ()
    assert len(opened.metadata["character"].split("\n")) > 6000
    network = opened.network
    assert check_against_onnxruntime(file, network, [torch.randn(2, 3, 48, 160)]) < 1e-4
    network(torch.randn(1, 3, 48, 64)).sum().backward()
    assert sum(p.grad is not None for p in network.parameters()) == len(list(network.parameters())) == 110
    may, convolutions = prunable(network, (3, 48, 64))
    assert convolutions <= may
    examples = (torch.randn(2, 3, 48, 64),)
    program = torch.export.export(network, examples, dynamic_shapes=({0: DIM, 3: DIM},))
    wide = torch.randn(3, 3, 48, 96)
    torch.testing.assert_close(program.module()(wide), network(wide), rtol=1e-4, atol=1e-6)
    small = half(network, (3, 48, 64))
    assert sum(p.numel() for p in small.parameters()) < 0.4 * sum(p.numel() for p in network.parameters())
    assert small(wide).shape == network(wide).shape
    done = fold(network, examples)
    found = kinds(done.network)
    assert found["Hardswish"] == 28 and found["SiLU"] == 7 and found["LayerNorm"] == 5
    assert found["mul"] <= 7 and found["add"] <= 20 and found["ReLU6"] == found["truediv"] == 0
    assert done.difference < 1e-4 and done.findings == ()


def test_the_detector(paddle_ocr: Path) -> None:
    file = paddle_ocr / "ch_PP-OCRv4_det_infer.onnx"
    opened = open_onnx(file)
    network = opened.network
    network(torch.randn(1, 3, 64, 64)).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    may, convolutions = prunable(network, (3, 64, 64))
    assert convolutions <= may
    dynamic = ({0: DIM, 2: DIM, 3: DIM},)
    program = torch.export.export(network, (torch.randn(2, 3, 64, 96),), dynamic_shapes=dynamic)
    other = torch.rand(1, 3, 96, 160)
    torch.testing.assert_close(program.module()(other), network(other), rtol=1e-3, atol=1e-5)


def test_what_tells_kinds_of_files_apart(magika: Path) -> None:
    opened = open_onnx(magika)
    assert opened.difference is not None and opened.difference < 1e-4
    assert opened.signature.inputs[0].dtype == "int32"


def test_the_ear(silero: Path) -> None:
    """Its branch hangs on the rate of the sound: named, and carried once the rate is fixed."""
    with pytest.raises(UserError, match=r"the operator If 'If_0' .*fix the input that decides it"):
        open_onnx(silero)
    opened = open_onnx(silero, fixed={"sr": 16000}, sizes={"input:1": 576})
    assert opened.difference is not None and opened.difference < 1e-3
    assert any(isinstance(module, nn.LSTM) for module in opened.network.modules())
