"""Norms that files write out in single operators stay in float in static int8 files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto
from torch import Tensor, nn

from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.formats.onnx_norms import nodes_of_norms
from pocketfit.runtimes import get
from pocketfit.sources.models.open_model import model_from_module

WIDTH = 32


class Written(nn.Module):
    """Linear -> a norm as JAX writes it, mean(x^2) - mean(x)^2, or as it is defined -> Linear."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.first, self.last = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 4)
        self.scale, self.bias = nn.Parameter(torch.rand(WIDTH) + 0.5), nn.Parameter(torch.randn(WIDTH))
        nn.init.constant_(self.first.bias, 3.0)  # the mean is large beside the deviation, which differs by sample

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        mean = x.mean(1, keepdim=True)
        if self.form == "defined":
            variance = ((x - mean) ** 2).mean(1, keepdim=True)
        else:
            variance = ((x * x).sum(1, keepdim=True) * (1 / WIDTH) - mean * mean).clamp(min=0)
        found: Tensor = self.last((x - mean) * (torch.reciprocal(torch.sqrt(variance + 1e-6)) * self.scale) + self.bias)
        return found


def samples() -> Samples:
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((256, 8)) * np.geomspace(0.5, 2, 256)[:, None]).astype(np.float32)
    return Samples(
        array=x,
        labels=np.full(len(x), -1),
        names=[str(row) for row in range(len(x))],
        split="calibration",
        sha256="0" * 64,
        preprocess=Preprocess(),
    )


@pytest.mark.parametrize("form", ["jax", "defined"])
def test_int8_files_keep_the_answers(form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Written(form).eval()
    model, data = model_from_module(network, input_shape=(8,)), samples()
    settings = ExportSettings("onnxruntime", "int8", activations="uint8")
    made = get("onnxruntime").export(model, Plan((), settings), data, tmp_path / "a.onnx", work=tmp_path)
    session = onnxruntime.InferenceSession(made.path)
    name = session.get_inputs()[0].name
    found = np.concatenate([session.run(None, {name: data.array[i : i + 1]})[0] for i in range(len(data))])
    with torch.no_grad():
        wanted = network(torch.from_numpy(data.array)).numpy()
    assert 10 * np.log10((wanted**2).sum() / ((found - wanted) ** 2).sum()) > 25  # dB


def graph(text: str) -> ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')


def test_a_root_of_something_else_is_no_norm() -> None:
    model = graph("g (float[n, 4] x) => (float[n, 4] y) { a = Relu(x) b = Mul(a, a) y = Sqrt(b) }")
    assert nodes_of_norms(model) == set()


def test_what_lies_before_and_behind_a_norm_is_not_kept() -> None:
    model = graph("""
        g (float[n, 4] x, float[4] s, float[4] o) => (float[n, 4] y) {
            a = Relu(x) m = ReduceMean<axes = [1]>(a) d = Sub(a, m) q = Mul(d, d) v = ReduceMean<axes = [1]>(q)
            r = Sqrt(v) e = Div(d, r) f = Mul(e, s) z = Add(f, o) y = Relu(z)
        }""")
    assert nodes_of_norms(model) == {"m", "d", "q", "v", "r", "e", "f", "z"}
