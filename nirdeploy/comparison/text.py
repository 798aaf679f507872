"""Numbers, names and tables as text, alike in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["neuron_text", "number", "percent", "several", "shorten", "shown", "table"]


def shown(name: str) -> str:
    """A name on one line: what is not printable (newlines, control characters) as its escape."""
    return name if name.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def shorten(text: str, limit: int) -> str:
    """At most `limit` characters, the middle left out."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def percent(share: float | None, digits: int = 2) -> str:
    """A share of 1 as a percentage that reads 100 or 0 only when it is; '-' for None."""
    if share is None:
        return "-"
    least = 10.0**-digits
    if 1 - least / 200 <= share < 1:
        return f"> {100 - least:.{digits}f} %"
    if 0 < share < least / 200:
        return f"< {least:.{digits}f} %"
    return f"{100 * share:.{digits}f} %"


def number(value: float | None) -> str:
    """Whole numbers with thin groups of three, others with four significant digits; '-' for None."""
    if value is None:
        return "-"
    return f"{value:,}".replace(",", " ") if isinstance(value, int) else f"{value:.4g}"


def several(count: int, noun: str) -> str:
    """A count with its noun, '1 record' or '2 records'."""
    return f"{number(count)} {noun}" if count == 1 else f"{number(count)} {noun}s"


def neuron_text(neuron: Sequence[int]) -> str:
    """A neuron's index as '(3, 1, 2)', or '7' in one dimension."""
    return str(neuron[0]) if len(neuron) == 1 else f"({', '.join(map(str, neuron))})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a text table: first and last column left-aligned, the others right-aligned."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    last = len(head) - 1
    lines = []
    for row in (head, *rows):
        cells = (c.ljust(w) if i in (0, last) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        lines.append("  ".join(cells).rstrip())
    return lines
