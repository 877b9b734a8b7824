from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.artifact import Artifact
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.runtimes.torch import runtime
from pocketfit.sources.models.open_model import model_from_module
from tests.runtimes.tiny_network import POSITIONS, SIDE, pictures

Exported = Callable[[ExportSettings], Artifact]


@pytest.mark.parametrize(
    "settings",
    [
        ExportSettings("torch", "int8"),
        ExportSettings("torch", "float16"),
        ExportSettings("torch", "dynamic-int8"),
        ExportSettings("torch", layout="NHWC"),
        ExportSettings("torch", keep_float=("head",)),
    ],
)
def test_it_takes_float32_only(settings: ExportSettings, model: Model) -> None:
    assert runtime.why_not(Plan((), settings), model.signature)


def test_the_answer_is_the_networks_own(exported: Exported, model: Model) -> None:
    import torch

    session = runtime.load(Path(exported(ExportSettings("torch")).path))
    with torch.no_grad():
        wanted = model.network(torch.from_numpy(pictures(4))).numpy()
    got = session.run({"image": pictures(4)})["logits"]
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)  # batch norms are folded, so not to the bit


def _tampered(path: Path, out: Path, key: str, value: object) -> Path:
    """A copy of the .pt2 in which the first `key` of any of its JSON entries has another value."""

    def change(data: object) -> bool:
        if isinstance(data, dict):
            if key in data:
                data[key] = value
                return True
            return any(change(part) for part in data.values())
        return isinstance(data, list) and any(change(part) for part in data)

    done = False
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".json") and not done:
                parsed = json.loads(data)
                done = change(parsed)
                data = json.dumps(parsed).encode()
            new.writestr(name, data)
    assert done
    return out


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expr_str", "__import__('os').system('touch pwned')"),
        ("guards_code", ["exec('x')"]),
        ("use_pickle", True),
    ],
)
def test_files_that_would_run_code_are_refused(key: str, value: object, exported: Exported, tmp_path: Path) -> None:
    path = _tampered(Path(exported(ExportSettings("torch")).path), tmp_path / "evil.pt2", key, value)
    with pytest.raises(UserError, match=r"evil\.pt2' holds code"):
        runtime.load(path)


def test_the_same_file_untampered_loads(exported: Exported, tmp_path: Path) -> None:
    path = _tampered(Path(exported(ExportSettings("torch")).path), tmp_path / "same.pt2", "use_pickle", False)
    runtime.load(path).close()


def test_a_pickle_among_the_sample_inputs_is_refused(exported: Exported, tmp_path: Path) -> None:
    import pickle

    source, out = Path(exported(ExportSettings("torch")).path), tmp_path / "evil.pt2"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(print) if "sample_inputs" in name else old.read(name))
    with pytest.raises(UserError, match="damaged"):
        runtime.load(out)


def test_macs_and_layers_come_from_the_graph(exported: Exported) -> None:
    ops = {op.layer: op for op in runtime.inspect(Path(exported(ExportSettings("torch")).path)).ops if op.layer}
    assert ops["depthwise.0"].macs == 72 * POSITIONS
    assert ops["head"].type == "linear"
    assert ops["stem.0"].output_shape == (None, 8, SIDE // 2, SIDE // 2)


def test_macs_are_those_of_one_sample_wherever_the_batch_lies(tmp_path: Path) -> None:
    import torch
    from torch import nn

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            maps = x.flatten(2)
            alike = maps @ maps.mT  # [n, 3, 3]
            rows: torch.Tensor = self.head(maps.reshape(-1, 64))  # [3 n, 4]
            return rows.view(-1, 3, 4).mean(1) + alike.mean((1, 2))[:, None]

    model = model_from_module(Rows(), preprocess=Preprocess(height=8, width=8))
    path = tmp_path / "rows.pt2"
    runtime.export(model, Plan((), ExportSettings("torch")), None, path, work=tmp_path)
    assert [op.macs for op in runtime.inspect(path).ops if op.macs] == [3 * 3 * 64, 3 * 4 * 64]


def test_a_closed_session_says_so(exported: Exported) -> None:
    session = runtime.load(Path(exported(ExportSettings("torch")).path))
    session.close()
    with pytest.raises(UserError, match="closed"):
        session.run({"image": pictures(1)})
