"""Golden pairs of input and output, for an app to check its own preprocessing and its own runtime.

Two kinds of input: `chart.png`, a drawn image before any geometry (it has transparency, sharp edges and another
shape than the network's input; text lines have `chart-narrow.png` as well, which has to be padded), and a few of the
user's samples after the geometry. For recordings these are `chirp.wav`, a drawn sound at another rate and in two
channels, and features of the user's samples. Each has the tensor that the reference preprocessing makes of it, and the
output of the exported file in its own runtime.
"""

from __future__ import annotations

import math
import wave
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pocketfit.core.errors import UserError
from pocketfit.core.plan.export import ExportSettings
from pocketfit.core.preprocess import Preprocess, Sound
from pocketfit.core.runtime import Given, Session, as_taken
from pocketfit.core.samples import Samples
from pocketfit.core.signature import TensorSpec
from pocketfit.measurement.sample_arrays import fed

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLES = 3
DRAWN = ("chart", "chirp")
# Of features of recordings, in units of their deviation: Fourier transforms of other libraries, also in float32.
FEATURES_MAX, FEATURES_MEAN = 1e-2, 1e-4
# Share of the span of the golden outputs by which another processor or version of the runtime may be off. Kernels for
# integers differ by tens of steps of 255 between instruction sets; some compute float16 as float32.
ELSEWHERE = {"float32": 1e-3, "float16": 2e-2, "dynamic-int8": 0.1, "int8": 0.1}
SAME_PLACE = 1e-4  # of the span, for float outputs on the same machine: threads share the work differently each time


def write_golden(
    folder: Path, session: Session, samples: Samples, *, layout: str, settings: ExportSettings
) -> tuple[dict[str, Any], NDArray[np.generic]]:
    """Write the pairs to `folder`, which is created.

    Returns the manifest's entry "golden", tolerances included, and the outputs [pairs, ...] in the file's own dtype.
    """
    folder.mkdir()
    pairs, answers = [], []
    for stem, source, values in _inputs(folder, samples, layout, session.signature.inputs):
        for spec, array in zip(session.signature.inputs, values, strict=True):
            if array.shape != spec.with_batch(1):
                raise UserError(
                    f"The golden samples have the shape {list(array.shape[1:])}, but the file takes"
                    f" {list(spec.shape[1:])} for each"
                )
        raw = raw_answer(session, values)
        if not np.isfinite(raw).all():
            raise UserError(
                f"The exported file has NaN or infinity in its output for golden/{source}: it cannot be shipped"
            )
        tensor = f"{stem}.tensor.npy"
        if len(values) > 1:
            tensor = f"{stem}.tensor.npz"
            _save(folder / tensor, session.signature.inputs, values)
        else:
            np.save(folder / tensor, values[0], allow_pickle=False)
        np.save(folder / f"{stem}.output.npy", raw, allow_pickle=False)
        pairs.append(
            {
                "input": f"golden/{source}",
                "geometry_done": not stem.startswith(DRAWN),
                "tensor": f"golden/{tensor}",
                "output": f"golden/{stem}.output.npy",
            }
        )
        answers.append(raw)
    if not answers:
        raise UserError("A bundle needs at least one golden sample")
    together = np.concatenate(answers)
    return {"pairs": pairs, "tolerance": tolerance(together, samples.preprocess, settings)}, together


def raw_answer(session: Session, values: Given) -> NDArray[np.generic]:
    """Values [1, ...] of each input -> the file's first output in its own dtype (integers where it is quantized)."""
    return session.run(as_taken(session, values))[session.signature.outputs[0].name]


def _save(path: Path, inputs: Sequence[TensorSpec], values: tuple[NDArray[Any], ...]) -> None:
    """An .npz file with the inputs under their names."""
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **{spec.name: array for spec, array in zip(inputs, values, strict=True)})


def tolerance(answers: NDArray[np.generic], preprocess: Preprocess, settings: ExportSettings) -> dict[str, Any]:
    """How far tensors and outputs may be off.

    Tensors: one step of one pixel (where a rounding falls the other way), a hundredth of it on average; for recordings
    FEATURES_MAX and FEATURES_MEAN. Outputs, in
    the file's own unit: integers must be equal with the same version of the runtime on the same processor; elsewhere,
    and for floats, a share of the span of the golden outputs.

    >>> made = tolerance(np.array([[0, 200]], np.uint8), Preprocess(std=(1.0,) * 3), ExportSettings("litert", "int8"))
    >>> made["output_same_place"], made["output_elsewhere"], made["output_unit"]
    (0, 20, 'steps')
    """
    if preprocess.sound is None:
        pixel_step = preprocess.scale / min(preprocess.std)
        tensor_max, tensor_mean = 1.01 * pixel_step, 0.01 * pixel_step
    else:
        tensor_max, tensor_mean = FEATURES_MAX / abs(preprocess.sound.std), FEATURES_MEAN / abs(preprocess.sound.std)
    span = float(answers.max()) - float(answers.min())
    elsewhere = ELSEWHERE[settings.precision] * span
    is_integer = np.issubdtype(answers.dtype, np.integer)
    return {
        "tensor_max": tensor_max,
        "tensor_mean": tensor_mean,
        "output_same_place": 0 if is_integer else max(SAME_PLACE * span, 1e-6),
        "output_elsewhere": max(1, math.ceil(elsewhere)) if is_integer else max(elsewhere, 1e-6),
        "output_unit": "steps" if is_integer else "of the output's own unit",
    }


def _inputs(
    folder: Path, samples: Samples, layout: str, inputs: Sequence[TensorSpec]
) -> list[tuple[str, str, tuple[NDArray[Any], ...]]]:
    """Write the file of each golden input; returns its stem, file name and the tensors [1, ...] of all inputs."""
    from PIL import Image

    from pocketfit.sources import sound_preprocess
    from pocketfit.sources.image_preprocess import to_tensor

    made: list[tuple[str, str, tuple[NDArray[Any], ...]]] = []
    preprocess = samples.preprocess
    is_picture = samples.array.dtype == np.uint8 and not samples.more
    if is_picture:
        for stem, width in _chart_widths(preprocess).items():
            chart = folder / f"{stem}.png"
            Image.fromarray(draw_chart(preprocess, width)).save(chart)
            made.append((stem, chart.name, (to_tensor(chart, preprocess, layout),)))
    if preprocess.sound is not None:
        draw_chirp(folder / "chirp.wav", preprocess.sound)
        heard = sound_preprocess.to_tensor(folder / "chirp.wav", preprocess.sound)
        made.append(("chirp", "chirp.wav", (heard.reshape(inputs[0].with_batch(1)),)))
    for number, row in enumerate(_spread(len(samples))):
        one = slice(row, row + 1)
        values = (samples.inputs(one, layout),) if is_picture else fed(samples, one, inputs)
        stem = f"sample{number}"
        if is_picture:
            _picture(np.asarray(samples.array[row], np.uint8), preprocess).save(folder / f"{stem}.png")
        elif len(values) > 1:
            _save(folder / f"{stem}.npz", inputs, values)
        else:
            np.save(folder / f"{stem}.npy", values[0], allow_pickle=False)
        suffix = "png" if is_picture else "npz" if len(values) > 1 else "npy"
        made.append((stem, f"{stem}.{suffix}", values))
    return made


def _spread(count: int) -> list[int]:
    """Rows spread over all: 100 -> [0, 33, 66]."""
    return sorted({count * number // SAMPLES for number in range(SAMPLES)}) if count else []


def _picture(pixels: NDArray[np.uint8], preprocess: Preprocess) -> Image:
    """uint8 [H, W, C] after the geometry, channels as the network takes them -> an image that decodes to it."""
    from PIL import Image

    if preprocess.colour == "GRAY":
        return Image.fromarray(pixels[:, :, 0])
    return Image.fromarray(pixels[:, :, ::-1].copy() if preprocess.colour == "BGR" else pixels)


def _chart_widths(preprocess: Preprocess) -> dict[str, int]:
    """The charts that show every rule of the geometry: wider than the network's input, and where narrow images are
    treated in another way, about half as wide as the input."""
    widths = {"chart": preprocess.width * 7 // 4 | 1}
    return widths | {"chart-narrow": max(3, preprocess.width * 5 // 8 | 1)} if preprocess.resize == "height" else widths


def draw_chart(preprocess: Preprocess, width: int) -> NDArray[np.uint8]:
    """uint8 [H, width, 4]: colour ramps, stripes of one pixel, a disc, and a corner that fades out.

    Larger than the network's input and with odd sides, so that every rule of the geometry shows.
    """
    height = preprocess.height * 5 // 4 | 1
    y, x = np.mgrid[0:height, 0:width]
    down, across = y / (height - 1), x / (width - 1)
    chart: NDArray[np.float64] = np.stack(
        [255 * across, 255 * down, 255 * (1 - across) * down, 255 * np.ones_like(across)], axis=-1
    )
    chart[((x + y) % 2 == 0) & (down > 0.7), :3] = 0
    chart[np.hypot(down - 0.35, across - 0.3) < 0.2, :3] = (220, 30, 60)
    chart[..., 3] = np.where((down < 0.4) & (across > 0.6), 255 * down / 0.4, 255)
    pixels: NDArray[np.uint8] = np.rint(chart).astype(np.uint8)
    return pixels


def draw_chirp(path: Path, sound: Sound) -> None:
    """A .wav file of 16 bits in two channels, at 1.5 times the network's rate where it resamples, and a quarter longer
    than what is kept: a rising tone on the left, steps of another one on the right, and silence at the end."""
    rate_hz = sound.rate_hz * 3 // 2 if sound.resample == "polyphase" else sound.rate_hz
    seconds = 1.25 * sound.samples / sound.rate_hz
    at = np.arange(max(8, round(seconds * rate_hz))) / (seconds * rate_hz)  # 0 to 1
    cycles = seconds * sound.rate_hz / 4  # of the highest tone, half of what the network's rate can carry
    rising = 0.6 * np.sin(np.pi * cycles * at**2)
    steps = 0.3 * np.sin(2 * np.pi * cycles / 4 * at) * (np.floor(8 * at) % 2)
    both = np.stack([rising, steps], axis=1) * (at[:, np.newaxis] < 0.7)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.rint(32767 * both).astype("<i2").tobytes())
