"""Pruning at equal measured latency: which allocation, which criterion, which recovery loses least.

    python -m benchmarks.pruning.equal_latency mobilenet_v2 --target 0.45 --seeds 5
    python -m benchmarks.pruning.equal_latency resnet18 --target 0.5 --methods 'latency-aware|narrow'
    python -m benchmarks.pruning.equal_latency mobilenet_v2 --methods 'latency-aware, taylor' --recovery '.*'

Fashion-MNIST, at the resolution of the network throughout; one epoch of recovery (MobileNetV2: the 10,000 pictures
that it was trained on; ResNet-18: 20,000 of its 40,000), verdict on the 10,000 test pictures. Every method is asked for
the same latency by the predictor of the runtime's cost table; its network is measured, and it is asked again for as
much more or less as the prediction was off, until the measured latency is that of the first method within 3 %, whose
own is the target. Then all networks are measured in one interleaved run, and only then trained. What was measured is
kept in .downloads/benchmark/pruning/. `--seeds 0` only measures: do that while nothing else runs, and train later. (A
busy second core slows a large network down more than a small one: what was predicted at 0.57x measured 0.43x.)
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import nn

from pocketfit import runtimes, zoo
from pocketfit.analysis import latency_predictor as predictor
from pocketfit.analysis.latency_predictor import Predictor
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.plan.prune import Prune
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.plan.train import Train
from pocketfit.core.samples import Samples
from pocketfit.measurement import channel_cost_table, latency
from pocketfit.numerics.channel_shapes import mac_terms
from pocketfit.numerics.latency_intervals import paired_drop
from pocketfit.passes.graph.channel_graph import ChannelGraph, trace
from pocketfit.passes.prune import criteria, prune_channels
from pocketfit.passes.rewrite import resolution
from pocketfit.passes.train import fine_tune as training
from pocketfit.search.propose import allocate_widths
from pocketfit.search.propose.allocate_widths import Choice, Widths
from pocketfit.sources.data.dataset import Dataset, open_data
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import load_model, model_from_module, open_model, save_model

ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = ROOT / ".downloads"
HOME = DOWNLOADS / "benchmark" / "pruning"
BATCH = 64
LOOKED_AT = 512  # pictures, by criteria that ask for data
NETWORKS = 32  # of the table of costs
EQUAL = 0.03  # share by which a measured latency may differ from the target
ASKED = 5  # times at most that a method is asked
MATCHING = latency.Effort(sessions=5, seconds=1.0, min_rounds=8, max_rounds=200)


@dataclass(frozen=True)
class Setting:
    """A network and how its float32 version came to be: pictures of side x side pixels, how many, how often; and how
    many pictures, once each, recovery sees."""

    name: str
    side: int
    weights: str
    training: int
    epochs: float
    recovery: int


SETTINGS = {
    "mobilenet_v2": Setting("mobilenet_v2", 96, "mobilenet_v2.pth", 10_000, 4, 10_000),
    "resnet18": Setting("resnet18", 32, "", 40_000, 4, 20_000),
}


class Bench:
    """The trained network, its data, and what its channels cost."""

    def __init__(self, setting: Setting, runtime: str, learning_rate: float) -> None:
        self.setting, self.runtime, self.learning_rate = setting, runtime, learning_rate
        self.data: Dataset = open_data(DOWNLOADS / "fashion-mnist.npz")
        self.home = HOME / f"{setting.name}-{setting.side}"
        self.model = self._trained()
        self.graph: ChannelGraph = trace(self.model.network, self.model.signature)
        self.samples = self._split("train", setting.recovery)
        self.verdict = self._split("verdict", None)
        self._scores: dict[str, Mapping[str, np.ndarray]] = {}

    def _split(self, name: str, limit: int | None) -> Samples:
        return self.data.split(name, self.model.preprocess, split_seed=0, limit=limit, cache=HOME / "pixels")

    def _trained(self) -> Model:
        folder = self.home / "float32"
        if not folder.is_dir():
            start, setting = _untrained(self.setting, self.data.class_names, 1.0), self.setting
            split = self.data.split(
                "train", start.preprocess, split_seed=0, limit=setting.training, cache=HOME / "pixels"
            )
            trained = training.transfer(start, split, epochs=setting.epochs, batch_size=BATCH)
            folder.parent.mkdir(parents=True, exist_ok=True)
            save_model(trained, folder)
        return load_model(folder)

    @cached_property
    def predictor(self) -> Predictor:
        table = channel_cost_table.measure(
            self.model, self.graph, ExportSettings(self.runtime), HOME / "costs", threads=1, count=NETWORKS
        )
        fitted = predictor.fit(table)
        print(f"cost table of {len(table.measured)} sub-networks, held out: {predictor.held_out(table)}", flush=True)
        return fitted

    def scores(self, criterion: str) -> Mapping[str, np.ndarray]:
        if criterion in self._scores:
            return self._scores[criterion]
        settings = Prune(0.5, criterion, samples=LOOKED_AT)  # type: ignore[arg-type]
        self._scores[criterion] = criteria.group_scores(self.model, self.graph, settings, self.samples)
        return self._scores[criterion]

    def choices(self, scores: Mapping[str, np.ndarray]) -> list[Choice]:
        known = self.predictor.skeleton
        found = []
        for name, full in known.full.items():
            choice = allocate_widths.from_scores(
                name, channel_cost_table.widths_of(full, known.per_id[name]), scores[name]
            )
            found.append(allocate_widths.on_edges(choice, self.predictor.terms(), known.full))
        return found

    def pruned(self, widths: Widths, criterion: str) -> Model:
        keep = tuple((name, width) for name, width in widths.items() if width < self.predictor.skeleton.full[name])
        settings = Prune(0.0, criterion, keep=keep, samples=LOOKED_AT)  # type: ignore[arg-type]
        return prune_channels.apply(self.model, settings, self.samples, graph=self.graph)

    def recovery(self, seed: int, changes: Mapping[str, Any]) -> Train:
        settings = Train(len(self.samples) // BATCH, BATCH, self.learning_rate, seed=seed, views=2)
        return replace(settings, **changes)

    def recovered(self, model: Model, settings: Train) -> Model:
        return training.apply(model, settings, self.samples, teacher=self.model, cache=HOME / "answers")

    def right(self, model: Model) -> np.ndarray:
        """1.0 for each test picture that is answered rightly, in PyTorch."""
        found, network = [], copy.deepcopy(model.network).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            for inputs, labels in self.verdict.batches(100):
                given = torch.from_numpy(inputs).contiguous(memory_format=torch.channels_last)
                found.append(network(given).argmax(1).numpy() == labels)
        return np.concatenate(found).astype(np.float64)


def _untrained(setting: Setting, labels: tuple[str, ...], width: float) -> Model:
    torch.manual_seed(0)
    published = open_model(setting.name, classes=len(labels))
    if setting.weights and width == 1.0:
        start = open_model(setting.name, weights=DOWNLOADS / setting.weights)
    else:
        network = zoo.build(setting.name, width=width, classes=len(labels))
        origin = Origin("zoo", setting.name, {"width": width, "classes": len(labels)})
        start = model_from_module(network, preprocess=published.preprocess, origin=origin, labels=labels)
    start = resolution.apply(start, Resolution(setting.side, setting.side))
    start = replace(start, preprocess=replace(start.preprocess, resize="shorter", resize_px=setting.side))
    return start if start.labels == labels else training.replace_head(start, labels, seed=0)


def methods(bench: Bench) -> dict[str, Callable[[float], Model]]:
    """By name, what makes the pruned, not yet recovered network that is predicted to have a share of the latency."""
    terms, whole = bench.predictor.terms(), bench.predictor.latency_ms({})

    def uniform(multiple: int, target: float) -> Model:
        known = bench.predictor.skeleton
        choices = [
            Choice(name, widths, tuple(float(full - width) for width in widths))
            for name, full in known.full.items()
            if (widths := channel_cost_table.widths_of(full, known.per_id[name], multiple))
        ]
        _, widths = allocate_widths.to_target(
            lambda ratio: allocate_widths.uniform(choices, ratio), terms, target * whole
        )
        return bench.pruned(widths, "l2")

    def aware(criterion: str, target: float, *, relative: bool = False) -> Model:
        scores = dict(bench.scores(criterion))
        if relative:
            scores = {name: values / values.sum() for name, values in scores.items()}
        return bench.pruned(allocate_widths.cost_aware(bench.choices(scores), terms, target * whole), criterion)

    def by_macs(criterion: str, target: float) -> Model:
        choices, known = bench.choices(bench.scores(criterion)), bench.predictor.skeleton
        least, most = (known.macs({c.layer: c.widths[place] for c in choices}) for place in (0, -1))

        def method(strength: float) -> Widths:
            return allocate_widths.cost_aware(choices, mac_terms(known), most - strength * (most - least))

        return bench.pruned(allocate_widths.to_target(method, terms, target * whole)[1], criterion)

    def ranked(criterion: str, target: float) -> Model:
        scores = bench.scores(criterion)
        choices = bench.choices(scores)
        method = lambda strength: allocate_widths.global_ranking(choices, scores, strength)  # noqa: E731
        return bench.pruned(allocate_widths.to_target(method, terms, target * whole)[1], criterion)

    found: dict[str, Callable[[float], Model]] = {
        "latency-aware, taylor": partial(aware, "taylor"),
        "uniform l2, widths of 8": partial(uniform, 8),
        "uniform l2, widths of 16": partial(uniform, 16),
        "global ranking, lamp": partial(ranked, "lamp"),
        "latency-aware, relative l2": partial(aware, "l2", relative=True),
        "MAC-aware, taylor": partial(by_macs, "taylor"),
        "narrow, from scratch": partial(narrower, bench),
    }
    for criterion in ("hessian", "lamp", "fpgm", "bn-scale", "activation"):
        found[f"latency-aware, {criterion}"] = partial(aware, criterion)
    for scope in ("uniform", "global"):
        for multiple in (8, 16):
            found[f"Torch-Pruning {scope} magnitude, round_to {multiple}"] = partial(
                torch_pruned, bench, scope, multiple
            )
    return found


def torch_pruned(bench: Bench, scope: str, multiple: int, target: float) -> Model:
    """What Torch-Pruning makes at the ratio at which its network is predicted to meet the target."""
    import torch_pruning

    def at(ratio: float) -> nn.Module:
        network = copy.deepcopy(bench.model.network)
        example = torch.zeros(1, 3, bench.setting.side, bench.setting.side)
        heads = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1:]
        pruner = torch_pruning.pruner.MagnitudePruner(
            network,
            example,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            global_pruning=scope == "global",
            pruning_ratio=ratio,
            max_pruning_ratio=0.9,
            ignored_layers=heads,
            round_to=multiple,
        )
        pruner.step()
        return network.eval()

    def predicted(network: nn.Module) -> float:
        named = dict(network.named_modules())
        widths = {name: int(named[name].weight.shape[0]) for name in bench.predictor.skeleton.full}
        return bench.predictor.ratio(widths)

    low, high = 0.0, 0.95
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (low, middle) if predicted(at(middle)) <= target else (middle, high)
    network = at(high)
    return replace(bench.model, network=network, sha256=fingerprint(network))


def narrower(bench: Bench, target: float) -> Model:
    """The same architecture built with fewer channels, the widest multiplier that is predicted to meet the target."""
    for percent in range(98, 10, -2):
        model = _untrained(bench.setting, bench.data.class_names, percent / 100)
        named = dict(model.network.named_modules())
        widths = {name: int(named[name].weight.shape[0]) for name in bench.predictor.skeleton.full}
        if bench.predictor.ratio(widths) <= target:
            return model
    raise SystemExit("No narrower network meets the target")


RECOVERIES: dict[str, dict[str, Any]] = {
    "fine-tuning": {"alpha": 0.0, "views": 0},
    "distillation": {},
    "fine-tuning, sgd": {"alpha": 0.0, "views": 0, "optimizer": "sgd"},
    "distillation, sgd": {"optimizer": "sgd"},
    "distillation, teacher at each step": {"views": 0},
    "decoupled distillation": {"distillation": "decoupled", "alpha": 0.5},
    "distillation, ema 0.98": {"ema": 0.98},
    "distillation, temperature 2": {"temperature": 2.0},
    "distillation only": {"alpha": 1.0},
}


def matched(
    bench: Bench, target: float, wanted: Mapping[str, Callable[[float], Model]], kept: dict[str, Any], store: Path
) -> dict[str, Model]:
    """Each method's network: the first one's latency is `target` of the whole network's, all others' are as long as
    its. (What the whole network takes depends on who else uses the caches; networks of one size suffer alike.)

    kept, store  what each was asked for, and in the end the latencies of all of them
    """
    made: dict[str, Model] = {}
    for name, make in wanted.items():
        asked, best = target, math.inf
        for _ in range(0 if name in kept["asked"] else ASKED):
            made[name] = make(asked)
            ratio = measured(bench, {name: made[name]}, MATCHING, next(iter(made.values())))[name][0]
            off = ratio / target if len(made) == 1 else ratio
            print(f"{name}: asked for {asked:.3f}x, measured {ratio:.3f}x", flush=True)
            if abs(off - 1) < best:
                best, kept["asked"][name] = abs(off - 1), asked
            if best <= EQUAL:
                break
            asked = min(asked / off, 1.0)
        made[name] = make(kept["asked"][name])
        store.write_text(json.dumps(kept, indent=1))
    if not made.keys() <= kept["latency"].keys():
        kept["latency"] = measured(bench, made)
        store.write_text(json.dumps(kept, indent=1))
    return made


def measured(
    bench: Bench, models: Mapping[str, Model], effort: latency.Effort = latency.CAREFUL, reference: Model | None = None
) -> dict[str, tuple[float, float, float]]:
    """Latency ratio with its interval, all in one interleaved run, to `reference`; to the whole network where that is
    not given or is all there is to measure."""
    runtime = runtimes.get(bench.runtime)
    work = HOME / "files"
    work.mkdir(parents=True, exist_ok=True)
    plan = Plan((), ExportSettings(bench.runtime))
    paths = []
    if reference is None or list(models.values()) == [reference]:
        reference = bench.model
    for number, model in enumerate((reference, *models.values())):
        path = work / f"{bench.setting.name}-{number}{runtime.EXTENSION}"
        runtime.export(model, plan, None, path, work=work)
        paths.append(path)
    compared = latency.compare_latency(bench.runtime, paths[0], paths[1:], threads=1, effort=effort)
    return {
        name: (c.ratio.value or 0.0, c.ratio.low or 0.0, c.ratio.high or 0.0)
        for name, c in zip(models, compared, strict=True)
    }


def macs(bench: Bench, model: Model) -> float:
    from pocketfit.analysis.layer_table import layer_table, totals

    return totals(layer_table(model)).macs / totals(layer_table(bench.model)).macs


def run(bench: Bench, target: float, seeds: int, wanted: str, *, recovery: str | None) -> None:
    store = bench.home / f"{bench.runtime}-{target:g}.json"
    kept: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {"asked": {}, "latency": {}}
    made = matched(bench, target, {k: make for k, make in methods(bench).items() if re.search(wanted, k)}, kept, store)
    if seeds == 0:
        return
    exact = bench.right(bench.model)
    print(f"float32: {exact.mean():.2%} of {len(exact)} test pictures", flush=True)
    chosen = f"^({recovery or 'distillation'})$"
    recipes = {name: changes for name, changes in RECOVERIES.items() if re.search(chosen, name)}
    drops: dict[str, list[float]] = {}
    for name in made:
        for recipe, changes in recipes.items():
            row = name if recipe == "distillation" else f"{name}; {recipe}"
            drops[row] = []
            for seed in range(seeds):
                settings = bench.recovery(seed, changes)
                key = f"{row}; {seed}; {hashlib.sha256(canonical_json(asdict(settings)).encode()).hexdigest()[:8]}"
                if key not in kept:
                    started = time.monotonic()
                    right = bench.right(bench.recovered(made[name], settings))
                    found = paired_drop(exact, right)
                    kept[key] = {"drop": found.points, "low": found.low, "high": found.high}
                    store.write_text(json.dumps(kept, indent=1))
                    print(f"{key}: drop {found.points:.2f} [{found.low:.2f}, {found.high:.2f}], "
                          f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
                drops[row].append(kept[key]["drop"])
    print(
        "\n| method | MACs | predicted | measured latency | drop in points (seeds) |\n| --- | --- | --- | --- | --- |"
    )
    for row, values in drops.items():
        name = row.split("; ")[0]
        ratio = kept["latency"][name]
        named = dict(made[name].network.named_modules())
        widths = {group: int(named[group].weight.shape[0]) for group in bench.predictor.skeleton.full}
        cells = (
            row,
            f"{macs(bench, made[name]):.2f}x",
            f"{bench.predictor.ratio(widths):.3f}x",
            f"{ratio[0]:.3f}x [{ratio[1]:.3f}, {ratio[2]:.3f}]",
            f"{_mean(values)} ({', '.join(f'{value:.2f}' for value in values)})",
        )
        print(f"| {' | '.join(cells)} |")
    _paired(drops)


def _mean(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.2f}"
    reach = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):.2f} ± {reach:.2f}"


def _paired(drops: Mapping[str, list[float]]) -> None:
    """The best row against each other one, over seeds."""
    best = min(drops, key=lambda row: float(np.mean(drops[row])))
    for row, values in drops.items():
        if row != best:
            less = _mean([a - b for a, b in zip(values, drops[best], strict=True)])
            print(f"{best} loses {less} points less than {row}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=list(SETTINGS))
    parser.add_argument("--runtime", default="onnxruntime", choices=["onnxruntime", "litert"])
    parser.add_argument("--target", type=float, default=0.45, help="latency, as a share of the whole network's")
    parser.add_argument(
        "--seeds", type=int, default=5, help="0: measure latencies, which wants an idle machine; no more"
    )
    parser.add_argument("--methods", default=".", help="only methods whose name matches this regular expression")
    parser.add_argument("--recovery", metavar="REGEX", help="compare these recoveries in place of allocations")
    parser.add_argument("--learning-rate", type=float, default=0.02)
    given = parser.parse_args()
    bench = Bench(SETTINGS[given.network], given.runtime, given.learning_rate)
    run(bench, given.target, given.seeds, given.methods, recovery=given.recovery)


if __name__ == "__main__":
    main()
