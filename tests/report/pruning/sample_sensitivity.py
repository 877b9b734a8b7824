"""What `pocketfit sensitivity` could have found of a network; nothing here was measured."""

from __future__ import annotations

from typing import Any

GROUPS = (  # name, channels, edge, points lost at each ratio
    ("features.0.0", 32, "first", (4.0, 22.5, 61.0)),
    ("features.1.conv.0", 96, "", (0.4, 2.1, 9.8)),
    ("features.2.conv.0", 144, "", (-0.2, 0.3, 3.5)),
    ("features.3.conv.0", 192, "", (7.5, 41.0, 78.0)),
    ("features.4.conv.0", 8, "", (0.0, 0.0, 0.0)),
    ("features.18.0", 1280, "last", (0.1, 0.6, 2.4)),
)
RATIOS = (0.25, 0.5, 0.75)


def sensitivity(**changed: Any) -> dict[str, Any]:
    """JSON of the verb, with some keys changed."""
    result: dict[str, Any] = {
        "schema_version": 1,
        "data": "photos",
        "model": "mobilenet_v2",
        "labelled": True,
        "samples": 500,
        "split": "search",
        "criterion": "l2",
        "multiple": 8,
        "loss": 0.31,
        "accuracy": 0.912,
        "how": "estimated",
        "macs": 300_000_000,
        "size_bytes": 14_000_000,
        "latency": None,
        "curves": [_curve(*group) for group in GROUPS],
        "findings": ["The channels of features.5.conv can't be pruned, because they are fixed."],
        "plan": {
            "target": "macs:0.9x",
            "multiple": 8,
            "criterion": "l2",
            "macs": 265_000_000,
            "size_bytes": 13_000_000,
            "macs_ratio": 0.8833,
            "size_ratio": 0.9286,
            "drop_points": 3.5,
            "loss_rise": 0.07,
            "latency_ratio": None,
            "latency_ms": None,
            "line": "Prune(0.0, criterion='l2', multiple=8, layers=(('^features\\\\.2\\\\.conv\\\\.0$', 0.75),))",
            "pass": {"pass": "prune", "ratio": 0.0, "layers": [["^features\\.2\\.conv\\.0$", 0.75]]},
        },
    }
    return {**result, **changed}


def timed() -> dict[str, Any]:
    """The same with latencies in a runtime; the group of the first layer has none."""
    result = sensitivity()
    for curve in result["curves"][1:]:
        for point in curve["points"]:
            point["latency_ratio"] = 1 - 0.1 * point["ratio"]
    result["plan"] |= {"target": "latency:0.9x", "latency_ratio": 0.87, "latency_ms": 3.57}
    held_out = {"n": 24, "median": 0.021, "worst": 0.083, "share_within": 1.0, "rank": 0.99}
    about = {"runtime": "onnxruntime", "threads": 1, "precision": "float32", "environment": {"cpu": "Example 9000"}}
    result["latency"] = {**about, "full_ms": 4.1, "networks": 24, "held_out": held_out, "how": "estimated"}
    return result


def _curve(name: str, channels: int, edge: str, drops: tuple[float, ...]) -> dict[str, Any]:
    points = [
        {
            "ratio": ratio,
            "kept": channels if channels == 8 else round(channels * (1 - ratio)),
            "loss": 0.31 + drop / 50,
            "loss_rise": drop / 50,
            "loss_rise_se": 0.01 if drop else 0.0,
            "accuracy": 0.912 - drop / 100,
            "drop_points": drop,
            "drop_points_se": 0.5 if drop else 0.0,
            "macs": 300_000_000 - round(channels * 50_000 * ratio),
            "size_bytes": 14_000_000 - round(channels * 900 * ratio),
            "why_not": "",
            "latency_ratio": None,
        }
        for ratio, drop in zip(RATIOS, drops, strict=True)
    ]
    return {
        "group": name,
        "layers": [name, name.replace("conv.0", "conv.3")] if "conv" in name else [name],
        "pattern": f"^{name}$",
        "channels": channels,
        "edge": edge,
        "why_not": "",
        "points": points,
    }
