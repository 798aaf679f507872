"""Settings of a whole process that calls change while they last, in several threads at once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

__all__ = ["SharedSetting"]

T = TypeVar("T")


class SharedSetting(Generic[T]):
    """A setting that the first of several calls changes, and the last restores; a fork has none of its parent's calls.

    Args:
        read: gives its value.
        write: sets it.
    """

    def __init__(self, read: Callable[[], T], write: Callable[[T], None]) -> None:
        self._read, self._write = read, write
        self._lock = threading.Lock()
        self._before: list[T] = []  # of every call, what it was before all of them
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    @contextmanager
    def changed(self, change: Callable[[T], T]) -> Iterator[None]:
        """Have the value that `change` makes of the one before all calls."""
        with self._lock:
            self._before.append(self._before[0] if self._before else self._read())
            self._write(change(self._before[0]))
        try:
            yield
        finally:
            with self._lock:
                if self._before:  # a fork in the middle has forgotten them
                    before = self._before.pop()
                    if not self._before:
                        self._write(before)

    def _forget(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may hold it
        if self._before:
            self._write(self._before[0])
            self._before.clear()
