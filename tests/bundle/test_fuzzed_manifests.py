"""Manifests, changed a thousand times: run.py says PASS or FAIL, pocketfit reads them or refuses them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pocketfit.bundle.manifest import read_manifest
from pocketfit.bundle.python import run
from tests.mutations import COUNTS, FEW_COUNTS, as_text, changed, mutated, survived


@pytest.mark.parametrize("count", COUNTS)
def test_manifests(
    count: int,
    make: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As run.py reads them, and as pocketfit does. None is run: each has another seal than before, or no sense."""
    bundle = make("onnxruntime")
    path = bundle / "manifest.json"
    sound = json.loads(path.read_text())

    def read() -> None:
        same = json.dumps(_parsed(path), sort_keys=True) == json.dumps(sound, sort_keys=True)  # 0 is not False here
        assert run.main(["--selftest"], bundle) == (0 if same else 1)
        told = capsys.readouterr()
        assert told.err == "" and told.out.startswith("PASS" if same else "FAIL: ")
        read_manifest(path)

    seen = survived(count, bundle, lambda rng: path.write_bytes(mutated(sound, rng)), read)
    assert seen["refused"] > count / 3


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None


@pytest.mark.parametrize("count", FEW_COUNTS)
def test_manifests_with_a_seal_that_fits(
    count: int,
    make: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By somebody who knows how the seal is made: run.py ends with PASS, FAIL or one sentence."""
    bundle = make("onnxruntime")
    path = bundle / "manifest.json"
    sound = json.loads(path.read_text())

    def write(rng: random.Random) -> None:
        made = changed(sound, rng)
        if isinstance(made, dict):
            made["seal"] = run.seal(made)
        path.write_bytes(as_text(made))

    def read() -> None:
        assert run.main(["--selftest"], bundle) in (0, 1)
        told = capsys.readouterr()
        assert told.err == "" and told.out.startswith(("PASS", "FAIL: "))

    survived(count, bundle, write, read)
