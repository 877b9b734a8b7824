"""A fork of a process that has loaded the converter is as much a process of its own as a fresh one."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from pocketfit.core import errors
from pocketfit.processes import child_process, fork_server

if not hasattr(os, "pidfd_open"):
    pytest.skip("no fork server on this system", allow_module_level=True)

HERE = "tests.processes.test_fork_server"
LOADED: list[int] = []  # what a server's preload leaves behind


def load() -> None:
    LOADED.append(os.getpid())


def load_nothing() -> None:
    raise ImportError("not installed")


def load_with_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def about() -> dict[str, object]:
    LOADED.append(0)  # in this child alone
    return {
        "loaded": LOADED,
        "pid": os.getpid(),
        "parent": os.getppid(),
        "session": os.getsid(0),
        "folder": str(Path.cwd()),
        "variable": os.environ.get("PF_TEST", ""),
        "cores": sorted(os.sched_getaffinity(0)),
        "files": [name for name in map(_open_file, range(64)) if name],
    }


def _open_file(number: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{number}").readlink())
    except OSError:
        return ""


def hang(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(600)


def lines(n: int) -> int:
    for number in range(n):
        print(f"line {number}")
    return n


@pytest.fixture
def server() -> Iterator[str]:
    fork_server.close()
    yield f"{HERE}:load"
    fork_server.close()


def test_children_are_forks_of_one_server_and_of_nothing_else(server: str) -> None:
    first, second = (child_process.call(f"{HERE}:about", {}, server=server) for _ in range(2))
    assert first["loaded"] == second["loaded"] == [first["parent"], 0], (
        "loaded once; the second saw nothing of the first"
    )
    assert first["parent"] == second["parent"] != os.getpid()
    assert first["pid"] != second["pid"]
    assert first["session"] == first["pid"]


def test_a_child_has_its_callers_place_not_the_servers(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_process.call(f"{HERE}:about", {}, server=server)  # the server is there, with other values
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PF_TEST", "here")
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    try:
        found = child_process.call(f"{HERE}:about", {}, server=server, environment={"PF_OTHER": "1"})
    finally:
        os.sched_setaffinity(0, cores)
    assert (found["folder"], found["variable"], found["cores"]) == (str(tmp_path), "here", cores[:1])
    assert not [name for name in found["files"] if "socket" in name or "pidfd" in name or "eventpoll" in name]


def test_variables_that_libraries_read_at_their_start_get_a_server_of_their_own(server: str) -> None:
    first, second = (
        child_process.call(f"{HERE}:about", {}, server=server, environment={"PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    )
    assert first["parent"] != second["parent"]
    assert not psutil.pid_exists(first["parent"])


def test_several_threads_ask_at_once(server: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: child_process.call(f"{HERE}:lines", {"n": n}, server=server), range(1, 9)))
    assert found == list(range(1, 9))


@pytest.mark.parametrize("preload", ["load_nothing", "load_with_a_thread", "not_there"])
def test_what_cannot_be_forked_safely_is_done_by_a_fresh_process(preload: str, server: str) -> None:
    for _ in range(2):
        found = child_process.call(f"{HERE}:about", {}, server=f"{HERE}:{preload}")
        assert found["parent"] == os.getpid()
    assert f"{HERE}:{preload}" in fork_server._unusable


def test_it_can_be_switched_off(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fork_server.SWITCH, "0")
    assert child_process.call(f"{HERE}:about", {}, server=server)["parent"] == os.getpid()


def test_a_quick_job_starts_no_server(server: str) -> None:
    assert child_process.call(f"{HERE}:about", {}, server=server, start_server=False)["parent"] == os.getpid()
    child_process.prepare(server, {})
    assert child_process.call(f"{HERE}:about", {}, server=server, start_server=False)["parent"] != os.getpid()


def load_slowly() -> None:
    time.sleep(600)


def test_a_server_that_still_loads_does_not_keep_its_parent_from_ending(server: str) -> None:
    child_process.prepare(f"{HERE}:load_slowly", {})
    start = time.monotonic()
    fork_server.close()
    assert time.monotonic() - start < 5


def test_it_ends_where_nobody_asks_and_another_one_takes_over(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fork_server, "IDLE_S", 0.3)
    first = child_process.call(f"{HERE}:about", {}, server=server)
    deadline = time.monotonic() + 20
    while psutil.pid_exists(first["parent"]) and psutil.Process(first["parent"]).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert child_process.call(f"{HERE}:about", {}, server=server)["parent"] not in (first["parent"], os.getpid())


def test_a_server_that_is_killed_takes_its_children_with_it(server: str, tmp_path: Path) -> None:
    parent = child_process.call(f"{HERE}:about", {}, server=server)["parent"]
    note = tmp_path / "pid"
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(child_process.call, f"{HERE}:hang", {"note": str(note)}, server=server)
        deadline = time.monotonic() + 20
        while not (note.exists() and note.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(parent, signal.SIGKILL)
        with pytest.raises(errors.ExportFailed, match="exit status -9"):
            hanging.result(timeout=20)
    orphan = int(note.read_text())
    deadline = time.monotonic() + 20
    while psutil.pid_exists(orphan) and psutil.Process(orphan).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert child_process.call(f"{HERE}:about", {}, server=server)["parent"] not in (parent, os.getpid())


@pytest.mark.parametrize("module", ["litert.convert", "onnxruntime.convert"])
def test_the_converters_can_be_forked(module: str) -> None:
    """Whatever they load starts no thread; where a new version does, exports go on in fresh processes, slowly."""
    pytest.importorskip("litert_torch" if module == "litert.convert" else "onnxscript")
    from pocketfit.runtimes.litert import runtime

    preload = f"pocketfit.runtimes.{module}:preload"
    found = child_process.call(f"{HERE}:about", {}, server=preload, environment=runtime.CHILD_ENVIRONMENT)
    assert found["parent"] != os.getpid()
