"""What zero points of 0, which TensorRT asks for, cost a network: fidelity of int8 files in ONNX Runtime.

    python -m benchmarks.runtimes.symmetric [--quick]

MobileNetV2 with published ImageNet weights; fidelity to its float32 file on 608 pictures of 38 photos that calibration
has not seen. No passes: the files are what ranges alone give.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from benchmarks.quantization.compare import SUBJECTS, Subject
from pocketfit import runtimes
from pocketfit.analysis.accelerators.tensorrt_rules import breaches
from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.numerics.sqnr import sqnr_db

FLOAT = ExportSettings("onnxruntime")
FILES = {
    "S8S8": ExportSettings("onnxruntime", "int8"),
    "S8S8, ranges by mse": ExportSettings("onnxruntime", "int8", ranges="mse"),
    "symmetric": ExportSettings("onnxruntime", "int8", symmetric=True),
    "symmetric, ranges by mse": ExportSettings("onnxruntime", "int8", symmetric=True, ranges="mse"),
}
ROWS = 16


def answers(subject: Subject, settings: ExportSettings, folder: Path) -> tuple[np.ndarray, int]:
    """(outputs [n, 1000] of the file in ONNX Runtime, how many of its nodes break a rule of TensorRT)."""
    runtime = runtimes.get("onnxruntime")
    path = folder / f"{settings.code}.onnx"
    runtime.export(subject.model, Plan((), settings), subject.given.calibration, path, work=folder)
    session = runtime.load(path, threads=1)
    given, output = session.signature.inputs[0].name, session.signature.outputs[0].name
    starts = range(0, len(subject.judged), ROWS)
    found = [session.run({given: subject.judged.inputs(slice(i, i + ROWS))})[output] for i in starts]
    session.close()
    return np.concatenate(found), len(breaches(path))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few pictures: to see that it runs")
    subject = SUBJECTS["mobilenet_v2"](100, parser.parse_args().quick)
    print(f"{subject.title}; judged on {subject.words['judged_on'].split(';')[0]}\n")
    print("| file | SQNR | same answer | nodes that break a rule |\n| --- | --- | --- | --- |")
    try:
        with temporary_folder() as folder:
            exact, _ = answers(subject, FLOAT, Path(folder))
            for words, settings in FILES.items():
                outputs, broken = answers(subject, settings, Path(folder))
                same = (exact.argmax(1) == outputs.argmax(1)).mean()
                print(f"| {words} | {sqnr_db(exact, outputs):.1f} dB | {same:.1%} | {broken} |", flush=True)
    except PocketfitError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
