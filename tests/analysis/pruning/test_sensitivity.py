from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.analysis.layer_table import layer_table, totals
from pocketfit.analysis.pruning import evaluate as trials
from pocketfit.analysis.pruning.sensitivity import ChannelTable, channel_sensitivity
from pocketfit.core.errors import UserError
from pocketfit.core.model import Model
from pocketfit.core.plan.prune import Prune
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.graph.channel_graph import trace
from pocketfit.passes.prune import criteria, prune_channels
from tests.passes import small_networks

SIDE = 16
torch.set_num_threads(1)


def model_of(kind: type[nn.Module], seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return small_networks.model_of(kind(), SIDE)


def samples_of(count: int = 70, *, labelled: bool = True, seed: int = 0) -> Samples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, count) if labelled else np.full(count, -1)
    names = [str(n) for n in range(count)]
    pictures = rng.normal(size=(count, 3, SIDE, SIDE)).astype(np.float32)
    return Samples(
        array=pictures,
        labels=labels.astype(np.int64),
        names=names,
        split="search",
        sha256=f"s{seed}{labelled}",
        preprocess=Preprocess(height=SIDE, width=SIDE),
    )


def zoo_model() -> Model:
    """A network that another process can build again."""
    from pocketfit import zoo
    from pocketfit.core.model import Origin
    from pocketfit.sources.models.open_model import model_from_module

    torch.manual_seed(0)
    arguments = {"width": 0.25, "classes": 5}
    network = small_networks.with_statistics(zoo.build("mobilenet_v1", **arguments))
    contract = Preprocess(height=32, width=32)
    return model_from_module(network, preprocess=contract, origin=Origin("zoo", "mobilenet_v1", arguments))


def test_every_removable_group_stands_there_once_and_the_first_layers_too() -> None:
    model = model_of(small_networks.Residual)
    table = channel_sensitivity(model, samples_of(20), [0.5])
    graph = trace(model.network, model.signature)
    removable = {group.name for group in prune_channels.removable(graph)}
    assert {c.group for c in table.curves if c.edge != "first"} == removable
    assert [c.group for c in table.curves if c.edge == "first"] == ["stem.0"]
    assert [c.group for c in table.curves if c.edge == "last"] == ["enter.0"]  # the sum, which fc reads
    assert [c.group for c in table.curves] == ["stem.0", "enter.0", "a.0"]
    assert table.how == "estimated" and table.split == "search" and table.samples == 20


def test_a_point_is_what_the_pruned_network_does() -> None:
    """Against prune.apply, asked independently: loss, accuracy, and the paired errors by hand."""
    model, samples = model_of(small_networks.Residual), samples_of()
    table = channel_sensitivity(model, samples, [0.5])
    curve = next(c for c in table.curves if c.group == "a.0")
    pruned = prune_channels.apply(model, Prune(0.0, "l2", 8, ((curve.pattern, 0.5),)))
    with torch.inference_mode():
        pictures, labels = torch.from_numpy(samples.inputs(slice(None))), torch.from_numpy(samples.labels)
        before, after = (
            nn.functional.cross_entropy(one.network(pictures).double(), labels, reduction="none").numpy()
            for one in (model, pruned)
        )
        right = [(one.network(pictures).argmax(1) == labels).double().numpy() for one in (model, pruned)]
    point = curve.points[0]
    assert point.kept == pruned.network.a[0].out_channels == 16
    assert point.loss == pytest.approx(after.mean(), rel=1e-5)
    assert point.loss_rise == pytest.approx((after - before).mean(), rel=1e-4)
    assert point.loss_rise_se == pytest.approx(np.std(after - before, ddof=1) / np.sqrt(len(after)), rel=1e-4)
    assert point.accuracy == pytest.approx(right[1].mean()) and table.accuracy == pytest.approx(right[0].mean())
    assert point.drop_points == pytest.approx(100 * (right[0] - right[1]).mean())
    assert table.loss == pytest.approx(before.mean(), rel=1e-5)


@pytest.mark.parametrize("kind", small_networks.EXACT, ids=lambda kind: kind.__name__)
def test_costs_are_those_of_the_pruned_network(kind: type[nn.Module]) -> None:
    model = model_of(kind)
    table = channel_sensitivity(model, samples_of(4), [0.5])
    before = totals(layer_table(model))
    assert (table.cost.macs, table.cost.size_bytes) == (before.macs, before.size_bytes)
    lost: dict[int, int] = {}
    layers = []
    for curve in table.curves:
        if curve.edge == "first":
            continue
        layers.append((curve.pattern, 0.5))
        lost |= {number: count for (number, _), count in zip(curve.members, curve.removed[0], strict=True)}
        alone = totals(layer_table(prune_channels.apply(model, Prune(0.0, "l2", 8, ((curve.pattern, 0.5),)))))
        assert (curve.points[0].cost.macs, curve.points[0].cost.size_bytes) == (alone.macs, alone.size_bytes)
    together = totals(layer_table(prune_channels.apply(model, Prune(0.0, "l2", 8, tuple(layers)))))
    assert lost and table.costs.of(lost).macs == together.macs < before.macs
    assert table.costs.of(lost).size_bytes == together.size_bytes


@pytest.mark.parametrize("kind", small_networks.EXACT, ids=lambda kind: kind.__name__)
def test_slicing_is_setting_all_entries_of_the_channels_to_zero(kind: type[nn.Module]) -> None:
    """What is sliced answers as what is masked, in double precision: the reason that one may stand for the other."""
    model = model_of(kind)
    model.network.double()
    graph = trace(model.network.float(), model.signature)
    network = model.network.double()
    pictures = small_networks.pictures(model).double()
    for group in prune_channels.removable(graph):
        order = np.argsort(criteria.group_scores(model, graph, Prune(0.0))[group.name], kind="stable")
        ids = group.ids[order[: len(order) // 2]]
        with torch.inference_mode():
            sliced = prune_channels.sliced(network, graph, ids)(pictures)
            masked = small_networks.masked(network, graph, ids)(pictures)
        assert torch.allclose(sliced, masked, atol=1e-10)


def test_rounding_to_the_multiple_is_done_as_pruning_does_it_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    table = channel_sensitivity(model_of(small_networks.Residual), samples_of(10), [0.05, 0.3, 0.35], store=tmp_path)
    enter = next(c for c in table.curves if c.group == "enter.0")
    assert [point.kept for point in enter.points] == [24, 16, 16]
    assert enter.points[0].loss_rise == 0 and enter.points[0].loss == table.loss
    assert enter.points[1].loss_rise == enter.points[2].loss_rise != 0
    (stored,) = tmp_path.iterdir()
    asked = [(row["group"], row["kept"]) for row in map(json.loads, stored.read_text().splitlines())]
    assert sorted(asked) == [("a.0", 24), ("enter.0", 16)]


def test_what_is_kept_is_not_computed_again_and_a_torn_line_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, samples = model_of(small_networks.Residual), samples_of(10)
    first = channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1)
    (stored,) = tmp_path.iterdir()
    lines = stored.read_bytes().splitlines(keepends=True)
    stored.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])  # as a kill leaves it
    evaluated: list[str] = []
    real = trials._outcome
    monkeypatch.setattr(trials, "_outcome", lambda *given: evaluated.append(given[-1].group) or real(*given))
    again = channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1)
    assert again == first and evaluated == [json.loads(lines[-1])["group"]]
    assert channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1) == first and len(evaluated) == 1
    channel_sensitivity(model, samples_of(10, seed=1), [0.5], store=tmp_path, multiple=1)
    assert len(evaluated) == 1 + len(lines), "other samples are another question"


def test_a_store_that_was_changed_is_refused(tmp_path: Path) -> None:
    model, samples = model_of(small_networks.Residual), samples_of(10)
    channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1)
    (stored,) = tmp_path.iterdir()
    lines = stored.read_text().splitlines()
    sound = json.loads(lines[0])
    for line, sentence in (
        ("{", "is no JSON"),
        ("[" * 100_000, "nested too deep"),
        (json.dumps({**sound, "kept": -1}), "'kept' is -1"),
        (json.dumps({**sound, "loss": "x"}), "'loss' is \"x\": give a number"),
        (json.dumps({"group": "a", "kept": 1}), "'loss' is missing"),
        (json.dumps({**sound, "accuracy": 1.5}), "'accuracy' is 1.5"),
    ):
        stored.write_text("\n".join([line, *lines[1:]]) + "\n")
        with pytest.raises(UserError, match=f"^A line of .*{sentence}.*; remove the file$"):
            channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1)


def test_a_run_that_is_stopped_goes_on(tmp_path: Path) -> None:
    model, samples = model_of(small_networks.Residual), samples_of(10)
    whole = channel_sensitivity(model, samples, [0.5], multiple=1)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        channel_sensitivity(model, samples, [0.5], store=tmp_path, multiple=1, progress=stop)
    told: list[tuple[int, int]] = []
    found = channel_sensitivity(
        model, samples, [0.5], store=tmp_path, multiple=1, progress=lambda *both: told.append(both)
    )
    assert found == whole and told == [(3, 3)]


def test_a_damaged_store_is_refused_by_name(tmp_path: Path) -> None:
    model, samples = model_of(small_networks.Residual), samples_of(4)
    channel_sensitivity(model, samples, [0.5], store=tmp_path)
    (stored,) = tmp_path.iterdir()
    stored.write_text("[]\n")
    with pytest.raises(UserError, match=stored.name):
        channel_sensitivity(model, samples, [0.5], store=tmp_path)


@pytest.mark.slow
def test_any_number_of_workers_finds_the_same_to_the_last_bit(tmp_path: Path) -> None:
    model, samples = zoo_model(), samples_of(70)
    samples = replace(samples, array=np.random.default_rng(0).integers(0, 256, (70, 32, 32, 3), np.uint8))
    alone = channel_sensitivity(model, samples, [0.5])
    told: list[tuple[int, int]] = []
    three = channel_sensitivity(
        model, samples, [0.5], workers=3, store=tmp_path, progress=lambda *both: told.append(both)
    )
    assert three == alone and told[-1][0] == told[-1][1] > 10
    assert len(list(tmp_path.iterdir())) == 1


def test_a_network_that_nobody_else_can_build_is_done_here_whatever_the_workers() -> None:
    model, samples = model_of(small_networks.Residual), samples_of(4)
    assert channel_sensitivity(model, samples, [0.5], workers=2) == channel_sensitivity(model, samples, [0.5])


def test_without_labels_answers_are_compared_with_the_whole_networks() -> None:
    model, samples = model_of(small_networks.Residual), samples_of(30, labelled=False)
    table = channel_sensitivity(model, samples, [0.5])
    assert not table.labelled and table.loss == 0 and table.accuracy == 1
    point = next(c for c in table.curves if c.group == "enter.0").points[0]
    pruned = prune_channels.apply(model, Prune(0.0, "l2", 8, (("^enter", 0.5),)))
    with torch.inference_mode():
        pictures = torch.from_numpy(samples.inputs(slice(None)))
        before, after = (one.network(pictures).double() for one in (model, pruned))
    divergence = nn.functional.kl_div(
        after.log_softmax(1), before.log_softmax(1), reduction="batchmean", log_target=True
    )
    assert point.loss_rise == pytest.approx(float(divergence), rel=1e-4)
    assert point.accuracy == pytest.approx(float((after.argmax(1) == before.argmax(1)).double().mean()))


def test_samples_without_labels_beside_others_are_left_out_and_that_is_said() -> None:
    samples = samples_of(10)
    samples.labels[:4] = -1
    table = channel_sensitivity(model_of(small_networks.Residual), samples, [0.5])
    assert table.samples == 6 and table.labelled and any("4 samples" in sentence for sentence in table.findings)


def test_a_forward_that_knows_its_sizes_by_heart_is_named_and_the_rest_goes_on() -> None:
    table = channel_sensitivity(model_of(small_networks.HardCoded), samples_of(10), [0.5])
    curves = {curve.group: curve for curve in table.curves}
    assert "a.0" in curves and curves["a.0"].why_not
    assert not curves["fc1"].why_not and curves["fc1"].points[0].loss_rise != 0
    assert any("a.0" in sentence for sentence in table.findings)
    json.dumps(table.to_json(), allow_nan=False)


def test_channels_that_one_name_finds_twice_are_judged_together() -> None:
    table = channel_sensitivity(model_of(small_networks.Shuffle), samples_of(6), [0.5])
    model = model_of(small_networks.Shuffle)
    for curve in table.curves:
        if curve.edge != "first":
            pruned = prune_channels.apply(model, Prune(0.0, "l2", 8, ((curve.pattern, 0.5),)))
            assert totals(layer_table(pruned)).macs == curve.points[0].cost.macs


def test_bad_requests_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    model, samples = model_of(small_networks.Residual), samples_of(4)
    for ratios in ([1.0], [0.0], [-0.5], [], [0.5, 1.5], [float("nan")]):
        with pytest.raises(UserError, match=r"ratio"):
            channel_sensitivity(model, samples, ratios, store=tmp_path)
    with pytest.raises(UserError, match="no samples"):
        channel_sensitivity(model, samples.take([]), [0.5], store=tmp_path)

    def refuse(table: ChannelTable) -> None:
        assert table.curves[-1].points[0].cost.macs < table.cost.macs
        raise UserError("no")

    with pytest.raises(UserError, match="no"):
        channel_sensitivity(model, samples, [0.5], store=tmp_path, check=refuse)
    assert not list(tmp_path.iterdir())
