"""Exact integer convolution, matrix product and pooling on float BLAS, and the fixed-point helpers.

A product of integers in floating point is exact while every partial sum stays below 2**24 (float32) or 2**53
(float64). The bound is computed from the data before each call and the type chosen by it, so results are
equal to integer arithmetic, at the speed of BLAS.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.errors import QuantizationError

__all__ = ["conv2d", "fault", "linear", "narrow", "round_half_even", "saturate", "sum_pool2d"]

Integers = NDArray[Any]
_CHUNK_BYTES = 32 << 20  # keeps a chunk's activations near the last-level cache


def _float_type(bound: int) -> np.dtype[Any]:
    if bound < 1 << 24:
        return np.dtype(np.float32)
    if bound < 1 << 53:
        return np.dtype(np.float64)
    raise QuantizationError(f"an integer sum can reach {bound}, beyond 2**53, where sums are no longer exact")


def _bound(x: Integers, weight: Integers) -> int:
    """Largest absolute partial sum of any output: max |x| times the largest row sum of |weight|."""
    if not x.size or not weight.size:
        return 0
    largest = max(abs(int(x.max())), abs(int(x.min())))
    rows = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(1)
    return largest * int(rows.max())


def _in_chunks(x: Integers, outputs: int, kind: np.dtype[Any], apply: Callable[[Any], Any]) -> Integers:
    import torch  # a second, which emulators do without

    per_sample = max(1, int(np.prod(x.shape[1:])) + outputs) * kind.itemsize
    step = max(1, _CHUNK_BYTES // per_sample)
    parts = []
    with torch.no_grad():
        for first in range(0, x.shape[0], step):
            chunk = torch.from_numpy(np.array(x[first : first + step], dtype=kind))
            parts.append(apply(chunk).to(torch.int64).numpy())
    return np.concatenate(parts)


def conv2d(x: Integers, weight: Integers, **options: Any) -> Integers:
    """Correlation of [n, channel, y, x] with [out, in, y, x], int64; options as torch's conv2d (no bias)."""
    import torch
    from torch.nn import functional

    kind = _float_type(_bound(x, weight))
    kernel = torch.from_numpy(np.array(weight, dtype=kind))
    size = weight.shape[0] * int(np.prod(x.shape[2:]))
    return _in_chunks(x, size, kind, lambda part: functional.conv2d(part, kernel, **options))


def linear(x: Integers, weight: Integers) -> Integers:
    """[n, in] times [out, in] transposed, int64."""
    import torch

    kind = _float_type(_bound(x, weight))
    matrix = torch.from_numpy(np.array(weight, dtype=kind)).T
    return _in_chunks(x, weight.shape[0], kind, lambda part: part @ matrix)


def sum_pool2d(
    x: Integers, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int] = (0, 0)
) -> Integers:
    """Sum over windows of [n, channel, y, x], zero padded, incomplete last windows dropped."""
    channels = x.shape[1]
    ones = np.ones((channels, 1, *kernel), dtype=np.int64)
    return conv2d(x, ones, stride=stride, padding=padding, groups=channels)


def fault(value: Any) -> tuple[str, str, int] | None:
    """What keeps a parameter from being real, finite numbers: 'dtype' or 'finite', the words, how many values."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        return "dtype", f"has dtype {array.dtype}, expected real numbers", array.size
    count = 0 if array.dtype.kind != "f" else array.size - int(np.count_nonzero(np.isfinite(array)))
    return ("finite", f"holds {count} of {array.size} values that are not finite", count) if count else None


def narrow(values: Integers, what: str, node: str) -> NDArray[np.int32]:
    """The same integers in 32 bits.

    Raises:
        QuantizationError: one does not fit; naming node and value.
    """
    if values.dtype != np.int32 and values.size:
        worst = max((int(values.max()), int(values.min())), key=abs)
        if not -(1 << 31) <= worst < 1 << 31:
            raise QuantizationError(f"{what} reaches {worst}, which 32 bits do not hold", node=node)
    return values.astype(np.int32, copy=False)


def round_half_even(values: Any) -> NDArray[np.int64]:
    """Nearest integers, ties to even, in the type of `values`."""
    found: NDArray[np.int64] = np.rint(values).astype(np.int64)
    return found


def saturate(values: Any, bits: int) -> NDArray[np.int64]:
    """Clip to signed integers of `bits` bits."""
    found: NDArray[np.int64] = np.clip(values, -(1 << (bits - 1)), (1 << (bits - 1)) - 1).astype(np.int64)
    return found
