"""explain.json -> explain.html."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_explanation(out: Path, result: dict[str, Any]) -> Path:
    out.mkdir(parents=True, exist_ok=True)
    path = out / "explain.json"
    path.write_text(json.dumps(result, indent=1))
    return path
