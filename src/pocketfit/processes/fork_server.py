"""A process that has loaded a converter once and forks one child for each job.

Loading litert-torch takes 4 s, torch's ONNX exporter 2 s, a conversion of a small network 1 to 2 s. Each job still has
a process of its own, so that it can't harm other jobs. A fork copies the calling thread alone; locks that other threads
hold would stay locked in the copy. So the server loads only packages that start no threads, counts its threads before
every fork, and refuses where there is more than one. It ends after IDLE_S without a job, and with its parent.

Linux only (pidfd); elsewhere `fork` returns None, and the caller starts a fresh process.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pocketfit.core.support.loading import called
from pocketfit.processes import child_job

IDLE_S = 180.0  # a server ends after this time without a job, as it holds some 300 to 500 MB
ENDING_S = 10.0
SWITCH = "POCKETFIT_FORK_SERVER"  # "0" in the environment: every job in a fresh process
JOB = "job.json"
# Variables that libraries read while they are loaded: a job with other values needs another server.
READ_AT_START = ("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "PYTHON", "LD_", "TF_", "JAX_", "XLA_", "TORCH")
Jobs = dict[int, tuple[int, socket.socket]]  # pidfd -> (process id, socket to the process that waits for the job)
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


class Forked:
    """One job's process, with a part of subprocess.Popen's interface: pid, returncode, wait, poll, kill."""

    def __init__(self, line: socket.socket, pid: int) -> None:
        self.pid, self.returncode = pid, None  # type: int, int | None
        self._line = line

    def wait(self, timeout: float) -> int:
        """Wait for the exit status, which is negative for a signal. Raises subprocess.TimeoutExpired."""
        if self.returncode is None:
            self._line.settimeout(timeout)
            try:
                told = self._line.recv(32)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired("forked job", timeout) from error
            except OSError:
                told = b""
            # the socket closed without a status: the server was killed, and its children with it
            self.returncode = int(told) if told else -int(signal.SIGKILL)
            self._line.close()
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(1e-6)
        return None

    def kill(self) -> None:
        if self.returncode is None:
            with contextlib.suppress(OSError):
                self._line.send(b"kill")


@dataclass
class _Server:
    """The parent's side of one server."""

    process: subprocess.Popen[bytes]
    control: socket.socket
    start_state: Mapping[str, str]
    owner: int
    proven: bool = False  # whether it has taken a job

    def alive(self, start_state: Mapping[str, str]) -> bool:
        """Whether the server can take a job of this process (not of a fork of it) with these variables."""
        return self.owner == os.getpid() and self.process.poll() is None and self.start_state == start_state

    def close(self) -> None:
        self.control.close()  # ends the server
        if self.owner != os.getpid():
            return
        if not self.proven:  # it may still be loading, and does not notice the closed socket
            self.process.kill()
        try:
            self.process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_servers: dict[str, _Server] = {}
_unusable: set[str] = set()  # servers that could not load, or that start threads: not tried again
_lock = threading.Lock()


def available() -> bool:
    """Whether this system has what a server needs, and the user hasn't switched it off."""
    return sys.platform == "linux" and hasattr(os, "pidfd_open") and os.environ.get(SWITCH, "") != "0"


def start(preload: str, environment: Mapping[str, str]) -> None:
    """Start the server of `preload`; it loads while the caller does something else first."""
    if available():
        with _lock:
            _server(preload, environment)


def fork(
    preload: str, target: str, folder: str, environment: Mapping[str, str], *, may_start: bool = True
) -> Forked | None:
    """Run `target` on `<folder>/payload.json` in a fork of the server that has called `preload`
    ("package.module:function"); None where there is no such server, and a fresh process must do it.

    environment  all variables of the job
    may_start    whether to start a server that isn't there
    """
    if not available():
        return None
    given = {
        "target": target,
        "environment": dict(environment),
        "path": [folder for folder in sys.path if folder],  # not the current directory
        "folder": str(Path.cwd()),
        "cores": sorted(os.sched_getaffinity(0)),
    }
    Path(folder, JOB).write_text(json.dumps(given))
    with _lock:
        server = _server(preload, environment, may_start=may_start)
        if server is None:
            return None
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            socket.send_fds(server.control, [os.fsencode(folder)], [theirs.fileno()])
        except OSError:  # the server has just ended
            ours.close()
            return None
        finally:
            theirs.close()
    told = ours.recv(32)  # the server answers as soon as it has loaded
    if told and int(told) > 0:
        server.proven = True
        return Forked(ours, int(told))
    ours.close()
    if told or not server.proven:  # a proven server without an answer has just ended, after IDLE_S
        _unusable.add(preload)
    return None


def close() -> None:
    """End all servers; those with jobs are killed together with these."""
    with _lock:
        for server in _servers.values():
            server.close()
        _servers.clear()


atexit.register(close)


def _server(preload: str, environment: Mapping[str, str], *, may_start: bool = True) -> _Server | None:
    state = {k: v for k, v in environment.items() if k.startswith(READ_AT_START)}
    found = _servers.get(preload)
    if preload not in _unusable and found is not None and found.alive(state):
        return found
    if not may_start or preload in _unusable:
        return None
    if found is not None:
        found.close()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        numbers = theirs.fileno(), os.getpid(), IDLE_S
        process = subprocess.Popen(
            [sys.executable, "-m", "pocketfit.processes.fork_server", preload, *map(str, numbers)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**environment, **ONE_THREAD},
            pass_fds=[theirs.fileno()],
            start_new_session=True,
        )
    _servers[preload] = _Server(process, ours, state, os.getpid())
    return _servers[preload]


# The server's side ---------------------------------------------------------------------------------------------------


def serve(preload: str, control: socket.socket, parent: int, idle_s: float) -> None:
    """Load, then fork a child for each job, until the parent closes `control`, dies, or sends no job for `idle_s`."""
    called(preload)()
    gc.collect()
    gc.freeze()  # the collector would write into pages that are shared with the children
    jobs: Jobs = {}
    with selectors.DefaultSelector() as waiting:
        waiting.register(control, selectors.EVENT_READ, "asked")
        waiting.register(os.pidfd_open(parent), selectors.EVENT_READ, "parent died")
        while True:
            events = waiting.select(None if jobs else idle_s)
            if not events:
                return
            for key, _ in events:
                if key.data == "asked":
                    folder, fds, _, _ = socket.recv_fds(control, 4096, 1)
                    if not folder:
                        return
                    _begin(os.fsdecode(folder), socket.socket(fileno=fds[0]), jobs, waiting)
                elif key.data == "ended":
                    _end(int(key.fd), jobs, waiting)
                elif key.data == "told":  # the job is to be killed, or nobody waits for it any more
                    for pid, line in jobs.values():
                        if line is key.fileobj:
                            waiting.unregister(line)
                            line.recv(32)  # a socket that is closed with unread data would be reset
                            os.kill(pid, signal.SIGKILL)
                else:
                    return  # the parent has died; our children die with us (PR_SET_PDEATHSIG)


def _begin(folder: str, line: socket.socket, jobs: Jobs, waiting: selectors.BaseSelector) -> None:
    if _threads() > 1:
        _tell(line, -1)
        line.close()
        return
    server = os.getpid()
    pid = os.fork()
    if not pid:
        for key in waiting.get_map().values():  # a job must not keep the server's ends open
            os.close(key.fd)
        waiting.close()
        line.close()
        _carry_out(folder, server)  # never returns
    _tell(line, pid)
    ending = os.pidfd_open(pid)
    jobs[ending] = pid, line
    waiting.register(ending, selectors.EVENT_READ, "ended")
    waiting.register(line, selectors.EVENT_READ, "told")


def _end(ending: int, jobs: Jobs, waiting: selectors.BaseSelector) -> None:
    pid, line = jobs.pop(ending)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    waiting.unregister(ending)
    os.close(ending)
    with contextlib.suppress(KeyError):  # the job was killed on request
        waiting.unregister(line)
    _tell(line, status)
    line.close()


def _tell(line: socket.socket, number: int) -> None:
    with contextlib.suppress(OSError):  # nobody waits for it any more
        line.send(str(number).encode())


def _threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def _carry_out(folder: str, server: int) -> None:
    """Run the child: take over the parent's directory, variables and output, do the job, and exit."""
    status = 1
    try:
        os.setsid()
        child_job.die_with(server)
        log = os.open(Path(folder, child_job.LOG), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        given: dict[str, Any] = json.loads(Path(folder, JOB).read_text())
        os.environ.clear()
        os.environ.update(given["environment"])
        os.chdir(given["folder"])
        os.sched_setaffinity(0, given["cores"])
        sys.path[:] = given["path"]
        time.tzset()
        child_job.main(given["target"], folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


if __name__ == "__main__":
    parent = int(sys.argv[3])
    if os.getppid() == parent:  # otherwise the parent has died already
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])), parent, float(sys.argv[4]))
