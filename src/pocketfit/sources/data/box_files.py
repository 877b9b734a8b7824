"""Annotations of boxes -> Listing. Nothing outside the given folder is opened.

annotations.json                                      COCO's JSON beside its pictures (or beside their folder images/)
annotations/instances_train2017.json, train2017/ …    COCO's folders; parts by the names of the files
train/_annotations.coco.json, valid/ …                the same, a file in each part
images/ … labels/ … (.txt), classes.txt               YOLO's: class, centre x, centre y, width, height as shares
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.array_file import FileHashes
from pocketfit.core.support.cpus import usable
from pocketfit.core.support.json_file import load, read_bytes, text_of
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.rules import shown
from pocketfit.core.support.text import comparable, readable, some
from pocketfit.sources.data.listing import NO_LABEL, Boxes, Listing, Part, counted
from pocketfit.sources.data.manifest import Folder
from pocketfit.sources.data.manifest_rows import PARTS
from pocketfit.sources.data.picture_files import SUFFIXES, Pictures, about_broken, checked
from pocketfit.sources.data.targets.masks import upright_size
from pocketfit.sources.image_preprocess import BadPicture, placed

MOST_BYTES = 2**30  # of annotations: those of COCO's training part have 450 MB
MOST_BOXES = 10_000  # of a picture
FIRST_KEY = re.compile(rb'\s*\{\s*"(images|annotations|categories|info|licenses)"\s*:')
COCO_NAMES = ("annotations/*.json", "*/_annotations.coco.json", "_annotations.coco.json")
COCO_KIND = re.compile("^(captions|person_keypoints|stuff|panoptic|image_info)_")  # COCO's files without boxes
PAD = -1.0
LEAST_SHARE = 0.1  # of a box's area that must be left in the network's input; with less, the box is left out
Kind = Literal["coco", "yolo"]


@dataclass(frozen=True)
class Found:
    """Annotations of one kind below a folder; the files are relative to it."""

    kind: Kind
    root: Path
    files: tuple[str, ...]


@dataclass(frozen=True)
class Picture:
    """One annotated picture.

    rows    float64 [k, 6]: x1, y1, x2, y2, class, crowd, in pixels, or as shares of width and height
    size    (height, width) that the annotations state, None where they state none
    place   for sentences
    """

    path: str
    part: Part
    rows: NDArray[np.float64]
    place: str
    size: tuple[int, int] | None = None
    shares: bool = False


def found(path: Path) -> Found | None:
    """The annotations of boxes that a path stands for; None where it is something else."""
    if path.is_file():
        if path.suffix.lower() != ".json":
            return None
        with path.open("rb") as file:
            return Found("coco", path.parent, (path.name,)) if FIRST_KEY.match(file.read(4096)) else None
    if not path.is_dir():
        return None
    for pattern in COCO_NAMES:
        names = sorted(p.relative_to(path).as_posix() for p in path.glob(pattern) if not COCO_KIND.match(p.name))
        if names:
            return Found("coco", path, tuple(names))
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return Found("yolo", path, tuple(sorted(p.relative_to(path).as_posix() for p in path.glob("labels/**/*.txt"))))
    return None


def read(what: Found, *, cache: Path | None = None, progress: Tick | None = None) -> Listing:
    """The annotated pictures. What cannot be read is left out, and a finding says so. Raises UserError."""
    folder = Folder(Path(os.path.realpath(what.root)))
    names, pictures = _coco(what, folder) if what.kind == "coco" else _yolo(what, folder)
    try:
        paths = {picture.path for picture in pictures}
        broken = {name: why for name in sorted(paths) if (why := folder.why_not(name))}
        key = what.root.absolute() / (what.files[0] if what.files else "labels")
        known = checked(folder.root, sorted(paths - broken.keys()), FileHashes(cache, key), progress)
    except OSError as error:
        raise UserError(f"{error.filename or what.root} cannot be read: {error.strerror or error}") from error
    broken |= {name: why for name, (_, _, why) in known.items() if why}
    whole = [picture for picture in pictures if picture.path not in broken]
    if not whole:
        first = next(iter(broken), "")
        example = f", for example {readable(first)} ({broken[first]})" if first else ""
        raise UserError(f"None of the {counted(len(paths), 'picture')} that {what.root} annotates can be read{example}")
    findings = list(about_broken({readable(name): why for name, why in broken.items()}, len(paths)))
    good, boxes, remarks = _placed(whole, folder.root, names)
    return Listing(
        class_names=names,
        names=[readable(picture.path) for picture in good],
        contents=[known[picture.path][1] for picture in good],
        labels=np.full(len(good), NO_LABEL, np.int64),
        parts=[picture.part for picture in good],
        reader=Pictures(folder.root, tuple(picture.path for picture in good)),
        findings=(*findings, *remarks),
        boxes=boxes,
    )


def _placed(
    pictures: Sequence[Picture], root: Path, names: Sequence[str]
) -> tuple[list[Picture], list[Boxes], list[str]]:
    """(pictures whose size is as stated, their boxes cut at the edges, sentences)."""
    with ThreadPoolExecutor(usable()) as pool:
        sizes = list(pool.map(lambda picture: _size(root / picture.path), pictures))
    good: list[Picture] = []
    boxes: list[Boxes] = []
    other, outside, total = [], [], 0
    for picture, size in zip(pictures, sizes, strict=True):
        if picture.size not in (None, size):
            assert picture.size is not None
            stated, real = (f"{width} x {height}" for height, width in (picture.size, size))
            other.append(f"{readable(picture.path)} (stated {stated}, is {real})")
            continue
        height, width = size
        rows = picture.rows * (width, height, width, height, 1, 1) if picture.shares else picture.rows.copy()
        total += len(rows)
        beyond = rows[:, :4] - rows[:, :4].clip(0, (width, height, width, height))
        rows[:, :4] -= beyond
        empty = (rows[:, 2:4] <= rows[:, :2]).any(axis=1)
        outside += [f"{picture.place}, box {n + 1}" for n in np.flatnonzero(empty)]
        good.append(picture)
        boxes.append(Boxes(size, rows[~empty]))
    findings = []
    if other:
        if not good:
            raise UserError(f"No picture has the size that the annotations state, for example {other[0]}: mend them")
        verb = "has another size than stated and is" if len(other) == 1 else "have another size than stated and are"
        findings.append(f"{counted(len(other), 'picture')} of {len(pictures):,} {verb} left out: {some(other)}")
    if outside:
        if len(outside) == total:
            raise UserError(
                f"No box lies in its picture, the first is {outside[0]}: COCO's boxes are [left, top, width, height] in"
                " pixels, YOLO's are centre and size as shares of the picture"
            )
        verb = "is left out: it lies" if len(outside) == 1 else "are left out: they lie"
        findings.append(
            f"{counted(len(outside), 'box', 'boxes')} of {total:,} {verb} outside the picture, or cover nothing:"
            f" {some(outside)}"
        )
    seen = {int(label) for one in boxes for label in one.rows[:, 4]}
    if not seen:
        raise UserError("The annotations hold no box: give pictures with objects")
    if missing := [name for label, name in enumerate(names) if label not in seen]:
        findings.append(f"{counted(len(missing), 'class has', 'classes have')} no boxes: {some(missing)}")
    return good, boxes, findings


def _size(path: Path) -> tuple[int, int]:
    try:
        return upright_size(path)
    except BadPicture as error:
        raise UserError(f"{path}: {error}") from error


# In pixels of the network's input ------------------------------------------------------------------------------------


def box_targets(given: Sequence[Boxes], preprocess: Preprocess) -> NDArray[np.float32]:
    """float32 [n, k, 6]: x1, y1, x2, y2, class, crowd, cut at the edges of the input; rows of -1 behind. k is that of
    the picture with most boxes, at least 1."""
    moved = [_moved(boxes, preprocess) for boxes in given]
    found = np.full((len(given), max(map(len, moved), default=0) or 1, 6), PAD, np.float32)
    for row, boxes in enumerate(moved):
        found[row, : len(boxes)] = boxes
    return found


def _moved(boxes: Boxes, preprocess: Preprocess) -> NDArray[np.float64]:
    down, across, top, left = placed(*boxes.size, preprocess)
    found = boxes.rows.copy()
    found[:, 0:4:2] = found[:, 0:4:2] * across + left
    found[:, 1:4:2] = found[:, 1:4:2] * down + top
    whole = _areas(found)
    found[:, 0:4:2] = found[:, 0:4:2].clip(0, preprocess.width)
    found[:, 1:4:2] = found[:, 1:4:2].clip(0, preprocess.height)
    return found[_areas(found) > LEAST_SHARE * whole]


def _areas(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    areas: NDArray[np.float64] = (rows[:, 2:4] - rows[:, :2]).prod(axis=1)
    return areas


# COCO ----------------------------------------------------------------------------------------------------------------


def _coco(what: Found, folder: Folder) -> tuple[tuple[str, ...], list[Picture]]:
    names: tuple[str, ...] = ()
    found: list[Picture] = []
    for file in what.files:
        path = folder.root / file
        data = load(path, "annotations", "COCO's JSON is expected", most_bytes=MOST_BYTES)
        reader = _Coco(path, data)
        if names and reader.names != names:
            raise UserError(f"{path} names other categories than {what.files[0]}: give files with the same")
        names = reader.names
        part = _part(file) if len(what.files) > 1 or "/" in file else "train"
        for picture in reader.pictures(part):
            found.append(replace(picture, path=_beside(picture.path, file, folder.root)))
    twice = (
        [picture for picture in found if sum(p.path == picture.path for p in found) > 1]
        if len({p.path for p in found}) < len(found)
        else []
    )
    if twice:
        raise UserError(f"{what.root}: the picture {readable(twice[0].path)} stands twice in the annotations")
    return names, found


def _part(file: str) -> Part:
    """train, val or test, by the first of these words in the name of the file or its folder."""
    for word in re.findall("[a-z]+", file.lower()):
        if word in PARTS:
            return PARTS[word]
    return "train"


def _beside(name: str, file: str, root: Path) -> str:
    """Where the picture lies below the root, by the name that an annotation file has for it."""
    folder, stem = file.rpartition("/")[0], Path(file).stem.removeprefix("instances_")
    places = [folder, f"{folder}/images", stem, f"images/{stem}", "images", ""]
    tried = [f"{place.strip('/')}/{name}".strip("/") for place in places]
    return next((path for path in tried if os.path.lexists(f"{root}/{path}")), tried[0])


class _Coco:
    """The content of one of COCO's files. Raises UserError that names the file and the entry."""

    def __init__(self, path: Path, data: Any) -> None:
        self.path = path
        if not isinstance(data, dict):
            raise UserError(f"{path} holds {shown(data)}: COCO's JSON is an object")
        self.entries: dict[str, list[dict[str, Any]]] = {}
        for key in ("images", "annotations", "categories"):
            if not isinstance(data.get(key), list) or not all(isinstance(one, dict) for one in data[key]):
                raise UserError(f"{path} has no list '{key}' of objects, which COCO's JSON has")
            self.entries[key] = data[key]
        known = {self._number(one, "id", "category", n): one for n, one in enumerate(self.entries["categories"], 1)}
        self.index = {number: place for place, number in enumerate(sorted(known))}
        self.names = tuple(comparable(readable(self._word(known[n], "name", "category", n))) for n in sorted(known))
        if not self.names or len(set(self.names)) < len(self.names) or len(known) < len(self.entries["categories"]):
            raise UserError(f"{path}: 'categories' is empty, or holds an id or a name twice")

    def pictures(self, part: Part) -> Iterator[Picture]:
        images: dict[int, dict[str, Any]] = {}
        for n, one in enumerate(self.entries["images"], 1):
            number = self._number(one, "id", "image", n)
            if number in images:
                raise UserError(f"{self.path}: two images have the id {number}")
            images[number] = one
        rows: dict[int, list[list[float]]] = {number: [] for number in images}
        for n, one in enumerate(self.entries["annotations"], 1):
            number, label = (self._number(one, key, "annotation", n) for key in ("image_id", "category_id"))
            if number not in images:
                raise UserError(f"{self.path}, annotation {n}: there is no image with the id {number}")
            if label not in self.index:
                raise UserError(f"{self.path}, annotation {n}: there is no category with the id {label}")
            rows[number].append([*self._box(one, n), self.index[label], float(one.get("iscrowd") in (1, True))])
            if len(rows[number]) > MOST_BOXES:
                raise UserError(f"{self.path}: the image with the id {number} has more than {MOST_BOXES:,} boxes")
        for n, (number, image) in enumerate(images.items(), 1):
            name = inside(self._word(image, "file_name", "image", n), f"{self.path}, image {n}")
            sides = [image.get("height"), image.get("width")]
            stated = all(isinstance(side, int) for side in sides)
            yield Picture(
                path=name,
                part=part,
                rows=np.array(rows[number], np.float64).reshape(-1, 6),
                place=readable(name),
                size=(int(sides[0] or 0), int(sides[1] or 0)) if stated else None,
            )

    def _box(self, one: dict[str, Any], n: int) -> list[float]:
        """x1, y1, x2, y2 from COCO's [left, top, width, height]."""
        box = one.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(_is_length(side) for side in box):
            raise UserError(f"{self.path}, annotation {n}: 'bbox' is {shown(box)}: give [left, top, width, height]")
        left, top, width, height = map(float, box)
        return [left, top, left + width, top + height]

    def _number(self, one: dict[str, Any], key: str, kind: str, n: int) -> int:
        value = one.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"{self.path}, {kind} {n}: '{key}' is {shown(value)}: give a whole number")
        return value

    def _word(self, one: dict[str, Any], key: str, kind: str, n: int) -> str:
        value = one.get(key)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{self.path}, {kind} {n}: '{key}' is {shown(value)}: give a text")
        return value


def _is_length(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6


def inside(name: str, place: str) -> str:
    """A relative path with "/" that does not lead out of its folder. Raises UserError that names the place."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]
    if name[:1] in ("/", "\\") or re.match("[A-Za-z]:", name) or ".." in parts or "\0" in name or not parts:
        raise UserError(f"{place}: {shown(name)} is no path below the folder of the data")
    return "/".join(parts)


# YOLO ----------------------------------------------------------------------------------------------------------------


def _yolo(what: Found, folder: Folder) -> tuple[tuple[str, ...], list[Picture]]:
    """A picture without a text file has no boxes, as Ultralytics has it."""
    root = folder.root
    names: tuple[str, ...] = ()
    listed = next((root / n for n in ("classes.txt", "labels/classes.txt") if (root / n).is_file()), None)
    if listed is not None:
        names = tuple(
            comparable(readable(line))
            for line in text_of(read_bytes(listed, "classes"), str(listed)).split("\n")
            if line.strip()
        )
    found, highest = [], -1
    for path in sorted((root / "images").glob("**/*")):
        if path.suffix.lower() not in SUFFIXES:
            continue
        name = path.relative_to(root).as_posix()
        text = f"labels/{name.removeprefix('images/').rpartition('.')[0]}.txt"
        rows: list[list[float]] = []
        if os.path.lexists(root / text):
            if why := folder.why_not(text):
                raise UserError(f"{what.root / text} cannot be read: {why}")
            rows = list(_yolo_rows(what.root / text))
        highest = max([highest, *(int(row[4]) for row in rows)])
        if names and highest >= len(names):
            raise UserError(f"{what.root / text} names the class {highest}, and {listed} has {len(names)}")
        found.append(
            Picture(
                path=name,
                part=_part(name.removeprefix("images/")) if "/" in name.removeprefix("images/") else "train",
                rows=np.array(rows, np.float64).reshape(-1, 6),
                place=readable(text),
                shares=True,
            )
        )
    return names or tuple(map(str, range(highest + 1))), found


def _yolo_rows(path: Path) -> Iterator[list[float]]:
    for number, line in enumerate(text_of(read_bytes(path, "labels"), str(path)).split("\n"), 1):
        words = line.split()
        if not words:
            continue
        try:
            label, (x, y, width, height) = int(words[0]), map(float, words[1:5])
            sound = len(words) == 5 and 0 <= label < MOST_BOXES and all(0 <= v <= 1 for v in (x, y, width, height))
        except ValueError:
            sound = False
        if not sound or number > MOST_BOXES:
            raise UserError(
                f"{path}, line {number} is {shown(line.strip())}: write a class and centre x, centre y, width and"
                " height as shares of the picture, from 0 to 1"
            )
        yield [x - width / 2, y - height / 2, x + width / 2, y + height / 2, label, 0.0]
