"""Made-up trials, records and tasks for the tests of the search. The figures are fixtures, not measurements."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import replace
from typing import Any

from pocketfit.core.artifact import Artifact
from pocketfit.core.budget import Budget
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.train import Train
from pocketfit.core.trial import Trial
from pocketfit.search.journal import Line
from pocketfit.search.propose.space import Proposal, Space

SIZE, LATENCY_MS = 1_000_000, 10.0
RECIPES = (
    {"precision": "int8", "activations": "uint8"},
    {"precision": "int8"},
    {"precision": "float16"},
    {"precision": "dynamic-int8"},
)
SHARES = {"float32": 1.0, "float16": 0.5, "dynamic-int8": 0.29, "int8": 0.3}
SPEEDS = {"float32": 1.0, "float16": 1.0, "dynamic-int8": 1.9, "int8": 0.55}


def trial(
    number: int,
    *,
    size: float = 0.3,
    latency: float = 0.5,
    drop: float = 0.2,
    spread: float = 0.02,
    sure: float = 0.1,
    stage: str = "recipe",
    passes: tuple[PassSettings, ...] = (),
    memory: float | None = 20e6,
    disturbed: tuple[str, ...] = (),
    **settings: Any,
) -> Trial:
    """size, latency: ratios to the baseline; spread: of latency's interval; sure: from a drop to its bound;
    disturbed: what ran beside the timing."""
    settings = {"runtime": "litert", **settings}
    plan = Plan(passes, ExportSettings(**settings))
    exact = stage == "baseline"
    where: dict[str, Any] = {"disturbed": list(disturbed)} if disturbed else {}
    size_bytes, ms = SIZE * size, LATENCY_MS * latency
    found = {
        "size_bytes": Measurement(quantity="size_bytes", unit="B", value=size_bytes),
        "download_bytes": Measurement(quantity="download_bytes", unit="B", value=size_bytes * 0.9),
        "latency_ms": Measurement(
            quantity="latency_ms", unit="ms", value=ms, low=ms * (1 - spread), high=ms * (1 + spread), environment=where
        ),
        "latency_p95_ms": Measurement(
            quantity="latency_p95_ms", unit="ms", value=2 * ms, one_sided=2.5 * ms, environment=where
        ),
        "latency_ratio": Measurement(
            quantity="latency_ratio",
            unit="x",
            value=latency,
            low=latency * (1 if exact else 1 - spread),
            high=latency * (1 if exact else 1 + spread),
            environment=where,
        ),
        "memory_bytes": Measurement.not_possible("memory_bytes", "B", "there is no /proc here")
        if memory is None
        else Measurement(quantity="memory_bytes", unit="B", value=memory),
        "accuracy": Measurement(quantity="accuracy", unit="", value=0.9 - drop / 100, n=1000),
        "drop_points": Measurement(
            quantity="drop_points",
            unit="pt",
            value=drop,
            n=1000,
            low=drop - 0.5,
            high=drop + 0.5,
            one_sided=drop + sure,
        ),
    }
    sha256 = hashlib.sha256(f"{number}".encode()).hexdigest()
    artifact = Artifact(
        path=f"models/{plan.file_stem}",
        sha256=sha256,
        bytes=round(size_bytes),
        download_bytes=round(size_bytes * 0.9),
        runtime=plan.export.runtime,
        plan=plan,
    )
    details = {"notes": [], "findings": []}
    return Trial(
        number=number,
        stage=stage,
        plan=plan,
        status="ok",
        artifact=artifact,
        measurements=found,
        seconds=1.5,
        details=details,
    )  # type: ignore[arg-type]


def baseline(number: int = 0, runtime: str = "litert") -> Trial:
    return trial(number, size=1.0, latency=1.0, drop=0.0, sure=0.0, stage="baseline", runtime=runtime)


def failed(number: int, stage: str = "recipe", **settings: Any) -> Trial:
    whole = trial(number, stage=stage, **settings)
    return replace(
        whole, status="failed", artifact=None, measurements={}, details={}, error="It died.", log_tail="a\nb"
    )


def budget(**words: Any) -> Budget:
    return Budget.parse(**words)


def space(runtimes: tuple[str, ...] = ("litert",), **settings: Any) -> Space:
    default: dict[str, Any] = {
        "runtimes": runtimes,
        "baselines": {r: ExportSettings(r) for r in runtimes},
        "recipes": {r: tuple(ExportSettings(r, **recipe) for recipe in RECIPES) for r in runtimes},  # type: ignore[arg-type]
        "ends": ("stem", "head"),
        "height": 32,
        "width": 32,
        "keep_resolution": False,
        "train": Train(50),
        "short_steps": 50,
        "long_steps": 200,
    }
    return Space(**{**default, **settings})


SAVED_BY = {Equalize: 0.7, Round: 0.6, QuantTrain: 0.4}  # what these leave of what int8 loses


def tried(proposal: Proposal, number: int, *, int8_drop: float = 0.2) -> Trial:
    """What a network that behaves as networks do would measure for a proposal: a function of the plan alone."""
    plan, export = proposal.plan, proposal.plan.export
    ratio = next((p.ratio for p in plan.passes if hasattr(p, "ratio")), 0.0)
    steps = sum(p.steps for p in plan.passes if isinstance(p, Train))
    mixed = 0.05 if export.keep_float else 0.0
    lost = 0.1
    if export.precision == "int8":
        lost = int8_drop * (0.8 if export.ranges == "mse" else 1.0) * (4 if export.weights == "int4" else 1)
        lost *= math.prod(SAVED_BY.get(type(p), 1.0) for p in plan.passes) * (0.25 if mixed else 1.0)
    size = SHARES[export.precision] * (0.6 if export.weights == "int4" else 1.0) + mixed
    return trial(
        number,
        size=size * (1 - ratio) ** 1.7,
        latency=(SPEEDS[export.precision] + mixed) * (1 - ratio) * (0.9 if export.activations == "uint8" else 1.0),
        drop=0.0 if proposal.stage == "baseline" else lost + (8 * ratio / max(1, steps / 50)),
        stage=proposal.stage,
        passes=plan.passes,
        **vars(export),
    )


def verdict(
    chosen: Trial,
    *,
    drop: float = 0.3,
    sure: float = 0.2,
    reading: int = 1,
    disturbed: tuple[str, ...] = (),
    baseline_ms: float = LATENCY_MS,
    best_ms: float = LATENCY_MS,
) -> Line:
    """disturbed: what ran beside the timing; best_ms: the baseline's at its best in the run."""
    where = {"disturbed": list(disturbed)} if disturbed else {}
    told = {"best_ms": {"baseline": best_ms}, **where}
    reference = Measurement(
        quantity="latency_ms", unit="ms", value=baseline_ms, low=baseline_ms * 0.98, environment=told
    )
    bounds = {"low": drop - 0.4, "high": drop + 0.4}
    return {
        "kind": "verdict",
        "reading": reading,
        "trial": chosen.number,
        "baseline": 0,
        "metric": "accuracy",
        "n": 3000,
        "before": 0.9,
        "after": 0.9 - drop / 100,
        "measurements": {
            "latency_ratio": Measurement(
                quantity="latency_ratio", unit="x", value=0.5, low=0.45, high=0.55, environment=where
            ).to_json(),
            "drop_points": Measurement(
                quantity="drop_points", unit="pt", value=drop, n=3000, one_sided=drop + sure, **bounds
            ).to_json(),
        },
        "baseline_measurements": {
            "accuracy": Measurement(quantity="accuracy", unit="", value=0.9, n=3000).to_json(),
            "latency_ms": reference.to_json(),
        },
    }


def start(limits: Budget) -> Line:
    return {"kind": "start", "inputs": {"model": "net", "metric": "accuracy"}, "budget": limits.to_json()}


def line(made: Trial) -> Line:
    """As it is read back: JSON knows no tuples."""
    read: Line = json.loads(json.dumps({"kind": "trial", **made.to_json()}))
    return read
