"""Recordings as data: folders by class, folders without labels, manifests."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from benchmarks.sound.words import save
from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import MFCC, Preprocess, Sound
from pocketfit.core.signature import TensorSpec
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.sound_preprocess import to_tensor

SHORT = Preprocess(sound=Sound(samples=2000, window=400, hop=200, fft=512, mels=8))
COUNT = 120


def samples(row):
    return 0.1 * np.random.default_rng(row).standard_normal(1500)


def by_class(folder):
    for row in range(COUNT):
        (folder / ("no", "yes")[row % 2]).mkdir(exist_ok=True)
        save(folder / ("no", "yes")[row % 2] / f"{row}.wav", samples(row))
    return folder


def loose(folder):
    for row in range(COUNT):
        save(folder / f"{row}.wav", samples(row))
    return folder


def manifest(folder):
    loose(folder)
    rows = [{"path": f"{row}.wav", "label": ("no", "yes")[row % 2], "kind": "office"} for row in range(COUNT)]
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "data.jsonl"


@pytest.mark.parametrize(("write", "form"), [(by_class, "classes"), (loose, "none"), (manifest, "classes")])
def test_recordings_in_four_splits(write, form, tmp_path):
    dataset = open_data(write(tmp_path))
    assert dataset.form == form
    dataset.check_fits([TensorSpec("sound", (None, 1, 9, 8))], SHORT)
    seen = []
    for split in dataset.split_counts(0):
        found = dataset.split(split, SHORT, split_seed=0)
        for name, label, array in zip(found.names, found.labels, found.array, strict=True):
            row = int(re.findall(r"\d+", name)[-1])
            seen.append(row)
            assert label == (row % 2 if form == "classes" else -1)
            path = next(tmp_path.rglob(f"{row}.wav"))
            assert np.array_equal(array, to_tensor(path, SHORT.sound)[0])
    assert sorted(seen) == list(range(COUNT))


def test_features_are_cached_by_their_settings(tmp_path):
    (tmp_path / "data").mkdir()
    dataset, cache = open_data(by_class(tmp_path / "data")), tmp_path / "cache"
    one = dataset.split("train", SHORT, split_seed=0, cache=cache)
    again = dataset.split("train", SHORT, split_seed=0, cache=cache)
    assert np.array_equal(one.array, again.array) and isinstance(again.array, np.memmap)
    assert again.inputs(slice(0, 4)).flags.writeable
    louder = Preprocess(sound=Sound(samples=2000, window=400, hop=200, fft=512, mels=8, gain=2.0))
    other = dataset.split("train", louder, split_seed=0, cache=cache)
    loud = one.array > -10  # above the floor of the logarithm
    assert loud.mean() > 0.5
    assert other.array[loud] == pytest.approx(one.array[loud] + np.log(4), abs=1e-4)


def test_broken_recordings_are_left_out_by_name(tmp_path):
    by_class(tmp_path)
    (tmp_path / "no" / "0.wav").write_bytes(b"RIFF....WAVE")
    (tmp_path / "no" / "2.wav").write_bytes(b"")
    dataset = open_data(tmp_path)
    (said,) = dataset.findings
    assert said.startswith("2 recordings of 120 cannot be read and are left out: no/0.wav (it is cut short")
    assert sum(dataset.split_counts(0).values()) == COUNT - 2


def test_wrong_data_are_one_sentence(tmp_path):
    (tmp_path / "sounds").mkdir()
    sounds = open_data(by_class(tmp_path / "sounds"))
    with pytest.raises(UserError, match="The data are recordings, and the preprocessing is one for images"):
        sounds.check_fits([TensorSpec("image", (None, 3, 8, 8), layout="NCHW")], Preprocess(height=8, width=8))
    with pytest.raises(UserError, match=r"makes \[1, 49, 10\] of a recording, and the network takes \[1, 9, 8\]"):
        sounds.check_fits([TensorSpec("sound", (None, 1, 9, 8))], MFCC)
    (tmp_path / "pictures").mkdir()
    for row in range(4):
        (tmp_path / "pictures" / "ab"[row % 2]).mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (row, 0, 0)).save(tmp_path / "pictures" / "ab"[row % 2] / f"{row}.png")
    pictures = open_data(tmp_path / "pictures")
    with pytest.raises(UserError, match="The data are images, and the preprocessing is one for recordings"):
        pictures.check_fits([TensorSpec("sound", (None, 1, 9, 8))], SHORT)
    save(tmp_path / "pictures" / "a" / "odd.wav", samples(0))
    with pytest.raises(UserError, match="holds images and recordings"):
        open_data(tmp_path / "pictures")
