"""What can go wrong, as a tree.

PocketfitError
├── UserError             bad input or usage: exit code 2, one sentence, nothing written
│   └── MissingPackage    an optional package is not installed: the sentence ends with the pip line
├── ExportFailed          a converter or quantizer failed, died or ran out of time: a failed trial, with its log
├── CannotRunHere         a file or setting that this machine or runtime cannot run, with the reason
└── Stopped               the user pressed Ctrl-C: exit code 130, best so far delivered
"""

from __future__ import annotations

import errno

_SYSTEM = ("EACCES", "EPERM", "EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EIO", "EMFILE", "ENFILE", "ENAMETOOLONG", "ENOMEM")
_SYSTEM_SAYS = {getattr(errno, name) for name in _SYSTEM if hasattr(errno, name)}


class PocketfitError(Exception):
    """Base of every error that pocketfit raises on purpose."""


class UserError(PocketfitError):
    """Bad input or usage. The message is one sentence: what is wrong, in which file or layer, what to do."""


class MissingPackage(UserError):
    """An optional package is missing.

    >>> str(MissingPackage("ai_edge_litert", "litert"))
    "The package 'ai_edge_litert' is not installed; run: pip install 'pocketfit[litert]'"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"The package '{package}' is not installed; run: pip install 'pocketfit[{extra}]'")
        self.package, self.extra = package, extra


class ExportFailed(PocketfitError):
    """A converter or quantizer failed; `log_tail` holds the last lines that it printed."""

    def __init__(self, message: str, log_tail: str = "") -> None:
        super().__init__(message)
        self.log_tail = log_tail


class CannotRunHere(PocketfitError):
    """The runtime or this machine cannot run the file or setting; the message is the reason."""


def is_systems(error: BaseException | None) -> bool:
    """Whether this error, or the one from which it was raised, is about the system's disks, permissions or tables: no
    other plan would help.

    >>> is_systems(OSError(errno.ENOSPC, "No space left on device")), is_systems(FileNotFoundError(errno.ENOENT, ""))
    (True, False)
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _SYSTEM_SAYS:
            return True
        error = error.__cause__
    return False


class Stopped(PocketfitError):
    """The user asked to stop; the best file so far has been delivered."""
