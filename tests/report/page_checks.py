"""A page as its tags, and what every page of pocketfit must be."""

from __future__ import annotations

import re
from html.parser import HTMLParser

VOID = {"meta", "br", "img", "input", "link", "hr"}


class Page(HTMLParser):
    """Tags with their attributes, and whether each was closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag]


def whole(text: str) -> Page:
    """The page, after asserting that all is closed, that nothing is loaded, and that what is referred to is there."""
    page = Page(text)
    assert page.wrong == [] and page.open == []
    assert not page.all("link") and all("src" not in script for script in page.all("script"))
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert not re.search(r"(?:https?:|//)[a-z]", re.sub(r"base64,[^\"]*", "", text)), "an address in the page"
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.tags if "aria-labelledby" in a} <= set(ids)
    assert all(th.get("scope") in ("col", "row") for th in page.all("th"))
    return page
