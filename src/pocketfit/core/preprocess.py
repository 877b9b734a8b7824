"""How an image or a recording becomes the tensor that a network takes, as data."""

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
Rate = Annotated[float, Between(0, 1e6)]  # Hz
MOST_NUMBERS = 2**26  # of one recording, and of what is made of it
NumberOfSamples = Annotated[int, Between(1, MOST_NUMBERS)]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """How a recording becomes a tensor. T: frames, F: features of each, L: samples.

    Wave (float, full scale is -1 to 1): the mean of all channels; brought to `rate_hz` by the filter "polyphase", or
    refused where it has another rate; times `gain`; cut or padded with zeros to `samples`, at its end ("start"), or
    evenly at both ends ("centre").

    Features of frames of `window` samples, `hop` apart, under a periodic Hann window, padded with zeros to `fft`:
      edges   "none": the first frame begins with the first sample; "zeros", "reflect": the wave is first padded by half
              a window at both ends, so that frame t has its centre at sample t * hop
      mel     |spectrum| ** power, summed under `mels` triangles from `low_hz` to `high_hz`, evenly spaced on the mel
              `scale`; `area` "slaney" divides each triangle by half its width in Hz
      log     of mel + offset ("add") or of the larger of both ("max"); "ln", "log10", or "none"
      mfcc    the first `cepstra` of the orthonormal DCT-II of log-mel
    Values: (feature - mean) / std. A "waveform" has no frames: its values are (sample - mean) / std.

    >>> Sound().shape, Sound(features="waveform", order="1xL").shape
    ((1, 49, 40), (1, 16000))
    """

    features: Literal["waveform", "log-mel", "mfcc"] = "log-mel"
    rate_hz: Annotated[int, Between(1, 10**6)] = 16_000
    samples: NumberOfSamples = 16_000
    resample: Literal["polyphase", "refuse"] = "polyphase"
    gain: Value = 1.0
    keep: Literal["start", "centre"] = "start"
    window: NumberOfSamples = 640
    hop: NumberOfSamples = 320
    fft: NumberOfSamples = 1024
    edges: Literal["none", "zeros", "reflect"] = "none"
    power: Annotated[float, Between(0.1, 10)] = 2.0
    mels: Annotated[int, Between(1, 4096)] = 40
    low_hz: Rate = 20.0
    high_hz: Rate = 4000.0
    scale: Literal["htk", "slaney"] = "htk"
    area: Literal["none", "slaney"] = "none"
    log: Literal["ln", "log10", "none"] = "ln"
    offset: Annotated[float, Between(0, 1e9)] = 1e-6
    offset_by: Literal["add", "max"] = "max"
    cepstra: Annotated[int, Between(1, 4096)] = 10
    mean: Value = 0.0
    std: Value = 1.0
    order: Literal["1xTxF", "1xFxT", "FxT", "TxF", "1xL", "L"] = "1xTxF"

    def __post_init__(self) -> None:
        check_rules(self)
        if self.std == 0 or self.gain == 0:
            raise UserError("'std' and 'gain' must be numbers other than 0")
        if (self.features == "waveform") != self.order.endswith("L"):
            fits = "1xL or L" if self.features == "waveform" else "1xTxF, 1xFxT, FxT or TxF"
            raise UserError(f"'order' is {self.order}, and 'features' {self.features}: give {fits}")
        if self.features == "waveform":
            return
        if self.window > min(self.fft, self.samples):
            raise UserError(f"'window' is {self.window}: it may not be longer than 'fft' or 'samples'")
        if not self.low_hz < self.high_hz <= self.rate_hz / 2:
            raise UserError("'high_hz' must be above 'low_hz' and at most half of 'rate_hz'")
        if self.features == "mfcc" and self.cepstra > self.mels:
            raise UserError(f"'cepstra' is {self.cepstra}: there are only {self.mels} 'mels'")
        if self.log != "none" and self.offset == 0:
            raise UserError("'offset' must be above 0: silence has no logarithm")
        if self.frames * max(self.fft, self.mels) > MOST_NUMBERS:
            raise UserError(f"'hop' is {self.hop}: that makes {self.frames:,} frames, which is too many")

    @property
    def frames(self) -> int:
        padded = 0 if self.edges == "none" else 2 * (self.window // 2)
        return 1 + (self.samples + padded - self.window) // self.hop

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        features = self.cepstra if self.features == "mfcc" else self.mels
        sizes = {"1": 1, "T": 0 if self.features == "waveform" else self.frames, "F": features, "L": self.samples}
        return tuple(sizes[letter] for letter in self.order.split("x"))

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes a tensor, or, where `sound` is given, a recording. Images have two halves, so that the
    result of the slow one can be cached as uint8.

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
    sound: Sound | None = None

    def __post_init__(self) -> None:
        check_rules(self)

    @property
    def channels(self) -> int:
        return 1 if self.colour == "GRAY" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample as a network takes it: (channels, height, width), or that of a recording's features."""
        return (self.channels, self.height, self.width) if self.sound is None else self.sound.shape

    def at(self, height: int, width: int) -> Preprocess:
        """The same preprocessing at another input size; the share of the image that is cropped stays the same."""
        resize_px = max(1, round(self.resize_px * height / self.height))
        return replace(self, height=height, width=width, resize_px=resize_px)

    def to_json(self) -> dict[str, Any]:
        """Of a recording {"sound": {...}}, else all but that."""
        if self.sound is not None:
            return {"sound": self.sound.to_json()}
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        del told["sound"]
        return told

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
        if found.sound is not None and (also := sorted(data.keys() - {"sound"})):
            raise Violation(f"is for images, and 'sound' for recordings: give one of both, not {also[0]}", also[0])
        try:
            found.check()
        except UserError as error:
            raise Violation(str(error), sentence=True) from error
        return found

    read = from_json


# As Ultralytics' YOLO networks take pictures: the ratio is kept, what is missing is grey, values are 0..1.
LETTERBOX = Preprocess(
    height=640,
    width=640,
    resize="longer",
    resize_px=640,
    background=(114, 114, 114),
    mean=(0.0, 0.0, 0.0),
    std=(1.0, 1.0, 1.0),
)
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

LOG_MEL = Preprocess(sound=Sound())  # frames of 40 ms, 20 ms apart
# As "Hello Edge" (Zhang et al. 2017, section 3.1) feeds its networks: 10 MFCC of frames of 40 ms, 20 ms apart.
MFCC = Preprocess(sound=Sound(features="mfcc"))
WAVEFORM = Preprocess(sound=Sound(features="waveform", order="1xL"))
