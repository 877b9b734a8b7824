"""A folder of images or of recordings -> Listing.

photos/cat/1.jpg                      classes are folders
photos/train/cat/1.jpg                with parts: train/, and val/ (valid/, validation/) or test/ or both beside it
photos/1.jpg                          images without labels, where no folder beside them holds any
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pocketfit.core.errors import UserError
from pocketfit.core.support.array_file import FileHashes
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import comparable, readable, some
from pocketfit.sources.data.listing import NO_LABEL, Listing, Part, counted
from pocketfit.sources.data.picture_files import SUFFIXES, about_broken, checked, reader_of, word_for

SYSTEM_NAMES = {"__macosx", "thumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "system volume information"}
PART_FOLDERS: dict[str, Part] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LAYOUT = (
    "expected are folders by class (cat/1.jpg, dog/2.jpg), or train/, val/ and test/ with such folders inside, or"
    " images alone, without labels"
)
NO_LABELS = "The {}s lie in no class folders: they have no labels."


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
        if not walk.found and walk.loose:
            walk.found, walk.outside_classes = dict.fromkeys(walk.loose, ("train", "")), []
        if not walk.found:
            raise UserError(f"The folder {root} holds no images in class folders{walk.hint()}: {LAYOUT}")
        known = checked(root, sorted(walk.found), FileHashes(cache, root), progress)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read: {error.strerror or error}") from error
    broken = {path: why for path, (_, _, why) in known.items() if why}
    class_names = tuple(sorted(walk.class_names("train") - {""}))
    index = {name: place for place, name in enumerate(class_names)} or {"": NO_LABEL}
    if len(class_names) == 1 and (below := sorted(walk.inner)):
        raise UserError(
            f"The folder {root} has the one class folder {class_names[0]}/, and folders in it ({some(below)}): give"
            f" {root / below[0].partition('/')[0]} where those are the classes"
        )
    sound = {path: known[path][1] for path in known if path not in broken}
    listing = _listing(walk, sound, index, class_names)
    remarks = _about_classes(walk, listing) if class_names else [NO_LABELS.format(walk.word)]
    findings = (*walk.findings(), *about_broken(broken, len(known)))
    whole = None
    every = tuple(sorted({walk.found[path][1] for path in sound}))
    if class_names and every != class_names:
        indices = {name: place for place, name in enumerate(every)}
        whole = replace(_listing(walk, sound, indices, every), findings=findings)
    return replace(listing, findings=(*findings, *remarks), whole=whole)


def _listing(walk: _Walk, sound: dict[str, str], index: dict[str, int], class_names: tuple[str, ...]) -> Listing:
    """The pictures (relative path -> sha256) of these classes."""
    good = [path for path in sound if walk.found[path][1] in index]
    return Listing(
        class_names=class_names,
        names=[readable(path) for path in good],
        contents=[sound[path] for path in good],
        labels=np.array([index[walk.found[path][1]] for path in good], np.int64),
        parts=[walk.found[path][0] for path in good],
        reader=reader_of(walk.root, good),
    )


@dataclass
class _Walk:
    """The files below the root, found without opening any. A class is a folder with an image somewhere in it."""

    root: Path
    found: dict[str, tuple[Part, str]] = field(default_factory=dict)  # relative path -> part, class
    inner: set[str] = field(default_factory=set)  # folders with images inside class folders
    bare: list[str] = field(default_factory=list)  # where a class folder is expected, without an image
    no_pictures: list[str] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)  # images directly in the root, beside its class folders
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
        if folder == self.root:
            self.loose += strays
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

    @property
    def word(self) -> str:
        """What the files are called in sentences."""
        return word_for(self.found)

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
            number = counted(len(self.outward), f"{self.word} is a link", f"{self.word}s are links")
            yield f"{number} to a file elsewhere, which is read: {some(self.outward)}"
        if self.links:
            number = counted(len(self.links), "link is", "links are")
            yield (
                f"{number} not followed ({some(self.links)}): links to {self.word}s are, and links in the place of a"
                " class folder"
            )
        if self.no_pictures:
            number = counted(len(self.no_pictures), f"file is no {self.word}", f"files are no {self.word}s")
            yield f"{number} and ignored: {some(self.no_pictures)}"
        if self.outside_classes:
            number = counted(len(self.outside_classes), f"{self.word} lies", f"{self.word}s lie")
            yield f"{number} outside the class folders and cannot be used: {some(self.outside_classes)}"
        classes = self.class_names("train")
        if bare := [name for name in self.bare if class_name(name.rpartition("/")[2]) not in classes]:
            number = counted(
                len(bare),
                f"folder holds no {self.word} and is no class",
                f"folders hold no {self.word} and are no classes",
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


def _about_classes(walk: _Walk, listing: Listing) -> Iterator[str]:
    known = set(listing.class_names)
    if all(name.lower() in PART_FOLDERS for name in known):
        yield (
            f"The folders {some([f'{name}/' for name in listing.class_names])} hold {walk.word}s and no class folders:"
            " they are taken for classes; where they are parts of data without labels, give a manifest with path and"
            " split"
        )
    unknown = sorted({label for part, label in walk.found.values() if part != "train" and label not in known})
    if unknown:
        pictures = sum(part != "train" and label not in known for part, label in walk.found.values())
        yield (
            f"{counted(len(unknown), 'class is', 'classes are')} missing in train/ but not beside it: {some(unknown)};"
            f" {counted(pictures, f'{walk.word} is', f'{walk.word}s are')} left out"
        )
    for part in dict.fromkeys(listing.parts):
        rows = Counter(label for label, own in zip(listing.labels.tolist(), listing.parts, strict=True) if own == part)
        empty = [name for index, name in enumerate(listing.class_names) if not rows[index]]
        if empty and part != "train":
            yield f"The {part} part has no {walk.word}s of {counted(len(empty), 'class', 'classes')}: {some(empty)}"
