"""Notices when a module is no longer what a Program was made for: its structure by identity, its parameters by bits."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from torch import nn

from nirdeploy.reference.lanes import get, memory, pointer, put

__all__ = ["Watch"]

_compile: Any = numba.njit(cache=True, nogil=True, error_model="numpy")


@_compile
def _sums(places, sums):  # type: ignore[no-untyped-def]
    """Checksums of stretches of memory [stretch, (address, bytes)]; whether all are what stood in `sums`.

    A checksum is a sum of all words and one weighted by position: it differs where bits do, but for rare accidents.
    """
    same = True
    table, kept = pointer(places), pointer(sums)
    for n in range(places.shape[0]):
        size = get(table, 2 * n + 1)
        words = memory(get(table, 2 * n), np.uint32(0))
        total, weighted = np.uint64(0), np.uint64(0)
        for k in range(size // 4):
            u = np.uint64(get(words, k))
            total += u
            weighted += u * (np.uint64(k) + np.uint64(0x9E3779B97F4A7C15))
        rest = memory(get(table, 2 * n), np.uint8(0))
        for k in range(size - size % 4, size):
            total = total * np.uint64(31) + np.uint64(get(rest, k))
        found = total ^ (weighted << np.uint64(1))
        same &= found == get(kept, n)
        put(kept, n, found)
    return same


class Watch:
    """What a module looked like.

    Args:
        modules: all modules in it.
        holders: where its nodes stand: a dict of modules and a key.
    """

    def __init__(self, modules: Iterable[nn.Module], holders: Iterable[tuple[dict[str, Any], str]]) -> None:
        modules = tuple(modules)
        self._modules = [(vars(m), *self._look(vars(m))) for m in modules]
        self._holders = [(held, key, held.get(key)) for held, key in holders]
        self._slots = [(held, name) for m in modules for held in (m._parameters, m._buffers) for name in held]
        self._tensors: list[Any] = []
        self._where: list[Any] = []
        self._read: list[Any] = []  # what `_places` names the memory of
        self._places: NDArray[np.int64] = np.empty((0, 2), np.int64)
        self._sums: NDArray[np.uint64] = np.empty(0, np.uint64)
        self._copied = False

    @staticmethod
    def _look(own: dict[str, Any]) -> tuple[int, int, Any, bool]:
        return len(own["_forward_hooks"]), len(own["_forward_pre_hooks"]), own.get("convention"), "forward" in own

    def structure_holds(self) -> bool:
        """Whether the module still has its submodules, hooks and conventions."""
        for own, after, before, convention, forward in self._modules:
            if (
                len(own["_forward_hooks"]) != after
                or len(own["_forward_pre_hooks"]) != before
                or own.get("convention") is not convention
                or ("forward" in own) is not forward
            ):
                return False
        return all(held.get(key) is module for held, key, module in self._holders)

    def parameters_hold(self) -> bool:
        """Whether parameters and buffers are what they were at the last call; False at the first.

        They are read, not asked for their version: `parameter.data` can be written to without one. Those that are not
        on the CPU are taken for changed, being not worth a transfer.
        """
        tensors = [t for held, name in self._slots if (t := held.get(name)) is not None]
        where = [(t.data_ptr(), t.stride()) for t in tensors]
        known = where == self._where and all(map(is_, tensors, self._tensors))
        if not known or self._copied:
            if any(t.device.type != "cpu" for t in tensors):
                return False
            self._copied = not all(t.is_contiguous() for t in tensors)
            self._read = [t.detach().contiguous() for t in tensors]
            places = [(t.data_ptr(), t.numel() * t.element_size()) for t in self._read]
            self._places = np.array(places, np.int64).reshape(len(places), 2)
            self._tensors, self._where = tensors, where
            if not known:
                self._sums = np.zeros(len(places), np.uint64)
        same = _sums(self._places, self._sums)
        return bool(same) and known
