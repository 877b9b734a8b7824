"""Tiny .onnx files, written by hand so that what they answer is known; and a .tflite pair made by the real exporter."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples

PLAIN = Preprocess(height=8, width=8, resize="none", mean=(0.0,) * 3, std=(1.0,) * 3)


def write(path: Path, nodes, constants, inputs, outputs) -> Path:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.fixture(scope="session")
def mean_file(tmp_path_factory):
    """Answers with the means of the three channels: the brightest channel is the class. Batch as asked, or fixed."""

    def make(batch="n", scale=1.0, spoil=None) -> Path:
        path = tmp_path_factory.mktemp("mean") / "mean.onnx"
        nodes = [
            helper.make_node("ReduceMean", ["image", "axes"], ["means"], keepdims=0),
            helper.make_node("Mul", ["means", "scale"], ["scores"] if spoil is None else ["scaled"]),
        ]
        constants = {"axes": np.array([2, 3], np.int64), "scale": np.float32(scale)}
        if spoil == "nan":  # 0 / 0 where the first channel is black
            nodes += [
                helper.make_node("Div", ["scaled", "scaled"], ["one"]),
                helper.make_node("Mul", ["scaled", "one"], ["scores"]),
            ]
        return write(path, nodes, constants, {"image": [batch, 3, 8, 8]}, {"scores": [batch, 3]})

    return make


@pytest.fixture(scope="session")
def conv_file(tmp_path_factory):
    """Three convolutions with ReLU, then the mean: [n, 3, size, size] -> [n, channels]."""

    def make(channels=8, size=8, seed=0, noise_in="", noise=0.3) -> Path:
        random = np.random.default_rng(seed)
        path = tmp_path_factory.mktemp("conv") / f"conv{channels}.onnx"
        nodes, constants, last, inside = [], {"axes": np.array([2, 3], np.int64)}, "image", 3
        for name in ("stem", "body", "head"):
            weight = random.normal(0, (2 / (9 * inside)) ** 0.5, (channels, inside, 3, 3)).astype(np.float32)
            if name == noise_in:
                weight = weight + noise * weight.std() * random.standard_normal(weight.shape).astype(np.float32)
            constants[f"{name}.weight"] = weight.astype(np.float32)
            nodes.append(
                helper.make_node("Conv", [last, f"{name}.weight"], [f"{name}_sum"], name=name, pads=[1, 1, 1, 1])
            )
            nodes.append(helper.make_node("Relu", [f"{name}_sum"], [f"{name}_out"]))
            last, inside = f"{name}_out", channels
        nodes.append(helper.make_node("ReduceMean", [last, "axes"], ["scores"], keepdims=0))
        return write(path, nodes, constants, {"image": ["n", 3, size, size]}, {"scores": ["n", channels]})

    return make


@pytest.fixture(scope="session")
def coloured():
    """Pictures 8 x 8 of one brightest channel, which is their label; `wrong` of them carry another label."""

    def make(n=50, wrong=0, classes=3) -> Samples:
        random = np.random.default_rng(1)
        labels = np.arange(n) % 3
        pixels = random.integers(0, 100, (n, 8, 8, 3), np.uint8)
        pixels[np.arange(n), :, :, labels] += 120
        labels = labels.copy()
        labels[:wrong] = (labels[:wrong] + 1) % classes
        names = [f"{i}.png" for i in range(n)]
        return Samples(
            array=pixels,
            labels=labels,
            names=names,
            split="search",
            sha256="sha",
            preprocess=PLAIN,
            class_names=("red", "green", "blue"),
        )

    return make


@pytest.fixture(scope="session")
def litert_pair(tmp_path_factory):
    """(float32 .tflite, static int8 .tflite, samples) of one small network, from the real exporter."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("ai_edge_litert")
    from pocketfit.core.model import Model, Origin
    from pocketfit.core.plan.export import ExportSettings
    from pocketfit.core.plan.plan import Plan
    from pocketfit.core.signature import Signature, TensorSpec
    from pocketfit.runtimes.litert import runtime

    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 16, 3, 2, 1), torch.nn.ReLU()]
    network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(64, 5)).eval()
    shape = Signature((TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("scores", (None, 5)),))
    model = Model(
        network=network,
        signature=shape,
        preprocess=PLAIN,
        labels=tuple("abcde"),
        origin=Origin("object", "tiny"),
        sha256="tiny",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), np.uint8)
    with torch.no_grad():
        given = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        labels = network(given).argmax(1).numpy()
    samples = Samples(
        array=pixels,
        labels=labels,
        names=[str(i) for i in range(40)],
        split="search",
        sha256="sha",
        preprocess=PLAIN,
        class_names=tuple("abcde"),
    )
    folder = tmp_path_factory.mktemp("litert")
    paths = []
    for precision in ("float32", "int8"):
        plan = Plan((), ExportSettings("litert", precision, calibration=40))
        paths.append(Path(runtime.export(model, plan, samples, folder / f"{precision}.tflite", work=folder).path))
    return (*paths, samples)
