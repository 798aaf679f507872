"""Pages of the site that are files of the repository: the README in parts, and what the pages link to."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Mapping
from pathlib import Path

__all__ = ["ROOT", "SECTIONS", "WHOLE", "for_site", "linked_files", "notebook", "readme_pages", "source_page"]

ROOT = Path(__file__).resolve().parents[1]
# page -> its title (None: the README's own) and the sections of the README on it ("" is what stands before the first)
SECTIONS: Mapping[str, tuple[str | None, tuple[str, ...]]] = {
    "index.md": (None, ("", "What it does")),
    "start.md": ("Getting started", ("From your module to a chip", "Command line")),
    "limits.md": (None, ("Limits of this version",)),
    "organization.md": (None, ("Code organization",)),
}
# further pages that stand outside of docs/ in the repository
WHOLE = {"changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md", "benchmarks.md": "benchmarks/README.md"}

_FENCE = re.compile(r"^(```.*?^```[^\n]*$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\((?!\w+:)([^)#\s]+)(#[^)\s]*)?\)")
_LIST = re.compile(r"^(?![-|\s#]|\d+\. )([^\n]+)\n(?=(?:- |1\. ))", re.MULTILINE)
_NAME = re.compile(r"(?<![\[`])`(nd\.(\w+)[^`\n]*)`(?!`)")


def readme_pages() -> dict[str, str]:
    """The README's sections, each on one page.

    Raises:
        ValueError: a section is on no page, or a page names one that is not there.
    """
    first, *rest = re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    parts = {"": first} | {part.split("\n", 1)[0]: f"## {part}" for part in rest}
    placed = [name for _, names in SECTIONS.values() for name in names]
    if sorted(placed) != sorted(parts):
        raise ValueError(f"sections of the README {sorted(parts)}, on pages of the site {sorted(placed)}")
    pages = {}
    for page, (title, names) in SECTIONS.items():
        text = "".join(parts[name] for name in names)
        if title is not None:
            text = f"# {title}\n\n{text}"
        pages[page] = text if text.startswith("# ") else text.removeprefix("#")
    pages["index.md"] = f"---\nhide: [navigation]\n---\n\n{pages['index.md']}"
    return pages


def linked_files(text: str, origin: str) -> set[str]:
    """Files of the repository that a page links to, from the repository's root.

    Args:
        text: of the page, as it stands in the repository.
        origin: its own path there.

    Raises:
        ValueError: a link to something that is no file of the repository.
    """
    found = set()
    for part in _FENCE.split(text)[::2]:
        for _, target, _ in _LINK.findall(part):
            path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
            if path.startswith("..") or not (ROOT / path).is_file():
                raise ValueError(f"{origin} links to {target}, which is no file of the repository")
            found.add(path)
    return found


def for_site(text: str, origin: str, page: str, public: frozenset[str] = frozenset()) -> str:
    """A page of the repository as one of the site: links lead to pages, `nd.name` to its reference.

    A link that shows a page's path gets its title instead. A list right behind its sentence, which is a list on GitHub
    alone, gets an empty line before it.

    Args:
        text: as it stands in the repository.
        origin: its path there.
        page: its path in the site.
        public: names that have an entry in the reference.
    """

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), match[2]))
        shown = _title(path) if match[1] == path and path.endswith(".md") else match[1]
        return f"[{shown}]({posixpath.relpath(_page_of(path), posixpath.dirname(page) or '.')}{match[3] or ''})"

    def name(match: re.Match[str]) -> str:
        return f"[`{match[1]}`][nirdeploy.{match[2]}]" if match[2] in public else match[0]

    parts = _FENCE.split(text)
    for at, part in enumerate(parts):
        if at % 2:
            parts[at] = re.sub(r"^```(\w+) [^\n]*", r"```\1", part)  # a mark for the tests behind the language
        else:
            spaced = _LIST.sub(r"\1\n\n", part)
            parts[at] = _lines(_LINK.sub(link, spaced), lambda line: _NAME.sub(name, line))
    return "".join(parts)


def source_page(path: str) -> str:
    """A file of the repository as a page."""
    text = (ROOT / path).read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\nhide: [toc]\n---\n\n# {path}\n\n"
    if path.startswith("examples/"):
        return head + notebook(text)
    kind = {".py": "python", ".toml": "toml", ".md": "markdown"}.get(Path(path).suffix, "text")
    return f"{head}````{kind}\n{text.rstrip()}\n````\n"


def notebook(text: str) -> str:
    """Cells of a script in jupytext's percent format: text as text, code as code."""
    parts = []
    for cell in re.split(r"^# %%", text, flags=re.MULTILINE)[1:]:
        head, body = cell.split("\n", 1)
        if head.strip() == "[markdown]":
            lines = [line.removeprefix("#").removeprefix(" ") for line in body.strip().splitlines()]
            parts.append(_LIST.sub(r"\1\n\n", "\n".join(re.sub(r"^# ", "## ", line) for line in lines)))
        else:
            parts.append(f"```python\n{body.strip()}\n```")
    return "\n\n".join(parts) + "\n"


def _page_of(path: str) -> str:
    """The site's page that shows a file of the repository."""
    known = {"README.md": "index.md"} | {origin: page for page, origin in WHOLE.items()}
    if path in known:
        return known[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path}.md"


def _title(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8").split("\n", 1)[0].removeprefix("# ")


def _lines(text: str, change: Callable[[str], str]) -> str:
    """All lines but headings changed."""
    return "\n".join(line if line.startswith("#") else change(line) for line in text.split("\n"))
