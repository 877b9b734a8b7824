"""Every network of the zoo, pruned at 30 and 50 %, saved, loaded, exported to every runtime, and compared with torch.

    python -m benchmarks.pruning.zoo_exports [NETWORK ...] [--width 0.5] [--side 32]

prints one row for each network and ratio: channels kept, the largest difference of each runtime's answers from the
pruned torch network's (relative to the largest answer where that is above 1), seconds, and what was refused. Exits
with 1 where a difference is above 1e-4. Weights are random, batch norms have statistics of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pocketfit import zoo
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import answer
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import prune_channels
from pocketfit.runtimes import get
from pocketfit.sources.models.open_model import load_model, model_from_module, save_model

RUNTIMES = ("litert", "onnxruntime")
RATIOS = (0.3, 0.5)
TOLERANCE = 1e-4


def network_of(name: str, width: float, side: int) -> Model:
    """Random weights, batch norms as after training: no channel's is like another's."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    network = zoo.build(name, width=width, classes=10).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5, generator=generator)
    origin = Origin("zoo", name, {"width": width, "classes": 10})
    return model_from_module(network, preprocess=Preprocess(height=side, width=side), origin=origin)


def difference(model: Model, runtime_name: str, work: Path) -> float:
    """Largest difference of the exported file's answers from the network's, relative to the largest answer above 1."""
    runtime = get(runtime_name)
    path = work / f"pruned{runtime.EXTENSION}"
    artifact = runtime.export(model, Plan((), ExportSettings(runtime_name)), None, path, work=work)
    images = np.random.default_rng(1).standard_normal(model.signature.inputs[0].with_batch(4)).astype(np.float32)
    with torch.no_grad():
        wanted = model.network(torch.from_numpy(images)).numpy()
    session = runtime.load(Path(artifact.path))
    nhwc = session.signature.inputs[0].layout == "NHWC"
    got = answer(session, np.ascontiguousarray(images.transpose(0, 2, 3, 1)) if nhwc else images)
    session.close()
    return float(np.abs(got - wanted).max() / max(1.0, np.abs(wanted).max()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=sorted(zoo.ARCHITECTURES))
    parser.add_argument("--width", type=float, default=0.5)
    parser.add_argument("--side", type=int, default=32)
    options = parser.parse_args()
    torch.set_num_threads(1)
    worst = 0.0
    print(f"| network | ratio | channels | {' | '.join(RUNTIMES)} | s | refused |")
    print("|---|---|---|" + "---|" * (len(RUNTIMES) + 2))
    for name in options.networks:
        model = network_of(name, options.width, options.side)
        graph = trace(model.network, model.signature)
        for ratio in RATIOS:
            start = time.monotonic()
            pruned = prune_channels.apply(model, Prune(ratio), graph=graph)
            rows = prune_channels.kept(model, pruned)
            with tempfile.TemporaryDirectory() as folder:
                save_model(pruned, Path(folder, "model"))
                loaded = load_model(Path(folder, "model"))
                found = [difference(loaded, runtime, Path(folder)) for runtime in RUNTIMES]
            worst = max(worst, *found)
            kept = f"{sum(row.after for row in rows)} of {sum(row.before for row in rows)}"
            refused = " ".join(sentence for sentence in pruned.findings if sentence not in model.findings)
            seconds = time.monotonic() - start
            cells = [name, f"{ratio:.0%}", kept, *(f"{d:.1e}" for d in found), f"{seconds:.0f}", refused or "nothing"]
            print(f"| {' | '.join(cells)} |", flush=True)
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
