"""Training: it learns, it repeats bit for bit, and it refuses what cannot be meant."""

from __future__ import annotations

import copy
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pocketfit.core.errors import UserError
from pocketfit.core.learned import Learned
from pocketfit.core.model import Model
from pocketfit.core.plan.train import Train
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.passes.train import batches, distillation, fine_tune
from pocketfit.passes.train.guarded import objective
from pocketfit.passes.train.torch_accuracy import accuracy
from pocketfit.sources.models.fingerprint import fingerprint
from pocketfit.sources.models.open_model import model_from_module

PREPROCESS = Preprocess(height=12, width=12, resize_px=12)
LABELS = ("left", "right", "both")


class Net(nn.Module):
    def __init__(self, classes: int = len(LABELS), dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool, self.drop = nn.AdaptiveAvgPool2d(2), nn.Dropout(dropout)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, classes))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.drop(self.pool(self.stem(image)).flatten(1)))


def model(seed: int = 0, labels: tuple[str, ...] = LABELS, dropout: float = 0.2) -> Model:
    torch.manual_seed(seed)
    return model_from_module(Net(len(labels), dropout), preprocess=PREPROCESS, labels=labels)


def samples(count: int = 96, seed: int = 0) -> Samples:
    """Pictures that are bright on the left, on the right, or on both sides."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    pixels = rng.integers(0, 90, (count, 12, 12, 3))
    pixels[labels != 1, :, :6] += 120
    pixels[labels != 0, :, 6:] += 120
    names = [f"{i}" for i in range(count)]
    return Samples(
        array=pixels.astype(np.uint8),
        labels=labels.astype(np.int64),
        names=names,
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
        class_names=LABELS,
    )


def loss(trained: Model, given: Samples) -> float:
    with torch.no_grad():
        logits = trained.network(torch.from_numpy(given.inputs(slice(None))))
    return float(nn.functional.cross_entropy(logits, torch.from_numpy(given.labels)))


def same_weights(a: Model, b: Model) -> bool:
    one, two = a.network.state_dict(), b.network.state_dict()
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_loss_falls_and_other_pictures_are_recognised() -> None:
    start, data = model(), samples()
    trained = fine_tune.apply(start, Train(60, batch_size=16, alpha=0.0, learning_rate=0.05), data, teacher=None)
    assert loss(trained, data) < 0.3 * loss(start, data)
    assert accuracy(trained, samples(seed=1)) > 0.9
    assert trained.sha256 != start.sha256
    assert not trained.network.training and not start.network.training


def test_the_model_that_was_given_stays_as_it_is() -> None:
    start, teacher = model(), model(1)
    before, taught = model(), model(1)
    fine_tune.apply(start, Train(3, batch_size=8), samples(), teacher=teacher)
    assert same_weights(start, before) and same_weights(teacher, taught)


def test_with_the_teacher_alone_the_student_becomes_the_teacher() -> None:
    """alpha = 1 leaves no word of the labels: here they are all wrong, and the student answers as the teacher does."""
    data = samples()
    teacher = fine_tune.apply(model(1), Train(60, batch_size=16, alpha=0.0, learning_rate=0.05), data, teacher=None)
    misled = replace(data, labels=(data.labels + 1) % 3)
    settings = Train(80, batch_size=16, alpha=1.0, temperature=2.0, learning_rate=0.05)
    student = fine_tune.apply(model(2), settings, misled, teacher=teacher)
    inputs = torch.from_numpy(samples(seed=1).inputs(slice(None)))
    with torch.no_grad():
        wanted, first, got = (m.network(inputs).softmax(1) for m in (teacher, model(2), student))
    assert (got.argmax(1) == wanted.argmax(1)).float().mean() > 0.9
    assert (got - wanted).abs().mean() < 0.3 * (first - wanted).abs().mean()
    assert accuracy(student, misled) < 0.1


def test_the_divergence_is_hintons() -> None:
    """loss = (1 - alpha) CE + alpha T² KL(teacher_T || student_T), against PyTorch's own words for it."""
    student, teacher = model(0, dropout=0).network, model(1, dropout=0).network
    data = samples(16)
    inputs, labels = torch.from_numpy(data.inputs(slice(None))), torch.from_numpy(data.labels)
    labels[3] = -1  # a picture without a label counts for the teacher alone
    recipe = objective.Recipe(batch_size=16, learning_rate=0.1, seed=0, temperature=3.0, alpha=0.7)
    with torch.no_grad():
        got = objective.objective(student(inputs), labels, recipe, teacher(inputs))
        p, q = (teacher(inputs) / 3).softmax(1), (student(inputs) / 3).softmax(1)
        divergence = (p * (p.log() - q.log())).sum(1).mean()
        entropy = nn.functional.cross_entropy(student(inputs), labels, ignore_index=-1)
    torch.testing.assert_close(got, 0.3 * entropy + 0.7 * 9 * divergence)


def test_the_same_seed_gives_the_same_weights_to_the_bit() -> None:
    settings, teacher = Train(7, batch_size=16, seed=3, guarded=False), model(1)
    first = fine_tune.apply(model(), settings, samples(), teacher=teacher)
    torch.rand(5)  # what was drawn elsewhere in between does not matter
    assert same_weights(first, fine_tune.apply(model(), settings, samples(), teacher=teacher))
    other = fine_tune.apply(model(), replace(settings, seed=4), samples(), teacher=teacher)
    assert not same_weights(first, other)


def test_every_step_is_taken_and_counted() -> None:
    seen: list[tuple[int, int]] = []
    fine_tune.apply(model(), Train(5, batch_size=8), samples(10), teacher=model(1), progress=lambda *t: seen.append(t))
    assert seen == [(i, 5) for i in range(1, 6)], "more steps than one pass over ten pictures has"


class Counting(Samples):
    """Samples that write down which rows were asked for."""

    def inputs(self, rows, layout="NCHW"):  # type: ignore[no-untyped-def]
        ROWS.append(np.asarray(rows))
        return super().inputs(rows, layout)


ROWS: list[np.ndarray] = []


def counting(count: int) -> Counting:
    ROWS.clear()
    data = samples(count)
    return Counting(
        array=data.array,
        labels=data.labels,
        names=data.names,
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
        class_names=LABELS,
    )


def test_an_epoch_shows_every_picture_once() -> None:
    recipe = objective.Recipe(batch_size=8, learning_rate=0.1, seed=0)
    assert len(list(batches.shuffled(counting(32), recipe.batch_size, 8, seed=recipe.seed))) == 8
    shown = np.concatenate(ROWS)
    assert sorted(shown[:32]) == sorted(shown[32:]) == list(range(32))
    assert not np.array_equal(shown[:32], shown[32:])
    assert not np.array_equal(np.sort(ROWS[0]), np.sort(ROWS[4])), "ever new order"


def test_a_share_trains_on_a_fixed_part() -> None:
    seen: set[bytes] = set()

    class Watching(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            seen.update(row.tobytes() for row in image.numpy())
            return super().forward(image)

    flat = replace(
        samples(40), array=np.arange(40, dtype=np.float32)[:, None, None, None] * np.ones((40, 3, 12, 12), "f")
    )
    torch.manual_seed(0)
    network = model_from_module(Watching(), preprocess=PREPROCESS, labels=LABELS)
    parts = []
    for _ in range(2):
        seen.clear()
        fine_tune.apply(network, Train(20, batch_size=5, alpha=0, share=0.25), flat, teacher=None)
        parts.append(set(seen))
    assert len(parts[0]) == 10 and parts[0] == parts[1]


def test_refusals() -> None:
    with pytest.raises(UserError, match="needs a teacher"):
        fine_tune.apply(model(), Train(1), samples(), teacher=None)
    with pytest.raises(UserError, match="The teacher knows 2 classes and the student 3"):
        fine_tune.apply(model(), Train(1), samples(), teacher=model(labels=("a", "b")))
    with pytest.raises(UserError, match="Training with features needs a teacher"):
        fine_tune.apply(model(), Train(1, alpha=0, features=("stem",)), samples(), teacher=None)
    with pytest.raises(UserError, match="nothing to train on"):
        fine_tune.apply(model(), Train(1, alpha=0), samples(0), teacher=None)


def test_divergence_is_a_sentence_and_not_a_nan_model() -> None:
    class Squares(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(432, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            met = self.enter(x.flatten(1))
            out: Tensor = self.leave(met * met * met)
            return out

    given = model_from_module(Squares(), preprocess=PREPROCESS, labels=LABELS)
    settings = Train(30, batch_size=8, alpha=0.0, learning_rate=100.0, optimizer="sgd", guarded=False)
    with pytest.raises(UserError, match=r"diverged.*smaller learning rate"):
        fine_tune.apply(given, settings, samples(), teacher=None)


def test_an_interrupt_leaves_the_thread_pool_in_peace() -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        fine_tune.apply(model(), Train(50, batch_size=8, alpha=0), samples(), teacher=None, progress=stop)
    assert threading.active_count() == before


def test_transfer_ends_in_time_with_the_learning_rate_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr(fine_tune.time, "monotonic", lambda: float(next(clock)))
    rates: list[float] = []
    monkeypatch.setattr(fine_tune, "schedule", lambda share: rates.append(share) or 1e-3)
    fine_tune.transfer(model(), samples(), epochs=100, max_time_s=10.0, batch_size=16)
    assert rates == sorted(rates)
    assert sorted(set(rates)) == pytest.approx([i / 10 for i in range(1, 10)])


def test_transfer_goes_over_the_data_as_often_as_asked() -> None:
    seen: list[int] = []
    fine_tune.transfer(model(), samples(33), epochs=2.0, batch_size=16, progress=lambda done, total: seen.append(total))
    assert seen == [5] * 5


def by_hand(network: nn.Module, teacher: nn.Module, data: Samples, settings: Train, *, ema: float = 0) -> nn.Module:
    """The plain settings' training once more, in one straight loop and in PyTorch's own words."""
    rng = np.random.default_rng(settings.seed)
    torch.manual_seed(settings.seed)
    network = copy.deepcopy(network).train().to(memory_format=torch.channels_last)
    groups = [[p for p in network.parameters() if p.ndim > 1], [p for p in network.parameters() if p.ndim == 1]]
    optimizer = torch.optim.SGD(
        [{"params": groups[0], "weight_decay": 4e-5}, {"params": groups[1]}], lr=0.1, momentum=0.9, nesterov=True
    )
    order: list[int] = []
    averages = {name: value.clone() for name, value in network.state_dict().items()}
    for step in range(settings.steps):
        if len(order) < settings.batch_size:
            order += rng.permutation(len(data)).tolist()
        rows, order = sorted(order[: settings.batch_size]), order[settings.batch_size :]
        pixels = data.array[rows]
        down, right = (rng.integers(-1, 2, len(rows)) for _ in range(2))  # 12 pixels / 16, rounded
        place = np.arange(12)
        moved = [
            p[np.clip(place + y, 0, 11)][:, np.clip(place + x, 0, 11)]
            for p, y, x in zip(pixels, down, right, strict=True)
        ]
        values = replace(data, array=np.stack(moved)).inputs(slice(None))
        inputs = torch.from_numpy(values).contiguous(memory_format=torch.channels_last)
        labels = torch.from_numpy(data.labels[rows])
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * fine_tune.schedule(step / settings.steps)
        logits = network(inputs)
        with torch.no_grad():
            wanted = (teacher(inputs) / settings.temperature).log_softmax(1)
        loss = (1 - settings.alpha) * nn.functional.cross_entropy(logits, labels)
        softened = (logits / settings.temperature).log_softmax(1)
        loss = loss + settings.alpha * settings.temperature**2 * nn.functional.kl_div(
            softened, wanted, reduction="batchmean", log_target=True
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay = min(ema, (2 + step) / (11 + step))
        for name, value in network.state_dict().items():
            if ema and value.is_floating_point():
                averages[name] = decay * averages[name] + (1 - decay) * value
            else:
                averages[name] = value.clone()
    network.load_state_dict(averages)
    return network.eval().to(memory_format=torch.contiguous_format)


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_plain_loop_gives_the_same_weights_to_the_bit(dropout: float) -> None:
    start, teacher, settings = model(dropout=dropout), model(1), Train(9, batch_size=16, seed=3, guarded=False)
    trained = fine_tune.apply(start, settings, samples(40), teacher=teacher)
    assert trained.sha256 == fingerprint(by_hand(start.network, teacher.network, samples(40), settings))


def test_the_average_is_the_one_taken_by_hand() -> None:
    """Of weights and buffers; d = min(ema, (1 + t) / (10 + t)), both sides of which are seen here."""
    start, teacher, settings = model(), model(1), Train(9, batch_size=16, ema=0.5, guarded=False)
    trained = fine_tune.apply(start, settings, samples(40), teacher=teacher)
    state = by_hand(start.network, teacher.network, samples(40), settings, ema=0.5).state_dict()
    for name, value in trained.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-6)
    assert int(trained.network.stem[1].num_batches_tracked) == 9
    last = fine_tune.apply(start, replace(settings, ema=0.0), samples(40), teacher=teacher)
    assert not torch.allclose(last.network.stem[1].running_var, trained.network.stem[1].running_var, rtol=1e-4)


def test_an_average_over_a_short_training_does_not_ruin_it() -> None:
    start, data = model(), samples()
    settings = Train(60, batch_size=16, alpha=0.0, learning_rate=0.05, ema=0.999)
    assert loss(fine_tune.apply(start, settings, data, teacher=None), data) < 0.4 * loss(start, data)


@pytest.mark.parametrize("pointwise", [True, False])
def test_the_settings_say_which_optimizer_moves_a_pointwise_convolution(pointwise: bool) -> None:
    start = model(dropout=0.0)
    if pointwise:
        torch.manual_seed(0)
        start.network.stem.append(nn.Conv2d(8, 8, 1))
    by_muon, by_sgd = (
        fine_tune.apply(start, Train(3, batch_size=8, alpha=0.0, optimizer=name), samples(), teacher=None)
        for name in ("muon", "sgd")
    )
    assert same_weights(by_muon, by_sgd) == (not pointwise)


def test_zeros_of_sparse_layers_stay_and_only_theirs() -> None:
    start = model()
    with torch.no_grad():
        start.network.stem[0].weight[:, 1] = 0
        start.network.classifier[0].weight[::2] = 0
        start.network.classifier[2].weight[0] = 0
    sparse = replace(start, learned=Learned(sparse=("stem.0", "classifier.0")))
    for settings in (Train(6, batch_size=8), Train(6, batch_size=8, ema=0.9)):
        trained = fine_tune.apply(sparse, settings, samples(), teacher=model(1))
        assert (trained.network.stem[0].weight[:, 1] == 0).all() and (trained.network.stem[0].weight[:, 0] != 0).all()
        weight = trained.network.classifier[0].weight
        assert (weight[::2] == 0).all() and (weight[1::2] != 0).all()
        assert (trained.network.classifier[2].weight[0] != 0).any(), "a layer that nobody made sparse"
        assert trained.learned == sparse.learned


def test_in_mixed_precision_the_network_learns_and_comes_back_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's road, taken on a CPU: bfloat16 inside, float32 weights and losses outside."""
    monkeypatch.setattr(fine_tune, "precision", lambda place: torch.autocast(place.type, torch.bfloat16))
    seen: set[torch.dtype] = set()
    start, data, teacher = model(dropout=0), samples(), model(1)
    start.network.classifier[0].register_forward_hook(lambda _l, _i, out: seen.add(out.dtype))
    settings = Train(60, batch_size=16, alpha=0.1, learning_rate=0.05, features=("stem.0",), feature_weight=1.0)
    trained = fine_tune.apply(start, settings, data, teacher=teacher)
    assert torch.bfloat16 in seen
    assert all(p.dtype == torch.float32 and p.device.type == "cpu" for p in trained.network.parameters())
    assert accuracy(trained, samples(seed=1)) > 0.9


def test_a_cpu_computes_in_float32() -> None:
    with fine_tune.precision(torch.device("cpu")):
        assert nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == torch.float32


def test_features_draw_the_students_maps_to_the_teachers() -> None:
    """Nothing but the maps is asked for (alpha and CE's share are 0 and 1e-9): they come closer, narrower or not."""
    data, teacher = samples(), model(1, dropout=0)
    inputs = torch.from_numpy(data.inputs(slice(None)))

    def distance(student: Model) -> float:
        with torch.no_grad():
            maps = [distillation.attention(m.network.stem(inputs)) for m in (student, teacher)]
        return float((maps[0] - maps[1]).square().mean())

    narrow = model(dropout=0)
    narrow.network.stem = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1, bias=False), nn.BatchNorm2d(5), nn.ReLU())
    narrow.network.classifier[0] = nn.Linear(20, 16)
    for start in (model(dropout=0), narrow):
        settings = Train(40, batch_size=16, alpha=0.0, features=("stem",), feature_weight=1000.0)
        trained = fine_tune.apply(start, settings, data, teacher=teacher)
        assert distance(trained) < 0.7 * distance(start)
        plain = fine_tune.apply(start, replace(settings, feature_weight=0.0), data, teacher=teacher)
        assert distance(trained) < 0.8 * distance(plain)


def test_kept_answers_are_asked_for_once(tmp_path: Path) -> None:
    """32 pictures, 8 a step: 12 steps are three epochs; two views are 64 answers, for every student."""
    asked: list[int] = []
    teacher = model(1)
    teacher.network.register_forward_hook(lambda _l, _i, out: asked.append(len(out)))
    settings = Train(12, batch_size=8, views=2, guarded=False)
    first = fine_tune.apply(model(), settings, samples(32), teacher=teacher, cache=tmp_path)
    assert sum(n for n in asked if n > 2) == 64 and len(list(tmp_path.iterdir())) == 2
    asked.clear()
    again = fine_tune.apply(model(), settings, samples(32), teacher=teacher, cache=tmp_path)
    fine_tune.apply(
        model(2), replace(settings, steps=30, learning_rate=0.1), samples(32), teacher=teacher, cache=tmp_path
    )
    assert sum(n for n in asked if n > 2) == 0
    assert same_weights(first, again)
    assert same_weights(first, fine_tune.apply(model(), settings, samples(32), teacher=teacher)), "in memory as on disk"
    fine_tune.apply(model(), replace(settings, seed=1, steps=4), samples(32), teacher=teacher, cache=tmp_path)
    assert sum(n for n in asked if n > 2) == 64 + 32, "other shifts are other answers; one epoch needs one view"


def test_kept_answers_teach_as_live_ones_do() -> None:
    data = samples()
    teacher = fine_tune.apply(model(1), Train(60, batch_size=16, alpha=0.0, learning_rate=0.05), data, teacher=None)
    misled = replace(data, labels=(data.labels + 1) % 3)
    for more in ({}, {"distillation": "decoupled"}, {"features": ("stem.0",)}):
        settings = Train(80, batch_size=16, alpha=1.0, temperature=2.0, learning_rate=0.05, views=3, **more)  # type: ignore[arg-type]
        student = fine_tune.apply(model(2), settings, misled, teacher=teacher)
        assert accuracy(student, samples(seed=1)) > 0.9


@given(st.floats(0, 1))
def test_the_schedule_warms_up_and_comes_down(share: float) -> None:
    now, later = fine_tune.schedule(share), fine_tune.schedule(min(1.0, share + 1e-3))
    assert 0 <= now <= 1.0 + 1e-9
    assert later >= now if share < 0.049 else share < 0.05 or later <= now


def test_a_new_head_has_the_classes_of_the_data() -> None:
    start = model()
    changed = fine_tune.replace_head(start, ("a", "b", "c", "d", "e"), seed=1)
    assert changed.labels == ("a", "b", "c", "d", "e")
    assert changed.signature.outputs[0].shape == (None, 5)
    assert changed.origin.arguments["classes"] == 5
    with torch.no_grad():
        assert changed.network(torch.zeros(2, 3, 12, 12)).shape == (2, 5)
    assert changed.network.classifier[2].out_features == 5 and start.network.classifier[2].out_features == 3
    assert torch.equal(changed.network.classifier[0].weight, start.network.classifier[0].weight), "only the head is new"
    assert same_weights(changed, fine_tune.replace_head(start, ("a", "b", "c", "d", "e"), seed=1))
    assert not same_weights(changed, fine_tune.replace_head(start, ("a", "b", "c", "d", "e"), seed=2))
    assert changed.sha256 != start.sha256


def test_a_network_without_a_linear_layer_has_no_head_to_replace() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 12), nn.Flatten())
    with pytest.raises(UserError, match="no linear layer"):
        fine_tune.replace_head(model_from_module(network, preprocess=PREPROCESS, labels=("a", "b")), ("a",), seed=0)


def test_answers_that_are_nan_are_not_right() -> None:
    class Nan(Net):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return super().forward(image) * (float("nan") if image.abs().sum() > 0 else 1.0)

    torch.manual_seed(0)
    assert accuracy(model_from_module(Nan(), preprocess=PREPROCESS, labels=LABELS), samples()) == 0.0


def test_ready_tensors_are_trained_on_as_they_are() -> None:
    network = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(64, 6)).astype(np.float32)
    data = replace(samples(64), array=vectors, labels=(vectors[:, 0] > 0).astype(np.int64))
    start = model_from_module(network, preprocess=PREPROCESS, labels=("a", "b"), input_shape=(6,))
    trained = fine_tune.apply(start, Train(60, batch_size=16, alpha=0.0, learning_rate=0.1), data, teacher=None)
    assert accuracy(trained, data) > 0.9
