"""Real weights and photos come from packages, fetched once into .downloads/ (never committed)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("pocketfit.testing.runtime_contract")

# As the command line does: tests that train share two cores with whatever else runs.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# Machines are shared, and the first example loads operators: time is shown in benchmarks/, not in tests. The examples
# are the same in every run, so that a change is judged by what it changed; HYPOTHESIS_PROFILE=searching draws new ones.
untimed = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeating", derandomize=True, **untimed)
settings.register_profile("searching", **untimed)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeating"))

ROOT = Path(__file__).resolve().parent.parent
DOWNLOADS = ROOT / ".downloads"


def _fetched(what: str) -> Path:
    DOWNLOADS.mkdir(exist_ok=True)
    with FileLock(DOWNLOADS / ".fetching"):  # the tests' processes must not fetch the same thing at once
        done = subprocess.run(
            [sys.executable, str(ROOT / "tools/fetch.py"), what, "-o", str(DOWNLOADS)],
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        pytest.skip(f"{what} could not be fetched: {done.stderr.strip().splitlines()[-1:]}")
    return Path(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="session")
def mobilenet_v2_checkpoint() -> Path:
    """torchvision's ImageNet weights of MobileNetV2: a plain state dict."""
    return _fetched("mobilenet_v2")


@pytest.fixture(scope="session")
def efficientnet_lite0_checkpoint() -> Path:
    """ImageNet weights of EfficientNet-Lite0."""
    return _fetched("efficientnet_lite0")


@pytest.fixture(scope="session")
def rapidocr() -> Path:
    """The folder of the PP-OCRv4 recogniser and detector, as in their wheel."""
    return _fetched("rapidocr")


@pytest.fixture(scope="session")
def ocr_fonts() -> Path:
    """A folder of the fonts of the OCR benchmark."""
    return _fetched("ocr-fonts")


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """fashion-mnist.npz."""
    return _fetched("fashion-mnist")


@pytest.fixture(scope="session")
def stamps() -> Path:
    """Cut-out photos, by path below this folder."""
    return _fetched("stamps")
