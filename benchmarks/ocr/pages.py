"""Pages for a text detector: a folder of pictures of 640 x 640 with several lines of text each, and no labels.

    python -m benchmarks.ocr.pages -o .downloads/ocr-pages --count 400
    python -m benchmarks.ocr.pages -o .downloads/ocr-pages-test --count 200 --split test

Pages of the test have a seed of their own, and half of their lines are in fonts that only the test has.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from benchmarks.ocr import fonts, texts
from benchmarks.ocr.lines import SPLIT_SEEDS
from benchmarks.ocr.render import USUAL, Random, background, colours, pick_face, spoiled, text_mask
from pocketfit.core.errors import UserError

SIDE_PX = 640
PAGE_SEED = 11  # apart from the seeds of lines
TRIES = 40  # how often a place is looked for before the page counts as full

Box = tuple[int, int, int, int]  # left, top, right, bottom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path(".downloads/ocr-pages"))
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--split", choices=list(SPLIT_SEEDS), default="train")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fonts", type=Path, default=fonts.FOLDER)
    given = parser.parse_args()
    try:
        print(write(given.out, given.count, given.split, given.seed, given.fonts))
    except UserError as error:
        sys.exit(str(error))


def write(out: Path, count: int, split: str, seed: int, folder: Path) -> Path:
    """The folder, written whole or not at all; a page depends on seed, split and number only."""
    if out.exists():
        raise UserError(f"'{out}' is there already: remove it, or name another folder with -o")
    partial = out.with_name(f"{out.name}.partial")
    partial.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random = np.random.default_rng((seed, SPLIT_SEEDS[split], PAGE_SEED, number))
        picture, quality = page(random, split, folder)
        picture.save(partial / f"{number:06}.jpg", "JPEG", quality=quality)
    partial.rename(out)
    return out


def page(random: Random, split: str, folder: Path) -> tuple[Image.Image, int]:
    """(a page with 4 to 18 lines, quality of its JPEG): paper, boxes and stripes, then text that does not overlap."""
    paper, _ = colours(random, USUAL.contrast)
    picture = background(random, SIDE_PX, SIDE_PX, paper)
    draw = ImageDraw.Draw(picture)
    for _ in range(random.integers(0, 5)):
        left, top = (int(edge) for edge in random.integers(0, SIDE_PX - 60, 2))
        right, bottom = (int(edge + random.integers(40, 320)) for edge in (left, top))
        shade, outline = colours(random, USUAL.contrast)
        filled = random.random() < 0.5
        draw.rectangle((left, top, right, bottom), fill=shade if filled else None, outline=outline, width=2)
    taken: list[Box] = []
    for _ in range(random.integers(4, 19)):
        _place(random, picture, taken, split, folder)
    size_px = 20.0  # of the smaller lines: a page is blurred as a whole
    return spoiled(random, picture, size_px, USUAL), int(random.integers(USUAL.jpeg[0], USUAL.jpeg[1] + 1))


def _place(random: Random, picture: Image.Image, taken: list[Box], split: str, folder: Path) -> None:
    """One line where nothing stands yet, in ink that contrasts with the ground; none where no place is found."""
    _, text = texts.draw(random)
    face = pick_face(random, split, chinese=texts.is_chinese(text))
    size_px = int(random.integers(14, 49))
    mask = text_mask(text, face, size_px, folder)
    mask = mask.rotate(float(random.normal(0, 1.5)), Image.Resampling.BICUBIC, expand=True)
    if mask.width > SIDE_PX - 8:
        return
    for _ in range(TRIES):
        left, top = (int(random.integers(4, SIDE_PX - side - 3)) for side in mask.size)
        box = (left, top, left + mask.width, top + mask.height)
        gap = size_px // 3
        if any(_overlap(box, other, gap) for other in taken):
            continue
        taken.append(box)
        ground = float(np.asarray(picture.crop(box).convert("L")).mean())
        level = random.integers(0, 60) if ground > 127 else random.integers(195, 256)
        ink = tuple(int(np.clip(level + tint, 0, 255)) for tint in random.integers(-30, 31, 3))
        picture.paste(Image.new("RGB", mask.size, ink), box[:2], mask)
        return


def _overlap(one: Box, other: Box, gap: int) -> bool:
    """Whether two boxes are closer than `gap` pixels."""
    across = one[0] < other[2] + gap and other[0] < one[2] + gap
    return across and one[1] < other[3] + gap and other[1] < one[3] + gap


if __name__ == "__main__":
    main()
