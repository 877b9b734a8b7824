"""From an image to the tensor that a network takes: the reference implementation of `Preprocess`.

    decode ──▶ uint8 [h, w, C] ──geometry──▶ uint8 [H, W, C] ──values──▶ float32 [H, W, C]

numpy, Pillow and the standard library only, and the settings are read as attributes: a copy of this very file stands in
every bundle and runs there with the settings from a JSON file. The resize rule is written down as maths, so that an app
in another language can follow it; Pillow decodes and does nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

if TYPE_CHECKING:
    from pocketfit.core.preprocess import Preprocess

Pixels = NDArray[np.uint8]

# Pillow's other decoders start programs (EPS) or are hardly ever tested for security holes.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "I", "I;16", "I;16B", "I;16L"}
SUPPORT = {"bilinear": 1.0, "bicubic": 2.0}  # half the width of the kernel, in pixels of the coarser of the two grids
TILE = 2**18  # multiplications at a time: little enough for the cache, and for BLAS not to call up its threads
BAND = 16  # output positions that share one dense block of the (otherwise banded) matrix of weights


class BadPicture(ValueError):
    """A file that cannot be read as an image; the message is a sentence that names it."""


def to_tensor(source: str | Path | BinaryIO, preprocess: Preprocess, layout: str = "NCHW") -> NDArray[np.float32]:
    """An image as the network takes it: float32 [1, C, H, W] ("NCHW") or [1, H, W, C] ("NHWC").

    Raises BadPicture.
    """
    return tensor_of(decode(source, preprocess), preprocess, layout)


def tensor_of(pixels: Pixels, preprocess: Preprocess, layout: str = "NCHW") -> NDArray[np.float32]:
    """A decoded image, uint8 [h, w, C], as the network takes it."""
    tensor = values(geometry(pixels, preprocess), preprocess)[np.newaxis]
    return np.ascontiguousarray(tensor.transpose(0, 3, 1, 2)) if layout == "NCHW" else tensor


# Decoding ------------------------------------------------------------------------------------------------------------


def decode(source: str | Path | BinaryIO, preprocess: Preprocess) -> Pixels:
    """An image file, upright and in the network's colours: uint8 [h, w, C].

    The EXIF orientation is applied, alpha is blended over `background`, of 16 bits the upper 8 are kept, of an
    animation the first image. ICC profiles are not applied. Raises BadPicture.
    """
    name = str(getattr(source, "name", "the image") if hasattr(source, "read") else source)
    try:
        with open_picture(source) as image:
            image.load()
            pixels = turned(_channels(image), image.getexif().get(0x0112, 1))
    except Exception as error:  # damaged files make Pillow's decoders raise nearly every built-in exception
        raise BadPicture(f"{name} cannot be read as an image: {error or type(error).__name__}") from error
    return recolour(pixels, preprocess)


def open_picture(source: str | Path | BinaryIO) -> Image.Image:
    """Pillow's image with its header read and nothing decoded yet.

    Pillow refuses more than twice `Image.MAX_IMAGE_PIXELS` (then 179 million pixels) as a decompression bomb.
    """
    try:
        image = Image.open(source, formats=_formats())
    except UnidentifiedImageError:  # its own message shows an object's address
        raise BadPicture("it is damaged, or of no known image format") from None
    if image.mode not in MODES:
        raise BadPicture(f"its pixels are stored as '{image.mode}', whose range is not known: save it with 8 bits")
    return image


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _channels(image: Image.Image) -> Pixels:
    """uint8 [h, w, C] with C = 1 (grey), 3 (RGB) or 4 (RGB and alpha)."""
    if image.mode.startswith("I"):
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 0xFFFF:
            raise BadPicture("its pixels need more than 16 bits: save it with 8 bits")
        return (wide >> 8).astype(np.uint8)[..., np.newaxis]
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return np.asarray(image.convert("RGBA"))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., np.newaxis]
    return np.asarray(image.convert("RGB"))


def turned(pixels: Pixels, orientation: int) -> Pixels:
    """The image upright, from the number that EXIF tag 0x0112 gives (1: upright already)."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def recolour(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """Grey [..., 1], RGB [..., 3] or RGBA [..., 4] pixels in the network's colours: uint8 [..., C].

    Alpha: (colour * a + background * (255 - a)) / 255, rounded. Grey: ITU-R BT.601, in Pillow's whole numbers.

    >>> from types import SimpleNamespace
    >>> recolour(np.array([[200, 100, 0, 0]], np.uint8), SimpleNamespace(colour="BGR", background=[9, 8, 7]))
    array([[7, 8, 9]], dtype=uint8)
    """
    if pixels.shape[-1] == 4:
        alpha = pixels[..., 3:].astype(np.uint32)
        blended = pixels[..., :3] * alpha + np.asarray(preprocess.background, np.uint32) * (255 - alpha)
        pixels = ((blended + 127) // 255).astype(np.uint8)
    if preprocess.colour == "GRAY":
        if pixels.shape[-1] == 1:
            return pixels
        luma = pixels.astype(np.uint32) @ np.array([19595, 38470, 7471], np.uint32)
        return ((luma + 0x8000) >> 16).astype(np.uint8)[..., np.newaxis]
    if pixels.shape[-1] == 1:
        return np.repeat(pixels, 3, axis=-1)
    return pixels[..., ::-1] if preprocess.colour == "BGR" else pixels


# Geometry ------------------------------------------------------------------------------------------------------------


def geometry(pixels: Pixels, preprocess: Preprocess) -> Pixels:
    """The geometry half: uint8 [..., h, w, C] in the network's colours -> uint8 [..., H, W, C].

    Resize, then cut out the centre or pad around it: of d rows too many floor(d / 2) go at the top, of d rows missing
    floor(d / 2) are added at the top. With the rule "height" all columns missing are added at the right. Only what is
    kept is computed.
    """
    height, width = resized(pixels.shape[-3], pixels.shape[-2], preprocess)
    top, left = (height - preprocess.height) // 2, (width - preprocess.width) // 2
    rows = (max(top, 0), min(max(top, 0) + preprocess.height, height))
    columns = (max(left, 0), min(max(left, 0) + preprocess.width, width))
    kept = _resample(pixels, (height, width), rows, columns, preprocess.filter)
    if kept.shape[-3] == preprocess.height and kept.shape[-2] == preprocess.width:
        return np.ascontiguousarray(kept)
    background = recolour(np.asarray(preprocess.background, np.uint8), preprocess)
    padded = np.empty((*pixels.shape[:-3], preprocess.height, preprocess.width, pixels.shape[-1]), np.uint8)
    padded[...] = background
    top, left = (preprocess.height - kept.shape[-3]) // 2, (preprocess.width - kept.shape[-2]) // 2
    if preprocess.resize == "height":
        left = 0
    padded[..., top : top + kept.shape[-3], left : left + kept.shape[-2], :] = kept
    return padded


def resized(height: int, width: int, preprocess: Preprocess) -> tuple[int, int]:
    """Height and width after the resize rule; the side that follows is rounded down, as torchvision does, and with the
    rule "height" up, as PaddleOCR does.

    >>> from types import SimpleNamespace
    >>> resized(480, 640, SimpleNamespace(resize="shorter", resize_px=256))
    (256, 341)
    >>> [resized(32, width, SimpleNamespace(resize="height", height=48, width=320)) for width in (101, 500)]
    [(48, 152), (48, 320)]
    """
    if preprocess.resize == "none":
        return height, width
    if preprocess.resize == "exact":
        return preprocess.height, preprocess.width
    if preprocess.resize == "height":
        return preprocess.height, min(preprocess.width, -(-preprocess.height * width // height))
    leading = min(height, width) if preprocess.resize == "shorter" else max(height, width)
    return max(1, height * preprocess.resize_px // leading), max(1, width * preprocess.resize_px // leading)


def placed(height: int, width: int, preprocess: Preprocess) -> tuple[float, float, int, int]:
    """Where the pixels of an image of this size are after the geometry: (down, across, top, left), a place (y, x) is at
    (y * down + top, x * across + left). What is cut away has negative places, or places beyond the size.

    >>> from types import SimpleNamespace
    >>> placed(480, 640, SimpleNamespace(resize="longer", resize_px=320, height=320, width=320))
    (0.5, 0.5, 40, 0)
    """
    rows, columns = resized(height, width, preprocess)
    top, left = preprocess.height - rows, preprocess.width - columns
    top = -(-top // 2) if top < 0 else top // 2  # as `geometry` rounds: what is cut, and what is added, at the top
    left = 0 if preprocess.resize == "height" else -(-left // 2) if left < 0 else left // 2
    return rows / height, columns / width, top, left


def resize(pixels: Pixels, height: int, width: int, filter: str) -> Pixels:
    """uint8 [..., h, w, C] -> uint8 [..., height, width, C], antialiased as Pillow does it.

    Along an axis of n pixels that becomes m long, s = n / m: output i has its centre at c = (i + 0.5) * s and is the
    sum over all inputs j of k((j + 0.5 - c) / max(s, 1)), divided by the sum of these weights, times pixel j; rounded
    (half up) and clipped to 0..255. First along the width, then along the height (Pillow 13 takes the cheaper order).
      bilinear  k(x) = 1 - |x|                                         for |x| < 1
      bicubic   k(x) = 1.5 |x|^3 - 2.5 |x|^2 + 1                       for |x| < 1
                k(x) = -0.5 |x|^3 + 2.5 |x|^2 - 4 |x| + 2              for 1 <= |x| < 2    (Keys 1981, a = -0.5)
      nearest   output i is the pixel floor(c), nothing is mixed

    >>> resize(np.array([[[0], [100], [200], [250]]], np.uint8), 1, 2, "bilinear").ravel()
    array([ 71, 207], dtype=uint8)
    """
    return _resample(pixels, (height, width), (0, height), (0, width), filter)


Range = tuple[int, int]  # the first, and the one after the last


def _resample(pixels: Pixels, size: tuple[int, int], rows: Range, columns: Range, filter: str) -> Pixels:
    """`rows` and `columns` of the image resized to `size` (height, width)."""
    height, width = size
    if filter not in ("nearest", *SUPPORT):
        raise ValueError(f"the filter '{filter}' is none of nearest, bilinear and bicubic")
    if filter == "nearest":
        chosen = pixels[..., _nearest(pixels.shape[-3], height, rows), :, :]
        return chosen[..., _nearest(pixels.shape[-2], width, columns), :]
    vertical = _bands(pixels.shape[-3], height, rows, filter)
    first, last = vertical[0][1], vertical[-1][1] + vertical[-1][2].shape[1]  # input rows that any output row needs
    narrow = _mix(pixels[..., first:last, :, :], -2, _bands(pixels.shape[-2], width, columns, filter))
    return _mix(narrow, -3, tuple((out, start - first, weights) for out, start, weights in vertical))


def _nearest(length: int, new_length: int, wanted: Range) -> NDArray[np.int64]:
    return (2 * np.arange(*wanted) + 1) * length // (2 * new_length)


Bands = tuple[tuple[int, int, NDArray[np.float32]], ...]


@lru_cache(maxsize=256)
def _bands(length: int, new_length: int, wanted: Range, filter: str) -> Bands:
    """The matrix of weights [wanted, length], cut into dense blocks along its diagonal.

    Each is (its first output position, its first input position, weights [up to BAND outputs, inputs]).
    """
    scale = length / new_length
    stretch = max(scale, 1.0)
    centres = (np.arange(*wanted) + 0.5) * scale
    bands = []
    for out in range(0, len(centres), BAND):
        band = centres[out : out + BAND]
        first = max(0, int(band[0] - SUPPORT[filter] * stretch))
        last = min(length, int(band[-1] + SUPPORT[filter] * stretch) + 1)
        distance = np.abs(np.arange(first, last) + 0.5 - band[:, np.newaxis]) / stretch
        weights = _kernel(distance, filter)
        weights /= weights.sum(axis=1, keepdims=True)
        bands.append((out, first, weights.astype(np.float32)))
    return tuple(bands)


def _kernel(x: NDArray[np.float64], filter: str) -> NDArray[np.float64]:
    if filter == "bilinear":
        return np.maximum(1 - x, 0)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def _mix(pixels: Pixels, axis: int, bands: Bands) -> Pixels:
    """Weighted sums along one axis, block by block: out[i, :] = sum over j of weights[i, j] * pixels[j, :]."""
    moved = np.moveaxis(pixels, axis, 0)
    flat = moved.reshape(len(moved), -1)
    mixed = np.empty((bands[-1][0] + len(bands[-1][2]), flat.shape[1]), np.uint8)
    for out, start, weights in bands:
        columns = max(64, TILE // weights.size)
        for left in range(0, flat.shape[1], columns):
            tile = flat[start : start + weights.shape[1], left : left + columns]
            block = weights @ tile.astype(np.float32)
            block += 0.5
            np.clip(block, 0, 255, out=block)
            # The fraction is cut off: with the half added above, round half up.
            mixed[out : out + len(weights), left : left + columns] = block
    return np.moveaxis(mixed.reshape(-1, *moved.shape[1:]), 0, axis)


# Values --------------------------------------------------------------------------------------------------------------


def values(pixels: Pixels, preprocess: Preprocess | Any) -> NDArray[np.float32]:
    """The values half: uint8 [..., C] -> float32 [..., C], (pixel * scale - mean) / std as pixel * gain + offset."""
    mean, std = np.asarray(preprocess.mean, np.float64), np.asarray(preprocess.std, np.float64)
    gain, offset = (preprocess.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
    return pixels.astype(np.float32) * gain + offset
