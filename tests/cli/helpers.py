"""What tests of verbs begin with, a folder with a small network and data, and what a refusal looks like."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result


def folder(path: Path, monkeypatch: pytest.MonkeyPatch, module: str, factory: str, pictures: int) -> Path:
    """A folder, made the current one, with a factory (`net` in `module`), its weights, and data of two classes.

    The modules' names differ from test to test: an imported module outlives the test that wrote it.
    """
    monkeypatch.chdir(path)
    monkeypatch.syspath_prepend(path)
    Path(f"{module}.py").write_text(factory)
    Path("preprocess.json").write_text(json.dumps({"height": 16, "width": 16, "resize": "exact"}))
    namespace: dict[str, object] = {}
    exec(factory, namespace)
    torch.manual_seed(0)
    torch.save(namespace["net"]().state_dict(), "good.pth")  # type: ignore[operator]
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.integers(0, 256, (pictures, 16, 16, 3), np.uint8), y=np.arange(pictures) % 2)
    return path


def refused(result: Result, *words: str) -> None:
    """Exit code 2, nothing on stdout, these words in the last line on stderr, and no output folder."""
    assert result.exit_code == 2 and result.stdout == "", result.output
    line = result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr and all(word in line for word in words), line
    assert not Path("out").exists()
