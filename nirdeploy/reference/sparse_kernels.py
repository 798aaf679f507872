"""A matrix driven by events where gradients are wanted: its output, and the gradient of its weight.

Both go block of neurons by block, sums of a block staying in registers. What is read over and over stays in the second
cache: of the output a block's part of the matrix, of the gradient that of a chunk of rows.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import (
    WIDTH,
    add,
    get,
    keep,
    load,
    load_some,
    multiply,
    pointer,
    put,
    splat,
    store,
)
from nirdeploy.reference.native import inline, kernel

__all__ = ["BLOCK", "CHUNK", "by_address", "spread", "weight_gradient"]

BLOCK = 128  # neurons
CHUNK = 256  # rows


@inline
def _total(y, base, width, offset, which, factors, plain, begin, end, count):
    """y plus `count` numbers (a constant) of each of the rows that events name, which are `width` apart."""
    if plain:
        for k in range(begin, end):
            y = add(y, load(base, np.int64(get(which, k)) * width + offset, count))
    else:
        for k in range(begin, end):
            row = load(base, np.int64(get(which, k)) * width + offset, count)
            y = add(y, multiply(splat(get(factors, k), count), row))
    return y


@kernel
def spread(begins, index, value, plain, steps, first, last, weight, sources, bias, out):
    """out[t, b] = bias + sum of count * weight[address], in the order of events.

    Args:
        begins: where the events of a row begin, [batch * steps + 1]; rows are sample by sample, step by step.
        index: addresses of events.
        value: their counts.
        plain: whether all counts are one.
        steps: steps a sample.
        first: first sample.
        last: sample to stop before.
        weight: block by block, in each [source, neuron], flat.
        sources: rows of the matrix.
        bias: [neuron].
        out: written, [step, batch, neuron].
    """
    batch, neurons = out.shape[1], out.shape[2]
    starts, addresses, counts = pointer(begins), pointer(index), pointer(value)
    weights, from_bias, target = pointer(weight), pointer(bias), pointer(out)
    for a in range(0, neurons, BLOCK):
        wide, part = min(BLOCK, neurons - a), a * sources
        for b in range(first, last):
            for t in range(steps):
                start, stop = get(starts, b * steps + t), get(starts, b * steps + t + 1)
                row = (t * batch + b) * neurons + a
                if wide == BLOCK:
                    y = load(from_bias, a, BLOCK)
                    y = _total(y, weights, BLOCK, part, addresses, counts, plain, start, stop, BLOCK)
                    store(target, row, y)
                    continue
                for c in range(0, wide - wide % WIDTH, WIDTH):
                    z = load(from_bias, a + c, WIDTH)
                    z = _total(z, weights, wide, part + c, addresses, counts, plain, start, stop, WIDTH)
                    store(target, row + c, z)
                for c in range(wide - wide % WIDTH, wide):
                    total = get(from_bias, a + c)
                    for k in range(start, stop):
                        total += get(counts, k) * get(weights, part + np.int64(get(addresses, k)) * wide + c)
                    put(target, row + c, total)


@kernel
def by_address(begins, index, value, steps, batch, sources):
    """Events chunk of rows by chunk, in each by address, in each by row; a row is step * batch + sample.

    Args:
        begins, index, value, steps: as in `spread`.
        batch: samples.
        sources: addresses there are.

    Returns:
        Where the events of an address in a chunk end, [chunk * sources]; each event's row in its chunk; its count.
    """
    chunks = (steps * batch + CHUNK - 1) // CHUNK
    ends = np.zeros(chunks * sources + 1, np.int64)
    row, factor = np.empty(index.size, np.int32), np.empty(value.size, value.dtype)
    starts, addresses, counts = pointer(begins), pointer(index), pointer(value)
    places, rows, factors = pointer(ends), pointer(row), pointer(factor)
    for t in range(steps):
        for b in range(batch):
            base = (t * batch + b) // CHUNK * sources + 1
            for k in range(get(starts, b * steps + t), get(starts, b * steps + t + 1)):
                at = base + np.int64(get(addresses, k))
                put(places, at, get(places, at) + 1)
    total = 0
    for n in range(ends.size):
        total += get(places, n)
        put(places, n, total)
    # entry n holds where n begins, and is moved on to where it ends
    for t in range(steps):
        for b in range(batch):
            flat = t * batch + b
            for k in range(get(starts, b * steps + t), get(starts, b * steps + t + 1)):
                at = flat // CHUNK * sources + np.int64(get(addresses, k))
                to = get(places, at)
                put(rows, to, np.int32(flat % CHUNK))
                put(factors, to, get(counts, k))
                put(places, at, to + 1)
    keep(ends)
    return ends[:-1], row, factor


@inline
def _columns(
    g, near, c, left, rows, neurons, sources, padded, ends, which, factors, plain, target, sums, nothing, count
):
    """`weight_gradient` for `count` neurons (a constant) from c on, of which `left` are there."""
    for r in range(0, rows, CHUNK):
        here, first = min(CHUNK, rows - r), r // CHUNK * sources
        of_chunk = splat(nothing, count)
        for n in range(here):
            at = (r + n) * neurons + c
            y = load(g, at, count) if left >= count else load_some(g, at, left, count)
            store(near, n * count, y)
            of_chunk = add(of_chunk, y)
        store(sums, c, add(load(sums, c, count), of_chunk))
        begin = get(ends, first - 1) if first > 0 else 0
        for a in range(sources):
            end = get(ends, first + a)
            if end > begin:
                y = load(target, a * padded + c, count)
                y = _total(y, near, count, 0, which, factors, plain, begin, end, count)
                store(target, a * padded + c, y)
            begin = end


@kernel
def weight_gradient(ends, row, factor, plain, g, out, sums, first, last):
    """out[address] += count * g[row] over all events, and the sum of g over all rows.

    Args:
        ends, row, factor: from `by_address`.
        plain: whether all counts are one.
        g: gradient of the output, [row, neuron].
        out: [address, neuron], neurons padded to whole vectors.
        sums: likewise [neuron].
        first: first block of neurons.
        last: block to stop before.
    """
    rows, neurons = g.shape
    sources, padded = out.shape
    scratch = np.empty(CHUNK * BLOCK, g.dtype)  # a chunk's rows side by side: far apart they meet in the same few sets
    given, near, target, total = pointer(g), pointer(scratch), pointer(out), pointer(sums)
    places, which, factors, nothing = pointer(ends), pointer(row), pointer(factor), g.dtype.type(0)
    for a in range(first * BLOCK, min(neurons, last * BLOCK), BLOCK):
        if neurons - a >= BLOCK:
            _columns(
                given, near, a, BLOCK, rows, neurons, sources, padded, places, which, factors, plain, target, total,
                nothing, BLOCK,
            )  # fmt: skip
            continue
        for c in range(a, neurons, WIDTH):
            _columns(
                given, near, c, neurons - c, rows, neurons, sources, padded, places, which, factors, plain, target,
                total, nothing, WIDTH,
            )  # fmt: skip
    keep(scratch)
