"""Arrays that begin with a line of the cache, so that no vector crosses one, and memory that runs hand on."""

from __future__ import annotations

import math
import os
import threading
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LINE", "NUMPY", "address", "aligned", "aligned_copy", "lend"]

LINE = 64  # bytes
NUMPY: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
}


def address(array: NDArray[Any]) -> int:
    """Where an array begins; much faster than `array.ctypes`."""
    return int(array.__array_interface__["data"][0])


def aligned(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of undefined content."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    block = np.empty(size + LINE, np.uint8)
    begin = -address(block) % LINE
    found: NDArray[Any] = block[begin : begin + size].view(kind).reshape(shape)
    return found


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """A copy of an array."""
    found = aligned(array.shape, array.dtype)
    found[...] = array
    return found


class _Lease:
    """Memory lent to arrays; when the last of them is gone, the next run gets it, as fresh memory is slow."""

    most = 256 << 20  # bytes that are kept
    free: list[NDArray[Any]] = []  # noqa: RUF012 (of the process)
    lock = threading.RLock()  # the same thread may come back, when a lease ends while it holds the lock

    def __init__(self, block: NDArray[Any], shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        self.__array_interface__ = {
            "shape": shape,
            "typestr": dtype.str,
            "data": (address(block) + -address(block) % LINE, False),
            "version": 3,
        }
        self._block = block

    def __del__(self) -> None:
        with self.lock:
            self.free.append(self._block)
            while sum(b.nbytes for b in self.free) > self.most:
                self.free.pop(0)


def _after_fork() -> None:
    _Lease.lock = threading.RLock()  # another thread of the parent may hold it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def lend(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """An array of undefined content, in memory that an earlier run has touched where there is such."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    if size < 1 << 20:
        return np.empty(shape, kind)
    with _Lease.lock:
        fitting = [b for b in _Lease.free if size + LINE <= b.nbytes <= 2 * size + LINE]
        block = min(fitting, key=lambda b: b.nbytes) if fitting else np.empty(size + LINE, np.uint8)
        _Lease.free[:] = [b for b in _Lease.free if b is not block]
    return np.asarray(_Lease(block, shape, kind))
