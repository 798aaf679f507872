"""What the scripts that write tables into pages share."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["between_markers", "table"]


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of Markdown cells; the first two are the head and its rule."""
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)


def between_markers(page: str, name: str, begin: str, end: str, text: str) -> str:
    """The page with what is between two marker lines made anew.

    Args:
        page: the text.
        name: of its file.
        begin: the first marker, with its newline.
        end: the second, likewise.
        text: what is to stand between them.

    Raises:
        ValueError: the page does not have each marker once.
    """
    if page.count(begin) != 1 or page.count(end) != 1:
        raise ValueError(f"{name} needs the lines {begin.strip()!r} and {end.strip()!r} once each")
    before, rest = page.split(begin)
    return f"{before}{begin}{text}{end}{rest.split(end)[1]}"
