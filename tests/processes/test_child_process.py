"""Whatever a child process does, the parent gets a value, an error of ours, or ExportFailed with the log's tail: from
a fresh process, and from a fork of a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from pocketfit.core import errors
from pocketfit.processes import child_process, fork_server

HERE = "tests.processes.test_child_process"
SERVER = f"{HERE}:nothing"
Call = Callable[..., Any]


def nothing() -> None:
    """A server that loads this file."""


@pytest.fixture(params=["fresh", "forked"])
def call(request: pytest.FixtureRequest) -> Call:
    if request.param == "fresh":
        return child_process.call
    if not fork_server.available():
        pytest.skip("no fork server on this system")
    return partial(child_process.call, server=SERVER)


def double(value: int) -> dict[str, int]:
    return {"doubled": 2 * value}


def talk() -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"past Python\n")
    return "quiet"


def leave(status: int) -> None:
    print("last words", flush=True)
    os._exit(status)


def crash() -> None:
    print("before the crash", flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)


def hang(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(600)


def flood() -> None:
    hoard = []
    while True:
        hoard.append(bytearray(os.urandom(1 << 20)) * 64)
        time.sleep(0.01)


def refuse(kind: str) -> None:
    if kind == "MissingPackage":
        raise errors.MissingPackage("nothing_there", "litert")
    raise getattr(errors, kind)("the reason")


def stumble() -> None:
    for number in range(100):
        print(f"line {number}")
    raise ValueError("a converter's own error")


def unspeakable() -> object:
    return object()


def read_environment(name: str) -> str:
    return os.environ.get(name, "")


def test_values_travel_both_ways(call: Call) -> None:
    assert call(f"{HERE}:double", {"value": 21}) == {"doubled": 42}


def test_the_environment_can_be_added_to(call: Call) -> None:
    assert call(f"{HERE}:read_environment", {"name": "PF_TEST"}, environment={"PF_TEST": "yes"}) == "yes"


def test_what_a_child_prints_stays_out_of_the_parents_output(call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(f"{HERE}:talk", {}) == "quiet"
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("status", [0, 1, 7])
def test_a_child_that_leaves_without_an_answer(call: Call, status: int) -> None:
    with pytest.raises(errors.ExportFailed, match=f"exit status {status}") as caught:
        call(f"{HERE}:leave", {"status": status})
    assert caught.value.log_tail == "last words"


def test_a_child_that_crashes(call: Call) -> None:
    with pytest.raises(errors.ExportFailed, match=f"exit status -{int(signal.SIGSEGV)}") as caught:
        call(f"{HERE}:crash", {})
    assert "before the crash" in caught.value.log_tail


def test_a_child_that_hangs_is_ended(call: Call, tmp_path: Path) -> None:
    note, start = tmp_path / "pid", time.monotonic()
    with pytest.raises(errors.ExportFailed, match="after 2 s, its time limit"):
        call(f"{HERE}:hang", {"note": str(note)}, timeout_s=2)
    assert time.monotonic() - start < 30
    assert not psutil.pid_exists(int(note.read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent has died")
@pytest.mark.parametrize("server", ["", SERVER])
def test_a_child_does_not_outlive_a_parent_that_is_killed(server: str, tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "from pocketfit.processes import child_process;"
        f" child_process.call('{HERE}:hang', {{'note': {str(note)!r}}}, server={server!r})"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    orphans = psutil.Process(parent.pid).children(recursive=True)
    assert len(orphans) == (2 if server else 1)
    parent.kill()
    parent.wait()
    psutil.wait_procs(orphans, timeout=10)
    assert not [one for one in orphans if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def test_a_child_that_floods_memory_is_ended(call: Call) -> None:
    with pytest.raises(errors.ExportFailed, match=r"0\.3 GB of memory, its limit"):
        call(f"{HERE}:flood", {}, memory_bytes=300 * 10**6, timeout_s=60)


@pytest.mark.parametrize("kind", ["UserError", "CannotRunHere"])
def test_errors_of_ours_are_raised_here_again(call: Call, kind: str) -> None:
    with pytest.raises(getattr(errors, kind), match=r"^the reason$"):
        call(f"{HERE}:refuse", {"kind": kind})


def test_a_missing_package_keeps_its_pip_line(call: Call) -> None:
    with pytest.raises(errors.UserError, match=r"pip install 'pocketfit\[litert\]'"):
        call(f"{HERE}:refuse", {"kind": "MissingPackage"})


@pytest.mark.parametrize("function", ["stumble", "unspeakable", "not_there"])
def test_errors_of_others_are_failed_exports(call: Call, function: str) -> None:
    with pytest.raises(errors.ExportFailed, match=function) as caught:
        call(f"{HERE}:{function}", {})
    assert 0 < len(caught.value.log_tail.splitlines()) <= child_process.LOG_LINES
    if function == "stumble":
        assert "a converter's own error" in str(caught.value)


def test_nothing_is_left_in_the_temporary_folder(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    call(f"{HERE}:double", {"value": 1})
    with pytest.raises(errors.ExportFailed):
        call(f"{HERE}:leave", {"status": 3})
    assert not list(tmp_path.iterdir())
