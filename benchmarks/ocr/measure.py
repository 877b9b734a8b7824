"""Two files of one OCR network against each other: what they read, their size, latency and memory.

    python -m benchmarks.ocr.measure lines CANDIDATE [--original rec.onnx] [--lines .downloads/ocr-lines] [--split test]
    python -m benchmarks.ocr.measure pages CANDIDATE [--original det.onnx] [--pages .downloads/ocr-pages-test]

`lines` compares exact match and CER of a recogniser, by kind of line and by font; `pages` compares the text masks of a
detector. CANDIDATE is an .onnx or a .tflite file; without one, the original is measured against itself, which shows the
noise. Files are timed, and their memory is measured, with inputs of one size: a file with dynamic axes as a copy whose
sizes are fixed. The ratio of latencies is taken inside one runtime. The result is JSON in
`.downloads/benchmark/ocr-<lines|pages>-<candidate>.json` unless `--json` names another place.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ocr import fonts, recogniser
from benchmarks.ocr.scores import compared_masks, compared_texts, manifest_sha256, pages_in, texts_of
from pocketfit import runtimes
from pocketfit.core.errors import PocketfitError, UserError
from pocketfit.core.measurement import Measurement
from pocketfit.measurement import latency, memory
from pocketfit.report.page.words import format_value

DETECTOR = fonts.RECOGNISER.with_name("ch_PP-OCRv4_det_infer.onnx")
RESULTS = Path(".downloads/benchmark")
PAGE = (1, 3, 640, 640)
LINE = (1, 3, recogniser.HEIGHT, recogniser.WIDTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["lines", "pages"])
    parser.add_argument("candidate", type=Path, nargs="?")
    parser.add_argument("--original", type=Path)
    parser.add_argument("--lines", type=Path, default=Path(".downloads/ocr-lines"))
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    parser.add_argument("--pages", type=Path, default=Path(".downloads/ocr-pages-test"))
    parser.add_argument("--limit", type=int, help="the first lines or pages only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--untimed", action="store_true", help="leave latency and memory out")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    original = given.original or (fonts.RECOGNISER if given.what == "lines" else DETECTOR)
    candidate = given.candidate or original
    RESULTS.mkdir(parents=True, exist_ok=True)
    out = given.json or RESULTS / f"ocr-{given.what}-{candidate.stem}.json"
    try:
        for file in (original, candidate):
            if not file.is_file():
                raise UserError(
                    f"The file '{file}' is not there (python tools/fetch.py rapidocr fetches the originals)"
                )
        found = measured(given, original, candidate)
    except PocketfitError as error:
        sys.exit(f"ocr: {error}")
    out.write_text(json.dumps(found, ensure_ascii=False, indent=1), encoding="utf-8")
    print("\n".join(report(found)))
    print(f"\n{out}")


def measured(given: argparse.Namespace, original: Path, candidate: Path) -> dict[str, Any]:
    """Everything, as the JSON file holds it."""
    found: dict[str, Any] = {
        "what": given.what,
        "original": str(original),
        "candidate": str(candidate),
        "threads": given.threads,
        "size_bytes": [original.stat().st_size, candidate.stat().st_size],
    }
    if given.what == "lines":
        lines = recogniser.read(given.lines, given.split, given.limit)
        charset = fonts.charset_of(original)
        said = [texts_of(f, lines, charset, threads=given.threads, kept=RESULTS) for f in (original, candidate)]
        found |= {"split": given.split, "manifest_sha256": manifest_sha256(given.lines)}
        found["texts"] = compared_texts(lines, said[0], said[1])
    else:
        pages = pages_in(given.pages, given.limit)
        found["masks"] = compared_masks((original, candidate), pages, threads=given.threads)
    if not given.untimed:
        shape = LINE if given.what == "lines" else PAGE
        found["cost"] = costs(original, candidate, shape, given.threads)
    return found


def costs(original: Path, candidate: Path, shape: Sequence[int], threads: int) -> dict[str, Any]:
    """Latency and memory of both; ratios where both belong to one runtime (of memory always)."""
    files = [fixed(file, shape) for file in (original, candidate)]
    names = [runtimes.for_file(file).NAME for file in files]
    found: dict[str, Any] = {"shape": list(shape), "runtimes": names}
    if names[0] == names[1]:
        (turns,) = latency.compare_latency(names[0], files[0], [files[1]], threads=threads)
        found["latency"] = [turns.baseline["latency_ms"].to_json(), turns.candidate["latency_ms"].to_json()]
        found["latency_ratio"] = turns.ratio.to_json()
    else:
        taken = [latency.latency(name, file, threads=threads) for name, file in zip(names, files, strict=True)]
        found["latency"] = [each["latency_ms"].to_json() for each in taken]
    memories = [memory.footprint(name, file, threads=threads) for name, file in zip(names, files, strict=True)]
    found["memory"] = [{name: m.to_json() for name, m in each.items()} for each in memories]
    found["memory_ratio"] = _ratio(memories[0]["memory_bytes"], memories[1]["memory_bytes"])
    found["memory_gross_ratio"] = _ratio(memories[0]["memory_gross_bytes"], memories[1]["memory_gross_bytes"])
    return found


def fixed(file: Path, shape: Sequence[int]) -> Path:
    """The file, or a copy below RESULTS whose input has this shape where it has dynamic axes. ONNX Runtime is no slower
    with fixed sizes."""
    if file.suffix.lower() != ".onnx":
        return file
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed

    model = onnx.load(str(file))
    (given,) = model.graph.input
    if all(size.HasField("dim_value") for size in given.type.tensor_type.shape.dim):
        return file
    make_input_shape_fixed(model.graph, given.name, list(shape))
    path = RESULTS / f"{file.stem}-{'x'.join(str(size) for size in shape)}.onnx"
    onnx.save(model, str(path))
    return path


def report(found: dict[str, Any]) -> list[str]:
    """The result as Markdown tables."""
    sizes = found["size_bytes"]
    rows = [["size", format_value(sizes[0], "B"), format_value(sizes[1], "B"), f"{sizes[1] / sizes[0]:.3f}x"]]
    if "cost" in found:
        rows += _cost_rows(found["cost"])
    if "masks" in found:
        masks = found["masks"]
        iou = masks["iou"]
        rows.append(["IoU of the mask", "1", f"{iou['value']:.4f}", f"[{iou['low']:.4f}, {iou['high']:.4f}]"])
        rows.append(["IoU of all pixels", "1", f"{masks['iou_pixels']:.4f}", f"{masks['n']} pages"])
    told = _table(["", "original", "candidate", "ratio"], rows)
    if "texts" in found:
        header = ["lines", "n", "exact", "exact", "drop, points", "CER, %", "CER, %", "rise, points", "same text"]
        told += ["", *_table(header, [_text_row(name, group) for name, group in found["texts"].items()])]
    return told


def _text_row(name: str, group: dict[str, Any]) -> list[str]:
    exact, rates = group["exact"], group["cer"]
    drop = exact["drop"]
    return [
        name,
        str(group["n"]),
        f"{exact['original']['value']:.2%}",
        f"{exact['candidate']['value']:.2%}",
        f"{drop['points']:+.2f} [{drop['low']:+.2f}, {drop['high']:+.2f}]",
        f"{100 * rates['original']:.3f}",
        f"{100 * rates['candidate']:.3f}",
        f"{rates['rise']:+.3f} [{rates['low']:+.3f}, {rates['high']:+.3f}]",
        f"{group['same_text']['value']:.2%}",
    ]


def _cost_rows(cost: dict[str, Any]) -> list[list[str]]:
    ratio = cost.get("latency_ratio")
    words = "two runtimes" if ratio is None else f"{ratio['value']:.3f}x [{ratio['low']:.3f}, {ratio['high']:.3f}]"
    rows = [["latency p50", *(format_value(each["value"], "ms") for each in cost["latency"]), words]]
    if ratio is not None and (why := ratio.get("environment", {}).get("disturbed")):
        rows.append(["disturbed", "", "", "; ".join(why)])
    for name in cost["memory"][0]:
        one, other = (each[name] for each in cost["memory"])
        if one.get("value") is None or other.get("value") is None:
            continue
        both = [format_value(each["value"], each["unit"]) for each in (one, other)]
        rows.append([name, *both, f"{other['value'] / one['value']:.3f}x" if one["value"] else ""])
    return rows


def _ratio(one: Measurement, other: Measurement) -> float | None:
    return other.value / one.value if one.value and other.value is not None else None


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows]]


if __name__ == "__main__":
    main()
