"""What a latency ratio is worth beside a process that streams memory: `fit` alone and with it, and two files by hand.

    python -m benchmarks.end_to_end.busy_machine [--arch resnet18] [--runtime onnxruntime] [--image-size 64] [--max-time
    6min]

The first line is the machine as it is: whether that is quiet, the run itself says. A ratio holds where it is within
15 % of the quiet one, or where it is not certified and says why.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

LIMITS = ("--max-latency", "0.9x", "--max-drop", "20pt", "--max-trials", "3", "--keep-resolution")
STREAM = """
import numpy as np
there = np.ones(2**25, np.int64)
here = np.empty_like(there)
print("streaming", flush=True)
while True:
    np.copyto(here, there)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--max-time", default="6min")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "colours.npz"
        np.savez(data, **colours(600, 32))
        size = ("--image-size", options.image_size)
        run("train", options.arch, "--data", data, *size, "--max-time", "30s", "--epochs", 0.2, "-o", folder / "model")
        settings = (*LIMITS, "--runtime", options.runtime, "--max-time", options.max_time)
        for title, beside in (("as it is", 0), ("beside one stream", 1)):
            with neighbours(beside):
                out = folder / f"out{beside}"
                run("fit", folder / "model", "--data", data, *settings, "-o", out)
            report(title, json.loads((out / "result.json").read_text()))
    return 0


def colours(count: int, side: int) -> dict[str, np.ndarray]:
    """Noise of four colours; what is learned is of no account here."""
    random, labels = np.random.default_rng(0), np.arange(count) % 4
    tint = np.array([[160, 0, 0], [0, 160, 0], [0, 0, 160], [120, 120, 0]])[labels]
    pixels = random.integers(0, 90, (count, side, side, 3)) + tint[:, None, None]
    return {"x": pixels.astype(np.uint8), "y": labels}


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that copy 256 MB from memory to memory, again and again."""
    started = [subprocess.Popen([sys.executable, "-c", STREAM], stdout=subprocess.PIPE) for _ in range(count)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.communicate()


def run(*words: object) -> None:
    """A verb of pocketfit. Limits that are not met (exit code 1) are a result, too."""
    command = [sys.executable, "-m", "pocketfit", *map(str, words)]
    code = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if code not in (0, 1):
        raise SystemExit(f"pocketfit {words[0]} ended with {code}")


def report(title: str, result: dict[str, object]) -> None:
    measured = result["chosen"]["measurements"]["latency_ratio"]  # type: ignore[index]
    base = result["baseline"]["measurements"]["latency_ms"]  # type: ignore[index]
    (check,) = (entry for entry in result["limits"] if entry["quantity"] == "latency")  # type: ignore[attr-defined]
    where = measured["environment"]
    print(
        f"{title}: {result['chosen']['code']} {measured['value']:.3f}x [{measured['low']:.3f}, {measured['high']:.3f}],"  # type: ignore[index]
        f" baseline {base['value']:.2f} ms; certified: {check['certified']}; {where['sessions']} of"
        f" {where['sessions_taken']} sessions, waited {where.get('waited_s', 0)} s"
    )
    for sentence in check["reason"].split("; ") if check["reason"] else ():
        print(f"    {sentence}")


if __name__ == "__main__":
    sys.exit(main())
