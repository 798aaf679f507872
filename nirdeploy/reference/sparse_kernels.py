"""A matrix driven by events where gradients are wanted: its output, and the gradient of its weight.

The output goes block of neurons by block, so that a block's part of the matrix stays in the second cache. For the
gradient, whose rows are read and written, that was slower than whole rows.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import WIDTH, add, get, load, multiply, pointer, splat, store
from nirdeploy.reference.native import kernel
from nirdeploy.reference.vector_kernels import GROUP, read, write

__all__ = ["BLOCK", "spread", "weight_gradient"]

BLOCK = 128  # neurons


@kernel
def spread(begins, index, value, steps, first, last, weight, sources, bias, out):
    """out[t, b] = bias + sum of count * weight[address], in the order of events.

    Args:
        begins: where the events of a row begin, [batch * steps + 1]; rows are sample by sample, step by step.
        index: addresses of events.
        value: their counts.
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
        e = min(neurons, a + BLOCK)
        wide, part = e - a, a * sources - a
        for b in range(first, last):
            for t in range(steps):
                start, stop = get(starts, b * steps + t), get(starts, b * steps + t + 1)
                row, c = (t * batch + b) * neurons, a
                while e - c >= GROUP:
                    y = load(from_bias, c, GROUP)
                    for k in range(start, stop):
                        place = part + np.int64(get(addresses, k)) * wide + c
                        y = add(y, multiply(splat(get(counts, k), GROUP), load(weights, place, GROUP)))
                    store(target, row + c, y)
                    c += GROUP
                while c < e:
                    left = e - c
                    z = read(from_bias, c, left)
                    for k in range(start, stop):
                        place = part + np.int64(get(addresses, k)) * wide + c
                        z = add(z, multiply(splat(get(counts, k), WIDTH), read(weights, place, left)))
                    write(target, row + c, left, z)
                    c += WIDTH


@kernel
def weight_gradient(pointer, index, value, steps, batch, g, out, first, last):
    """out[address] += count * g[t, b] over all events, for outputs `first` to `last`."""
    for b in range(batch):
        for t in range(steps):
            row = g[t, b][first:last]
            for k in range(pointer[b * steps + t], pointer[b * steps + t + 1]):
                to, count = out[index[k]][first:last], value[k]
                for j in range(row.shape[0]):
                    to[j] += count * row[j]
