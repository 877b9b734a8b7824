"""How an image becomes the tensor that a network takes, as data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import Between
from pocketfit.core.support.schema import Violation, build, check_rules

ResizeRule = Literal["shorter", "longer", "exact", "height", "none"]
Filter = Literal["nearest", "bilinear", "bicubic"]
Colour = Literal["RGB", "BGR", "GRAY"]
Pixels = Annotated[int, Between(1, 16_384)]
Level = Annotated[int, Between(0, 255)]  # of a channel of an image
Value = Annotated[float, Between(-1e9, 1e9)]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes a tensor; two halves, so that the result of the slow one can be cached as uint8.

    Geometry (uint8 in, uint8 out): decode (alpha is blended over `background`), bring to `colour`, resize with
    `filter` (antialiased, half-pixel centres, round half up) so that
      "shorter": the shorter side becomes `resize_px`;  "longer": the longer side becomes `resize_px`;
      "exact": the image becomes height x width;         "none": no resizing;
      "height": the image becomes `height` high and keeps its ratio, up to `width` wide (a wider one is squeezed);
    then cut or pad around the centre to height x width, padding with `background`. With "height" the image stands at
    the left edge, and all padding is at its right.

    Values (float32): (pixel * scale - mean[c]) / std[c].

    >>> Preprocess(height=96, width=96).channels
    3
    """

    height: Pixels = 224
    width: Pixels = 224
    resize: ResizeRule = "shorter"
    resize_px: Pixels = 256
    filter: Filter = "bilinear"
    colour: Colour = "RGB"
    background: tuple[Level, Level, Level] = (255, 255, 255)
    scale: Value = 1 / 255
    mean: tuple[Value, ...] = (0.485, 0.456, 0.406)
    std: tuple[Value, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def channels(self) -> int:
        return 1 if self.colour == "GRAY" else 3

    def at(self, height: int, width: int) -> Preprocess:
        """The same preprocessing at another input size; the share of the image that is cropped stays the same."""
        resize_px = max(1, round(self.resize_px * height / self.height))
        return replace(self, height=height, width=width, resize_px=resize_px)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def check(self) -> None:
        """Raises UserError where fields contradict each other."""
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise UserError(f"'{key}' must hold {self.channels} numbers, one for each channel of {self.colour}")
        if self.scale == 0 or 0 in self.std:
            raise UserError("'scale' and 'std' must be numbers other than 0")

    @classmethod
    def from_json(cls, data: Any) -> Preprocess:
        """The inverse of `to_json`; missing keys take the defaults. Raises Violation."""
        found = build(cls, data)
        try:
            found.check()
        except UserError as error:
            raise Violation(str(error), sentence=True) from error
        return found

    read = from_json


# As PaddleOCR and RapidOCR prepare lines for PP-OCR. They pad with 0 behind the values half, which would be a pixel of
# 127.5; 127 is the nearest below (-0.004).
TEXT_LINE = Preprocess(
    height=48,
    width=320,
    resize="height",
    colour="BGR",
    background=(127, 127, 127),
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
)
