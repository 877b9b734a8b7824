"""The parent's side of calibration, with a child that makes its summaries up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketfit.core.artifact import FileTensor
from pocketfit.core.errors import ExportFailed, UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import Samples
from pocketfit.core.signature import Signature, TensorSpec
from pocketfit.numerics import quantization_ranges as numerics
from pocketfit.runtimes.common import calibration

SETTINGS = ExportSettings("onnxruntime", "int8")
SIGNATURE = Signature((TensorSpec("image", (None, 3, 6, 4), "float32", "NCHW"),), (TensorSpec("y", (None, 2)),))
GIVEN = FileTensor("image", (None, 3, 6, 4), "float32", layout="NCHW")
PREPROCESS = Preprocess(height=6, width=4, resize="none")
GATHER = "tests.runtimes.common.test_calibration:made_up"


def made_up(source: str, samples: str, target: str, histograms: bool) -> None:
    """A child: the input's tensor, one with a far outlier, and one with what `source` says."""
    with np.load(samples, allow_pickle=False) as archive:
        ((name, values),) = archive.items()
    hidden = np.random.default_rng(0).standard_normal((20, 20_000)).astype(np.float32)
    hidden[0, 0] = 1000.0
    given = {name: values, "hidden": hidden, "odd": np.array([[1.0], [float(Path(source).read_text())]], np.float32)}
    observers = {tensor: numerics.Observer() for tensor in given}
    for tensor, array in given.items():
        observers[tensor].look(array)
        if histograms:
            observers[tensor].count(array)
    numerics.save({tensor: observer.summary() for tensor, observer in observers.items()}, Path(target))
    Path(source).with_suffix(".log").open("a").write(f"{len(values)} {histograms}\n")


def samples_of(array: np.ndarray) -> Samples:
    n = len(array)
    return Samples(
        array=array,
        labels=np.full(n, -1),
        names=[f"p{i}" for i in range(n)],
        split="calibration",
        sha256="s",
        preprocess=PREPROCESS,
    )


def photos(n: int = 20) -> Samples:
    return samples_of(np.random.default_rng(1).integers(0, 256, (n, 6, 4, 3)).astype(np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "net.x").write_text("2.5")
    return tmp_path / "net.x"


def found(source: Path, settings: ExportSettings = SETTINGS, **more: object) -> calibration.Ranges:
    about: dict = {"gather": GATHER, "ends": ["image"], "work": source.parent, **more}
    return calibration.activation_ranges(source, [GIVEN], photos(), settings, **about)


def test_each_tensor_gets_the_range_of_the_method(source: Path) -> None:
    assert found(source)["hidden"][1] == 1000.0
    assert found(source)["odd"] == (0.0, 2.5)
    clipped = found(source, replace(SETTINGS, ranges="percentile"))
    assert clipped["hidden"][1] < 10
    assert clipped["image"] == found(source)["image"], "an end keeps all that was seen"
    whole = replace(SETTINGS, activations="int16")
    assert found(source, whole)["hidden"] == (-1000.0, 1000.0), "int16 is symmetric"


def test_what_was_seen_is_kept(source: Path) -> None:
    for settings in (SETTINGS, SETTINGS, replace(SETTINGS, ranges="moving-average"), replace(SETTINGS, ranges="mse")):
        found(source, settings)
    found(source, replace(SETTINGS, ranges="kl"))
    found(source, replace(SETTINGS, calibration=10))
    # cheap for limits, once; dear for histograms, once; anew for other samples
    assert source.with_suffix(".log").read_text().splitlines() == ["20 False", "20 True", "10 False"]
    assert not [path for path in source.parent.iterdir() if path.name.startswith(".")]


def test_learned_ranges_overrule_all_others(source: Path) -> None:
    learned = {"hidden": (-1.5, 2.0), "image": (0.5, 3.0)}
    mixed = found(source, learned=learned)
    assert mixed["hidden"] == (-1.5, 2.0)
    assert mixed["image"] == (0.0, 3.0), "zero is always in it"
    assert mixed["odd"] == found(source)["odd"]
    with pytest.raises(ExportFailed, match=r"'hiden', which is no tensor of the file; the nearest name is 'hidden'"):
        found(source, learned={"hiden": (0.0, 1.0)})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_tensor_without_a_range_is_named(source: Path, value: str) -> None:
    source.write_text(value)
    with pytest.raises(ExportFailed, match="'odd' has no range on the calibration samples"):
        found(source)


def test_samples_are_fed_as_the_file_takes_them() -> None:
    last = FileTensor("image", (1, 6, 4, 3), "float32", layout="NHWC")
    pixels = photos(3)
    ready = samples_of(pixels.inputs(slice(None)))
    for given in (GIVEN, last):
        fed = [calibration.fitting(samples, slice(0, 2), [given])[given.name] for samples in (pixels, ready)]
        assert fed[0].shape == (2, *given.shape[1:])
        np.testing.assert_array_equal(*fed)
    with pytest.raises(UserError, match=r"shape \[3, 6, 4\] do not fit the input 'image', which takes \[3, 8, 8\]"):
        calibration.fitting(pixels, slice(None), [FileTensor("image", (None, 3, 8, 8), "float32", layout="NCHW")])


def check(array: np.ndarray, **more: object) -> list[str]:
    return calibration.check_samples(samples_of(array), SIGNATURE, SETTINGS, **more)  # type: ignore[arg-type]


def test_good_samples_are_passed_in_silence() -> None:
    assert check(photos().array) == []
    assert check(photos().inputs(slice(None))) == []
    vector = Signature((TensorSpec("x", (None, 7)),), SIGNATURE.outputs)
    sound = samples_of(1000 * np.random.default_rng(0).standard_normal((20, 7)).astype(np.float32))
    assert calibration.check_samples(sound, vector, SETTINGS) == [], "no picture: no preprocessing to compare with"


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((0, 6, 4, 3), np.uint8), "none were given"),
        (np.zeros((9, 8, 4, 3), np.uint8), r"shape \[3, 8, 4\] do not fit the input 'image', which takes \[3, 6, 4\]"),
        (np.full((9, 3, 6, 4), 0.5, np.float32), "All values of the 9 calibration samples are 0.5"),
        (np.repeat(photos(1).array, 9, axis=0), "all the same one"),
        (np.where(np.arange(9)[:, None, None, None] == 4, np.nan, np.ones((9, 3, 6, 4), np.float32)), "1 of 9 .* 'p4'"),
    ],
)
def test_samples_that_can_set_no_range_are_refused(array: np.ndarray, word: str) -> None:
    with pytest.raises(UserError, match=word):
        check(array)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda x: (x - 0.45) / 0.225, "perhaps they were normalized twice"),
        (lambda x: x * 0.225 * 255 + 0.45 * 255, "look like pixels from 0 to 255"),
        (lambda x: (x - x.min()) / (x.max() - x.min()), "look like pixels scaled to 0..1"),
        (lambda x: x / 255 - 2, "perhaps they were scaled twice"),
    ],
)
def test_values_of_another_range_are_said_with_the_numbers(change: object, word: str) -> None:
    values = np.clip(change(photos().inputs(slice(None))), -20, 255)  # type: ignore[operator]
    values = np.abs(values) if "0" in word else values
    (finding,) = check(values.astype(np.float32))
    assert word in finding
    assert f"they reach from {values.min():.3g} to {values.max():.3g}" in finding
    assert "images become -2.12 to 2.64" in finding


def test_pixels_that_were_scaled_before_are_said() -> None:
    (finding,) = check((photos().array > 127).astype(np.uint8))
    assert "the pixels go up to 1, not to 255" in finding


def test_few_and_empty_samples_are_said() -> None:
    array = photos(5).array.copy()
    array[2] = 7
    few, flat = check(array)
    assert "Calibrated on 5 samples only" in few
    assert "1 of 5 calibration samples are of one value" in flat


def test_samples_unlike_those_of_training_are_said() -> None:
    dark = (photos().array // 16).astype(np.uint8)
    finding = check(dark, training=photos(30))[-1]
    assert "differ from the training samples" in finding
    assert check(photos().array, training=photos(30)) == []
