"""Run a function in a fresh Python process, with a time and a memory limit.

Converters, quantizers and runtimes crash, leak and print. Whatever happens in the child ends up here as a result, as
one of our own errors, or as ExportFailed with the last lines that the child printed.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pocketfit.core import errors
from pocketfit.core.scratch import temporary_folder

LOG_LINES = 30
POLL_S = 0.05
SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # what lies in the current directory does not stand in for a package
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def call(
    target: str,
    payload: Mapping[str, Any],
    *,
    timeout_s: float = 900.0,
    memory_bytes: int = 12 * 2**30,
    environment: Mapping[str, str] | None = None,
) -> Any:
    """Call `target` ("package.module:function") with `payload` in a child process and return what it returns.

    Both travel as JSON. `memory_bytes` limits the resident memory of the child. Errors of pocketfit's own tree that
    the function raises are raised here again; any other end of the child is ExportFailed, with the log's tail.
    """
    with temporary_folder() as folder:
        result_path, log_path = Path(folder, "result.json"), Path(folder, "log")
        Path(folder, "payload.json").write_text(json.dumps(payload))
        with log_path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "pocketfit.runtimes.child", target, folder, str(os.getpid())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={
                    **os.environ,
                    **SAFE_PATH,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                    **(environment or {}),
                },
                start_new_session=True,
            )
        try:
            reason = _wait(process, timeout_s, memory_bytes)
        finally:
            _kill(process)
        tail = "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_LINES:])
        if reason:
            raise errors.ExportFailed(f"{_name(target)} {reason}", tail)
        if not result_path.exists():
            raise errors.ExportFailed(f"{_name(target)} died with exit status {process.returncode}", tail)
        result = json.loads(result_path.read_text())
    if "value" in result:
        return result["value"]
    kind = getattr(errors, result["type"], None)
    if kind is not None and kind is not errors.MissingPackage and kind is not errors.ExportFailed:
        raise kind(result["message"])
    if kind is errors.MissingPackage:
        raise errors.UserError(result["message"])
    raise errors.ExportFailed(f"{_name(target)} failed: {result['message']}", tail)


def _wait(process: subprocess.Popen[bytes], timeout_s: float, memory_bytes: int) -> str:
    """ "" when the child ended by itself, else why it was ended."""
    deadline = time.monotonic() + timeout_s
    handle: psutil.Process | None = None
    with contextlib.suppress(psutil.Error):  # a child that is already gone has nothing left to watch
        handle = psutil.Process(process.pid)
    while True:
        try:
            process.wait(POLL_S)
            return ""
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return f"was stopped after {timeout_s:.0f} s, its time limit"
        with contextlib.suppress(psutil.Error):
            if handle is not None and handle.memory_info().rss > memory_bytes:
                return f"was stopped at {memory_bytes / 1e9:.1f} GB of memory, its limit"


def _kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
        process.wait()


def _name(target: str) -> str:
    return f"The step {target.removeprefix('pocketfit.').replace(':', '.')}"


def main(target: str, folder: str) -> None:
    """The child's side: call the function, write its result beside the payload."""
    payload = json.loads(Path(folder, "payload.json").read_text())
    module, function = target.split(":")
    try:
        result: dict[str, Any] = {"value": getattr(importlib.import_module(module), function)(**payload)}
    except Exception as error:  # every failure must reach the parent as data
        traceback.print_exc()
        result = {"type": type(error).__name__, "message": str(error) or type(error).__name__}
    partial = Path(folder, "result.partial")
    partial.write_text(json.dumps(result))
    partial.replace(Path(folder, "result.json"))


def _die_with(parent: int) -> None:
    """Where the parent is killed, the child must not go on: the run that takes over would be timed beside it.

    Linux only; elsewhere an orphan works on to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)


if __name__ == "__main__":
    _die_with(int(sys.argv[3]))
    main(sys.argv[1], sys.argv[2])
