import ast
import fractions
import io
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pocketfit.core.preprocess import TEXT_LINE, Preprocess
from pocketfit.core.samples import pixels_to_values
from pocketfit.sources import image_preprocess as reference
from pocketfit.sources.input_contract import read_preprocess

PILLOW = {name: Image.Resampling[name.upper()] for name in ("nearest", "bilinear", "bicubic")}
SIDE = st.integers(1, 70)
SIZES = st.tuples(SIDE, SIDE, SIDE, SIDE)


def noise(height, width, channels=3, seed=0, contrast=False):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return np.where(pixels > 127, 255, 0).astype(np.uint8) if contrast else pixels


def by_pillow(pixels, height, width, filter):
    """Width first, then height: newer Pillows choose the order themselves when asked for both at once."""
    image = Image.fromarray(pixels).resize((width, len(pixels)), PILLOW[filter])
    return np.asarray(image.resize((width, height), PILLOW[filter]))


def stored(image, format="PNG", **settings):
    file = io.BytesIO()
    image.save(file, format, **settings)
    file.seek(0)
    return file


# Resizing


@given(SIZES, st.sampled_from(["bilinear", "bicubic"]), st.integers(0, 99), st.booleans())
@settings(max_examples=150, deadline=None)
def test_resize_is_pillows_within_one_grey_level_an_axis(sizes, filter, seed, contrast):
    h, w, height, width = sizes
    pixels = noise(h, w, seed=seed, contrast=contrast)
    # Exact halves are rounded by the last bits of Pillow's whole-number weights or of our float32 ones.
    narrow = reference.resize(pixels, h, width, filter)
    assert np.abs(narrow.astype(int) - by_pillow(pixels, h, width, filter)).max() <= 1
    both, theirs = reference.resize(pixels, height, width, filter), by_pillow(narrow, height, width, filter)
    assert np.abs(both.astype(int) - theirs).max() <= 1


def test_resize_of_a_photo_is_pillows():
    pixels = by_pillow(noise(60, 80), 480, 640, "bicubic")
    for filter in ("bilinear", "bicubic"):
        ours, theirs = reference.resize(pixels, 256, 341, filter), by_pillow(pixels, 256, 341, filter)
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.max() <= 1
        assert difference.mean() < 0.02


@given(SIDE, SIDE, SIDE, SIDE)
@settings(max_examples=150, deadline=None)
def test_nearest_is_pillows_exactly_where_no_centre_lies_on_an_edge(h, w, height, width):
    pixels = noise(h, w)
    # On an edge between two pixels Pillow's running sum of floats falls on either side; here the right one is taken.
    rows = (2 * np.arange(height) + 1) * h % (2 * height) != 0
    columns = (2 * np.arange(width) + 1) * w % (2 * width) != 0
    ours, theirs = reference.resize(pixels, height, width, "nearest"), by_pillow(pixels, height, width, "nearest")
    assert np.array_equal(ours[rows][:, columns], theirs[rows][:, columns])


@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(list(PILLOW)))
@settings(max_examples=60, deadline=None)
def test_a_flat_picture_stays_flat_and_a_batch_is_its_pictures(h, w, height, width, filter):
    assert (reference.resize(np.full((h, w, 1), 201, np.uint8), height, width, filter) == 201).all()
    batch = np.stack([noise(h, w, seed=seed) for seed in range(3)])
    resized = reference.resize(batch, height, width, filter)
    for one, expected in zip(batch, resized, strict=True):
        alone = reference.resize(one, height, width, filter)
        assert np.abs(alone.astype(int) - expected).max() <= 1  # BLAS may sum in another order


def test_an_unknown_filter_is_refused():
    with pytest.raises(ValueError, match="'lanczos' is none of nearest, bilinear and bicubic"):
        reference.resize(noise(4, 4), 2, 2, "lanczos")


# Geometry


@given(SIZES, st.sampled_from(["shorter", "longer", "none"]), SIDE, st.sampled_from(["nearest", "bicubic"]))
@settings(max_examples=150, deadline=None)
def test_geometry_is_resize_then_centre_crop_or_pad(sizes, rule, resize_px, filter):
    h, w, height, width = sizes
    settings = Preprocess(
        height=height, width=width, resize=rule, resize_px=resize_px, filter=filter, background=(1, 2, 3)
    )
    pixels = noise(h, w)
    new_h, new_w = reference.resized(h, w, settings)
    whole = reference.resize(pixels, new_h, new_w, filter)
    expected = np.empty((height, width, 3), np.uint8)
    expected[...] = (1, 2, 3)
    rows, columns = min(height, new_h), min(width, new_w)
    top, left = (height - rows) // 2, (width - columns) // 2
    cut = whole[(new_h - rows) // 2 :, (new_w - columns) // 2 :][:rows, :columns]
    expected[top : top + rows, left : left + columns] = cut
    got = reference.geometry(pixels, settings)
    inside = np.zeros((height, width), bool)
    inside[top : top + rows, left : left + columns] = True
    assert np.array_equal(got[~inside], expected[~inside])
    assert np.abs(got.astype(int) - expected).max() <= 1


def test_the_resize_rule():
    at = lambda rule, px: reference.resized(480, 640, Preprocess(resize=rule, resize_px=px))  # noqa: E731
    assert (at("shorter", 256), at("longer", 256)) == ((256, 341), (192, 256))
    assert (at("exact", 1), at("none", 1)) == ((224, 224), (480, 640))
    assert reference.resized(1, 1000, Preprocess(resize="longer", resize_px=100)) == (1, 100)


@given(SIDE, st.integers(1, 300), SIDE, SIDE, st.sampled_from(["nearest", "bilinear"]))
@settings(max_examples=100, deadline=None)
def test_a_line_keeps_its_ratio_and_stands_at_the_left(h, w, height, width, filter):
    """As PaddleOCR does: ceil(height * ratio) columns, at most the width; the rest is background at the right."""
    settings = Preprocess(height=height, width=width, resize="height", filter=filter, background=(1, 2, 3))
    pixels = noise(h, w)
    columns = min(width, math.ceil(fractions.Fraction(height * w, h)))
    got = reference.geometry(pixels, settings)
    assert got.shape == (height, width, 3)
    resized = reference.resize(pixels, height, columns, filter)
    assert np.abs(got[:, :columns].astype(int) - resized).max() <= 1
    assert (got[:, columns:] == (1, 2, 3)).all()


def test_text_line_is_what_rapidocr_feeds():
    """The network sees (x / 255 - 0.5) / 0.5 in BGR, and beside the line all but 0, which RapidOCR fills with."""
    assert read_preprocess("text-line", None) == (TEXT_LINE, ())
    assert read_preprocess("text-line", (3, 32, 100))[0].width == 100
    pixels = noise(48, 100)
    tensor = reference.to_tensor(stored(Image.fromarray(pixels)), TEXT_LINE)
    assert tensor.shape == (1, 3, 48, 320)
    wanted = (pixels[..., ::-1].transpose(2, 0, 1) / 255 - 0.5) / 0.5
    assert np.abs(tensor[0, :, :, :100] - wanted).max() < 1e-6
    assert np.abs(tensor[..., 100:]).max() < 0.004


def test_padding_has_the_backgrounds_colour_in_the_networks_order():
    corner = lambda colour, channels: reference.geometry(  # noqa: E731
        noise(2, 2, channels), Preprocess(height=8, width=8, resize="none", colour=colour, background=(255, 128, 0))
    )[0, 0].tolist()
    assert corner("RGB", 3) == [255, 128, 0]
    assert corner("BGR", 3) == [0, 128, 255]
    assert corner("GRAY", 1) == [151]


# Decoding


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = stored(Image.fromarray(noise(5, 7)), exif=exif)
    with Image.open(file) as image:
        upright = np.asarray(ImageOps.exif_transpose(image))
    file.seek(0)
    assert np.array_equal(reference.decode(file, Preprocess()), upright)


def test_a_turned_tiff_is_turned_once():
    exif = Image.Exif()
    exif[0x0112] = 6
    file = stored(Image.fromarray(noise(5, 7)), "TIFF", exif=exif)
    assert reference.decode(file, Preprocess()).shape == (7, 5, 3)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
@pytest.mark.parametrize("colour", ["RGB", "BGR", "GRAY"])
def test_every_mode_in_every_colour_order(mode, colour):
    rgb = Image.fromarray(np.repeat(np.repeat(noise(2, 3), 4, 0), 4, 1))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(rgb.convert("L")).astype(np.uint16) * 257)
        expected = rgb.convert("L").convert("RGB")
    else:
        image = rgb.convert(mode)
        expected = image.convert("RGB")
    expected = np.asarray(expected)
    if colour == "BGR":
        expected = expected[..., ::-1]
    if colour == "GRAY":
        expected = np.asarray(Image.fromarray(expected).convert("L"))[..., np.newaxis]
    got = reference.decode(stored(image, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"), Preprocess(colour=colour))
    assert got.dtype == np.uint8
    assert np.array_equal(got, expected)


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_alpha_is_blended_over_the_background(seed):
    image = Image.fromarray(noise(6, 6, 4, seed))
    expected = Image.alpha_composite(Image.new("RGBA", (6, 6), (10, 200, 30, 255)), image).convert("RGB")
    got = reference.decode(stored(image), Preprocess(background=(10, 200, 30)))
    assert np.abs(got.astype(int) - np.asarray(expected)).max() <= 1


def test_a_transparent_palette_is_blended():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    for transparency in (0, bytes([0, 255])):
        got = reference.decode(stored(image, transparency=transparency), Preprocess(background=(1, 2, 3)))
        assert got.tolist() == [[[1, 2, 3], [0, 255, 0]]]


def test_what_cannot_be_read_is_a_sentence_with_the_name(tmp_path, monkeypatch):
    whole = stored(Image.fromarray(noise(64, 64)), "JPEG").getvalue()
    for name, content in {"cut.jpg": whole[: len(whole) // 2], "text.jpg": b"hello", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(reference.BadPicture, match=rf"{name} cannot be read as an image: ."):
            reference.decode(tmp_path / name, Preprocess())
    with pytest.raises(reference.BadPicture, match="'F', whose range is not known: save it with 8 bits"):
        reference.decode(stored(Image.new("F", (2, 2)), "TIFF"), Preprocess())
    with pytest.raises(reference.BadPicture, match="more than 16 bits"):
        reference.decode(stored(Image.new("I", (2, 2), 70000), "TIFF"), Preprocess())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(reference.BadPicture, match="exceeds limit of 2000 pixels"):
        reference.decode(io.BytesIO(whole), Preprocess())


def test_postscript_is_not_given_to_a_program():
    with pytest.raises(reference.BadPicture):
        reference.decode(stored(Image.new("RGB", (4, 4)), "EPS"), Preprocess())


# Values, and the file as a bundle uses it


def test_values_are_those_of_samples_bit_for_bit():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for scale, mean, std in ((1 / 255, 0.485, 0.229), (1.0, 127.5, 127.5), (1 / 255, 0.0, 1.0)):
        wanted = Preprocess(scale=scale, mean=(mean,) * 3, std=(std, 0.2, 0.1))
        assert reference.values(pixels, wanted).tobytes() == pixels_to_values(pixels, wanted).tobytes()


def test_to_tensor_with_settings_from_json():
    settings = Preprocess(height=8, width=6, resize_px=9, colour="BGR")
    from_json = SimpleNamespace(**json.loads(json.dumps(settings.to_json())))
    file = stored(Image.fromarray(noise(20, 30)))
    tensor = reference.to_tensor(file, from_json, "NHWC")
    file.seek(0)
    assert tensor.shape == (1, 8, 6, 3)
    assert tensor.dtype == np.float32
    planes = reference.to_tensor(file, settings, "NCHW")
    assert planes.flags.c_contiguous
    assert np.array_equal(planes, tensor.transpose(0, 3, 1, 2))


def test_the_file_stands_alone():
    tree = ast.parse(Path(reference.__file__).read_text())
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
    roots = {name.split(".")[0] for name in imported if name != "pocketfit.core.preprocess"}
    assert roots - set(sys.stdlib_module_names) == {"numpy", "PIL"}
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    assert ast.unparse(guarded.test) == "TYPE_CHECKING"
    assert "pocketfit.core.preprocess" in ast.unparse(guarded)
