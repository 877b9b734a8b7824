"""The generator of text lines and pages (benchmarks/ocr)."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.ocr import fonts, lines, pages, recogniser, texts
from benchmarks.ocr.render import Line
from pocketfit.core.errors import UserError


def pixels(line: Line) -> bytes:
    return line.encoded()[1]


def test_identity_numbers_have_the_right_check_character():
    random = np.random.default_rng(1)
    for _ in range(300):
        number = texts.identity_number(random)
        assert len(number) == 18
        datetime.strptime(number[6:14], "%Y%m%d")
        # ISO 7064, MOD 11-2, in its own words: the weighted sum over all 18 characters is 1 modulo 11
        values = [10 if c == "X" else int(c) for c in number]
        assert sum(v * pow(2, 17 - i, 11) for i, v in enumerate(values)) % 11 == 1


def test_texts_hold_listed_characters_only_and_all_kinds_come():
    random = np.random.default_rng(2)
    drawn = [texts.draw(random) for _ in range(2000)]
    listed = set(texts.characters())
    assert {c for _, text in drawn for c in text} <= listed
    assert {kind for kind, _ in drawn} == set(texts.KINDS)
    assert all(text == text.strip() and text for _, text in drawn)
    assert max(len(text) for kind, text in drawn if kind == "address") <= 14
    "".join(listed).encode("gb2312")


@pytest.mark.parametrize(
    ("value", "text"), [(1005, "壹仟零伍"), (20, "贰拾"), (3400, "叁仟肆佰"), (7, "柒"), (1020, "壹仟零贰拾")]
)
def test_amounts_in_capitals(value: int, text: str):
    assert texts._in_capitals(value) == text


def test_fonts_of_the_test_are_used_by_the_test_alone():
    for chinese in (True, False):
        shared, own = fonts.faces_for("test", chinese=chinese)
        assert len(own) >= 2 and not {f.file for f in shared} & {f.file for f in own}
        for split in ("train", "val"):
            assert fonts.faces_for(split, chinese=chinese) == (shared, ())


def test_all_characters_are_in_the_charset_and_in_the_fonts(ocr_fonts: Path, rapidocr: Path):
    fonts.check_characters(ocr_fonts, rapidocr / fonts.RECOGNISER.relative_to(fonts.RECOGNISER.parents[2]))


def test_a_character_that_a_font_lacks_is_named(ocr_fonts: Path, rapidocr: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(texts, "characters", lambda: "龘")  # not in GB 2312
    with pytest.raises(UserError, match="lacks 龘"):
        fonts.check_characters(ocr_fonts, rapidocr / fonts.RECOGNISER.relative_to(fonts.RECOGNISER.parents[2]))


def test_the_same_seed_gives_the_same_pixels_and_splits_differ(ocr_fonts: Path):
    first = [pixels(line) for line in lines.rendered("train", 6, 0, ocr_fonts)]
    assert first == [pixels(line) for line in lines.rendered("train", 6, 0, ocr_fonts)]
    assert first[:3] == [pixels(line) for line in lines.rendered("train", 3, 0, ocr_fonts)]
    others = [("val", 0), ("test", 0), ("train", 1)]
    for split, seed in others:
        assert not set(first) & {pixels(line) for line in lines.rendered(split, 6, seed, ocr_fonts)}


def test_half_of_the_tests_lines_are_in_its_own_fonts(ocr_fonts: Path):
    drawn = [line.face.test_only for line in lines.rendered("test", 120, 0, ocr_fonts)]
    assert 0.3 < np.mean(drawn) < 0.7
    assert not any(line.face.test_only for line in lines.rendered("train", 60, 0, ocr_fonts))


def test_a_written_folder_is_read_back(tmp_path: Path, ocr_fonts: Path):
    manifest = lines.write(tmp_path / "lines", {"train": 3, "val": 2, "test": 4}, 0, ocr_fonts)
    entries = [json.loads(one) for one in manifest.read_text(encoding="utf-8").splitlines()]
    assert [set(entry) for entry in entries] == [{"path", "text", "kind", "split"}] * 9
    found = recogniser.read(tmp_path / "lines", "test")
    assert found.values.shape == (4, 3, 48, 320) and found.values.min() >= -1 and found.values.max() <= 1
    assert [(line.text, line.kind, line.face.name) for line in lines.rendered("test", 4, 0, ocr_fonts)] == list(
        zip(found.texts, found.kinds, found.fonts, strict=True)
    )
    with pytest.raises(UserError, match="is there already"):
        lines.write(tmp_path / "lines", {"train": 1}, 0, ocr_fonts)


def test_pages_are_pictures_of_one_size_and_repeat(tmp_path: Path, ocr_fonts: Path):
    contents = []
    for name in ("a", "b"):
        folder = pages.write(tmp_path / name, 2, "train", 0, ocr_fonts)
        contents.append([path.read_bytes() for path in sorted(folder.iterdir())])
        with Image.open(folder / "000000.jpg") as picture:
            assert picture.size == (640, 640)
    assert contents[0] == contents[1] and contents[0][0] != contents[0][1]
