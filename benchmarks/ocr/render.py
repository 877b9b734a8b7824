"""A text becomes a picture of a line, as a phone's camera would have it after the line was cut out.

All randomness comes from the generator that is passed in, so the same seed gives the same pixels.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from benchmarks.ocr import fonts, texts
from benchmarks.ocr.fonts import Face

Random = np.random.Generator
Pixels = NDArray[np.uint8]
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Difficulty:
    """How far pictures are spoiled; the ranges from which each line draws, uniformly unless said otherwise.

    text_px      size of the font
    rotation     degrees, standard deviation of a normal, cut off at three of them
    blur         radius of a Gaussian over the size of the font
    noise        standard deviation, in levels of 255
    contrast     least difference between text and background, in levels
    brightness   factor
    jpeg         quality; `jpeg_share` of the lines go through JPEG
    """

    text_px: tuple[int, int] = (18, 44)
    rotation: float = 0.8
    blur: tuple[float, float] = (0.0, 0.05)
    noise: tuple[float, float] = (0.0, 16.0)
    contrast: int = 60
    brightness: tuple[float, float] = (0.65, 1.25)
    jpeg: tuple[int, int] = (35, 95)
    jpeg_share: float = 0.7


USUAL = Difficulty()


@dataclass(frozen=True)
class Line:
    """A rendered line: RGB pixels before a last JPEG compression at `quality` (None: they are kept as they are)."""

    kind: str
    text: str
    face: Face
    picture: Image.Image
    quality: int | None

    def encoded(self) -> tuple[str, bytes]:
        """(suffix, content of the file)."""
        out = io.BytesIO()
        if self.quality is None:
            self.picture.save(out, "PNG", compress_level=1)
            return ".png", out.getvalue()
        self.picture.save(out, "JPEG", quality=self.quality)
        return ".jpg", out.getvalue()


def line(random: Random, split: str, folder: Path, how: Difficulty = USUAL) -> Line:
    """A line of a split, with fonts from `folder`. Half of the test's lines are in the fonts of the test alone."""
    kind, text = texts.draw(random)
    face = pick_face(random, split, chinese=texts.is_chinese(text))
    size = round(math.exp(random.uniform(math.log(how.text_px[0]), math.log(how.text_px[1]))))
    paper, ink = colours(random, how.contrast)
    mask = text_mask(text, face, size, folder)
    mask = _with_margins(random, mask, size)
    angle = float(np.clip(random.normal(0, how.rotation), -3 * how.rotation, 3 * how.rotation))
    mask = mask.rotate(angle, Image.Resampling.BICUBIC)
    ground = background(random, mask.width, mask.height, paper)
    ground.paste(Image.new("RGB", mask.size, ink), mask=mask)
    picture = spoiled(random, ground, size, how)
    quality = int(random.integers(how.jpeg[0], how.jpeg[1] + 1)) if random.random() < how.jpeg_share else None
    return Line(kind, text, face, picture, quality)


def pick_face(random: Random, split: str, *, chinese: bool) -> Face:
    shared, own = fonts.faces_for(split, chinese=chinese)
    faces = own if own and random.random() < 0.5 else shared
    return faces[random.integers(len(faces))]


def text_mask(text: str, face: Face, size_px: int, folder: Path) -> Image.Image:
    """The text in white on black, cut to its ink."""
    font = fonts.load(folder, face, size_px)
    left, top, right, bottom = (int(edge) for edge in font.getbbox(text))
    mask = Image.new("L", (right - left, bottom - top), 0)
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


def colours(random: Random, least: int) -> tuple[Colour, Colour]:
    """(paper, ink): grey or coloured paper with darker ink; the other way round for one line in eight."""
    light = int(random.integers(150, 256))
    tint = random.integers(-40, 1, size=3) if random.random() < 0.6 else np.zeros(3, int)
    dark = int(random.integers(0, max(1, light - 40 - least)))
    shade = random.integers(0, 50, size=3) if random.random() < 0.4 else np.zeros(3, int)
    paper, ink = _colour(light + tint), _colour(dark + shade)
    return (ink, paper) if random.random() < 0.125 else (paper, ink)


def background(random: Random, width: int, height: int, paper: Colour) -> Image.Image:
    """Paper with a slope of light, soft blotches, and sometimes fine lines as on printed forms."""
    soft = random.normal(0, random.uniform(0, 10), (max(2, height // 12), max(2, width // 12))).astype(np.float32)
    blotches = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BICUBIC))
    slope = np.linspace(-1, 1, width, dtype=np.float32) * random.uniform(-25, 25)
    fall = np.linspace(-1, 1, height, dtype=np.float32) * random.uniform(-12, 12)
    levels = np.asarray(paper, np.float32) + (blotches + slope + fall[:, None])[..., None]
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    if random.random() < 0.15:
        draw = ImageDraw.Draw(picture)
        ink = _colour(np.asarray(paper) + random.integers(-30, 31, 3))
        step, lean = int(random.integers(4, 14)), int(random.integers(-20, 21))
        for x in range(-20, width + 20, step):
            draw.line((x, 0, x + lean, height), fill=ink)
    return picture


def spoiled(random: Random, picture: Image.Image, size_px: float, how: Difficulty) -> Image.Image:
    """Blurred (one in five along a line, as by a moving hand), then darker or lighter, then with noise."""
    radius = random.uniform(*how.blur) * size_px
    picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if random.random() < 0.2:
        picture = _moved(random, picture, size_px)
    picture = ImageEnhance.Brightness(picture).enhance(random.uniform(*how.brightness))
    levels = np.asarray(picture, np.float32)
    sigma = random.uniform(*how.noise)
    grain = random.standard_normal(levels.shape[:2], np.float32)[..., None]
    speckle = random.standard_normal(levels.shape, np.float32)
    noisy = levels + sigma * (0.8 * grain + 0.6 * speckle)
    return Image.fromarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8))


def _moved(random: Random, picture: Image.Image, size_px: float) -> Image.Image:
    """The mean of the picture and two copies, shifted to opposite sides; the outer pixels go on beyond the edges."""
    reach, angle = random.uniform(0, 0.06) * size_px, random.uniform(0, math.pi)
    across, down = reach * math.cos(angle), reach * math.sin(angle)
    edge = math.ceil(reach) + 1
    wide = Image.fromarray(np.pad(np.asarray(picture), ((edge, edge), (edge, edge), (0, 0)), mode="edge"))
    total = np.asarray(picture, np.float32)
    for side in (-1, 1):
        matrix = (1, 0, edge + side * across, 0, 1, edge + side * down)
        shifted = wide.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        total = total + np.asarray(shifted, np.float32)
    return Image.fromarray((total / 3 + 0.5).astype(np.uint8))


def _with_margins(random: Random, mask: Image.Image, size_px: int) -> Image.Image:
    """As a text detector cuts lines out: a little paper on each side, more of it left and right."""
    left, right = (round(random.uniform(0.06, 0.35) * size_px) for _ in range(2))
    top, bottom = (round(random.uniform(0.06, 0.25) * size_px) for _ in range(2))
    whole = Image.new("L", (mask.width + left + right, mask.height + top + bottom), 0)
    whole.paste(mask, (left, top))
    return whole


def _colour(levels: NDArray[np.generic]) -> Colour:
    red, green, blue = (int(level) for level in np.clip(levels, 0, 255))
    return red, green, blue
