"""README.md and requirements.txt of a bundle, from its manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHOWN = {  # quantity -> (words, factor, unit, digits)
    "size_bytes": ("size", 1e-6, "MB", 2),
    "latency_ms": ("median latency", 1.0, "ms", 2),
    "latency_p95_ms": ("95th percentile of latency", 1.0, "ms", 2),
    "memory_bytes": ("peak memory", 1e-6, "MB", 1),
    "accuracy": ("accuracy", 100.0, "%", 1),
    "drop_points": ("drop against float32", 1.0, "points", 2),
}


def requirements(manifest: Mapping[str, Any]) -> str:
    """The packages that run.py needs, in the versions with which the golden outputs were made."""
    runtime, environment = manifest["runtime"], manifest["environment"]
    needed = f"{runtime['package']}=={runtime['version']}\nnumpy=={environment['numpy']}\n"
    return needed if manifest["input"]["kind"] == "sound" else f"{needed}pillow=={environment['pillow']}\n"


def readme(manifest: Mapping[str, Any]) -> str:
    """README.md: how to run the bundle, what was measured, and where; at most 15 lines and one for each note."""
    file, runtime, environment = manifest["file"], manifest["runtime"], manifest["environment"]
    source = {"picture": "picture.jpg", "sound": "sound.wav"}.get(manifest["input"]["kind"], "tensor.npy")
    lines = [
        f"# {file['name']}",
        f"`{manifest['code']}` for {runtime['name']}, {file['bytes'] / 1e6:.2f} MB, {_about(manifest)}.",
        "",
        "    pip install -r requirements.txt",
        f"    python run.py {source}     # also folders, and - for names from stdin; --json, --top, --threads",
        "    python run.py --selftest      # files, preprocessing and outputs, checked against golden/",
        "",
        f"Measured: {measured(manifest['measurements'])}.",
        f"On: {environment['processor']} ({environment['machine']}, {environment['system']}),"
        f" {runtime['package']} {runtime['version']}, Python {environment['python']}.",
        *_verdict(manifest["result"]),
        *(f"Note: {note}." for note in manifest["notes"]),
        f"manifest.json says how {'a recording' if source == 'sound.wav' else 'an image'} becomes the input and what"
        " the output means; preprocess.py is that in numpy.",
    ]
    return "\n".join(lines) + "\n"


def measured(measurements: Mapping[str, Mapping[str, Any]]) -> str:
    """The measurements in one line.

    >>> measured({"latency_ms": {"value": 4.217, "how": "measured", "n": 100, "low": 4.1, "high": 4.3}})
    'median latency 4.22 ms (4.10 to 4.30, n = 100)'
    """
    words = []
    for quantity, (name, factor, unit, digits) in SHOWN.items():
        found = measurements.get(quantity)
        if found is None or found.get("value") is None:
            continue
        text = f"{name} {found['value'] * factor:.{digits}f} {unit}"
        details = []
        if found.get("low") is not None and found.get("high") is not None:
            details.append(f"{found['low'] * factor:.{digits}f} to {found['high'] * factor:.{digits}f}")
        if found.get("n", 1) > 1:
            details.append(f"n = {found['n']}")
        if found["how"] != "measured":
            details.append(found["how"])
        words.append(text + (f" ({', '.join(details)})" if details else ""))
    return "; ".join(words) or "nothing yet"


def _about(manifest: Mapping[str, Any]) -> str:
    """What the outputs are, in words."""
    match manifest.get("task", "classification"):
        case "text":
            return f"text lines of {len(manifest['labels']):,} symbols (the first is the CTC blank)"
        case "segmentation":
            return "a map of classes"
        case "embedding":
            return f"embeddings of {manifest['output']['shape'][-1]} numbers, compared by their cosine (--match)"
        case "fidelity":
            return f"an output of {' x '.join(map(str, manifest['output']['shape'][1:]))}"
    return f"{len(manifest['labels'])} classes"


def _verdict(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return ["The search was still under way when this was written: a better file may follow."]
    sentence = {
        "met": "The limits are met",
        "infeasible": "The limits are NOT met; this is the nearest that was found",
        "stopped": "The search was stopped; this is the best that was found",
    }[result["status"]]
    return [f"{sentence}{' (certified)' if result.get('certified') else ''}."]
