"""What zeros gain: size, download and latency of a network at several sparsities, in both runtimes.

    python -m benchmarks.pruning.sparsity [--model mobilenet_v2] [--weights .downloads/mobilenet_v2.pth]
                                           [--int8] [--sessions 6] [--json FILE] [--work FOLDER]

Each file is timed against the dense file of its own runtime, all of them interleaved in the same processes. Nothing is
trained after the weights are set to zero: sizes and latencies don't depend on that, and accuracy is not looked at.
`--int8` adds static int8 files (calibrated on noise: the ranges don't change what is timed).
`--work` keeps the float32 files, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pocketfit import runtimes
from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Precision
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.samples import Samples
from pocketfit.measurement import latency
from pocketfit.measurement.environment import environment
from pocketfit.passes.prune import sparsify
from pocketfit.sources.models.open_model import open_model

ROOT = Path(__file__).resolve().parents[2]
TRIED = (None, Sparsify(0.5), Sparsify(0.8), Sparsify(0.9), Sparsify(pattern="2:4"))
RUNTIMES = ("litert", "onnxruntime")


@dataclass(frozen=True)
class Row:
    """A file; `zeros`: the share of all weights of convolutions and linear layers; `ratio`: None for the dense file."""

    runtime: str
    precision: str
    sparsity: str
    zeros: float
    artifact: Artifact
    ratio: Measurement | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            "runtime": self.runtime,
            "precision": self.precision,
            "sparsity": self.sparsity,
            "zeros": self.zeros,
            "bytes": self.artifact.bytes,
            "download_bytes": self.artifact.download_bytes,
            "latency_ratio": self.ratio.to_json() if self.ratio else None,
        }


def main(arguments: Sequence[str] | None = None) -> None:
    asked = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    model = open_model(asked.model, weights=asked.weights)
    precisions: list[Precision] = ["float32", "int8"] if asked.int8 else ["float32"]
    effort = latency.Effort(sessions=asked.sessions, seconds=2.0, min_rounds=8, max_rounds=200)
    rows = []
    with tempfile.TemporaryDirectory(prefix="pocketfit-") as folder:
        for runtime in RUNTIMES:
            for precision in precisions:
                files = _files(model, ExportSettings(runtime, precision), Path(folder), asked.work or Path(folder))
                rows += _timed(files, effort)
    print(table(rows))
    if asked.json:
        told = {"model": asked.model, "environment": environment(1), "rows": [row.to_json() for row in rows]}
        asked.json.write_text(json.dumps(told, indent=1) + "\n")


def _files(model: Model, settings: ExportSettings, folder: Path, work: Path) -> list[Row]:
    runtime, rows = runtimes.get(settings.runtime), []
    for wanted in TRIED:
        made = model if wanted is None else sparsify.apply(model, wanted, None)
        plan = Plan(() if wanted is None else (wanted,), settings)
        path = folder / f"{plan.file_stem}{runtime.EXTENSION}"
        artifact = runtime.export(made, plan, _noise(model) if settings.grid else None, path, work=work)
        counts = sparsify.zeros_of(made.network).values()
        zeros = sum(zero for zero, _ in counts) / sum(count for _, count in counts)
        rows.append(Row(runtime.NAME, settings.precision, wanted.code if wanted else "dense", zeros, artifact))
    return rows


def _timed(rows: list[Row], effort: latency.Effort) -> list[Row]:
    dense, *others = rows
    paths = [Path(row.artifact.path) for row in rows]
    compared = latency.compare_latency(dense.runtime, paths[0], paths[1:], effort=effort)
    return [
        dense,
        *(
            Row(row.runtime, row.precision, row.sparsity, row.zeros, row.artifact, found.ratio)
            for row, found in zip(others, compared, strict=True)
        ),
    ]


def _noise(model: Model) -> Samples:
    size = (8, model.preprocess.height, model.preprocess.width, 3)
    pixels = np.random.default_rng(0).integers(0, 256, size, np.uint8)
    return Samples(
        array=pixels,
        labels=np.full(8, -1),
        names=[""] * 8,
        split="calibration",
        sha256="noise",
        preprocess=model.preprocess,
    )


def table(rows: Sequence[Row]) -> str:
    """Markdown."""
    lines = [
        "| runtime | precision | sparsity | zeros % | MB | zipped MB | latency x dense [95 %] |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ratio = "1" if row.ratio is None else f"{row.ratio.value:.3f} [{row.ratio.low:.3f}, {row.ratio.high:.3f}]"
        lines.append(
            f"| {row.runtime} | {row.precision} | {row.sparsity} | {100 * row.zeros:.1f} |"
            f" {row.artifact.bytes / 1e6:.2f} | {row.artifact.download_bytes / 1e6:.2f} | {ratio} |"
        )
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--weights", type=Path, default=ROOT / ".downloads" / "mobilenet_v2.pth")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--sessions", type=int, default=6)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path)
    return parser


if __name__ == "__main__":
    main()
