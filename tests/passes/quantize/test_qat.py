"""Quantization-aware training: it recovers what 4 bits lose, on the grid, and hands its ranges over."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.export import ExportSettings, Grid
from pocketfit.core.plan.prune import Sparsify
from pocketfit.core.plan.quantize import QuantTrain
from pocketfit.core.samples import Samples
from pocketfit.numerics.sqnr import sqnr_db
from pocketfit.passes.graph.fold_batch_norm import fold_batch_norm
from pocketfit.passes.prune import sparsify
from pocketfit.passes.quantize import qat
from pocketfit.passes.quantize.simulate import fake_quantize
from pocketfit.passes.quantize.simulate.simulation import simulate
from pocketfit.sources.models.open_model import open_model
from tests.passes.quantize.test_rounding import Net, model_of, noise

FOUR = Grid(4, 8)
CLASSES = 6


def simulated_db(model: Model, reference: Model, grid: Grid) -> float:
    """SQNR on held-out samples, with the learned ranges where there are some."""
    simulation, held_out = simulate(model, grid), torch.from_numpy(noise(48, 12, 7).inputs(slice(None)))
    learned = model.learned.ranges
    if not learned:
        with simulation.observing(), torch.no_grad():
            simulation.network(torch.from_numpy(noise(64, 12, 0).inputs(slice(None))))
    else:
        for name, point in simulation.points.items():
            point.low.data.fill_(learned[name][0])
            point.high.data.fill_(learned[name][1])
    simulation.activate()
    with torch.no_grad():
        return sqnr_db(reference.network(held_out), simulation.network(held_out))


@pytest.fixture(scope="module")
def trained() -> tuple[Model, Model]:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    settings = QuantTrain(120, batch_size=16, learning_rate=0.05, split="calibration")
    return model, qat.apply(model, settings, noise(64, 12, 0), FOUR)


def test_four_bits_are_recovered(trained: tuple[Model, Model]) -> None:
    model, found = trained
    assert simulated_db(found, model, FOUR) > simulated_db(model, model, FOUR) + 6


def test_weights_lie_where_the_runtimes_quantizer_will_look(trained: tuple[Model, Model]) -> None:
    _, found = trained
    for name in ("a", "c", "fc"):
        weight = found.network.get_submodule(name).weight
        again = fake_quantize.fake_weight(weight, fake_quantize.widest_scale(weight, 4), 4)
        torch.testing.assert_close(again, weight, rtol=1e-5, atol=0)
    depthwise = found.network.b.weight
    integers = depthwise / fake_quantize.widest_scale(depthwise, 8)
    torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)


def test_ranges_are_learned_for_every_tensor(trained: tuple[Model, Model]) -> None:
    model, found = trained
    assert set(found.learned.ranges) == set(simulate(model, FOUR).points)
    assert all(low <= 0 <= high for low, high in found.learned.ranges.values())
    assert found.learned.ranges["relu"][0] == 0.0, "what has no negative values keeps zero as its low end"


def test_it_repeats_and_leaves_the_users_network_alone(trained: tuple[Model, Model]) -> None:
    model, _ = trained
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    counts: list[int] = []
    first, second = (
        qat.apply(model, QuantTrain(3, batch_size=8), noise(16, 12, 0), FOUR, progress=lambda n, _: counts.append(n))
        for _ in range(2)
    )
    assert first.sha256 == second.sha256 and first.learned == second.learned
    assert counts == [1, 2, 3] * 2
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())


def test_layers_in_float_keep_their_weights() -> None:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    found = qat.apply(model, QuantTrain(3, batch_size=8), noise(16, 12, 0), Grid(8, 8, keep_float=("fc",)))
    assert torch.equal(found.network.fc.weight, model.network.fc.weight)


def test_labels_pull_towards_themselves() -> None:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    pictures = noise(64, 12, 0)
    labels = (pictures.array.mean((2, 3))[:, 0] > 0).astype(np.int64) + 3
    labelled = Samples(
        array=pictures.array,
        labels=labels,
        names=pictures.names,
        split="train",
        sha256="labelled",
        preprocess=pictures.preprocess,
    )

    def right(found: Model) -> float:
        with torch.no_grad():
            return float((found.network(torch.from_numpy(pictures.array)).argmax(1).numpy() == labels).mean())

    with_labels = qat.apply(model, QuantTrain(150, batch_size=32, learning_rate=0.5, labels=1.0), labelled, Grid(8, 8))
    without = qat.apply(model, QuantTrain(150, batch_size=32, learning_rate=0.5, labels=0.0), labelled, Grid(8, 8))
    assert right(with_labels) > right(without) + 0.15


def test_the_network_that_is_both_teacher_and_measure_is_asked_once() -> None:
    """With `inner` the float network runs anyway; under another name it is asked by itself, and teaches the same."""
    torch.manual_seed(0)
    model, pictures = model_of(Net(), 12), noise(32, 12, 0)
    settings = QuantTrain(4, batch_size=16, learning_rate=0.2, inner=1.0, guarded=False)
    calls: list[str] = []
    model.network.register_forward_hook(lambda *_: calls.append("own"))
    once = qat.apply(model, settings, pictures, FOUR)
    traced = len(calls)
    twice = qat.apply(model, settings, pictures, FOUR, own=replace(model, sha256="another name"))
    assert traced < settings.steps <= len(calls) - traced, "it is traced the first time, and asked the second time"
    assert alike(once, twice) > 0.98, "sums in another order may move a weight across a rounding edge"


def turned(model: Model, order: list[int], names: tuple[str, ...]) -> Model:
    """The same network with its classes in another order."""
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        network.fc.weight.copy_(network.fc.weight[order])
        network.fc.bias.copy_(network.fc.bias[order])
    return replace(model, network=network, labels=tuple(names[n] for n in order), sha256="turned")


def alike(a: Model, b: Model) -> float:
    """Share of the last layer's weights that are the same."""
    return float(((a.network.fc.weight - b.network.fc.weight).abs() < 1e-4).float().mean())


def test_another_teachers_classes_are_brought_into_the_networks_order() -> None:
    """Taught by a network with other weights, its classes in this order or in that: the same training."""
    torch.manual_seed(0)
    names = tuple("abcdefghij"[:CLASSES])
    model = replace(model_of(Net(), 12), labels=names)
    other = replace(model_of(Net(), 12), labels=names)
    settings, pictures = QuantTrain(4, batch_size=16, learning_rate=0.2), noise(32, 12, 0)
    order = torch.randperm(CLASSES).tolist()
    straight = qat.apply(model, settings, pictures, FOUR, teacher=other)
    mixed = qat.apply(model, settings, pictures, FOUR, teacher=turned(other, order, names))
    assert alike(mixed, straight) > 0.98, "sums in another order may move a weight across a rounding edge"
    blind = qat.apply(model, settings, pictures, FOUR, teacher=replace(turned(other, order, names), labels=names))
    assert alike(blind, straight) < 0.8
    with pytest.raises(UserError, match="does not know the student's class"):
        qat.apply(model, settings, pictures, FOUR, teacher=replace(other, labels=("z", *names[1:])))
    fed = replace(other, preprocess=replace(other.preprocess, mean=(0.5, 0.5, 0.5)))
    with pytest.raises(UserError, match="The teacher's images are not the student's"):
        qat.apply(model, settings, pictures, FOUR, teacher=fed)


def test_what_a_teachers_logits_are_scaled_and_offset_by_is_not_learned() -> None:
    """An offset of all logits says nothing: by the divergence it changes nothing, by squared error it would."""
    torch.manual_seed(0)
    answers, wanted = torch.randn(8, 5), torch.randn(8, 5)
    divergence = qat.softened_divergence(answers, wanted)
    torch.testing.assert_close(qat.softened_divergence(answers, wanted + 7), divergence)
    assert qat.mean_relative_error(answers, wanted + 7) > 0.5
    torch.testing.assert_close(qat.mean_relative_error(wanted, wanted), torch.zeros(()))
    soft = torch.nn.functional.kl_div((answers / 4).log_softmax(1), (wanted / 4).softmax(1), reduction="batchmean")
    torch.testing.assert_close(divergence, 16 * soft)


def test_each_sample_counts_by_its_own_size() -> None:
    """A sample whose answers are a tenth as large as another's, and off by as large a share, counts as much."""
    torch.manual_seed(0)
    wanted, off = torch.randn(1, 5), torch.randn(1, 5)
    one = qat.mean_relative_error(wanted + off, wanted)
    sizes = torch.tensor([[1.0], [0.1], [10.0]])
    torch.testing.assert_close(qat.mean_relative_error(sizes[:2] * (wanted + off), sizes[:2] * wanted), one)
    nothing = torch.cat([wanted, torch.zeros(1, 5)])  # a sample without answers does not count without bounds
    assert qat.mean_relative_error(nothing + 0.01 * off, nothing) < 0.05


def test_errors_count_where_classes_compete() -> None:
    """To second order they are the divergence of softened answers, by torch's own; what all classes share is none."""
    torch.manual_seed(0)
    wanted, off = 4 * torch.randn(32, 6, dtype=torch.float64), 1e-3 * torch.randn(32, 6, dtype=torch.float64)
    temperature = qat.LIKELY_TEMPERATURE
    soft = [(answers / temperature).log_softmax(1) for answers in (wanted + off, wanted)]
    divergence = torch.nn.functional.kl_div(*soft, reduction="batchmean", log_target=True)
    share = qat.contested_error(wanted + off, wanted) * wanted.var(1).mean()
    torch.testing.assert_close(share / (2 * temperature**2), divergence, rtol=1e-2, atol=0)
    torch.testing.assert_close(qat.contested_error(wanted + 3, wanted), torch.zeros((), dtype=torch.float64))
    assert float(qat.own_error(wanted + 3, wanted)) > 0.1, "and they are kept as they are"


def test_the_network_itself_as_a_teacher_changes_nothing() -> None:
    torch.manual_seed(0)
    model, other = model_of(Net(), 12), model_of(Net(), 12)
    settings, pictures = QuantTrain(3, batch_size=8, learning_rate=0.2), noise(16, 12, 0)
    alone = qat.apply(model, settings, pictures, FOUR)
    assert qat.apply(model, settings, pictures, FOUR, teacher=model).sha256 == alone.sha256
    assert qat.apply(model, settings, pictures, FOUR, own=other).sha256 != alone.sha256


def test_another_teacher_is_followed() -> None:
    """What is divergence to the teacher before training is less behind it."""
    torch.manual_seed(0)
    model, other = model_of(Net(), 12), model_of(Net(), 12)
    found = qat.apply(model, QuantTrain(80, batch_size=16, learning_rate=0.2), noise(64, 12, 0), FOUR, teacher=other)
    inputs = torch.from_numpy(noise(48, 12, 7).inputs(slice(None)))
    with torch.no_grad():
        before, after, wanted = (one.network(inputs) for one in (model, found, other))
    assert qat.softened_divergence(after, wanted) < 0.7 * qat.softened_divergence(before, wanted)


def test_nothing_to_train_on_is_said() -> None:
    model = model_of(Net(), 12)
    with pytest.raises(UserError, match="the calibration split is empty"):
        qat.apply(model, QuantTrain(1, split="calibration"), noise(0, 12, 0), FOUR)


def test_weights_only_learns_without_ranges() -> None:
    torch.manual_seed(0)
    model = model_of(Net(), 12)
    grid = ExportSettings("litert", "weight-only", weights="int4").grid
    assert grid is not None
    found = qat.apply(model, QuantTrain(60, batch_size=16, learning_rate=0.05), noise(64, 12, 0), grid)
    assert found.learned.ranges == {}
    assert simulated_db(found, model, grid) > simulated_db(model, model, grid) + 3


def test_zeros_of_sparse_layers_stay() -> None:
    torch.manual_seed(0)
    sparse = sparsify.apply(model_of(Net(), 12), Sparsify(0.6), None)
    settings = QuantTrain(12, batch_size=16, learning_rate=0.5, guarded=False)
    found = qat.apply(sparse, settings, noise(64, 12, 0), FOUR)
    free = qat.apply(replace(sparse, learned=Learned()), settings, noise(64, 12, 0), FOUR)
    for name in ("c", "fc"):
        zero = sparse.network.get_submodule(name).weight == 0
        assert (found.network.get_submodule(name).weight[zero] == 0).all()
        assert (free.network.get_submodule(name).weight[zero] != 0).any(), "without the note they move"
    assert found.learned.sparse == ("c", "fc")


def behind_b(network: torch.nn.Module) -> torch.Tensor:
    """The tensor of Net that training compares inside, on samples that it has not seen."""
    given = torch.from_numpy(noise(48, 12, 7).inputs(slice(None)))
    with torch.no_grad():
        return F.relu6(network.b(torch.relu(network.norm(network.a(given)))))


def test_the_tensors_inside_stay_nearer_where_they_count() -> None:
    """Eight samples teach it, others show it."""
    torch.manual_seed(0)
    model, few = model_of(Net(), 12), noise(8, 12, 0)
    settings = QuantTrain(80, batch_size=8, learning_rate=0.1, split="calibration")
    by_answers, by_tensors = (qat.apply(model, replace(settings, inner=share), few, FOUR) for share in (0.0, 1.0))
    far, near = (
        (behind_b(found.network) - behind_b(model.network)).square().sum() for found in (by_answers, by_tensors)
    )
    assert near < 0.7 * far


def test_what_is_right_inside_is_what_the_network_had_before_it_went_on_the_grid() -> None:
    """A network that was spoiled on its way to the grid comes nearer to the one before it, where it is told of it."""
    torch.manual_seed(0)
    model, samples = model_of(Net(), 12), noise(32, 12, 0)
    spoiled = copy.deepcopy(model.network)
    spoiled.b.weight.data[::2] *= 1.3
    settings = QuantTrain(60, batch_size=16, learning_rate=0.1, inner=10.0)
    start = replace(model, network=spoiled)
    told, untold = (qat.apply(start, settings, samples, FOUR, own=model, exact=exact) for exact in (model, None))
    near, far = ((behind_b(found.network) - behind_b(model.network)).square().sum() for found in (told, untold))
    assert near < far / 2


def off_by_themselves(model: Model, found: Model, samples: Samples) -> dict[str, float]:
    """Layer -> the variance of what its outputs change by where `found` has its weights, over that of its outputs; each
    layer sees what it sees in `model`, whose batch norms are folded."""
    seen: dict[str, torch.Tensor] = {}
    names = ("a", "b", "c", "fc")

    def note(name: str) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        return lambda _, given: seen.update({name: given[0]})

    hooks = [model.network.get_submodule(name).register_forward_pre_hook(note(name)) for name in names]
    with torch.no_grad():
        model.network(torch.from_numpy(samples.inputs(slice(None))))
        for hook in hooks:
            hook.remove()
        shares = {}
        for name in names:
            before, after = (one.network.get_submodule(name)(seen[name]).transpose(0, 1) for one in (model, found))
            shares[name] = float((after - before).flatten(1).var(1).sum() / before.flatten(1).var(1).sum())
    return shares


def test_what_layers_are_off_by_themselves_is_what_their_outputs_change_by() -> None:
    torch.manual_seed(0)
    model, samples = model_of(Net(), 12), noise(512, 12, 0)
    model = replace(model, network=fold_batch_norm(model.network, model.signature))
    rounded = copy.deepcopy(model.network)
    for name, bits in {"a": 4, "b": 8, "c": 4, "fc": 4}.items():
        weight = rounded.get_submodule(name).weight
        weight.data = fake_quantize.fake_weight(weight.data, fake_quantize.widest_scale(weight, bits), bits)
    simulation = simulate(model, FOUR)
    simulation.activate(points=False)
    found = qat._Layers(simulation, simulate(model, FOUR), samples, seed=0).error()
    shares = off_by_themselves(model, replace(model, network=rounded), samples)
    torch.testing.assert_close(float(found.detach()), sum(shares.values()), rtol=0.05, atol=0)


def test_layers_held_to_their_own_work_stay_nearer_to_it() -> None:
    """The error of each layer by itself, on samples that training has not seen."""
    torch.manual_seed(0)
    model, few = model_of(Net(), 12), noise(8, 12, 0)
    model = replace(model, network=fold_batch_norm(model.network, model.signature))
    settings = QuantTrain(160, batch_size=8, learning_rate=0.1, split="calibration")
    freely, held = (qat.apply(model, replace(settings, layerwise=share), few, FOUR) for share in (0.0, 0.2))
    off, less = (sum(off_by_themselves(model, found, noise(64, 12, 7)).values()) for found in (freely, held))
    assert less < 0.7 * off


@pytest.mark.parametrize(("name", "expected"), [("mobilenet_v2", 27), ("resnet18", 23)])
def test_a_network_is_narrow_at_its_bottlenecks_and_sums(name: str, expected: int) -> None:
    simulation = simulate(open_model(name, classes=10), FOUR)
    layers = [simulation.points[point].layer for point in qat.narrow(simulation)]
    assert len(layers) == expected
    if name == "mobilenet_v2":
        assert all(layer.endswith((".conv.2", "1.conv.1", ".add")) for layer in layers)


def test_a_training_that_does_harm_is_taken_back(trained: tuple[Model, Model]) -> None:
    """At a rate of hundreds of its steps each weight is thrown about: unguarded, the network is lost."""
    model, _ = trained
    wild = QuantTrain(12, batch_size=16, learning_rate=100.0)
    alone = qat.apply(model, replace(wild, guarded=False), noise(64, 12, 0), FOUR)
    watched = qat.apply(model, wild, noise(64, 12, 0), FOUR)
    before = simulated_db(model, model, FOUR)
    assert simulated_db(alone, model, FOUR) < before - 10
    assert simulated_db(watched, model, FOUR) > before - 5, "where training begins: other ranges than here"
    (said,) = [sentence for sentence in watched.findings if sentence.startswith("Training")]
    assert "64 samples that it was trained with" in said or "best weights were put back" in said


def test_what_is_not_finite_moves_nothing(trained: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient is NaN at each step: guarded it is given up with the weights as they were, else refused in words."""
    model, _ = trained
    monkeypatch.setattr(qat, "own_error", lambda answers, wanted: (answers * float("nan")).sum())
    broken = QuantTrain(30, batch_size=16, learning_rate=0.05)
    with pytest.raises(UserError, match=r"diverged; use a smaller learning rate"):
        qat.apply(model, replace(broken, guarded=False), noise(64, 12, 0), FOUR)
    found = qat.apply(model, broken, noise(64, 12, 0), FOUR)
    assert simulated_db(found, model, FOUR) > simulated_db(model, model, FOUR) - 5
    assert [s for s in found.findings if "fall at step 1, and 3 more" in s and s.endswith("it was ended")]


def test_a_training_that_does_none_is_the_same_guarded_or_not(trained: tuple[Model, Model]) -> None:
    model, _ = trained
    settings = QuantTrain(6, batch_size=16, learning_rate=0.05)
    one, other = (
        qat.apply(model, replace(settings, guarded=guarded), noise(64, 12, 0), FOUR) for guarded in (True, False)
    )
    assert one.sha256 == other.sha256 and one.learned == other.learned


class Folded(torch.nn.Module):
    """A norm made of buffers, which the export computes from constants; answers are viewed as in every tutorial."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = torch.nn.Conv2d(3, 16, 3, 2, 1, bias=False), torch.nn.Linear(16 * 36, CLASSES)
        self.register_buffer("mean", torch.zeros(16))
        self.register_buffer("var", torch.ones(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (self.var + 1e-5).rsqrt()
        x = self.conv(x) * scale.view(1, -1, 1, 1) + (0 - self.mean * scale).view(1, -1, 1, 1)
        return self.fc(F.relu(x).view(x.size(0), -1))


@pytest.mark.parametrize("frozen", [False, True])
def test_constants_among_the_tensors_and_views_are_no_obstacle(frozen: bool) -> None:
    torch.manual_seed(0)
    model = model_of(Folded().requires_grad_(not frozen), 12)
    settings = QuantTrain(3, batch_size=16, learning_rate=0.01, inner=1.0)
    found = qat.apply(model, settings, noise(64, 12, 0), Grid(8, 8))
    assert all(np.isfinite(ends).all() for ends in found.learned.ranges.values())
    assert all(p.isfinite().all() for p in found.network.parameters())
    assert not torch.equal(found.network.fc.weight, model.network.fc.weight)


def test_of_what_is_zero_everywhere_nothing_is_asked() -> None:
    zero, tensor = torch.zeros(4), torch.full((4,), 0.5, requires_grad=True)
    qat.relative_error(tensor, zero).backward()
    assert tensor.grad is not None and not tensor.grad.any()
    assert float(qat.relative_error(torch.ones(4), torch.full((4,), 2.0))) == 0.25
