"""Recovery that must not make things worse: training of networks of all kinds with themselves as teacher, and of pruned
ones beside what recovery was before it was looked after.

    python -m benchmarks.pruning.recovery self [--kinds REGEX] [--steps 10,60,300]
    python -m benchmarks.pruning.recovery pruned [--kinds REGEX] [--ratios 0.3,0.5] [--steps 100] [--seeds 3]
    python -m benchmarks.pruning.recovery overhead [--steps 300]
    python -m benchmarks.pruning.recovery table

Fashion-MNIST at 32 x 32, the networks of `recovery_networks.py`, each trained for 900 steps of 64 pictures before
(AdamW, 20,000 pictures). Then `self` trains each unpruned network with itself as teacher, on 10,000 of these, as `fit`
sets it: at the rate that is found on the network, guarded; and as it was before: at 0.02, not guarded. Any loss is a
loss by training. Accuracy on 4,000 test pictures, drop in points with its paired 95 % interval. `pruned` prunes the
same share of all channels, and recovers in both ways with the same seeds. `overhead` times the guard's
parts inside a training at 64 x 64. What was measured is kept in .downloads/benchmark/recovery/rows.jsonl:
a run that was stopped goes on, and `table` only prints.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.pruning.recovery_networks import KINDS
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.numerics.latency_intervals import paired_drop
from pocketfit.passes.prune import prune_channels
from pocketfit.passes.train import fine_tune as training
from pocketfit.passes.train.answers import manner
from pocketfit.passes.train.batches import shuffled
from pocketfit.passes.train.guarded.clip_gradients import Clip
from pocketfit.passes.train.guarded.find_learning_rate import found_rate
from pocketfit.passes.train.guarded.guard import Guard
from pocketfit.passes.train.guarded.objective import Exam
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.models.open_model import model_from_module

DOWNLOADS = Path(__file__).resolve().parents[2] / ".downloads"
HOME = DOWNLOADS / "benchmark" / "recovery"
ROWS = HOME / "rows.jsonl"
PREPROCESS = Preprocess(height=32, width=32, resize="exact", mean=(0.5,) * 3, std=(0.25,) * 3)
FIRST_STEPS, BATCH = 900, 64
TRAINED_WITH, RECOVERED_WITH, TESTED_WITH = 20_000, 10_000, 4_000  # pictures
USUAL = 0.02  # the rate of recovery before one was found
PRUNED = ("MobileNetV2 x0.35", "MobileNetV3-small x0.5", "ShuffleNetV2 x0.5", "ResNet-18 x0.25", "DenseNet style")
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("self", "pruned", "overhead", "table"))
    parser.add_argument("--kinds", default="")
    parser.add_argument("--steps", default="")
    parser.add_argument("--ratios", default="0.3,0.5")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    HOME.mkdir(parents=True, exist_ok=True)
    chosen = [name for name in KINDS if re.search(options.kinds, name)]
    if options.part == "self":
        steps = [int(word) for word in (options.steps or "10,60,300").split(",")]
        by_itself(Bench(), chosen, steps)
    elif options.part == "pruned":
        ratios = [float(word) for word in options.ratios.split(",")]
        pruned = [name for name in chosen if options.kinds or name in PRUNED]
        recovered(Bench(), pruned, ratios, int(options.steps or 100), options.seeds)
    elif options.part == "overhead":
        overhead(int(options.steps or 300))
    print(table())


class Bench:
    """The data, and the networks as they were trained."""

    @cached_property
    def data(self) -> Any:
        return open_data(DOWNLOADS / "fashion-mnist.npz")

    def split(self, name: str, limit: int) -> Samples:
        return self.data.split(name, PREPROCESS, split_seed=0, limit=limit, cache=HOME / "pixels")  # type: ignore[no-any-return]

    @cached_property
    def samples(self) -> Samples:
        return self.split("train", RECOVERED_WITH)

    @cached_property
    def test(self) -> Samples:
        return self.split("verdict", TESTED_WITH)

    def model(self, name: str) -> Model:
        kind = KINDS[name]
        network = KINDS[kind.like or name].build()
        path = HOME / f"{re.sub(r'[ ,]+', '_', kind.like or name)}.pt"
        if not path.exists():
            torch.save(self._trained(kind.like or name), path)
        network.load_state_dict(torch.load(path))
        network.eval()
        if kind.scaled is not None:
            kind.scaled(network)
        return model_from_module(network, preprocess=PREPROCESS, labels=self.data.class_names)

    def right(self, network: nn.Module) -> NDArray[np.float64]:
        """Of each test picture 1 where the answer is right."""
        with torch.inference_mode():
            answers = [network(torch.from_numpy(x)).argmax(1).numpy() for x, _ in self.test.batches(250)]
        found: NDArray[np.float64] = (np.concatenate(answers) == self.test.labels).astype(np.float64)
        return found

    def _trained(self, name: str) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        network = KINDS[name].build().train()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=1e-4)
        for step, (inputs, labels) in enumerate(
            shuffled(self.split("train", TRAINED_WITH), BATCH, FIRST_STEPS, seed=0)
        ):
            peak = 5e-4 if "ixel" in name else 1e-3
            for group in optimizer.param_groups:
                group["lr"] = peak * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * step / FIRST_STEPS))
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(inputs.contiguous()), labels).backward()
            optimizer.step()
        return network.state_dict()


def by_itself(bench: Bench, kinds: list[str], steps: list[int]) -> None:
    """Rows of the unpruned networks with themselves as teachers."""
    for name in kinds:
        model = bench.model(name)
        before = bench.right(model.network)
        rate = once({"part": "rate", "kind": name}, lambda model=model: _rate(bench, model))["learning_rate"]
        for count in steps:
            for way in ("now", "before"):
                settings = _settings(way, count, 0, rate)
                key = {"part": "self", "kind": name, "steps": count, "way": way, "seed": 0}
                once(key, lambda m=model, s=settings, b=before: _row(bench, m, m, s, b))


def recovered(bench: Bench, kinds: list[str], ratios: list[float], steps: int, seeds: int) -> None:
    """Rows of pruned networks with the unpruned ones as teachers."""
    for name in kinds:
        model = bench.model(name)
        before = bench.right(model.network)
        rate = once({"part": "rate", "kind": name}, lambda model=model: _rate(bench, model))["learning_rate"]
        for ratio in ratios:
            smaller = prune_channels.apply(model, Prune(ratio, multiple=4), None)
            for seed in range(seeds):
                for way in ("now", "before"):
                    settings = _settings(way, steps, seed, rate)
                    key = {"part": "pruned", "kind": name, "ratio": ratio, "steps": steps, "way": way, "seed": seed}
                    once(key, lambda m=model, p=smaller, s=settings, b=before: _row(bench, p, m, s, b))


def _settings(way: str, steps: int, seed: int, rate: float) -> Train:
    if way == "now":
        return Train(steps, batch_size=BATCH, learning_rate=rate, seed=seed)
    return Train(steps, batch_size=BATCH, learning_rate=USUAL, seed=seed, guarded=False)


def _rate(bench: Bench, model: Model) -> Row:
    began = time.monotonic()
    found = found_rate(model, Train(1, batch_size=BATCH), bench.samples)
    how = manner(model.network, torch.from_numpy(bench.samples.inputs(slice(0, 4))))
    spent = {"seconds": time.monotonic() - began, "steps_per_s": 1 / found.seconds_per_step}
    views = how.memory == torch.contiguous_format
    return {"learning_rate": found.learning_rate, "rise": found.rise, "own_layout": views, **spent}


def _row(bench: Bench, student: Model, teacher: Model, settings: Train, before: NDArray[np.float64]) -> Row:
    began = time.monotonic()
    try:
        trained = training.apply(student, settings, bench.samples, teacher=teacher)
    except Exception as error:  # whatever ends a training is what is to be shown
        return {"error": f"{type(error).__name__}: {error}"}
    seconds, after = time.monotonic() - began, bench.right(trained.network)
    drop = paired_drop(before, after)
    said = [sentence for sentence in trained.findings if sentence not in student.findings]
    return {
        "accuracy_before": float(before.mean()),
        "accuracy": float(after.mean()),
        "drop_points": drop.points,
        "drop_interval": [drop.low, drop.high],
        "seconds": seconds,
        "findings": said,
    }


def once(key: Row, make: Callable[[], Row]) -> Row:
    """The row of this key: out of the file, or made and written there."""
    for row in rows():
        if all(row.get(name) == value for name, value in key.items()):
            return row
    row = {**key, **make()}
    with ROWS.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    return row


def rows() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def overhead(steps: int) -> None:
    """Seconds that a guarded training of the narrow MobileNetV2 at 64 x 64 spends on looks and on gradients' bounds."""
    bench, preprocess = Bench(), replace(PREPROCESS, height=64, width=64)
    model = model_from_module(bench.model("MobileNetV2 x0.35").network, preprocess=preprocess)
    samples = bench.data.split("train", preprocess, split_seed=0, limit=5120, cache=HOME / "pixels")
    spent = {"looks": 0.0, "bounds": 0.0}

    def timed(what: str, owner: type, name: str) -> None:
        whole = getattr(owner, name)

        def counted(*given: Any, **more: Any) -> Any:
            began = time.thread_time()
            try:
                return whole(*given, **more)
            finally:
                spent[what] += time.thread_time() - began

        setattr(owner, name, counted)

    timed("looks", Guard, "__init__")
    timed("looks", Guard, "fell")
    timed("looks", Guard, "finish")
    timed("looks", Exam, "__init__")
    timed("bounds", Clip, "__call__")
    began = time.thread_time()
    training.apply(model, Train(steps), samples, teacher=model)
    rest = time.thread_time() - began - sum(spent.values())
    shares = ", ".join(f"{what} {seconds:.2f} s, {seconds / rest:.2%} of the rest" for what, seconds in spent.items())
    print(f"{steps} steps of 64 pictures: {rest:.1f} s of one thread without the guard; {shares}", flush=True)


def table() -> str:
    return "\n".join([*_by_itself(), "", *_pruned()])


def _by_itself() -> Iterator[str]:
    found = [row for row in rows() if row["part"] == "self"]
    steps = sorted({row["steps"] for row in found})
    yield "| network | before % | rate | " + " | ".join(f"{count} steps" for count in steps) + " | as it was |"
    yield "| --- " * (4 + len(steps)) + "|"
    for name in dict.fromkeys(row["kind"] for row in found):
        mine = [row for row in found if row["kind"] == name]
        rate = next(row for row in rows() if row["part"] == "rate" and row["kind"] == name)
        now = [_cell(mine, count, "now") for count in steps]
        old = "failed" if rate["own_layout"] else ", ".join(_cell(mine, count, "before", brief=True) for count in steps)
        accuracy = next(row["accuracy_before"] for row in mine if "accuracy_before" in row)
        yield f"| {name} | {100 * accuracy:.1f} | {rate['learning_rate']:g} | {' | '.join(now)} | {old} |"


def _cell(found: list[Row], steps: int, way: str, *, brief: bool = False) -> str:
    row = next((row for row in found if row["steps"] == steps and row["way"] == way), None)
    if row is None:
        return ""
    if "error" in row:
        return "diverged" if "diverged" in row["error"] else "failed"
    kept = " (kept)" if any("as it was before" in sentence for sentence in row["findings"]) else ""
    low, high = row["drop_interval"]
    change = f"{-row['drop_points']:+.1f}"
    return change if brief else f"{change} [{-high:+.1f}, {-low:+.1f}]{kept}"


def _pruned() -> Iterator[str]:
    found = [row for row in rows() if row["part"] == "pruned" and "accuracy" in row]
    yield "| network | ratio | steps | before | pruned and recovered, now | as it was | difference, by seed |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, ratio, steps in dict.fromkeys((row["kind"], row["ratio"], row["steps"]) for row in found):
        mine = [row for row in found if (row["kind"], row["ratio"], row["steps"]) == (name, ratio, steps)]
        ways = {way: {r["seed"]: 100 * r["accuracy"] for r in mine if r["way"] == way} for way in ("now", "before")}
        both = sorted(ways["now"].keys() & ways["before"].keys())
        if not both:
            continue
        differences = [ways["now"][seed] - ways["before"][seed] for seed in both]
        means = [float(np.mean([ways[way][seed] for seed in both])) for way in ("now", "before")]
        by_seed = ", ".join(f"{value:+.1f}" for value in differences)
        first = 100 * mine[0]["accuracy_before"]
        yield f"| {name} | {ratio:g} | {steps} | {first:.1f} | {means[0]:.1f} | {means[1]:.1f} | {by_seed} |"


if __name__ == "__main__":
    main()
