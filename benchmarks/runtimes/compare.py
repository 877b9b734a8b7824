"""One network in every runtime that apps ship: fidelity and size of its float and int8 files, all timed in turns.

    python -m benchmarks.runtimes.compare [--quick] [--rounds 60] [--json FILE]

MobileNetV2 with published ImageNet weights; fidelity to the network in PyTorch on 608 pictures of 38 photos that
calibration has not seen. The int8 files have the same passes: equalized, and rounded by learning. Latencies are those
of one thread and one picture. Each round calls every file, in a new order; so whatever else the machine does meets all.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.quantization.compare import INT8, SUBJECTS, UINT8, WORK, Bench, Subject
from benchmarks.quantization.file_runners import Places
from benchmarks.quantization.result_rows import Entry
from pocketfit import runtimes
from pocketfit.cli.progress_bar import watch_for_terminal
from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import bytes_of, for_apps
from pocketfit.core.runtime import Session
from pocketfit.measurement import run_samples
from pocketfit.measurement.environment import environment
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.search.propose.quantization_ladder import REPAIRS

STATIC = {"litert": INT8}  # the form in which a runtime computes in integers; the others take uint8


def entries(bench: Bench) -> list[Entry]:
    """The float32 file and the int8 file of each runtime."""
    found = []
    for name in for_apps():
        for plan in (
            Plan((), ExportSettings(name)),
            Plan(REPAIRS, ExportSettings(name, **STATIC.get(name, UINT8), ranges="mse")),
        ):
            made = bench.ours(plan)
            if not isinstance(made, Entry):
                raise PocketfitError(f"{name}: {made.error}")
            found.append(made)
    return found


def fidelity(subject: Subject, made: Sequence[Entry]) -> list[dict[str, Any]]:
    """A row a file: SQNR and the share of equal answers, both to the network in PyTorch."""
    with torch.inference_mode():
        wanted = np.concatenate(
            [subject.model.network(torch.from_numpy(x)).numpy() for x, _ in subject.judged.batches(32)]
        )
    rows = []
    for entry in made:
        outputs = run_samples.run_all(entry.runtime, entry.path, subject.judged).outputs
        rows.append(
            {
                "runtime": entry.runtime,
                "file": entry.name,
                "bytes": bytes_of(entry.path),
                "sqnr_db": round(float(sqnr_db(wanted, outputs)), 1),
                "agreement": round(float((wanted.argmax(1) == outputs.argmax(1)).mean()), 4),
            }
        )
    return rows


def latencies_ms(subject: Subject, made: Sequence[Entry], rounds: int) -> list[list[float]]:
    """Milliseconds of each file in each round."""
    sessions = [runtimes.get(entry.runtime).load(entry.path, threads=1) for entry in made]
    given = [_given(session, subject) for session in sessions]
    times: list[list[float]] = [[] for _ in made]
    order, draw = list(range(len(made))), random.Random(0)
    for turn in range(rounds + 3):
        draw.shuffle(order)
        for i in order:
            sessions[i].run(given[i])  # another file has filled the caches
            begin = time.perf_counter()
            sessions[i].run(given[i])
            if turn >= 3:
                times[i].append((time.perf_counter() - begin) * 1e3)
    return times


def _given(session: Session, subject: Subject) -> Mapping[str, Any]:
    spec = session.signature.inputs[0]
    return {spec.name: subject.judged.inputs(slice(0, 1), spec.layout)}


def compared(quick: bool, rounds: int) -> dict[str, Any]:
    with watch_for_terminal() as watch:
        subject = SUBJECTS["mobilenet_v2"](20 if quick else 100, quick)
        work = WORK / f"runtimes-{subject.model.key[:12]}"
        work.mkdir(parents=True, exist_ok=True)
        made = entries(Bench(subject, work, Places(), {}, watch))
        rows = fidelity(subject, made)
        times = np.array(latencies_ms(subject, made, rounds))
    reference = next(i for i, row in enumerate(rows) if (row["runtime"], row["file"]) == ("onnxruntime", "float32"))
    for row, mine in zip(rows, times, strict=True):
        ratios = mine / times[reference]
        row["latency_ms"] = round(float(np.median(mine)), 2)
        row["ratio"] = [round(float(np.quantile(ratios, q)), 3) for q in (0.25, 0.5, 0.75)]
        row["ratio_of_minima"] = round(float(mine.min() / times[reference].min()), 3)
    return {**subject.words, "rounds": rounds, "rows": rows, "environment": environment(threads=1)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures, to see that it runs")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path, default=WORK / "runtimes.json", metavar="FILE")
    options = parser.parse_args()
    try:
        found = compared(options.quick, options.rounds)
    except PocketfitError as error:
        print(f"runtimes: {error}", file=sys.stderr)
        return 2
    options.json.write_text(json.dumps(found, indent=1))
    print("| runtime | file | MB | SQNR | same answer | ms | ratio to ONNX Runtime's float32 (quartiles; minima) |")
    print("|---|---|---|---|---|---|---|")
    for row in found["rows"]:
        low, middle, high = row["ratio"]
        print(
            f"| {row['runtime']} | {row['file']} | {row['bytes'] / 1e6:.2f} | {row['sqnr_db']} dB |"
            f" {row['agreement']:.1%} | {row['latency_ms']} | {middle} [{low}, {high}]; {row['ratio_of_minima']} |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
