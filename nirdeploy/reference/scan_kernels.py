"""A population over time in whole vectors: synapse, membrane, spikes, reset and records in one pass over memory.

The arithmetic is that of `kernels._synapse`, `_one` and `_integrate`, operation for operation.
"""

from __future__ import annotations

from nirdeploy.reference.lanes import WIDTH, choose, get, higher, highest_bits, pointer, prefetch, splat, store_past
from nirdeploy.reference.native import inline, kernel
from nirdeploy.reference.vector_kernels import membrane, read, settle, synapse, write

__all__ = ["BLOCK", "scan"]

BLOCK = 512  # neurons whose state and parameters stay in the innermost cache
_AHEAD = 2  # steps by which memory is asked for early


@inline
def _record(base, at, left, lanes, past):
    if past and left >= WIDTH:
        store_past(base, at, lanes)
    else:
        write(base, at, left, lanes)


@inline
def _advance(
    x, v, i, p, q, spiking, inclusive, subtracts, uniform, delays, emits, keeps_v, keeps_i, out, v_record, i_record,
    past, checks, block, first, last,
):  # fmt: skip
    """`scan` with what is there spelled out, so that what a caller gives as a constant costs nothing."""
    steps, batch, neurons = x.shape
    blocks = (neurons + block - 1) // block
    given, held, current, emitted = pointer(x), pointer(v), pointer(i), pointer(out)
    rows, decays, kept_v, kept_i = pointer(p), pointer(q), pointer(v_record), pointer(i_record)
    unit = p.dtype.type(1)
    one, zero = splat(unit, WIDTH), splat(unit - unit, WIDTH)
    decay, leak = splat(get(rows, 0), WIDTH), splat(get(rows, neurons), WIDTH)
    gain, threshold = splat(get(rows, 2 * neurons), WIDTH), splat(get(rows, 3 * neurons), WIDTH)
    v_reset, v_min = splat(get(rows, 4 * neurons), WIDTH), splat(get(rows, 5 * neurons), WIDTH)
    highest = zero
    for n in range(first, last):
        sample, begin = n // blocks, n % blocks * block
        end, base = min(neurons, begin + block), sample * neurons
        for t in range(steps):
            row = (t * batch + sample) * neurons
            # rows lie so far apart that the processor does not see which comes next
            ahead = row + (_AHEAD * batch * neurons if t + _AHEAD < steps else 0)
            for c in range(begin, end, WIDTH):
                left = end - c
                prefetch(given, ahead + c, 0)
                if emits:
                    prefetch(emitted, ahead + c, 1)
                if not uniform:
                    decay, leak = read(rows, c, left), read(rows, neurons + c, left)
                    gain, threshold = read(rows, 2 * neurons + c, left), read(rows, 3 * neurons + c, left)
                    v_reset, v_min = read(rows, 4 * neurons + c, left), read(rows, 5 * neurons + c, left)
                came = read(given, row + c, left)
                if checks:
                    highest = higher(highest, came)
                if delays:
                    stays, into = read(decays, c, left), read(decays, neurons + c, left)
                    came = synapse(stays, read(current, base + c, left), into, came)
                    write(current, base + c, left, came)
                    if keeps_i:
                        _record(kept_i, row + c, left, came, past)
                u = membrane(decay, read(held, base + c, left), leak, gain, came)
                s = u
                if spiking:
                    u, fired = settle(u, threshold, v_reset, v_min, inclusive, subtracts)
                    s = choose(fired, one, zero)
                write(held, base + c, left, u)
                if emits:
                    write(emitted, row + c, left, s)
                if keeps_v:
                    _record(kept_v, row + c, left, u, past)
    return highest_bits(highest)


@kernel
def scan(
    x, v, i, p, q, spiking, inclusive, subtracts, uniform, out, v_record, i_record, past, checks, block, first, last,
):  # fmt: skip
    """A population over time, as `kernels.scan`.

    Args:
        x: input [step, batch, neuron].
        v: membrane [batch, neuron], advanced in place.
        i: synapse likewise; [0, 0] where there is none.
        p: parameters [row, neuron].
        q: decay and gain of the synapse [2, neuron].
        spiking: mode ONE; else INTEGRATE.
        inclusive, subtracts: as in `Convention`.
        uniform: whether all neurons have the parameters of the first.
        out: what it emits [step, batch, neuron]; may be `x`. [0, 0, 0]: not wanted.
        v_record: v after each step, [step, batch, neuron] or [0, 0, 0].
        i_record: i likewise.
        past: whether records are written past the cache, which takes memory aligned as vectors are.
        checks: whether to look for the highest of all inputs.
        block: neurons advanced together, a multiple of `WIDTH`.
        first: first block, counted sample by sample.
        last: block to stop before.

    Returns:
        The highest of these blocks' inputs, their bits read as unsigned integers; 0 where nobody asks.
    """
    emits, keeps_v, keeps_i, delays = out.size > 0, v_record.size > 0, i_record.size > 0, i.size > 0
    if spiking and uniform and emits and not (delays or keeps_v or keeps_i):
        # nothing but spikes out of neurons of one kind: without the questions a vector takes half the time
        return _advance(
            x, v, i, p, q, True, inclusive, subtracts, True, False, True, False, False, out, v_record, i_record,
            False, checks, block, first, last,
        )  # fmt: skip
    return _advance(
        x, v, i, p, q, spiking, inclusive, subtracts, uniform, delays, emits, keeps_v, keeps_i, out, v_record, i_record,
        past, checks, block, first, last,
    )  # fmt: skip
