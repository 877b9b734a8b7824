"""A folder of pictures -> Listing.

    photos/cat/1.jpg                      classes are folders
    photos/train/cat/1.jpg                with parts: train/, and val/ (valid/, validation/) or test/ or both beside it

Each file is read once: its content is hashed and checked for being a whole picture. Decoding happens in threads,
because hashlib, Pillow's decoders and numpy's products let go of the interpreter lock.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.cpus import usable
from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import Preprocess
from pocketfit.sources.cache import FileHashes
from pocketfit.sources.listing import Listing, Part, counted, some
from pocketfit.sources.preprocess import BadPicture, decode, geometry, open_picture

Progress = Callable[[int, int], None]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
PART_FOLDERS: dict[str, Part] = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
LAYOUT = "expected are folders by class (cat/1.jpg, dog/2.jpg), or train/, val/ and test/ with such folders inside"
MAX_FILE_BYTES = 2**28
ROWS_PER_CHUNK = 128


@dataclass(frozen=True)
class Pictures:
    """Reader of picture files: `paths` are relative to `root`."""

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


def read_folder(root: Path, *, cache: Path | None = None, progress: Progress | None = None) -> Listing:
    """All pictures below `root`, ordered by path. Broken ones are left out and said.

    `cache` is a folder where the files' hashes are kept; `progress(done, total)` is called as files are read.
    Raises UserError where there is nothing to learn from.
    """
    root = root.resolve()
    walk = _Walk(root)
    try:
        for part, folder in _parts(root, walk):
            walk.classes(part, folder)
        if not walk.found:
            raise UserError(f"The folder {root} holds no pictures in class folders{walk.hint()}: {LAYOUT}")
        checked = _checked(root, sorted(walk.found), FileHashes(cache, root), progress)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    broken = {path: why for path, (_, _, why) in checked.items() if why}
    class_names = tuple(sorted(name for part, name in walk.class_folders if part == "train"))
    good = [path for path in checked if path not in broken and walk.found[path][1] in class_names]
    listing = Listing(
        class_names=class_names,
        names=good,
        contents=[checked[path][1] for path in good],
        labels=np.array([class_names.index(walk.found[path][1]) for path in good], np.int64),
        parts=[walk.found[path][0] for path in good],
        reader=Pictures(root, tuple(good)),
    )
    findings = (*walk.findings(), *_about_broken(broken, len(checked)), *_about_classes(walk, listing))
    return replace(listing, findings=findings)


@dataclass
class _Walk:
    """What lies below the root, found without opening a file."""

    root: Path
    found: dict[str, tuple[Part, str]] = field(default_factory=dict)  # relative path -> part, class
    class_folders: list[tuple[Part, str]] = field(default_factory=list)
    no_pictures: list[str] = field(default_factory=list)
    outside_classes: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def entries(self, folder: Path) -> tuple[list[Path], list[str]]:
        """The folders and the picture files in a folder, sorted; hidden ones and bad links are passed over."""
        folders, files = [], []
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = Path(entry.path).relative_to(self.root).as_posix()
            if entry.name.startswith("."):
                continue
            if entry.is_symlink() and not _leads_inside(Path(entry.path), self.root):
                self.links.append(name)
            elif entry.is_dir():
                folders.append(Path(entry.path))
            elif entry.is_file() and Path(entry.name).suffix.lower() in SUFFIXES:
                files.append(name)
            else:
                self.no_pictures.append(name)
        return folders, files

    def classes(self, part: Part, folder: Path) -> None:
        class_folders, strays = self.entries(folder)
        self.outside_classes += strays
        for class_folder in class_folders:
            self.class_folders.append((part, class_folder.name))
            below = [class_folder]
            while below:
                folders, files = self.entries(below.pop())
                below += folders
                self.found.update((name, (part, class_folder.name)) for name in files)

    def hint(self) -> str:
        if self.outside_classes:
            return f" (pictures outside of such folders have no class: {some(self.outside_classes)})"
        if self.links:
            return f" (links to folders and out of the folder are not followed: {some(self.links)})"
        return f" (found instead: {some(self.no_pictures)})" if self.no_pictures else " (it is empty)"

    def findings(self) -> Iterator[str]:
        if self.no_pictures:
            number = counted(len(self.no_pictures), "file is no picture", "files are no pictures")
            yield f"{number} and ignored: {some(self.no_pictures)}"
        if self.outside_classes:
            number = counted(len(self.outside_classes), "picture lies", "pictures lie")
            yield f"{number} outside the class folders and cannot be used: {some(self.outside_classes)}"
        if self.links:
            number = counted(len(self.links), "link is", "links are")
            yield f"{number} not followed, only links to files inside the folder are: {some(self.links)}"


def _leads_inside(link: Path, root: Path) -> bool:
    """Whether a link leads to a file below the root."""
    try:
        target = link.resolve(strict=True)
    except (OSError, RuntimeError):  # to nothing, or (RuntimeError up to Python 3.12) in a circle
        return False
    return target.is_relative_to(root) and target.is_file()


def _parts(root: Path, walk: _Walk) -> list[tuple[Part, Path]]:
    """[("train", root)] for a folder by class; else the parts' folders."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    parts = [path for path in folders if path.name in PART_FOLDERS and _holds_folders(path)]
    if not any(path.name == "train" for path in parts):
        if parts and len(parts) == len(folders):
            raise UserError(f"The folder {root} has {some([f'{p.name}/' for p in parts])} but no train/: {LAYOUT}")
        return [("train", root)]
    twice = [path.name for path in parts if PART_FOLDERS[path.name] == "val"]
    if len(twice) > 1:
        raise UserError(f"The folder {root} has both {' and '.join(f'{n}/' for n in twice)}: keep one of them")
    outside = [path for path in parts if path.is_symlink()]
    if outside:
        raise UserError(f"{outside[0]} is a link: give a folder in which train/, val/ and test/ are real folders")
    for path in folders:
        if path not in parts:
            walk.outside_classes += walk.entries(path)[1] or [f"{path.name}/"]
    return [(PART_FOLDERS[path.name], path) for path in parts]


def _holds_folders(path: Path) -> bool:
    return any(entry.is_dir() and not entry.name.startswith(".") for entry in list(os.scandir(path)))


def _checked(
    root: Path, paths: list[str], hashes: FileHashes, progress: Progress | None
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
    """The content hash of a file and why it is no whole picture ("": it is one)."""
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
        number = counted(len(broken), "picture")
        verb = "is" if len(broken) == 1 else "are"
        yield (
            f"{number} of {total:,} cannot be read and {verb} left out: "
            + some([f"{path} ({why})" for path, why in broken.items()])
        )


def _about_classes(walk: _Walk, listing: Listing) -> Iterator[str]:
    unknown = sorted({name for part, name in walk.class_folders if part != "train"} - set(listing.class_names))
    if unknown:
        pictures = sum(part != "train" and name in unknown for part, name in walk.found.values())
        yield (
            f"{counted(len(unknown), 'class is', 'classes are')} missing in train/ but not beside it: {some(unknown)};"
            f" {counted(pictures, 'picture is', 'pictures are')} left out"
        )
    for part in dict.fromkeys(listing.parts):
        rows = [label for label, other in zip(listing.labels.tolist(), listing.parts, strict=True) if other == part]
        empty = [name for index, name in enumerate(listing.class_names) if not Counter(rows)[index]]
        if empty and part != "train":
            yield f"The {part} part has no pictures of {counted(len(empty), 'class', 'classes')}: {some(empty)}"
