"""A folder or arrays -> Samples: what comes out, and each sentence about what is wrong."""

import gzip
import os
import shutil
import threading
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.samples import SPLITS
from pocketfit.core.signature import TensorSpec
from pocketfit.sources.data import dataset as data
from pocketfit.sources.data import picture_files
from pocketfit.sources.image_preprocess import decode, geometry

SMALL = Preprocess(height=8, width=8, resize_px=10)


def picture(path, seed, size=(12, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def folder(root, counts, seed=0):
    """Pictures, each other than all: {"cat": 3} -> cat/0.png, cat/1.png, cat/2.png."""
    for name, count in counts.items():
        for number in range(count):
            seed += 1
            picture(root / name / f"{number}.png", seed)
    return root


def finding(dataset, part):
    found = [sentence for sentence in dataset.findings if part in sentence]
    assert len(found) == 1, dataset.findings
    return found[0]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return folder(tmp_path_factory.mktemp("photos"), {"cat": 60, "dog/brown": 40, "dog/white": 20})


# A folder of pictures


def test_a_folder_by_class(photos):
    dataset = data.open_data(photos)
    assert (dataset.class_names, dataset.findings) == (("cat", "dog"), ())
    counts = dataset.split_counts(0)
    assert sum(counts.values()) == 120
    names = []
    for name in SPLITS:
        samples = dataset.split(name, SMALL, split_seed=0)
        assert (len(samples), samples.split, samples.class_names) == (counts[name], name, ("cat", "dog"))
        assert samples.array.shape == (counts[name], 8, 8, 3)
        for row in (0, len(samples) - 1):
            expected = geometry(decode(photos / samples.names[row], SMALL), SMALL)
            assert np.array_equal(samples.array[row], expected)
            assert samples.names[row].startswith(dataset.class_names[samples.labels[row]])
        names += samples.names
    assert len(set(names)) == 120


def test_renaming_and_adding_files_moves_nothing(photos, tmp_path):
    before = data.open_data(photos)
    shutil.copytree(photos, tmp_path / "more")
    (tmp_path / "more" / "cat" / "0.png").rename(tmp_path / "more" / "cat" / "renamed.png")
    folder(tmp_path / "more", {"bird": 30}, seed=1000)
    after = data.open_data(tmp_path / "more")
    split_of = {
        content: name
        for dataset in (before,)
        for name in SPLITS
        for content in _contents(dataset, dataset.split(name, SMALL, split_seed=5))
    }
    for name in SPLITS:
        known = [c for c in _contents(after, after.split(name, SMALL, split_seed=5)) if c in split_of]
        assert {split_of[content] for content in known} == {name}
    assert before.sha256 != after.sha256
    assert before.sha256 == data.open_data(photos).sha256


def _contents(dataset, samples):
    by_name = dict(zip(dataset.listing.names, dataset.listing.contents, strict=True))
    return [by_name[name] for name in samples.names]


def test_limit_takes_the_beginning_and_keeps_the_classes_shares(photos):
    dataset = data.open_data(photos)
    whole, part = (dataset.split("train", SMALL, split_seed=0, limit=limit) for limit in (None, 20))
    assert part.names == whole.names[:20]
    assert part.sha256 != whole.sha256
    assert abs(int((part.labels == 0).sum()) - 10) <= 2


@pytest.mark.parametrize("val", ["val", "valid", "validation"])
def test_given_parts_are_the_search_and_verdict_splits(tmp_path, val):
    counts = {"train/a": 20, "train/b": 20, f"{val}/a": 3, f"{val}/b": 3, "test/a": 4, "test/b": 5}
    dataset = data.open_data(folder(tmp_path, counts))
    found = dataset.split_counts(1)
    assert (found["search"], found["verdict"], found["train"] + found["calibration"]) == (6, 9, 40)
    assert all(name.startswith("test/") for name in dataset.split("verdict", SMALL, split_seed=1).names)
    assert all(name.startswith("train/") for name in dataset.split("train", SMALL, split_seed=1).names)


def test_a_class_may_be_called_train(tmp_path):
    assert data.open_data(folder(tmp_path / "a", {"train": 9, "car": 9})).class_names == ("car", "train")
    dataset = data.open_data(folder(tmp_path / "b", {"train": 9, "Test": 9}))
    assert dataset.class_names == ("Test", "train")
    assert "The folders Test/, train/ hold images and no class folders: they are taken" in finding(dataset, "manifest")


def test_copies_between_parts_are_left_out_of_training(tmp_path):
    folder(tmp_path, {"train/a": 30, "train/b": 30, "val/a": 4, "val/b": 4, "test/a": 5, "test/b": 5})
    for source, target in (
        ("test/a/0", "train/a/x"),
        ("test/a/1", "train/a/y"),
        ("test/b/0", "val/b/z"),
        ("val/a/0", "train/a/w"),
    ):
        shutil.copy(tmp_path / f"{source}.png", tmp_path / f"{target}.png")
    dataset = data.open_data(tmp_path)
    assert finding(dataset, "test samples are also in the train part") == (
        "2 of the 10 test samples are also in the train part (same content), for example"
        " test/a/0.png = train/a/x.png; they are left out of the train part"
    )
    assert "1 of the 10 test samples is also in the val part" in finding(dataset, "in the val part")
    assert "1 of the 8 val samples is also in the train part" in finding(dataset, "val samples")
    found = dataset.split_counts(0)
    assert (found["train"] + found["calibration"], found["search"], found["verdict"]) == (60, 8, 10)
    used = [_contents(dataset, dataset.split(name, SMALL, split_seed=0)) for name in ("train", "search", "verdict")]
    assert not (set(used[0]) & set(used[1]) | set(used[0]) & set(used[2]) | set(used[1]) & set(used[2]))


def test_copies_inside_a_part_stay_together_and_are_said(tmp_path):
    folder(tmp_path, {"a": 30, "b": 30})
    for number in range(20):
        shutil.copy(tmp_path / f"a/{number}.png", tmp_path / f"a/copy{number}.png")
    shutil.copy(tmp_path / "a/25.png", tmp_path / "b/wrong.png")
    dataset = data.open_data(tmp_path)
    assert finding(dataset, "20 samples repeat") == (
        "20 samples repeat another one of the same class (same content), for example a/0.png = a/copy0.png; copies are"
        " kept, always in the same split"
    )
    assert "a/25.png (a) = b/wrong.png (b); no network can get both right" in finding(dataset, "of another class")
    contents = [set(_contents(dataset, dataset.split(name, SMALL, split_seed=0))) for name in SPLITS]
    assert sum(map(len, contents)) == len(set.union(*contents)) == 60


def test_what_is_skipped_is_said_with_its_name(tmp_path):
    folder(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "empty").mkdir()
    cut = (tmp_path / "a/0.png").read_bytes()
    (tmp_path / "a/cut.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "a/none.jpg").write_bytes(b"")
    (tmp_path / "b/text.jpg").write_text("no picture")
    (tmp_path / "b/notes.txt").write_text("notes")
    (tmp_path / "b/.DS_Store").write_text("hidden")
    picture(tmp_path / "loose.png", 99)
    dataset = data.open_data(tmp_path)
    broken = finding(dataset, "cannot be read")
    assert broken.startswith("3 images of 13 cannot be read and are left out: a/cut.png (")
    assert "a/none.jpg (it is empty)" in broken
    assert "b/text.jpg (it is damaged, or of no known image format)" in broken
    assert finding(dataset, "ignored") == "1 file is no image and ignored: b/notes.txt"
    assert finding(dataset, "loose") == "1 image lies outside the class folders and cannot be used: loose.png"
    assert finding(dataset, "no class") == "1 folder holds no image and is no class: empty"
    assert dataset.class_names == ("a", "b")
    assert sum(dataset.split_counts(0).values()) == 10


def test_a_cut_jpeg_is_found_when_opened(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2})
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for size in (3, 64):
        image.resize((size, size)).save(tmp_path / f"a/{size}.jpg")
    whole = (tmp_path / "a/64.jpg").read_bytes()
    (tmp_path / "a/cut.jpg").write_bytes(whole[: len(whole) * 9 // 10])
    assert "1 image of 7 cannot be read and is left out: a/cut.jpg (" in finding(data.open_data(tmp_path), "left out")


def test_classes_that_only_one_part_has(tmp_path):
    folder(tmp_path, {"train/a": 5, "train/b": 5, "train/c": 5, "test/a": 2, "test/b": 2, "test/z": 3})
    dataset = data.open_data(tmp_path)
    assert finding(dataset, "z") == "1 class is missing in train/ but not beside it: z; 3 images are left out"
    assert finding(dataset, "The test part") == "The test part has no images of 1 class: c"
    assert dataset.split_counts(0)["verdict"] == 4


def test_links_to_pictures_and_to_class_folders_are_read_and_said(tmp_path):
    """People make subsets of links. No link inside a class folder is walked into: no walk goes in a circle."""
    root = folder(tmp_path / "data", {"a": 3, "b": 3})
    folder(tmp_path / "elsewhere", {"fox": 4}, seed=500)
    picture(tmp_path / "other.png", 7)
    (root / "fox").symlink_to(tmp_path / "elsewhere" / "fox")
    (root / "a/out.png").symlink_to(tmp_path / "other.png")
    (root / "b/in.png").symlink_to(root / "a/0.png")
    (root / "a/circle.png").symlink_to(root / "a/circle.png")
    (root / "a/nowhere.png").symlink_to(root / "a/no.png")
    (root / "b/up").symlink_to(root)
    (root / "all").symlink_to(tmp_path)
    dataset = data.open_data(root)
    assert dataset.class_names == ("a", "b", "fox")
    assert np.bincount(dataset.listing.labels).tolist() == [4, 4, 4]
    assert finding(dataset, "folder is a link").endswith(f"read where it leads: fox -> {tmp_path / 'elsewhere/fox'}")
    assert f"1 image is a link to a file elsewhere, which is read: a/out.png -> {tmp_path}" in finding(
        dataset, "out.png"
    )
    assert finding(dataset, "not followed").startswith(
        "4 links are not followed (all, a/circle.png, a/nowhere.png and 1"
    )
    dataset.split("train", SMALL, split_seed=0)


def test_folders_without_pictures_are_no_classes(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3, "__MACOSX/a": 1, ".ipynb_checkpoints": 2})
    (tmp_path / "a/Thumbs.db").touch()
    picture(tmp_path / "a/._0.png", 1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.pth").touch()
    for number in range(50):
        (tmp_path / f"later{number}").mkdir()
    dataset = data.open_data(tmp_path)
    assert (dataset.class_names, len(dataset.listing.names)) == (("a", "b"), 6)
    assert finding(dataset, "no class") == (
        "51 folders hold no image and are no classes: checkpoints, later0, later1 and 48 more"
    )
    assert finding(dataset, "ignored") == "1 file is no image and ignored: checkpoints/last.pth"


def test_a_folder_as_people_have_it(tmp_path):
    """CMYK, palette, alpha, 16 bit and turned pictures are read as their plain twins are."""
    folder(tmp_path, {"a": 3, "b": 3})
    plain = Image.fromarray(np.random.default_rng(99).integers(0, 256, (12, 16, 3), dtype=np.uint8))
    grey = np.asarray(plain.convert("L"))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    quarter = plain.transpose(Image.Transpose.ROTATE_90)
    quarter.save(tmp_path / "a/turned.png", exif=exif)
    plain.save(tmp_path / "a/plain.png")
    Image.fromarray(grey).save(tmp_path / "a/grey8.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "a/grey16.PNG")
    plain.convert("CMYK").save(tmp_path / "b/cmyk.jpg")
    plain.quantize(16).save(tmp_path / "b/palette.png")
    plain.convert("RGBA").save(tmp_path / "b/alpha.webp", lossless=True)
    dataset = data.open_data(tmp_path)
    assert (dataset.findings, len(dataset.listing.names)) == ((), 13)
    rows = np.arange(13)
    read = dict(zip(dataset.listing.names, np.concatenate(list(dataset.listing.reader.read(rows, SMALL))), strict=True))
    assert np.array_equal(read["a/turned.png"], read["a/plain.png"])
    assert np.array_equal(read["a/grey16.PNG"], read["a/grey8.png"])
    assert np.array_equal(read["b/alpha.webp"], read["a/plain.png"])


def test_parts_in_capitals_and_a_folder_too_much(tmp_path):
    counts = {"Training/a": 20, "Training/b": 20, "Testing/a": 4, "Testing/b": 5}
    assert data.open_data(folder(tmp_path / "parts", counts)).split_counts(0)["verdict"] == 9
    folder(tmp_path / "twice", {"photos/a": 3, "photos/b": 3})
    with pytest.raises(UserError, match=r"one class folder photos/, and folders in it .*: give .*twice/photos where"):
        data.open_data(tmp_path / "twice")


def test_names_that_are_not_utf8_and_names_of_two_forms(tmp_path):
    """A name is printable, and the same whether macOS or an editor wrote it."""
    folder(tmp_path, {"cafe\u0301": 4, "b": 4})
    strange = os.fsencode(tmp_path) + b"/na\xefve"
    Path(os.fsdecode(strange)).mkdir()
    for seed in range(3):
        Image.new("RGB", (4, 4), (seed, 9, 9)).save(os.fsdecode(strange + b"/\xff%d.png" % seed))
    Image.new("RGB", (4, 4)).save(os.fsdecode(strange + b"/0.png"))
    Path(os.fsdecode(strange + b"/\xfe.png")).write_bytes(b"broken")
    dataset = data.open_data(tmp_path, cache=tmp_path / "b")
    assert dataset.class_names == ("b", "caf\u00e9", "na\\xefve")
    assert r"na\xefve/\xfe.png (" in finding(dataset, "cannot be read")
    for text in (*dataset.findings, *dataset.listing.names, *dataset.class_names):
        text.encode("utf-8")
    assert r"na\xefve/\xff0.png" in dataset.listing.names
    dataset.split("train", SMALL, split_seed=0)


def test_a_changed_picture_is_an_error_with_its_name(tmp_path):
    folder(tmp_path, {"a": 3, "b": 3})
    dataset = data.open_data(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        path.write_bytes(b"gone")
    name = max(SPLITS, key=dataset.split_counts(0).get)
    with pytest.raises(UserError, match=r"\.png cannot be read as an image: .*; it could be read when the data was"):
        dataset.split(name, SMALL, split_seed=0)


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ([], r"data holds no images in class folders \(it is empty\): expected are folders by class"),
        (["notes.txt"], r"\(found instead: notes\.txt\)"),
        (["train/a/no.txt", "train/1.png"], r"\(images outside of such folders have no class: train/1\.png\)"),
        (["test/a/1.png", "val/a/1.png"], r"has test/, val/ but no train/"),
        (["train/a/1.png", "val/a/1.png", "valid/a/1.png"], r"has both val/ and valid/: keep one of them"),
        (["a/1.png", "a/2.png"], r"data has readable samples of only the class 'a' to train on"),
    ],
)
def test_a_folder_that_cannot_be_learned_from(tmp_path, files, sentence):
    (tmp_path / "data").mkdir()
    for seed, name in enumerate(files):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "data" / name, seed) if name.endswith("png") else (tmp_path / "data" / name).touch()
    with pytest.raises(UserError, match=sentence):
        data.open_data(tmp_path / "data")


def test_data_that_is_not_there_or_something_else(tmp_path):
    with pytest.raises(UserError, match=r"The data .*none does not exist: give a folder"):
        data.open_data(tmp_path / "none")
    (tmp_path / "data.bin").write_text("1,2")
    with pytest.raises(UserError, match=r"data\.bin is none of these: a folder of images, by class, with"):
        data.open_data(tmp_path / "data.bin")


def test_too_few_samples_for_a_split(tmp_path):
    dataset = data.open_data(folder(tmp_path, {"a": 2, "b": 2}))
    empty = next(name for name, count in dataset.split_counts(0).items() if not count)
    with pytest.raises(UserError, match=f"The {empty} split is empty: 4 samples are too few to be split"):
        dataset.split(empty, SMALL, split_seed=0)


def test_the_cache_spares_reading_and_decoding(photos, tmp_path, monkeypatch):
    opened = []
    first = data.open_data(photos, cache=tmp_path, progress=lambda done, total: opened.append((done, total)))
    assert opened[0] == (1, 120)
    assert opened[-1] == (120, 120)
    steps = []
    kept = first.split("train", SMALL, split_seed=0, cache=tmp_path, progress=lambda *step: steps.append(step))
    assert isinstance(kept.array, np.memmap)
    assert steps[-1] == (len(kept), len(kept))
    monkeypatch.setattr(picture_files, "check_picture", None)
    again = data.open_data(photos, cache=tmp_path)
    assert again.sha256 == first.sha256
    monkeypatch.setattr(picture_files, "decode", None)
    other_values = replace(SMALL, mean=(0.5,) * 3)
    assert np.array_equal(again.split("train", other_values, split_seed=0, cache=tmp_path).array, kept.array)
    for other_geometry in (SMALL.at(16, 16), replace(SMALL, filter="bicubic"), replace(SMALL, background=(0, 0, 0))):
        with pytest.raises(TypeError):
            again.split("train", other_geometry, split_seed=0, cache=tmp_path)


def test_no_thread_is_left_behind(photos):
    before = threading.active_count()
    data.open_data(photos).split("search", SMALL, split_seed=0)
    assert threading.active_count() == before


# Arrays


def grey(n=200, seed=0, shape=(6, 6)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *shape), dtype=np.uint8), np.arange(n) % 4


def test_arrays_and_an_npz_file_are_the_same(tmp_path):
    (x, y), (x_test, y_test) = grey(), grey(50, seed=1)
    named = data.from_arrays(x, y, class_names="abcd", x_test=x_test, y_test=y_test)
    np.savez(tmp_path / "d.npz", x_train=x, y_train=y[:, None], x_test=x_test, y_test=y_test, class_names=list("abcd"))
    from_file = data.open_data(tmp_path / "d.npz")
    assert (from_file.sha256, from_file.class_names) == (named.sha256, ("a", "b", "c", "d"))
    verdict = from_file.split("verdict", SMALL, split_seed=0)
    assert sorted(verdict.names) == sorted(f"x_test[{row}]" for row in range(50))
    for row, name in enumerate(verdict.names):
        index = int(name[7:-1])
        assert verdict.labels[row] == y_test[index]
        three = np.repeat(x_test[index][..., None], 3, axis=-1)
        assert np.array_equal(verdict.array[row], geometry(three, SMALL))


@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAY"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("background", [(255, 255, 255), (200, 100, 0)])
def test_every_channel_count_in_every_colour_order(colour, channels, background, tmp_path):
    x, y = grey(60, shape=(6, 9, channels))
    wanted = Preprocess(
        height=8,
        width=8,
        resize="longer",
        resize_px=8,
        filter="bicubic",
        colour=colour,
        background=background,
        mean=(0.5,),
        std=(0.5,),
    )
    samples = data.from_arrays(x, y).split("train", wanted, split_seed=0)
    row = 3
    pixels = x[int(samples.names[row][2:-1])]
    Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(tmp_path / "one.png")
    expected = geometry(decode(tmp_path / "one.png", wanted), wanted)
    assert samples.array.shape[1:] == (8, 8, 1 if colour == "GRAY" else 3)
    assert np.abs(samples.array[row].astype(int) - expected).max() <= 1


def test_float_tensors_are_fed_as_they_are(tmp_path):
    x = np.random.default_rng(0).normal(size=(100, 3, 5, 5))
    dataset = data.from_arrays(x, np.arange(100) % 2)
    samples = dataset.split("train", SMALL, split_seed=0, cache=tmp_path)
    index = int(samples.names[4][2:-1])
    assert samples.array.dtype == np.float32
    assert np.array_equal(samples.inputs([4])[0], x[index].astype(np.float32))
    assert list(tmp_path.iterdir()) == []


def test_the_same_row_is_the_same_split_in_any_array():
    x, y = grey(100)
    one, other = data.from_arrays(x, y), data.from_arrays(x[::-1], y[::-1])
    names = {f"x[{99 - int(name[2:-1])}]" for name in one.split("search", SMALL, split_seed=2).names}
    assert names == set(other.split("search", SMALL, split_seed=2).names)
    assert one.sha256 == other.sha256


X, Y = grey(20)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"images": X, "y": Y}, "holds the arrays images, y; expected are x and y, or x_train, y_train"),
        ({"x_train": X, "y_train": Y, "x_test": X}, "holds the arrays x_train, y_train, x_test; expected are"),
        ({"x": X, "y": Y, "x_train": X, "y_train": Y}, "expected are"),
        ({"x_test": X, "y_test": Y}, "expected are"),
        ({"x": X, "y": Y[:5]}, "x has 20 rows and y has 5"),
        ({"x": X[:0], "y": Y[:0]}, "x holds no rows"),
        ({"x": X[:, :, :0], "y": Y}, r"x has the shape \[20, 6, 0\]: its rows are empty"),
        ({"x": np.zeros((20, 3, 0, 4), np.float32), "y": Y}, "its rows are empty"),
        ({"x": X[..., None] * 1e300, "y": Y}, r"x\[\d+\] holds NaN or infinite numbers"),
        (
            {"x": X, "y": Y.astype(np.uint64) + np.uint64(2**63)},
            r"y holds 9223372036854775\d+: number the classes from 0",
        ),
        ({"x": X, "y": np.where(Y == 3, 10**9, Y)}, r"y\[3\] is 1000000000: that would be 1,000,000,001 classes"),
        ({"x": X, "y": np.arange(20) * 5000}, r"95,001 classes, and the 20 rows have 20 different labels; number"),
        ({"x": X, "y": Y, "class_names": ["a", "b", "", "c"]}, r"class_names\[2\] is empty"),
        ({"x": X.reshape(20, 36), "y": Y}, r"x has the shape \[20, 36\]; images are \[N, H, W\]"),
        ({"x": grey(20, shape=(3, 6, 6))[0], "y": Y}, r"turn it with x\.transpose\(0, 2, 3, 1\)"),
        ({"x": X.astype(np.int64), "y": Y}, r"x is int64 \[20, 6, 6\]; expected is uint8"),
        ({"x": np.where(X > 250, np.nan, X), "y": Y}, r"x\[\d+\] holds NaN or infinite numbers"),
        ({"x": X, "y": np.where(Y == 0, np.nan, Y)}, r"y\[0\] holds NaN, or a number too large to train on"),
        ({"x": X, "y": Y - 1}, r"y\[0\] is -1; labels of 3 classes go from 0 to 2"),
        ({"x": X, "y": Y, "class_names": ["a", "b"]}, r"y\[2\] is 2; labels of 2 classes go from 0 to 1"),
        ({"x": X, "y": Y, "class_names": ["a", "b", "a", "c"]}, "class_names holds a name twice"),
        ({"x": X, "y": Y, "class_names": [1, 2, 3, 4]}, "class_names is int64"),
        ({"x": X, "y": Y * 0}, "only the class '0' to train on"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :3], "y_test": Y}, r"x_test has rows of uint8 \[3, 6, 1\]"),
    ],
)
def test_wrong_arrays_are_sentences_with_the_files_name(tmp_path, arrays, sentence):
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(UserError, match=rf"d\.npz.*{sentence}"):
        data.open_data(tmp_path / "d.npz")


def test_a_few_rows_may_show_a_few_of_a_thousand_classes():
    assert len(data.from_arrays(X, Y * 333).class_names) == 1000
    names = [f"n{number}" for number in range(21_841)]
    assert len(data.from_arrays(X, Y * 7000, class_names=names).class_names) == 21_841


def test_class_names_in_bytes_and_of_two_forms():
    names = np.array([b"a", "\u00e9".encode(), b"caf\xe9", b"d"])
    assert data.from_arrays(X, Y, class_names=names).class_names == ("a", "\u00e9", "caf\\xe9", "d")
    assert data.from_arrays(X, Y, class_names=["a", "e\u0301", "c ", "d"]).class_names == ("a", "\u00e9", "c", "d")


def test_an_array_that_says_to_be_larger_than_it_is_takes_no_memory(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000), }"
    header += b" " * (117 - len(header)) + b"\n"
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"few bytes")
    with pytest.raises(UserError, match=r"d\.npz holds an array that cannot be read \(x\.npy says that it is uint8"):
        data.open_data(tmp_path / "d.npz")


def test_what_is_no_file_is_refused_at_once(tmp_path):
    """Nobody writes into this pipe: who opened it would wait for ever."""
    pipes = [tmp_path / f"pipe{suffix}" for suffix in ("", *data.MANIFESTS, *data.ARRAY_FILES)]
    for path in pipes:
        os.mkfifo(path)
    for path in (*pipes, "/dev/zero"):
        with pytest.raises(UserError, match="is none of these: a folder of images, by class"):
            data.open_data(path)
    folder(tmp_path / "data", {"a": 3, "b": 3})
    os.mkfifo(tmp_path / "data/a/pipe.png")
    assert finding(data.open_data(tmp_path / "data"), "ignored") == "1 file is no image and ignored: a/pipe.png"


def test_copies_are_called_copies():
    """The cause of an empty split is said: sixty rows are enough, one picture is not."""
    x = np.zeros((60, 6, 6), np.uint8)
    dataset = data.from_arrays(x, np.arange(60) % 2)
    with pytest.raises(
        UserError, match=r"split is empty: of 60 samples only 1 is different from all others, and copies"
    ):
        for name in SPLITS:
            dataset.split(name, SMALL, split_seed=0)


def spec(*shape, layout="NCHW"):
    return TensorSpec("image", (None, *shape), "float32", layout)


def floats(*shape):
    return data.from_arrays(np.random.default_rng(0).normal(size=(20, *shape)), np.arange(20) % 2)


@pytest.mark.parametrize(
    ("row", "wanted", "mend"),
    [
        ((8, 9, 3), (3, 8, 9), r"turn them with x\.transpose\(0, 3, 1, 2\)"),
        ((8, 9), (1, 8, 9), r"add the channel with x\[:, None\]"),
        ((1, 8), (8,), r"drop the side of 1 with x\.reshape\(-1, 8\)"),
        ((3, 8, 8), (3, 9, 9), "give arrays of that size, or say with --input-shape"),
        (
            (40,),
            (3, 9, 9),
            r"have \[40\] a sample, and the network takes \[3, 9, 9\] a sample: give arrays of",
        ),
    ],
)
def test_float_arrays_of_another_shape_get_their_mend(row, wanted, mend):
    with pytest.raises(UserError, match=mend):
        floats(*row).check_fits([spec(*wanted)], SMALL)


def test_samples_that_fit_pass():
    floats(3, 8, 9).check_fits([spec(3, 8, 9)], SMALL)
    floats(3, 8, 9).check_fits([spec(8, 9, 3, layout="NHWC")], SMALL)  # a file's own layout is our care
    floats(8, 9, 3).check_fits([spec(8, 9, 3, layout="NHWC")], SMALL)
    floats(40).check_fits([TensorSpec("input", (None, 40))], SMALL)
    data.from_arrays(X, Y).check_fits([spec(3, 8, 8)], SMALL)
    data.from_arrays(X, Y).check_fits([spec(8, 8, 3, layout="NHWC")], SMALL)
    data.no_data().check_fits([spec(3, 8, 8)], SMALL)


def test_pictures_for_a_network_that_takes_none():
    with pytest.raises(UserError, match=r"makes \[3, 8, 8\] \(channels, height, width\), and the network takes \[40\]"):
        data.from_arrays(X, Y).check_fits([TensorSpec("input", (None, 40))], SMALL)


def test_pickles_are_refused_unread(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.savez(tmp_path / "d.npz", x=np.array([Trap(), 1], object), y=Y)
    with pytest.raises(UserError, match=r"d\.npz holds pickled Python objects, which could run any code"):
        data.open_data(tmp_path / "d.npz")
    assert not (tmp_path / "ran").exists()


def test_damaged_npz_files_are_sentences(tmp_path, monkeypatch):
    path = tmp_path / "d.npz"
    np.savez_compressed(path, x=X, y=Y)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[200] ^= 0xFF
    for content in (whole[: len(whole) // 2], whole[:-1], b"", b"PK\x03\x04", gzip.compress(b"x"), bytes(flipped)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"d\.npz (is no whole \.npz file|holds an array that cannot be read)"):
            data.open_data(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"no array")
    with pytest.raises(UserError, match=r"d\.npz holds"):
        data.open_data(path)
    path.write_bytes(whole)
    monkeypatch.setattr("pocketfit.sources.data.arrays.MAX_BYTES", 100)
    with pytest.raises(UserError, match=r"d\.npz holds 0 GB, more than 0 GB, the limit"):
        data.open_data(path)
