"""How every verb ends: an error becomes one sentence and an exit code, a bug of our own also a crash file."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from pocketfit import __version__
from pocketfit.core.errors import PocketfitError, Stopped, UserError, is_systems
from pocketfit.core.support.cpus import check_threads
from pocketfit.core.support.processes import check_alone, rank
from pocketfit.core.support.text import READABLE, readable

GRACE_S = 10.0
LIMITS_NOT_MET, BAD_INPUT, OUR_FAULT, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json to a verb that returns its exit code; an exception becomes a sentence and the right exit code."""

    @wraps(command)
    def called(*args: Any, json_: bool, **kwargs: Any) -> None:
        if hasattr(signal.getsignal(signal.SIGINT), "while_loading"):
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            check_alone(click.get_current_context().command.name or "")
            check_threads(kwargs.get("threads") or 1)
            code = command(*args, as_json=json_, **kwargs)
        except Stopped as stop:
            _fail(str(stop), INTERRUPTED, json_)
        except KeyboardInterrupt:
            _fail("Stopped.", INTERRUPTED, json_)
        except PocketfitError as error:
            _let_the_first_speak()
            _fail(str(error), BAD_INPUT, json_)
        except (click.exceptions.Exit, click.ClickException):
            raise
        except Exception as error:  # anything else is a bug of our own: keep what is needed to find it
            _let_the_first_speak()
            if isinstance(error, OSError) and is_systems(error):
                named = f"{readable(str(error.filename))}: " if error.filename else ""
                _fail(f"The system refuses: {named}{error.strerror}", BAD_INPUT, json_)
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # the latter is torch's
                _fail("The memory is not enough for this: take a smaller network, or smaller images", BAD_INPUT, json_)
            _fail(
                f"This is a fault of pocketfit itself. Please send the file {_crash_file()} with your report.",
                OUR_FAULT,
                json_,
            )
        if code:
            sys.exit(code)

    return click.option("--json", "json_", is_flag=True, help="Print one JSON object on stdout.")(called)


def _let_the_first_speak() -> None:
    """Wait in all processes but the first, before an error is printed. If the first process fails too, mostly for the
    same reason, torchrun ends the others meanwhile, and the error is printed once. A process that is still alive after
    the wait is the only one with the error, and prints it."""
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE_S)


def printed(show: Callable[[], object]) -> None:
    """Print a result. A reader that stops early, as `head` does, is no error.

    Raises UserError where the result can't be written.
    """
    try:
        show()
        sys.stdout.flush()
    except BrokenPipeError:
        _to_nowhere()
    except OSError as error:
        _to_nowhere()
        raise UserError(f"The result can't be written to stdout: {error.strerror or error}") from error


def print_result(data: Any, as_json: bool, show: Callable[[Any], None]) -> None:
    """Print a verb's result on stdout, as one JSON object or by `show`; of several processes only the first prints."""
    if rank().first:
        printed(lambda: click.echo(json.dumps(data, allow_nan=False)) if as_json else show(data))


def _to_nowhere() -> None:
    """Redirect stdout to nowhere, so that Python's last flush does not fail."""
    with contextlib.suppress(OSError, ValueError):  # stdout may be no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    with contextlib.suppress(OSError):  # a log that is full or closed must not change the exit code
        click.echo(sentence, err=True)
    if as_json:
        with contextlib.suppress(UserError):
            printed(lambda: click.echo(json.dumps({"error": sentence, "exit_code": code})))
    sys.exit(code)


def _crash_file() -> Path:
    path = Path(f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt")
    facts = [f"pocketfit {__version__}", f"python {sys.version}", f"{sys.platform}, arguments {sys.argv[1:]}", ""]
    text = "\n".join([*facts, traceback.format_exc()])
    try:
        path.write_text(text, encoding="utf-8", errors=READABLE)
    except OSError:  # the current folder is read-only
        import tempfile

        path = Path(tempfile.gettempdir()) / path
        path.write_text(text, encoding="utf-8", errors=READABLE)
    return path
