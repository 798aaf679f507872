"""A population over time in whole vectors: synapse, membrane, spikes, reset and records in one pass over memory.

The arithmetic is that of `kernels._synapse`, `_one` and `_integrate`, operation for operation.
"""

from __future__ import annotations

from nirdeploy.reference.lanes import (
    above,
    add,
    at_least,
    choose,
    get,
    load,
    load_some,
    multiply,
    pointer,
    prefetch,
    splat,
    store,
    store_past,
    store_some,
    subtract,
)
from nirdeploy.reference.native import inline, kernel

__all__ = ["BLOCK", "WIDTH", "scan"]

WIDTH = 16  # neurons in a vector
BLOCK = 512  # neurons whose state and parameters stay in the innermost cache
_AHEAD = 2  # steps by which memory is asked for early


@inline
def _read(base, at, left):  # type: ignore[no-untyped-def]
    return load(base, at, WIDTH) if left >= WIDTH else load_some(base, at, left, WIDTH)


@inline
def _write(base, at, left, lanes, past):  # type: ignore[no-untyped-def]
    if left < WIDTH:
        store_some(base, at, left, lanes)
    elif past:
        store_past(base, at, lanes)
    else:
        store(base, at, lanes)


@inline
def _fire(u, threshold, v_reset, v_min, one, zero, inclusive, subtracts):  # type: ignore[no-untyped-def]
    """v after the reset, and spikes."""
    fired = at_least(u, threshold) if inclusive else above(u, threshold)
    after = subtract(u, threshold) if subtracts else v_reset
    u = choose(fired, after, u)
    return choose(at_least(u, v_min), u, v_min), choose(fired, one, zero)


@kernel
def scan(  # type: ignore[no-untyped-def]
    x, v, i, p, q, spiking, inclusive, subtracts, uniform, out, v_record, i_record, past, block, first, last,
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
        block: neurons advanced together, a multiple of `WIDTH`.
        first: first block, counted sample by sample.
        last: block to stop before.
    """
    steps, batch, neurons = x.shape
    blocks = (neurons + block - 1) // block
    emits, keeps_v, keeps_i, synapse = out.size > 0, v_record.size > 0, i_record.size > 0, i.size > 0
    given, held, current, emitted = pointer(x), pointer(v), pointer(i), pointer(out)
    rows, decays, kept_v, kept_i = pointer(p), pointer(q), pointer(v_record), pointer(i_record)
    unit = p.dtype.type(1)
    one, zero = splat(unit, WIDTH), splat(unit - unit, WIDTH)
    decay, leak = splat(get(rows, 0), WIDTH), splat(get(rows, neurons), WIDTH)
    gain, threshold = splat(get(rows, 2 * neurons), WIDTH), splat(get(rows, 3 * neurons), WIDTH)
    v_reset, v_min = splat(get(rows, 4 * neurons), WIDTH), splat(get(rows, 5 * neurons), WIDTH)
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
                    decay, leak = _read(rows, c, left), _read(rows, neurons + c, left)
                    gain, threshold = _read(rows, 2 * neurons + c, left), _read(rows, 3 * neurons + c, left)
                    v_reset, v_min = _read(rows, 4 * neurons + c, left), _read(rows, 5 * neurons + c, left)
                came = _read(given, row + c, left)
                if synapse:
                    keep, into = _read(decays, c, left), _read(decays, neurons + c, left)
                    came = add(multiply(keep, _read(current, base + c, left)), multiply(into, came))
                    _write(current, base + c, left, came, False)
                    if keeps_i:
                        _write(kept_i, row + c, left, came, past)
                u = add(add(multiply(decay, _read(held, base + c, left)), leak), multiply(gain, came))
                s = u
                if spiking:
                    u, s = _fire(u, threshold, v_reset, v_min, one, zero, inclusive, subtracts)
                _write(held, base + c, left, u, False)
                if emits:
                    _write(emitted, row + c, left, s, False)
                if keeps_v:
                    _write(kept_v, row + c, left, u, past)
