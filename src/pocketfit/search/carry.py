"""Carry out a plan's passes; what was trained once is kept by hash and never trained again."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pocketfit.core.model import Model
from pocketfit.core.plan import PassSettings, Prune, Resolution, Train, canonical_json
from pocketfit.core.watch import Watch
from pocketfit.search.task import Task

MOST_RECENT = 6
_RECENT: dict[str, Model] = {}  # by prefix hash: one trial asks for the same network several times


def carried_out(task: Task, passes: Sequence[PassSettings], watch: Watch) -> Model:
    """The task's model after these passes.

    The weights after each Train are kept in `cache/`, under a hash of the model, its contract, the training data, the
    number of threads and all passes so far; pruning and resizing are quick and are done again.
    """
    from pocketfit.passes import prune, resolution

    model = task.model
    for index, settings in enumerate(passes):
        key = prefix_hash(task, passes[: index + 1])
        if key in _RECENT:
            model = _RECENT[key]
            continue
        match settings:
            case Prune():
                model = prune.apply(model, settings)
            case Resolution():
                model = resolution.apply(model, settings)
            case Train():
                stored = task.cache / f"trained-{key}.safetensors"
                model = _restored(model, stored) if stored.exists() else _trained(task, model, settings, stored, watch)
        while len(_RECENT) >= MOST_RECENT:
            del _RECENT[next(iter(_RECENT))]
        _RECENT[key] = model
    return model


def prefix_hash(task: Task, passes: Sequence[PassSettings]) -> str:
    """16 hex digits for what the network is after these passes: of everything that training looks at."""
    import torch

    facts = {
        "model": task.model.key,
        "data": task.data.sha256,
        "split_seed": task.model.split_seed,
        "preprocess": task.model.preprocess.to_json(),
        "labels": task.model.labels,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "passes": [{"pass": type(p).__name__, **asdict(p)} for p in passes],
    }
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]


def _trained(task: Task, model: Model, settings: Train, stored: Path, watch: Watch) -> Model:
    from safetensors.torch import save_file

    from pocketfit.passes import train

    samples = task.samples("train", model.preprocess, watch)
    tick = watch.step(f"training for {settings.steps} steps")
    trained = train.apply(model, settings, samples, teacher=task.model, progress=tick)
    stored.parent.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in trained.network.state_dict().items()}, partial)
    partial.replace(stored)
    return trained


def _restored(model: Model, stored: Path) -> Model:
    from safetensors.torch import load_file

    from pocketfit.sources.fingerprint import fingerprint

    network = copy.deepcopy(model.network)
    network.load_state_dict(load_file(stored))
    return replace(model, network=network.eval(), sha256=fingerprint(network))
