"""The reference preprocessing of recordings, against librosa's numbers and scipy's functions."""

import ast
import io
import struct
import sys
import wave
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import fft, signal
from scipy.io import wavfile

from pocketfit.core.errors import UserError
from pocketfit.core.preprocess import LOG_MEL, MFCC, WAVEFORM, Preprocess, Sound
from pocketfit.sources import sound_preprocess as reference
from pocketfit.sources.input_contract import read_preprocess

RAW = Sound(features="waveform", order="L", samples=8)


def noise(count, seed=0):
    return 0.3 * np.random.default_rng(seed).standard_normal(count)


# What librosa 0.11.0 gives: filters.mel(sr=16000, n_fft=64, n_mels=5, fmin=100, fmax=7000), the first numbers that are
# not 0, frequency by frequency; and log(melspectrogram(...) + 1e-6) of the tone below, and its mfcc.
SLANEY = [6.94255002e-04, 1.85134667e-03, 1.29365175e-03, 7.24774853e-04, 1.39929544e-04, 1.70146769e-03]
HTK = [0.40896111, 0.93790589, 0.06209411, 0.47056839, 0.52943161, 0.00323088, 0.99676912, 0.6817872, 0.3182128]
LOG_MELS = [
    [9.5169, 6.0163, 2.9714, 1.2938, 0.0286, -0.8329],
    [9.7724, 7.3667, -8.6417, -12.7375, -13.7371, -13.8097],
    [9.5007, 8.671, -7.2136, -12.3713, -13.7086, -13.8083],
    [9.1123, 9.2236, -5.525, -11.8923, -13.671, -13.8066],
    [8.7612, 9.4278, 5.4725, 3.1097, 1.7126, 0.8077],
]
CEPSTRA = [
    [7.7543, 8.467, 2.2094, 1.0959],
    [-12.9769, 22.3788, 8.6709, -0.6604],
    [-11.8107, 22.906, 7.6386, -1.7262],
    [-10.8426, 23.0795, 6.3615, -2.5895],
    [11.9582, 7.9382, 0.4933, -0.8673],
]
TONE = Sound(
    samples=1600,
    fft=512,
    window=400,
    hop=400,
    edges="reflect",
    mels=6,
    low_hz=50,
    high_hz=8000,
    offset_by="add",
    order="TxF",
    cepstra=4,
)


def test_mel_filters_are_those_of_librosa():
    for scale, area, wanted in (("slaney", "slaney", SLANEY), ("htk", "none", HTK)):
        found = reference.mel_filters(16000, 64, 5, 100.0, 7000.0, scale, area)
        assert found[found > 0][: len(wanted)] == pytest.approx(wanted, abs=1e-8)


def test_features_are_those_of_librosa():
    at = np.arange(1600) / 16000
    tone = np.sin(2 * np.pi * (300 + 2000 * at) * at)
    assert np.abs(reference.features(tone, TONE) - LOG_MELS).max() < 1e-4
    assert np.abs(reference.features(tone, replace(TONE, features="mfcc")) - CEPSTRA).max() < 1e-4


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_spectra_are_those_of_scipy(power):
    sound, samples = (
        Sound(samples=4000, window=400, fft=512, hop=160, power=power, log="none", order="TxF"),
        noise(4000),
    )
    hann = signal.get_window("hann", 400)
    _, _, spectra = signal.stft(samples, nperseg=400, noverlap=240, nfft=512, window=hann, boundary=None, padded=False)
    wanted = np.abs(spectra * hann.sum()).T ** power
    filters = reference.mel_filters(16000, 512, 40, 20.0, 4000.0, "htk", "none")
    assert reference.features(samples, sound) == pytest.approx((wanted @ filters).astype(np.float32), rel=1e-5)


def test_cosines_are_the_orthonormal_dct():
    values = noise(40)
    assert values @ reference.cosines(40, 13) == pytest.approx(fft.dct(values, norm="ortho")[:13], abs=1e-12)


@pytest.mark.parametrize(
    ("log", "by", "formula"),
    [
        ("ln", "add", lambda x: np.log(x + 0.01)),
        ("ln", "max", lambda x: np.log(np.maximum(x, 0.01))),
        ("log10", "max", lambda x: np.log10(np.maximum(x, 0.01))),
    ],
)
def test_logarithms_and_values(log, by, formula):
    plain = replace(TONE, log="none")
    mel = reference.log_mel(noise(1600), plain)
    found = reference.features(noise(1600), replace(plain, log=log, offset=0.01, offset_by=by, mean=1.5, std=0.1))
    assert found == pytest.approx((formula(mel) - 1.5) / 0.1, abs=1e-4)


@pytest.mark.parametrize(
    ("old", "new"), [(44100, 16000), (8000, 16000), (48000, 16000), (11025, 16000), (16000, 22050)]
)
@pytest.mark.parametrize("count", [1, 7, 3001])
def test_resampling_is_scipys_polyphase(old, new, count):
    common = np.gcd(old, new)
    wanted = signal.resample_poly(noise(count), new // common, old // common)
    assert reference.resampled(noise(count), old, new) == pytest.approx(wanted, abs=1e-12)


def test_orders_of_axes_and_frames():
    samples = noise(16000)
    both = reference.features(samples, Sound(order="TxF"))
    assert both.shape == (49, 40)
    for order, wanted in (("1xTxF", both[None]), ("1xFxT", both.T[None]), ("FxT", both.T)):
        sound = Sound(order=order)
        assert np.array_equal(reference.features(samples, sound), wanted)
        assert wanted.shape == sound.shape
    for edges in ("zeros", "reflect"):
        sound = Sound(edges=edges, hop=333, window=401)
        assert reference.features(samples, sound).shape == sound.shape


def test_cut_padded_mixed_and_amplified():
    both = np.array([[0.25, 0.75], [0.5, 0.0], [-1.0, 0.0]])
    mono = np.array([0.5, 0.25, -0.5])
    assert reference.wave(both, 16000, RAW) == pytest.approx([*mono, 0, 0, 0, 0, 0])
    assert reference.wave(both, 16000, replace(RAW, keep="centre", gain=2.0)) == pytest.approx(
        [0, 0, 1, 0.5, -1, 0, 0, 0]
    )
    assert reference.wave(both, 16000, replace(RAW, samples=2)) == pytest.approx(mono[:2])
    assert reference.wave(both, 16000, replace(RAW, samples=1, keep="centre")) == pytest.approx(mono[1:2])


def test_another_rate_is_resampled_or_refused_with_both_rates():
    values = noise(3000)[:, None]
    sound = replace(RAW, samples=2000)
    found = reference.wave(values, 24000, sound)
    assert found == pytest.approx(signal.resample_poly(values[:, 0], 2, 3), abs=1e-12)
    with pytest.raises(reference.BadSound, match=r"24000 Hz.*16000 Hz"):
        reference.wave(values, 24000, replace(sound, resample="refuse"))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 2])
def test_files_are_read_as_scipy_reads_them(dtype, channels, tmp_path):
    values = np.clip(noise(101 * channels), -1, 1).reshape(101, channels)
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        values = np.round(values * limits.max * 0.99).clip(limits.min, limits.max)
    values = values.astype(dtype)
    path = tmp_path / "a.wav"
    wavfile.write(path, 22050, values)
    found, rate = reference.read_wave(path)
    scale = {"u": 128.0, "i": 2.0 ** (8 * np.dtype(dtype).itemsize - 1), "f": 1.0}[np.dtype(dtype).kind]
    wanted = (values.astype(np.float64) - (128 if dtype is np.uint8 else 0)) / scale
    assert rate == 22050
    assert np.array_equal(found, wanted)


def test_24_bits(tmp_path):
    numbers = [0, 1, -1, 2**23 - 1, -(2**23), 12345]
    with wave.open(str(tmp_path / "a.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(3)
        file.setframerate(8000)
        file.writeframes(b"".join(number.to_bytes(3, "little", signed=True) for number in numbers))
    found, _ = reference.read_wave(tmp_path / "a.wav")
    assert np.array_equal(found[:, 0] * 2**23, numbers)
    with pytest.raises(reference.BadSound, match=r"a\.wav cannot be read"):
        (tmp_path / "a.wav").write_bytes(b"RIFF")
        reference.to_tensor(tmp_path / "a.wav", RAW)


def made(tag=1, channels=1, rate=16000, frame=2, bits=16, data=b"\0\0" * 8, declared=None, extra=b""):
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits) + extra
    size = len(data) if declared is None else declared
    body = b"WAVE" + b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body += b"fmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size) + data
    return io.BytesIO(b"RIFF" + struct.pack("<I", len(body)) + body)


def test_headers_of_other_programs():
    pcm = struct.pack("<HHIH", 22, 16, 4, 1) + bytes.fromhex("000000001000800000aa00389b71")
    ramp = np.arange(8, dtype="<i2").tobytes()
    for file in (made(data=ramp), made(0xFFFE, extra=pcm, data=ramp), made(data=ramp, declared=0xFFFFFFFF)):
        found, rate = reference.read_wave(file)
        assert (found[:, 0] * 2**15).tolist() == list(range(8)) and rate == 16000


@pytest.mark.parametrize(
    ("file", "why"),
    [
        (io.BytesIO(b""), "no .wav file"),
        (io.BytesIO(b"RIFF\0\0\0\0WAVEfmt "), "cut short"),
        (made(data=b""), "no samples"),
        (made(channels=0), "header is damaged"),
        (made(channels=60000, frame=65535), "header is damaged"),
        (made(rate=0), "header is damaged"),
        (made(tag=2), r"format \(2, 16 bits\)"),
        (made(tag=3, frame=4, bits=32, data=struct.pack("<ff", 1.0, float("nan"))), "NaN"),
    ],
)
def test_damaged_files_are_a_sentence(file, why):
    with pytest.raises(reference.BadSound, match=why):
        reference.read_wave(file)


def test_what_would_grow_too_large_is_refused():
    with pytest.raises(reference.BadSound, match="too long"):
        reference.resampled(np.zeros(1000), 1, 999_983)
    with pytest.raises(reference.BadSound, match="999983 Hz, and 16000 Hz is no simple ratio"):
        reference.resampled(np.zeros(10), 999_983, 16000)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"window": 2000}, "'window'"),
        ({"high_hz": 9000.0}, "'high_hz'"),
        ({"low_hz": 5000.0}, "'high_hz'"),
        ({"features": "mfcc", "cepstra": 41}, "'cepstra'"),
        ({"features": "waveform"}, "'order'"),
        ({"order": "L"}, "'order'"),
        ({"offset": 0.0}, "logarithm"),
        ({"std": 0.0}, "'std'"),
        ({"hop": 1, "samples": 2**26}, "'hop'"),
        ({"mels": 0}, "mels"),
    ],
)
def test_settings_that_contradict_each_other(change, why):
    with pytest.raises(UserError, match=why):
        Sound(**change)


def test_json_both_ways_and_nothing_else_beside():
    for contract in (LOG_MEL, MFCC, WAVEFORM):
        assert Preprocess.from_json(contract.to_json()) == contract
    with pytest.raises(UserError, match="height"):
        Preprocess.from_json({"sound": {}, "height": 3})
    with pytest.raises(UserError, match="sound"):
        Preprocess.from_json({"sound": {"mel": 3}})


def test_presets_by_name_and_their_shapes(tmp_path):
    for name, shape in (("log-mel", (1, 49, 40)), ("mfcc", (1, 49, 10)), ("waveform", (1, 16000))):
        contract, said = read_preprocess(name, shape)
        assert (contract.shape, said) == (shape, ())
    with pytest.raises(UserError, match=r"\[1, 49, 41\].*\[1, 49, 40\]"):
        read_preprocess("log-mel", (1, 49, 41))
    (tmp_path / "own.json").write_text('{"sound": {"mels": 8, "order": "FxT"}}')
    assert read_preprocess(tmp_path / "own.json", None)[0].shape == (8, 49)


def test_it_stands_alone():
    """A bundle holds a copy: numpy and the standard library."""
    tree = ast.parse(Path(reference.__file__).read_text())
    guarded = [node for node in tree.body if isinstance(node, ast.If)]
    (guard,) = guarded
    tree.body.remove(guard)
    names = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    roots = {
        name.split(".")[0]
        for node in names
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert roots <= {"numpy", *sys.stdlib_module_names}
