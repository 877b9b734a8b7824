"""What `pocketfit explain` could have found of a sabotaged network; nothing here was measured."""

from __future__ import annotations

import math
from typing import Any

from pocketfit.report.quantization.explain import METHOD_WORDS

RUNGS = ("plain int8", "ranges by least squared error", "equalization", "equalization and learned rounding")


def drop(points: float) -> dict[str, Any]:
    return {
        "points": points,
        "low": points - 0.8,
        "high": points + 0.8,
        "upper_one_sided": points + 0.7,
        "n": 500,
        "differing": 31,
    }


def file(name: str, kind: str, sqnr_db: float | None, points: float | None, **settings: Any) -> dict[str, Any]:
    found = {
        "name": name,
        "kind": kind,
        "code": "wi8ai8",
        "size_bytes": 3_612_000,
        "sqnr_db": sqnr_db,
        "agreement": None if sqnr_db is None else 0.91,
        "accuracy": 0.71,
        "drop": None if points is None else drop(points),
        "cost": None,
        "gain_db": 0.0,
        "keep_float": [],
        "layer": "",
    }
    return found | settings


def layer(name: str, share: float, **settings: Any) -> dict[str, Any]:
    channels = {"count": 16, "times": 1.9, "wide": 0, "which": []}
    found = {
        "layer": name,
        "weight_bits": 8,
        "reads": "",
        "weights_db": 31.0,
        "activations_db": 28.5,
        "only_db": 26.4,
        "all_but_db": 11.9,
        "gain_db": 0.4,
        "share": share,
        "own_db": 36.1,
        "neighbours_db": 35.0,
        "drift_db": 21.0,
        "outputs": channels,
        "weights": channels,
        "inputs": channels,
    }
    return found | settings


def explanation(**settings: Any) -> dict[str, Any]:
    wide = {"count": 16, "times": 97.3, "wide": 1, "which": [5]}
    guilty, second = "features.1.conv.1", "features.2.conv.0.0"
    layers = [
        layer("x", 0.01, weight_bits=None, weights_db=None, inputs=None, weights=None),
        layer(guilty, 0.71, weights_db=33.0, activations_db=12.9, outputs=wide, all_but_db=17.8, gain_db=6.3),
        layer(second, 0.12, reads=guilty),
        layer("features.3.add", 0.05, weight_bits=None, weights_db=None, neighbours_db=None),
        *(layer(f"features.{i}.conv.2", 0.01) for i in range(4, 15)),
    ]
    bell = [round(4000 * math.exp(-(((i - 3) / 1.4) ** 2))) + (2 if i > 20 and i % 7 == 0 else 0) for i in range(64)]
    rungs = zip(RUNGS[1:], (12.1, 16.9, 18.2), (2.4, 0.4, 0.2), strict=True)
    kept = {"keep_float": [guilty, second]}
    found = {
        "schema_version": 1,
        "data": "photos",
        "model": "mobilenet_v2",
        "runtime": "litert",
        "code": "wi8ai8",
        "samples": 500,
        "split": "search",
        "labelled": True,
        "files": [
            file("float32", "float", None, None, size_bytes=14_000_000, agreement=1.0),
            file(RUNGS[0], "plain", 11.5, 2.9),
            *(file(name, "rung", db, lost) for name, db, lost in rungs),
            file(f"{guilty} in float", "kept", 17.4, 0.8, cost=drop(2.1), gain_db=5.9, **kept),
            file(
                "all of them in float", "excluded", 17.9, 0.7, cost=drop(2.2), gain_db=6.4, keep_float=[guilty, second]
            ),
        ],
        "table": {
            "whole_db": 11.5,
            "weights_db": 17.0,
            "activations_db": 12.2,
            "added_db": 11.9,
            "layers": layers,
            "judged": 16,
            "observed": 100,
            "ranges": "min-max",
            "how": "estimated",
        },
        "drift_db": {guilty: 14.4, second: None},
        "drift_note": "Layers compared on 8 samples, each behind its activation",
        "culprits": [
            {
                "layer": guilty,
                "share": 0.71,
                "cause": "one of its 16 channels has 97 times the median range",
                "keep_float": [guilty, second],
            },
            {"layer": "features.3.add", "share": 0.05, "cause": "no channel stands out", "keep_float": []},
        ],
        "after": {
            name: {guilty: db, "features.3.add": 30.0} if db else {}
            for name, db in zip(RUNGS, (12.8, 13.0, 33.1, None), strict=True)
        },
        "exclude": [guilty, second],
        "ranges": [
            {"method": name, "sqnr_db": [11.0, 11.5, 12.0], "lowest_db": 11.0, "median_db": 11.5, "highest_db": 12.0}
            for name in METHOD_WORDS
        ],
        "histograms": [
            {
                "layer": guilty,
                "tensor": "features_1_conv_1",
                "low": -40.0,
                "high": 310.0,
                "counts": bell,
                "clips": {name: [-40.0, 310.0] if name != "mse" else [-20.0, 140.0] for name in METHOD_WORDS},
            }
        ],
        "headline": f"{guilty} costs 2.1 of the 2.9 points: one of its 16 channels has 97 times the median range;"
        " equalization took the file's loss to 0.4.",
        "findings": ["12 of 200 calibration samples are of one value throughout"],
    }
    return found | settings
