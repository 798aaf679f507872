"""Which source neurons have synapses on a block of neurons, and how many: counted from weights, window by window."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.program import Shape, Synapses, Window

__all__ = ["Block", "Fan", "Reach", "block_rows", "blocks_of_range", "widest_neuron"]

Integers = NDArray[np.int64]
Neurons = NDArray[np.int32]
Block = tuple[tuple[int, int], ...]  # [first, last) along each axis of a population's shape


class Reach(NamedTuple):
    """Synapses of one connection that end in one block.

    Attributes:
        sources: flat source neurons with a synapse other than zero there, ascending, in 32 bits.
        synapses: how many each of them has, at least 1.
    """

    sources: Neurons
    synapses: Integers


def block_rows(block: Block, shape: Shape) -> Integers:
    """Flat neurons of a block, ascending."""
    rows = np.zeros((), dtype=np.int64)
    for (first, last), size in zip(block, shape, strict=True):
        rows = rows[..., None] * size + np.arange(first, last)
    return rows.reshape(-1)


def blocks_of_range(first: int, last: int, shape: Shape) -> Iterator[Block]:
    """Blocks that together hold the flat neurons [first, last) of a shape, each once."""
    if first >= last:
        return
    if len(shape) <= 1:
        yield ((first, last),) if shape else ()
        return
    inner = math.prod(shape[1:])
    rest = tuple((0, size) for size in shape[1:])
    whole = -(-first // inner), last // inner
    if whole[0] > whole[1]:  # within one row
        row = first // inner
        for block in blocks_of_range(first - row * inner, last - row * inner, shape[1:]):
            yield ((row, row + 1), *block)
        return
    for block in blocks_of_range(first - (whole[0] - 1) * inner, inner, shape[1:]) if first % inner else ():
        yield ((whole[0] - 1, whole[0]), *block)
    if whole[0] < whole[1]:
        yield (whole, *rest)
    for block in blocks_of_range(0, last - whole[1] * inner, shape[1:]):
        yield ((whole[1], whole[1] + 1), *block)


class Fan:
    """Counts of one connection's synapses, for blocks of its target.

    Args:
        synapses: the connection.
        shape: shape of its target.
    """

    def __init__(self, synapses: Synapses, shape: Shape) -> None:
        self.synapses = synapses
        self.shape = shape
        self.used = synapses.weight != 0
        self.full = synapses.window is None and bool(self.used.all())
        self._taps: dict[tuple[int, int, int], NDArray[np.float64]] = {}
        self._channels: dict[tuple[int, int], NDArray[np.float64]] = {}

    def reach(self, block: Block) -> Reach:
        """Source neurons with synapses in a block."""
        window = self.synapses.window
        if window is None:
            return self._dense(block)
        parts = [self._windowed(window, part) for part in self._parts(block, window.target_shape)]
        if len(parts) == 1:
            return parts[0]
        # a block of a flat population is several blocks of the window's map
        counts = np.zeros(self.synapses.n_sources, dtype=np.int64)
        for part in parts:
            counts[part.sources] += part.synapses
        sources = np.flatnonzero(counts).astype(np.int32)
        return Reach(sources, counts[sources])

    def _dense(self, block: Block) -> Reach:
        rows = block_rows(block, self.shape)
        if self.full:
            return Reach(
                np.arange(self.used.shape[1], dtype=np.int32), np.full(self.used.shape[1], len(rows), dtype=np.int64)
            )
        whole = len(rows) == rows[-1] - rows[0] + 1
        found = self.used[rows[0] : rows[-1] + 1] if whole else self.used[rows]
        counts = np.add.reduce(found.view(np.uint8), axis=0, dtype=np.int64)
        sources = np.flatnonzero(counts).astype(np.int32)
        return Reach(sources, counts[sources])

    def _parts(self, block: Block, target: Shape) -> list[Block]:
        if tuple(n for n in self.shape if n != 1) == tuple(n for n in target if n != 1):
            real = iter([axis for axis, size in zip(block, self.shape, strict=True) if size != 1])
            return [tuple((0, 1) if size == 1 else next(real) for size in target)]
        rows = block_rows(block, self.shape)
        edges = np.flatnonzero(np.diff(rows) != 1) + 1
        runs = itertools.pairwise([0, *edges.tolist(), len(rows)])
        return [part for a, b in runs for part in blocks_of_range(int(rows[a]), int(rows[b - 1]) + 1, target)]

    def _windowed(self, window: Window, block: Block) -> Reach:
        """synapses[c, y, x] = sum over taps of rows[y, ky] channels[c, ky, kx] columns[x, kx], of counts each."""
        (c0, c1), *spatial = block
        rows, columns = (self._axis(window, axis, *spatial[axis]) for axis in (0, 1))
        ys, xs = (np.flatnonzero(hits.any(axis=1)) for hits in (rows, columns))
        found = np.matmul(rows[ys], self._kernels(window, c0, c1))  # [channel, y, kx]
        found = np.matmul(found, columns[xs].T)
        _, height, width = window.source_shape
        index = np.arange(window.source_shape[0])[:, None, None] * (height * width) + ys[:, None] * width + xs
        hit = found > 0
        return Reach(index[hit].astype(np.int32), found[hit].astype(np.int64))

    def _axis(self, window: Window, axis: int, first: int, last: int) -> NDArray[np.float64]:
        """Target rows of [first, last) in which a source row meets a tap, [source row, tap]; 0 or 1."""
        if (axis, first, last) not in self._taps:
            taps = np.arange(self.used.shape[2 + axis]) * window.dilation[axis] - window.padding[axis]
            at = np.arange(first, last)[:, None] * window.stride[axis] + taps
            inside = (at >= 0) & (at < window.source_shape[1 + axis])
            hits = np.zeros((window.source_shape[1 + axis], len(taps)))
            np.add.at(hits, (at[inside], np.broadcast_to(np.arange(len(taps)), at.shape)[inside]), 1.0)
            self._taps[axis, first, last] = hits
        return self._taps[axis, first, last]

    def _kernels(self, window: Window, first: int, last: int) -> NDArray[np.float64]:
        """Output channels of [first, last) with a weight other than zero, [source channel, ky, kx]."""
        if (first, last) not in self._channels:
            out, per_group = self.used.shape[:2]
            found = np.zeros((window.source_shape[0], *self.used.shape[2:]))
            size = out // window.groups
            for group in range(first // size, (last - 1) // size + 1):
                part = self.used[max(first, group * size) : min(last, (group + 1) * size)]
                found[group * per_group : (group + 1) * per_group] = part.sum(axis=0)
            self._channels[first, last] = found
        return self._channels[first, last]


def widest_neuron(fans: Sequence[Fan], shape: Shape) -> Block:
    """The neuron with the largest fan-in, as a block of one; the first among equals."""
    total = np.zeros(math.prod(shape), dtype=np.int64)
    for fan in fans:
        window = fan.synapses.window
        if window is None:
            total += np.add.reduce(fan.used.view(np.uint8), axis=1, dtype=np.int64)
        else:
            total += _fan_in(fan, window).reshape(-1)
    place = np.unravel_index(int(total.argmax()), shape) if shape else ()
    return tuple((int(i), int(i) + 1) for i in place)


def _fan_in(fan: Fan, window: Window) -> Integers:
    """Synapses of every target neuron, [channel, y, x]."""
    inside = []
    for axis in (0, 1):
        taps = np.arange(fan.used.shape[2 + axis]) * window.dilation[axis] - window.padding[axis]
        at = np.arange(window.target_shape[1 + axis])[:, None] * window.stride[axis] + taps
        inside.append(((at >= 0) & (at < window.source_shape[1 + axis])).astype(np.float64))
    kernels = fan.used.sum(axis=1).astype(np.float64)
    found: Integers = np.matmul(np.matmul(inside[0], kernels), inside[1].T).astype(np.int64)
    return found
