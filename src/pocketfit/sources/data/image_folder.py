"""A folder of images -> Listing.

    photos/cat/1.jpg                      classes are folders
    photos/train/cat/1.jpg                with parts: train/, and val/ (valid/, validation/) or test/ or both beside it

Each file is read once: its content is hashed and checked for being a whole image. Decoding happens in threads,
because hashlib, Pillow's decoders and numpy's products let go of the interpreter lock.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.core.support.array_file import FileHashes
from pocketfit.core.support.cpus import usable
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import comparable, readable, some
from pocketfit.sources.data.listing import Listing, Part, counted
from pocketfit.sources.image_preprocess import BadPicture, decode, geometry, open_picture

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
PART_FOLDERS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LAYOUT = "expected are folders by class (cat/1.jpg, dog/2.jpg), or train/, val/ and test/ with such folders inside"
MAX_FILE_BYTES = 2**28
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class Pictures:
    """Reader of image files: `paths` are relative to `root`."""

    root: Path
    paths: tuple[str, ...]

    def read(self, rows: NDArray[np.int64], preprocess: Preprocess) -> Iterator[NDArray[np.uint8]]:
        def picture(row: int) -> NDArray[np.uint8]:
            path = self.root / self.paths[row]
            try:
                return geometry(decode(path, preprocess), preprocess)
            except BadPicture as error:
                raise UserError(f"{error}; it could be read when the data was opened: start again") from error

        with ThreadPoolExecutor(usable()) as pool:
            for start in range(0, len(rows), ROWS_PER_CHUNK):
                yield np.stack(list(pool.map(picture, rows[start : start + ROWS_PER_CHUNK].tolist())))

    def row_shape(self, preprocess: Preprocess) -> tuple[int, ...]:
        return preprocess.height, preprocess.width, preprocess.channels

    def row_dtype(self) -> type[np.uint8]:
        return np.uint8


def read_folder(root: Path, *, cache: Path | None = None, progress: Tick | None = None) -> Listing:
    """All images below `root`, ordered by path. Broken ones are left out, and a finding says so.

    `cache` is a folder where the files' hashes are kept; `progress(done, total)` is called as files are read.
    Raises UserError where there is nothing to learn from.
    """
    root = root.resolve()
    walk = _Walk(root)
    try:
        for part, folder in _parts(root, walk):
            walk.classes(part, folder)
        if not walk.found:
            raise UserError(f"The folder {root} holds no images in class folders{walk.hint()}: {LAYOUT}")
        checked = _checked(root, sorted(walk.found), FileHashes(cache, root), progress)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    broken = {path: why for path, (_, _, why) in checked.items() if why}
    class_names = tuple(sorted(walk.class_names("train")))
    index = {name: place for place, name in enumerate(class_names)}
    if len(class_names) == 1 and (below := sorted(walk.inner)):
        raise UserError(
            f"The folder {root} has the one class folder {class_names[0]}/, and folders in it ({some(below)}): give"
            f" {root / below[0].partition('/')[0]} where those are the classes"
        )
    good = [path for path in checked if path not in broken and walk.found[path][1] in index]
    listing = Listing(
        class_names=class_names,
        names=[readable(path) for path in good],
        contents=[checked[path][1] for path in good],
        labels=np.array([index[walk.found[path][1]] for path in good], np.int64),
        parts=[walk.found[path][0] for path in good],
        reader=Pictures(root, tuple(good)),
    )
    findings = (*walk.findings(), *_about_broken(broken, len(checked)), *_about_classes(walk, listing))
    return replace(listing, findings=findings)


@dataclass
class _Walk:
    """The files below the root, found without opening any. A class is a folder with an image somewhere in it."""

    root: Path
    found: dict[str, tuple[Part, str]] = field(default_factory=dict)  # relative path -> part, class
    inner: set[str] = field(default_factory=set)  # folders with images inside class folders
    bare: list[str] = field(default_factory=list)  # where a class folder is expected, without an image
    no_pictures: list[str] = field(default_factory=list)
    outside_classes: list[str] = field(default_factory=list)
    linked: list[str] = field(default_factory=list)  # class folders that are links, with where they lead
    outward: list[str] = field(default_factory=list)  # links to images that lie elsewhere
    links: list[str] = field(default_factory=list)  # that aren't followed

    def entries(self, folder: Path, *, of_classes: bool = False) -> tuple[list[Path], list[str]]:
        """The folders and the image files in a folder, sorted; hidden ones and bad links are passed over.

        Links to images count as images. Links to folders are followed only where classes are expected, so that no walk
        can go in a circle.
        """
        folders, files = [], []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path = Path(entry.path)
            name = path.relative_to(self.root).as_posix()
            if is_hidden(entry.name):
                continue
            if entry.is_symlink() and not self._follows(path, name, of_classes):
                self.links.append(name)
            elif entry.is_dir():
                folders.append(path)
            elif entry.is_file() and path.suffix.lower() in SUFFIXES:
                files.append(name)
            else:
                self.no_pictures.append(name)
        return folders, files

    def _follows(self, link: Path, name: str, of_classes: bool) -> bool:
        try:
            target = link.resolve(strict=True)
        except (OSError, RuntimeError):  # to nothing, or (RuntimeError up to Python 3.12) in a circle
            return False
        if target.is_dir():
            if not of_classes or self.root.is_relative_to(target):
                return False
            self.linked.append(f"{name} -> {target}")
            return True
        if not target.is_file() or link.suffix.lower() not in SUFFIXES:
            return False
        if not target.is_relative_to(self.root):
            self.outward.append(f"{name} -> {target}")
        return True

    def classes(self, part: Part, folder: Path) -> None:
        class_folders, strays = self.entries(folder, of_classes=True)
        self.outside_classes += strays
        for class_folder in class_folders:
            label, below, empty = class_name(class_folder.name), [class_folder], True
            while below:
                here = below.pop()
                folders, files = self.entries(here)
                below += folders
                self.found.update((name, (part, label)) for name in files)
                empty = empty and not files
                if files and here != class_folder:
                    self.inner.add(here.relative_to(self.root).as_posix())
            if empty:
                self.bare.append(class_folder.relative_to(self.root).as_posix())

    def class_names(self, part: Part) -> set[str]:
        return {label for own, label in self.found.values() if own == part}

    def hint(self) -> str:
        if self.outside_classes:
            return f" (images outside of such folders have no class: {some(self.outside_classes)})"
        if self.links:
            return f" (these links lead to no image, or to a folder inside a class: {some(self.links)})"
        return f" (found instead: {some(self.no_pictures)})" if self.no_pictures else " (it is empty)"

    def findings(self) -> Iterator[str]:
        if self.linked:
            number = counted(len(self.linked), "folder is a link and is", "folders are links and are")
            yield f"{number} read where it leads: {some(self.linked)}"
        if self.outward:
            number = counted(len(self.outward), "image is a link", "images are links")
            yield f"{number} to a file elsewhere, which is read: {some(self.outward)}"
        if self.links:
            number = counted(len(self.links), "link is", "links are")
            yield (
                f"{number} not followed ({some(self.links)}): links to images are, and links in the place of a class"
                " folder"
            )
        if self.no_pictures:
            number = counted(len(self.no_pictures), "file is no image", "files are no images")
            yield f"{number} and ignored: {some(self.no_pictures)}"
        if self.outside_classes:
            number = counted(len(self.outside_classes), "image lies", "images lie")
            yield f"{number} outside the class folders and cannot be used: {some(self.outside_classes)}"
        classes = self.class_names("train")
        if bare := [name for name in self.bare if class_name(name.rpartition("/")[2]) not in classes]:
            number = counted(
                len(bare), "folder holds no image and is no class", "folders hold no image and are no classes"
            )
            yield f"{number}: {some(bare)}"


def is_hidden(name: str) -> bool:
    """Whether an entry is an operating system's own, as ".DS_Store", "._1.jpg", "__MACOSX", "Thumbs.db"."""
    return name.startswith(".") or name.lower() in SYSTEM_NAMES


def class_name(folder_name: str) -> str:
    """The class's name, from its folder's: in Unicode's composed form, printable."""
    return comparable(readable(folder_name)) or repr(folder_name)


def _parts(root: Path, walk: _Walk) -> list[tuple[Part, Path]]:
    """[("train", root)] for a folder by class; else the parts' folders."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    parts = [(PART_FOLDERS[path.name.lower()], path) for path in folders if _is_part(path)]
    if not any(part == "train" for part, _ in parts):
        if parts and len(parts) == len(folders):
            raise UserError(f"The folder {root} has {some([f'{p.name}/' for _, p in parts])} but no train/: {LAYOUT}")
        return [("train", root)]
    for part in PART_FOLDERS.values():
        twice = [path.name for own, path in parts if own == part]
        if len(twice) > 1:
            raise UserError(f"The folder {root} has both {' and '.join(f'{n}/' for n in twice)}: keep one of them")
    for path in folders:
        if path not in [own for _, own in parts]:
            walk.outside_classes += walk.entries(path)[1] or [f"{path.name}/"]
    return parts


def _is_part(path: Path) -> bool:
    """Whether a folder is train/, val/ or test/ with class folders inside; a class may be called so, too."""
    if path.name.lower() not in PART_FOLDERS:
        return False
    return any(entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())


def _checked(
    root: Path, paths: list[str], hashes: FileHashes, progress: Tick | None
) -> dict[str, tuple[os.stat_result, str, str]]:
    """For each path its stat, its content hash, and why it cannot be used ("": it can)."""

    def check(path: str) -> tuple[os.stat_result, str, str]:
        stat = (root / path).stat()
        return stat, *(hashes.get(path, stat) or _check(root / path, stat.st_size))

    checked: dict[str, tuple[os.stat_result, str, str]] = {}
    with ThreadPoolExecutor(usable()) as pool:
        for path, result in zip(paths, pool.map(check, paths), strict=True):
            checked[path] = result
            if progress is not None:
                progress(len(checked), len(paths))
    hashes.save(checked)
    return checked


def _check(path: Path, size_bytes: int) -> tuple[str, str]:
    """The content hash of a file and why it is no whole image ("": it is one)."""
    if size_bytes > MAX_FILE_BYTES:
        return "", f"it has {size_bytes / 1e6:.0f} MB, more than the {MAX_FILE_BYTES / 1e6:.0f} MB that are read"
    if size_bytes == 0:
        return "", "it is empty"
    try:
        data = path.read_bytes()
        with open_picture(io.BytesIO(data)) as image:
            # JPEG only: an eighth of the size in grey. The whole file is read, at a fraction of the time.
            image.draft("L", (max(1, image.width // 8), max(1, image.height // 8)))
            image.load()
    except Exception as error:  # damaged files make Pillow's decoders raise nearly every built-in exception
        return "", str(error) or type(error).__name__
    return hashlib.sha256(data).hexdigest(), ""


def _about_broken(broken: dict[str, str], total: int) -> Iterator[str]:
    if broken:
        number = counted(len(broken), "image")
        verb = "is" if len(broken) == 1 else "are"
        yield (
            f"{number} of {total:,} cannot be read and {verb} left out: "
            + some([f"{path} ({why})" for path, why in broken.items()])
        )


def _about_classes(walk: _Walk, listing: Listing) -> Iterator[str]:
    known = set(listing.class_names)
    unknown = sorted({label for part, label in walk.found.values() if part != "train" and label not in known})
    if unknown:
        pictures = sum(part != "train" and label not in known for part, label in walk.found.values())
        yield (
            f"{counted(len(unknown), 'class is', 'classes are')} missing in train/ but not beside it: {some(unknown)};"
            f" {counted(pictures, 'image is', 'images are')} left out"
        )
    for part in dict.fromkeys(listing.parts):
        rows = Counter(label for label, own in zip(listing.labels.tolist(), listing.parts, strict=True) if own == part)
        empty = [name for index, name in enumerate(listing.class_names) if not rows[index]]
        if empty and part != "train":
            yield f"The {part} part has no images of {counted(len(empty), 'class', 'classes')}: {some(empty)}"
