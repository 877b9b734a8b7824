"""How much noise each layer adds on the grid of a runtime's file: computed once a runtime, kept in the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pocketfit.core.errors import PocketfitError
from pocketfit.core.plan.plan import Plan
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Trial
from pocketfit.search.journal import Record
from pocketfit.search.propose.quantization_ladder import REPAIRS, layers_in_float
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.job import Job

if TYPE_CHECKING:
    from pocketfit.analysis.quantization.sensitivity import Sensitivity

CAUSES = 5  # layers whose cause is put into words
JUDGED_PLAIN = 4  # samples for the plain network's table: the report shows it, nothing is decided by it


def sensitivity_line(job: Job, plan: Plan, watch: Watch, files: tuple[Trial, Trial] | None = None) -> dict[str, Any]:
    """The journal's "sensitivity" line, estimated in torch.

    files    the trials (float32, this plan's) whose files are timed layer by layer

    The line has
    rows     one for each layer with weights of the plan's network: its share of the noise in the logits, the SQNR with
             only its weights and with only its tensor on the grid (dB, null: no noise), how far its widest channel
             stands out, why it adds noise, and, where all layers could be timed, how many microseconds it takes more in
             float
    untimed  why the rows have no such times
    plain    the same rows for the network without repairs, whose culprits the report names
    error    why there are no rows
    """
    export = plan.export
    line: dict[str, Any] = {"kind": "sensitivity", "runtime": export.runtime, "weights": export.weights}
    line |= {"plan": plan.code, "rows": []}
    before = Plan(tuple(p for p in plan.passes if p not in REPAIRS), replace(export, ranges="min-max"))
    try:
        line |= _table(job, plan, watch, None)
        if export.weights != "int4":
            line["plain"] = {"plan": before.code, **_table(job, before, watch, JUDGED_PLAIN)}
    except PocketfitError as error:
        return {**line, "error": str(error)}
    if files is not None and export.weights != "int4":
        times, line["untimed"] = _more_us(job, files, [row["layer"] for row in line["rows"]], watch)
        for row in line["rows"] if times else ():
            row["more_us"] = times[row["layer"]]
    return line


def sensitive_layers(record: Record, macs: Mapping[str, int]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """By runtime, the sets of layers that mixed precision leaves in float; only runtimes with a line in the record."""
    return {
        runtime: sets_in_float(line, macs) for (runtime, four_bits), line in record.sensitivity.items() if not four_bits
    }


def sets_in_float(line: Mapping[str, Any], macs: Mapping[str, int]) -> tuple[tuple[str, ...], ...]:
    """Ever larger sets of layers, chosen by the times in the line, or else by multiply-accumulates."""
    rows = line["rows"]
    timed = all("more_us" in row for row in rows)
    costs = {row["layer"]: max(0.0, row["more_us"]) for row in rows} if timed else macs
    return layers_in_float({row["layer"]: row["share"] for row in rows}, costs)


def sensitive_to_four_bits(record: Record, params: Mapping[str, int]) -> dict[str, dict[str, tuple[float, float]]]:
    """By runtime and layer with 4-bit weights, its share of their noise, and the bytes that 8 bits take more."""
    return {
        runtime: {row["layer"]: (row["share"], params[row["layer"]] / 2) for row in line["rows"] if row["bits"] == 4}
        for (runtime, four_bits), line in record.sensitivity.items()
        if four_bits
    }


def _more_us(job: Job, files: tuple[Trial, Trial], layers: list[str], watch: Watch) -> tuple[dict[str, float], str]:
    """(the microseconds that each layer takes more in the first file than in the second, ""), or ({}, the reason) where
    not all layers can be timed."""
    from pocketfit.search.run.verdict.layer_report import layer_times

    watch.step("timing the layers")
    sides = []
    for trial in files:
        times, reason = layer_times(job, trial)
        if reason or any(layer not in times for layer in layers):
            missing = sum(layer not in times for layer in layers)
            return {}, reason or f"{missing} of {len(layers)} layers have no operator of their own in {trial.plan.code}"
        sides.append(times)
    return {layer: round(sides[0][layer] - sides[1][layer], 2) for layer in layers}, ""


def _table(job: Job, plan: Plan, watch: Watch, judged: int | None) -> dict[str, Any]:
    from pocketfit.analysis.quantization.sensitivity import JUDGED, sensitivity

    assert plan.export.grid is not None
    model = carried_out(job, plan, watch)
    samples = job.samples("calibration", model.preprocess, watch, limit=plan.export.calibration)
    tick = watch.step("looking for the layers that cost most")
    ranges, most = plan.export.range_method, judged or JUDGED
    return _rows(sensitivity(model, plan.export.grid, samples, most=most, ranges=ranges, progress=tick))


def _rows(found: Sensitivity) -> dict[str, Any]:
    from pocketfit.analysis.quantization.culprits import culprits
    from pocketfit.analysis.quantization.sensitivity import without_infinities

    why = {one.layer: one.cause for one in culprits(found.layers, CAUSES)}
    rows = []
    for row in found.layers:
        if row.weight_bits is None:
            continue
        told: dict[str, Any] = {"layer": row.layer, "bits": row.weight_bits, "share": row.share}
        told |= {"weights_db": row.weights_db}
        told |= {} if row.activations_db is None else {"activations_db": row.activations_db}
        told |= {} if row.outputs is None else {"widest": row.outputs.times}
        rows.append(told | ({"cause": why[row.layer]} if row.layer in why else {}))
    known: dict[str, Any] = without_infinities({"whole_db": found.whole_db, "judged": found.judged, "rows": rows})
    return known
