"""A run in which plain int8 lost too much and the ladder was climbed, with made-up figures: a network of 18 layers.

The figures are fixtures, not measurements: nothing outside the tests may quote them.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.trial import Trial
from tests.report.run import sample_run

Line = dict[str, Any]
LAYERS = (*(f"features.{i}.conv.{i % 3}" for i in range(17)), "classifier.1")
KEPT = ("features.1.conv.1", "features.3.conv.0")
CHOSEN, FAILED = 8, 9
BOTH, INT8 = (Equalize(), Round()), {"precision": "int8"}
MSE = {**INT8, "ranges": "mse"}
UINT8 = {"precision": "int8", "activations": "uint8"}
#        stage, runtime, passes, export settings, size as a ratio, latency as a ratio, drop in points
SPECS: tuple[tuple[str, str, tuple[PassSettings, ...], dict[str, Any], float, float, float], ...] = (
    ("baseline", "litert", (), {}, 1.0, 1.0, 0.0),
    ("baseline", "onnxruntime", (), {}, 1.0, 1.0, 0.0),
    ("recipe", "litert", (), INT8, 0.29, 0.42, 6.4),
    ("recipe", "onnxruntime", (), UINT8, 0.3, 0.61, 0.7),
    ("recipe", "litert", (), {"precision": "float16"}, 0.5, 1.0, 0.0),
    ("ladder", "litert", (), MSE, 0.29, 0.42, 5.9),
    ("ladder", "litert", BOTH, MSE, 0.29, 0.43, 1.9),
    ("ladder", "litert", BOTH, {**MSE, "keep_float": KEPT[:1]}, 0.31, 0.46, 1.3),
    ("ladder", "litert", BOTH, {**MSE, "keep_float": KEPT}, 0.33, 0.5, 0.6),
    ("ladder", "litert", (*BOTH, QuantTrain(300)), MSE, 0.29, 0.43, 0.8),
)


def trials() -> list[Trial]:
    return [_trial(number) for number in range(len(SPECS))]


def _trial(number: int) -> Trial:
    stage, runtime, passes, settings, size, latency, drop = SPECS[number]
    plan = Plan(passes, ExportSettings(runtime, **settings))
    if number == FAILED:
        return Trial(number=number, stage=stage, plan=plan, status="failed", error="Training gave NaN", seconds=40.0)  # type: ignore[arg-type]
    n_bytes = round(sample_run.SIZES["litert"] * size)
    found = [
        Measurement(quantity="size_bytes", unit="B", value=n_bytes),
        Measurement(quantity="latency_ms", unit="ms", value=6.2 * latency, low=6 * latency, high=6.4 * latency),
        Measurement(quantity="latency_ratio", unit="x", value=latency, low=latency - 0.01, high=latency + 0.01),
        Measurement(quantity="accuracy", unit="", value=0.931 - drop / 100, n=3000),
        Measurement(quantity="drop_points", unit="pt", value=drop, n=3000, low=drop - 0.6, high=drop + 0.6),
    ]
    artifact = Artifact(
        path=f"models/{plan.file_stem}",
        sha256=f"{number:064x}",
        bytes=n_bytes,
        download_bytes=n_bytes,
        runtime=runtime,
        plan=plan,
    )
    measured = {one.quantity: one for one in found}
    return Trial(
        number=number, stage=stage, plan=plan, status="ok", artifact=artifact, measurements=measured, seconds=21.0
    )  # type: ignore[arg-type]


def sensitivity_line() -> Line:
    """As search/run/layer_sensitivity.py writes it."""
    before = [_row(name, 0.41 if name == KEPT[0] else 0.59 / len(LAYERS), 8.0) for name in LAYERS]
    after = [_row(name, (i % 5 + 1) / 60, 21.0) for i, name in enumerate(LAYERS)]
    before[1] |= {"widest": 96.4, "cause": "one of its 16 channels has 96 times the median range"}
    after[16] |= {"cause": "its weights alone leave 30.2 dB, its tensor 33.0"}
    after[3]["weights_db"] = None
    rows = {"whole_db": 18.6, "judged": 16, "rows": after}
    plain = {"plan": "wi8ai8", "whole_db": 6.1, "judged": 4, "rows": before}
    code = Plan(BOTH, ExportSettings("litert", **MSE)).code
    return {"kind": "sensitivity", "runtime": "litert", "plan": code, **rows, "plain": plain}


def _row(name: str, share: float, alone_db: float) -> Line:
    return {
        "layer": name,
        "share": share,
        "weights_db": alone_db + 9.3,
        "activations_db": alone_db,
        "widest": 2.6 if alone_db < 10 else 1.9,
    }


def lines() -> list[Line]:
    made = [{"kind": "trial", **one.to_json()} for one in trials()]
    # as they are read back: JSON knows no tuples
    read: list[Line] = json.loads(json.dumps([sample_run.start_line("met"), *made, sensitivity_line()]))
    return read


def result() -> Line:
    body, made = copy.deepcopy(sample_run.result("stopped")), trials()
    body.update(baseline=sample_run.side(made[0]), chosen=sample_run.side(made[CHOSEN]), trials=len(made), limits=[])
    body["comparison"] = {
        "size_ratio": 0.33,
        "download_ratio": 0.33,
        "latency_ratio": {"value": 0.5, "low": 0.49, "high": 0.51},
        "memory_ratio": None,
        "drop": {"metric": "accuracy", "points": 0.6, "low": 0.0, "high": 1.2, "n": 3000, "split": "search"},
    }
    return body


def write(out: Path) -> Path:
    """journal.jsonl and result.json in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    (out / "result.json").write_text(json.dumps(result()))
    return out
