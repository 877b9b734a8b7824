"""A file whose answers are known (the brightest channel) and what becomes of them on the way to a score."""

import sys
from dataclasses import replace

import numpy as np
import pytest

from pocketfit.core.errors import CannotRunHere, ExportFailed, UserError
from pocketfit.core.signature import TensorSpec
from pocketfit.measurement import group_scores, run_samples, sample_arrays
from pocketfit.measurement.run_samples import Scores
from pocketfit.numerics.latency_intervals import paired_drop
from pocketfit.tasks import classification


def scores_of(predictions, labels, metric="accuracy"):
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    right = (predictions == labels).astype(np.float64)
    return Scores(values=right, answers=predictions.astype(np.int64), metric=metric, nan=0)


# --- scoring a file ---


@pytest.mark.parametrize("batch", ["n", 1, 4])
def test_right_and_wrong_answers_are_counted_whatever_the_files_batch(mean_file, coloured, batch):
    found = run_samples.score("onnxruntime", mean_file(batch=batch), coloured(n=50, wrong=5), batch_size=16)
    assert found.values.tolist() == [0.0] * 5 + [1.0] * 45
    assert found.mean == 0.9
    assert found.answers.tolist() == [i % 3 for i in range(50)]
    assert (found.nan, found.finding) == (0, "")
    expected = coloured(n=50).array.astype(np.float64).mean(axis=(1, 2)) / 255
    assert np.allclose(found.outputs, expected, atol=1e-5)


def test_the_preprocess_of_the_samples_reaches_the_file(mean_file, coloured):
    samples = coloured(n=6)
    shifted = replace(samples, preprocess=replace(samples.preprocess, mean=(0.5, 0.0, 0.0), std=(1.0, 2.0, 1.0)))
    plain = run_samples.score("onnxruntime", mean_file(), samples).outputs
    moved = run_samples.score("onnxruntime", mean_file(), shifted).outputs
    assert np.allclose(moved, (plain - [0.5, 0, 0]) / [1, 2, 1], atol=1e-5)


def test_nan_is_never_right_and_is_said(mean_file, coloured):
    samples = coloured(n=6)
    pixels = samples.array.copy()
    pixels[4, :, :, 0] = 0  # its mean is 0, and 0 / 0 the answer
    found = run_samples.score("onnxruntime", mean_file(spoil="nan"), replace(samples, array=pixels))
    assert found.values.tolist() == [1, 1, 1, 1, 0, 1]
    assert found.answers[4] == -1
    assert found.finding.startswith("1 of 6 samples got NaN")


def test_progress_ends_at_all_samples_and_nothing_is_left_behind(mean_file, coloured, tmp_path):
    steps = []
    run_samples.score("onnxruntime", mean_file(), coloured(), work=tmp_path, progress=lambda *step: steps.append(step))
    assert steps[-1] == (50, 50)
    assert all(total == 50 and 0 <= done <= 50 for done, total in steps)
    assert list(tmp_path.iterdir()) == []


def test_a_memory_map_is_handed_over_as_it_is_and_a_part_of_one_is_copied(coloured, tmp_path):
    samples = coloured(n=6)
    np.save(tmp_path / "all.npy", samples.array)
    mapped = replace(samples, array=np.load(tmp_path / "all.npy", mmap_mode="r"))
    assert sample_arrays.array_file(mapped, tmp_path) == tmp_path / "all.npy"
    for rows in (slice(0, 3), slice(3, 6), slice(None, None, -1)):
        part = sample_arrays.array_file(replace(mapped, array=mapped.array[rows]), tmp_path)
        assert part == tmp_path / "samples.npy"
        assert np.array_equal(np.load(part), samples.array[rows])


def test_ready_tensors_are_moved_to_the_files_layout(coloured):
    pixels = coloured(n=2)
    tensors = replace(pixels, array=pixels.inputs(slice(None), "NCHW"))
    nhwc = TensorSpec("x", (None, 8, 8, 3), "float32", "NHWC")
    assert np.array_equal(sample_arrays.fed(tensors, slice(0, 2), [nhwc])[0], pixels.inputs(slice(None), "NHWC"))
    with pytest.raises(UserError, match=r"\[9, 9, 3\].*\[8, 8, 3\]"):
        sample_arrays.fed(pixels, slice(0, 2), [TensorSpec("x", (None, 9, 9, 3), "float32", "NHWC")])


@pytest.mark.slow
def test_an_int8_file_scores_nearly_as_its_float_file(litert_pair):
    float_file, int8_file, samples = litert_pair
    assert run_samples.score("litert", float_file, samples).mean == 1.0  # the labels are the network's own answers
    assert run_samples.score("litert", int8_file, samples).mean >= 0.8


# --- metrics ---


def test_top5_ranks_equal_outputs_in_the_order_of_their_classes():
    outputs = np.array([[0, 0, 0, 0, 0, 0, 0], [7, 6, 5, 4, 3, 2, 1]], np.float32)
    for k, labels, expected in [(5, [4, 4], [1, 1]), (5, [5, 5], [0, 0]), (1, [0, 0], [1, 1]), (1, [1, 1], [0, 0])]:
        assert classification.scores("top5" if k == 5 else "accuracy", outputs, np.array(labels)).tolist() == expected


def test_a_metric_of_the_users_own(mean_file, coloured, tmp_path, monkeypatch):
    (tmp_path / "my_metric.py").write_text(
        "import numpy as np\n"
        "def confidence(outputs, labels): return outputs[np.arange(len(labels)), labels]\n"
        "def short(outputs, labels): return [1.0]\n"
        "def nan(outputs, labels): return np.full(len(labels), np.nan)\n"
        "def broken(outputs, labels): return outputs[:, 99]\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_metric", raising=False)
    samples = coloured(n=6)
    found = run_samples.score("onnxruntime", mean_file(), samples, metric="my_metric:confidence")
    assert found.values == pytest.approx(found.outputs[np.arange(6), samples.labels])
    for name, words in [("short", "one a sample"), ("nan", "NaN"), ("broken", "IndexError"), ("number", "no function")]:
        with pytest.raises(UserError, match=words):
            run_samples.score("onnxruntime", mean_file(), samples, metric=f"my_metric:{name}")
    with pytest.raises(UserError, match="There is no module no_such_module_here"):
        run_samples.check_metric("no_such_module_here:f")
    with pytest.raises(UserError, match="known are accuracy, top5"):
        run_samples.check_metric("recall")


# --- what is wrong, in words ---


def test_input_that_cannot_be_scored_is_named(mean_file, conv_file, coloured, tmp_path):
    samples = coloured(n=6)
    unlabelled = replace(samples, labels=np.array([0, 1, -1, 0, 1, 2]))
    with pytest.raises(UserError, match=r"1 samples have no label \('2\.png'"):
        run_samples.score("onnxruntime", mean_file(), unlabelled)
    with pytest.raises(UserError, match=r"gone\.onnx"):
        run_samples.score("onnxruntime", tmp_path / "gone.onnx", samples)
    with pytest.raises(UserError, match="no sample in the split 'search'"):
        run_samples.score("onnxruntime", mean_file(), samples.take([]))
    with pytest.raises(UserError, match="label 7"):
        run_samples.score("onnxruntime", mean_file(), replace(samples, labels=samples.labels + 5))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no onnx")
    with pytest.raises((UserError, CannotRunHere), match=r"broken\.onnx"):
        run_samples.score("onnxruntime", broken, samples)


def test_a_runtime_that_dies_takes_only_its_child_along(mean_file, coloured, monkeypatch, tmp_path):
    (tmp_path / "dying.py").write_text("import os\ndef run(**_): os.kill(os.getpid(), 11)\n")
    monkeypatch.syspath_prepend(tmp_path)
    real = run_samples.child_process.call
    monkeypatch.setattr(
        run_samples.child_process, "call", lambda _, payload, **limits: real("dying:run", payload, **limits)
    )
    with pytest.raises(ExportFailed, match="died"):
        run_samples.score("onnxruntime", mean_file(), coloured(), progress=lambda *_: None)


# --- per class, and the early warning ---


def test_per_group_puts_the_groups_that_lost_most_on_top(coloured):
    samples = replace(coloured(n=7), labels=np.array([0, 0, 1, 1, 2, 2, -1]))
    before, after = np.array([1, 1, 1, 1, 0, 1, 1.0]), np.array([1, 0, 0, 0, 1, 1, 1.0])
    rows = group_scores.per_group(classification.groups(samples, ("a", "b")), before, after)
    assert [(row.name, row.n, row.drop_points) for row in rows] == [("b", 2, 100.0), ("a", 2, 50.0), ("2", 2, -50.0)]
    alone = group_scores.per_group(classification.groups(samples, ("a", "b", "c")), before)
    assert [(row.name, row.baseline, row.candidate) for row in alone] == [
        ("a", 1, None),
        ("b", 1, None),
        ("c", 0.5, None),
    ]


def test_balanced_accuracy_counts_classes_alike():
    """Its mean is the mean of the classes' shares; its spread that of a stratified sample; a drop is a paired one."""
    labels = np.array([0] * 98 + [1] * 2)
    right = np.ones(100)
    right[[3, 99]] = 0
    scores = Scores(
        values=right * run_samples.alike(labels),
        answers=np.zeros(100, np.int64),
        metric="balanced-accuracy",
        nan=0,
        strata=labels,
    )
    assert scores.mean == pytest.approx((97 / 98 + 1 / 2) / 2)
    assert scores.of_each.tolist() == right.tolist()
    assert scores.centred.mean() == pytest.approx(scores.mean)
    stratified = sum(p * (1 - p) / n for p, n in ((97 / 98, 98), (1 / 2, 2))) / 4
    assert scores.centred.var() / 100 == pytest.approx(stratified)
    sure = replace(scores, values=run_samples.alike(labels))
    assert sure.centred.tolist() == [1.0] * 100
    assert paired_drop(sure.values, scores.values).points == pytest.approx(100 * (1 - scores.mean))


def test_a_metric_is_tried_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "metrics_to_try.py").write_text(
        "def one(outputs, labels):\n    return 0.5\n"
        "def typo(outputs, labels):\n    return outputs.argmx(1) == labels\n"
        "def fine(outputs, labels):\n    return outputs.argmax(1) == labels\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    labels = np.arange(8) % 4
    for name, sentence in (("one", r"gave scores \[\]; one a sample, \[8\]"), ("typo", "failed with AttributeError")):
        with pytest.raises(UserError, match=f"The metric 'metrics_to_try:{name}' {sentence}"):
            run_samples.try_metric(f"metrics_to_try:{name}", labels, (4,))
    run_samples.try_metric("metrics_to_try:fine", labels, (4,))
