"""An example of every form of data. A new row joins all tests of test_forms.py."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

COUNT, SIDES = 120, (12, 16)
TEXTS = [f"No. {row} é" for row in range(COUNT)]
CLASSES = [("cat", "dog")[row % 2] for row in range(COUNT)]
KINDS = [("long", "short", "short")[row % 3] for row in range(COUNT)]


def pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (*SIDES, 3), dtype=np.uint8)


def mask(row: int) -> np.ndarray:
    """Three classes, and a corner of which nothing is known."""
    found = np.random.default_rng(1000 + row).integers(0, 3, SIDES, dtype=np.uint8)
    found[:2, :2] = 255
    return found


def pictures(folder: Path) -> list[str]:
    for name, draw in (("lines", pixels), ("masks", mask)):
        (folder / name).mkdir(parents=True)
        for row in range(COUNT):
            Image.fromarray(draw(row)).save(folder / name / f"{row}.png")
    return [f"lines/{row}.png" for row in range(COUNT)]


def json_lines(folder: Path, key: str = "", targets: list[object] | None = None, name: str = "data.jsonl") -> Path:
    paths = pictures(folder)
    rows = [{"path": paths[row], "kind": KINDS[row]} for row in range(COUNT)]
    for row, target in enumerate(targets or ()):
        rows[row][key] = target
    text = "\n".join(json.dumps(row) for row in rows) if name != "list.json" else json.dumps(rows)
    (folder / name).write_text(text)
    return folder / name


def table(folder: Path, name: str, delimiter: str) -> Path:
    """As Excel on Windows writes it: byte order mark, CRLF; with quotes, and an empty line."""
    with (folder / name).open("w", newline="", encoding="utf-8-sig") as file:
        rows = csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL)
        rows.writerow(["text", "path"])
        rows.writerow([])
        rows.writerows(zip(TEXTS, pictures(folder), strict=True))
    return folder / name


def paddle(folder: Path) -> Path:
    lines = [f"{path}\t{text}\r\n" for path, text in zip(pictures(folder), TEXTS, strict=True)]
    (folder / "rec_gt_train.txt").write_text("".join(lines), encoding="utf-8", newline="")
    return folder / "rec_gt_train.txt"


def coco(folder: Path) -> Path:
    """One box of the sample's class in each picture."""
    sides = dict(zip(("height", "width"), SIDES, strict=True))
    images = [{"id": row, "file_name": path, **sides} for row, path in enumerate(pictures(folder))]
    boxes = [
        {"id": row, "image_id": row, "category_id": ("cat", "dog").index(CLASSES[row]), "bbox": [row % 8, 2, 4, 6]}
        for row in range(COUNT)
    ]
    categories = [{"id": n, "name": name} for n, name in enumerate(("cat", "dog"))]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": categories}))
    return folder / "boxes.json"


def yolo(folder: Path) -> Path:
    pictures(folder)
    (folder / "lines").rename(folder / "images")
    (folder / "labels").mkdir()
    for row in range(COUNT):
        place = ((row % 8 + 2) / SIDES[1], 5 / SIDES[0], 4 / SIDES[1], 6 / SIDES[0])
        text = f"{('cat', 'dog').index(CLASSES[row])} {' '.join(map(str, place))}"
        (folder / "labels" / f"{row}.txt").write_text(text)
    (folder / "classes.txt").write_text("cat\ndog\n")
    return folder


def by_class(folder: Path) -> Path:
    for row in range(COUNT):
        (folder / CLASSES[row]).mkdir(exist_ok=True)
        Image.fromarray(pixels(row)).save(folder / CLASSES[row] / f"{row}.png")
    return folder


def loose(folder: Path) -> Path:
    for row in range(COUNT):
        Image.fromarray(pixels(row)).save(folder / f"{row}.png")
    return folder


def array_file(folder: Path, **y: object) -> Path:
    np.savez(folder / "data.npz", x=np.stack([pixels(row) for row in range(COUNT)]), **y)
    return folder / "data.npz"


def one_array(folder: Path) -> Path:
    np.save(folder / "data.npy", np.stack([pixels(row) for row in range(COUNT)]))
    return folder / "data.npy"


TAGS = [[["a"], ["a", "b"], []][row % 3] for row in range(COUNT)]
NUMBERS = [[row / 3, float(row % 7)] for row in range(COUNT)]


def larger(row: int) -> np.ndarray:
    return pixels(row).repeat(2, 0).repeat(2, 1)


def targets(folder: Path) -> Path:
    path = json_lines(folder, "target", [f"targets/{row}.png" for row in range(COUNT)])
    (folder / "targets").mkdir()
    for row in range(COUNT):
        Image.fromarray(larger(row)).save(folder / "targets" / f"{row}.png")
    return path


def picture_pairs(folder: Path) -> Path:
    for name, draw in (("input", pixels), ("target", larger)):
        (folder / name).mkdir()
        for row in range(COUNT):
            Image.fromarray(draw(row)).save(folder / name / f"{row}.png")
    return folder


def tag_table(folder: Path) -> Path:
    rows = [f"{path},{';'.join(tags) or ';'}" for path, tags in zip(pictures(folder), TAGS, strict=True)]
    (folder / "data.csv").write_text("\n".join(["path,labels", *rows]))
    return folder / "data.csv"


MASK_NAMES = [f"masks/{row}.png" for row in range(COUNT)]


@dataclass(frozen=True)
class Example:
    """How to write data to an empty folder; the form of its targets, and whether it names kinds."""

    write: Callable[[Path], Path]
    form: str
    kinds: bool = False


WHO = [f"person {row // 3}" for row in range(COUNT)]


def pairs(folder: Path, name: str) -> Path:
    """A picture with its neighbour in a group of three, and with one of the next group; groups of twelve are apart."""
    paths, said = pictures(folder), []
    for row in range(COUNT):
        for other in (row + 1, row + 3):
            if row // 12 == other // 12:
                said.append((paths[row], paths[other], row // 3 == other // 3))
    if name.endswith(".csv"):
        with (folder / name).open("w", newline="") as file:
            csv.writer(file).writerows([("path_a", "path_b", "same"), *((a, b, int(same)) for a, b, same in said)])
    elif name.endswith(".txt"):
        (folder / name).write_text("".join(f"{a}\t{b}\t{'same' if same else 'different'}\n" for a, b, same in said))
    else:
        rows = [json.dumps({"path_a": a, "path_b": b, "same": same}) for a, b, same in said]
        (folder / name).write_text("\n".join(rows))
    return folder / name


EXAMPLES = {
    "folder by class": Example(by_class, "classes"),
    "folder": Example(loose, "none"),
    "labels.jsonl": Example(lambda folder: json_lines(folder, "label", CLASSES), "classes", kinds=True),
    "texts.jsonl": Example(lambda folder: json_lines(folder, "text", TEXTS), "texts", kinds=True),
    "masks.jsonl": Example(lambda folder: json_lines(folder, "mask", MASK_NAMES), "masks", kinds=True),
    "identities.jsonl": Example(lambda folder: json_lines(folder, "identity", WHO), "identities", kinds=True),
    "pairs.csv": Example(lambda folder: pairs(folder, "pairs.csv"), "identities"),
    "pairs.txt": Example(lambda folder: pairs(folder, "pairs.txt"), "identities"),
    "pairs.jsonl": Example(lambda folder: pairs(folder, "pairs.jsonl"), "identities"),
    "coco.json": Example(coco, "boxes"),
    "yolo": Example(yolo, "boxes"),
    "tags.jsonl": Example(lambda folder: json_lines(folder, "labels", TAGS), "tags", kinds=True),
    "tags.csv": Example(tag_table, "tags"),
    "tags.npz": Example(
        lambda folder: array_file(
            folder, y=np.array([[int(t in tags) for t in "ab"] for tags in TAGS]), class_names=["a", "b"]
        ),
        "tags",
    ),
    "value.jsonl": Example(lambda folder: json_lines(folder, "value", [n for n, _ in NUMBERS]), "numbers", kinds=True),
    "values.jsonl": Example(lambda folder: json_lines(folder, "values", NUMBERS), "numbers", kinds=True),
    "numbers.npz": Example(lambda folder: array_file(folder, y=np.array(NUMBERS)), "numbers"),
    "targets.jsonl": Example(targets, "pictures", kinds=True),
    "pairs": Example(picture_pairs, "pictures"),
    "pictures.npz": Example(
        lambda folder: array_file(folder, y=np.stack([larger(row) for row in range(COUNT)])), "pictures"
    ),
    "none.jsonl": Example(json_lines, "none", kinds=True),
    "lines.json": Example(lambda folder: json_lines(folder, "text", TEXTS, "data.json"), "texts", kinds=True),
    "list.json": Example(lambda folder: json_lines(folder, "text", TEXTS, "list.json"), "texts", kinds=True),
    "texts.csv": Example(lambda folder: table(folder, "data.csv", ","), "texts"),
    "semicolons.csv": Example(lambda folder: table(folder, "data.csv", ";"), "texts"),
    "texts.tsv": Example(lambda folder: table(folder, "data.tsv", "\t"), "texts"),
    "paddle.txt": Example(paddle, "texts"),
    "classes.npz": Example(
        lambda folder: array_file(folder, y=np.arange(COUNT) % 2, class_names=["cat", "dog"]), "classes"
    ),
    "texts.npz": Example(lambda folder: array_file(folder, y=np.array(TEXTS)), "texts"),
    "masks.npz": Example(lambda folder: array_file(folder, y=np.stack([mask(row) for row in range(COUNT)])), "masks"),
    "none.npz": Example(array_file, "none"),
    "none.npy": Example(one_array, "none"),
}
