"""A prefix that was trained once is never trained again, and comes back bit for bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Grid
from pocketfit.core.plan.passes import PassSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.prune import Prune, Sparsify
from pocketfit.core.plan.quantize import CorrectBias, Equalize, QuantTrain, Round
from pocketfit.core.plan.rewrite import Resolution
from pocketfit.core.plan.train import Recalibrate, Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.progress import Silent
from pocketfit.passes.prune import prune_channels, sparsify
from pocketfit.passes.quantize import bias_correction, qat, rounding
from pocketfit.passes.quantize.equalize import equalize
from pocketfit.passes.train import fine_tune as train
from pocketfit.passes.train import recalibrate_batch_norm
from pocketfit.search.run import apply_passes
from pocketfit.search.run.apply_passes import carried_out, prefix_hash
from pocketfit.search.run.job import Job
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.open_model import model_from_module
from tests.search import builders

# so few steps on so few pictures may well do harm, and would be taken back
BRIEF, LONGER = Train(3, batch_size=8, guarded=False), Train(4, batch_size=8, seed=1, guarded=False)
PRUNE = Prune(0.5)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(self.stem(image)).mean((2, 3)))


@pytest.fixture
def job(tmp_path: Path) -> Job:
    torch.manual_seed(0)
    model = model_from_module(Net(), preprocess=Preprocess(height=8, width=8, resize_px=8), labels=("a", "b"))
    rng = np.random.default_rng(0)
    data = from_arrays(rng.integers(0, 256, (200, 8, 8, 3), np.uint8), np.arange(200) % 2, class_names=("a", "b"))
    return Job(model=model, data=data, out=tmp_path / "out", runtimes=("litert",), budget=builders.budget())


def in_float(*passes: PassSettings) -> Plan:
    return Plan(passes, ExportSettings("litert"))


def on_grid(*passes: PassSettings, **settings: Any) -> Plan:
    return Plan(passes, ExportSettings("litert", "int8", **settings))


def same_weights(a: Model, b: Model) -> bool:
    one, two = a.network.state_dict(), b.network.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The steps of every training that takes place."""
    steps: list[int] = []
    original = train.apply

    def apply(model: Model, settings: Train, *args: object, **kwargs: object) -> Model:
        steps.append(settings.steps)
        return original(model, settings, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(train, "apply", apply)
    return steps


def test_trained_once_and_restored_bit_for_bit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = counted(monkeypatch)
    first = carried_out(job, in_float(PRUNE, BRIEF), Silent())
    assert steps == [3]
    again = carried_out(replace(job), in_float(PRUNE, BRIEF), Silent())
    assert steps == [3]
    assert same_weights(first, again) and first.sha256 == again.sha256 and first.key == again.key
    assert not again.network.training
    assert sum(p.numel() for p in again.network.parameters()) < sum(p.numel() for p in job.model.network.parameters())
    longer = carried_out(job, in_float(PRUNE, BRIEF, LONGER), Silent())
    assert steps == [3, 4], "the finalist goes on from the brief training's weights"
    assert not same_weights(longer, first)


def test_an_interrupted_run_gives_the_same_weights_as_one_go(job: Job, tmp_path: Path) -> None:
    whole = carried_out(replace(job, out=tmp_path / "one go"), in_float(PRUNE, BRIEF, LONGER), Silent())
    carried_out(job, in_float(PRUNE, BRIEF), Silent())
    assert same_weights(carried_out(job, in_float(PRUNE, BRIEF, LONGER), Silent()), whole)


def test_the_unpruned_network_is_left_alone(job: Job) -> None:
    before = {name: value.clone() for name, value in job.model.network.state_dict().items()}
    carried_out(job, in_float(PRUNE, Resolution(4, 4), BRIEF), Silent())
    assert all(torch.equal(value, before[name]) for name, value in job.model.network.state_dict().items())
    assert carried_out(job, in_float(), Silent()) is job.model


def test_a_kill_while_the_weights_are_stored_costs_that_training_only(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            carried_out(job, in_float(PRUNE, BRIEF), Silent())
    assert not list(job.cache.glob("*.safetensors")), "half a file must not pass for a whole one"
    steps = counted(monkeypatch)
    carried_out(job, in_float(PRUNE, BRIEF), Silent())
    assert steps == [3]


def test_the_hash_tells_apart_what_trains_differently(job: Job) -> None:
    different: list[tuple[PassSettings, ...]] = [
        (PRUNE, BRIEF),
        (Prune(0.25), BRIEF),
        (PRUNE, Train(4, batch_size=8)),
        (PRUNE, replace(BRIEF, seed=1)),
        (PRUNE, replace(BRIEF, alpha=0.5)),
        (PRUNE, Resolution(4, 4), BRIEF),
        (BRIEF, PRUNE),
        (PRUNE, BRIEF, BRIEF),
    ]
    hashes = [prefix_hash(job, passes, None) for passes in different]
    assert len(set(hashes)) == len(hashes)
    assert prefix_hash(job, different[0], None) == hashes[0]
    assert prefix_hash(replace(job, out=job.out / "elsewhere", seed=9), different[0], None) == hashes[0]
    preprocess = replace(job.model.preprocess, mean=(0.5, 0.5, 0.5))
    for other in (
        replace(job, model=replace(job.model, sha256="other weights")),
        replace(job, model=replace(job.model, split_seed=1)),
        replace(job, model=replace(job.model, preprocess=preprocess)),
        replace(job, model=replace(job.model, labels=("b", "a"))),
        replace(job, data=replace(job.data, sha256="other pictures")),
    ):
        assert prefix_hash(other, different[0], None) != hashes[0]


def test_the_grid_counts_for_equalization_where_weights_are_coarse(job: Job) -> None:
    def hashes(bits: int) -> set[str]:
        grids = Grid(bits, 8), Grid(bits, 8, keep_int8=("fc",)), Grid(bits, None)
        return {prefix_hash(job, (PRUNE, Equalize()), grid) for grid in grids}

    assert len(hashes(4)) == 3
    assert hashes(8) == hashes(7) == {prefix_hash(job, (PRUNE, Equalize()), None)}


def test_a_teacher_counts_for_what_was_trained_and_only_for_that(job: Job) -> None:
    torch.manual_seed(1)
    teacher = model_from_module(Net(), preprocess=job.model.preprocess, labels=("b", "a"))
    taught = replace(job, teacher=teacher)
    on_its_grid = (((PRUNE, QuantTrain(2)), True), ((PRUNE, Round()), False))
    for passes, differ in (((PRUNE, BRIEF), True), ((PRUNE,), False), ((PRUNE, Recalibrate(20)), False), *on_its_grid):
        assert (prefix_hash(taught, passes, None) != prefix_hash(job, passes, None)) == differ
    turned = replace(job, teacher=replace(teacher, labels=("a", "b")))
    assert prefix_hash(turned, (BRIEF,), None) != prefix_hash(taught, (BRIEF,), None)
    trained = [carried_out(a_job, in_float(PRUNE, BRIEF), Silent()) for a_job in (job, taught, turned)]
    assert len({found.sha256 for found in trained}) == 3, "each teacher teaches otherwise"
    plan = on_grid(QuantTrain(3, batch_size=8, learning_rate=0.5, guarded=False))
    trained = [carried_out(a_job, plan, Silent()) for a_job in (job, taught, turned)]
    assert len({found.sha256 for found in trained}) == 3, "on the grid too"


def test_batch_norms_are_taken_anew_once(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = in_float(PRUNE, Recalibrate(20))
    first = carried_out(job, plan, Silent())
    pruned = carried_out(job, in_float(PRUNE), Silent())
    assert not torch.equal(first.network.stem[1].running_mean, pruned.network.stem[1].running_mean)
    assert torch.equal(first.network.stem[0].weight, pruned.network.stem[0].weight)
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    monkeypatch.setattr(recalibrate_batch_norm, "apply", None)
    assert same_weights(first, carried_out(job, plan, Silent()))


def test_kept_answers_are_shared_by_trials(job: Job) -> None:
    kept = replace(BRIEF, views=1)
    carried_out(job, in_float(PRUNE, kept), Silent())
    (answers,) = job.cache.glob("answers-*.npy")
    written = answers.stat().st_mtime_ns
    carried_out(job, in_float(Prune(0.25), replace(kept, steps=5)), Silent())
    assert [(path, path.stat().st_mtime_ns) for path in job.cache.glob("answers-*.npy")] == [(answers, written)]


def test_tensors_inside_are_compared_with_what_they_were_before_the_grid(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The unpruned network's answers, and the tensors of the pruned and equalized one that no weight was rounded in."""
    before, rounded = (PRUNE, Equalize(samples=20)), Round(sweeps=2, samples=20)
    wanted = carried_out(job, on_grid(*before), Silent())
    given: dict[str, Any] = {}
    original = qat.apply

    def apply(*words: Any, **named: Any) -> Model:
        given.update(named)
        return original(*words, **named)

    monkeypatch.setattr(qat, "apply", apply)
    carried_out(job, on_grid(*before, rounded, QuantTrain(2, batch_size=8, inner=1.0)), Silent())
    assert given["exact"].sha256 == wanted.sha256 and given["own"] is job.model


GRID_PASSES = (Equalize(samples=20), CorrectBias(samples=20), Round(sweeps=2, samples=20), QuantTrain(2, batch_size=8))


def test_passes_for_the_grid_are_done_once_and_restored_bit_for_bit(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new process finds weights, new biases and learned ranges in the cache; to the last bit."""
    plan = on_grid(PRUNE, BRIEF, *GRID_PASSES)
    first = carried_out(job, plan, Silent())
    assert first.learned.ranges and all(len(ends) == 2 for ends in first.learned.ranges.values())
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    for module in (train, equalize, bias_correction, rounding, qat):
        monkeypatch.setattr(module, "apply", None)
    again = carried_out(job, plan, Silent())
    assert same_weights(first, again) and first.sha256 == again.sha256
    assert first.learned == again.learned and first.findings == again.findings
    inputs = torch.rand(2, 3, 8, 8)
    assert torch.equal(first.network(inputs), again.network(inputs))


def test_what_is_restored_is_what_the_passes_gave(job: Job) -> None:
    """A layer without a bias has got one on the way; the cache is no other road."""
    samples = job.samples("calibration", job.model.preprocess, Silent(), limit=20)
    plan = on_grid(Round(sweeps=2, samples=20))
    assert plan.export.grid is not None
    direct = rounding.apply(job.model, Round(sweeps=2, samples=20), samples, plan.export.grid)
    carried = carried_out(job, plan, Silent())
    assert same_weights(direct, carried) and direct.sha256 == carried.sha256
    assert direct.network.get_submodule("stem.0").bias is not None, "folded"
    assert job.model.network.get_submodule("stem.0").bias is None

    unbiased = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2, bias=False))
    model = model_from_module(unbiased, preprocess=job.model.preprocess, labels=("a", "b"))
    other = replace(job, model=model)
    before, after = carried_out(other, plan, Silent()), rounding.apply(model, plan.passes[0], samples, plan.export.grid)  # type: ignore[arg-type]
    assert same_weights(before, after) and before.network[0].bias is not None


def test_rounding_looks_at_the_split_that_it_names(job: Job) -> None:
    calibration, train = (
        carried_out(job, on_grid(Round(sweeps=2, samples=20, split=split)), Silent())
        for split in ("calibration", "train")
    )
    samples = job.samples("train", job.model.preprocess, Silent(), limit=20)
    grid = on_grid(Round()).export.grid
    assert grid is not None
    assert same_weights(train, rounding.apply(job.model, Round(sweeps=2, samples=20), samples, grid))
    assert not same_weights(train, calibration)


def test_the_grid_counts_from_the_first_pass_on_that_works_for_it(job: Job) -> None:
    eight, four = on_grid(weights="int8").export.grid, on_grid(weights="int4").export.grid
    kept = on_grid(keep_float=("head",)).export.grid
    shared = (PRUNE, BRIEF, GRID_PASSES[0])
    assert len({prefix_hash(job, shared, grid) for grid in (None, eight, kept)}) == 1
    assert prefix_hash(job, shared, four) != prefix_hash(job, shared, eight), "equalization spares 4-bit weights"
    assert prefix_hash(job, shared[:2], four) == prefix_hash(job, shared[:2], eight)
    for settings in GRID_PASSES[1:]:
        hashes = {prefix_hash(job, (*shared, settings), grid) for grid in (eight, four, kept)}
        assert len(hashes) == 3, settings
    same = on_grid(ranges="mse", calibration=50).export.grid
    assert prefix_hash(job, GRID_PASSES, same) == prefix_hash(job, GRID_PASSES, eight), "ranges are the exporter's"


def test_exports_share_what_was_trained_before_the_grid(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = counted(monkeypatch)
    carried_out(job, on_grid(PRUNE, BRIEF, GRID_PASSES[2]), Silent())
    carried_out(job, on_grid(PRUNE, BRIEF, GRID_PASSES[2], weights="int4"), Silent())
    carried_out(job, in_float(PRUNE, BRIEF), Silent())
    assert steps == [3]


def test_zeros_are_found_again_and_stay(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Magnitude is quick and done again; movement looks at samples, and is kept. What follows keeps the zeros."""
    carried_out(job, in_float(Sparsify(0.5)), Silent())
    assert not list(job.cache.glob("trained-*"))
    plan = on_grid(Sparsify(0.5, criterion="movement", samples=32), *GRID_PASSES)
    first = carried_out(job, plan, Silent())
    assert first.learned.sparse == ("body.0", "head")
    for layer in first.learned.sparse:
        weight = first.network.get_submodule(layer).weight
        assert int((weight == 0).sum()) >= weight.numel() // 2
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    for module in (sparsify, equalize, bias_correction, rounding, qat):
        monkeypatch.setattr(module, "apply", None)
    again = carried_out(job, plan, Silent())
    assert same_weights(first, again) and first.learned == again.learned and first.findings == again.findings


def test_channels_that_data_chose_are_not_chosen_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = in_float(Prune(0.5, criterion="taylor", samples=32))
    first = carried_out(job, plan, Silent())
    assert first.network.get_submodule("body.0").weight.shape == (16, 16, 3, 3)
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    monkeypatch.setattr(prune_channels, "apply", None)
    again = carried_out(job, plan, Silent())
    assert same_weights(first, again) and first.sha256 == again.sha256 and first.findings == again.findings
    assert again.network.get_submodule("head").in_features == 16
    assert torch.equal(first.network(torch.ones(1, 3, 8, 8)), again.network(torch.ones(1, 3, 8, 8)))


def test_a_lost_pattern_is_said_behind_every_pass_and_after_a_restart(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(model: Model) -> list[str]:
        return [finding for finding in model.findings if "head no longer hold" in finding]

    four = Sparsify(pattern="2:4")
    assert lost(carried_out(job, in_float(four, PRUNE), Silent())), "pruning 32 channels to 16 leaves no luck"
    wrong, right = in_float(four, PRUNE, BRIEF), in_float(PRUNE, four, BRIEF)
    assert len(lost(carried_out(job, wrong, Silent()))) == 1 and not lost(carried_out(job, right, Silent()))
    monkeypatch.setattr(apply_passes, "_RECENT", {})
    restored = carried_out(job, wrong, Silent())
    assert len(lost(restored)) == 1 and restored.learned.patterns == {"body.0": "2:4", "head": "2:4"}

    def careless(model: Model, *_: object, **__: object) -> Model:
        filled = replace(model, network=Net().eval())
        return replace(filled, sha256="filled")

    monkeypatch.setattr(recalibrate_batch_norm, "apply", careless)
    assert lost(carried_out(job, in_float(four, Recalibrate(20)), Silent())), "whatever the pass was"
