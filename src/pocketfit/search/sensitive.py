"""Which layers cost how much on the grid of a runtime's file: asked once a runtime, and kept in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan import Plan
from pocketfit.core.watch import Watch
from pocketfit.search.carry import carried_out
from pocketfit.search.journal import Record
from pocketfit.search.ladder import layers_in_float
from pocketfit.search.task import Task


def sensitivity_line(task: Task, plan: Plan, watch: Watch) -> dict[str, Any]:
    """The journal's "sensitivity" line: the share of the noise that each layer with weights puts into the answers of
    this plan's network, estimated in torch. Where that cannot be done it has no rows, and says why."""
    from pocketfit.analysis.sensitivity import sensitivity

    line: dict[str, Any] = {"kind": "sensitivity", "runtime": plan.export.runtime, "plan": plan.code, "rows": []}
    assert plan.export.grid is not None
    try:
        model = carried_out(task, plan, watch)
        samples = task.samples("calibration", model.preprocess, watch, limit=plan.export.calibration)
        tick = watch.step("looking for the layers that cost most")
        found = sensitivity(model, plan.export.grid, samples, ranges=plan.export.range_method, progress=tick)
    except PocketfitError as error:
        return {**line, "error": str(error)}
    rows = [{"layer": row.layer, "share": row.share} for row in found.layers if row.weight_bits is not None]
    return {**line, "rows": rows}


def sensitive_layers(record: Record, macs: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """By runtime, the layers that mixed precision leaves in float; only runtimes that were asked about."""
    return {
        runtime: layers_in_float({row["layer"]: row["share"] for row in line["rows"]}, macs)
        for runtime, line in record.sensitivity.items()
    }
