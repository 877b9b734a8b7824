"""A mark for tests that take many minutes and tell more than the suite of every day needs."""

from __future__ import annotations

import os

import pytest

everything = pytest.mark.skipif(
    not os.environ.get("POCKETFIT_EVERYTHING"), reason="takes many minutes: set POCKETFIT_EVERYTHING=1"
)
