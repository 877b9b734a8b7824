"""`pocketfit explain`: which layers cost a plain int8 file its accuracy, and what the ladder does about them.

Whole files are measured in their runtime: float, plain int8, after each of the ladder's first rungs, and with the
culprits in float. The noise of a single layer is estimated (analysis/quantization/sensitivity.py).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.analysis.quantization import culprits as culprit
from pocketfit.analysis.quantization.calibration_stability import MethodStability, stability
from pocketfit.analysis.quantization.culprits import Culprit
from pocketfit.analysis.quantization.headline import excluded, headline
from pocketfit.analysis.quantization.measured_files import Bench, Measured
from pocketfit.analysis.quantization.sensitivity import Sensitivity, sensitivity, without_infinities
from pocketfit.analysis.quantization.tensor_histograms import Histogram, histograms
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, Round
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Silent, Watch
from pocketfit.runtimes.common.calibration import check_samples

SCHEMA_VERSION = 1
MOST_CULPRITS = 3


@dataclass(frozen=True)
class Ask:
    """The file to explain: static int8 in a runtime, with weights of 8 or 4 bits, and some layers in float."""

    runtime: str = "litert"
    weight_bits: int = 8
    keep_float: tuple[str, ...] = ()
    calibration: int = 200
    threads: int = 1

    @property
    def settings(self) -> ExportSettings:
        """The runtime's first static int8 recipe with 8-bit weights, changed to 4 bits where that is asked for."""
        recipes = runtimes.get(self.runtime).recipes()
        static = next(e for e in recipes if e.precision == "int8" and e.weights == "int8")
        return replace(
            static,
            keep_float=self.keep_float,
            calibration=self.calibration,
            weights="int4" if self.weight_bits == 4 else "int8",
        )


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Everything that `explain` found.

    files        float, plain, rungs in order, then files with layers in float
    drift_db     by layer: SQNR of the deployed file's own tensor against the float file's, measured
    after        by rung, then by culprit: its only_db after that rung (estimated)
    exclude      layers that are worth leaving in float
    """

    model: str
    runtime: str
    code: str
    samples: int
    split: str
    labelled: bool
    files: tuple[Measured, ...]
    table: Sensitivity
    drift_db: dict[str, float]
    drift_note: str
    culprits: tuple[Culprit, ...]
    after: dict[str, dict[str, float]]
    exclude: tuple[str, ...]
    ranges: tuple[MethodStability, ...]
    histograms: tuple[Histogram, ...]
    headline: str
    findings: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: an infinite SQNR is null."""
        found = asdict(self)
        found["ranges"] = [one.to_json() for one in self.ranges]
        plain: dict[str, Any] = without_infinities({"schema_version": SCHEMA_VERSION, **found})
        return plain


def explain(
    model: Model,
    calibration: Samples,
    search: Samples,
    ask: Ask,
    *,
    out: Path,
    training: Samples | None = None,
    watch: Watch | None = None,
) -> Explanation:
    """Measure files, find the culprits, and explain them; `out` is a folder for the files that are made on the way.

    search    held-out samples on which all files are measured, labelled or not
    training  some of the training split, to check whether calibration samples are like them

    Raises UserError for calibration samples that can set no range, a name that is no layer's, and settings for which
    the runtime has no kernels.
    """
    watch = watch or Silent()
    settings, runtime = ask.settings, runtimes.get(ask.runtime)
    if refusals := runtime.why_not(Plan((), settings), model.signature):
        raise UserError(refusals[0])
    findings = check_samples(calibration, model.signature, settings, training)
    for sentence in findings:
        watch.say(sentence)
    if ask.keep_float:
        culprit.check_names(ask.keep_float, _layer_names(model))
    bench = Bench(model, calibration, search, ask.runtime, threads=ask.threads, out=out, watch=watch)
    exact, plain = bench.float_file(), bench.measure("plain int8", "plain", (), settings)
    drift, note = bench.drift()
    grid = settings.grid
    assert grid is not None, "static int8 has a grid"
    table = sensitivity(model, grid, calibration, progress=watch.step("one layer after another, in torch"))
    blamed = culprit.culprits(table.layers, MOST_CULPRITS)
    files, after = [exact, plain], {"plain int8": {one.layer: _only(table, one.layer) for one in blamed}}
    for name, passes in rungs():
        rung, changed = bench.rung(name, passes, replace(settings, ranges="mse"))
        files.append(rung)
        names = [one.layer for one in blamed]
        tick = watch.step(f"the guilty layers after {name}")
        again = sensitivity(changed, grid, calibration, ranges="mse", layers=names, progress=tick)
        after[name] = {layer: _only(again, layer) for layer in names if any(r.layer == layer for r in again.layers)}
    kept = [bench.kept(one.layer, one.keep_float, settings) for one in blamed if one.keep_float]
    exclude = excluded(kept, plain)
    if exclude and all(set(one.keep_float) != set(exclude) for one in kept):
        kept.append(bench.kept("", exclude, settings))
    methods = stability(model, grid, calibration, progress=watch.step("ranges over three calibration seeds"))
    watch.step("histograms of the guilty tensors")
    drawn = histograms(bench.float_path, [one.layer for one in blamed], calibration, settings, bench.work)
    files += kept
    return Explanation(
        model=model.origin.name,
        runtime=ask.runtime,
        code=settings.code,
        samples=len(search),
        split=search.split,
        labelled=bench.labelled,
        files=tuple(files),
        table=table,
        drift_db=drift,
        drift_note=note,
        culprits=blamed,
        after=after,
        exclude=exclude,
        ranges=methods,
        histograms=drawn,
        headline=headline(blamed, files),
        findings=tuple(dict.fromkeys((*model.findings, *findings, *bench.findings))),
    )


def rungs() -> tuple[tuple[str, tuple[PassSettings, ...]], ...]:
    """The ladder's first rungs, those without training, each with ranges by least squared error."""
    return (
        ("ranges by least squared error", ()),
        ("equalization", (Equalize(),)),
        ("equalization and learned rounding", (Equalize(), Round())),
    )


def _only(table: Sensitivity, layer: str) -> float:
    return next(row.only_db for row in table.layers if row.layer == layer)


def _layer_names(model: Model) -> list[str]:
    from pocketfit.analysis.layer_table import layer_table

    return [row.name for row in layer_table(model) if row.macs]
