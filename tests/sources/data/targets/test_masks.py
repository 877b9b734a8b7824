"""Masks in files and in arrays: which are taken, and what becomes of their numbers."""

import json

import numpy as np
import pytest
from PIL import Image

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.data import dataset as data
from pocketfit.sources.data.targets.masks import WHITE_IS_ONE, as_target
from pocketfit.sources.data.targets.read_targets import read_targets

EXACT = Preprocess(height=6, width=8, resize="exact")
CLASSES = np.arange(48, dtype=np.uint8).reshape(6, 8) % 5


def opened(folder, *masks, size=(6, 8)):
    """A manifest of one picture for each mask; masks are images, or (image, suffix)."""
    rows = []
    for number, given in enumerate(masks):
        image, suffix = given if isinstance(given, tuple) else (given, ".png")
        pixels = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        if isinstance(image, bytes):
            (folder / f"m{number}{suffix}").write_bytes(image)
        else:
            image.save(folder / f"m{number}{suffix}")
        rows.append({"path": f"{number}.png", "mask": f"m{number}{suffix}"})
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return data.open_data(folder / "m.jsonl")


def read(dataset):
    return np.concatenate(list(dataset.listing.masks.read(np.arange(len(dataset.listing.names)), EXACT)))


def indexed():
    """A palette whose colours say nothing about the indices, as Pascal VOC has them."""
    image = Image.new("P", (8, 6))
    image.putdata(CLASSES.reshape(-1).tolist())
    image.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0, 0, 0, 200, 1, 2, 3])
    return image


def test_grey_palette_and_16_bits_are_the_same_numbers(tmp_path):
    grey = Image.fromarray(CLASSES)
    masks = [
        grey,
        indexed(),
        Image.fromarray(CLASSES.astype(np.uint16)),
        (grey, ".bmp"),
        (grey, ".tif"),
        (grey, ".pgm"),
    ]
    dataset = opened(tmp_path, *masks)
    assert (dataset.findings, dataset.listing.masks.highest) == ((), 4)
    assert (read(dataset) == CLASSES).all()


def test_a_mask_follows_its_picture_where_it_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("png", "tif"):
        pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"p.{suffix}", exif=exif)
        Image.fromarray(CLASSES.T[:, ::-1].copy()).save(tmp_path / "m.png")
        (tmp_path / "m.jsonl").write_text(json.dumps({"path": f"p.{suffix}", "mask": "m.png"}))
        assert data.open_data(tmp_path / "m.jsonl").findings == ()


def test_nothing_is_mixed_and_padding_is_unknown():
    mask = np.array([[0, 200, 0, 255]] * 3, np.uint8)
    made = as_target(mask, Preprocess(height=9, width=9, resize="longer", resize_px=8), white_is_one=False)
    assert made.dtype == np.int16 and set(np.unique(made)) == {-1, 0, 200}
    assert (made[0] == -1).all() and (made[:, -1] == -1).all()
    assert made[4].tolist() == [0, 0, 200, 200, 0, 0, -1, -1, -1]


def test_black_and_white_is_background_and_one_class(tmp_path):
    white = np.where(CLASSES > 2, 255, 0).astype(np.uint8)
    dataset = opened(tmp_path, Image.fromarray(white), Image.fromarray(np.zeros_like(white)))
    assert (dataset.findings, dataset.listing.masks.highest) == ((WHITE_IS_ONE,), 1)
    assert np.array_equal(read(dataset)[0], CLASSES > 2)
    bits = opened(tmp_path, Image.fromarray(white).convert("1"))
    assert np.array_equal(read(bits)[0], CLASSES > 2)


def test_what_255_means_is_part_of_the_hash_and_of_the_cache(tmp_path):
    """The same two masks, alone and beside one that has a class 1 of its own."""
    x = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3), dtype=np.uint8)
    y = np.stack([np.where(CLASSES > 2, 255, 0), np.zeros_like(CLASSES), CLASSES % 2]).astype(np.uint8)
    parts = [data.from_arrays(x[:count], y[:count]) for count in (2, 3)]
    contents = [dataset.listing.masks.contents[0] for dataset in parts]
    assert contents[0] != contents[1]
    for dataset, value in zip(parts, (1, -1), strict=True):
        rows = np.array([0])
        assert set(np.unique(read_targets(dataset.listing, rows, EXACT, tmp_path))) == {0, value}


@pytest.mark.parametrize(
    ("mask", "why"),
    [
        (Image.fromarray(np.repeat(CLASSES[..., None], 3, -1)), "it has colours: save one channel"),
        ((Image.fromarray(CLASSES), ".jpg"), "it is a JPEG, which changes numbers"),
        (Image.fromarray(CLASSES[:, :7].copy()), "it is 7 x 6 pixels, and its picture is 8 x 6"),
        (Image.fromarray(CLASSES.astype(np.uint16) + 300), "it holds 304: classes are numbered from 0 to 254"),
        ((b"no picture", ".png"), "it is damaged, or of no known image format"),
        ((b"", ".png"), "it is damaged, or of no known image format"),
    ],
)
def test_masks_that_cannot_be_used_are_left_out_with_their_pictures(tmp_path, mask, why):
    dataset = opened(tmp_path, Image.fromarray(CLASSES), mask)
    assert list(dataset.listing.names) == ["0.png"]
    said = "".join(dataset.findings)
    assert said.startswith("1 mask of 2 cannot be used and is left out with its picture: m1.") and why in said
    with pytest.raises(UserError, match=r"None of the 1 mask that .*m\.jsonl names can be used, for example m0"):
        opened(tmp_path, mask)


def test_a_changed_mask_is_an_error_with_its_name(tmp_path):
    dataset = opened(tmp_path, Image.fromarray(CLASSES))
    (tmp_path / "m0.png").write_bytes(b"gone")
    with pytest.raises(UserError, match=r"The mask .*m0\.png cannot be read: .*start again"):
        read(dataset)


X = np.random.default_rng(0).integers(0, 256, (20, 6, 8, 3), dtype=np.uint8)
Y = np.stack([CLASSES] * 20).astype(np.int64)


def test_masks_of_float_arrays_keep_their_own_size():
    y = np.where(Y == 4, -1, Y)[:, :3]
    dataset = data.from_arrays(X.astype(np.float32), y)
    samples = dataset.split("train", EXACT, split_seed=0)
    assert samples.labels.shape == (len(samples), 3, 8)
    assert np.array_equal(samples.labels[0], y[0])
    assert np.array_equal(data.from_arrays(X, Y > 2).split("train", EXACT, split_seed=0).labels[0], CLASSES > 2)


@pytest.mark.parametrize(
    ("y", "sentence"),
    [
        (Y[:, :5], r"y has masks of \[5, 8\], and the images are \[6, 8\]: they need the same"),
        (Y + 300, "y holds 304: classes are numbered from 0 to 254, and 255 or -1 is where none is known"),
        (Y - 3, "y holds -3: classes are numbered"),
        (Y[:5], "x has 20 rows and y has 5"),
        (np.where(Y == 0, np.nan, Y), r"y\[0\] holds NaN, or a number too large"),
        (np.array(["a"] * 19 + [""]), r"y\[19\] is empty: leave such rows out"),
        (np.array(["a"] * 19 + ["b\n"]), r"y\[19\] is 'b\\n', which holds a character that no line has"),
        (np.array([b"\xff"] * 20), r"y\[0\] is no text in UTF-8"),
    ],
)
def test_wrong_targets_in_arrays_are_sentences(y, sentence):
    with pytest.raises(UserError, match=sentence):
        data.from_arrays(X, y)


def test_texts_that_look_like_classes_are_said():
    dataset = data.from_arrays(X, np.array(["cat", "dog"] * 10))
    assert dataset.findings[0].startswith("y holds 20 texts, only 2 of them different. Where they name classes, make")
    with pytest.raises(UserError, match=r"class_names, y = numpy\.unique"):
        data.from_arrays(X, np.array(["cat", "dog"] * 10), class_names=["cat", "dog"])


def test_an_npy_file_is_read_within_limits(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, X)
    whole = path.read_bytes()
    huge = whole.replace(b"(20, 6, 8, 3)", b"(20000000, 6, 8, 3)", 1).replace(b" " * 6, b"", 1)
    for content in (whole[:-1], huge, b"", b"\x93NUMPY", whole[:50], b"no array"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x\.npy is no whole \.npy file"):
            data.open_data(path)
    np.save(path, np.array([{}, 1], object), allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy holds pickled Python objects, which could run any code"):
        data.open_data(path)
    np.save(path, np.arange(20))
    with pytest.raises(UserError, match=r"x\.npy: x is int64 \[20\]; expected is uint8"):
        data.open_data(path)
