"""Two networks that embed, in every runtime of apps.

    python tools/fetch.py fashion-mnist mobilefacenet photos
    python -m benchmarks.embedding.measure mobilefacenet [-o FOLDER]
    python -m benchmarks.embedding.measure fashion       [-o FOLDER] [--trials N] [--steps N]

mobilefacenet  a public MobileFaceNet of 1.29 M parameters, on patches of photos without labels: no labelled faces are
               to be had, so that the figure is the nearness to the original
               (three plans for int8; that which the validation split prefers is judged on the test split)
fashion        by `fit`: a network learns eight classes of Fashion-MNIST by an angular margin, and is asked about pairs
               of the two other classes, shirts and bags. It has seen neither
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import pocketfit
from benchmarks.embedding.tflite_network import network_of
from pocketfit import runtimes
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import CorrectBias, Equalize
from pocketfit.core.preprocess import Preprocess
from pocketfit.measurement import run_samples
from pocketfit.numerics.latency_intervals import mean_interval
from pocketfit.passes.train.fine_tune import optimise
from pocketfit.passes.train.guarded.objective import Recipe
from pocketfit.sources.data.dataset import Dataset, for_form, from_arrays
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import model_from_module

DOWNLOADS = Path(".downloads")
FACE = Preprocess(height=112, width=112, resize="exact", resize_px=112, mean=(0.5,) * 3, std=(128 / 255,) * 3)
GREY = Preprocess(height=28, width=28, resize="exact", resize_px=28, colour="GRAY", mean=(0.5,), std=(0.5,))
UNSEEN = (6, 8)  # shirt, bag
PATCHES, TEST_EVERY = 3, 5  # of a photo; every fifth photo is for the test


def patches(seed: int = 0) -> Dataset:
    """Squares of 112 pixels out of photos, without labels; the test shows other photos than the training."""
    draw = np.random.default_rng(seed)
    parts: tuple[list[NDArray[np.uint8]], list[NDArray[np.uint8]]] = ([], [])
    for number, path in enumerate(sorted((DOWNLOADS / "photos").glob("*.webp"))):
        with Image.open(path) as opened:
            photo = opened.convert("RGB")
        for _ in range(PATCHES):
            side = int(draw.integers(112, min(photo.size) + 1)) if min(photo.size) > 112 else min(photo.size)
            left, top = (int(draw.integers(0, size - side + 1)) for size in photo.size)
            square = photo.resize((112, 112), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
            parts[number % TEST_EVERY == 0].append(np.asarray(square))
    return from_arrays(np.stack(parts[0]), x_test=np.stack(parts[1]))


class Embedder(nn.Module):
    """Grey [N, 1, 28, 28] -> [N, 64]: five convolutions with PReLU, and a global depthwise one at the end."""

    def __init__(self) -> None:
        super().__init__()
        steps = [(1, 32, 3, 2, 1), (32, 32, 3, 1, 32), (32, 64, 1, 1, 1), (64, 64, 3, 2, 64), (64, 128, 1, 1, 1)]
        layers: list[nn.Module] = []
        for given, found, kernel, stride, groups in steps:
            layers += [
                nn.Conv2d(given, found, kernel, stride, kernel // 2, groups=groups, bias=False),
                nn.BatchNorm2d(found),
                nn.PReLU(found),
            ]
        self.features = nn.Sequential(*layers)
        self.pool = nn.Sequential(nn.Conv2d(128, 128, 7, groups=128, bias=False), nn.BatchNorm2d(128), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(128, 64, bias=False), nn.BatchNorm1d(64))

    def forward(self, image: Tensor) -> Tensor:
        found: Tensor = self.head(self.pool(self.features(image)))
        return found


def fashion(train: int, test: int) -> Dataset:
    """Eight classes to learn, two to be asked about."""
    stored = np.load(DOWNLOADS / "fashion-mnist.npz", allow_pickle=False)
    seen, unseen = (~np.isin(stored["y_train"], UNSEEN), np.isin(stored["y_test"], UNSEEN))
    data = from_arrays(
        stored["x_train"][seen][:train],
        stored["y_train"][seen][:train],
        x_test=stored["x_test"][unseen][:test],
        y_test=stored["y_test"][unseen][:test],
    )
    return for_form(data, "identities")


def trained(data: Dataset, steps: int) -> Model:
    torch.manual_seed(0)
    model = replace(model_from_module(Embedder().eval(), preprocess=GREY), task="embedding")
    samples = data.split("train", GREY, split_seed=0)
    recipe = Recipe(batch_size=128, learning_rate=0.05, seed=0, task="embedding", guarded=False)
    optimise(model.network, samples, recipe, steps=steps)
    return replace(model, sha256=fingerprint(model.network))


def nearest(model: Model, data: Dataset, runtime: str, out: Path) -> None:
    """Static int8 by several plans: the one that is nearest to the original on the validation split is judged on the
    test split, by the mean cosine of the embeddings."""
    static = replace(runtimes.get(runtime).recipes()[0], calibration=200)
    plans = {
        "as it comes": Plan((), static),
        "equalized": Plan((Equalize(),), static),
        "equalized, biases corrected, ranges by squared error": Plan(
            (Equalize(), CorrectBias()), replace(static, ranges="mse")
        ),
    }
    paths = {"float32": _file(model, data, Plan((), ExportSettings(runtime)), out)}
    paths |= {name: _file(model, data, plan, out) for name, plan in plans.items()}
    found = {name: _cosines(model, data, "search", runtime, paths["float32"], paths[name]) for name in plans}
    chosen = max(found, key=lambda name: float(found[name].mean()))
    judged = mean_interval(_cosines(model, data, "verdict", runtime, paths["float32"], paths[chosen]))
    share = paths[chosen].stat().st_size / paths["float32"].stat().st_size
    told = {"cosine": judged.value, "low": judged.low, "high": judged.high, "size_ratio": share}
    on_search = {name: float(values.mean()) for name, values in found.items()}
    print(json.dumps({"runtime": runtime, "validation": on_search, "chosen": chosen, **told}))


def _file(model: Model, data: Dataset, plan: Plan, out: Path) -> Path:
    return Path(pocketfit.apply(plan, model, data, out, task="embedding").artifact.path)


def _cosines(model: Model, data: Dataset, split: str, runtime: str, original: Path, path: Path) -> NDArray[np.float64]:
    samples = data.split(split, model.preprocess, split_seed=0)
    wanted = run_samples.score(runtime, original, samples, task="embedding", metric="cosine", own=True).answers
    return run_samples.score(runtime, path, samples, task="embedding", metric="cosine", targets=wanted).values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=["mobilefacenet", "fashion"])
    parser.add_argument("-o", "--out", type=Path, default=DOWNLOADS / "benchmark" / "embedding")
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--runtime", action="append", choices=["litert", "onnxruntime"])
    given = parser.parse_args()
    if given.network == "fashion":
        data = fashion(20_000, 2_000)
        model, limits = trained(data, given.steps), {"max_drop": "5pt", "max_size": "0.6x"}
    else:
        data, model = patches(), model_from_module(network_of(DOWNLOADS / "MobileFaceNet.tflite"), preprocess=FACE)
        for runtime in given.runtime or ("litert", "onnxruntime"):
            nearest(model, data, runtime, given.out / f"{given.network}-{runtime}")
        return
    for runtime in given.runtime or ("litert", "onnxruntime"):
        out = given.out / f"{given.network}-{runtime}"
        budget = pocketfit.Budget.parse(**limits, max_trials=given.trials)
        pocketfit.fit(model, data, budget, out=out, runtimes=(runtime,), task="embedding")
        lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
        for line in lines:
            if line["kind"] == "verdict":
                told = {key: line.get(key) for key in ("metric_title", "n", "before", "after", "drop", "verification")}
                told["accuracy"] = line["measurements"]["accuracy"]
                told["accuracy_before"] = line["baseline_measurements"]["accuracy"]
                told["ratio"] = line["latency_ratio"]
                code = next(x["code"] for x in lines if x["kind"] == "trial" and x["number"] == line["trial"])
                print(json.dumps({"runtime": runtime, "code": code, **told}))


if __name__ == "__main__":
    main()
