"""Pages of HTML that stand alone: templates filled in, and written whole or not at all."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from pocketfit.core.support.files import whole_or_not
from pocketfit.core.support.text import READABLE


def page(template: str, data: Mapping[str, Any], drawings: Mapping[str, Callable[..., Markup]]) -> str:
    """A template of report/, filled in. Every value is escaped; the page's content security policy allows its own
    script only."""
    environment = Environment(
        loader=PackageLoader("pocketfit.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(drawings)
    environment.filters["unbroken"] = _unbroken
    environment.filters["draw"] = Markup  # unescaped, for svg.SHAPES only: the marker shapes are our own constants
    script = environment.get_template("page/page.js").render()
    # CSP hashes are over the exact text between the tags: https://www.w3.org/TR/CSP3/#match-element-to-source-list
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template(template).render(data, script=Markup(script), script_hash=digest)


def _unbroken(text: str) -> str:
    """The text with a no-break space between each number and its unit.

    >>> _unbroken("takes 1.9 MB (95 % interval)").count("\xa0")
    2
    """
    return re.sub(r"(?<=\d) (?=(?:B|kB|MB|GB|ms|µs|s|dB|pt|points|%)\b|%)|(?<=n) (?== )|(?<=n =) ", "\xa0", text)


def write_whole(path: Path, text: str) -> Path:
    """Write a page so that a reader never sees half of it."""
    with whole_or_not(path) as partial:
        partial.write_text(text, encoding="utf-8", errors=READABLE)
    return path
