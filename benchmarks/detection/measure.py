"""A detector of drawn shapes through `fit`: mAP of the int8 file beside float, its size, and the noise in raw outputs.

    python -m benchmarks.detection.measure [--weights .downloads/detector.safetensors] [--runtime litert]

The detector has been trained on other pictures (benchmarks.detection.detector). Each runtime gets a run of its own,
with a size of at most 0.30x and a drop of at most one point as limits. The result is JSON in
`.downloads/benchmark/detection-<runtime>.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import pocketfit
from benchmarks.detection import detector, shapes
from pocketfit import runtimes
from pocketfit.core.runtime import answer
from pocketfit.core.samples import Samples
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import model_from_module

RESULTS = Path(".downloads/benchmark")
PICTURES, SEED = 1200, 1000  # the seed is not the training's


def main() -> None:
    from safetensors.torch import load_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=Path(".downloads/detector.safetensors"))
    parser.add_argument("--runtime", choices=["litert", "onnxruntime"], action="append")
    parser.add_argument("--pictures", type=int, default=PICTURES)
    parser.add_argument("--max-trials", type=int, default=2)
    given = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    network = detector.Detector()
    network.load_state_dict(load_file(given.weights))
    model = model_from_module(network.eval(), preprocess=detector.PREPROCESS, labels=shapes.NAMES)
    data = open_data(shapes.write(RESULTS / f"shapes-{given.pictures}", given.pictures, SEED))
    for runtime in given.runtime or ("litert", "onnxruntime"):
        out = RESULTS / f"detection-{runtime}"
        shutil.rmtree(out, ignore_errors=True)
        budget = pocketfit.Budget.parse(max_size="0.30x", max_drop="1pt", max_trials=given.max_trials)
        result = pocketfit.fit(model, data, budget, out=out, runtimes=(runtime,))
        found = _row(out, data.split("verdict", model.preprocess, split_seed=0), result.status)
        (RESULTS / f"detection-{runtime}.json").write_text(json.dumps(found, indent=1))
        print(json.dumps(found, indent=1), flush=True)


def _row(out: Path, samples: Samples, status: str) -> dict[str, Any]:
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    verdict = next(line for line in lines if line["kind"] == "verdict")
    trials = {line["number"]: line for line in lines if line["kind"] == "trial"}
    files = [Path(out, trials[verdict[which]]["artifact"]["path"]) for which in ("baseline", "trial")]
    outputs = [_outputs(file, samples) for file in files]
    return {
        "status": status,
        "runtime": trials[verdict["trial"]]["runtime"],
        "precision": trials[verdict["trial"]]["plan"]["export"]["precision"],
        "n": verdict["n"],
        "metric": verdict["metric"],
        "before": verdict["before"],
        "after": verdict["after"],
        "drop": verdict["drop"],
        "per_class": verdict["per_class"],
        "size_ratio": files[1].stat().st_size / files[0].stat().st_size,
        "latency_ratio": verdict["latency_ratio"]["value"],
        "sqnr_db": sqnr_db(*outputs),
        "sqnr_of_boxes_db": sqnr_db(*(x[:, :4] for x in outputs)),
        "sqnr_of_scores_db": sqnr_db(*(x[:, 4:] for x in outputs)),
    }


def _outputs(file: Path, samples: Samples) -> np.ndarray[Any, np.dtype[np.float32]]:
    session = runtimes.for_file(file).load(file, threads=1)
    layout = session.signature.inputs[0].layout or "NCHW"
    found = np.concatenate([answer(session, samples.inputs([row], layout)) for row in range(len(samples))])
    session.close()
    return found


if __name__ == "__main__":
    main()
