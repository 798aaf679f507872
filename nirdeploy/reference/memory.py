"""Arrays that begin with a line of the cache, so that no vector crosses one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["LINE", "NUMPY", "address", "aligned", "aligned_copy"]

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
