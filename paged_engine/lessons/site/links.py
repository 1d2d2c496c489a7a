"""Where the files of the repository stand in the site, and links that lead there."""

from __future__ import annotations

import html
import posixpath
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote

MAP = "notebooks/README.md"  # becomes the index page

_TAG = re.compile(r"<(a|img|source)\b[^>]*>")
_ATTRIBUTE = re.compile(r'\s(href|src|srcset)="([^"]*)"')
_ALT = re.compile(r'\balt="([^"]*)"')
_ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)  # another site, or data:
_HEADING = re.compile(r"<h([1-6])>(.*?)</h\1>", re.DOTALL)


def place_of(source: str, is_folder: bool = False) -> str:
    """The path in the site of a file or folder of the repository, both relative to their roots."""
    if source == MAP:
        return "index.html"
    if is_folder:
        return posixpath.join(source, "index.html")
    stem, suffix = posixpath.splitext(source)
    if suffix in (".ipynb", ".md"):
        return f"{stem}.html"
    return source if suffix else f"{source}.txt"  # a host would offer it for download


@dataclass
class Links:
    """Rewrites the links of pages, and notes what they lead to.

    Args:
        root: The repository.

    Attributes:
        wanted: The files and folders that were linked to, in order.
        broken: Page and target of each link that leads nowhere.
    """

    root: Path
    wanted: list[str] = field(default_factory=list)
    broken: list[tuple[str, str]] = field(default_factory=list)

    def rewritten(self, page: str, source: str) -> str:
        """The HTML of a page, made from `source`, with links into the site.

        A link that leads nowhere becomes its text, and so does a picture from elsewhere: a page of
        the site loads nothing.
        """
        return _TAG.sub(lambda tag: self._tag(tag, source), page)

    def _tag(self, tag: re.Match[str], source: str) -> str:
        kind, text = tag.group(1), tag.group(0)
        found = _ATTRIBUTE.search(text)
        if found is None:
            return text
        name, target = found.group(1), html.unescape(found.group(2))
        address = self._address(source, target, may_leave=kind == "a")
        if address is not None:
            return text.replace(found.group(0), f' {name}="{html.escape(address)}"')
        self.broken.append((source, target))
        if kind == "a":
            return text.replace(found.group(0), "")
        alt = _ALT.search(text)
        return alt.group(1) if alt else ""

    def _address(self, source: str, target: str, may_leave: bool) -> str | None:
        """Where a link of a page leads in the site; None where it may not lead."""
        if _ELSEWHERE.match(target):
            return target if may_leave or target.startswith("data:") else None
        path, _, fragment = target.partition("#")
        if not path:
            return target
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path)))
        file = self.root / wanted
        if wanted.startswith("..") or not file.exists():
            return None
        if wanted not in self.wanted:
            self.wanted.append(wanted)
        address = relative(place_of(wanted, file.is_dir()), place_of(source))
        return f"{address}#{fragment}" if fragment else address


def relative(target: str, page: str) -> str:
    """The address of one place of the site as seen from another."""
    return quote(posixpath.relpath(target, posixpath.dirname(page) or "."))


def with_anchors(page: str) -> str:
    """Give every heading the name that GitHub gives it, by which links find it."""
    known: dict[str, int] = {}

    def named(heading: re.Match[str]) -> str:
        level, inner = heading.groups()
        name = anchor_of(html.unescape(re.sub(r"<[^>]*>", "", inner)))
        number = known.get(name, 0)
        known[name] = number + 1
        unique = f"{name}-{number}" if number else name
        return f'<h{level} id="{html.escape(unique)}">{inner}</h{level}>'

    return _HEADING.sub(named, page)


def anchor_of(heading: str) -> str:
    """ "KV cache: what?" as "kv-cache-what"."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")
