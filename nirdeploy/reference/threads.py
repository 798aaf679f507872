"""Splitting native work over threads: kernels release the interpreter's lock, so plain threads run side by side."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["LEAST", "one_thread", "share", "split"]

LEAST = 1 << 20
"""Neuron-steps that are worth a thread."""

T = TypeVar("T")
_own = threading.local()  # alone: whether this thread is to have no other, torch being imported or not
_POOL: dict[int, ThreadPoolExecutor] = {}  # by process: a fork has none of its parent's threads


def split(work: Callable[[int, int], T], count: int, least: int) -> list[T]:
    """Call `work(first, last)` on as many parts of range(count) as torch has threads, or would have.

    Args:
        work: what to do with a part; must release the lock to gain anything.
        count: how much there is.
        least: no part is smaller than this, since handing one over takes 50 us.

    Returns:
        The results in the order of the parts; one part where there is nothing to split.
    """
    parts = max(1, min(_threads(), count // max(1, least)))
    if parts == 1:
        return [work(0, count)]
    bounds = [count * n // parts for n in range(parts + 1)]
    waiting = [_pool().submit(work, bounds[n], bounds[n + 1]) for n in range(1, parts)]
    return [work(0, bounds[1]), *(found.result() for found in waiting)]


def share(size: int, batch: int, unit: int, most: int, parts: int) -> int:
    """How many of `size` numbers a sample should be handled together, so that there are parts enough for the threads.

    Args:
        size: numbers a sample.
        batch: samples.
        unit: what the answer is a multiple of.
        most: the answer where there are samples enough.
        parts: how many parts are worth a thread.
    """
    wanted = -(-min(parts, _threads()) // max(1, batch))
    return max(unit, min(most, -(-size // (max(1, wanted) * unit)) * unit))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch on one thread: small layers gain nothing from a second, and lose much where cores are shared."""
    torch = _torch()
    before = 0 if torch is None else torch.get_num_threads()  # its own, should it have come within another of these
    alone, _own.alone = getattr(_own, "alone", False), True
    if torch is not None:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        _own.alone = alone
        if torch is not None:
            torch.set_num_threads(before)


def _torch() -> Any:
    """torch, if it has been imported: it takes a second, which emulators do without."""
    return sys.modules.get("torch")


def _threads() -> int:
    """Threads that torch uses, or would use."""
    if getattr(_own, "alone", False):
        return 1
    if (torch := _torch()) is not None:
        found: int = torch.get_num_threads()
        return found
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else os.cpu_count() or 1


def _pool() -> ThreadPoolExecutor:
    process = os.getpid()
    if process not in _POOL:
        _POOL.clear()
        _POOL[process] = ThreadPoolExecutor(
            max_workers=max(1, (os.cpu_count() or 1) - 1), thread_name_prefix="nirdeploy"
        )
    return _POOL[process]
