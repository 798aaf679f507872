"""Notices when a module is no longer what a Program was made for: its structure by identity, its parameters by bits."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nirdeploy.reference.lanes import get, memory, pointer
from nirdeploy.reference.native import kernel

__all__ = ["Seen", "Watch"]


@kernel
def _sums(places, sums):
    """Checksums of stretches of memory [stretch, (address, bytes)], written to `sums`.

    A checksum is a sum of all words and one weighted by position: it differs where bits do, but for rare accidents.
    """
    table = pointer(places)
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
        sums[n] = total ^ (weighted << np.uint64(1))


class Seen(NamedTuple):
    """Parameters as they were: the tensors, where they stand, what is read of them, where that is, and checksums.

    `copied`: whether some are read from a copy, which has to be made anew each time.
    """

    tensors: list[Any]
    where: list[Any]
    read: list[Any]
    places: NDArray[np.int64]
    sums: bytes
    copied: bool


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
        self._seen = Seen([], [], [], np.empty((0, 2), np.int64), b"", copied=False)

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

    def news(self) -> Seen | None:
        """What parameters and buffers look like where they are not what was last kept; None where they are.

        They are read, not asked for their version: `parameter.data` can be written to without one. Those that are not
        on the CPU are taken for changed, being not worth a transfer.
        """
        seen = self._seen  # another thread may replace it
        tensors = [t for held, name in self._slots if (t := held.get(name)) is not None]
        # a row has no other strides unless it is shorter or longer, which no layer bears
        where = [(t.data_ptr(), t.stride()) if t.ndim > 1 else t.data_ptr() for t in tensors]
        known = where == seen.where and all(map(is_, tensors, seen.tensors))
        if known and not seen.copied:
            read, places = seen.read, seen.places
        else:
            if any(t.device.type != "cpu" for t in tensors):
                return Seen([], [], [], seen.places[:0], b"", copied=False)
            read = [t.detach().contiguous() for t in tensors]
            stretches = [(t.data_ptr(), t.numel() * t.element_size()) for t in read]
            places = np.array(stretches, np.int64).reshape(len(stretches), 2)
        sums = np.empty(len(places), np.uint64)
        _sums(places, sums)
        found = sums.tobytes()
        if known and found == seen.sums:
            return None
        return Seen(tensors, where, read, places, found, copied=not all(t.is_contiguous() for t in tensors))

    def keep(self, seen: Seen) -> None:
        """Compare with this from now on."""
        self._seen = seen
