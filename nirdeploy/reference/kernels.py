"""Native loops over time: populations, layers driven by events, and cyclic components.

Without fastmath, so that each neuron's arithmetic is that of `dynamics`, operation for operation. All of them release
the interpreter's lock; whoever calls one splits the batch over threads. The usual populations have kernels in vectors
of their own: `scan_kernels`, `event_kernels`, `stack_kernels`.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference.dynamics import MOST_SPIKES
from nirdeploy.reference.native import kernel

__all__ = ["BEFORE", "BLOCK", "EXACT", "FORWARD", "INTEGRATE", "LATE", "MANY", "ONE", "events_layer", "loop", "scan"]

# how a population advances; the value of its `mode`
ONE, MANY, LATE, BEFORE, EXACT, INTEGRATE, FORWARD = range(7)
# rows of a population's parameters
DECAY, LEAK, GAIN, THRESHOLD, V_RESET, V_MIN, TAU = range(7)
# kinds of operation in a loop
GATHER, MATRIX, POPULATION, SCALE, COMPARE, DELAY = range(6)
BLOCK = 1024  # neurons advanced together: their state stays in the innermost cache


# ---------------------------------------------------------------- one step of a population


@kernel
def _one_uniform(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract):
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for j in range(v.shape[0]):
        u = decay * v[j] + leak + gain * x[j]
        fired = (u > threshold) | (inclusive & (u == threshold))
        after = u - threshold if subtract else v_reset
        u = after if fired else u
        v[j] = u if u >= v_min else v_min
        s[j] = one if fired else zero


@kernel
def _one(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract):
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for j in range(v.shape[0]):
        u = decay[j] * v[j] + leak[j] + gain[j] * x[j]
        fired = (u > threshold[j]) | (inclusive & (u == threshold[j]))
        after = u - threshold[j] if subtract else v_reset[j]
        u = after if fired else u
        v[j] = u if u >= v_min[j] else v_min[j]
        s[j] = one if fired else zero


@kernel
def _count(u, threshold, one, inclusive, many):
    """Spikes that v stands for, as `dynamics.emit` counts them."""
    zero = one - one
    fired = (u > threshold) | (inclusive & (u == threshold))
    ratio = u / threshold
    whole = np.floor(ratio) if inclusive else np.ceil(ratio) - one
    whole = whole if (many & (whole > one)) else one
    return whole if fired else zero


@kernel
def _many(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract):
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for j in range(v.shape[0]):
        u = decay[j] * v[j] + leak[j] + gain[j] * x[j]
        fired = (u > threshold[j]) | (inclusive & (u == threshold[j]))
        ratio = u / threshold[j]
        whole = np.floor(ratio) if inclusive else np.ceil(ratio) - one
        whole = whole if whole > one else one
        whole = whole if fired else zero
        after = u - whole * threshold[j] if subtract else v_reset[j]
        u = after if fired else u
        v[j] = u if u >= v_min[j] else v_min[j]
        s[j] = whole


@kernel
def _late(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract, many, mode, after):
    """The crossing of the step before resets, `after` decay and input or ahead of them."""
    one = v.dtype.type(1)
    for j in range(v.shape[0]):
        crossed = _count(v[j], threshold[j], one, inclusive, many)
        u = v[j]
        if crossed > 0 and not after:
            u = u - crossed * threshold[j] if subtract else v_reset[j]
        u = decay[j] * u + leak[j] + gain[j] * x[j]
        if crossed > 0 and after:
            u = u - crossed * threshold[j] if subtract else v_reset[j]
        if mode == FORWARD:
            fired = _count(u, threshold[j], one, inclusive, many)
            u = u - (fired - crossed) * threshold[j]
            v[j] = u if u >= v_min[j] else v_min[j]
            s[j] = fired
            continue
        u = u if u >= v_min[j] else v_min[j]
        v[j] = u
        s[j] = crossed if mode == BEFORE else _count(u, threshold[j], one, inclusive, many)


@kernel
def _exact(x, v, s, r, v_leak, threshold, v_reset, v_min, tau, dt, inclusive, subtract, many):
    """`dynamics.exact_step`, neuron by neuron; tau is infinite for neurons that do not leak."""
    zero = v.dtype.type(0)
    for j in range(v.shape[0]):
        leaks = tau[j] < np.inf
        drive = r[j] * x[j] + v_leak[j]
        u, left, count = v[j], dt, 0
        rises = drive > (threshold[j] if leaks else zero)
        while True:
            above = (u > threshold[j]) | (inclusive & (u == threshold[j]))
            wait = zero
            if not above:
                if not rises:
                    break
                if leaks:
                    wait = tau[j] * np.log((drive - u) / (drive - threshold[j]))
                else:
                    wait = (threshold[j] - u) / drive
                if not ((wait < left) | (inclusive & (wait == left))):
                    break
            at = u if above else threshold[j]
            u = at - threshold[j] if subtract else v_reset[j]
            left = left - wait
            count += 1
            if not many:
                break
            if count == MOST_SPIKES:
                raise OverflowError
        u = drive + (u - drive) * np.exp(-left / tau[j]) if leaks else u + drive * left
        v[j] = u if u >= v_min[j] else v_min[j]
        s[j] = v.dtype.type(count)


@kernel
def _integrate(x, v, s, decay, leak, gain):
    for j in range(v.shape[0]):
        u = decay[j] * v[j] + leak[j] + gain[j] * x[j]
        v[j] = u
        s[j] = u


@kernel
def _synapse(x, i, decay, gain):
    for j in range(i.shape[0]):
        i[j] = decay[j] * i[j] + gain[j] * x[j]


@kernel
def _advance(x, v, s, p, a, b, how, dt):
    """One step of neurons a to b: `x` input, `v` state, `s` what they emit; parameters `p` are those of all."""
    mode, inclusive, subtract, many, uniform, after = how
    if mode == ONE and uniform:
        _one_uniform(x, v, s, p[0, 0], p[1, 0], p[2, 0], p[3, 0], p[4, 0], p[5, 0], inclusive, subtract)
        return
    decay, leak, gain = p[DECAY][a:b], p[LEAK][a:b], p[GAIN][a:b]
    if mode == INTEGRATE:
        _integrate(x, v, s, decay, leak, gain)
        return
    threshold, v_reset, v_min = p[THRESHOLD][a:b], p[V_RESET][a:b], p[V_MIN][a:b]
    if mode == ONE:
        _one(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract)
    elif mode == MANY:
        _many(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract)
    elif mode == EXACT:
        # rows GAIN and LEAK hold r and v_leak here
        _exact(x, v, s, gain, leak, threshold, v_reset, v_min, p[TAU][a:b], dt, inclusive, subtract, many)
    else:
        _late(x, v, s, decay, leak, gain, threshold, v_reset, v_min, inclusive, subtract, many, mode, after)


# ---------------------------------------------------------------- a population whose inputs are known


@kernel
def scan(x, v, i, p, q, how, dt, out, direct, v_record, i_record, first, last):
    """A population over time.

    Args:
        x: input [step, batch, neuron].
        v: membrane [batch, neuron], advanced in place.
        i: synapse likewise; [0, 0] where there is none.
        p: parameters [row, neuron].
        q: decay and gain of the synapse [2, neuron].
        how: mode and flags.
        dt: step, for mode EXACT.
        out: what it emits [step, batch, neuron]; may be `x`. [0, 0, 0]: not wanted.
        direct: whether `out` is other memory than `x`.
        v_record: v after each step, [step, batch, neuron] or [0, 0, 0].
        i_record: i likewise.
        first: first sample of the batch.
        last: sample to stop before.
    """
    steps, neurons = x.shape[0], x.shape[2]
    s = np.empty(min(neurons, BLOCK), v.dtype)
    for b in range(first, last):
        for a in range(0, neurons, BLOCK):
            e = min(neurons, a + BLOCK)
            state, emitted = v[b][a:e], s[: e - a]
            for t in range(steps):
                if direct:
                    emitted = out[t, b][a:e]
                if i.shape[0]:
                    current = i[b][a:e]
                    _synapse(x[t, b][a:e], current, q[0][a:e], q[1][a:e])
                    _advance(current, state, emitted, p, a, e, how, dt)
                    if i_record.shape[0]:
                        i_record[t, b][a:e] = current
                else:
                    _advance(x[t, b][a:e], state, emitted, p, a, e, how, dt)
                if not direct and out.shape[0]:
                    row = out[t, b][a:e]
                    for j in range(row.shape[0]):
                        row[j] = emitted[j]
                if v_record.shape[0]:
                    row_v = v_record[t, b][a:e]
                    for j in range(row_v.shape[0]):
                        row_v[j] = state[j]


# ---------------------------------------------------------------- a layer driven by events


@kernel
def _scatter_rows(x, weight, table, index, value, start, stop):
    """Add one row of `weight` for each event, in the order of events; four at a time share a pass over `x`."""
    one = x.dtype.type(1)
    k = start
    while k < stop:
        if k + 4 <= stop:
            r0, r1, r2, r3 = table[index[k], 0], table[index[k + 1], 0], table[index[k + 2], 0], table[index[k + 3], 0]
            plain = (value[k] == one) & (value[k + 1] == one) & (value[k + 2] == one) & (value[k + 3] == one)
            if plain and r0 >= 0 and r1 >= 0 and r2 >= 0 and r3 >= 0:
                w0, w1, w2, w3 = weight[r0], weight[r1], weight[r2], weight[r3]
                for j in range(x.shape[0]):
                    x[j] = (((x[j] + w0[j]) + w1[j]) + w2[j]) + w3[j]
                k += 4
                continue
        row = table[index[k], 0]
        if row >= 0:
            w, count = weight[row], value[k]
            for j in range(x.shape[0]):
                x[j] += count * w[j]
        k += 1


@kernel
def _scatter_spans(x, weight, table, index, value, start, stop, reach):
    """Add for each event the taps of the kernel that it meets: as many as any other, so that no branch is guessed."""
    flat = weight.reshape(-1)
    stride_x, stride_w, span, rows = reach
    for k in range(start, stop):
        j = index[k]
        at, source, count = np.int64(table[j, 0]), np.int64(table[j, 1]), value[k]
        if at < 0:
            continue
        for _ in range(rows):
            # unsigned: numba would else look for negative indices in the innermost loop
            for n in range(span):
                x[np.uint64(at + n)] += count * flat[np.uint64(source + n)]
            at += stride_x
            source += stride_w


@kernel
def events_layer(
    pointer, index, value, steps, first, last, weight, table, reach, bias, pieces, order,
    v, i, p, q, how, dt, out_pointer, v_record, i_record,
):  # fmt: skip
    """A weight and the population behind it, driven by events, sample by sample.

    Args:
        pointer: where the events of a row begin, [batch * steps + 1]; rows are sample by sample, step by step.
        index: addresses of events in the source.
        value: their counts.
        steps: steps a sample.
        first: first sample.
        last: sample to stop before.
        weight: [source row, neuron], or for convolutions the kernel as `sparse.pack_convolution` lays it out.
        table: for each source address its row, or where its taps begin in x and in the kernel; -1 for none.
        reach: (0, 0, 0, 0), or what taps advance by in x and in the kernel, numbers in a span, spans.
        bias: what x starts from, margins included.
        pieces: [piece, field]: where a stretch of neurons stands in x, the first of them, how many.
        order: flat index in the node's shape of each neuron in the population's own order, and 32 numbers more; [0]
            where they agree.
        v: membrane [batch, neuron] in the population's own order, advanced in place.
        i, p, q, how, dt: as in `scan`, likewise.
        out_pointer: written: where rows of the emitted events begin, relative to this call; [rows + 1].
        v_record: v after each step, [step, batch, neuron] in the node's order, or [0, 0, 0].
        i_record: i likewise.

    Returns:
        Addresses (in the node's order) and counts of the emitted events.
    """
    neurons = v.shape[1]
    x, s = bias.copy(), np.zeros((min(neurons, BLOCK) + 31) // 32 * 32, v.dtype)
    bits = s.view(np.uint32)
    wide = bits.shape[0] // s.shape[0]
    capacity = max(1024, neurons * 4)
    out_index, out_value, used = np.empty(capacity, np.int32), np.empty(capacity, v.dtype), 0
    ordered = order.shape[0] > 0
    row = 0
    out_pointer[0] = 0
    for b in range(first, last):
        for t in range(steps):
            start, stop = pointer[b * steps + t], pointer[b * steps + t + 1]
            if reach[0]:
                _scatter_spans(x, weight, table, index, value, start, stop, reach)
            else:
                _scatter_rows(x, weight, table, index, value, start, stop)
            if used + neurons + 1 > capacity:
                capacity = 2 * capacity + neurons
                grown, counts = np.empty(capacity, np.int32), np.empty(capacity, v.dtype)
                grown[:used] = out_index[:used]
                counts[:used] = out_value[:used]
                out_index, out_value = grown, counts
            for n in range(pieces.shape[0]):
                at, a, e = pieces[n, 0], pieces[n, 1], pieces[n, 1] + pieces[n, 2]
                part = x[at : at + e - a]
                if i.shape[0]:
                    current = i[b][a:e]
                    _synapse(part, current, q[0][a:e], q[1][a:e])
                    _advance(current, v[b][a:e], s[: e - a], p, a, e, how, dt)
                else:
                    _advance(part, v[b][a:e], s[: e - a], p, a, e, how, dt)
                for j in range(e - a, (e - a + 31) // 32 * 32):
                    s[j] = 0  # what a longer piece left, up to the end of the last vectors
                for c in range(0, e - a, 32):
                    some = np.uint32(0)
                    if wide == 1:
                        for j in range(32):  # constants, so that each loop becomes two vectors
                            some |= bits[np.uint64(c + j)]
                    else:
                        for j in range(64):
                            some |= bits[np.uint64(2 * c + j)]
                    if some:
                        for j in range(c, c + 32):  # without a branch: which neuron fires cannot be guessed
                            u = s[np.uint64(j)]
                            out_index[np.uint64(used)] = order[np.uint64(a + j)] if ordered else a + j
                            out_value[np.uint64(used)] = u
                            used += 1 if u != 0 else 0
            for j in range(x.shape[0]):
                x[j] = bias[j]
            row += 1
            out_pointer[row] = used
            if v_record.shape[0]:
                _put(v_record[t, b], v[b], order)
            if i_record.shape[0]:
                _put(i_record[t, b], i[b], order)
    return out_index[:used].copy(), out_value[:used].copy()


@kernel
def _put(target, source, order):
    if order.shape[0]:
        for j in range(source.shape[0]):
            target[order[j]] = source[j]
    else:
        for j in range(source.shape[0]):
            target[j] = source[j]


# ---------------------------------------------------------------- a cyclic component


@kernel
def _matrix(x, y, weight, bias):
    """y = bias + x W, skipping inputs that are zero."""
    for j in range(y.shape[0]):
        y[j] = bias[j]
    for k in range(x.shape[0]):
        count = x[k]
        if count != 0:
            w = weight[k]
            for j in range(y.shape[0]):
                y[j] += count * w[j]


@kernel
def loop(
    ops, sources, copies, values, outside, places, floats, how, dt, out, record, taken, first, last, block,
):  # fmt: skip
    """A component stepped through time, all operations of a step in order.

    Args:
        ops: [operation, field]: kind, first and number of its sources, size of what comes in, where the sum of its
            sources goes, where what it emits goes, size of that, where its parameters begin, row of `how`, where v
            and i are, where the line of delayed values is, its length, whether one source is read where it stands.
        sources: offsets in `values` of what each operation sums.
        copies: [feedback, field]: offset of a source, of its previous value, and size; copied after every step.
        values: [batch, slot]: everything a sample holds, states included; advanced in place.
        outside: inputs [step, batch, outside slot].
        places: [outside, field]: offset in `outside`, offset in `values`, size.
        floats: parameters of all operations.
        how: mode and flags of every population, [population, 6].
        dt: step, for mode EXACT.
        out: what is read out [step, batch, place].
        record: [place, field]: offset in `values`, offset in `out`, size.
        taken: steps before this call, for the place in the delay lines.
        first: first sample.
        last: sample to stop before.
        block: samples stepped together.
    """
    steps = outside.shape[0]
    for b0 in range(first, last, block):
        b1 = min(last, b0 + block)
        for t in range(steps):
            for b in range(b0, b1):
                held = values[b]
                for n in range(places.shape[0]):
                    held[places[n, 1] : places[n, 1] + places[n, 2]] = outside[t, b][
                        places[n, 0] : places[n, 0] + places[n, 2]
                    ]
            for n in range(ops.shape[0]):
                op = ops[n]
                for b in range(b0, b1):
                    _operate(op, sources, values[b], floats, how, dt, taken + t)
            for b in range(b0, b1):
                held = values[b]
                for n in range(copies.shape[0]):
                    to = held[copies[n, 1] : copies[n, 1] + copies[n, 2]]
                    source = held[copies[n, 0] : copies[n, 0] + copies[n, 2]]
                    for j in range(to.shape[0]):
                        to[j] = source[j]
                for n in range(record.shape[0]):
                    put = out[t, b][record[n, 1] : record[n, 1] + record[n, 2]]
                    got = held[record[n, 0] : record[n, 0] + record[n, 2]]
                    for j in range(put.shape[0]):
                        put[j] = got[j]


@kernel
def _operate(op, sources, held, floats, how, dt, step):
    kind, size, x_at, y_at, out_size, at = op[0], op[3], op[4], op[5], op[6], op[7]
    x = held[x_at : x_at + size]
    if not op[12]:
        begin = sources[op[1]]
        for j in range(x.shape[0]):
            x[j] = held[begin + j]
        for k in range(op[1] + 1, op[1] + op[2]):
            more = held[sources[k] : sources[k] + size]
            for j in range(x.shape[0]):
                x[j] += more[j]
    y = held[y_at : y_at + out_size]
    if kind == MATRIX:
        weight = floats[at : at + size * out_size].reshape(size, out_size)
        _matrix(x, y, weight, floats[at + size * out_size : at + (size + 1) * out_size])
    elif kind == POPULATION:
        p = floats[at : at + 7 * size].reshape(7, size)
        row = how[op[8]]
        flags = (row[0], row[1] != 0, row[2] != 0, row[3] != 0, row[4] != 0, row[5] != 0)
        v = held[op[9] : op[9] + size]
        if op[10] >= 0:
            i = held[op[10] : op[10] + size]
            q = floats[at + 7 * size : at + 9 * size].reshape(2, size)
            _synapse(x, i, q[0], q[1])
            _advance(i, v, y, p, 0, size, flags, dt)
        else:
            _advance(x, v, y, p, 0, size, flags, dt)
    elif kind == SCALE:
        scale = floats[at : at + size]
        for j in range(y.shape[0]):
            y[j] = x[j] * scale[j]
    elif kind == COMPARE:
        threshold = floats[at : at + size]
        for j in range(y.shape[0]):
            y[j] = 1.0 if x[j] > threshold[j] else 0.0
    elif kind == DELAY:
        length = op[11]
        if length == 0:
            for j in range(y.shape[0]):
                y[j] = x[j]
        else:
            line = held[op[9] : op[9] + length * size]
            now = (step % length) * size
            for j in range(y.shape[0]):
                back = int(floats[at + j])
                # slot of a step is overwritten `length` steps later, after it was read
                y[j] = x[j] if back == 0 else line[((step - back) % length) * size + j]
            for j in range(y.shape[0]):
                line[now + j] = x[j]
    elif kind == GATHER:
        for j in range(y.shape[0]):
            y[j] = x[j]
