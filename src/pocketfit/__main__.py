"""`python -m pocketfit` and the script `pocketfit`: what has to hold before the command line is loaded."""

import _signal  # `signal` itself imports for some 20 ms, in which Ctrl-C would still end in a traceback
import os
import sys

# Python has put the current directory in front of its import path. It may be anybody's: what lies there must not stand
# in for a package (core/support/user_code.py says when code of the current directory is imported). Started with -P
# there is no such entry; what the user's own PYTHONPATH names stays, and so does the directory that this package was
# found in.
_here, _ours = os.path.realpath(os.curdir), os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
if not sys.flags.safe_path and sys.path and os.path.realpath(sys.path[0] or os.curdir) == _here != _ours:
    del sys.path[0]


def run() -> None:
    """The command line, in UTF-8 whatever the locale says; Ctrl-C while it loads ends it with 130."""
    # Whoever starts a background job has Ctrl-C ignored: that stays so.
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _stopped)
    _use_utf8()

    from pocketfit.core.support.text import READABLE

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # None where it is closed
            stream.reconfigure(errors=READABLE)

    from pocketfit.cli.main import main

    main(prog_name="pocketfit")


def _stopped(number: int, frame: object) -> None:
    """Nothing has been written yet, and the imports of others turn KeyboardInterrupt into errors of their own."""
    os.write(2, b"Stopped.\n")
    os._exit(130)


_stopped.while_loading = True  # type: ignore[attr-defined]  # until the verb begins: see cli.exit_codes.guarded


def _use_utf8() -> None:
    """Start again in Python's UTF-8 mode (PEP 540) where names of files are decoded as something else.

    In the C locale without that mode, a name with an accent is no text: torch, safetensors and the runtimes, which are
    handed names as UTF-8, could not open it.
    """
    if os.name != "posix" or sys.getfilesystemencoding().lower() in ("utf-8", "utf8") or not sys.executable:
        return
    os.environ["PYTHONUTF8"] = "1"  # for the processes that this one starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


if __name__ == "__main__":
    run()
