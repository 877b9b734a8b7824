"""One plan that was tried: its file, its measurements, and whether it succeeded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pocketfit.core.artifact import Artifact
from pocketfit.core.measurement import Measurement
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.rules import Count, Seconds, shown
from pocketfit.core.support.schema import Violation, at, build

Stage = Literal["baseline", "recipe", "ladder", "pruned", "finalist", "control"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A line of the journal.

    number        order in which the trial was started; also the order of plans when measurements cannot tell them apart
    stage         "baseline", "recipe" (export only), "ladder" (with passes that make up for quantization), "pruned"
                  (trained briefly), "finalist" (trained longer), or "control" (trained as long as the chosen one and
                  not pruned: for comparison, never handed over)
    measurements  by quantity: size_bytes, download_bytes, latency_ms (p50), latency_p90_ms, latency_p95_ms,
                  latency_p99_ms, latency_ratio (against the baseline, interleaved), cold_start_ms, memory_bytes,
                  accuracy, drop_points and sqnr_db (search split; sqnr_db: of the outputs, against the baseline's)
    error         the sentence that says why it failed, with `log_tail` of the child process
    """

    number: Count
    stage: Stage
    plan: Plan
    status: Literal["ok", "failed"]
    artifact: Artifact | None = None
    measurements: Mapping[str, Measurement] = field(default_factory=dict)
    error: str = ""
    log_tail: str = ""
    seconds: Seconds = 0.0
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
        """The inverse of `to_json`, which may stand in a line of a journal. Raises Violation."""
        for key in ("plan", "artifact", "status", "measurements"):
            if key not in data:
                raise Violation("is missing", key)
        with at("plan"):
            plan = Plan.read(data["plan"])
        with at("artifact"):
            artifact = None if data["artifact"] is None else Artifact.from_json(data["artifact"], plan)
        found = build(cls, data, {"plan": plan, "artifact": artifact}, ignored=("plan", "artifact", "code", "kind"))
        if (found.status == "ok") != (artifact is not None):
            raise Violation(f"is {shown(found.status)}, and there is {'a' if artifact else 'no'} file", "status")
        if artifact is not None and artifact.runtime != plan.export.runtime:
            raise Violation(
                f"is {shown(artifact.runtime)}, and the plan is for {plan.export.runtime}", "artifact.runtime"
            )
        for quantity, measured in found.measurements.items():
            if measured.quantity != quantity:
                raise Violation(f"is {shown(measured.quantity)}", f"measurements.{quantity}.quantity")
        return found
