"""Layers driven by events, in whole vectors: a matrix or a convolution, and the spiking population behind it.

What `kernels.events_layer` does for populations that spike once a step and reset at once, operation for operation.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import (
    WIDTH,
    add,
    bits_of,
    get,
    keep,
    load,
    multiply,
    pointer,
    put,
    splat,
    store,
    store_some,
)
from nirdeploy.reference.native import inline, kernel
from nirdeploy.reference.vector_kernels import GROUP, append, copy, membrane, read, settle, synapse, write

__all__ = ["BLOCK", "convolution", "matrix"]

BLOCK = 256  # neurons whose part of a matrix stays in the second cache


@inline
def _fire(came, at, c, left, held, current, delays, rows, decays, size, inclusive, subtracts):
    """Neurons from `c` on, whose state is at `at` + `c`: a bit for each that fires."""
    if delays:
        stays, into = read(decays, c, left), read(decays, size + c, left)
        came = synapse(stays, read(current, at + c, left), into, came)
        write(current, at + c, left, came)
    decay, leak, gain = read(rows, c, left), read(rows, size + c, left), read(rows, 2 * size + c, left)
    threshold, v_reset = read(rows, 3 * size + c, left), read(rows, 4 * size + c, left)
    u = membrane(decay, read(held, at + c, left), leak, gain, came)
    u, fired = settle(u, threshold, v_reset, read(rows, 5 * size + c, left), inclusive, subtracts)
    write(held, at + c, left, u)
    bits = bits_of(fired)
    return bits if left >= WIDTH else bits & ((np.uint64(1) << np.uint64(left)) - np.uint64(1))


@kernel
def _grown(found, used):
    larger = np.empty(2 * found.size + 4 * GROUP, np.int32)
    larger[:used] = found[:used]
    return larger


@inline
def _arrange(record, row, state, at, places, size):
    for j in range(size):
        put(record, row + get(places, j), get(state, at + j))


@kernel
def matrix(
    begins, index, value, steps, first, last, weight, sources, table, bias, v, i, p, q, inclusive, subtracts, ends,
    v_record, i_record,
):  # fmt: skip
    """A matrix and the population behind it, block of neurons by block: each block's part of the matrix stays near.

    Args:
        begins: where the events of a row begin, [batch * steps + 1]; rows are sample by sample, step by step.
        index: addresses of events in the source.
        value: their counts.
        steps: steps a sample.
        first: first sample.
        last: sample to stop before.
        weight: block of neurons by block, in each [source row, neuron], flat.
        sources: rows of the matrix.
        table: for each source address its row, -1 for none [address, 1].
        bias: [neuron].
        v: membrane [batch, neuron], advanced in place.
        i, p, q: as in `kernels.scan`, likewise.
        inclusive, subtracts: as in `Convention`.
        ends: written: where rows of the emitted events begin, relative to this call; [rows + 1].
        v_record: v after each step, [step, batch, neuron] or [0, 0, 0].
        i_record: i likewise.

    Returns:
        Addresses of the emitted events, each of which counts one.
    """
    neurons, batch, rows_here = v.shape[1], v.shape[0], (last - first) * steps
    keeps_v, keeps_i, delays = v_record.size > 0, i_record.size > 0, i.size > 0
    starts, addresses, counts, source = pointer(begins), pointer(index), pointer(value), pointer(table)
    weights, held, current = pointer(weight), pointer(v), pointer(i)
    rows, decays, kept_v, kept_i = pointer(p), pointer(q), pointer(v_record), pointer(i_record)
    from_bias, unit = pointer(bias), weight.dtype.type(1)
    blocks = (neurons + BLOCK - 1) // BLOCK
    most = 1
    for row in range(first * steps, last * steps):
        most = max(most, begins[row + 1] - begins[row])
    listed, factors, x = np.empty(most, np.int64), np.empty(most, v.dtype), np.empty(BLOCK + GROUP, v.dtype)
    places, times, total = pointer(listed), pointer(factors), pointer(x)
    ended = np.zeros((blocks, rows_here + 1), np.int64)
    found, used = np.empty(max(1024, 4 * neurons), np.int32), 0
    emitted = pointer(found)
    for block in range(blocks):
        a, e = block * BLOCK, min(neurons, (block + 1) * BLOCK)
        part, wide = a * sources - a, e - a
        ended[block, 0] = used
        for b in range(first, last):
            at = b * neurons
            for t in range(steps):
                if used + neurons + 4 > found.size:
                    found = _grown(found, used)
                    emitted = pointer(found)
                row, many, plain = b * steps + t, 0, True
                for k in range(get(starts, row), get(starts, row + 1)):
                    to, count = get(source, get(addresses, k)), get(counts, k)
                    put(places, many, part + np.int64(to) * wide)
                    put(times, many, count)
                    many += 1 if to >= 0 else 0
                    plain &= count == unit
                c = a
                while e - c >= GROUP:
                    y = load(from_bias, c, GROUP)
                    if plain:
                        for k in range(many):
                            y = add(y, load(weights, get(places, k) + c, GROUP))
                    else:
                        for k in range(many):
                            y = add(y, multiply(splat(get(times, k), GROUP), load(weights, get(places, k) + c, GROUP)))
                    store(total, c - a, y)
                    c += GROUP
                while c < e:
                    left = e - c
                    z = read(from_bias, c, left)
                    for k in range(many):
                        z = add(z, multiply(splat(get(times, k), WIDTH), read(weights, get(places, k) + c, left)))
                    store(total, c - a, z)
                    c += WIDTH
                for g in range(a, e, GROUP):
                    bits = np.uint64(0)
                    for c in range(g, min(e, g + GROUP), WIDTH):
                        came = load(total, c - a, WIDTH)
                        some = _fire(
                            came, at, c, e - c, held, current, delays, rows, decays, neurons, inclusive, subtracts
                        )
                        bits |= some << np.uint64(c - g)
                    used = append(bits, emitted, used, g)
                ended[block, row - first * steps + 1] = used
                if keeps_v:
                    copy(held, at + a, kept_v, (t * batch + b) * neurons + a, e - a)
                if keeps_i:
                    copy(current, at + a, kept_i, (t * batch + b) * neurons + a, e - a)
    keep(listed)
    keep(factors)
    keep(x)
    if blocks == 1:
        ends[:] = ended[0]
        return found[:used].copy()
    merged, used = np.empty(used, np.int32), 0
    ends[0] = 0
    for row in range(rows_here):
        for block in range(blocks):
            for k in range(ended[block, row], ended[block, row + 1]):
                merged[used] = found[k]
                used += 1
        ends[row + 1] = used
    return merged


@kernel
def convolution(
    begins, index, value, steps, first, last, weight, table, reach, bias, pieces, order, v, i, p, q, inclusive,
    subtracts, ends, v_record, i_record,
):  # fmt: skip
    """A convolution and the population behind it, as `matrix`.

    Args:
        begins, index, value, steps, first, last: as in `matrix`.
        weight: the kernel as `sparse.pack_convolution` lays it out, [number].
        table: for each source address where its taps begin in x and in the kernel; -1 for none [address, 2].
        reach: what taps advance by in x and in the kernel, numbers in a span, spans.
        bias: what x starts from, margins included.
        pieces: [piece, field]: where a stretch of neurons stands in x, the first of them, how many.
        order: flat index in the node's shape of each neuron in the population's own order.
        v, i, p, q: in the population's own order, else as in `matrix`.
        inclusive, subtracts, ends: as in `matrix`.
        v_record: v after each step in the node's order, [step, batch, neuron] or [0, 0, 0].
        i_record: i likewise.

    Returns:
        Addresses of the emitted events in the node's order, each of which counts one.
    """
    neurons, batch = v.shape[1], v.shape[0]
    keeps_v, keeps_i, delays = v_record.size > 0, i_record.size > 0, i.size > 0
    starts, addresses, counts, source = pointer(begins), pointer(index), pointer(value), pointer(table)
    weights, held, current, places = pointer(weight), pointer(v), pointer(i), pointer(order)
    rows, decays, kept_v, kept_i = pointer(p), pointer(q), pointer(v_record), pointer(i_record)
    stride_x, stride_w, span, spans = reach
    x, from_bias, stretches = bias.copy(), pointer(bias), pointer(pieces)
    total = pointer(x)
    found, used = np.empty(max(1024, 4 * neurons), np.int32), 0
    emitted = pointer(found)
    ends[0] = 0
    for b in range(first, last):
        at = b * neurons
        for t in range(steps):
            if used + neurons + 4 > found.size:
                found = _grown(found, used)
                emitted = pointer(found)
            row = b * steps + t
            for k in range(get(starts, row), get(starts, row + 1)):
                j, count = get(addresses, k), splat(get(counts, k), WIDTH)
                to, tap = np.int64(get(source, 2 * j)), np.int64(get(source, 2 * j + 1))
                if to < 0:
                    continue
                for _ in range(spans):
                    for c in range(0, span - span % WIDTH, WIDTH):
                        store(
                            total,
                            to + c,
                            add(load(total, to + c, WIDTH), multiply(count, load(weights, tap + c, WIDTH))),
                        )
                    if span % WIDTH:
                        c, left = span - span % WIDTH, span % WIDTH
                        y = add(read(total, to + c, left), multiply(count, read(weights, tap + c, left)))
                        store_some(total, to + c, left, y)
                    to += stride_x
                    tap += stride_w
            before = used
            for n in range(pieces.shape[0]):
                stand, a, size = get(stretches, 3 * n), get(stretches, 3 * n + 1), get(stretches, 3 * n + 2)
                for g in range(0, size, GROUP):
                    bits = np.uint64(0)
                    for c in range(g, min(size, g + GROUP), WIDTH):
                        left = size - c
                        came = read(total, stand + c, left)
                        write(total, stand + c, left, read(from_bias, stand + c, left))
                        some = _fire(
                            came, at, a + c, left, held, current, delays, rows, decays, neurons, inclusive, subtracts
                        )
                        bits |= some << np.uint64(c - g)
                    used = append(bits, emitted, used, a + g)
            for k in range(before, used):
                put(emitted, k, get(places, get(emitted, k)))
            ends[row - first * steps + 1] = used
            if keeps_v:
                _arrange(kept_v, (t * batch + b) * neurons, held, at, places, neurons)
            if keeps_i:
                _arrange(kept_i, (t * batch + b) * neurons, current, at, places, neurons)
    keep(x)
    return found[:used].copy()
