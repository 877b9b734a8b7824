"""`pocketfit.inspect`: what a network or a file is made of; what accelerators document of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.analysis.accelerators import targets, tensorrt_rules
from pocketfit.analysis.accelerators.coverage import coverage
from pocketfit.analysis.layer_table import LayerRow, Totals, layer_table, totals
from pocketfit.api.file_inputs import check_files
from pocketfit.api.inputs import Network, as_model
from pocketfit.core.artifact import Contents
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import RUNTIMES
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.core.support.user_code import Allowed
from pocketfit.runtimes.onnxruntime import mobile

PROVIDERS = ("nnapi", "xnnpack", "coreml")  # of ONNX Runtime, on phones
TENSORRT = "tensorrt"


@dataclass(frozen=True)
class Layers:
    """The layers of a network, with the sums over them."""

    model: Model
    rows: tuple[LayerRow, ...]
    totals: Totals

    def to_json(self) -> dict[str, Any]:
        """What `pocketfit inspect --json` prints, less the name that was typed."""
        return {
            "architecture": self.model.origin.name,
            "signature": self.model.signature.to_json(),
            "preprocess": self.model.preprocess.to_json(),
            "labels": len(self.model.labels),
            "layers": [asdict(row) for row in self.rows],
            "totals": asdict(self.totals),
            "findings": list(self.model.findings),
        }


def inspect(
    what: Network,
    *,
    preprocess: Preprocess | None = None,
    labels: Sequence[str] = (),
    allow_code: Allowed = False,
) -> Layers | Contents:
    """The layers of a network, or the operators of a file as they are read back from it.

    what        a .tflite or .onnx file, or another network as for `fit`
    preprocess, labels, allow_code  of a network, as for `fit`
    Raises UserError for what is neither.
    """
    if isinstance(what, str | Path) and runtimes.is_file_of_one(what):
        path = Path(what)
        check_files(path)
        return runtimes.for_file(path).inspect(path)
    model = as_model(what, preprocess, labels, allow_code)
    rows = layer_table(model)
    return Layers(model, tuple(rows), totals(rows))


def taken_as_network(file: str | Path, input_shape: str | None = None) -> str:
    """Whether pocketfit takes this .onnx file where it takes a network, as a sentence."""
    from pocketfit.sources.models.open_model import open_model

    try:
        model = open_model(file, input_shape=input_shape)
    except UserError as error:
        return f"pocketfit can't take it as a network: {str(error).removeprefix(f'{file}: ')}"
    given, outputs = model.signature.inputs[0], ", ".join(str(spec.shape[1:]) for spec in model.signature.outputs)
    parameters = sum(tensor.numel() for tensor in model.network.parameters())
    return (
        f"pocketfit takes it as a network (fit, train, sensitivity, costs, explain, apply): {given.shape[1:]} ->"
        f" {outputs} for each sample, {parameters:,} parameters"
    )


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
