"""`pocketfit.inspect`: what a network or a file is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pocketfit import runtimes
from pocketfit.analysis.layer_table import LayerRow, Totals, layer_table, totals
from pocketfit.api.file_inputs import check_files
from pocketfit.api.inputs import Network, as_model
from pocketfit.core.artifact import Contents
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.user_code import Allowed


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
