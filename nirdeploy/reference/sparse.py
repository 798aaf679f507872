"""Spike rasters as events, and weights laid out for them.

Events are sorted by row, a row being one step of one sample, sample by sample: row = sample * steps + step. Within a
row they go by address.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nirdeploy.reference import event_kernels, raster_kernels
from nirdeploy.reference.kernels import BLOCK
from nirdeploy.reference.memory import aligned_copy
from nirdeploy.reference.native import kernel
from nirdeploy.reference.threads import split

__all__ = [
    "Rows",
    "Weights",
    "as_bits",
    "from_raster",
    "in_blocks",
    "join",
    "pack_convolution",
    "pack_matrix",
    "reach_of_pool",
    "survey",
    "to_raster",
]

Array = NDArray[Any]


@dataclass(frozen=True)
class Rows:
    """Events of a chunk of steps.

    Attributes:
        pointer: where each row begins, [batch * steps + 1].
        index: flat address in the sample, [event].
        value: count, [event].
        steps: steps a sample.
        batch: samples.
        size: neurons a sample.
    """

    pointer: Array
    index: Array
    value: Array
    steps: int
    batch: int
    size: int

    @property
    def density(self) -> float:
        """Events a neuron and step."""
        return len(self.index) / max(1, self.steps * self.batch * self.size)


@dataclass(frozen=True)
class Weights:
    """A weight laid out for events.

    Attributes:
        weight: [source row, neuron], or a convolution's kernel [channel and tap, output channel], its taps reordered;
            with `vectors` flat, the matrix block of neurons by block.
        table: where each source address meets it: its row, or where its taps begin in x and in the kernel; -1: nowhere.
        reach: what taps advance by in x and in the kernel, numbers in a span, spans; zeros for rows.
        bias: what x starts from; maps have margins, so that every event meets as many taps.
        pieces: [piece, field]: where a stretch of neurons stands in x, the first of them, how many.
        order: flat index in the node's shape of each neuron in the population's own order; empty where they agree.
        fan_out: additions an event costs.
        sources: rows of a matrix.
        vectors: whether it is laid out for `event_kernels`.
    """

    weight: Array
    table: Array
    reach: tuple[int, int, int, int]
    bias: Array
    pieces: Array
    order: Array
    fan_out: float
    sources: int
    vectors: bool


# ---------------------------------------------------------------- rasters


@kernel
def _survey(bits, first, last):
    high, filled = bits.dtype.type(0), np.int64(0)
    nothing = bits.dtype.type(0)
    for k in range(first, last, 4096):
        part = bits[k : min(last, k + 4096)]
        highest, count = nothing, np.uint32(0)  # narrow, so that they fit a vector
        for j in range(part.shape[0]):
            u = part[j]
            highest = u if u > highest else highest
            count += np.uint32(1) if u != nothing else np.uint32(0)
        high = highest if highest > high else high
        filled += np.int64(count)
    return high, filled


def survey(raster: Array, limit: float) -> tuple[bool, int]:
    """Whether all values are from 0 to `limit`, and how many are not zero, in one pass over their bits.

    Read as unsigned integers, the bits of IEEE numbers from 0 on are in the numbers' own order; negative numbers, NaN,
    infinity and -0 are above all of them, and so are negative integers in two's complement.
    """
    bits = raster.reshape(-1).view(f"u{raster.itemsize}")
    parts = split(lambda first, last: _survey(bits, first, last), bits.size, 1 << 21)
    return max(int(p[0]) for p in parts) <= as_bits(limit, raster.dtype), sum(int(p[1]) for p in parts)


@lru_cache
def as_bits(limit: float, kind: np.dtype[Any]) -> int:
    """The bits of the largest number of a type up to a limit, read as an unsigned integer."""
    most = int(min(limit, np.iinfo(kind).max)) if kind.kind in "iu" else limit
    return int(np.array(most).astype(kind).view(f"u{kind.itemsize}"))


@kernel
def _rows(raster, bits, first, last, pointer, dtype_like):
    steps, size = raster.shape[0], raster.shape[2]
    capacity, used = max(1024, size), 0
    index, value = np.empty(capacity, np.int32), np.empty(capacity, dtype_like.dtype)
    zero, nothing = raster.dtype.type(0), bits.dtype.type(0)
    row = 0
    pointer[0] = 0
    for b in range(first, last):
        for t in range(steps):
            if used + size + 1 > capacity:
                capacity = 2 * capacity + size + 1
                grown, counts = np.empty(capacity, np.int32), np.empty(capacity, dtype_like.dtype)
                grown[:used] = index[:used]
                counts[:used] = value[:used]
                index, value = grown, counts
            line, plain = raster[t, b], bits[t, b]
            whole = size - size % 16
            for a in range(0, whole, 16):
                some = nothing
                for j in range(16):  # a constant, so that it becomes one vector
                    some |= plain[np.uint64(a + j)]
                if some:
                    for j in range(a, a + 16):  # without a branch: which of them is set cannot be guessed
                        u = line[np.uint64(j)]
                        index[np.uint64(used)] = j
                        value[np.uint64(used)] = u
                        used += 1 if u != zero else 0
            for j in range(whole, size):
                index[used] = j
                value[used] = line[j]
                used += 1 if line[j] != zero else 0
            row += 1
            pointer[row] = used
    return index[:used].copy(), value[:used].copy()


def join(parts: list[tuple[Array, Array, Array]], steps: int, batch: int, size: int) -> Rows:
    """Rows from what each thread made of its samples: pointer, index and value."""
    if len(parts) == 1:
        return Rows(*parts[0], steps, batch, size)
    pointer = np.empty(batch * steps + 1, np.int64)
    row = used = 0
    for begin, index, _ in parts:
        pointer[row : row + len(begin)] = begin + used
        row += len(begin) - 1
        used += len(index)
    return Rows(
        pointer, np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts]), steps, batch, size
    )


def from_raster(raster: Array, like: Array, density: float = 1.0) -> Rows | None:
    """Events of a raster [step, batch, neuron]; values get the type of `like`.

    None as soon as more than a share `density` of the raster is found not to be zero.
    """
    steps, batch, size = raster.shape
    bits = raster.view(f"u{raster.dtype.itemsize}")  # which of them are all zero is quickly seen
    vectors, most = raster.dtype == like.dtype, int(density * raster.size)

    def work(first: int, last: int) -> tuple[Array, Array, Array]:
        pointer = np.empty((last - first) * steps + 1, np.int64)
        if vectors:
            return (pointer, *raster_kernels.events(raster, first, last, pointer, most))
        return (pointer, *_rows(raster, bits, first, last, pointer, like))

    parts = split(work, batch, max(1, (1 << 20) // max(1, steps * size)))
    if sum(len(index) for _, index, _ in parts) > most:
        return None
    return join(parts, steps, batch, size)


@kernel
def _fill(pointer, index, value, steps, first, last, out):
    for b in range(first, last):
        for t in range(steps):
            row = out[t, b]
            for k in range(pointer[b * steps + t], pointer[b * steps + t + 1]):
                row[index[k]] += value[k]


def to_raster(rows: Rows, out: Array) -> Array:
    """Write events into a raster of zeros [step, batch, neuron]."""
    split(
        lambda first, last: _fill(rows.pointer, rows.index, rows.value, rows.steps, first, last, out),
        rows.batch,
        max(1, (1 << 18) // max(1, len(rows.index) // max(1, rows.batch) + 1)),
    )
    return out


# ---------------------------------------------------------------- weights


def in_blocks(weight: Array, block: int) -> Array:
    """A matrix [neuron, source] block of neurons by block, in each [source, neuron], flat."""
    return aligned_copy(np.concatenate([weight[n : n + block].T.reshape(-1) for n in range(0, len(weight), block)]))


def pack_matrix(weight: Array, bias: Array, reach: Array, *, vectors: bool = False) -> Weights:
    """Lay out a matrix [neuron, source].

    Args:
        weight: the matrix.
        bias: [neuron].
        reach: for each address of events its column, -1 for none.
        vectors: for `event_kernels`, else for `kernels`.
    """
    rows = in_blocks(weight, event_kernels.BLOCK) if vectors else np.ascontiguousarray(weight.T)
    table = np.ascontiguousarray(reach.astype(np.int32)[:, None])
    size = weight.shape[0]
    starts = np.arange(0, size, BLOCK)
    pieces = np.stack([starts, starts, np.minimum(BLOCK, size - starts)], axis=1)
    none = np.empty(0, np.int32)
    return Weights(
        rows, table, (0, 0, 0, 0), np.ascontiguousarray(bias), pieces, none, float(size), weight.shape[1], vectors
    )


def _taps(size: int, outputs: int, kernel: int, stride: int, padding: int) -> tuple[Array, Array, Array, int]:
    """How inputs meet a kernel along one axis.

    Input x meets tap k at output (x + padding - k) / stride where that is whole. With q and f the quotient and the
    remainder of x + padding by the stride, those are the taps k = f + stride m at the outputs q - m, m = 0, 1, ...
    Every remainder gets as many m, with taps of weight 0 where the kernel ends earlier, and outputs a margin.

    Returns:
        Taps by [remainder, position], outputs ascending (`kernel` for one of weight 0); for each input its remainder
        and its first output, counted with the margin; the margin before output 0, and the length with both margins.
    """
    most = -(-kernel // stride)
    taps = np.minimum(np.arange(stride)[:, None] + stride * np.arange(most)[::-1], kernel)
    quotient, remainder = np.divmod(np.arange(size) + padding, stride)
    before = max(0, most - 1 - padding // stride)
    length = before + max(outputs, int(quotient[-1]) + 1)
    return taps, np.stack([remainder, quotient - most + 1 + before], axis=1), np.array(before), length


def pack_convolution(
    weight: Array,
    bias: Array,
    size: tuple[int, int],
    outputs: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    reach: Array,
    *,
    vectors: bool = False,
) -> Weights:
    """Lay out the kernel of a convolution without groups or dilation.

    Args:
        weight: [output channel, channel, y, x].
        bias: [output channel].
        size: rows and columns that come in.
        outputs: rows and columns that go out.
        stride: of rows and columns.
        padding: likewise.
        reach: for each address of events its flat address in [channel, y, x] of what comes in, -1 for none.
        vectors: for `event_kernels`, else for `kernels`.
    """
    channels_out, channels, rows, columns = weight.shape
    taps_y, met_y, before_y, length_y = _taps(size[0], outputs[0], rows, stride[0], padding[0])
    taps_x, met_x, before_x, length_x = _taps(size[1], outputs[1], columns, stride[1], padding[1])
    wide = np.pad(weight, ((0, 0), (0, 0), (0, 1), (0, 1)))
    # [output, channel, remainder y, m, remainder x, m] -> outputs innermost
    laid = np.ascontiguousarray(wide[:, :, taps_y][..., taps_x].transpose(1, 2, 3, 4, 5, 0))
    row = stride[1] * taps_x.shape[1] * channels_out  # what one tap of y takes
    channel, y, x = np.meshgrid(np.arange(channels), np.arange(size[0]), np.arange(size[1]), indexing="ij")
    at = (met_y[y, 1] * length_x + met_x[x, 1]) * channels_out
    source = (channel * stride[0] + met_y[y, 0]) * taps_y.shape[1] * row
    source = source + met_x[x, 0] * taps_x.shape[1] * channels_out
    table = np.stack([at, source], axis=-1).reshape(-1, 2)
    own = np.full((len(reach), 2), -1, np.int64)
    own[reach >= 0] = table[reach[reach >= 0]]
    starts = np.zeros((length_y, length_x, channels_out), weight.dtype)
    inner = starts[before_y : before_y + outputs[0], before_x : before_x + outputs[1]]
    inner[...] = bias
    line = outputs[1] * channels_out
    first = ((before_y + np.arange(outputs[0])) * length_x + before_x) * channels_out
    pieces = [
        (begin + part, n * line + part, min(BLOCK, line - part))
        for n, begin in enumerate(first)
        for part in range(0, line, BLOCK)
    ]
    order = np.arange(channels_out * outputs[0] * outputs[1]).reshape(channels_out, -1).T.reshape(-1)
    span, spans = taps_x.shape[1] * channels_out, taps_y.shape[1]
    return Weights(
        aligned_copy(laid.reshape(-1)) if vectors else laid.reshape(-1, channels_out),
        own.astype(np.int32),
        (length_x * channels_out, row, span, spans),
        starts.reshape(-1),
        np.array(pieces, np.int64),
        order.astype(np.int32),
        float(span * spans),
        channels,
        vectors,
    )


def reach_of_pool(size: tuple[int, ...], window: tuple[int, int]) -> Array:
    """For each address of a map [channel, y, x] the address that windows side by side put it in, -1 for none."""
    channels, height, width = size
    rows, columns = height // window[0], width // window[1]
    channel, y, x = np.meshgrid(np.arange(channels), np.arange(height), np.arange(width), indexing="ij")
    inside = (y // window[0] < rows) & (x // window[1] < columns)
    address = (channel * rows + y // window[0]) * columns + x // window[1]
    return np.where(inside, address, -1).reshape(-1)
