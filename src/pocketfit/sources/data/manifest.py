"""A manifest of pictures or recordings -> Listing. Nothing outside the manifest's own folder is opened.

manifest_rows.py reads the text; here the pictures and masks that it names are found and checked.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.support.array_file import FileHashes
from pocketfit.core.support.cpus import usable
from pocketfit.core.support.progress import Tick
from pocketfit.core.support.text import readable, some
from pocketfit.sources.data import pairs_file
from pocketfit.sources.data.listing import NO_LABEL, Listing, counted, with_identities
from pocketfit.sources.data.manifest_rows import PARTS, Row, Rows, read_rows
from pocketfit.sources.data.picture_files import about_broken, checked, reader_of
from pocketfit.sources.data.targets import masks
from pocketfit.sources.data.targets.target_pictures import Target, TargetFiles, checked_target, same_times


def read_manifest(path: Path, *, cache: Path | None = None, progress: Tick | None = None) -> Listing:
    """The pictures that a manifest names, in its order. What cannot be read is left out, and a finding says so.

    `cache` is a folder where the files' hashes are kept; `progress(done, total)` is called as files are read.
    Raises UserError.
    """
    if pairs_file.is_pairs_file(path):
        return _with_pairs(path, cache, progress)
    return read_named(path, path.parent, read_rows(path), cache=cache, progress=progress)


def read_named(
    path: Path, inside: Path, said: Rows, *, cache: Path | None = None, progress: Tick | None = None
) -> Listing:
    """The pictures of these rows, which `path` names; they lie below the folder `inside`. Raises UserError."""
    if not said.rows:
        raise UserError(f"{path} names no picture: write one row for each")
    rows = [row for row in said.rows if row.target] if said.target else said.rows
    findings = [*said.findings, *_about_rows(said, len(rows))]
    folder = Folder(Path(os.path.realpath(inside)))
    try:
        named = {row.path for row in rows}
        broken = {name: why for name in sorted(named) if (why := folder.why_not(name))}
        known = checked(folder.root, sorted(named - broken.keys()), FileHashes(cache, path.absolute()), progress)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    broken |= {name: why for name, (_, _, why) in known.items() if why}
    findings += about_broken({readable(name): why for name, why in broken.items()}, len(named))
    rows = [row for row in rows if row.path not in broken]
    if not rows:
        first = next(iter(broken))
        raise UserError(
            f"None of the {counted(len(named), 'picture')} that {path} names can be read, for example {readable(first)}"
            f" ({broken[first]}): paths are relative to the folder of the manifest"
        )
    contents = {name: sha256 for name, (_, sha256, _) in known.items()}
    if said.target in ("mask", "target"):
        with_files = _with_masks if said.target == "mask" else _with_pictures
        return with_files(path, folder, rows, contents, findings)
    learned = [row for row in rows if row.part == "train"] or rows  # without any, the Dataset is refused
    class_names = tuple(sorted({row.target for row in learned})) if said.target == "label" else ()
    index = {name: place for place, name in enumerate(class_names)}
    if class_names:
        kept = [row for row in rows if row.target in index]
        findings += _about_unknown(kept, rows)
        rows = kept
    listing = _listing(folder, rows, contents, [*findings, *([] if said.target else [f"{path.name} has no targets."])])
    if class_names:
        return replace(listing, class_names=class_names, labels=np.array([index[row.target] for row in rows], np.int64))
    return _with_targets(listing, said.target, [row.target for row in rows])


def _with_targets(listing: Listing, kind: str, targets: Sequence[str]) -> Listing:
    """The listing with targets that are no files and no classes; `kind` is that of Rows."""
    if kind == "identity":
        return with_identities(listing, targets)
    if kind == "labels":
        tags = [json.loads(target) for target in targets]
        names = tuple(sorted({tag for own in tags for tag in own}))
        place = {name: number for number, name in enumerate(names)}
        values = np.zeros((len(tags), len(names)), np.int8)
        for row, own in zip(values, tags, strict=True):
            row[[place[tag] for tag in own]] = 1
        return replace(listing, class_names=names, values=values)
    if kind == "values":
        return replace(listing, values=np.array([json.loads(target) for target in targets], np.float32))
    return replace(listing, texts=targets) if kind == "text" else listing


def _listing(folder: Folder, rows: Sequence[Row], contents: dict[str, str], findings: Sequence[str]) -> Listing:
    """The rows without their targets."""
    kinds = [row.kind for row in rows]
    return Listing(
        class_names=(),
        names=[readable(row.path) for row in rows],
        contents=[contents[row.path] for row in rows],
        labels=np.full(len(rows), NO_LABEL, np.int64),
        parts=[row.part for row in rows],
        reader=reader_of(folder.root, [row.path for row in rows]),
        findings=tuple(findings),
        kinds=kinds if any(kinds) else (),
    )


def _with_pairs(path: Path, cache: Path | None, progress: Tick | None) -> Listing:
    """The pictures of a file of pairs, each once; pairs with a picture that can't be read are left out."""
    pairs = pairs_file.read_pairs(path)
    parts: dict[str, tuple[str, int]] = {}
    for pair in pairs:
        for name in (pair.one, pair.other):
            part, first = parts.setdefault(name, (pair.part, pair.place))
            if part != pair.part:
                raise UserError(
                    f"{path}, line {pair.place}: {readable(name)} is in another split than in line {first}: pictures of"
                    " the test are in no other pair"
                )
    folder = Folder(Path(os.path.realpath(path.parent)))
    names = sorted(parts)
    broken = {name: why for name in names if (why := folder.why_not(name))}
    try:
        known = checked(
            folder.root, [n for n in names if n not in broken], FileHashes(cache, path.absolute()), progress
        )
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from error
    broken |= {name: why for name, (_, _, why) in known.items() if why}
    names = [name for name in names if name not in broken]
    if not names:
        first_name = next(iter(broken))
        raise UserError(
            f"None of the {counted(len(broken), 'picture')} that {path} names can be read, for example"
            f" {readable(first_name)} ({broken[first_name]}): paths are relative to the folder of the file"
        )
    rows = [Row(0, name, "", PARTS[parts[name][0]], "") for name in names]
    listing = _listing(folder, rows, {name: known[name][1] for name in names}, ())
    said = about_broken({readable(name): why for name, why in broken.items()}, len(parts))
    return pairs_file.with_pairs(replace(listing, findings=tuple(said)), names, pairs)


def _with_masks(
    path: Path, folder: Folder, rows: Sequence[Row], contents: dict[str, str], findings: list[str]
) -> Listing:
    def check(row: Row) -> masks.Mask | str:
        if why := folder.why_not(row.target):
            return why
        mask = folder.root / row.target
        return masks.checked_mask(mask, mask.stat().st_size, folder.root / row.path)

    with ThreadPoolExecutor(usable()) as pool:
        found = list(zip(rows, pool.map(check, rows), strict=True))
    good = [(row, mask) for row, mask in found if isinstance(mask, masks.Mask)]
    bad = [f"{readable(row.target)} ({why})" for row, why in found if isinstance(why, str)]
    if not good:
        raise UserError(f"None of the {counted(len(bad), 'mask')} that {path} names can be used, for example {bad[0]}")
    if bad:
        verb = "is left out with its picture" if len(bad) == 1 else "are left out with their pictures"
        findings = [*findings, f"{counted(len(bad), 'mask')} of {len(rows):,} cannot be used and {verb}: {some(bad)}"]
    highest, white_is_one = masks.what_they_mean(_any([mask.values for _, mask in good]))
    listing = _listing(
        folder, [row for row, _ in good], contents, [*findings, *([masks.WHITE_IS_ONE] if white_is_one else [])]
    )
    reader = masks.MaskFiles(
        folder.root,
        tuple(row.target for row, _ in good),
        masks.identities((mask.content for _, mask in good), white_is_one),
        highest,
        white_is_one,
    )
    return replace(listing, masks=reader)


def _with_pictures(
    path: Path, folder: Folder, rows: Sequence[Row], contents: dict[str, str], findings: list[str]
) -> Listing:
    def check(row: Row) -> Target | str:
        return folder.why_not(row.target) or checked_target(folder.root / row.target, folder.root / row.path)

    with ThreadPoolExecutor(usable()) as pool:
        found = list(zip(rows, pool.map(check, rows), strict=True))
    good = [(row, target) for row, target in found if isinstance(target, Target)]
    bad = [f"{readable(row.target)} ({why})" for row, why in found if isinstance(why, str)]
    if not good:
        raise UserError(f"None of the {counted(len(bad), 'target')} of {path} can be used, for example {bad[0]}")
    if bad:
        verb = "is left out with its picture" if len(bad) == 1 else "are left out with their pictures"
        findings = [*findings, f"{counted(len(bad), 'target')} of {len(rows):,} cannot be used and {verb}: {some(bad)}"]
    reader = TargetFiles(
        folder.root,
        tuple(row.target for row, _ in good),
        [target.content for _, target in good],
        same_times(path, [target for _, target in good]),
    )
    return replace(_listing(folder, [row for row, _ in good], contents, findings), pictures=reader)


def _any(values: Sequence[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    seen: NDArray[np.bool_] = np.logical_or.reduce(values)
    return seen


@dataclass
class Folder:
    """The folder of a manifest, all of its links followed, and what of it may be opened."""

    root: Path
    sound: dict[str, bool] = field(default_factory=dict)  # folders below -> whether they lie inside, links followed

    def why_not(self, name: str) -> str:
        """Why the file by this relative path is not opened; "": it is a plain file that lies inside."""
        path, folder = f"{self.root}/{name}", name.rpartition("/")[0]  # as texts: a million take seconds
        try:
            if folder not in self.sound:
                self.sound[folder] = self._is_inside(f"{self.root}/{folder}")
            found = os.lstat(path)
            outside = not self.sound[folder]
            if stat.S_ISLNK(found.st_mode):
                outside, found = outside or not self._is_inside(path), Path(path).stat()
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            missing = isinstance(error, ValueError | FileNotFoundError | NotADirectoryError)
            return "it does not exist" if missing else getattr(error, "strerror", None) or str(error)
        if outside:
            return "it is a link that leads out of the folder of the manifest"
        return "" if stat.S_ISREG(found.st_mode) else "it is no file"

    def _is_inside(self, path: str) -> bool:
        return Path(os.path.realpath(path)).is_relative_to(self.root)


def _about_rows(said: Rows, kept: int) -> Iterable[str]:
    if missing := len(said.rows) - kept:
        first = next(row for row in said.rows if not row.target)
        has, verb = ("has", "is") if missing == 1 else ("have", "are")
        yield (
            f"{counted(missing, 'row')} of {len(said.rows):,} {has} no {said.target} and {verb} left out, the first in"
            f" {said.word} {first.place}"
        )


def _about_unknown(kept: Sequence[Row], rows: Sequence[Row]) -> Iterable[str]:
    if len(kept) < len(rows):
        known = {row.target for row in kept}
        unknown = sorted({row.target for row in rows} - known)
        yield (
            f"{counted(len(unknown), 'class has', 'classes have')} no samples to train on: {some(unknown)};"
            f" {counted(len(rows) - len(kept), 'sample is', 'samples are')} left out"
        )
