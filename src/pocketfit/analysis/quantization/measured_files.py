"""Files of one network, each exported and measured against the float32 file of the same runtime."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit import runtimes, tasks
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.quantize import Equalize, Round
from pocketfit.core.plan.runtime_list import bytes_of
from pocketfit.core.samples import Samples
from pocketfit.core.support.progress import Watch
from pocketfit.measurement import compare_files
from pocketfit.measurement import run_samples as accuracy
from pocketfit.numerics import sqnr as numbers
from pocketfit.numerics.latency_intervals import Drop, paired_drop
from pocketfit.tasks.choose_task import metric_of

DRIFT_SAMPLES = 8


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A file, measured against the float32 file of the same runtime.

    kind     "float", "plain", "rung", "kept" (layers in float), "excluded" (all of the exclude list in float)
    drop     points lost against the float file, None without labels
    cost     for "kept" and "excluded": points that the plain file loses against this one
    gain_db  SQNR gained against the plain file
    """

    name: str
    kind: str
    code: str
    size_bytes: int
    sqnr_db: float
    agreement: float | None
    accuracy: float | None
    drop: Drop | None
    cost: Drop | None
    gain_db: float
    keep_float: tuple[str, ...] = ()
    layer: str = ""


class Bench:
    """Makes files of one network in `out`, and measures them all on the same samples, the float file first.

    labelled    whether the samples have labels, so that drops in points are known
    findings    sentences of exports and passes
    """

    def __init__(
        self,
        model: Model,
        calibration: Samples,
        search: Samples,
        runtime: str,
        *,
        threads: int,
        out: Path,
        watch: Watch,
    ) -> None:
        self.model, self.calibration, self.search, self.watch = model, calibration, search, watch
        self.name, self.runtime, self.threads = runtime, runtimes.get(runtime), threads
        self.files, self.work = out / "models", out / "cache"
        for folder in (self.files, self.work):
            folder.mkdir(parents=True, exist_ok=True)
        self.task = model.task
        self.labelled = len(search) > 0 and bool(tasks.get(model.task).has_target(search.labels).all())
        self.findings: list[str] = []
        self.float_path = self.plain_path = out
        self._exact: tuple[NDArray[np.float32], NDArray[np.float64] | None] | None = None
        self._plain: tuple[float, NDArray[np.float64] | None] | None = None

    def float_file(self) -> Measured:
        plan = Plan((), ExportSettings(self.name))
        self.float_path = self._export(self.model, plan)
        self._exact = self._answers(self.float_path, plan.code)
        scores = self._exact[1]
        mean = None if scores is None else float(scores.mean())
        size = bytes_of(self.float_path)
        return Measured(
            name="float32",
            kind="float",
            code=plan.code,
            size_bytes=size,
            sqnr_db=math.inf,
            agreement=1.0,
            accuracy=mean,
            drop=None,
            cost=None,
            gain_db=0.0,
        )

    def measure(
        self,
        name: str,
        kind: str,
        passes: tuple[PassSettings, ...],
        settings: ExportSettings,
        *,
        model: Model | None = None,
        layer: str = "",
    ) -> Measured:
        plan = Plan(passes, settings)
        path = self._export(model or self.model, plan)
        outputs, scores = self._answers(path, plan.code)
        assert self._exact is not None, "the float file is measured first"
        exact, right = self._exact
        sqnr_db = numbers.sqnr_db(exact, outputs)
        if kind == "plain":
            self.plain_path, self._plain = path, (sqnr_db, scores)
        plain_db, plain_scores = self._plain or (sqnr_db, scores)
        kept = kind in ("kept", "excluded")
        return Measured(
            name=name,
            kind=kind,
            code=plan.code,
            size_bytes=bytes_of(path),
            sqnr_db=sqnr_db,
            agreement=self._agreement(exact, outputs),
            accuracy=None if scores is None else float(scores.mean()),
            drop=None if scores is None or right is None else paired_drop(right, scores),
            cost=paired_drop(scores, plain_scores)
            if kept and scores is not None and plain_scores is not None
            else None,
            gain_db=sqnr_db - plain_db if math.isfinite(sqnr_db) else 0.0,
            keep_float=settings.keep_float if kept else (),
            layer=layer,
        )

    def rung(self, name: str, passes: tuple[PassSettings, ...], settings: ExportSettings) -> tuple[Measured, Model]:
        from pocketfit.passes.quantize import rounding
        from pocketfit.passes.quantize.equalize import equalize

        model, grid = self.model, settings.grid
        assert grid is not None
        for one in passes:
            if isinstance(one, Equalize):
                self.watch.step("equalizing channels")
                model = equalize.apply(model, one, self.calibration, grid)
            elif isinstance(one, Round):
                model = rounding.apply(model, one, self.calibration, grid, progress=self.watch.step("rounding weights"))
        self.findings += [sentence for sentence in model.findings if sentence not in self.findings]
        return self.measure(name, "rung", passes, settings, model=model), model

    def kept(self, layer: str, names: tuple[str, ...], settings: ExportSettings) -> Measured:
        """The plain file with these layers in float, to avoid the noise of `layer` ("": of all of them)."""
        kind, name = ("kept", f"{', '.join(names)} in float") if layer else ("excluded", "all of them in float")
        wanted = replace(settings, keep_float=tuple(dict.fromkeys((*settings.keep_float, *names))))
        return replace(self.measure(name, kind, (), wanted, layer=layer), keep_float=names)

    def drift(self) -> tuple[dict[str, float], str]:
        """(SQNR of each layer, from the tensors of the two files themselves; a note)."""
        self.watch.step("the deployed file's own tensors")
        some = self.search.take(range(min(DRIFT_SAMPLES, len(self.search))))
        found = compare_files.compare(
            self.float_path,
            self.plain_path,
            some,
            task=self.task,
            threads=self.threads,
            layer_samples=len(some),
            work=self.work,
        )
        return {one.layer: one.sqnr_db for one in found.layers}, found.layers_note

    def _agreement(self, exact: NDArray[np.float32], outputs: NDArray[np.float32]) -> float:
        """The share of samples with the same answer; where outputs are many, of those that were kept."""
        does = tasks.get(self.task)
        return float(does.same(does.answers(does.kept(exact)), does.answers(does.kept(outputs))).mean())

    def _export(self, model: Model, plan: Plan) -> Path:
        self.watch.step(f"exporting {plan.code}")
        path = self.files / f"{plan.file_stem}{self.runtime.EXTENSION}"
        given = self.calibration if plan.export.precision == "int8" else None
        artifact = self.runtime.export(model, plan, given, path, work=self.work)
        if not plan.export.keep_float:  # with layers in float, conversions between layers are expected
            self.findings += [note for note in artifact.notes if note not in self.findings]
        return path

    def _answers(self, path: Path, code: str) -> tuple[NDArray[np.float32], NDArray[np.float64] | None]:
        tick, threads = self.watch.step(f"running {code} on {len(self.search)} samples"), self.threads
        if not self.labelled:
            ran = accuracy.run_all(
                self.name, path, self.search, task=self.task, threads=threads, work=self.work, progress=tick
            )
            return ran.outputs, None
        found = accuracy.score(
            self.name,
            path,
            self.search,
            task=self.task,
            metric=metric_of(tasks.get(self.task)),
            threads=threads,
            work=self.work,
            progress=tick,
        )
        assert found.outputs is not None
        return found.outputs, found.values
