"""Files that torch's two exporters write come back as networks, and go out again."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketfit.passes.rewrite.fold.fold import fold
from tests.sources.onnx.onnx_files import assert_same, in_onnxruntime, network_of

DIM = torch.export.Dim


class Vision(nn.Module):
    """Convolution, group norm, hard-swish, squeeze-excite, attention with a token, upsampling; two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.GroupNorm(4, 16)
        self.gate = nn.Conv2d(16, 16, 1)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, activation="gelu")
        self.up = nn.ConvTranspose2d(16, 4, 2, 2)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = F.hardswish(self.norm(self.patches(x)))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        words = torch.cat([self.token.expand(x.shape[0], -1, -1), y.flatten(2).transpose(1, 2)], 1)
        picture = F.interpolate(self.up(y), scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.head(self.layer(words)[:, 0]), picture


class Text(nn.Module):
    """Words and their places, a bidirectional LSTM over both, a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(50, 8), nn.Embedding(32, 8)
        self.steps = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        y, _ = self.steps(self.words(ids) + self.places(places))
        y = (y * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return self.head(y)


def exported(net: nn.Module, inputs: tuple[Tensor, ...], axes: Mapping[str, Mapping[int, str]], *, new: bool) -> Any:
    """The file that torch writes; `new`: by its exporter on top of torch.export."""
    buffer = io.BytesIO()
    torch.backends.mha.set_fastpath_enabled(False)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if not new:
                plain = {name: dict(dims) for name, dims in axes.items()}
                torch.onnx.export(
                    net, inputs, buffer, dynamo=False, input_names=list(axes), dynamic_axes=plain, opset_version=17
                )
                return onnx.ModelProto.FromString(buffer.getvalue())
            shapes = tuple(dict.fromkeys(dims, DIM.DYNAMIC) for dims in axes.values())
            program = torch.onnx.export(
                net, inputs, dynamo=True, input_names=list(axes), dynamic_shapes=shapes, verbose=False
            )
            return program.model_proto
    finally:
        logging.disable(logging.NOTSET)
        torch.backends.mha.set_fastpath_enabled(True)


@pytest.mark.parametrize("new", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["old", "new"])
def test_a_vision_network_and_its_parts(new: bool) -> None:
    torch.manual_seed(0)
    net = Vision().eval()
    proto = exported(net, (torch.randn(2, 3, 16, 16),), {"x": {0: "batch"}}, new=new)
    network = assert_same(proto, torch.randn(3, 3, 16, 16))
    x = torch.randn(2, 3, 16, 16)
    sum(answer.sum() for answer in network(x)).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    counts = {p.numel() for p in net.parameters()}
    assert {p.numel() for p in network.parameters()} <= counts
    names = {name: type(module).__name__ for name, module in network.named_modules()}
    assert names["patches"] == "Conv2d" and names["up"] == "ConvTranspose2d" and names["head"] == "Linear"
    assert names["layer.linear1"] == "Linear" and names["layer.norm2"] == "LayerNorm"
    done = fold(network, [x])
    kinds = {type(module).__name__ for module in done.network.modules()}
    assert {"GroupNorm", "GELU", "Hardswish"} <= kinds and "InstanceNorm1d" not in kinds
    program = torch.export.export(done.network, (x,), dynamic_shapes=({0: DIM.DYNAMIC},))
    again = program.module()(torch.ones(5, 3, 16, 16))
    torch.testing.assert_close(again, net(torch.ones(5, 3, 16, 16)), rtol=1e-3, atol=1e-4)


def test_a_text_network_with_two_dynamic_axes() -> None:
    torch.manual_seed(0)
    net = Text().eval()
    inputs = (torch.randint(0, 50, (2, 7)), torch.ones(2, 7))
    axes = {"ids": {0: "batch", 1: "words"}, "mask": {0: "batch", 1: "words"}}
    proto = exported(net, inputs, axes, new=False)
    for shape in ((1, 4), (3, 9)):
        network = assert_same(proto, torch.randint(0, 50, shape), torch.ones(shape))
    assert {type(m).__name__ for m in network.modules()} >= {"Embedding", "LSTM", "Linear"}


@pytest.mark.slow
def test_out_again_to_onnx_with_its_axes() -> None:
    torch.manual_seed(0)
    axes = {"x": {0: "batch"}}
    first = exported(Vision().eval(), (torch.randn(2, 3, 16, 16),), axes, new=True)
    again = exported(network_of(first), (torch.randn(2, 3, 16, 16),), axes, new=True)
    x = torch.randn(5, 3, 16, 16)
    for one, other in zip(in_onnxruntime(first, x), in_onnxruntime(again, x), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
