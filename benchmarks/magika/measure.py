"""magika's network (214 types of files) as int8, on files of known type out of this machine.

    python tools/fetch.py magika
    python -m benchmarks.magika.measure [-o OUT]

Some of the files, drawn at random, are kept for the test; the others calibrate. Each of the test's files is answered by
the original and by each of pocketfit's files in ONNX Runtime: one thread, one at a time, in turns.
"""

from __future__ import annotations

import argparse
import re
import time
from pathlib import Path

import numpy as np

import pocketfit
from benchmarks.magika import files
from pocketfit.runtimes.onnxruntime.convert import open_session
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import open_model

MODEL = "magika-1.0.3/magika/models/standard_v3_3/model.onnx"
PLANS = {
    "static int8": pocketfit.ExportSettings("onnxruntime", "int8", activations="uint8"),
    "static int8, percentiles": pocketfit.ExportSettings(
        "onnxruntime", "int8", activations="uint8", ranges="percentile"
    ),
    "dynamic int8": pocketfit.ExportSettings("onnxruntime", "dynamic-int8"),
    "int8 weights alone": pocketfit.ExportSettings("onnxruntime", "weight-only"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--downloads", type=Path, default=Path(".downloads"))
    parser.add_argument("-o", "--out", type=Path, default=Path("magika-out"))
    parser.add_argument("--most", type=int, default=200, help="files of each type")
    parser.add_argument("--test", type=int, default=1000, help="files that are answered")
    given = parser.parse_args()
    original = given.downloads / MODEL
    labels = files.labels_of(original.with_name("config.min.json"))
    x, y = files.collect(labels, given.most)
    drawn = np.random.default_rng(0).permutation(len(x))
    test = np.zeros(len(x), bool)
    test[drawn[: min(given.test, len(x) // 2)]] = True
    calibration = from_arrays(x[~test], y[~test], class_names=labels)
    paths = {"original": original}
    for name, settings in PLANS.items():
        model = open_model(original, labels=labels)
        made = pocketfit.apply(pocketfit.Plan((), settings), model, calibration, given.out / re.sub(r"\W+", "-", name))
        paths[name] = Path(made.artifact.path)
    sessions = {name: open_session(str(path)) for name, path in paths.items()}
    answers: dict[str, list[np.ndarray]] = {name: [] for name in paths}
    took_ms: dict[str, list[float]] = {name: [] for name in paths}
    for row in np.flatnonzero(test):
        for name, session in sessions.items():
            start = time.perf_counter()
            answers[name].append(session.run(None, {session.get_inputs()[0].name: x[row : row + 1]})[0][0])
            took_ms[name].append((time.perf_counter() - start) * 1e3)
    right = {name: np.stack(found).argmax(1) == y[test] for name, found in answers.items()}
    best = {name: np.stack(found).argmax(1) for name, found in answers.items()}
    calibrated = min(200, calibration.split_counts(0)["calibration"])
    print(f"{test.sum()} files of {len(set(y[test].tolist()))} types; calibrated on {calibrated} others")
    print("| file | bytes | accuracy | points lost, 95 % | same answer | median ms |")
    for name, path in paths.items():
        lost = right["original"].astype(float) - right[name]
        half = 1.96 * lost.std(ddof=1) / np.sqrt(len(lost))
        print(
            f"| {name} | {path.stat().st_size:,} | {100 * right[name].mean():.2f} % |"
            f" {100 * lost.mean():.2f} ({100 * (lost.mean() - half):.2f} to {100 * (lost.mean() + half):.2f}) |"
            f" {100 * (best[name] == best['original']).mean():.1f} % | {np.median(took_ms[name]):.2f} |"
        )


if __name__ == "__main__":
    main()
