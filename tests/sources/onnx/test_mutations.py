"""A thousand damaged and hostile files: each is read or refused in one sentence; nothing crashes or hangs."""

from __future__ import annotations

import sys
from pathlib import Path

from pocketfit.core.errors import ExportFailed
from pocketfit.processes import child_process
from tests.sources.onnx.onnx_files import conv_net

COUNT = 1000
DEATHS = 3  # of libraries; the process that opens a file only reports them


def test_each_is_read_or_refused(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(conv_net(2, 16, 16).SerializeToString())
    (tmp_path.parent / "secret.bin").write_bytes(b"0" * 2**16)
    log = tmp_path / "log"
    done: dict[str, int] = {}
    other: dict[str, str] = {}
    first, deaths = 0, []
    while first < COUNT:
        payload = {"path": str(tmp_path / "net.onnx"), "first": first, "count": COUNT - first, "log": str(log)}
        try:
            result = child_process.call(
                "tests.sources.onnx.mutations:run", payload, timeout_s=300, memory_bytes=4 * 2**30
            )
        except ExportFailed as error:
            deaths.append(f"{log.read_text()}: {error}")
            assert len(deaths) <= DEATHS, deaths
            first = int(log.read_text()) + 1
            continue
        done |= result["ends"]
        other |= result["other"]
        break
    assert other == {}
    assert result["too much"] == "refused" or sys.platform != "linux"
    assert done["read"] > 50 < done["refused"]
