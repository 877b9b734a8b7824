"""Fourier transforms and windows, as speech networks bring them along."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pocketfit.sources.onnx.builder import CannotConvert
from pocketfit.sources.onnx.call import Call, Table, dim_of
from pocketfit.sources.onnx.tensors import DTYPES


def dft(call: Call) -> Any:
    """The last dimension holds real and imaginary part, or the real part alone."""
    default = -2 if call.version >= 20 else 1
    axis = int(call.number(2, default)) if call.version >= 20 else call.get("axis", default)
    length = int(call.number(1)) if call.has(1) else None
    one_sided, inverse = bool(call.get("onesided", 0)), bool(call.get("inverse", 0))
    return call.emit(fourier, call.tensor(0), length, dim_of(axis, call.rank(0)), one_sided, inverse)


def fourier(value: Tensor, length: int | None, dim: int, one_sided: bool, inverse: bool) -> Tensor:
    """[..., 1 or 2] -> [..., 2]; one-sided and inverse: half a spectrum -> [..., 1]."""
    numbers = torch.view_as_complex(value.contiguous()) if value.shape[-1] == 2 else value[..., 0].to(_complex(value))
    if inverse and one_sided:
        signal: Tensor = torch.fft.irfft(numbers, length, dim)
        return signal[..., None]
    result: Tensor = (torch.fft.ifft if inverse else torch.fft.fft)(numbers, length, dim)
    if one_sided:
        result = result.narrow(dim, 0, result.shape[dim] // 2 + 1)
    return torch.view_as_real(result)


def _complex(value: Tensor) -> torch.dtype:
    return torch.complex128 if value.dtype is torch.float64 else torch.complex64


def stft(call: Call) -> Any:
    """Frames of a signal, windowed and transformed: [batch, frames, frequencies, 2]."""
    step = int(call.number(1))
    window = call.tensor(2) if call.has(2) else None
    length = int(call.number(3)) if call.has(3) else call.static(2)[0]
    if length is None or not 0 < length < 2**24 or not 0 < step < 2**24:
        raise CannotConvert("how long its frames are must be known")
    return call.emit(spectrogram, call.tensor(0), step, window, length, bool(call.get("onesided", 1)))


def spectrogram(signal: Tensor, step: int, window: Tensor | None, length: int, one_sided: bool) -> Tensor:
    """`signal`: [batch, samples, 1 or 2], or [batch, samples]."""
    signal = signal[..., None] if signal.ndim == 2 else signal
    frames = signal.unfold(1, length, step).transpose(2, 3)  # [batch, frames, length, 1 or 2]
    if window is not None:
        frames = frames * window[:, None]
    return fourier(frames, None, 2, one_sided, False)


def window(first: float, second: float, third: float) -> Any:
    """A sum of cosines: first - second cos(x) + third cos(2 x)."""

    def handler(call: Call) -> Any:
        length = int(call.number(0))
        dtype = DTYPES.get(call.get("output_datatype", 1))
        if dtype is None or not dtype.is_floating_point or not 0 < length < 2**24:
            raise CannotConvert("its length or kind is impossible")
        return call.emit(cosines, length, bool(call.get("periodic", 1)), (first, second, third), dtype)

    return handler


def cosines(length: int, periodic: bool, parts: tuple[float, float, float], dtype: torch.dtype) -> Tensor:
    x = torch.arange(length, dtype=torch.float64) * (2 * math.pi / (length if periodic else max(length - 1, 1)))
    return (parts[0] - parts[1] * torch.cos(x) + parts[2] * torch.cos(2 * x)).to(dtype)


def grid_sample(call: Call) -> Any:
    modes = {
        "linear": "bilinear",
        "bilinear": "bilinear",
        "nearest": "nearest",
        "cubic": "bicubic",
        "bicubic": "bicubic",
    }
    mode = modes.get(call.get("mode", "linear"))
    if mode is None or (mode == "bicubic" and call.rank(0) != 4):
        raise CannotConvert("torch samples cubically on images of two dimensions only")
    border, corners = call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0))
    return call.emit(F.grid_sample, call.tensor(0), call.tensor(1), mode, border, corners)


def affine_grid(call: Call) -> Any:
    size = call.integers(1)
    return call.emit(F.affine_grid, call.tensor(0), size, bool(call.get("align_corners", 0)))


TABLE: Table = {
    "DFT": dft,
    "STFT": stft,
    "HannWindow": window(0.5, 0.5, 0.0),
    "HammingWindow": window(25 / 46, 21 / 46, 0.0),
    "BlackmanWindow": window(0.42, 0.5, 0.08),
    "GridSample": grid_sample,
    "AffineGrid": affine_grid,
}
