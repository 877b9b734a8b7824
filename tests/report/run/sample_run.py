"""An output folder as `pocketfit fit` leaves it, with made-up figures: 14 trials over two runtimes, some failed.

The figures are fixtures, not measurements: nothing outside the tests may quote them.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pocketfit.core.artifact import Artifact
from pocketfit.core.budget import Budget
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial

Line = dict[str, Any]
Variant = Literal["met", "uncertified", "infeasible", "stopped", "empty"]
LABELS = (
    "Coat",
    "Shirt",
    "Sneaker",
    "Pullover",
    "Bag",
    "Boot",
    "Dress",
    "Sandal",
    "T-shirt",
    "<script>alert('x')</script>",
)
SIZES = {"litert": 8_950_000, "onnxruntime": 9_030_000}
#        runtime, passes, export settings, size as a ratio, latency as a ratio, drop in points
SPECS: tuple[tuple[str, tuple[Any, ...], dict[str, Any], float, float, float], ...] = (
    ("litert", (), {}, 1.0, 1.0, 0.0),
    ("onnxruntime", (), {}, 1.0, 1.0, 0.0),
    ("litert", (), {"precision": "float16"}, 0.51, 1.01, 0.0),
    ("litert", (), {"precision": "dynamic-int8"}, 0.27, 1.93, 0.12),
    ("litert", (), {"precision": "int8"}, 0.31, 0.54, 0.7),
    ("onnxruntime", (), {"precision": "int8"}, 0.32, 0.92, 0.65),
    ("onnxruntime", (), {"precision": "int8", "activations": "uint8"}, 0.32, 0.57, 0.5),
    ("litert", (Prune(0.3), Train(200)), {"precision": "int8"}, 0.21, 0.36, 1.6),
    ("litert", (Prune(0.5), Train(200)), {"precision": "int8"}, 0.13, 0.24, 3.9),
    ("onnxruntime", (Prune(0.3), Train(200)), {"precision": "int8", "activations": "uint8"}, 0.22, 0.4, 1.4),
    ("litert", (Prune(0.3), Resolution(24, 24)), {"precision": "int8"}, 0.21, 0.28, 41.0),
    ("onnxruntime", (), {"precision": "dynamic-int8"}, 0.28, 1.4, 0.2),
    ("litert", (Prune(0.3), Train(200), Train(800)), {"precision": "int8"}, 0.212, 0.34, 0.3),
    (
        "litert",
        (Prune(0.3), Train(200), Train(800)),
        {"precision": "int8", "keep_float": ("features.0.0",)},
        0.22,
        0.37,
        0.2,
    ),
)
CHOSEN, FAILED = 12, (2, 11)


def budget(variant: Variant = "met") -> Budget:
    size = "0.05x" if variant == "infeasible" else "3MB"
    return Budget.parse(
        max_size=size, max_latency="0.6x", max_drop="1pt", max_memory="40MB", max_time="10min", max_trials=14
    )


def trials(*, memory_possible: bool = True) -> list[Trial]:
    return [_trial(number, memory_possible) for number in range(len(SPECS))]


def _trial(number: int, memory_possible: bool) -> Trial:
    runtime, passes, settings, size, latency, drop = SPECS[number]
    plan = Plan(passes, ExportSettings(runtime, **settings))
    stage = "baseline" if number < 2 else "recipe" if not passes else "finalist" if len(passes) == 3 else "pruned"
    if number in FAILED:
        log = "Traceback (most recent call last):\n  <module>\nRuntimeError: op HARD_SWISH & friends <not supported>"
        return Trial(
            number=number,
            stage=stage,
            plan=plan,
            status="failed",
            error="The converter died with exit status -11",
            log_tail=log,
            seconds=12.5,
        )
    whole = SIZES[runtime]
    n_bytes = round(whole * size)
    ms = 6.2 * latency
    bounds = {"low": drop - 0.6, "high": drop + 0.6} if number > 1 else {}
    memory = (
        Measurement(quantity="memory_bytes", unit="B", value=38_000_000 - 20_000_000 * (1 - size), n=3)
        if memory_possible
        else Measurement.not_possible("memory_bytes", "B", "this system has no /proc, so peak memory cannot be read")
    )
    measurements = {
        "size_bytes": Measurement(quantity="size_bytes", unit="B", value=n_bytes),
        "download_bytes": Measurement(quantity="download_bytes", unit="B", value=round(n_bytes * 0.91)),
        "latency_ms": Measurement(quantity="latency_ms", unit="ms", value=ms, n=200, low=ms * 0.97, high=ms * 1.04),
        "latency_p95_ms": Measurement(quantity="latency_p95_ms", unit="ms", value=ms * 1.2, n=200),
        "latency_ratio": Measurement(
            quantity="latency_ratio", unit="x", value=latency, n=200, low=latency * 0.97, high=latency * 1.03
        ),
        "cold_start_ms": Measurement(quantity="cold_start_ms", unit="ms", value=18 + 20 * size, n=5),
        "memory_bytes": memory,
        "accuracy": Measurement(quantity="accuracy", unit="", value=0.931 - drop / 100, n=3000),
        "drop_points": Measurement(quantity="drop_points", unit="pt", value=drop, n=3000, **bounds),
    }
    artifact = Artifact(
        path=f"models/{plan.file_stem}.tflite",
        sha256=f"{number:064x}",
        bytes=n_bytes,
        download_bytes=round(n_bytes * 0.91),
        runtime=runtime,
        plan=plan,
    )
    return Trial(
        number=number,
        stage=stage,
        plan=plan,
        status="ok",
        artifact=artifact,
        measurements=measurements,
        seconds=20 + 3.7 * number,
    )


def picture(seed: int) -> str:
    """A 28 x 28 grey silhouette as a data URI."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:28, 0:28]
    width = 5 + 3 * np.sin(rows / rng.uniform(3, 7) + rng.uniform(0, 6)) + rng.uniform(0, 4)
    shade = np.where(abs(columns - 13.5) < width, 150 + 60 * np.sin(columns / 2), 0) * ((rows > 3) & (rows < 25))
    buffer = io.BytesIO()
    Image.fromarray(shade.astype(np.uint8)).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def verdict_line() -> Line:
    classes = [
        {"label": label, "n": 1000, "before": 0.85 + i / 100, "after": 0.85 + i / 100 + (i - 3) / 250}
        for i, label in enumerate(LABELS)
    ]
    pictures = [
        {
            "name": f"test/{i}",
            "label": LABELS[i % 10],
            "before": LABELS[(i + i % 3) % 10],
            "after": LABELS[(i + 1 - i % 2) % 10],
            "picture": picture(i),
        }
        for i in range(13)
    ]
    return {
        "kind": "verdict",
        "reading": 1,
        "trial": CHOSEN,
        "baseline": 0,
        "metric": "accuracy",
        "n": 10000,
        "before": 0.931,
        "after": 0.929,
        "drop": {"points": 0.2, "low": -0.1, "high": 0.5, "upper_one_sided": 0.45},
        "latency_ratio": {
            **Measurement(quantity="latency_ratio", unit="x", value=0.34, n=400, low=0.33, high=0.36).to_json(),
            "environment": {"between_sessions": 0.012, "within_sessions": 0.004},
        },
        "measurements": {
            "accuracy": Measurement(quantity="accuracy", unit="", value=0.929, n=10000).to_json(),
            "drop_points": Measurement(
                quantity="drop_points", unit="pt", value=0.2, n=10000, low=-0.1, high=0.5, one_sided=0.45
            ).to_json(),
        },
        "baseline_measurements": {
            "accuracy": Measurement(quantity="accuracy", unit="", value=0.931, n=10000).to_json()
        },
        "per_class": classes,
        "disagreements": [p for p in pictures if p["before"] != p["after"]],
    }


def layers_line(count: int = 24) -> Line:
    rows = []
    for i in range(count):
        kind = "Linear" if i == count - 1 else "Conv2d"
        macs, size, channels = 4_000_000 - 120_000 * i, 20_000 + 9_000 * i, 32 + 16 * i
        kept = channels if i in (0, count - 1) else round(channels * 0.7 / 8) * 8
        rows.append(
            {
                "name": "classifier.1" if kind == "Linear" else f"features.{i}.conv.0.0",
                "type": kind,
                "macs_before": macs,
                "macs": round(macs * (kept / channels) ** 2),
                "bytes_before": size * 4,
                "bytes": round(size * kept / channels),
                "channels_before": channels,
                "channels": kept,
                "dtype": "int8",
                "time_us_before": None if i == 3 else 310.0 - 7 * i,
                "time_us": None if i == 3 else 120.0 - 3 * i,
                "ran_on": "XNNPACK qs8-gemm",
                "why": "first layer: protected"
                if i == 0
                else ""
                if kept == channels
                else f"pruned {round(100 * (1 - kept / channels))} %",
            }
        )
    return {
        "kind": "layers",
        "trial": CHOSEN,
        "rows": rows,
        "not_possible": ["per-operator times of one layer: <it> was fused"],
    }


def start_line(variant: Variant) -> Line:
    return {
        "kind": "start",
        "pocketfit": "0.1.0",
        "time": "2026-11-22T09:30:00Z",
        "inputs": {
            "model": "mobilenet_v2",
            "model_sha256": "ab" * 32,
            "data": "photos",
            "limits": budget(variant).to_json(),
            "data_sha256": "cd" * 32,
            "labels": list(LABELS),
            "preprocess": {"resize": 32, "mean": [0.5, 0.5, 0.5]},
            "runtimes": ["litert", "onnxruntime"],
            "metric": "accuracy",
            "splits": {"train": 42000, "calibration": 3000, "search": 15000, "verdict": 10000},
        },
        "budget": budget(variant).to_json(),
        "environment": {
            "cpu": "Some CPU",
            "isa": ["avx2", "avx512_vnni"],
            "threads": 1,
            "memory_bytes": 25_276_502_016,
            "versions": {"torch": "2.13.0", "ai-edge-litert": "2.3.0"},
        },
        "findings": ["2 images could not be read and were left out: photos/Bag/7.png, photos/Bag/9.png."],
    }


def lines(variant: Variant = "met", *, memory_possible: bool = True) -> list[Line]:
    found: list[Line] = [start_line(variant)]
    if variant == "empty":
        return found
    found += [{"kind": "trial", **t.to_json()} for t in trials(memory_possible=memory_possible)]
    found += [{"kind": "time", "seconds": 123.4}, {"kind": "time", "seconds": 301.0}, {"kind": "something new", "x": 1}]
    if variant != "stopped":
        found += [{"kind": "reading", "trial": CHOSEN}, layers_line(), verdict_line()]
    return found


def result(variant: Variant = "met", *, memory_possible: bool = True) -> Line:
    made = trials(memory_possible=memory_possible)
    checked = {"size": (2.0e6, "B"), "memory": (2.2e7, "B"), "latency": (0.34, "x"), "drop": (0.2, "pt")}
    limits = []
    for limit in budget(variant).limits:
        value, unit = checked[limit.quantity]
        known = memory_possible or limit.quantity != "memory"
        met = known and not (variant == "infeasible" and limit.quantity == "size")
        limits.append(
            {
                "quantity": limit.quantity,
                "text": limit.text,
                "limit": limit.value,
                "value": (0.212 if limit.relative and limit.quantity == "size" else value) if known else None,
                "worst": value if known else None,
                "unit": "x" if limit.relative else unit,
                "met": met,
                "certified": met and not (variant == "uncertified" and limit.quantity == "drop"),
                "reason": "",
            }
        )
    body: Line = {
        "schema_version": 1,
        "status": {"uncertified": "met", "empty": "stopped"}.get(variant, variant),
        "certified": variant == "met",
        "budget": budget(variant).to_json(),
        "baseline": side(made[0]),
        "chosen": side(made[CHOSEN]),
        "comparison": {
            "size_ratio": 0.212,
            "download_ratio": 0.213,
            "latency_ratio": {"value": 0.34, "low": 0.33, "high": 0.36},
            "memory_ratio": 0.58 if memory_possible else None,
            "drop": {"metric": "accuracy", "points": 0.2, "low": -0.1, "high": 0.5, "n": 10000, "split": "verdict"},
        },
        "trials": len(made),
        "explanation": [
            "12 plans gave a file; 3 of them meet every limit, and this one is the fastest.",
            "Dynamic-range int8 is smaller still, but takes 1.93x the time of float32 here.",
        ],
        "limits": limits,
        "shortfall": None,
    }
    if variant == "infeasible":
        body["shortfall"] = {
            "binding": ["size"],
            "sentences": [
                "--max-size 0.05x was not reached by any plan: the nearest is prune50.200-wi8ai8 with 0.13x."
            ],
        }
    if variant == "stopped":
        body["comparison"]["drop"].update(points=0.3, low=-0.3, high=0.9, n=3000, split="search")
    if variant == "empty":
        body.update(baseline=None, chosen=None, comparison=None, trials=0, explanation=[], limits=[])
    return body


def side(trial: Trial) -> Line:
    assert trial.artifact is not None
    line, file = trial.to_json(), trial.artifact.to_json()
    artifact = {key: file[key] for key in ("path", "sha256", "bytes", "download_bytes")}
    return {
        "runtime": trial.runtime,
        "plan": line["plan"],
        "code": line["code"],
        "trial": trial.number,
        "artifact": artifact,
        "measurements": line["measurements"],
    }


def write(out: Path, variant: Variant = "met", *, memory_possible: bool = True) -> Path:
    """journal.jsonl and result.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line) + "\n" for line in lines(variant, memory_possible=memory_possible))
    (out / "journal.jsonl").write_text(text)
    (out / "result.json").write_text(json.dumps(result(variant, memory_possible=memory_possible)))
    return out
