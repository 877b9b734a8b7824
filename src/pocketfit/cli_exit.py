"""How every verb ends: errors become one sentence and an exit code, a fault of our own a crash file."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, NoReturn

import click

from pocketfit import __version__
from pocketfit.core.cpus import check_threads
from pocketfit.core.errors import PocketfitError, Stopped
from pocketfit.core.launch import check_alone

GRACE_S = 10.0
LIMITS_NOT_MET, BAD_INPUT, OUR_FAULT, INTERRUPTED = 1, 2, 3, 130


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --json; the verb returns its exit code, and what it raises becomes a sentence with the right one."""

    @wraps(command)
    def called(*args: Any, json_: bool, **kwargs: Any) -> None:
        try:
            check_alone(command.__name__)
            check_threads(kwargs.get("threads") or 1)
            code = command(*args, as_json=json_, **kwargs)
        except Stopped as stop:
            _fail(str(stop), INTERRUPTED, json_)
        except KeyboardInterrupt:
            _fail("Stopped.", INTERRUPTED, json_)
        except PocketfitError as error:
            _let_the_first_speak()
            _fail(str(error), BAD_INPUT, json_)
        except (BrokenPipeError, click.exceptions.Exit, click.ClickException):
            raise
        except Exception:  # anything else is our own fault: keep what is needed to mend it
            _let_the_first_speak()
            _fail(
                f"This is a fault of pocketfit itself. Please send the file {_crash_file()} with your report.",
                OUR_FAULT,
                json_,
            )
        if code:
            sys.exit(code)

    return click.option("--json", "json_", is_flag=True, help="Print one JSON object on stdout.")(called)


def _let_the_first_speak() -> None:
    """Of several processes, all but the first wait: torchrun ends them as soon as the first one has failed, mostly for
    the same reason. Whoever is alive afterwards is alone with its error, and has to say it."""
    if "WORLD_SIZE" in os.environ and os.environ.get("RANK", "0") != "0":
        time.sleep(GRACE_S)


def _fail(sentence: str, code: int, as_json: bool) -> NoReturn:
    click.echo(sentence, err=True)
    if as_json:
        click.echo(json.dumps({"error": sentence, "exit_code": code}))
    sys.exit(code)


def _crash_file() -> Path:
    path = Path(f"crash-{time.strftime('%Y%m%d-%H%M%S')}.txt")
    facts = [f"pocketfit {__version__}", f"python {sys.version}", f"{sys.platform}, arguments {sys.argv[1:]}", ""]
    text = "\n".join([*facts, traceback.format_exc()])
    try:
        path.write_text(text)
    except OSError:  # the current folder may be read-only
        import tempfile

        path = Path(tempfile.gettempdir()) / path
        path.write_text(text)
    return path
