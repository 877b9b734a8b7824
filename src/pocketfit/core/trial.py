"""One plan tried: its file, what was measured, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan import Plan

Stage = Literal["baseline", "recipe", "ladder", "pruned", "finalist", "control"]


@dataclass(frozen=True)
class Trial:
    """A line of the journal.

    number        order in which the trial was started; also the order of plans when measurements cannot tell them apart
    stage         "baseline", "recipe" (export only), "ladder" (what makes up for quantization), "pruned" (trained
                  briefly), "finalist" (trained longer), or "control" (trained as long as the chosen one and not
                  pruned: compared with, never handed over)
    measurements  by quantity: size_bytes, download_bytes, latency_ms (p50), latency_p90_ms, latency_p95_ms,
                  latency_p99_ms, latency_ratio (against the baseline, interleaved), cold_start_ms, memory_bytes,
                  accuracy, drop_points and sqnr_db (search split; sqnr_db: of the outputs, against the baseline's)
    error         the sentence that says why it failed, with `log_tail` of the child process
    """

    number: int
    stage: Stage
    plan: Plan
    status: Literal["ok", "failed"]
    artifact: Artifact | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    error: str = ""
    log_tail: str = ""
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def runtime(self) -> str:
        return self.plan.export.runtime

    def value(self, quantity: str) -> float | None:
        """The value of a measurement, None where it was not taken."""
        measurement = self.measurements.get(quantity)
        return None if measurement is None else measurement.value

    def to_json(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "stage": self.stage,
            "code": self.plan.code,
            "plan": self.plan.to_json(),
            "status": self.status,
            "artifact": self.artifact.to_json() if self.artifact else None,
            "measurements": {name: m.to_json() for name, m in self.measurements.items()},
            "error": self.error,
            "log_tail": self.log_tail,
            "seconds": round(self.seconds, 3),
            "details": dict(self.details),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Trial:
        plan = Plan.from_json(data["plan"])
        return cls(
            data["number"],
            data["stage"],
            plan,
            data["status"],
            Artifact.from_json(data["artifact"], plan) if data["artifact"] else None,
            {name: Measurement.from_json(m) for name, m in data["measurements"].items()},
            data["error"],
            data["log_tail"],
            data["seconds"],
            data["details"],
        )
