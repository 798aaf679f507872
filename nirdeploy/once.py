"""What an object makes when it is first asked for, and keeps."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

__all__ = ["once"]

T = TypeVar("T")


def once(owner: object, name: str, make: Callable[[], T]) -> T:
    """What `make` gives, kept among an object's attributes, frozen or not.

    `functools.cached_property` of Python 3.11 holds one lock for all objects of a class meanwhile: runs in other
    threads wait for it, and a process that is forked meanwhile waits for ever. Here two threads may both make it.
    """
    kept = vars(owner)
    if name not in kept:
        kept[name] = make()
    found: T = kept[name]
    return found
