"""How well the table of costs predicts networks that it has not seen.

    python -m benchmarks.pruning.latency_predictor --model mobilenet_v2 --side 96 --runtime onnxruntime --cache tables/

Fits the predictor on one set of random sub-networks and checks it on another that is drawn with another seed. Bar:
within 10 % of measured for at least 90 % of 40 sub-networks, rank correlation at least 0.95. Interrupted, it goes on.
`--known N` looks at N sub-networks for the fit, `--unseen N` at N for the check.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pocketfit import zoo
from pocketfit.analysis import latency_predictor
from pocketfit.cli.progress_bar import watch_for_terminal
from pocketfit.core.plan.export import ExportSettings
from pocketfit.measurement import channel_cost_table
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.sources.models.open_model import model_from_module

SHARE_WITHIN, RANK = 0.90, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mobilenet_v2")
    parser.add_argument("--side", type=int, default=96)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--known", type=int, default=24)
    parser.add_argument("--unseen", type=int, default=40)
    parser.add_argument("--cache", type=Path, default=channel_cost_table.cache_folder())
    parser.add_argument("-o", "--out", type=Path)
    asked = parser.parse_args()
    torch.manual_seed(0)
    network = zoo.build(asked.model, classes=asked.classes).eval()
    model = model_from_module(network, input_shape=(3, asked.side, asked.side))
    graph = trace(model.network, model.signature)
    settings = ExportSettings(asked.runtime, precision=asked.precision)
    with watch_for_terminal() as watch:

        def table(folder: Path, count: int, seed: int) -> channel_cost_table.CostTable:
            return channel_cost_table.measure(
                model, graph, settings, folder, threads=asked.threads, count=count, seed=seed, watch=watch
            )

        known = table(asked.cache, asked.known, 0)
        unseen = table(asked.cache / "unseen", asked.unseen + 1, 1)
    fitted = latency_predictor.fit(known)
    # in ratios: each folder has its own time of the whole network, and the first of each is the whole network itself
    others = unseen.measured[1:]
    predicted = [fitted.latency_ms(one.widths) / known.full_ms for one in others]
    found = latency_predictor.errors(np.array(predicted), np.array([one.ratio for one in others]))
    result = {
        "model": asked.model,
        "side": asked.side,
        "runtime": asked.runtime,
        "precision": asked.precision,
        "threads": asked.threads,
        "known": len(known.measured),
        "held_out_of_the_table": asdict(latency_predictor.held_out(known)),
        "unseen": asdict(found),
        "steps": {kind: list(steps) for kind, steps in fitted.steps.items()},
        "measured_ratios": [one.ratio for one in others],
        "predicted_ratios": predicted,
        "met": found.share_within >= SHARE_WITHIN and found.rank >= RANK,
        "environment": dict(known.environment),
        "load_average_at_the_end": list(os.getloadavg()),
    }
    if asked.out is not None:
        asked.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{asked.model} at {asked.side} px, {asked.runtime} {asked.precision}, {asked.threads} thread(s)")
    print(f"machine: {known.environment['cpu']}, load {known.environment['load_average']} at first")
    print(f"table of {len(known.measured)}; blocks of channels (in, out): {result['steps']}")
    for title, errors in (("left out of the table", latency_predictor.held_out(known)), ("never fitted on", found)):
        print(
            f"{title} ({errors.n}): median error {errors.median:.1%}, worst {errors.worst:.1%}, "
            f"within 10 % {errors.share_within:.0%}, rank correlation {errors.rank:.3f}"
        )
    print("bar met" if result["met"] else "bar not met")


if __name__ == "__main__":
    main()
