"""Words spoken by a small formant synthesizer, as .wav files in folders by class; seeded.

    python -m benchmarks.sound.words FOLDER [-n 120] [--seed 0]

A voice is a train of pulses (or noise for consonants) through resonators at the formants of vowels (Peterson and Barney
1952). Speakers differ in pitch, length of the vocal tract and pace; recordings in place, loudness and noise. What is
learned from it is no speech recognition: it shows that a chain from .wav to answer works.
"""

from __future__ import annotations

import argparse
import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
VOWELS = {  # Hz
    "a": (730, 1090, 2440),
    "e": (530, 1840, 2480),
    "i": (270, 2290, 3010),
    "o": (570, 840, 2410),
    "u": (300, 870, 2240),
}
NOISE_HZ = {"s": 5000, "f": 3000, "k": 1800, "t": 4000}
WORDS = ("tasi", "kofu", "sea", "uki", "fate", "iso", "otu", "aek")
UNKNOWN = ("siku", "efa", "tuo", "kasu", "ofi")  # words of the class "other"


def speak(word: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """Samples from -1 to 1, of about half a second."""
    pitch, tract, pace = rng.uniform(90, 240), rng.uniform(0.85, 1.2), rng.uniform(0.8, 1.25)
    parts = []
    for letter in word:
        seconds = (0.16 if letter in VOWELS else 0.07) * pace * rng.uniform(0.85, 1.15)
        count = round(seconds * RATE_HZ)
        if letter in VOWELS:
            phase = np.cumsum(np.full(count, pitch / RATE_HZ) * np.linspace(1.05, 0.9, count))
            source, formants = np.diff(np.floor(phase), prepend=0), VOWELS[letter]
        else:
            source, formants = 0.3 * rng.standard_normal(count), (NOISE_HZ[letter],)
        sound = sum(_resonate(source, formant * tract, 60 + 0.05 * formant) for formant in formants)
        fade = np.minimum(1, np.minimum(np.arange(count), np.arange(count)[::-1]) / (0.01 * RATE_HZ))
        parts.append(fade * sound / (np.abs(sound).max() + 1e-9))
    spoken: NDArray[np.float64] = np.concatenate(parts)
    return spoken


def _resonate(source: NDArray[np.float64], centre_hz: float, width_hz: float) -> NDArray[np.float64]:
    """The source through one resonance, by its response: a decaying sine."""
    at = np.arange(round(0.03 * RATE_HZ)) / RATE_HZ
    response = np.exp(-np.pi * width_hz * at) * np.sin(2 * np.pi * centre_hz * at)
    return np.convolve(source, response)[: len(source)]


def recording(word: str, rng: np.random.Generator) -> NDArray[np.float64]:
    """One second with the word somewhere in it; "" is silence with noise."""
    found = 10 ** rng.uniform(-3, -1.3) * rng.standard_normal(RATE_HZ)
    if word:
        spoken = 10 ** rng.uniform(-0.9, -0.2) * speak(word, rng)[:RATE_HZ]
        start = rng.integers(0, RATE_HZ - len(spoken) + 1)
        found[start : start + len(spoken)] += spoken
    return found


def write(folder: Path, count: int, seed: int = 0, words: tuple[str, ...] = WORDS) -> Path:
    """`count` recordings of each word, of other words ("other") and of silence, by class; returns the folder."""
    rng = np.random.default_rng(seed)
    for name in (*words, "other", "silence"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            word = {"other": UNKNOWN[row % len(UNKNOWN)], "silence": ""}.get(name, name)
            save(folder / name / f"{row:04d}.wav", recording(word, rng))
    return folder


def save(path: Path, samples: NDArray[np.float64], rate_hz: int = RATE_HZ) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(np.clip(np.rint(32767 * samples), -32768, 32767).astype("<i2").tobytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-n", "--count", type=int, default=120, help="recordings of each class")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    write(given.folder, given.count, given.seed)


if __name__ == "__main__":
    main()
