"""Names from outside (of files, folders, classes), which need not be UTF-8, and lists of names in sentences."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Sequence

# Python gives each byte of a file name that it cannot decode as one of U+DC80 to U+DCFF (PEP 383); other surrogates
# can only come out of a file that was written so.
STRANGE = re.compile("[\ud800-\udc7f\udd00-\udfff\x00-\x1f\x7f]")


def readable(name: str) -> str:
    r"""The name in a form that can be printed and stored as UTF-8: other bytes and control characters become escapes.

    >>> print(readable("caf\udce9.jpg"), readable("\udcc3\udca9cureuil"), readable("two\nlines"))
    caf\xe9.jpg écureuil two\x0alines
    """
    if name.isascii() and name.isprintable():
        return name
    plain = STRANGE.sub(_escape, name)
    return plain.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def comparable(name: str) -> str:
    r"""The form in which names of classes are compared: Unicode's composed form (NFC), without spaces around it.

    macOS stores "é" in a file name as two code points, editors write it as one.

    >>> comparable("e\u0301cureuil ") == comparable("\u00e9cureuil")
    True
    """
    return unicodedata.normalize("NFC", name).strip()


def some(names: Sequence[str], most: int = 3, *, of: int | None = None) -> str:
    """The first names for a sentence, and how many more there are.

    of  how many there are in all, where these are only the first of them

    >>> some(["a", "b", "c", "d", "e"]), some(["a", "b"], 1), some(["a", "b", "c"], of=7)
    ('a, b, c and 2 more', 'a and 1 more', 'a, b, c and 4 more')
    """
    rest = (len(names) if of is None else of) - len(names[:most])
    return ", ".join(map(readable, names[:most])) + (f" and {rest} more" if rest > 0 else "")


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _readable_error(error: UnicodeError) -> tuple[str | bytes, int]:
    """The error handler READABLE for streams and files: writes as `readable` what cannot be encoded; never raises."""
    assert isinstance(error, UnicodeEncodeError)
    part = readable(error.object[error.start : error.end])
    return part.encode(error.encoding, "backslashreplace"), error.end


READABLE = "pocketfit.readable"  # as in open(…, errors=READABLE)
codecs.register_error(READABLE, _readable_error)
