"""The test of `pocketfit doctor`: does a tiny network, exported to a runtime, have the right outputs there?"""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pocketfit.core.errors import PocketfitError
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import RuntimeInfo, answer
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.runtimes import get

TOLERANCE = 1e-4


def tiny_model() -> Model:
    """A convolution, an activation, a mean and a linear layer: [N, 3, 8, 8] -> [N, 4]."""
    import torch
    from torch import nn

    class Tiny(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8, 4)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            values: torch.Tensor = self.head(torch.relu(self.conv(image)).mean((2, 3)))
            return values

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Tiny().eval()
    signature = Signature(
        (TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("logits", (None, 4)),)
    )
    preprocess = Preprocess(height=8, width=8, resize_px=8)
    return Model(
        network=network,
        signature=signature,
        preprocess=preprocess,
        labels=("a", "b", "c", "d"),
        origin=Origin("object", "tiny"),
        sha256="tiny",
    )


def probe_by_export(
    name: str, version: Callable[[], str], *, delegates: Callable[[], tuple[str, ...]] = tuple
) -> RuntimeInfo:
    """Export, load and run the tiny network in the runtime called `name`, and compare its outputs with torch's."""
    import torch

    found: tuple[str, ...] = ()
    runtime, stated = get(name), ""
    try:
        stated, found = version(), delegates()
        model = tiny_model()
        values = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
        with torch.no_grad():
            wanted = model.network(torch.from_numpy(values)).numpy()
        with temporary_folder() as folder:
            path = Path(folder, f"tiny{runtime.EXTENSION}")
            runtime.export(model, Plan((), ExportSettings(name)), None, path, work=Path(folder))
            session = runtime.load(path)
            given = values.transpose(0, 2, 3, 1) if session.signature.inputs[0].layout == "NHWC" else values
            worst = float(np.abs(answer(session, np.ascontiguousarray(given)) - wanted).max())
            session.close()
    except PocketfitError as error:
        return RuntimeInfo(name, False, stated, str(error), found, _environment())
    ok = worst <= TOLERANCE
    detail = "a tiny network was exported, loaded and run" + ("" if ok else f", and its output is off by {worst:.2g}")
    return RuntimeInfo(name, ok, stated, detail, found, _environment())


def _environment() -> dict[str, str]:
    return {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
