"""What holds for every form of data: tests over the table of examples in forms.py."""

import re
from dataclasses import replace

import numpy as np
import pytest

from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import SPLITS
from pocketfit.sources.data import dataset as data
from pocketfit.sources.image_preprocess import geometry
from pocketfit.tasks.common.verification import Pairs
from tests.sources.data import forms
from tests.sources.data.forms import CLASSES, COUNT, EXAMPLES, KINDS, NUMBERS, TAGS, TEXTS, WHO

PADDED = Preprocess(height=12, width=20, resize="height", background=(9, 9, 9))


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    known = {}

    def found(name):
        if name not in known:
            known[name] = data.open_data(EXAMPLES[name].write(tmp_path_factory.mktemp("data")))
        return known[name]

    return found


def row_of(name):
    return int(re.findall(r"\d+", name)[-1])


def test_every_suffix_has_an_example():
    shown = {name[name.rfind(".") :] for name in EXAMPLES if "." in name}
    assert shown == {*data.MANIFESTS, *data.ARRAY_FILES}


def _check_values(form, rows, samples):
    labels = samples.labels
    if form == "tags":
        wanted = [["ab"[tag] for tag in np.flatnonzero(label)] for label in labels]
        assert wanted == [TAGS[row] for row in rows] and labels.dtype == np.int8
    elif form == "numbers":
        wanted = np.array(NUMBERS)[rows, : labels.shape[1]]
        assert labels.dtype == np.float32 and np.allclose(labels, wanted)
    else:  # twice as large as their pictures
        assert labels.dtype == np.uint8
        assert labels.shape[1:3] == tuple(2 * side for side in samples.array.shape[1:3])


@pytest.mark.parametrize("name", EXAMPLES)
def test_all_splits_with_their_targets(name, opened):
    dataset, form = opened(name), EXAMPLES[name].form
    assert dataset.form == form
    named = {"classes": ("cat", "dog"), "boxes": ("cat", "dog"), "tags": ("a", "b")}
    assert dataset.class_names == named.get(form, ())
    counts, seen = dataset.split_counts(0), []
    assert sum(counts.values()) == COUNT
    for split in SPLITS:
        samples = dataset.split(split, PADDED, split_seed=0)
        rows = [row_of(name) for name in samples.names]
        assert len(samples) == counts[split] == len(samples.labels) == len(samples.array)
        assert np.abs(samples.array[0].astype(int) - geometry(forms.pixels(rows[0]), PADDED)).max() <= 1
        assert list(samples.texts) == ([TEXTS[row] for row in rows] if form == "texts" else [])
        assert list(samples.kinds) == ([KINDS[row] for row in rows] if EXAMPLES[name].kinds else [])
        if form == "classes":
            assert [samples.class_names[label] for label in samples.labels] == [CLASSES[row] for row in rows]
        elif form == "boxes":
            for row, label in zip(rows, samples.labels, strict=True):
                assert label == pytest.approx(np.array([[row % 8, 2, row % 8 + 4, 8, row % 2, 0]]), abs=1e-4)
        elif form in ("tags", "numbers", "pictures"):
            _check_values(form, rows, samples)
        elif form == "masks":
            for row, label in zip(rows, samples.labels, strict=True):
                wanted = forms.mask(row).astype(int)
                wanted[wanted == 255] = -1
                assert label.shape == (12, 20)
                assert np.array_equal(label[:, :16], wanted)
                assert (label[:, 16:] == -1).all()
        elif form == "identities":
            genuine, impostors = Pairs(samples.labels).counts
            assert (genuine and impostors) or split == "calibration"
            if samples.labels.ndim == 1:
                same = np.array([WHO[row] for row in rows])
                assert np.array_equal(same == same[:, None], samples.labels == samples.labels[:, None])
            else:
                pairs = [(a, b) for a in rows for b in rows if a // 12 == b // 12 and b - a in (1, 3)]
                assert genuine == sum(a // 3 == b // 3 for a, b in pairs) and genuine + impostors == len(pairs)
                alone = {place for place, row in enumerate(rows) if (samples.labels[place, 1:] < 0).all()}
                assert not alone
        else:
            assert samples.labels.tolist() == [-1] * len(rows)
        assert len(samples.take([1, 0]).texts) == len(samples.first(2).texts) == (2 if form == "texts" else 0)
        seen += rows
    assert sorted(seen) == list(range(COUNT))


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_second_reading_is_the_same_and_may_use_the_cache(name, tmp_path):
    (tmp_path / "data").mkdir()
    path = EXAMPLES[name].write(tmp_path / "data")
    one, other = data.open_data(path), data.open_data(path, cache=tmp_path / "cache")
    assert one.sha256 == other.sha256
    plain = one.split("train", PADDED, split_seed=1)
    for _ in range(2):
        kept = other.split("train", PADDED, split_seed=1, cache=tmp_path / "cache")
        assert (kept.sha256, list(kept.names)) == (plain.sha256, list(plain.names))
        assert np.array_equal(kept.labels, plain.labels)
        assert np.array_equal(kept.array, plain.array)
    wide = other.split("train", replace(PADDED, width=24), split_seed=1, cache=tmp_path / "cache")
    assert wide.labels.shape[1:] == {"masks": (12, 24), "pictures": (24, 48, 3)}.get(one.form, plain.labels.shape[1:])


def test_the_same_pictures_are_in_the_same_splits_whatever_their_targets(opened):
    """Splits follow from content alone, so that the files' forms agree where they hold the same bytes."""
    by_split = {
        name: [{row_of(n) for n in opened(name).split(s, PADDED, split_seed=0).names} for s in SPLITS]
        for name in EXAMPLES
    }
    arrays = [found for name, found in by_split.items() if name.endswith((".npz", ".npy"))]
    files = [found for name, found in by_split.items() if not name.endswith((".npz", ".npy")) and "pairs" not in name]
    assert len(arrays) >= 5 and all(found == arrays[0] for found in arrays)
    assert len(files) >= 12 and all(found == files[0] for found in files)


def test_the_hash_covers_targets_and_kinds(opened):
    same = (
        {"lines.json", "list.json", "texts.jsonl"},
        {"texts.csv", "semicolons.csv", "texts.tsv", "paddle.txt"},
        {"none.npz", "none.npy"},
        {"pairs.csv", "pairs.txt", "pairs.jsonl"},
        {"coco.json", "yolo"},
    )
    hashes = {name: opened(name).sha256 for name in EXAMPLES}
    for names in same:
        assert len({hashes[name] for name in names}) == 1
    assert len(set(hashes.values())) == len(EXAMPLES) - 9
    verdicts = {name: opened(name).split("verdict", PADDED, split_seed=0).sha256 for name in EXAMPLES}
    assert len({verdicts[name] for name in ("texts.jsonl", "masks.jsonl", "labels.jsonl", "none.jsonl")}) == 4


def test_the_first_rows_have_the_shares_of_the_kinds(opened):
    part = opened("texts.jsonl").split("train", PADDED, split_seed=0, limit=30)
    whole = opened("texts.jsonl").split("train", PADDED, split_seed=0)
    share = list(whole.kinds).count("long") / len(whole)
    assert abs(list(part.kinds).count("long") - 30 * share) <= 1
    assert list(part.names) == list(whole.names[:30])


def test_one_class_is_enough_where_classes_are_not_the_targets(opened):
    assert data.from_arrays(np.zeros((3, 4, 4), np.uint8)).form == "none"
    assert data.from_arrays(np.zeros((3, 4, 4), np.uint8), np.array(["a", "b", "c"])).form == "texts"
    assert data.no_data(("a", "b")).form == "none"
