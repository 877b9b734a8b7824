"""Labels of the data as the model counts them, and what makes a run the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.progress import Silent
from pocketfit.runtimes.onnxruntime import runtime as onnxruntime
from pocketfit.search.run.job import (
    Job,
    about_data,
    aligned,
    check_data,
    check_runtimes,
    check_teacher,
    differences,
    label_mapping,
    order_of_numbers,
    recipes,
    why_these_weights,
    with_labels,
)
from pocketfit.sources.data.dataset import from_arrays
from tests.search import builders

PREPROCESS = Preprocess(height=8, width=8, resize="exact")


def job(out: Path, *, count: int = 200, labels: tuple[str, ...] = ("bird", "cat", "dog"), **settings: object) -> Job:
    signature = Signature(
        (TensorSpec("image", (None, 3, 8, 8), "float32", "NCHW"),), (TensorSpec("logits", (None, len(labels))),)
    )
    model = Model(
        network=None,
        signature=signature,
        preprocess=PREPROCESS,
        labels=labels,
        origin=Origin("object", "net"),
        sha256="00",
    )
    pixels = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    data = from_arrays(pixels, np.arange(count) % 2, class_names=("dog", "cat"))
    return Job(
        model=model, data=data, out=out, runtimes=("litert",), budget=builders.budget(max_size="0.5x"), **settings
    )  # type: ignore[arg-type]


@given(
    st.permutations(["ant", "bee", "cat", "dog"]), st.sets(st.sampled_from(["ant", "bee", "cat", "dog"]), min_size=1)
)
def test_classes_are_matched_by_name(labels: list[str], classes: set[str]) -> None:
    mapping = label_mapping(sorted(classes), labels)
    assert [labels[index] for index in mapping] == sorted(classes)


def test_folders_that_are_class_indices() -> None:
    assert label_mapping(["0", "12", "2"], [f"word {i}" for i in range(13)]) == [0, 12, 2]
    assert label_mapping(["0", "1"], ["1", "0"]) == [1, 0], "a name that is known counts as a name"
    with pytest.raises(UserError, match="none of the model's 13 labels"):
        label_mapping(["0", "13"], [f"word {i}" for i in range(13)])


def test_a_class_that_the_model_does_not_know_is_named() -> None:
    with pytest.raises(UserError, match=r"'fish' \(2 of 3 in all\) is none of the model's 2 labels \(cat, dog\): name"):
        label_mapping(["cat", "fish", "wolf"], ["cat", "dog"])


def test_names_match_whatever_editor_wrote_them() -> None:
    assert label_mapping(["cafe\u0301", "b"], ["b ", "caf\u00e9"]) == [1, 0]


NUMBERED = sorted(map(str, range(1, 13)))  # 1, 10, 11, 12, 2, …: as folders are listed


def unnamed(outputs: int) -> Model:
    signature = Signature((TensorSpec("image", (None, 3, 8, 8)),), (TensorSpec("logits", (None, outputs)),))
    return Model(network=None, signature=signature, preprocess=PREPROCESS, labels=(), origin=Origin("object", "net"))


def test_numbered_folders_and_a_labels_file_in_number_order() -> None:
    in_order = [str(number) for number in range(1, 13)]
    assert [in_order[index] for index in label_mapping(NUMBERED, in_order)] == NUMBERED
    assert order_of_numbers(NUMBERED, in_order) == []


def test_the_order_of_unnamed_outputs_is_said_where_it_is_assumed() -> None:
    model = with_labels(unnamed(12), NUMBERED)
    assert model.labels == tuple(NUMBERED)
    (said,) = model.findings
    assert "the order of the outputs is assumed to be 1, 10, 11, 12, 2 and 7 more" in said and "--labels" in said
    assert label_mapping(NUMBERED, model.labels) == list(range(12))
    from_zero = sorted(map(str, range(12)))
    model = with_labels(unnamed(12), from_zero)
    assert model.labels == tuple(map(str, range(12))) and model.findings == ()
    (said,) = order_of_numbers(from_zero, model.labels)
    assert "taken for the numbers of the outputs: 0, 1, 2" in said and "(0, 1, 10, 11 and 8 more)" in said
    assert order_of_numbers(list("0123"), with_labels(unnamed(4), list("0123")).labels) == []
    assert order_of_numbers([str(n) for n in range(12)], model.labels) == [], "the labels of arrays are numbers"
    (said,) = order_of_numbers(list("012"), ["cat", "dog", "owl"])
    assert "0, 1, 2 are taken for the numbers of the outputs, counted from 0" in said
    named = replace(unnamed(2), labels=("b", "a"))
    assert with_labels(named, ["a", "b"]) == named
    assert with_labels(unnamed(3), ["a", "b"]).labels == ("0", "1", "2"), "as many names as outputs, or none"


def test_wordnet_ids_and_numbers_from_one_get_their_mend() -> None:
    with pytest.raises(UserError, match=r"'n01440764' .*these are WordNet ids: give --labels"):
        label_mapping(["n01440764", "n01443537"], ["tench", "goldfish"])
    with pytest.raises(UserError, match=r"'1' .*seem to count from 1: give --labels"):
        label_mapping(["1", "2", "3"], ["cat", "dog", "owl"])


def test_very_uneven_classes_are_said_with_the_metric_that_minds_them(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 3), np.uint8)
    uneven = replace(job(tmp_path), data=from_arrays(pixels, (np.arange(200) > 197) * 1, class_names=("dog", "cat")))
    (said,) = about_data(uneven)
    assert "'dog' has 198 samples and 'cat' 2" in said and "--metric balanced-accuracy" in said
    assert about_data(replace(uneven, metric="balanced-accuracy")) == about_data(job(tmp_path)) == []


def test_samples_of_another_shape_are_refused_at_the_start(tmp_path: Path) -> None:
    floats = np.random.default_rng(0).normal(size=(200, 8, 8, 3))
    with pytest.raises(UserError, match=r"\[8, 8, 3\] a sample, and the network takes \[3, 8, 8\] a sample: turn them"):
        check_data(replace(job(tmp_path), data=from_arrays(floats, np.arange(200) % 2, class_names=("dog", "cat"))))


def test_aligned_labels_are_the_models() -> None:
    array = np.zeros((4, 8, 8, 3), np.uint8)
    samples = Samples(
        array=array,
        labels=np.array([0, 1, -1, 0]),
        names=list("abcd"),
        split="train",
        sha256="00",
        preprocess=PREPROCESS,
        class_names=("dog", "cat"),
    )
    found = aligned(samples, ("dog", "cat"), ("bird", "cat", "dog"))
    assert found.labels.tolist() == [2, 1, -1, 2], "no label stays no label"
    assert found.class_names == ("bird", "cat", "dog")


def test_samples_of_a_task_are_aligned(tmp_path: Path) -> None:
    a_job = job(tmp_path)
    samples = a_job.samples("search", PREPROCESS, Silent())
    assert set(samples.labels.tolist()) == {1, 2}
    raw = a_job.data.split("search", PREPROCESS, split_seed=0)
    names = [a_job.model.labels[label] for label in samples.labels]
    assert names == [("dog", "cat")[label] for label in raw.labels]


def test_time_and_trials_may_grow_but_nothing_else_may_change(tmp_path: Path) -> None:
    first = job(tmp_path)
    more = replace(first, budget=builders.budget(max_size="0.5x", max_time="3h", max_trials=99))
    assert differences(first.identity(), more.identity()) == []
    assert differences(first.identity(), replace(first, out=tmp_path / "moved").identity()) == []
    for changed, word in (
        (replace(first, seed=1), "seed"),
        (replace(first, budget=builders.budget(max_size="0.4x")), "limits"),
        (replace(first, budget=builders.budget(max_size="0.5x", prefer="size")), "limits"),
        (replace(first, runtimes=("onnxruntime",)), "runtimes"),
        (replace(first, io="int8"), "io"),
        (replace(first, threads=2), "threads"),
        (replace(first, keep_resolution=True), "keep resolution"),
        (replace(first, metric="top5"), "metric"),
        (replace(first, model=replace(first.model, sha256="01")), "model sha256"),
        (replace(first, teacher=first.model), "teacher sha256"),
        (replace(first, model=replace(first.model, preprocess=replace(PREPROCESS, colour="BGR"))), "preprocess"),
    ):
        assert differences(first.identity(), changed.identity()) == [word]
    assert "data sha256" in differences(first.identity(), job(tmp_path, count=201).identity())
    assert differences({}, first.identity()) != []
    older = {key: value for key, value in first.identity().items() if key != "teacher_sha256"}
    assert differences(older, first.identity()) == [], "a run from before there were teachers goes on"


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    first = job(tmp_path)
    check_teacher(first)
    check_teacher(replace(first, teacher=replace(first.model, labels=("dog", "cat", "bird"))))
    with pytest.raises(UserError, match="does not know the student's class 'bird'"):
        check_teacher(replace(first, teacher=replace(first.model, labels=("dog", "cat", "fish"))))


def test_the_identity_survives_json(tmp_path: Path) -> None:
    import json

    identity = job(tmp_path).identity()
    assert differences(json.loads(json.dumps(identity)), identity) == []


def test_an_empty_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data: The \w+ split is empty: 4 samples are too few to be split"):
        check_data(job(tmp_path, count=4))
    check_data(job(tmp_path))


def test_what_a_runtime_cannot_do_is_refused_before_any_work(tmp_path: Path) -> None:
    check_runtimes(job(tmp_path))
    with pytest.raises(UserError, match="No runtime is called 'tensorrt'"):
        check_runtimes(replace(job(tmp_path), runtimes=("tensorrt",)))


def test_static_int8_comes_first_and_in_both_variants_where_the_runtime_has_them(tmp_path: Path) -> None:
    for runtime, variants in (("litert", ["int8"]), ("onnxruntime", ["uint8", "int8"])):
        found = recipes(job(tmp_path), runtime)
        assert [e.activations for e in found if e.precision == "int8"] == variants
        assert [e.precision for e in found[len(variants) :]] == ["float16", "dynamic-int8"]
    assert all(e.io == "int8" for e in recipes(job(tmp_path, io="int8"), "litert") if e.precision == "int8")


@pytest.mark.parametrize(("saturates", "weights"), [(True, ["int7", "int8"]), (False, ["int8", "int8"])])
def test_seven_bits_where_products_of_eight_overflow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saturates: bool, weights: list[str]
) -> None:
    """Only in U8S8 files of ONNX Runtime; S8S8 and LiteRT add in 32 bits."""
    monkeypatch.setattr(onnxruntime, "saturates", lambda: saturates)
    static = [r for r in recipes(job(tmp_path), "onnxruntime") if r.precision == "int8"]
    assert [r.activations for r in static] == ["uint8", "int8"] and [r.weights for r in static] == weights
    assert [bool(why_these_weights(r)) for r in static] == [w == "int7" for w in weights]
    assert all(r.weights == "int8" for r in recipes(job(tmp_path), "litert"))


def test_names_that_are_no_text_are_told_as_escapes(tmp_path: Path) -> None:
    """A journal with half a character could not be read again."""
    told = job(tmp_path, model_name="caf\udce9", data_name="photos-\udcff").identity()
    assert (told["model"], told["data"]) == ("caf\\xe9", "photos-\\xff")
