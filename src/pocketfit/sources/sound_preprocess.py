"""From a recording to the tensor that a network takes: the reference implementation of `Sound`.

    .wav ──read_wave──▶ float64 [n, channels], rate ──wave──▶ float64 [samples] ──features──▶ float32 [shape]

numpy and the standard library only, and the settings are read as attributes: a copy of this very file stands in every
bundle for recordings and runs there with the settings from a JSON file. The rules are written down as maths, so that an
app in another language can follow them.
"""

from __future__ import annotations

import struct
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pocketfit.core.preprocess import Sound

Floats = NDArray[np.float64]

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE  # format tags of a .wav file
MOST_BYTES = 2**28  # of a file
MOST_CHANNELS = 64
MOST_RATE_HZ = 10**6
MOST_SAMPLES = 2**26  # of a recording after it was brought to another rate
MOST_RATIO = 2**16  # of the two rates in lowest terms: the filter has 20 times as many numbers
FILTER_SPAN, FILTER_SHAPE = 10, 5.0  # half the length of the polyphase filter in input samples; Kaiser's beta


class BadSound(ValueError):
    """A file that cannot be read as a recording; the message is a sentence that names it."""


def to_tensor(source: str | Path | BinaryIO, sound: Sound | Any, layout: str = "") -> NDArray[np.float32]:
    """A .wav file as the network takes it: float32 [1, ...]. `layout` "NHWC" puts the axis of 1 of "1xTxF" last.

    Raises BadSound.
    """
    name = str(getattr(source, "name", "the recording") if hasattr(source, "read") else source)
    try:
        made = features(wave(*read_wave(source), sound), sound)[np.newaxis]
    except BadSound as error:
        raise BadSound(f"{name} cannot be read as a recording: {error}") from error
    except OSError as error:
        raise BadSound(f"{name} cannot be read: {error.strerror or error}") from error
    return np.ascontiguousarray(made.transpose(0, 2, 3, 1)) if layout == "NHWC" and made.ndim == 4 else made


# Reading -------------------------------------------------------------------------------------------------------------


def read_wave(source: str | Path | BinaryIO) -> tuple[Floats, int]:
    """(samples [n, channels], -1 to 1 at full scale; their rate in Hz) of a .wav file.

    PCM of 8 (unsigned), 16, 24 and 32 bits is divided by 2 ** (bits - 1); floats of 32 and 64 bits are taken as they
    are. Raises BadSound, OSError.
    """
    if isinstance(source, str | Path):
        with Path(source).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    else:
        data = source.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BadSound(f"it has more than {MOST_BYTES / 1e6:.0f} MB, the limit")
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise BadSound("it is damaged, or no .wav file")
    chunks = _chunks(data)
    if "fmt " not in chunks or "data" not in chunks or len(chunks["fmt "]) < 16:
        raise BadSound("it is cut short, or its header is damaged")
    tag, channels, rate, _, frame_bytes, bits = struct.unpack("<HHIIHH", chunks["fmt "][:16])
    if tag == EXTENSIBLE and len(chunks["fmt "]) >= 26:
        (tag,) = struct.unpack("<H", chunks["fmt "][24:26])
    if not 1 <= channels <= MOST_CHANNELS or not 1 <= rate <= MOST_RATE_HZ or frame_bytes * 8 != channels * bits:
        raise BadSound(f"its header is damaged ({channels} channels of {bits} bits at {rate} Hz)")
    whole = len(chunks["data"]) // frame_bytes * frame_bytes
    if not whole:
        raise BadSound("it holds no samples")
    values = _values(chunks["data"][:whole], tag, bits)
    if not np.isfinite(values).all():
        raise BadSound("it holds NaN or infinite numbers")
    return values.reshape(-1, channels), rate


def _chunks(data: bytes) -> dict[str, memoryview]:
    """The first chunk of each name. A recorder that was switched off leaves a size of 0 or too large a one behind: then
    `data` reaches to the end of the file."""
    found: dict[str, memoryview] = {}
    view, start = memoryview(data), 12
    while start + 8 <= len(data):
        name, size = data[start : start + 4].decode("latin-1"), int.from_bytes(data[start + 4 : start + 8], "little")
        if name == "data" and size in (0, 0xFFFFFFFF):
            size = len(data) - start - 8
        found.setdefault(name, view[start + 8 : start + 8 + size])
        start += 8 + size + size % 2
    return found


def _values(data: memoryview, tag: int, bits: int) -> Floats:
    if tag == FLOAT and bits in (32, 64):
        return np.frombuffer(data, f"<f{bits // 8}").astype(np.float64)
    if tag != PCM or bits not in (8, 16, 24, 32):
        raise BadSound(
            f"its format ({tag}, {bits} bits) is none of PCM with 8, 16, 24 or 32 bits and float: convert it"
        )
    if bits == 8:
        return np.frombuffer(data, np.uint8) / 128.0 - 1
    if bits == 24:
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        return wide.view("<i4")[:, 0] / 2.0**31
    return np.frombuffer(data, f"<i{bits // 8}") / 2.0 ** (bits - 1)


# Wave ----------------------------------------------------------------------------------------------------------------


def wave(values: Floats, rate_hz: int, sound: Sound | Any) -> Floats:
    """[n, channels] at a rate -> [samples]: one channel at the network's rate, cut or padded. Raises BadSound."""
    mono = values.mean(axis=1)
    if rate_hz != sound.rate_hz:
        if sound.resample == "refuse":
            raise BadSound(f"it has {rate_hz} Hz, and the network takes {sound.rate_hz} Hz: resample it")
        mono = resampled(mono, rate_hz, sound.rate_hz)
    short = sound.samples - len(mono)
    before = abs(short) // 2 if sound.keep == "centre" else 0
    placed = mono[before : before + sound.samples] if short <= 0 else np.pad(mono, (before, short - before))
    return sound.gain * placed


def resampled(values: Floats, rate_hz: int, new_rate_hz: int) -> Floats:
    """[n] -> [ceil(n * up / down)], where up / down is new_rate_hz / rate_hz in lowest terms, and m their larger one.

    The wave with up - 1 zeros behind each sample is filtered by h, and every down-th sample is kept:
      h(k) = up / m * sinc(k / m) * kaiser(k), for |k| <= 10 m, divided by its sum and times up
    with Kaiser's window of beta 5 over these 20 m + 1 numbers: what scipy.signal.resample_poly does.

    Raises BadSound where the result would be too long.
    """
    common = gcd(rate_hz, new_rate_hz)
    up, down = new_rate_hz // common, rate_hz // common
    count, larger = -(-len(values) * up // down), max(up, down)
    if count > MOST_SAMPLES:
        raise BadSound(f"it has {len(values):,} samples at {rate_hz} Hz: that is too long for {new_rate_hz} Hz")
    if larger > MOST_RATIO:
        raise BadSound(f"it has {rate_hz} Hz, and {new_rate_hz} Hz is no simple ratio of that: resample it first")
    half = FILTER_SPAN * larger
    taps = np.sinc(np.arange(-half, half + 1) / larger) * np.kaiser(2 * half + 1, FILTER_SHAPE)
    taps *= up / taps.sum()
    reach = half // up + 1
    padded = np.pad(values, reach)
    result = np.empty(count)
    for phase in range(up):  # outputs whose place between two inputs is the same share one set of weights
        outputs = np.arange(phase, count, up)
        if not len(outputs):
            break
        first, place = divmod(phase * down, up)  # output `phase` lies `place` / up behind input `first`
        inputs = np.arange(-reach, reach + 1)
        at = place - inputs * up + half
        inside = (at >= 0) & (at <= 2 * half)
        weights, inputs = taps[at[inside]], inputs[inside]
        starts = first + down * np.arange(len(outputs)) + reach + inputs[0]
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(inputs))
        result[outputs] = windows[np.minimum(starts, len(windows) - 1)] @ weights
    return result


# Features ------------------------------------------------------------------------------------------------------------


def features(samples: Floats, sound: Sound | Any) -> NDArray[np.float32]:
    """[samples] -> float32, in the order of axes that the settings name."""
    if sound.features == "waveform":
        values = samples
    else:
        values = log_mel(samples, sound)
        if sound.features == "mfcc":
            values = values @ cosines(sound.mels, sound.cepstra)
        if sound.order in ("1xFxT", "FxT"):
            values = values.T
    values = ((values - sound.mean) / sound.std).astype(np.float32)
    return np.ascontiguousarray(values[np.newaxis] if sound.order.startswith("1x") else values)


def log_mel(samples: Floats, sound: Sound | Any) -> Floats:
    """[samples] -> [frames, mels]."""
    if sound.edges != "none":
        half = sound.window // 2
        samples = np.pad(samples, half, mode="reflect" if sound.edges == "reflect" else "constant")
    frames = np.lib.stride_tricks.sliding_window_view(samples, sound.window)[:: sound.hop]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(sound.window) / sound.window)
    spectrum = np.abs(np.fft.rfft(frames * hann, sound.fft, axis=1)) ** sound.power
    heights = mel_filters(sound.rate_hz, sound.fft, sound.mels, sound.low_hz, sound.high_hz, sound.scale, sound.area)
    mel = spectrum @ heights
    if sound.log == "none":
        return mel
    mel = mel + sound.offset if sound.offset_by == "add" else np.maximum(mel, sound.offset)
    return np.log(mel) if sound.log == "ln" else np.log10(mel)


@lru_cache(maxsize=16)
def mel_filters(rate_hz: int, fft: int, mels: int, low_hz: float, high_hz: float, scale: str, area: str) -> Floats:
    """[fft // 2 + 1, mels]: the height of each triangle at each frequency of the spectrum.

    mels + 2 corners are evenly spaced in mel; triangle i rises from corner i to 1 at corner i + 1 and falls to corner
    i + 2, linearly in Hz.
    """
    lowest, highest = to_mel(np.array([low_hz, high_hz]), scale).tolist()
    corners = from_mel(np.linspace(lowest, highest, mels + 2), scale)
    at = np.arange(fft // 2 + 1)[:, np.newaxis] * (rate_hz / fft)
    rising = (at - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - at) / (corners[2:] - corners[1:-1])
    heights: Floats = np.maximum(0.0, np.minimum(rising, falling))
    return heights * (2 / (corners[2:] - corners[:-2])) if area == "slaney" else heights


def to_mel(hz: Floats, scale: str) -> Floats:
    """HTK: 2595 log10(1 + f / 700). Slaney (Auditory Toolbox, 1998): 3 f / 200 below 1000 Hz, and above it
    15 + 27 ln(f / 1000) / ln(6.4).

    >>> to_mel(np.array([700.0]), "htk").round(3), to_mel(np.array([200.0, 6400.0]), "slaney").round(3)
    (array([781.173]), array([ 3., 42.]))
    """
    if scale == "htk":
        return 2595 * np.log10(1 + hz / 700)
    return np.where(hz < 1000, hz * 3 / 200, 15 + 27 * np.log(np.maximum(hz, 1000) / 1000) / np.log(6.4))


def from_mel(mel: Floats, scale: str) -> Floats:
    """The inverse of `to_mel`."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))


@lru_cache(maxsize=16)
def cosines(mels: int, cepstra: int) -> Floats:
    """[mels, cepstra]: the orthonormal DCT-II, sqrt(2 / mels) cos(pi k (2 m + 1) / (2 mels)); k = 0 over sqrt(2)."""
    waves = np.cos(np.pi / mels * np.outer(np.arange(mels) + 0.5, np.arange(cepstra)))
    matrix: Floats = waves * np.sqrt(2 / mels)
    matrix[:, 0] /= np.sqrt(2)
    return matrix
