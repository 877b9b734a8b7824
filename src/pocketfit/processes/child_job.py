"""The child's side of child_process.call: carry out one job and write down its result."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

from pocketfit.core.support.loading import called

LOG = "log"  # the file with what a job prints
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(target: str, folder: str) -> None:
    """The child's side: call the function, write its result beside the payload."""
    payload = json.loads(Path(folder, "payload.json").read_text())
    try:
        result: dict[str, Any] = {"value": called(target)(**payload)}
    except Exception as error:  # every failure must reach the parent as data
        traceback.print_exc()
        result = {"type": type(error).__name__, "message": str(error) or type(error).__name__}
    partial = Path(folder, "result.partial")
    partial.write_text(json.dumps(result))
    partial.replace(Path(folder, "result.json"))


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies: a later run would be timed beside an orphan.

    Linux only; elsewhere an orphan works on to its end.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent died before the call
            os._exit(1)


if __name__ == "__main__":
    die_with(int(sys.argv[3]))
    main(sys.argv[1], sys.argv[2])
