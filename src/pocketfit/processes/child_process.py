"""Run a function in a Python process of its own, with a time and a memory limit.

Converters, quantizers and runtimes crash, leak and print. Whatever happens in the child comes back as a result, as one
of our own errors, or as ExportFailed with the last lines that the child printed. The process is a fresh one or, where a
server is named, a fork of a process that has loaded what the function needs (fork_server.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from pocketfit.core import errors
from pocketfit.core.support.scratch import temporary_folder
from pocketfit.processes import fork_server
from pocketfit.processes.child_job import LOG

LOG_LINES = 30
POLL_S = 0.05
KILLED_S = 60.0  # how long a killed process may take to end: the kernel may have much memory to free
SAFE_PATH = {"PYTHONSAFEPATH": "1"}  # modules in the current directory do not replace packages


def call(
    target: str,
    payload: Mapping[str, Any],
    *,
    timeout_s: float = 900.0,
    memory_bytes: int = 12 * 2**30,
    environment: Mapping[str, str] | None = None,
    server: str = "",
    start_server: bool = True,
) -> Any:
    """Call `target` ("package.module:function") with `payload` in a child process and return what it returns.

    Both travel as JSON. `memory_bytes` limits the resident memory of the child. Errors of pocketfit's own tree that
    the function raises are raised here again; any other end of the child is ExportFailed, with the log's tail.

    server        "package.module:function" that loads what `target` needs: the child is a fork of a process that has
                  called it. "": a fresh process, for whatever is timed or whose memory is measured
    start_server  False for a job that takes less time in a fresh process than a server takes to load: it is forked only
                  from a server that runs already
    """
    with temporary_folder() as folder:
        result_path, log_path = Path(folder, "result.json"), Path(folder, LOG)
        Path(folder, "payload.json").write_text(json.dumps(payload))
        whole = _whole(environment)
        process: subprocess.Popen[bytes] | fork_server.Forked | None = None
        if server:
            process = fork_server.fork(server, target, folder, whole, may_start=start_server)
        if process is None:
            process = _fresh(target, folder, whole)
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


def prepare(server: str, environment: Mapping[str, str]) -> None:
    """Start a server, so that it has loaded when `call` comes."""
    fork_server.start(server, _whole(environment))


def _whole(environment: Mapping[str, str] | None) -> dict[str, str]:
    """The environment of a child: our variables, our sys.path, and the given variables."""
    path = os.pathsep.join(filter(None, sys.path))
    return {**os.environ, **SAFE_PATH, "PYTHONPATH": path, **(environment or {})}


def _fresh(target: str, folder: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with Path(folder, LOG).open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pocketfit.processes.child_job", target, folder, str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def _wait(process: subprocess.Popen[bytes] | fork_server.Forked, timeout_s: float, memory_bytes: int) -> str:
    """Wait for the child; returns why it was killed, "" where it ended by itself."""
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


def _kill(process: subprocess.Popen[bytes] | fork_server.Forked) -> None:
    if process.poll() is None:
        process.kill()
        process.wait(KILLED_S)


def _name(target: str) -> str:
    return f"The step {target.removeprefix('pocketfit.').replace(':', '.')}"
