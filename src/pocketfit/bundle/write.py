"""Write a bundle: the chosen file, the code that calls it, and a self-test for other machines.

<file>             as the runtime's exporter made it
manifest.json      everything about it (run.py reads nothing else)
preprocess.py      the reference preprocessing, a copy of pocketfit/sources/image_preprocess.py (of recordings:
                   sound_preprocess.py)
answers.py         what the output means, a copy of pocketfit/bundle/python/answers.py
place.py           where it runs, a copy of pocketfit/bundle/python/place.py
boxes.py           of a detector: how boxes are read, a copy of pocketfit/tasks/common/boxes.py
runtime.py         how the runtime opens the file, a copy of pocketfit/runtimes/<name>/in_app.py
run.py             a copy of pocketfit/bundle/python/run.py
golden/            input-output pairs for `run.py --selftest` and for implementations in other languages
README.md, requirements.txt
"""

from __future__ import annotations

import json
import platform
import secrets
import shutil
from collections.abc import Mapping, Sequence
from glob import escape
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketfit import __version__, runtimes, tasks
from pocketfit.bundle.golden import write_golden
from pocketfit.bundle.manifest import read_manifest
from pocketfit.bundle.output_meaning import meaning
from pocketfit.bundle.python import place, readme, run
from pocketfit.core.artifact import Artifact, Quantization
from pocketfit.core.errors import UserError
from pocketfit.core.measurement import Measurement
from pocketfit.core.model import Model
from pocketfit.core.plan.runtime_list import files_of
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.runtime import Session
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.core.support.files import force
from pocketfit.core.support.loading import called
from pocketfit.runtimes.common.output_file import artifact_of
from pocketfit.tasks.detection import Detection

BUNDLE_VERSION = 2  # 1 had no seal
NAMED = ("classification", "text")  # tasks with a label for each number along the last axis
IN_APP = "pocketfit.runtimes.{}.in_app"


def write_bundle(
    folder: Path,
    artifact: Artifact,
    model: Model,
    *,
    golden: Samples,
    measurements: Mapping[str, Any],
    result: Mapping[str, Any] | None,
    verification: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle of `artifact` to `folder`, whole or not at all; it replaces an earlier bundle.

    model         with the preprocess of the file (after every pass) and the labels
    golden        samples with that preprocess; a few of them become golden pairs (images are copied as PNG)
    measurements  by quantity: Measurement, or its JSON
    result        the dict of result.json, None while the search is still under way
    verification  the threshold of embeddings, as the journal's verdict has it

    A folder that isn't one of our bundles is never touched; files that a user has added to a bundle are kept. Raises
    UserError for such a folder, for a runtime that no app can ship, and for a file that does not fit the model;
    CannotRunHere where the file does not run.
    """
    if not runtimes.get(artifact.runtime).APP_PACKAGE:
        raise UserError(f"No bundle can be made of a '{artifact.runtime}' file: it serves analysis, no app runs it")
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    earlier = _earlier_bundle(folder)
    partial = folder.parent / f".{folder.name}-new-{secrets.token_hex(8)}"
    partial.mkdir()  # not mkdtemp: its folders are for the owner only
    try:
        file = _copy_checked(artifact, partial)
        session = runtimes.get(artifact.runtime).load(file, threads=1)
        try:
            manifest = _manifest(partial, artifact, model, session=session, golden=golden)
        finally:
            session.close()
        manifest["measurements"] = {quantity: _short(value) for quantity, value in measurements.items()}
        manifest["result"] = _verdict(result)
        if verification is not None:
            manifest["verification"] = dict(verification)
        _write_words(partial, manifest)
        manifest["files"] = _hashes(partial)
        manifest = json.loads(json.dumps(manifest, allow_nan=False))  # the seal is over the form that will be read back
        manifest["seal"] = run.seal(manifest)
        _write_json(partial / "manifest.json", manifest)
        force(partial)
        _put_in_place(partial, folder, earlier)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _manifest(partial: Path, artifact: Artifact, model: Model, *, session: Session, golden: Samples) -> dict[str, Any]:
    """Write golden/ to `partial`, and return the manifest: facts about the file and this machine."""
    name, does = Path(artifact.path).name, tasks.get(model.task)
    source = _input(session, model, golden, name)
    pairs, answers = write_golden(
        partial / "golden", session, golden, layout=source["layout"], settings=artifact.plan.export
    )
    return {
        "bundle_version": BUNDLE_VERSION,
        "made_by": {"name": "pocketfit", "version": __version__},
        "file": {
            "name": name,
            "sha256": run.file_sha256(partial / name),
            "bytes": artifact.bytes,
            "download_bytes": artifact.download_bytes,
        },
        "runtime": {
            "name": artifact.runtime,
            "package": runtimes.get(artifact.runtime).APP_PACKAGE,
            "version": version(runtimes.get(artifact.runtime).APP_PACKAGE),
        },
        "code": artifact.plan.code,
        "plan": artifact.plan.to_json(),
        "notes": list(artifact.notes),
        "input": source,
        "output": _output(session, model, answers),
        "preprocess": model.preprocess.to_json(),
        "task": does.NAME,
        **({"boxes": does.form_of(session.signature.outputs)} if isinstance(does, Detection) else {}),
        "labels": _labels(model, answers.shape[1:], name),
        "golden": pairs,
        "environment": _environment(),
    }


def _write_words(partial: Path, manifest: Mapping[str, Any]) -> None:
    """Write the host code, README.md and requirements.txt."""
    kind = "sound" if manifest["input"]["kind"] == "sound" else "image"
    shutil.copyfile(_source_of(f"pocketfit.sources.{kind}_preprocess"), partial / "preprocess.py")
    shutil.copyfile(_source_of("pocketfit.bundle.python.run"), partial / "run.py")
    shutil.copyfile(_source_of("pocketfit.bundle.python.answers"), partial / "answers.py")
    shutil.copyfile(_source_of("pocketfit.bundle.python.place"), partial / "place.py")
    shutil.copyfile(_source_of(IN_APP.format(manifest["runtime"]["name"])), partial / "runtime.py")
    if make := runtimes.get(manifest["runtime"]["name"]).SOURCES:
        for name, text in called(make)(partial / manifest["file"]["name"]).items():
            (partial / name).write_text(text, encoding="utf-8")
    if "boxes" in manifest:
        shutil.copyfile(_source_of("pocketfit.tasks.common.boxes"), partial / "boxes.py")
    (partial / "requirements.txt").write_text(readme.requirements(manifest), encoding="utf-8")
    (partial / "README.md").write_text(readme.readme(manifest), encoding="utf-8")


def _copy_checked(artifact: Artifact, partial: Path) -> Path:
    source, target = Path(artifact.path), partial / Path(artifact.path).name
    for part in files_of(source):
        if not part.is_file():
            raise UserError(f"{part} is missing: run the same command again, and it is made anew")
        shutil.copyfile(part, partial / part.name)
    if artifact_of(target, artifact.plan, artifact.runtime).sha256 != artifact.sha256:
        raise UserError(f"{source} was changed after it was measured: remove it and run the same command again")
    return target


def _input(session: Session, model: Model, golden: Samples, name: str) -> dict[str, Any]:
    """The manifest's entry "input"; `shape` is that of one image, with the batch."""
    spec, *more = session.signature.inputs
    is_picture = golden.array.dtype == np.uint8 and not more
    layout = _layout(spec, model.preprocess, name) if is_picture else spec.layout
    if golden.preprocess != model.preprocess:
        raise UserError(f"The golden samples for {name} were prepared with other settings than the model's preprocess")
    entry: dict[str, Any] = {
        "kind": "picture" if is_picture else "array" if model.preprocess.sound is None else "sound",
        "name": spec.name,
        "shape": list(spec.with_batch(1)),
        "dtype": spec.dtype,
        "layout": layout,
        "quantization": _grid(session.input_quantization),
    }
    if more:
        entry["more"] = [{"name": s.name, "shape": list(s.with_batch(1)), "dtype": s.dtype} for s in more]
    return entry


def _layout(spec: TensorSpec, preprocess: Preprocess, name: str) -> str:
    """ "NHWC" or "NCHW", proved by the shape; UserError when the file takes other images than are prepared for it."""
    channels, height, width = preprocess.channels, preprocess.height, preprocess.width
    shapes = {"NHWC": (height, width, channels), "NCHW": (channels, height, width)}
    fitting = [layout for layout, shape in shapes.items() if spec.with_batch(1) == (1, *shape)]
    if not fitting:
        raise UserError(
            f"{name} takes {list(spec.with_batch(1))}, but the model's preprocess makes images of {height} x {width}"
            f" with {channels} channels: the file does not belong to this model"
        )
    return spec.layout if spec.layout in fitting else fitting[0]


def _output(session: Session, model: Model, answers: NDArray[np.generic]) -> dict[str, Any]:
    spec, grid = session.signature.outputs[0], session.output_quantization
    return {
        "name": spec.name,
        "shape": list(spec.with_batch(1)),
        "dtype": spec.dtype,
        "layout": spec.layout,
        "quantization": _grid(grid),
        **meaning(model, answers, grid),
    }


def _labels(model: Model, shape: Sequence[int], name: str) -> list[str]:
    """The names of the classes in the order of the outputs; of a classifier without any, their numbers."""
    if model.task not in NAMED:
        return list(model.labels)
    count = shape[-1] if shape else 1
    if model.labels and len(model.labels) != count:
        raise UserError(f"{name} has {count} outputs, but the model has {len(model.labels)} labels")
    return list(model.labels) or [str(number) for number in range(count)]


def _grid(quantization: Quantization | None) -> dict[str, Any] | None:
    """real = (q - zero_point) * scale, one grid for the whole tensor."""
    if quantization is None:
        return None
    return {"scale": quantization.scales[0], "zero_point": quantization.zero_points[0]}


def _short(measurement: Measurement | Mapping[str, Any]) -> dict[str, Any]:
    """A measurement without its single samples, which stand in the journal."""
    data = measurement.to_json() if isinstance(measurement, Measurement) else measurement
    return {key: value for key, value in data.items() if key != "samples"}


def _verdict(result: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if result is None:
        return None
    return {key: result[key] for key in ("status", "certified", "budget", "comparison") if key in result}


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "processor": place.processor_name(),
        "numpy": version("numpy"),
        "pillow": version("pillow"),
    }


def _source_of(module: str) -> Path:
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(f"the source of {module} is not on disk")
    return Path(spec.origin)


def _hashes(partial: Path) -> dict[str, str]:
    """The sha256 of every file, by name; manifest.json, which will hold them, is not written yet."""
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    return {path.relative_to(partial).as_posix(): run.file_sha256(path) for path in files}


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


# The place on disk -------------------------------------------------------------------------------------------------


def _earlier_bundle(folder: Path) -> dict[str, Any] | None:
    """The manifest of our bundle in `folder`; None where nothing is. Raises UserError for any other folder."""
    if not folder.exists() and not folder.is_symlink():
        return None
    refusal = UserError(f"{folder} is no bundle that pocketfit wrote: name another folder, or move this one away")
    if folder.is_symlink() or not folder.is_dir():
        raise refusal
    if not any(folder.iterdir()):
        return {"files": {}}
    try:
        return read_manifest(folder / "manifest.json")
    except UserError as error:
        raise refusal from error


def _put_in_place(partial: Path, folder: Path, earlier: Mapping[str, Any] | None) -> None:
    """Replace the folder by two renames; after a crash between them, `_sweep` finds the earlier bundle by its name."""
    if earlier is None:
        partial.rename(folder)
        return
    aside = partial.with_name(partial.name.replace("-new-", "-old-"))
    folder.rename(aside)
    partial.rename(folder)
    ours = {name.split("/")[0] for name in earlier["files"]} | {"manifest.json", "__pycache__"}
    for path in aside.iterdir():
        if path.name not in ours and not (folder / path.name).exists():
            path.rename(folder / path.name)
    shutil.rmtree(aside)


def _sweep(folder: Path) -> None:
    """Remove leftovers of a killed run beside `folder`; a bundle that it had just moved aside is moved back."""
    for path in folder.parent.glob(f".{escape(folder.name)}-old-*"):
        if not folder.exists():
            path.rename(folder)
        else:
            shutil.rmtree(path)
    for path in folder.parent.glob(f".{escape(folder.name)}-new-*"):
        shutil.rmtree(path)
