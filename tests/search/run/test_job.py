"""Labels of the data as the model counts them, and what makes a run the same run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pocketfit.core.errors import UserError
from pocketfit.core.model import Model, Origin
from pocketfit.core.plan.rewrite import Fold
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.core.support.progress import Silent
from pocketfit.runtimes.onnxruntime import runtime as onnxruntime
from pocketfit.search.run.data_free import plan_without_data
from pocketfit.search.run.job import (
    Job,
    about_data,
    check_data,
    check_runtimes,
    check_teacher,
    differences,
    recipes,
    why_these_weights,
    with_every_runtime,
)
from pocketfit.search.run.loop import space_of
from pocketfit.sources.data.dataset import from_arrays
from pocketfit.sources.models.fingerprint import fingerprint
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
        **{
            "model": model,
            "data": data,
            "out": out,
            "runtimes": ("litert",),
            "metric": "accuracy",
            "budget": builders.budget(max_size="0.5x"),
            **settings,
        }
    )  # type: ignore[arg-type]


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


def test_all_runtimes_are_those_that_are_here_and_measure(tmp_path: Path) -> None:
    every, left_out = with_every_runtime(job(tmp_path, runtimes=("all",)))
    assert every.runtimes == ("litert", "onnxruntime", "openvino")
    assert left_out == ["micro takes no part: its times cannot be measured here"]
    assert with_every_runtime(job(tmp_path, runtimes=("litert",)))[1] == []


def test_a_runtime_that_is_not_installed_is_left_out_with_the_pip_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketfit.search.run.job.installed", lambda package: package != "openvino")
    every, left_out = with_every_runtime(job(tmp_path, runtimes=("all",)))
    assert every.runtimes == ("litert", "onnxruntime")
    assert "openvino takes no part: openvino is not installed: pip install 'pocketfit[openvino]'" in left_out


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


class Scaled(nn.Sequential):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x) + 1  # type: ignore[no-any-return]


def test_plans_begin_with_the_fold_where_it_finds_something(tmp_path: Path) -> None:
    layers = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    for kind, found in ((nn.Sequential, ()), (Scaled, (Fold(),))):
        network = kind(*layers).eval()
        some = job(tmp_path)
        some = replace(some, model=replace(some.model, network=network, sha256=fingerprint(network)))
        assert some.fold == found and (some.start is some.model) == (not found)
        space = space_of(some, (10, 20))
        assert space.fold == found and set(space.params) == {"0", "3"}
        float_recipes = [e for e in space.recipes["litert"] if e == space.baselines["litert"]]
        assert len(float_recipes) == len(found)
        assert plan_without_data(some, "litert").passes[: len(found)] == found
