"""The declarative contract between a picture and the tensor that a network takes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ResizeRule = Literal["shorter", "longer", "exact", "none"]
Filter = Literal["nearest", "bilinear", "bicubic"]
Colour = Literal["RGB", "BGR", "GRAY"]


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes a tensor; two halves, so that the slow one can be cached as uint8.

    Geometry (uint8 in, uint8 out): decode (alpha is blended over `background`), bring to `colour`, resize with
    `filter` (antialiased, half-pixel centres, round half up) so that
      "shorter": the shorter side becomes `resize_px`;  "longer": the longer side becomes `resize_px`;
      "exact": the picture becomes height x width;       "none": no resizing;
    then cut or pad around the centre to height x width, padding with `background`.

    Values (float32): (pixel * scale - mean[c]) / std[c].

    >>> Preprocess(height=96, width=96).channels
    3
    """

    height: int = 224
    width: int = 224
    resize: ResizeRule = "shorter"
    resize_px: int = 256
    filter: Filter = "bilinear"
    colour: Colour = "RGB"
    background: tuple[int, int, int] = (255, 255, 255)
    scale: float = 1 / 255
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        return 1 if self.colour == "GRAY" else 3

    def at(self, height: int, width: int) -> Preprocess:
        """The same contract at another input size; the share of the picture that is kept stays the same."""
        resize_px = max(1, round(self.resize_px * height / self.height))
        return replace(self, height=height, width=width, resize_px=resize_px)

    def to_json(self) -> dict[str, Any]:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Preprocess:
        """The inverse of `to_json`; missing keys take the defaults, unknown ones raise TypeError."""
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**settings)
