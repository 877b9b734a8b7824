"""Describe a file that a runtime's export has made; the same for every runtime."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

from pocketfit.core.artifact import Artifact
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.plan.plan import Plan
from pocketfit.core.plan.runtime_list import bytes_of, files_of

CHUNK_BYTES = 1 << 20
NOTES = ".notes.json"


def artifact_of(path: Path, plan: Plan, runtime: str, notes: Sequence[str] = ()) -> Artifact:
    """Describe a finished file: its bytes, its sha256, and its bytes after raw deflate at level 9.

    For an artifact of several files: the sums, and the sha256 of their contents one after the other.
    """
    digest, size_bytes, download_bytes = hashlib.sha256(), 0, 0
    for part in files_of(path):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        with part.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
                download_bytes += len(deflate.compress(chunk))
        download_bytes += len(deflate.flush())
    return Artifact(
        path=str(path),
        sha256=digest.hexdigest(),
        bytes=size_bytes,
        download_bytes=download_bytes,
        runtime=runtime,
        plan=plan,
        notes=tuple(notes),
    )


def not_smaller(path: Path, float_file: Path, settings: ExportSettings) -> list[str]:
    """A sentence where a file of another precision is no smaller than the float32 file of the same network."""
    size_bytes, float_bytes = bytes_of(path), bytes_of(float_file)
    if settings.precision == "float32" or size_bytes < float_bytes:
        return []
    return [
        f"This file ({size_bytes:,} bytes) is no smaller than the float32 file ({float_bytes:,} bytes): the network "
        "has too few weights for what their scales and conversions take"
    ]


def keep_notes(float_file: Path, notes: Sequence[str]) -> None:
    """Store, beside a float file in the work folder, sentences on how the network was changed on the way to it."""
    float_file.with_suffix(NOTES).write_text(json.dumps(list(notes)), encoding="utf-8")


def kept_notes(float_file: Path) -> list[str]:
    """The sentences that `keep_notes` stored; [] where there are none, or where the file is damaged."""
    path = float_file.with_suffix(NOTES)
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except ValueError:
        return []
    return [note for note in found if isinstance(note, str)] if isinstance(found, list) else []
