"""Which layers cost how much on the grid of a runtime's file: asked once a runtime, and kept in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan import Plan
from pocketfit.core.watch import Watch
from pocketfit.search.carry import carried_out
from pocketfit.search.journal import Record
from pocketfit.search.ladder import REPAIRS, layers_in_float
from pocketfit.search.task import Task

if TYPE_CHECKING:
    from pocketfit.analysis.sensitivity import Sensitivity

CAUSES = 5  # layers whose cause is put into words
JUDGED_PLAIN = 4  # samples: nothing is decided on the plain network's table, the report shows it


def sensitivity_line(task: Task, plan: Plan, watch: Watch) -> dict[str, Any]:
    """The journal's "sensitivity" line, estimated in torch.

    rows   of the plan's network: for each layer with weights its share of the noise in the answers, what its weights
           and its tensor alone leave (dB, null: no noise), how far its widest channel stands out, and why it costs
    plain  the same of the network without repairs, whose culprits the report names
    Where that cannot be done there are no rows, and `error` says why.
    """
    line: dict[str, Any] = {"kind": "sensitivity", "runtime": plan.export.runtime, "plan": plan.code, "rows": []}
    before = Plan(tuple(p for p in plan.passes if p not in REPAIRS), replace(plan.export, ranges="min-max"))
    try:
        after = _table(task, plan, watch, None)
        return {**line, **after, "plain": {"plan": before.code, **_table(task, before, watch, JUDGED_PLAIN)}}
    except PocketfitError as error:
        return {**line, "error": str(error)}


def sensitive_layers(record: Record, macs: Mapping[str, int]) -> dict[str, tuple[str, ...]]:
    """By runtime, the layers that mixed precision leaves in float; only runtimes that were asked about."""
    return {
        runtime: layers_in_float({row["layer"]: row["share"] for row in line["rows"]}, macs)
        for runtime, line in record.sensitivity.items()
    }


def _table(task: Task, plan: Plan, watch: Watch, judged: int | None) -> dict[str, Any]:
    from pocketfit.analysis.sensitivity import JUDGED, sensitivity

    assert plan.export.grid is not None
    model = carried_out(task, plan, watch)
    samples = task.samples("calibration", model.preprocess, watch, limit=plan.export.calibration)
    tick = watch.step("looking for the layers that cost most")
    ranges, most = plan.export.range_method, judged or JUDGED
    return _rows(sensitivity(model, plan.export.grid, samples, most=most, ranges=ranges, progress=tick))


def _rows(found: Sensitivity) -> dict[str, Any]:
    from pocketfit.analysis.culprit import culprits
    from pocketfit.analysis.sensitivity import without_infinities

    why = {one.layer: one.cause for one in culprits(found.layers, CAUSES)}
    rows = []
    for row in found.layers:
        if row.weight_bits is None:
            continue
        told: dict[str, Any] = {"layer": row.layer, "share": row.share, "weights_db": row.weights_db}
        told |= {} if row.activations_db is None else {"activations_db": row.activations_db}
        told |= {} if row.outputs is None else {"widest": row.outputs.times}
        rows.append(told | ({"cause": why[row.layer]} if row.layer in why else {}))
    known: dict[str, Any] = without_infinities({"whole_db": found.whole_db, "judged": found.judged, "rows": rows})
    return known
