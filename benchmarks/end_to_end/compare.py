"""Side by side: what the runtimes' own quantizers make of a network, a narrower network, and what pocketfit hands over.

    python -m benchmarks.end_to_end.compare [pretrained|demo|all] [--json FILE] [--quick]

pretrained  MobileNetV2 with its published ImageNet weights, on the photos of stamps_imagenet.json
demo        the demo's job: demo-data/model and demo-out/ as `make demo` leaves them, on the 10,000 test pictures

Prints a table for each and writes JSON. --quick: few pictures, short timings, 20 training steps: to see that it runs.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.data import photos
from benchmarks.quantization.result_rows import Entry, Row, Score, as_json, measure, sentence, table
from pocketfit import runtimes
from pocketfit.cli.progress_bar import watch_for_terminal
from pocketfit.core.budget import Budget
from pocketfit.core.errors import PocketfitError, UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.cpuinfo import u8s8_saturates
from pocketfit.core.support.progress import Watch
from pocketfit.core.trial import Stage, Trial
from pocketfit.measurement import latency, run_samples
from pocketfit.measurement.environment import environment
from pocketfit.numerics.latency_intervals import paired_drop
from pocketfit.passes.train import fine_tune
from pocketfit.processes import child_process
from pocketfit.search.decide.choose import choose
from pocketfit.search.run.job import aligned
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.build_network import build
from pocketfit.sources.models.open_model import load_model, model_from_module, open_model, save_model

ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS, MODEL, OUT = ROOT / ".downloads", ROOT / "demo-data" / "model", ROOT / "demo-out"
WORK = DOWNLOADS / "benchmark"
NAMES = ("litert", "onnxruntime")
LONG = latency.Effort(sessions=6, seconds=8.0, min_rounds=10, max_rounds=400)
QUICK = latency.Effort(sessions=2, seconds=0.5, min_rounds=3, max_rounds=20)
QUICK_PICTURES, QUICK_STEPS = 200, 20
# What pocketfit is asked for on the pretrained network; the demo's limits stand in its result.json.
LIMITS = Budget.parse(max_size="0.35x", max_latency="0.7x", max_drop="5pt")


@dataclass(frozen=True)
class Competitor:
    """A runtime's own quantizer: a function of competitors.py with its settings."""

    runtime: str
    tool: str
    name: str
    function: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibrated: bool = True


AI_EDGE, ORT_STATIC, ORT_DYNAMIC = "ai_edge_quantizer", "onnxruntime_static", "onnxruntime_dynamic"
STATIC = (
    Competitor("litert", "ai-edge-quantizer", "static int8", AI_EDGE, {"recipe": "static_wi8_ai8"}),
    Competitor("onnxruntime", "quantize_static", "static int8, defaults", ORT_STATIC),
    Competitor("onnxruntime", "quantize_static", "static S8S8 per channel", ORT_STATIC, {"best": True}),
    Competitor(
        *("onnxruntime", "quantize_static", "static U8S8 per channel", ORT_STATIC),
        {"best": True, "activations": "uint8"},
    ),
)
OTHER = (
    Competitor("litert", "ai-edge-quantizer", "dynamic int8", AI_EDGE, {"recipe": "dynamic_wi8_afp32"}, False),
    Competitor("litert", "ai-edge-quantizer", "weight-only int4", AI_EDGE, {"recipe": "weight_only_wi4_afp32"}, False),
    Competitor("onnxruntime", "quantize_dynamic", "dynamic int8, defaults", ORT_DYNAMIC, {}, False),
    Competitor("onnxruntime", "quantize_dynamic", "dynamic, uint8 weights", ORT_DYNAMIC, {"weights": "uint8"}, False),
)
UINT8 = ExportSettings("onnxruntime", "int8", activations="uint8")
STATIC_PLANS = (ExportSettings("litert", "int8"), UINT8, ExportSettings("onnxruntime", "int8"))


@dataclass(frozen=True)
class Bench:
    """One part of the benchmark: a float network, what calibrates it, and where its files go."""

    model: Model
    calibration: Samples
    work: Path
    watch: Watch

    def export(
        self,
        settings: ExportSettings,
        name: str,
        tool: str = "pocketfit",
        *,
        model: Model | None = None,
        passes: tuple[PassSettings, ...] = (),
    ) -> Entry | Row:
        """A file made by pocketfit from the part's network, or from another `model`, made by `passes`."""
        runtime, plan = runtimes.get(settings.runtime), Plan(passes, settings)
        path = self.work / f"{plan.file_stem}{runtime.EXTENSION}"
        entry = Entry(
            name=name,
            tool=tool,
            runtime=runtime.NAME,
            path=path,
            plan=plan,
            baseline=plan == Plan((), ExportSettings(runtime.NAME)),
        )
        self.watch.step(f"exporting {plan.code} for {runtime.NAME}")
        try:
            runtime.export(model or self.model, plan, self.calibration, path, work=self.work)
        except PocketfitError as error:
            return Row(entry=entry, error=sentence(error))
        return entry

    def baselines(self) -> dict[str, Entry]:
        """The float32 file in every runtime; where that fails there is nothing to compare."""
        made = {}
        for name in NAMES:
            entry = self.export(ExportSettings(name), "float32", "torch's converter")
            if isinstance(entry, Row):
                raise UserError(f"The float32 file for {name} could not be made: {entry.error}")
            made[name] = entry
        return made

    def competitor(self, of: Competitor, base: Entry) -> Entry | Row:
        """A file made from the float32 file by the runtime's own quantizer, in a child process."""
        facts = canonical_json([base.path.name, of.function, dict(of.settings)])
        stem = f"{of.function}-{hashlib.sha256(facts.encode()).hexdigest()[:8]}"
        entry = Entry(name=of.name, tool=of.tool, runtime=base.runtime, path=self.work / f"{stem}{base.path.suffix}")
        payload = {"source": str(base.path), "target": str(entry.path), **of.settings}
        if of.calibrated:
            payload["calibration"] = str(self._calibration_file(base.runtime))
        if of.settings.get("activations") == "uint8":  # as ONNX Runtime's documentation asks where there is no VNNI
            here = environment(threads=1)
            payload["reduce_range"] = u8s8_saturates(here["machine"], here["isa"])
        self.watch.step(f"{of.tool}: {of.name}")
        try:
            child_process.call(f"competitors:{of.function}", payload)
        except PocketfitError as error:
            return Row(entry=entry, error=sentence(error))
        return entry

    def _calibration_file(self, runtime: str) -> Path:
        path = self.work / f"calibration-{runtime}.npy"
        np.save(path, self.calibration.inputs(slice(None), "NHWC" if runtime == "litert" else "NCHW"))
        return path

    def entries(self, competitors: Sequence[Competitor]) -> list[Entry | Row]:
        """Float32 files, the competitors' files, and pocketfit's exports without training."""
        bases = self.baselines()
        others = [self.competitor(one, bases[one.runtime]) for one in competitors]
        return [*bases.values(), *others, *(self.export(s, Plan((), s).code) for s in STATIC_PLANS)]


def in_order(entries: Sequence[Entry | Row]) -> list[Entry | Row]:
    """By runtime, each one's entries in the order in which they came."""
    return sorted(entries, key=lambda e: NAMES.index(e.entry.runtime if isinstance(e, Row) else e.runtime))


# The pretrained network -----------------------------------------------------------------------------------------------


def pretrained(quick: bool, watch: Watch) -> dict[str, Any]:
    """MobileNetV2 at 224 pixels: half of the photos calibrates and decides, the other half judges."""
    calibration, verdict = photos.halves(_there(DOWNLOADS / "stamps", "python tools/fetch.py stamps"))
    weights = _there(DOWNLOADS / "mobilenet_v2.pth", "python tools/fetch.py mobilenet_v2")
    model = open_model("mobilenet_v2", weights=weights, preprocess=photos.PREPROCESS)
    bench = Bench(model, calibration.samples, _folder(f"pretrained-{calibration.samples.sha256[:8]}"), watch)
    entries = in_order(bench.entries((*STATIC, *OTHER)))
    rows = measure(entries, verdict.samples, verdict.right, QUICK if quick else LONG, watch.say)
    chosen = _chosen_by_pocketfit(rows, calibration)
    return {
        "title": "pretrained MobileNetV2, 224 x 224",
        "calibration": f"{len(calibration.samples)} pictures of {calibration.photo.max() + 1} photos",
        "judged_on": f"{len(verdict.samples)} pictures of {verdict.photo.max() + 1} other photos;"
        " the interval of the drop is over photos",
        "n": len(verdict.samples),
        "rows": [replace(row, chosen=row.entry == chosen) for row in rows],
        "limits": LIMITS.to_json(),
    }


def _chosen_by_pocketfit(rows: Sequence[Row], decide_on: photos.Photos) -> Entry | None:
    """What `fit` would hand over of these exports: its own rule, with the drop on pictures that do not judge."""
    scores: dict[Entry, NDArray[np.float64]] = {}
    trials: dict[int, Entry] = {}
    listed = []
    for number, row in enumerate(rows):
        entry = row.entry
        if entry.plan is None or row.artifact is None:
            continue
        scores[entry] = decide_on.right(run_samples.run_all(entry.runtime, entry.path, decide_on.samples))
        base = next(e for e in scores if e.baseline and e.runtime == entry.runtime)
        drop = paired_drop(scores[base], scores[entry])
        found = {
            "size_bytes": Measurement(quantity="size_bytes", unit="B", value=row.artifact.bytes),
            "drop_points": Measurement(
                quantity="drop_points", unit="pt", value=drop.points, environment={"one_sided": drop.upper_one_sided}
            ),
            "latency_ratio": Measurement(quantity="latency_ratio", unit="x", value=1.0, low=1.0, high=1.0),
            **row.latency,
        }
        stage: Stage = "baseline" if entry.baseline else "recipe"
        listed.append(
            Trial(
                number=number,
                stage=stage,
                plan=entry.plan,
                status="ok",
                artifact=row.artifact,
                measurements=found,
            )
        )
        trials[number] = entry
    picked = choose(listed, LIMITS)
    return None if picked is None else trials[picked.trial.number]


# The demo's job ------------------------------------------------------------------------------------------------------


def demo(quick: bool, watch: Watch) -> dict[str, Any]:
    """The demo's network on the 10,000 test pictures, against the file that `fit` handed over."""
    result = json.loads(_there(OUT / "result.json", "make demo").read_text())
    if not result["chosen"]:
        raise UserError(f"{OUT / 'result.json'} holds no chosen file: run make demo to its end")
    plan = Plan.from_json(result["chosen"]["plan"])
    if other := [p.code for p in plan.passes if p.code.startswith("r")]:
        raise UserError(f"The chosen plan feeds a smaller picture ({other[0]}): run the demo with --keep-resolution")
    model = load_model(_there(MODEL, "make demo"))
    read = _Reader(model, _there(DOWNLOADS / "fashion-mnist.npz", "make demo"))
    calibration = read.samples("calibration", limit=plan.export.calibration)
    test = read.samples("verdict", limit=QUICK_PICTURES if quick else None)
    bench = Bench(model, calibration, _folder(f"demo-{model.key[:8]}"), watch)
    steps = tuple(p for p in plan.passes if isinstance(p, Train))
    entries = bench.entries(STATIC)
    if steps:
        half = _half_width(bench, read, steps, quick)
        for settings in STATIC_PLANS[:2]:
            name = f"half width, {Plan((), settings).code}"
            entries.append(bench.export(settings, name, "trained alike", model=half, passes=steps))
    else:
        watch.say("The chosen plan trains nothing, so the network of half width is left out")
    artifact = result["chosen"]["artifact"]
    chosen = Entry(
        name=plan.code,
        tool="pocketfit fit",
        runtime=result["chosen"]["runtime"],
        path=OUT / artifact["path"],
        plan=plan,
    )
    rows = measure(in_order([*entries, chosen]), test, _right(test), QUICK if quick else LONG, watch.say)
    return {
        "title": f"the demo: {model.origin.name} on Fashion-MNIST, {test.preprocess.height} x {test.preprocess.width}",
        "calibration": f"{len(calibration)} pictures of the calibration split",
        "judged_on": f"{len(test)} test pictures",
        "n": len(test),
        "training_steps": [s.steps for s in steps],
        "status_of_fit": result["status"],
        "rows": [replace(row, chosen=row.entry == chosen) for row in rows],
        "limits": result["budget"],
    }


@dataclass(frozen=True)
class _Reader:
    """The demo's data, with labels counted as the model counts them."""

    model: Model
    path: Path

    def samples(self, split: str, limit: int | None = None) -> Samples:
        data, model = open_data(self.path), self.model
        found = data.split(split, model.preprocess, split_seed=model.split_seed, limit=limit, cache=WORK / "pixels")
        return aligned(found, data.class_names, model.labels)


def _half_width(bench: Bench, read: _Reader, steps: Sequence[Train], quick: bool) -> Model:
    """The same architecture at width 0.5 from random weights (none are published), trained as the chosen plan trains:
    the same steps, settings and pictures, with the same teacher. Kept in the work folder."""
    model = bench.model
    facts = canonical_json([model.sha256, [canonical_json(vars(s)) for s in steps], quick])
    stored = bench.work / f"half-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"
    if stored.exists():
        return load_model(stored)
    origin = replace(model.origin, arguments={**model.origin.arguments, "width": 0.5})
    half = model_from_module(build(origin), preprocess=model.preprocess, labels=model.labels, origin=origin)
    samples = read.samples("train")
    for settings in steps:
        taken = replace(settings, steps=QUICK_STEPS) if quick else settings
        bench.watch.say(f"training the network of half width for {taken.steps} steps")
        half = fine_tune.apply(half, taken, samples, teacher=model, progress=bench.watch.step("training"))
    save_model(half, stored)
    return half


def _right(samples: Samples) -> Score:
    return lambda outputs: (outputs.argmax(axis=1) == samples.labels).astype(np.float64)


# The command ----------------------------------------------------------------------------------------------------------


def _there(path: Path, command: str) -> Path:
    if not path.exists():
        raise UserError(f"{path.relative_to(ROOT)} is not there: run '{command}' first")
    return path


def _folder(name: str) -> Path:
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _heading(part: Mapping[str, Any]) -> str:
    return f"\n## {part['title']}\nCalibrated on {part['calibration']}; judged on {part['judged_on']}.\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", nargs="?", choices=["pretrained", "demo", "all"], default="all")
    parser.add_argument("--json", type=Path, default=WORK / "side_by_side.json", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    parts = {"pretrained": pretrained, "demo": demo}
    names = list(parts) if arguments.part == "all" else [arguments.part]
    found: dict[str, Any] = {}
    before = environment(threads=1)
    with watch_for_terminal() as watch:
        for name in names:
            try:
                found[name] = parts[name](arguments.quick, watch)
            except PocketfitError as error:
                print(f"side_by_side: {error}", file=sys.stderr)
                return 2
            print(f"{_heading(found[name])}\n{table(found[name]['rows'])}", flush=True)
    report = {
        "schema_version": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "benchmarks.end_to_end.compare", *sys.argv[1:]]),
        "quick": arguments.quick,
        "environment": before,
        "load_average_after": environment(threads=1)["load_average"],
        "parts": {name: {**part, "rows": as_json(part["rows"])} for name, part in found.items()},
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
