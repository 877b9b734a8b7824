"""Annotations of boxes: COCO's and YOLO's, what they become, and what is wrong in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import LETTERBOX, Preprocess
from pocketfit.sources.data.dataset import open_data
from pocketfit.sources.image_preprocess import geometry, placed

COUNT = 30


def draw(path: Path, row: int, size: tuple[int, int] = (20, 40)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(row).integers(0, 256, (*size, 3), np.uint8)).save(path)


def coco(count: int = COUNT, start: int = 0) -> dict[str, Any]:
    """Every third picture has no object."""
    return {
        "images": [{"id": n, "file_name": f"{start + n}.png", "width": 40, "height": 20} for n in range(count)],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 7 if n % 2 else 3, "bbox": [4, 2, 8, 6], "iscrowd": n % 2}
            for n in range(count)
            if n % 3
        ],
        "categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}],
    }


def written(folder: Path, data: Any, name: str = "boxes.json") -> Path:
    for row in range(COUNT):
        draw(folder / f"{row}.png", row)
    (folder / name).write_text(json.dumps(data))
    return folder / name


def yolo(folder: Path, text: str = "1 0.2 0.25 0.2 0.3\n") -> Path:
    for row in range(COUNT):
        draw(folder / "images" / ("val" if row < 10 else "train") / f"{row}.png", row)
        if row % 3:
            label = folder / "labels" / ("val" if row < 10 else "train") / f"{row}.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text(text)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def coco_folders(folder: Path) -> Path:
    for part, start in (("train2017", 0), ("val2017", COUNT)):
        for row in range(start, start + COUNT):
            draw(folder / part / f"{row}.png", row)
        (folder / "annotations").mkdir(exist_ok=True)
        (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(coco(start=start)))
        (folder / "annotations" / f"captions_{part}.json").write_text("{}")
    return folder


SQUARE = Preprocess(height=20, width=20, resize="longer", resize_px=20, background=(114,) * 3)


def test_coco_in_the_pixels_of_a_letterbox(tmp_path: Path) -> None:
    data = open_data(written(tmp_path, coco()))
    assert (data.form, data.class_names) == ("boxes", ("cat", "dog"))
    samples = data.split("train", SQUARE, split_seed=0)
    assert samples.labels.dtype == np.float32 and samples.labels.shape[1:] == (1, 6)
    for name, labels in zip(samples.names, samples.labels, strict=True):
        row = int(Path(name).stem)
        assert labels.tolist() == [[2, 6, 6, 9, row % 2, row % 2] if row % 3 else [-1] * 6]


def test_coco_folders_and_yolo_have_parts(tmp_path: Path) -> None:
    data = open_data(coco_folders(tmp_path / "coco"))
    assert data.split_counts(0)["search"] == COUNT and sum(data.split_counts(0).values()) == 2 * COUNT
    data = open_data(yolo(tmp_path / "yolo"))
    assert (data.form, data.class_names) == ("boxes", ("cat", "dog")) and data.split_counts(0)["search"] == 10
    labels = data.split("search", SQUARE, split_seed=0).labels
    assert labels[labels[:, 0, 4] >= 0] == pytest.approx(np.tile([[[2, 6, 6, 9, 1, 0]]], (6, 1, 1)), abs=1e-5)


def test_a_box_lies_where_its_pixels_do() -> None:
    """A white box in pictures of many shapes, cut and padded: its edges are found where `placed` says they are."""
    for height, width in ((40, 100), (90, 60), (64, 64)):
        for how in (
            Preprocess(height=64, width=64, resize="longer", resize_px=64, background=(0, 0, 0)),
            Preprocess(height=64, width=64, resize="shorter", resize_px=80),
            Preprocess(height=64, width=80, resize="exact"),
            Preprocess(height=48, width=96, resize="height", background=(0, 0, 0)),
        ):
            picture = np.zeros((height, width, 3), np.uint8)
            top, bottom, left, right = height // 4, height // 2, width // 3, width // 2
            picture[top:bottom, left:right] = 255
            seen = geometry(picture, how)[..., 0] > 127
            down, across, above, beside = placed(height, width, how)
            rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
            wanted = (top * down + above, bottom * down + above, left * across + beside, right * across + beside)
            wanted = np.clip(wanted, 0, (how.height, how.height, how.width, how.width))
            assert (rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) == pytest.approx(wanted, abs=1.01)


def test_the_letterbox_keeps_the_ratio_and_pads_with_grey() -> None:
    pixels = geometry(np.zeros((300, 600, 3), np.uint8), LETTERBOX)
    assert pixels.shape == (640, 640, 3) and (pixels[:160] == 114).all() and (pixels[160:480] == 0).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"category_id": 9}, "annotation 1: there is no category with the id 9"),
        ({"image_id": 99}, "annotation 1: there is no image with the id 99"),
        ({"bbox": [1, 2, 3]}, r"'bbox' is \[1, 2, 3\]: give \[left, top, width, height\]"),
        ({"bbox": [1, 2, 3, "4"]}, "'bbox' is"),
    ],
)
def test_annotations_that_are_wrong_are_sentences(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    data = coco()
    data["annotations"][0] |= change
    with pytest.raises(UserError, match=sentence):
        open_data(written(tmp_path, data))


def test_pictures_that_are_wrong_are_sentences(tmp_path: Path) -> None:
    data = coco()
    data["images"][1]["file_name"] = "../1.png"
    with pytest.raises(UserError, match="is no path below the folder of the data"):
        open_data(written(tmp_path, data))
    data["images"][1]["file_name"], data["images"][2]["width"] = "gone.png", 41
    data["annotations"][2]["bbox"] = [50, 0, 5, 5]
    said = " ".join(open_data(written(tmp_path, data)).findings)
    assert "gone.png (it does not exist)" in said and "2.png (stated 41 x 20, is 40 x 20)" in said
    assert "1 box of 18 is left out: it lies outside the picture, or cover nothing: 4.png, box 1" in said
    for one in data["annotations"]:
        one["bbox"] = [900, 900, 5, 5]
    with pytest.raises(UserError, match="No box lies in its picture"):
        open_data(written(tmp_path, data))
    for one in data["images"]:
        one["file_name"] = f"no-{one['id']}.png"
    with pytest.raises(UserError, match=r"None of the 30 pictures that .* annotates can be read"):
        open_data(written(tmp_path, data))
    data["images"][1]["id"] = 0
    with pytest.raises(UserError, match="two images have the id 0"):
        open_data(written(tmp_path, data))


@pytest.mark.parametrize("line", ["1 0.5 0.5 0.2", "1 120 40 20 20", "x 0.5 0.5 0.1 0.1", "-1 0.5 0.5 0.1 0.1"])
def test_lines_of_yolo_that_are_wrong_are_sentences(line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1 is .*: write a class and centre x"):
        open_data(yolo(tmp_path, f"{line}\n"))


def test_a_class_beyond_the_names_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"names the class 5, and .*classes.txt has 2"):
        open_data(yolo(tmp_path, "5 0.5 0.5 0.2 0.2\n"))
