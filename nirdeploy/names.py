"""Node names as HDF5 group names, torch submodule keys and suggestions for mistyped ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from urllib.parse import unquote

__all__ = ["escape", "suggest", "unescape", "unstorable"]


def escape(name: str, reserved: str = "/") -> str:
    """Percent-encode the characters of `reserved`, '%' and control characters; reversible by `unescape`.

    A name that is empty or only dots (which HDF5 reserves) is encoded as a whole.
    """
    if not name:
        return "%"
    if set(name) == {"."}:
        return "%2E" * len(name)
    pattern = f"[{re.escape(reserved)}%\x00-\x1f\x7f]"
    return re.sub(pattern, lambda match: f"%{ord(match.group()):02X}", name)


def unescape(text: str) -> str:
    """Inverse of `escape`."""
    return "" if text == "%" else unquote(text)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest known name, or all known names when none is near."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(options) or 'none'}."


def unstorable(name: object) -> str:
    """Why HDF5 cannot hold a name, e.g. 'holds a NUL character'; '' where it can."""
    if not isinstance(name, str):
        return f"is a {type(name).__name__}, expected text"
    if "\x00" in name:
        return "holds a NUL character"
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is no Unicode text"
    return ""
