"""The native loop of `stack`: layers one behind the other, each with or without a matrix back into itself.

Spikes of some ten neurons cost less than a branch that is guessed wrongly, so that there are few: lists are looked at
four entries at a time, filled up with a row of zeros.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.lanes import (
    add,
    bits_of,
    choose,
    first_set,
    get,
    keep,
    load,
    multiply,
    pointer,
    put,
    splat,
    store,
)
from nirdeploy.reference.native import inline, kernel
from nirdeploy.reference.vector_kernels import copy, membrane, settle, synapse

__all__ = ["FIELDS", "INCLUSIVE", "SPIKES", "SPIKES_TO", "SUBTRACTS", "stack"]

# fields of a layer: neurons, rounded up to whole vectors as matrices, parameters and states have them
SIZE, WIDE = 0, 1
# where in `floats` its matrix [source, neuron], its bias (with that of the matrix back), the matrix back (-1 for none)
# and its parameters stand; a row of zeros ends every matrix
OWN, BIAS, BACK, PARAMETERS = 2, 3, 4, 5
# where in `values` its input (what it starts from in the next step), v, i (-1 for none) and what it emits stand
X, V, CURRENT, S = 6, 7, 8, 9
# where in `out` what it emits, v and i go (-1 for nowhere)
SPIKES_TO, V_TO, I_TO = 10, 11, 12
# whether it spikes (all but the last layer do), inclusive, and resets by subtraction
SPIKES, INCLUSIVE, SUBTRACTS = 13, 14, 15
FIELDS = 16


@inline
def _plus(x, numbers, matrix, wide, index, count, lanes):
    """x and the rows of a matrix that a list names, one after the other."""
    for k in range(0, count, 4):
        a, b = matrix + get(index, k) * wide, matrix + get(index, k + 1) * wide
        c, d = matrix + get(index, k + 2) * wide, matrix + get(index, k + 3) * wide
        x = add(add(x, load(numbers, a, lanes)), load(numbers, b, lanes))
        x = add(add(x, load(numbers, c, lanes)), load(numbers, d, lanes))
    return x


@inline
def _plus_times(x, numbers, matrix, wide, index, value, count, lanes):
    """The same, each row times a value."""
    for k in range(0, count, 4):
        for n in range(4):
            row = load(numbers, matrix + get(index, k + n) * wide, lanes)
            x = add(x, multiply(splat(get(value, k + n), lanes), row))
    return x


@inline
def _fire(given, values, i, v, s, numbers, p, wide, unit, spiking, inclusive, subtracts, lanes):
    """Synapse (where `i` is not -1), membrane, spikes and reset; returns a bit for each that fires."""
    if i >= 0:
        stays, into = load(numbers, p + 7 * wide, lanes), load(numbers, p + 8 * wide, lanes)
        given = synapse(stays, load(values, i, lanes), into, given)
        store(values, i, given)
    decay, leak, gain = load(numbers, p, lanes), load(numbers, p + wide, lanes), load(numbers, p + 2 * wide, lanes)
    u = membrane(decay, load(values, v, lanes), leak, gain, given)
    emitted, bits = u, np.uint64(0)
    if spiking:
        threshold, v_reset = load(numbers, p + 3 * wide, lanes), load(numbers, p + 4 * wide, lanes)
        u, fired = settle(u, threshold, v_reset, load(numbers, p + 5 * wide, lanes), inclusive, subtracts)
        emitted, bits = choose(fired, splat(unit, lanes), splat(unit - unit, lanes)), bits_of(fired)
    store(values, s, emitted)
    store(values, v, u)
    return bits


@inline
def _list(bits, index, count, first, otherwise, once):
    """Append the positions of set bits, by fours, filled up with `otherwise`; four also where none is set if `once`."""
    while bits != 0 or once:
        for n in range(4):
            put(index, count + n, first_set(bits, otherwise - first) + first)
            bits &= bits - np.uint64(1)
        count, once = count + 4, False
    return count


@inline
def _advance(table, n, c, values, base, numbers, unit, weighed, value, weighs, index, count, lanes):
    """One step of the neurons from `c` on, as many as lanes; returns a bit for each that fires."""
    wide, own, p = get(table, n + WIDE), get(table, n + OWN) + c, get(table, n + PARAMETERS) + c
    v, s, i = base + get(table, n + V) + c, base + get(table, n + S) + c, get(table, n + CURRENT)
    i = base + i + c if i >= 0 else i
    x = load(values, base + get(table, n + X) + c, lanes)
    x = _plus_times(x, numbers, own, wide, weighed, value, weighs, lanes)
    x = _plus(x, numbers, own, wide, index, count, lanes)
    spiking, inclusive, subtracts = get(table, n + SPIKES), get(table, n + INCLUSIVE), get(table, n + SUBTRACTS)
    return _fire(x, values, i, v, s, numbers, p, wide, unit, spiking, inclusive, subtracts, lanes)


@inline
def _start(table, n, c, values, base, numbers, index, count, lanes):
    """What the neurons from `c` on start from in the next step: bias, and rows of the matrix back."""
    x = load(numbers, get(table, n + BIAS) + c, lanes)
    x = _plus(x, numbers, get(table, n + BACK) + c, get(table, n + WIDE), index, count, lanes)
    store(values, base + get(table, n + X) + c, x)


@kernel
def stack(layers, floats, values, outside, out, first, last):
    """Layers one behind the other over time.

    Args:
        layers: [layer, field], the fields as numbered above.
        floats: matrices and parameters.
        values: [batch, slot]: states; advanced in place.
        outside: input [step, batch, source].
        out: what is read out [step, batch, place].
        first: first sample.
        last: sample to stop before.
    """
    steps, batch, sources = outside.shape
    slots, places = values.shape[1], out.shape[2]
    widest = max(sources, np.max(layers[:, WIDE])) + 8
    lists, kept = np.empty(3 * widest, np.int64), np.empty(widest, floats.dtype)
    weighed, value = pointer(lists), pointer(kept)
    one, other = pointer(lists[widest:]), pointer(lists[2 * widest :])
    table, numbers, held = pointer(layers), pointer(floats), pointer(values)
    given, read = pointer(outside), pointer(out)
    unit, nothing = floats.dtype.type(1), floats.dtype.type(0)
    for b in range(first, last):
        base = b * slots
        for t in range(steps):
            source, place, weighs = (t * batch + b) * sources, (t * batch + b) * places, 0
            for k in range(sources):
                number = get(given, source + k)
                put(weighed, weighs, k)
                put(value, weighs, number)
                weighs += 1 if number != 0 else 0
            for k in range(weighs, weighs + 4):
                put(weighed, k, 0)
                put(value, k, nothing)
            before = 0
            for n in range(0, layers.size, FIELDS):
                size, wide = get(table, n + SIZE), get(table, n + WIDE)
                count, c = 0, 0
                while c < wide:
                    begin, bits = c, np.uint64(0)
                    while c < wide and c < begin + 64:
                        shift = np.uint64(c - begin)
                        if wide - c >= 32:
                            some = _advance(
                                table, n, c, held, base, numbers, unit, weighed, value, weighs, one, before, 32
                            )
                            c += 32
                        else:
                            some = _advance(
                                table, n, c, held, base, numbers, unit, weighed, value, weighs, one, before, 16
                            )
                            c += 16
                        bits |= some << shift
                    count = _list(bits, other, count, begin, size, wide <= 64)
                weighs, before, one, other = 0, count, other, one
                came, c = count if get(table, n + BACK) >= 0 else 0, 0
                while wide - c >= 32:
                    _start(table, n, c, held, base, numbers, one, came, 32)
                    c += 32
                if c < wide:
                    _start(table, n, c, held, base, numbers, one, came, 16)
                if get(table, n + SPIKES_TO) >= 0:
                    copy(held, base + get(table, n + S), read, place + get(table, n + SPIKES_TO), size)
                if get(table, n + V_TO) >= 0:
                    copy(held, base + get(table, n + V), read, place + get(table, n + V_TO), size)
                if get(table, n + I_TO) >= 0:
                    copy(held, base + get(table, n + CURRENT), read, place + get(table, n + I_TO), size)
    keep(lists)
    keep(kept)
