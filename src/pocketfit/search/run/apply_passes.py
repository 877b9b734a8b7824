"""Carry out a plan's passes; what took samples to find is kept by hash and never done again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.model import Learned, Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Piecewise, Resolution
from pocketfit.core.plan.train import Recalibrate, Train
from pocketfit.core.samples import Samples
from pocketfit.core.support.json_file import parse
from pocketfit.core.support.processes import rank
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.schema import checked
from pocketfit.search.run.job import Task

MOST_RECENT = 6
_RECENT: dict[str, Model] = {}  # by prefix hash: one trial asks for the same network several times


def carried_out(task: Task, plan: Plan, watch: Watch) -> Model:
    """The task's model after the plan's passes.

    The weights after each pass that looks at samples are kept in `cache/`, with what it learned, under a hash of the
    model, its contract, the data, the number of threads, all passes so far, and the grid that they were for; the
    other passes are quick and are done again. Of several processes (core/support/processes.py) all train together; what
    else looks at samples is done by the first one, which hands the weights to the others.
    """
    from pocketfit.passes.prune import prune_channels, sparsify
    from pocketfit.passes.prune.criteria import DATA_DRIVEN
    from pocketfit.passes.rewrite import hardswish, resolution
    from pocketfit.passes.train import data_parallel

    model, grid = task.model, plan.export.grid
    exact: Model | None = None
    for index, settings in enumerate(plan.passes):
        key = prefix_hash(task, plan.passes[: index + 1], grid)
        if exact is None and settings.FACTS.on_grid:
            exact = model
        if key in _RECENT:
            model = _RECENT[key]
            continue
        match settings:
            case Prune() if settings.criterion not in DATA_DRIVEN and not settings.calls_code:
                model = prune_channels.apply(model, settings)
            case Piecewise():
                model = hardswish.apply(model)
            case Resolution():
                model = resolution.apply(model, settings)
            case Sparsify(criterion="magnitude"):
                model = sparsify.apply(model, settings, None)
            case _:
                stored = task.cache / f"trained-{key}.safetensors"
                if not data_parallel.from_first(stored.exists()):
                    _carry_out(task, model, settings, grid, exact, watch, stored)
                data_parallel.file_from_first(stored)
                model = _restored(model, stored, folded=settings.FACTS.folds)
        model = sparsify.checked(model)
        while len(_RECENT) >= MOST_RECENT:
            del _RECENT[next(iter(_RECENT))]
        _RECENT[key] = model
    return model


def _carry_out(
    task: Task,
    model: Model,
    settings: PassSettings,
    grid: Grid | None,
    exact: Model | None,
    watch: Watch,
    stored: Path,
) -> None:
    """The pass, by the processes that take part in it; the first one keeps what comes of it."""
    first = rank().first
    if first or isinstance(settings, Train):
        made = _applied(task, model, settings, grid, exact, watch)
        if first:
            _keep(made, stored)


def prefix_hash(task: Task, passes: Sequence[PassSettings], grid: Grid | None) -> str:
    """16 hex digits for what the network is after these passes: of everything that they look at.

    The grid counts from the first pass on that works for it, so that all exports share what comes before: equalization
    does where weights are coarse.
    """
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
    if grid is not None and any(p.FACTS.on_grid or (grid.coarse and isinstance(p, Equalize)) for p in passes):
        facts["grid"] = asdict(grid)
    if task.teacher is not None and any(isinstance(p, Train | QuantTrain) for p in passes):
        facts["teacher"] = [task.teacher.key, *task.teacher.labels]
    if rank().count > 1 and any(isinstance(p, Train) for p in passes):  # batch norms see fewer rows at a time
        facts["processes"] = rank().count
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]


def _applied(
    task: Task, model: Model, settings: PassSettings, grid: Grid | None, exact: Model | None, watch: Watch
) -> Model:
    """One pass, on the model after those before it; `exact`: the model before any weight was put on the grid."""
    from pocketfit.passes.prune import prune_channels, sparsify
    from pocketfit.passes.quantize.equalize import equalize
    from pocketfit.passes.train import fine_tune, recalibrate_batch_norm

    def samples(split: str, limit: int | None = None) -> Samples:
        return task.samples(split, model.preprocess, watch, limit=limit)

    if isinstance(settings, Train):
        given = samples("train")
        tick = watch.step(f"training for {settings.steps} steps")
        return fine_tune.apply(
            model, settings, given, teacher=task.teacher or task.model, cache=task.cache, progress=tick
        )
    if isinstance(settings, Recalibrate):
        given = samples("train")
        watch.step("taking batch norms anew")
        return recalibrate_batch_norm.apply(model, settings, given)
    if isinstance(settings, Prune):
        given = samples("train", settings.samples)
        watch.step(f"scoring channels by {settings.criterion}")
        return prune_channels.apply(model, settings, given)
    if isinstance(settings, Sparsify):
        given = samples("train", settings.samples)
        return sparsify.apply(model, settings, given, progress=watch.step("following the loss to each weight"))
    if isinstance(settings, Equalize):
        looked_at = samples("calibration", settings.samples) if settings.statistics == "data" else None
        watch.step("equalizing channels")
        return equalize.apply(model, settings, looked_at, grid)
    assert grid is not None, "a plan with such a pass has a grid"
    return _on_grid(task, model, settings, grid, exact, samples, watch)


def _on_grid(
    task: Task,
    model: Model,
    settings: PassSettings,
    grid: Grid,
    exact: Model | None,
    samples: Callable[..., Samples],
    watch: Watch,
) -> Model:
    from pocketfit.passes.quantize import bias_correction, qat, rounding

    if isinstance(settings, CorrectBias):
        looked_at = samples("calibration", settings.samples) if settings.statistics == "data" else None
        watch.step("correcting biases")
        return bias_correction.apply(model, settings, looked_at, grid)
    if isinstance(settings, Round):
        given = samples(settings.split, settings.samples)
        return rounding.apply(model, settings, given, grid, progress=watch.step("rounding weights"))
    assert isinstance(settings, QuantTrain)
    given = samples(settings.split)
    tick = watch.step(f"training for {settings.steps} steps on the grid")
    return qat.apply(model, settings, given, grid, own=task.model, exact=exact, teacher=task.teacher, progress=tick)


def _keep(model: Model, stored: Path) -> None:
    """Whole or not at all; JSON keeps floats to the last bit."""
    from pocketfit.sources.models.weights_file import save_tensors

    stored.parent.mkdir(parents=True, exist_ok=True)
    partial = stored.with_suffix(".partial")
    tensors = {name: value.detach().contiguous() for name, value in model.network.state_dict().items()}
    save_tensors(tensors, partial, {"learned": json.dumps(model.learned), "findings": json.dumps(model.findings)})
    partial.replace(stored)


def _restored(model: Model, stored: Path, *, folded: bool) -> Model:
    """The model with the kept weights, and what was learned and found on the way to them."""
    import torch
    from safetensors import SafetensorError, safe_open

    from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
    from pocketfit.sources.models.fingerprint import fingerprint
    from pocketfit.sources.models.fit_layer_shapes import resize_to

    mend = "remove it, and the same command makes it again"
    try:
        with safe_open(stored, "pt") as file:
            known = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"{stored} is damaged ({error}): {mend}") from error
    kept = {key: parse(known.get(key, "").encode(), str(stored), mend) for key in ("learned", "findings")}
    learned: dict[str, Any] = dict(checked(Learned, kept["learned"], str(stored), mend))
    network = fold_batch_norm(model.network, model.signature) if folded else copy.deepcopy(model.network)
    for name in sorted(weights.keys() - network.state_dict().keys()):
        owner, _, last = name.rpartition(".")
        if last == "bias":  # a layer that had none has got one
            network.get_submodule(owner).bias = torch.nn.Parameter(torch.empty_like(weights[name]))
    resize_to(network, weights)
    if "ranges" in learned:
        learned["ranges"] = {name: tuple(ends) for name, ends in learned["ranges"].items()}
    if "sparse" in learned:
        learned["sparse"] = tuple(learned["sparse"])
    findings = checked(tuple[str, ...], kept["findings"], str(stored), mend)
    return replace(model, network=network.eval(), sha256=fingerprint(network), learned=learned, findings=findings)
