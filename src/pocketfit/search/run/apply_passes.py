"""Carry out a plan's passes; results of passes that look at samples are kept by hash and never computed again."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import Grid
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan, canonical_json
from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.json_file import parse
from pocketfit.core.support.processes import rank
from pocketfit.core.support.progress import Watch
from pocketfit.core.support.schema import checked
from pocketfit.search.run.job import Job
from pocketfit.search.run.pass_table import PASSES, Given

MOST_RECENT = 6
_RECENT: dict[str, Model] = {}  # by prefix hash: one trial asks for the same network several times


def carried_out(job: Job, plan: Plan, watch: Watch) -> Model:
    """The job's model after the plan's passes.

    The weights after each pass that looks at samples are kept in `cache/`, with what it learned, under a hash of the
    model, its contract, the data, the number of threads, all passes so far, and the grid that they were for; the
    other passes are quick and are done again. Where there are several processes (core/support/processes.py), all of
    them train together; other passes that look at samples are done by the first one, which hands on the weights.
    """
    from pocketfit.passes.prune import sparsify
    from pocketfit.passes.train import data_parallel

    model, grid = job.model, plan.export.grid
    exact: Model | None = None
    for index, settings in enumerate(plan.passes):
        key = prefix_hash(job, plan.passes[: index + 1], grid)
        if exact is None and settings.FACTS.on_grid:
            exact = model
        if key in _RECENT:
            model = _RECENT[key]
            continue
        one, given = PASSES[type(settings)], Given(job=job, model=model, grid=grid, exact=exact, watch=watch)
        if one.quick(settings):
            model = one.apply(settings, given)
        else:
            stored = job.cache / f"trained-{key}.safetensors"
            if not data_parallel.from_first(stored.exists()):
                _carry_out(settings, given, stored)
            data_parallel.file_from_first(stored)
            model = _restored(model, stored, folded=settings.FACTS.folds)
        model = sparsify.checked(model)
        while len(_RECENT) >= MOST_RECENT:
            del _RECENT[next(iter(_RECENT))]
        _RECENT[key] = model
    return model


def _carry_out(settings: PassSettings, given: Given, stored: Path) -> None:
    """Carry out the pass in the processes that take part in it; the first process keeps the result."""
    first = rank().first
    if first or settings.FACTS.by_all:
        made = PASSES[type(settings)].apply(settings, given)
        if first:
            _keep(made, stored)


def prefix_hash(job: Job, passes: Sequence[PassSettings], grid: Grid | None) -> str:
    """16 hex digits that identify the network after these passes: a hash of everything that they look at.

    The grid is part of it from the first pass on that works for the grid, so that all exports share what comes before.
    Equalization works for the grid where weights are coarse.
    """
    import torch

    facts = {
        "model": job.model.key,
        "data": job.data.sha256,
        "split_seed": job.model.split_seed,
        "preprocess": job.model.preprocess.to_json(),
        "labels": job.model.labels,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "passes": [{"pass": type(p).__name__, **asdict(p)} for p in passes],
    }
    if grid is not None and any(p.FACTS.on_grid or (grid.coarse and p.FACTS.on_coarse_grid) for p in passes):
        facts["grid"] = asdict(grid)
    if job.teacher is not None and any(p.FACTS.has_teacher for p in passes):
        facts["teacher"] = [job.teacher.key, *job.teacher.labels]
    if rank().count > 1 and any(p.FACTS.by_all for p in passes):  # batch norms see fewer rows at a time
        facts["processes"] = rank().count
    return hashlib.sha256(canonical_json(facts).encode()).hexdigest()[:16]


def _keep(model: Model, stored: Path) -> None:
    """Store the model's weights, and what it learned, whole or not at all; JSON keeps floats to the last bit."""
    from pocketfit.sources.models.weights_file import save_tensors

    tensors = {name: value.detach().contiguous() for name, value in model.network.state_dict().items()}
    words = {"learned": json.dumps(model.learned.to_json()), "findings": json.dumps(model.findings)}
    with whole_or_not(stored) as partial:
        save_tensors(tensors, partial, words)


def _restored(model: Model, stored: Path, *, folded: bool) -> Model:
    """The model with the stored weights, and with what was learned and found on the way to them."""
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
    learned = checked(Learned, kept["learned"], str(stored), mend)
    network = fold_batch_norm(model.network, model.signature) if folded else copy.deepcopy(model.network)
    for name in sorted(weights.keys() - network.state_dict().keys()):
        owner, _, last = name.rpartition(".")
        if last == "bias":  # a layer that had none has got one
            network.get_submodule(owner).bias = torch.nn.Parameter(torch.empty_like(weights[name]))
    resize_to(network, weights)
    findings = checked(tuple[str, ...], kept["findings"], str(stored), mend)
    return replace(model, network=network.eval(), sha256=fingerprint(network), learned=learned, findings=findings)
