"""The user's own functions, by the name "package.module:function": factories, criteria, metrics.

A name that the user gave, on the command line or from Python, is imported. A name in a file (a model folder, a plan, a
journal) may be anybody's: it is imported only where the user gave the same name, or agreed to such names in general
(--allow-code). Even then no module is taken from the folder of that file.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

from pocketfit.core.errors import UserError
from pocketfit.core.support.rules import shown

DOTTED = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
NAME = re.compile(f"{DOTTED}:{DOTTED}")
Allowed = bool | Collection[str]  # True: any name; or the names that the user gave
_found: dict[str, tuple[Callable[..., Any], Path | None]] = {}


@dataclass(frozen=True)
class Consent:
    """What the user agreed to.

    names       the names that the user gave
    everything  whether any name that stands in a file may be imported
    """

    names: frozenset[str] = frozenset()
    everything: bool = False

    def check(self, name: str, path: Path, kind: str) -> Path | None:
        """The folder from which a name in the file `path` must not be imported; None where the user gave the name.

        Raises UserError where the user agreed to neither.
        """
        if name in self.names:
            return None
        if not self.everything:
            raise UserError(
                f"{path} names the {kind} {shown(name)}, code of your Python environment that is run if you agree: add"
                " --allow-code (from Python: allow_code=True) if you know what it does"
            )
        return path.resolve().parent


def consent(allowed: Allowed, *typed: str | None) -> Consent:
    """
    >>> consent(False, "nets:build", "resnet18", None).names
    frozenset({'nets:build'})
    """
    names = {name for name in typed if name and NAME.fullmatch(name)}
    if isinstance(allowed, bool):
        return Consent(frozenset(names), allowed)
    return Consent(frozenset(names | set(allowed)))


def function(name: str, kind: str, closed: Path | None = None) -> Callable[..., Any]:
    """The function called "package.module:function".

    kind    what the function is for, in an error's sentence: "factory", "criterion", "metric"
    closed  a folder from which no module may come; None where the user gave the name

    Raises UserError where the name is no function's, and for the standard library: none of its functions is a factory,
    and many do harm.
    """
    if name in _found:
        return _found[name][0]
    module_name, _, function_name = name.partition(":")
    top = module_name.split(".")[0]
    if not NAME.fullmatch(name) or top in sys.stdlib_module_names or top == "__main__":
        raise UserError(f"{shown(name)} names no {kind}: write package.module:function")
    try:
        with importable(closed):
            module = importlib.import_module(module_name)
    except UserError:  # our own, about a closed folder
        raise
    except ModuleNotFoundError as error:
        if error.name and (module_name + ".").startswith(error.name + "."):
            where = "in the current directory or among the packages" if closed is None else "that may be taken"
            raise UserError(f"There is no module {module_name} {where}, as the {kind} {name} needs") from error
        raise UserError(f"The module {module_name} can't be imported: {cause(error)}") from error
    except (Exception, SystemExit) as error:  # a stranger's module may raise anything
        raise UserError(f"The module {module_name} can't be imported: {cause(error)}") from error
    found: Any = module
    for part in function_name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise UserError(f"The module {module_name} has no function {function_name}, as the {kind} {name} needs")
    _found[name] = found, closed
    function: Callable[..., Any] = found
    return function


def closed_to(name: str) -> Path | None:
    """The folder that was closed when the function of this name was imported: for a process that imports it again."""
    return _found[name][1] if name in _found else None


@contextmanager
def importable(closed: Path | None) -> Iterator[None]:
    """Put the current directory on the import path: in front, as Python does, for a name that the user gave.

    For a name from a file it comes last, or not at all where it is the closed folder or lies in it. Whatever is on the
    path, no module is taken from the closed folder.
    """
    here = str(Path.cwd())
    added = here not in sys.path and (closed is None or not _inside(Path(here), closed))
    guard = None if closed is None else _Closed(closed)
    if added:
        sys.path.insert(0 if closed is None else len(sys.path), here)
    if guard is not None:
        sys.meta_path.insert(0, guard)
    try:
        yield
    finally:
        if guard is not None:
            sys.meta_path.remove(guard)
        if added and here in sys.path:
            sys.path.remove(here)


class _Closed:
    """Finds modules as Python does, and refuses those in the closed folder. Modules of a Python environment inside it
    (the user's .venv/) are allowed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is None:
                continue
            places = [spec.origin if spec.has_location else None, *(spec.submodule_search_locations or ())]
            if any(place and self._holds(Path(place)) for place in places):
                raise UserError(
                    f"The module {name} lies in {self._folder}, beside the file that names it: code is not taken from"
                    " there; put it elsewhere on your Python path if you trust it"
                )
            return spec
        return None

    def _holds(self, place: Path) -> bool:
        mine = Path(sys.prefix)
        return _inside(place, self._folder) and not (_inside(mine, self._folder) and _inside(place, mine))


def _inside(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def cause(error: BaseException) -> str:
    """One line: the kind of error, its message, and the last place outside of installed packages."""
    message = (str(error).strip() or "no message").splitlines()[0]
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {message}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<")]
    ours = str(Path(__file__).parents[1])
    own = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(ours)]
    own = [f for f in own if not f.filename.startswith(str(Path(inspect.__file__).parent))]
    where = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    return f"{type(error).__name__}: {message}{where}"
