"""Text lines for a recogniser: a folder of pictures and a manifest.

    python -m benchmarks.ocr.lines -o .downloads/ocr-lines --train 12000 --val 2000 --test 6000

The folder holds `manifest.jsonl`, one object a line (path, text, kind, split), and
`<split>/<font>/<number>.jpg` or `.png`. Splits differ in their seeds, and half of the test's lines are in fonts that no
other split has. A line depends on seed, split and number only, so more lines leave the first ones as they were.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from benchmarks.ocr import fonts
from benchmarks.ocr.render import Line, line
from pocketfit.core.errors import UserError

SPLIT_SEEDS = {"train": 101, "val": 202, "test": 303}
MANIFEST = "manifest.jsonl"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path(".downloads/ocr-lines"))
    parser.add_argument("--train", type=int, default=12_000)
    parser.add_argument("--val", type=int, default=2_000)
    parser.add_argument("--test", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fonts", type=Path, default=fonts.FOLDER)
    parser.add_argument(
        "--recogniser", type=Path, default=fonts.RECOGNISER, help="its charset must hold all characters"
    )
    given = parser.parse_args()
    try:
        fonts.check_characters(given.fonts, given.recogniser)
        counts = {split: getattr(given, split) for split in SPLIT_SEEDS}
        print(write(given.out, counts, given.seed, given.fonts))
    except UserError as error:
        sys.exit(str(error))


def write(out: Path, counts: Mapping[str, int], seed: int, folder: Path) -> Path:
    """The path of the manifest; pictures and manifest are written whole or not at all."""
    if out.exists():
        raise UserError(f"'{out}' is there already: remove it, or name another folder with -o")
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    with (partial / MANIFEST).open("w", encoding="utf-8") as manifest:
        for split, count in counts.items():
            for number, each in enumerate(rendered(split, count, seed, folder)):
                suffix, content = each.encoded()
                path = Path(split, each.face.name, f"{number:06}{suffix}")
                (partial / path).parent.mkdir(parents=True, exist_ok=True)
                (partial / path).write_bytes(content)
                entry = {"path": path.as_posix(), "text": each.text, "kind": each.kind, "split": split}
                manifest.write(json.dumps(entry, ensure_ascii=False) + "\n")
    partial.rename(out)
    return out / MANIFEST


def rendered(split: str, count: int, seed: int, folder: Path) -> Iterator[Line]:
    """The first `count` lines of a split, with fonts from `folder`."""
    for number in range(count):
        yield line(np.random.default_rng((seed, SPLIT_SEEDS[split], number)), split, folder)


if __name__ == "__main__":
    main()
