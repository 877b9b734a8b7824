"""The whole road on real material: pretrained MobileNetV2, Fashion-MNIST, limits, a proven file in demo-out/.

    make demo

The same two commands work on your own folder of photos.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DOWNLOADS, MODEL, OUT = ROOT / ".downloads", ROOT / "demo-data" / "model", ROOT / "demo-out"
IMAGE_SIZE = 64  # the pictures are 28 pixels wide
TRAINING = ["--epochs", 0.6, "--max-time", "3min"]
LIMITS = ["--max-size", "0.28x", "--max-latency", "0.6x", "--max-drop", "1pt", "--max-time", "8min"]


def main() -> int:
    started = time.monotonic()
    run(sys.executable, ROOT / "tools/fetch.py", "fashion-mnist", "mobilenet_v2", "-o", DOWNLOADS)
    for folder in (MODEL, OUT):
        shutil.rmtree(folder, ignore_errors=True)
    data, weights = DOWNLOADS / "fashion-mnist.npz", DOWNLOADS / "mobilenet_v2.pth"
    size = ["--image-size", IMAGE_SIZE]
    pocketfit = [sys.executable, "-m", "pocketfit"]
    run(*pocketfit, "train", "mobilenet_v2", "--weights", weights, "--data", data, *size, *TRAINING, "-o", MODEL)
    code = run(*pocketfit, "fit", MODEL, "--data", data, "--keep-resolution", *LIMITS, "-o", OUT, check=False)
    result = json.loads((OUT / "result.json").read_text())
    certified = "certified" if result["certified"] else "not certified"
    print(f"\n{result['status']}, {certified}, after {time.monotonic() - started:.0f} s: open demo-out/report.html")
    return code


def run(*command: object, check: bool = True) -> int:
    words = [str(word) for word in command]
    print("$", *(w.removeprefix(f"{ROOT}/") for w in words), flush=True)
    return subprocess.run(words, check=check, cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main())
