"""Quantization side by side: ONNX Runtime's, ai-edge-quantizer's and NNCF's own settings, and pocketfit's ladder.

    python -m benchmarks.quantization.compare [mobilenet_v2|efficientnet_lite0|mobilenet_v3_small|all]
                                      [--json FILE] [--quick] [--untimed] [--calibration 100] [--nncf-python PYTHON]

mobilenet_v2, efficientnet_lite0   published ImageNet weights; fidelity to float32 on 608 pictures of 38 photos that
                                   calibration has not seen (16 variants of each), 100 unlabelled pictures calibrate
mobilenet_v3_small                 trained on Fashion-MNIST at 96 px (see README.md), on its 10,000 test pictures

Every file is made once and kept by the hash of what it was made from; a run that was stopped goes on where it was.
--quick: few opponents, few pictures, short timings: to see that it runs. --untimed: no latencies.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data import photos
from benchmarks.quantization.file_runners import OPENVINO, Places
from benchmarks.quantization.result_rows import Entry, Row, Score, as_json, measure, sentence, table
from benchmarks.quantization.rival_settings import OPPONENTS, Opponent
from pocketfit import runtimes, tasks
from pocketfit.cli.progress_bar import watch_for_terminal
from pocketfit.core.budget import Budget
from pocketfit.core.errors import ExportFailed, PocketfitError, UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.plan.quantize import Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Piecewise
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.support.cpuinfo import u8s8_saturates
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.progress import Watch
from pocketfit.measurement import latency
from pocketfit.measurement.environment import environment
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.processes import child_process
from pocketfit.search.propose.quantization_ladder import REPAIRS, REPAIRS_4
from pocketfit.search.run.apply_passes import carried_out
from pocketfit.search.run.job import Job
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import load_model, open_model

INT8 = {"precision": "int8"}
UINT8 = {"precision": "int8", "activations": "uint8"}


def _plan(runtime: str, *passes: PassSettings, **export: Any) -> Plan:
    return Plan(passes, ExportSettings(runtime, **export))


FOUR: dict[str, Any] = {"weights": "int4", "ranges": "mse"}
TRAINED = QuantTrain(60, batch_size=16, learning_rate=0.006)
FOUR_TRAINED = QuantTrain(480, batch_size=16, learning_rate=0.02, inner=1.0)
# Where there are some hundred photos.
FOUR_BY_FEW = (
    Equalize(absorb=False),
    Round(samples=2000, split="train"),
    QuantTrain(480, batch_size=16, learning_rate=0.01, inner=6.0, layerwise=0.2),
)
STEM = ("features.0.0",)  # LiteRT has no 4-bit kernel for its window
# Nine layers of MobileNetV2 with 1.1 % of the weights that 4 bits are for, and 46 % of the noise that 4 bits make.
GUILTY = tuple(f"features.{name}" for name in ("1.conv.1", "2.conv.0.0", "2.conv.2", "3.conv.0.0", "3.conv.2",
                                               "4.conv.0.0", "4.conv.2", "7.conv.0.0", "7.conv.2"))  # fmt: skip
# Thirteen with 12.5 % of the weights and 73 % of the noise.
GUILTIER = (*GUILTY, *(f"features.{number}.conv.0.0" for number in (11, 14, 16, 17)))
# Those that cost most noise for the time they take in float, by analysis/quantization/sensitivity.py; 15 % of the MACs.
FLOAT = tuple(f"features.{name}" for name in ("1.conv.1", "1.conv.0.0", "2.conv.0.0", "14.conv.1.0", "17.conv.1.0",
                                              "0.0", "14.conv.2"))  # fmt: skip
# What takes part for pocketfit; a line more is a file more.
PLANS: tuple[Plan, ...] = (
    _plan("litert", **INT8),
    _plan("litert", **INT8, ranges="mse"),
    _plan("litert", *REPAIRS, **INT8, ranges="mse"),
    _plan("onnxruntime", **UINT8),
    _plan("onnxruntime", **UINT8, ranges="mse"),
    _plan("onnxruntime", *REPAIRS, **UINT8, ranges="mse"),
    _plan("onnxruntime", *REPAIRS, **INT8, ranges="mse"),
)
# Plans for one network only, such as those that name layers.
PLANS_OF: Mapping[str, tuple[Plan, ...]] = {
    "mobilenet_v2": (
        _plan("litert", *REPAIRS, TRAINED, **INT8, ranges="mse"),
        _plan("litert", *REPAIRS, **INT8, ranges="mse", keep_float=FLOAT),
        _plan("litert", **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", Round(), **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", *REPAIRS_4, **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", *FOUR_BY_FEW, **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", Round(), **INT8, **FOUR, keep_int8=(*STEM, *GUILTY)),
        _plan("litert", *FOUR_BY_FEW, **INT8, **FOUR, keep_int8=(*STEM, *GUILTY)),
        _plan("litert", Round(), **INT8, **FOUR, keep_int8=(*STEM, *GUILTIER)),
    ),
    "efficientnet_lite0": (),
    "mobilenet_v3_small": (
        _plan("litert", Piecewise(), **INT8),
        _plan("litert", Piecewise(), *REPAIRS, **INT8, ranges="mse"),
        _plan("litert", Piecewise(), **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", Piecewise(), Round(), **INT8, **FOUR, keep_int8=STEM),
        _plan("litert", Piecewise(), Round(), FOUR_TRAINED, **INT8, **FOUR, keep_int8=STEM),
    ),
}

ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = ROOT / ".downloads"
WORK = DOWNLOADS / "benchmark"
V3_MODEL = WORK / "mobilenet_v3_small"
V3_COMMAND = (
    "pocketfit train mobilenet_v3_small --data .downloads/fashion-mnist.npz --image-size 96 --epochs 12"
    f" --max-time 26min -o {V3_MODEL.relative_to(ROOT)}"
)
BASES = ("litert", "onnxruntime", OPENVINO)
EXTENSION = {"litert": ".tflite", "onnxruntime": ".onnx", OPENVINO: ".xml"}
HALVES = replace(photos.PREPROCESS, mean=(0.5,) * 3, std=(0.5,) * 3)  # what EfficientNet-Lite was trained with
LONG = latency.Effort(sessions=6, seconds=10.0, min_rounds=10, max_rounds=400)
QUICK = latency.Effort(sessions=2, seconds=0.5, min_rounds=3, max_rounds=20)
CHECKED_PICTURES, FLOAT_DB = 32, 60.0
QUICK_PICTURES, QUICK_CALIBRATION = 114, 20  # three variants of each photo


@dataclass(frozen=True)
class Given:
    """Calibration pictures in the place of a Dataset: passes read the "calibration" split, or all of them as "train".

    calibration  as many as the exports are calibrated with
    more         all pictures of the calibration photos, and for the networks of ImageNet some 250 other photos as well,
                 in a random order
    """

    calibration: Samples
    more: Samples
    form: str = "classes"

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.calibration.class_names

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"{self.calibration.sha256} {self.more.sha256}".encode()).hexdigest()

    def split(self, name: str, preprocess: Preprocess, *, limit: int | None = None, **_: Any) -> Samples:
        found = {"calibration": self.calibration, "train": self.more}[name]
        if found.preprocess != preprocess:
            raise UserError("A plan of this benchmark feeds another picture size, for which there are no samples")
        return found if limit is None else found.take(np.arange(min(limit, len(found))))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network and the pictures that it is calibrated and judged with."""

    name: str
    title: str
    model: Model
    given: Given
    judged: Samples
    right: Score
    words: Mapping[str, str]


@dataclass(frozen=True)
class Bench:
    """Makes files of one subject; `work` holds them under the hash of what they were made from."""

    subject: Subject
    work: Path
    places: Places
    nncf: Mapping[str, str]  # its versions; empty where it is not installed
    watch: Watch

    def ours(self, plan: Plan) -> Entry | Row:
        """pocketfit's file of this plan, calibrated on the subject's pictures."""
        given, runtime = self.subject.given, plan.export.runtime
        plan = replace(plan, export=replace(plan.export, calibration=len(given.calibration)))
        base = plan == Plan((), ExportSettings(runtime, calibration=plan.export.calibration))
        entry = Entry(
            name="float32" if base else plan.code,
            tool="torch's converter" if base else "pocketfit",
            runtime=runtime,
            path=Path(),
        )

        def make(path: Path) -> None:
            model = carried_out(self._job(), plan, self.watch) if plan.passes else self.subject.model
            runtimes.get(runtime).export(model, plan, given.calibration, path, work=self._by_products)

        facts = {
            "plan": plan.to_json(),
            "model": self.subject.model.key,
            "data": given.sha256,
            "source": _source_hash(),
        }
        return self._made(replace(entry, plan=plan, baseline=base), facts, make)

    def theirs(self, opponent: Opponent, bases: Mapping[str, Entry]) -> Entry | Row:
        """An opponent's file, made from the float32 file of the runtime that it will run in."""
        here = environment(threads=1)
        recipe = {"function": opponent.function, **opponent.settings}
        if opponent.settings.get("activations") == "uint8":  # as ONNX Runtime's documentation asks without VNNI
            recipe["reduce_range"] = u8s8_saturates(here["machine"], here["isa"])
        entry = Entry(
            name=opponent.name, tool=opponent.tool, runtime=opponent.runtime, path=Path(), recipe=canonical_json(recipe)
        )
        if opponent.tool == "NNCF" and not self.nncf:
            return Row(entry=entry, error="not installed: pip install 'pocketfit[bench]', or name its --nncf-python")
        source = bases[opponent.runtime].path
        payload = {key: value for key, value in recipe.items() if key != "function"}
        if opponent.calibrated:
            payload["calibration"] = str(self._calibration_file(opponent.runtime))

        def make(path: Path) -> None:
            call = {**payload, "source": str(source), "target": str(path)}
            if opponent.tool == "NNCF":
                self.places.openvino(opponent.function, call)
            else:
                child_process.call(f"competitors:{opponent.function}", call, timeout_s=3600)

        versions = self.nncf if opponent.tool == "NNCF" else here["versions"]
        calibration = self.subject.given.calibration.sha256 if opponent.calibrated else ""
        facts = {"recipe": recipe, "base": _sha256(source), "data": calibration, "versions": dict(versions)}
        return self._made(entry, facts, make)

    def bases(self) -> dict[str, Entry]:
        """The float32 file in every runtime; where that fails there is nothing to compare."""
        made = {}
        for runtime in ("litert", "onnxruntime"):
            made[runtime] = self._must(self.ours(Plan((), ExportSettings(runtime))))
            self._check(made[runtime])
        if self.nncf:
            source = made["onnxruntime"].path
            entry = Entry(name="float32", tool="openvino", runtime=OPENVINO, path=Path(), baseline=True)
            facts = {"base": _sha256(source), "versions": dict(self.nncf)}
            made[OPENVINO] = self._must(self._made(entry, facts, lambda path: self._convert(source, path)))
            self._check(made[OPENVINO])
        return made

    def _check(self, base: Entry) -> None:
        """Everything is compared with this file, so it must answer as the network itself does in PyTorch."""
        some = self.subject.judged.take(np.arange(CHECKED_PICTURES))
        with torch.inference_mode():
            wanted = self.subject.model.network(torch.from_numpy(some.inputs(slice(None)))).numpy()
        found_db = sqnr_db(wanted, self.places.outputs(base.runtime, base.path, some))
        if not found_db >= FLOAT_DB:
            raise UserError(f"The float32 file for {base.runtime} is {found_db:.1f} dB from the network: it is wrong")

    def _convert(self, source: Path, path: Path) -> None:
        self.places.openvino("convert", {"source": str(source), "target": str(path)})

    def _made(self, entry: Entry, facts: Mapping[str, Any], make: Callable[[Path], None]) -> Entry | Row:
        """The entry with its file, which is made unless it is there already; a Row where it can't be made."""
        text = canonical_json([entry.runtime, entry.tool, entry.name, facts])
        path = self.work / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}{EXTENSION[entry.runtime]}"
        note = path.with_suffix(".made.json")  # written last: what lies there without it was not finished
        if not note.exists():
            self.watch.say(f"making {entry.name} with {entry.tool} for {entry.runtime}")
            begin = time.monotonic()
            try:
                make(path)
            except PocketfitError as error:
                return Row(entry=entry, error=sentence(error))
            seconds = round(time.monotonic() - begin, 1)
            with whole_or_not(note) as partial:
                partial.write_text(json.dumps({"seconds": seconds, "facts": json.loads(text)}))
        return replace(entry, path=path, seconds=json.loads(note.read_text())["seconds"])

    def _must(self, made: Entry | Row) -> Entry:
        if isinstance(made, Row):
            raise UserError(f"The float32 file for {made.entry.runtime} could not be made: {made.error}")
        return made

    @property
    def _by_products(self) -> Path:
        """What exports and passes keep for themselves, which is not to outlive the code that made it."""
        folder = self.work / f"by-products-{_source_hash()[:12]}"
        folder.mkdir(exist_ok=True)
        return folder

    def _job(self) -> Job:
        subject = self.subject
        return Job(model=subject.model, data=subject.given, out=self._by_products, runtimes=(), budget=Budget())  # type: ignore[arg-type]

    def _calibration_file(self, runtime: str) -> Path:
        calibration = self.subject.given.calibration
        layout = "NHWC" if runtime == "litert" else "NCHW"
        stem = hashlib.sha256(calibration.sha256.encode()).hexdigest()[:12]
        path = self.work / f"calibration-{stem}-{layout}.npy"
        if not path.exists():
            with whole_or_not(path) as partial:
                np.save(partial, calibration.inputs(slice(None), layout))
        return path


@cache
def _source_hash() -> str:
    """Of those of pocketfit's sources that files depend on: a change of them makes its files anew."""
    digest = hashlib.sha256()
    for pattern in (
        "core/*.py",
        "numerics/*.py",
        "passes/*.py",
        "runtimes/*.py",
        "zoo/*.py",
        "search/run/apply_passes.py",
    ):
        for path in sorted((ROOT / "src" / "pocketfit").glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# Subjects -------------------------------------------------------------------------------------------------------------


def pretrained(name: str, title: str, preprocess: Preprocess) -> Callable[[int, bool], Subject]:
    """A network with published ImageNet weights, on variants of the photos."""

    def subject(calibration: int, quick: bool) -> Subject:
        stamps = _there(DOWNLOADS / "stamps", "python tools/fetch.py stamps")
        weights = _there(DOWNLOADS / f"{name}.pth", f"python tools/fetch.py {name}")
        first, judge = photos.halves(stamps, photos.MANY)
        judge = judge.first(QUICK_PICTURES) if quick else judge
        few = photos.shuffled(first, calibration)
        more = photos.unlabelled(_there(DOWNLOADS / "photos", "python tools/fetch.py photos"))
        trained = photos.mixed(photos.joined(photos.shuffled(first, len(first.samples)), more))
        given = Given(*(replace(s, preprocess=preprocess) for s in (few, trained)))
        model = open_model(name, weights=weights, preprocess=preprocess)
        words = {
            "calibration": f"{calibration} unlabelled pictures of {first.photo.max() + 1} photos",
            "judged_on": f"{len(judge.samples)} pictures of {judge.photo.max() + 1} other photos;"
            " the interval of the drop is over photos",
        }
        return Subject(
            name=name,
            title=title,
            model=model,
            given=given,
            judged=replace(judge.samples, preprocess=preprocess),
            right=judge.right,
            words=words,
        )

    return subject


def fashion(calibration: int, quick: bool) -> Subject:
    """MobileNetV3-small as `pocketfit train` left it, on the test pictures of Fashion-MNIST."""
    model = load_model(_there(V3_MODEL, V3_COMMAND))
    data = open_data(_there(DOWNLOADS / "fashion-mnist.npz", "python tools/fetch.py fashion-mnist"))

    def read(split: str, limit: int | None) -> Samples:
        seed, pixels = model.split_seed, WORK / "pixels"
        found = data.split(split, model.preprocess, split_seed=seed, limit=limit, cache=pixels)
        return tasks.get(model.task).read_targets(found, model.labels)

    test = read("verdict", QUICK_PICTURES if quick else None)
    given = Given(read("calibration", calibration), read("train", None))
    words = {
        "calibration": f"{calibration} pictures of the calibration split",
        "judged_on": f"{len(test)} test pictures",
    }
    title = f"MobileNetV3-small on Fashion-MNIST, {test.preprocess.height} x {test.preprocess.width}"
    return Subject(
        name="mobilenet_v3_small", title=title, model=model, given=given, judged=test, right=_right(test), words=words
    )


def _right(samples: Samples) -> Score:
    return lambda outputs: (outputs.argmax(axis=1) == samples.labels).astype(np.float64)


SUBJECTS: Mapping[str, Callable[[int, bool], Subject]] = {
    "mobilenet_v2": pretrained("mobilenet_v2", "MobileNetV2, 224 x 224", photos.PREPROCESS),
    "efficientnet_lite0": pretrained("efficientnet_lite0", "EfficientNet-Lite0, 224 x 224", HALVES),
    "mobilenet_v3_small": fashion,
}


# The command ----------------------------------------------------------------------------------------------------------


def compared(
    subject: Subject, places: Places, nncf: Mapping[str, str], options: argparse.Namespace, watch: Watch
) -> dict[str, Any]:
    """All rows of one subject, with the words that say what they were measured on."""
    work = WORK / f"quantization-{subject.model.key[:12]}"
    work.mkdir(parents=True, exist_ok=True)
    bench = Bench(subject, work, replace(places, kept=work / "answers"), nncf, watch)
    bases = bench.bases()
    wanted = re.compile(options.opponents)
    opponents = [one for one in OPPONENTS if (one.quick or not options.quick) and wanted.search(one.name)]
    plans = (*PLANS, *PLANS_OF.get(subject.name, ()))
    entries = [*bases.values(), *(bench.theirs(one, bases) for one in opponents), *(bench.ours(plan) for plan in plans)]
    effort = None if options.untimed else QUICK if options.quick else LONG
    rows = measure(_by_runtime(entries), subject.judged, subject.right, effort, watch.say, bench.places)
    return {"title": subject.title, **subject.words, "n": len(subject.judged), "rows": rows}


def _by_runtime(entries: Sequence[Entry | Row]) -> list[Entry | Row]:
    return sorted(entries, key=lambda e: BASES.index(e.entry.runtime if isinstance(e, Row) else e.runtime))


def _nncf_versions(places: Places) -> dict[str, str]:
    """Empty where the interpreter lacks NNCF or OpenVINO; any other failure is raised."""
    try:
        return places.openvino("versions", {})  # type: ignore[no-any-return]
    except ExportFailed as error:
        if "ModuleNotFoundError" in error.log_tail:
            return {}
        raise


def _there(path: Path, command: str) -> Path:
    if not path.exists():
        raise UserError(f"{path.relative_to(ROOT)} is not there: run '{command}' first")
    return path


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", choices=[*SUBJECTS, "all"], default="all")
    parser.add_argument("--json", type=Path, default=WORK / "quantization.json", metavar="FILE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--untimed", action="store_true", help="take no latencies")
    parser.add_argument("--opponents", default="", metavar="REGEX", help="only those whose name matches")
    parser.add_argument("--calibration", type=int, default=100, metavar="PICTURES", help="at most 200 (default: 100)")
    parser.add_argument("--nncf-python", default=sys.executable, metavar="PYTHON", help="an interpreter that has nncf")
    options = parser.parse_args()
    if not 1 <= options.calibration <= 200:
        parser.error("--calibration takes 1 to 200 pictures")
    if options.quick:
        options.calibration = min(options.calibration, QUICK_CALIBRATION)
    return options


def main() -> int:
    options = _arguments()
    names = list(SUBJECTS) if options.network == "all" else [options.network]
    found: dict[str, Any] = {}
    before = environment(threads=1)
    places = Places(options.nncf_python)
    try:
        nncf = _nncf_versions(places)
        with watch_for_terminal() as watch:
            for name in names:
                subject = SUBJECTS[name](options.calibration, options.quick)
                found[name] = compared(subject, places, nncf, options, watch)
                heading = f"Calibrated on {subject.words['calibration']}; judged on {subject.words['judged_on']}."
                print(f"\n## {subject.title}\n{heading}\n\n{table(found[name]['rows'])}", flush=True)
    except PocketfitError as error:
        print(f"quantization: {sentence(error)}", file=sys.stderr)
        return 2
    report = {
        "schema_version": 1,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", "benchmarks.quantization.compare", *sys.argv[1:]]),
        "quick": options.quick,
        "environment": {**before, "versions": {**before["versions"], **nncf}},
        "load_average_after": environment(threads=1)["load_average"],
        "parts": {name: {**part, "rows": as_json(part["rows"])} for name, part in found.items()},
    }
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
