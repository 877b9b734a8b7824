"""OpenVINO files, read without OpenVINO: counted by hand, and damaged in every way that a file can be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import files_of
from pocketfit.formats import openvino_read
from pocketfit.runtimes import get
from pocketfit.testing.tiny_network import tiny_model

SMALL = """<?xml version="1.0"?>
<net name="net" version="11"><layers>
<layer id="0" name="image" type="Parameter" version="opset1"><data shape="?,2,4,4" element_type="f32" />
<output><port id="0" precision="FP32" names="image"><dim>-1</dim><dim>2</dim><dim>4</dim><dim>4</dim></port></output></layer>
<layer id="1" name="stem.weight" type="Const" version="opset1"><data element_type="f32" shape="3, 2, 1, 1" offset="0" size="24" />
<output><port id="0" precision="FP32"><dim>3</dim><dim>2</dim><dim>1</dim><dim>1</dim></port></output></layer>
<layer id="2" name="stem/Conv" type="Convolution" version="opset1">
<input><port id="0" precision="FP32"/><port id="1" precision="FP32"/></input>
<output><port id="2" precision="FP32" names="maps"><dim>-1</dim><dim>3</dim><dim>4</dim><dim>4</dim></port></output></layer>
<layer id="3" name="result" type="Result" version="opset1"><input><port id="0" precision="FP32"/></input></layer>
</layers><edges>
<edge from-layer="0" from-port="0" to-layer="2" to-port="0" /><edge from-layer="1" from-port="0" to-layer="2" to-port="1" />
<edge from-layer="2" from-port="2" to-layer="3" to-port="0" />
</edges><rt_info><framework><pocketfit.layout value="NCHW" /></framework></rt_info></net>"""  # noqa: E501


def written(folder: Path, text: str = SMALL, weights: int = 24) -> Path:
    (folder / "net.bin").write_bytes(bytes(weights))
    (folder / "net.xml").write_text(text, encoding="utf-8")
    return folder / "net.xml"


def test_counted_by_hand(tmp_path: Path) -> None:
    found = openvino_read.contents(written(tmp_path))
    (given,), (answer,), (op,) = found.inputs, found.outputs, found.ops
    assert (given.name, given.shape, given.dtype, given.layout) == ("image", (None, 2, 4, 4), "float32", "NCHW")
    assert (answer.name, answer.shape) == ("maps", (None, 3, 4, 4))
    assert (op.layer, op.type, op.weight_dtype, op.compute_dtype) == ("stem", "Convolution", "float32", "float32")
    assert (op.weight_shape, op.weight_bytes, op.macs) == ((3, 2, 1, 1), 24, 3 * 4 * 4 * 2)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('offset="0"', 'offset="1"'),  # behind the end of the weights
        ('offset="0"', 'offset="-8"'),
        ('offset="0"', 'offset="nothing"'),
        ('from-layer="1"', 'from-layer="9"'),
        ('from-port="2"', 'from-port="7"'),
        ('<edge from-layer="2" from-port="2" to-layer="3" to-port="0" />', ""),
        ("<dim>3</dim>", "<dim>three</dim>"),
        ('precision="FP32"', 'precision="?"'),
        ("</layers>", "</layer>"),
        ("<layers>", "<sheets>"),
        ('id="1"', ""),
    ],
)
def test_damaged_files_are_one_sentence(before: str, after: str, tmp_path: Path) -> None:
    assert before in SMALL
    with pytest.raises(UserError, match=r"no OpenVINO file, or a damaged one"):
        openvino_read.contents(written(tmp_path, SMALL.replace(before, after)))


def test_a_file_that_would_grow_while_it_is_read_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">]>'
    with pytest.raises(UserError, match="a document type of its own"):
        openvino_read.contents(written(tmp_path, SMALL.replace("?>", f"?>{bomb}", 1)))


def test_a_file_without_its_weights_says_which_file_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"net\.bin should lie beside it"):
        openvino_read.contents(path)
    with pytest.raises(UserError, match="There is no file"):
        openvino_read.contents(tmp_path / "other.xml")


def test_a_circle_ends(tmp_path: Path) -> None:
    circle = SMALL.replace('from-layer="0" from-port="0"', 'from-layer="2" from-port="2"')
    assert openvino_read.contents(written(tmp_path, circle)).ops[0].compute_dtype == "float32"


class Layers(nn.Module):
    """A kernel of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8)
        self.groups, self.up = nn.Conv2d(8, 8, 1, groups=2), nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.head = nn.Linear(4, 4)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.up(self.groups(self.deep(self.stem(image)))).mean((2, 3)))


def test_the_counts_are_those_of_the_same_network_in_another_format(tmp_path: Path) -> None:
    model = tiny_model(Layers(), sha256="layers")
    counts = {}
    for name in ("onnxruntime", "openvino"):
        runtime = get(name)
        path = tmp_path / f"net{runtime.EXTENSION}"
        runtime.export(model, Plan((), ExportSettings(name)), None, path, work=tmp_path)
        ops = [op for op in runtime.inspect(path).ops if op.macs]
        counts[name] = {op.layer: (op.macs, int(np.prod(op.weight_shape)), op.weight_bytes) for op in ops}
    assert counts["openvino"] == counts["onnxruntime"]
    assert set(counts["openvino"]) == {"stem", "deep", "groups", "up", "head"}
    assert [path.name for path in files_of(tmp_path / "net.xml")] == ["net.xml", "net.bin"]
