"""What `inspect --for` and `inspect --mobile` print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def show(data: Mapping[str, Any]) -> None:
    """An accelerator against a file: the operators, what falls back, the rules of TensorRT, and the source."""
    from rich.markup import escape

    from pocketfit.analysis.accelerators.coverage import sentence
    from pocketfit.cli.terminal import plain, table
    from pocketfit.core.support.text import some
    from pocketfit.report.page.words import format_count

    console = plain()
    of = " (its float32 export)" if data["float_export"] else ""
    console.print(f"{escape(data['model'])}{of} for {escape(data['title'])}: {sentence(data)}")
    rows = [
        (
            line["type"],
            line["dtype"] or "stored",
            "yes" if line["listed"] else "no",
            ", ".join(line["types"]) or ("not stated" if line["listed"] else ""),
            str(line["count"]),
            format_count(line["macs"]) if line["macs"] else "",
        )
        for line in data["lines"]
    ]
    console.print(table(("operator", "in the file", "listed", "in", "count", "MACs"), rows, left=4))
    for line in data["lines"]:
        if line["why"]:
            console.print(f"\u2022 {line['type']} ({escape(some(line['examples'], 3))}): {escape(line['why'])}")
    unchecked = {line["type"]: line["note"].rstrip(".") for line in data["lines"] if line["listed"] and line["note"]}
    if unchecked:
        listed = "; ".join(f"{kind}: {note}" for kind, note in unchecked.items())
        console.print(f"\u2022 Conditions of the source that were not checked: {escape(listed)}")
    for note in data["notes"]:
        console.print(f"\u2022 {escape(note)}")
    if "breaches" in data:
        _tensorrt(data)
    console.print(f"Source: {escape(data['source'])}, {data['date']}, read {data['read']}")


def _tensorrt(data: Mapping[str, Any]) -> None:
    from rich.markup import escape

    from pocketfit.cli.terminal import plain

    console = plain()
    broken = data["breaches"]
    if broken:
        console.print(f"{len(broken)} nodes break a rule of TensorRT's quantization:")
    else:
        console.print("No node breaks a rule of TensorRT's quantization")
    for one in broken:
        console.print(f"\u2022 {escape(one['node'])} {escape(one['rule'])}")
    for device, line in data["trtexec"].items():
        console.print(f"{device}: {escape(line)}", soft_wrap=True)
    console.print(f"latency: {escape(data['latency'])}")


def show_mobile(data: Mapping[str, Any]) -> None:
    """The files that were written, what they need, and what each provider lists."""
    from rich.markup import escape

    from pocketfit.analysis.accelerators.coverage import sentence
    from pocketfit.cli.terminal import plain
    from pocketfit.report.page.words import format_bytes

    console = plain()
    console.print(
        f"{escape(data['ort'])}: {format_bytes(data['ort_bytes'])} (.onnx: {format_bytes(data['onnx_bytes'])}), its"
        f" answers in ONNX Runtime are within {data['largest_difference']:.1g} of the .onnx file's largest output"
    )
    if data["largest_difference_here"] > 10 * max(data["largest_difference"], 1e-5):
        console.print(
            "\u2022 Optimized for ARM, its integers are computed by other kernels than those of the .onnx file on this"
            f" machine: outputs differ by {data['largest_difference_here']:.1g} of the largest on random inputs"
        )
    console.print(f"{escape(data['config'])}: what a build of ONNX Runtime for it has to contain:")
    for line in data["required"]:
        console.print(f"  {escape(line)}", soft_wrap=True)
    for found in data["providers"].values():
        console.print(f"{escape(found['title'])}: {sentence(found)}")
        for note in found["notes"]:
            console.print(f"\u2022 {escape(note)}")
        console.print(f"  Source: {escape(found['source'])}, {found['date']}, read {found['read']}", soft_wrap=True)
