"""`pocketfit inspect`: what a network or a file is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from pocketfit.analysis.accelerators.targets import NO_SOURCE, TARGETS
from pocketfit.cli import accelerators
from pocketfit.cli.arguments import Source
from pocketfit.cli.exit_codes import guarded, print_result
from pocketfit.cli.options import PATH, source_options
from pocketfit.core.errors import UserError


@click.command("inspect")
@click.argument("model", metavar="MODEL|FILE")
@click.option(
    "--for",
    "target",
    type=click.Choice([*TARGETS, *NO_SOURCE]),
    help="Which operators of the file, or of the network's float export, this accelerator documents as supported, what"
    f" would fall back, and the source. No source here: {', '.join(NO_SOURCE)}.",
)
@click.option(
    "--mobile",
    "folder",
    type=PATH,
    metavar="FOLDER",
    help="Write the .ort form of an .onnx file, and the operators and types that it needs, to FOLDER; and what ONNX"
    " Runtime's providers on phones list of it.",
)
@source_options("labels")
@guarded
def command(as_json: bool, target: str | None, folder: Path | None, **options: Any) -> int:
    """Layers of a network, or operators of a file as read back from it: shapes, parameters, MACs, bytes, dtypes."""
    if target and folder:
        raise UserError("--for and --mobile are two questions: ask one at a time")
    if target:
        print_result(taken_by(options["source"], target), as_json, accelerators.show)
    elif folder:
        print_result(mobile_forms(options["source"], folder), as_json, accelerators.show_mobile)
    else:
        print_result(inspect(**options), as_json, show)
    return 0


def taken_by(source: Source, target: str) -> dict[str, Any]:
    """What an accelerator documents of the operators of a file, or of a network's float export."""
    from pocketfit import runtimes
    from pocketfit.analysis.accelerators.targets import tables
    from pocketfit.api.inspect import taken_by as taken

    tables(target)  # a target without a source is refused before a network is opened
    return {
        "model": source.model,
        **taken(source.model if runtimes.is_file_of_one(source.model) else source.open(), target),
    }


def mobile_forms(source: Source, folder: Path) -> dict[str, Any]:
    """The .ort form of an .onnx file, and what providers on phones list of it."""
    from pocketfit.api.inspect import mobile_forms as forms

    return {"model": source.model, **forms(source.model, folder)}


def inspect(source: Source) -> dict[str, Any]:
    """The layers of a network, or the operators of a file."""
    import numpy as np

    from pocketfit import runtimes
    from pocketfit.api.inspect import Layers, taken_as_network
    from pocketfit.api.inspect import inspect as inspected
    from pocketfit.core.plan.runtime_list import bytes_of
    from pocketfit.sources.models.onnx_model import is_onnx_file

    found = inspected(source.model if runtimes.is_file_of_one(source.model) else source.open())
    if isinstance(found, Layers):
        return {"model": source.model, **found.to_json()}
    return {
        "file": source.model,
        "bytes": bytes_of(source.model),
        **found.to_json(),
        "op_counts": found.op_counts(),
        "weight_dtypes": found.weight_dtypes(),
        "macs": sum(op.macs for op in found.ops),
        "parameters": int(sum(np.prod(op.weight_shape) for op in found.ops if op.weight_shape)),
        "not_taken": not_taken(found),
        "as_network": taken_as_network(source.model, source.input_shape) if is_onnx_file(source.model) else "",
    }


def not_taken(contents: Any) -> list[str]:
    """Operators that an integer-only accelerator or delegate would leave to the CPU, in sentences."""
    types: dict[str, int] = {}
    integer = {"int8", "uint8", "int16", "int4"}
    quantized = any(op.compute_dtype in integer for op in contents.ops)
    for op in contents.ops:
        if quantized and op.weight_dtype and op.compute_dtype not in integer:
            types[op.type] = types.get(op.type, 0) + 1
    return [
        f"{count} {kind} in float: a delegate for integers leaves {'it' if count == 1 else 'them'} to the CPU"
        for kind, count in types.items()
    ]


def show(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain, table
    from pocketfit.report.page.words import format_bytes, format_count

    console = plain()
    if "layers" in data:
        totals = data["totals"]
        console.print(f"{escape(data['model'])}: {escape(data['architecture'])}, {data['labels']} classes")
        rows = [
            (
                r["name"],
                r["type"],
                _shape(r["input_shape"]),
                _shape(r["output_shape"]),
                format_count(r["params"]),
                format_count(r["macs"]),
                format_bytes(r["size_bytes"]),
            )
            for r in data["layers"]
        ]
        console.print(table(("layer", "type", "input", "output", "params", "MACs", "float32"), rows, left=2))
        console.print(
            f"\n{totals['layers']} layers, {format_count(totals['params'])} parameters,"
            f" {format_count(totals['macs'])} MACs, {format_bytes(totals['size_bytes'])} in float32"
        )
    else:
        console.print(
            f"{escape(data['file'])}: {data['format']}, {format_bytes(data['bytes'])}, {format_count(data['macs'])}"
            f" MACs"
        )
        for side in ("inputs", "outputs"):
            for tensor in data[side]:
                console.print(
                    f"{side[:-1]:6} {escape(tensor['name'])} {tensor['dtype']} {_shape(tensor['shape'])}"
                    f" {tensor['layout']}"
                )
        rows = [
            (
                op["index"],
                op["type"],
                op["layer"] or op["name"][-50:],
                _shape(op["output_shape"]),
                op["weight_dtype"],
                op["compute_dtype"],
                format_count(op["macs"]) if op["macs"] else "",
            )
            for op in data["ops"]
        ]
        console.print(table(("#", "type", "layer or name", "output", "weights", "computes in", "MACs"), rows, left=3))
        for sentence in filter(None, [*data["not_taken"], data["as_network"]]):
            console.print(f"• {escape(sentence)}")
    for sentence in data.get("findings", ()):
        console.print(f"• {escape(sentence)}")


def _shape(shape: Sequence[int | None]) -> str:
    return "×".join("n" if size is None else str(size) for size in shape)
