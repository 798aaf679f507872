"""Rasters of floats read in whole vectors: where they are not zero."""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import WIDTH, bits_of, differs, get, keep, pointer, put, splat
from nirdeploy.reference.native import kernel
from nirdeploy.reference.vector_kernels import GROUP, append, read

__all__ = ["events"]


@kernel
def _grown(array, size):
    larger = np.empty(size, array.dtype)
    larger[: array.size] = array
    return larger


@kernel
def events(raster, first, last, begins, most):
    """Events of some samples of a raster [step, batch, neuron], sample by sample, step by step, by address.

    Args:
        raster: floats.
        first: first sample.
        last: sample to stop before.
        begins: written: where rows begin, [samples * steps + 1].
        most: events from which on it gives up.

    Returns:
        Addresses and values; as many as were found where they are more than `most`.
    """
    steps, batch, size = raster.shape
    source, unit = pointer(raster), raster.dtype.type(1)
    zero = splat(unit - unit, WIDTH)
    index, value = np.empty(4 * size + GROUP, np.int32), np.empty(4 * size + GROUP, raster.dtype)
    addresses, values = pointer(index), pointer(value)
    used = row = 0
    begins[0] = 0
    for b in range(first, last):
        for t in range(steps):
            if used + size + GROUP > index.size:
                index, value = _grown(index, 2 * index.size), _grown(value, 2 * index.size)
                addresses, values = pointer(index), pointer(value)
            before, base = used, (t * batch + b) * size
            for g in range(0, size, GROUP):
                bits = np.uint64(0)
                for c in range(g, min(size, g + GROUP), WIDTH):
                    found = differs(read(source, base + c, size - c), zero)
                    bits |= bits_of(found) << np.uint64(c - g)
                used = append(bits, addresses, used, g)
            for k in range(before, used):
                put(values, k, get(source, base + get(addresses, k)))
            row += 1
            begins[row] = used
            if used > most:
                return index[:used], value[:used]
    keep(index)
    keep(value)
    return index[:used].copy(), value[:used].copy()
