"""What an accelerator would take of a file or a network, by its own documents; files for ONNX Runtime on phones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.analysis.accelerators import targets, tensorrt_rules
from pocketfit.analysis.accelerators.coverage import coverage
from pocketfit.api.file_inputs import check_files
from pocketfit.core.artifact import Contents
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.runtimes.onnxruntime import mobile

PROVIDERS = ("nnapi", "xnnpack", "coreml")  # of ONNX Runtime, on phones
TENSORRT = "tensorrt"


def taken_by(what: str | Path | Model, target: str) -> dict[str, Any]:
    """The operators that the documents of `target` list, and those that would be left, with the source.

    what     an .onnx or .tflite file, or a network, of which its float32 file is looked at
    target   a name of targets.TARGETS
    Raises UserError for a target without a source, and for a file of a format that its source does not list.
    """
    if isinstance(what, Model):
        with temporary_folder() as folder:
            format = targets.tables(target)[0].format
            file = _float_file(what, format, Path(folder))
            return {**_looked_at(file, target, f"{what.origin.name}{file.suffix}"), "float_export": True}
    path = Path(what)
    check_files(path)
    return {**_looked_at(path, target, path.name), "float_export": False}


def _looked_at(path: Path, target: str, name: str) -> dict[str, Any]:
    contents: Contents = runtimes.for_file(path).inspect(path)
    found = coverage(contents, targets.table_for(target, contents.format)).to_json()
    if target == TENSORRT:
        broken = tensorrt_rules.breaches(path)
        found |= {
            "breaches": [{"node": one.node, "rule": one.rule} for one in broken],
            "trtexec": tensorrt_rules.commands(name, contents.inputs),
            "latency": tensorrt_rules.NOT_HERE,
        }
    return found


def _float_file(model: Model, format: str, folder: Path) -> Path:
    """The float32 file of a network in the runtime of a format."""
    name, listed = next((name, one) for name, one in RUNTIMES.items() if one.suffix == f".{format}")
    path = folder / f"network{listed.suffix}"
    runtimes.get(name).export(model, Plan((), ExportSettings(name)), None, path, work=folder)
    return path


def mobile_forms(file: str | Path, folder: str | Path) -> dict[str, Any]:
    """Write the .ort file of an .onnx file, and the list of operators and types that it needs, into `folder`; and what
    ONNX Runtime's providers on phones list of the .onnx file.

    Raises UserError for another file, or a folder that has such files already.
    """
    path = Path(file)
    check_files(path)
    if path.suffix.lower() != ".onnx":
        raise UserError(f"'{path}' is no .onnx file: .ort files are made of those")
    made = mobile.write(path, Path(folder))
    return {**made, "providers": {name: taken_by(path, name) for name in PROVIDERS}}
