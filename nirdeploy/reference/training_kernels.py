"""Native loops of training: populations that keep v before the reset, and their backward pass.

Without fastmath, like `kernels`; loops over neurons are innermost so that they become vector instructions.
"""

from __future__ import annotations

import numpy as np

from nirdeploy.reference import surrogates
from nirdeploy.reference.kernels import DECAY, GAIN, LEAK, THRESHOLD, V_MIN, V_RESET
from nirdeploy.reference.lanes import WIDTH, choose, pointer, prefetch, splat
from nirdeploy.reference.native import kernel
from nirdeploy.reference.vector_kernels import membrane, read, settle, write

__all__ = [
    "DECAY",
    "GAIN",
    "LEAK",
    "THRESHOLD",
    "V_MIN",
    "V_RESET",
    "backward",
    "forward",
    "forward_many",
    "linear_backward",
    "linear_forward",
]

_AHEAD = 2  # steps
_fast_sigmoid = kernel(surrogates.fast_sigmoid)
_atan = kernel(surrogates.atan)
_triangle = kernel(surrogates.triangle)
_rectangle = kernel(surrogates.rectangle)


@kernel
def _ask(row, write):
    """Ask for a row early: rows lie so far apart that the processor does not see which comes next."""
    memory = pointer(row)
    for j in range(0, row.shape[0], WIDTH):
        if write:
            prefetch(memory, j, 1)
        else:
            prefetch(memory, j, 0)


@kernel
def linear_forward(x, v, p, out, first, last):
    """v = (decay v + leak) + gain x over time; `out` [step, batch, neuron] gets every v, `v` the last."""
    decay, leak, gain = p[DECAY], p[LEAK], p[GAIN]
    for b in range(first, last):
        state = v[b]
        for t in range(x.shape[0]):
            given, row = x[t, b], out[t, b]
            for j in range(state.shape[0]):
                u = decay[j] * state[j] + leak[j] + gain[j] * given[j]
                state[j] = u
                row[j] = u


@kernel
def linear_backward(g, x, v_start, out, p, gx, gv, gp, wanted, first, last):
    """Backward pass of `linear_forward`: gv [batch, neuron] comes as that of the last v, leaves as that of the first.

    `gp` [row, neuron] in float64 gets the sums over time and batch where they are `wanted`.
    """
    decay, gain = p[DECAY], p[GAIN]
    for b in range(first, last):
        carried = gv[b]
        for t in range(x.shape[0] - 1, -1, -1):
            row, given = gx[t, b], g[t, b]
            if wanted:
                before = out[t - 1, b] if t > 0 else v_start[b]
                came = x[t, b]
                for j in range(carried.shape[0]):
                    a = given[j] + carried[j]
                    gp[DECAY, j] += a * before[j]
                    gp[LEAK, j] += a
                    gp[GAIN, j] += a * came[j]
            for j in range(carried.shape[0]):
                a = given[j] + carried[j]
                row[j] = gain[j] * a
                carried[j] = decay[j] * a


@kernel
def forward(x, v, p, inclusive, subtract, u_out, s_out, first, last):
    """A population that spikes once a step, as `kernels.scan` advances it.

    Args:
        x: what comes in, [step, batch, neuron].
        v: membrane [batch, neuron], advanced in place.
        p: parameters.
        inclusive, subtract: as in `Convention`.
        u_out: gets v before the reset, [step, batch, neuron]; may be `x`.
        s_out: likewise the spikes.
        first: first sample.
        last: sample to stop before.
    """
    steps, batch, neurons = x.shape
    given, held, kept, spikes, rows = pointer(x), pointer(v), pointer(u_out), pointer(s_out), pointer(p)
    unit = v.dtype.type(1)
    one, zero = splat(unit, WIDTH), splat(unit - unit, WIDTH)
    for b in range(first, last):
        for t in range(steps):
            row, soon = (t * batch + b) * neurons, (min(t + _AHEAD, steps - 1) * batch + b) * neurons
            for c in range(0, neurons, WIDTH):
                left = neurons - c
                prefetch(given, soon + c, 0)
                prefetch(kept, soon + c, 1)
                prefetch(spikes, soon + c, 1)
                decay, leak, gain = (
                    read(rows, c, left),
                    read(rows, neurons + c, left),
                    read(rows, 2 * neurons + c, left),
                )
                threshold, v_reset = read(rows, 3 * neurons + c, left), read(rows, 4 * neurons + c, left)
                came, before = read(given, row + c, left), read(held, b * neurons + c, left)
                u = membrane(decay, before, leak, gain, came)
                write(kept, row + c, left, u)
                u, fired = settle(u, threshold, v_reset, read(rows, 5 * neurons + c, left), inclusive, subtract)
                write(held, b * neurons + c, left, u)
                write(spikes, row + c, left, choose(fired, one, zero))


@kernel
def forward_many(x, v, p, inclusive, subtract, u_out, s_out, first, last):
    """`forward` of a population that spikes as often as its threshold fits; `u_out` is other memory than `x`."""
    decay, leak, gain, threshold, v_reset, v_min = p[0], p[1], p[2], p[3], p[4], p[5]
    one, zero = v.dtype.type(1), v.dtype.type(0)
    for b in range(first, last):
        state = v[b]
        for t in range(x.shape[0]):
            given, kept, spikes = x[t, b], u_out[t, b], s_out[t, b]
            soon = min(t + _AHEAD, x.shape[0] - 1)
            _ask(x[soon, b], 0)
            _ask(u_out[soon, b], 1)
            _ask(s_out[soon, b], 1)
            for j in range(state.shape[0]):
                u = decay[j] * state[j] + leak[j] + gain[j] * given[j]
                kept[j] = u
                state[j] = u
            for j in range(state.shape[0]):
                u = state[j]
                fired = (u > threshold[j]) | (inclusive & (u == threshold[j]))
                ratio = u / threshold[j]
                whole = np.floor(ratio) if inclusive else np.ceil(ratio) - one
                whole = whole if whole > one else one
                spikes[j] = whole if fired else zero
            for j in range(state.shape[0]):
                u = state[j]
                after = u - spikes[j] * threshold[j] if subtract else v_reset[j]
                u = after if spikes[j] > zero else u
                state[j] = u if u >= v_min[j] else v_min[j]


@kernel
def _slopes(u, threshold, code, factor, out):
    one = u.dtype.type(1)
    if code == 0:
        for j in range(u.shape[0]):
            out[j] = _fast_sigmoid(u[j] - threshold[j], factor, one)
    elif code == 1:
        for j in range(u.shape[0]):
            out[j] = _atan(u[j] - threshold[j], factor, one)
    elif code == 2:
        for j in range(u.shape[0]):
            out[j] = _triangle(u[j] - threshold[j], factor, one)
    else:
        for j in range(u.shape[0]):
            out[j] = _rectangle(u[j] - threshold[j], factor, one)


@kernel
def backward(
    g, x, v_start, u_out, s_out, p, inclusive, subtract, many, bound, code, factor, gx, gv, gp, wanted, first, last
):  # fmt: skip
    """Backward pass of `forward`.

    With S = H(u - threshold) m spikes (m >= 1 a constant), w the v after the reset and v = max(w, v_min):
    dL/dS = g - [subtract] threshold dL/dw; dL/du = dL/dw [not reset to a value] + m dL/dS H', H' the surrogate.

    Args:
        g: gradient of the spikes [step, batch, neuron].
        x: what came in, read where parameters' gradients are wanted.
        v_start: v before the first step [batch, neuron].
        u_out, s_out: as `forward` left them.
        p: parameters.
        inclusive, subtract: as in `Convention`.
        many: whether several spikes a step are possible.
        bound: 0: no v_min, 1: a constant, 2: minus the threshold.
        code: which surrogate.
        factor: what it multiplies the distance by.
        gx: gets the gradient of x.
        gv: [batch, neuron], comes as the gradient of the last v and leaves as that of the first.
        gp: [row, neuron] in float64, gets the gradients of parameters where they are `wanted`.
        wanted: whether they are.
        first: first sample.
        last: sample to stop before.
    """
    decay, gain, threshold, v_reset, v_min = p[DECAY], p[GAIN], p[THRESHOLD], p[V_RESET], p[V_MIN]
    one, zero = gv.dtype.type(1), gv.dtype.type(0)
    half = one / (one + one)
    slope = np.empty(gv.shape[1], gv.dtype)
    for b in range(first, last):
        carried = gv[b]
        for t in range(u_out.shape[0] - 1, -1, -1):
            u, spikes, given, row = u_out[t, b], s_out[t, b], g[t, b], gx[t, b]
            soon = max(0, t - _AHEAD)
            _ask(u_out[soon, b], 0)
            if wanted or bound or many:
                _ask(s_out[soon, b], 0)
            _ask(g[soon, b], 0)
            _ask(gx[soon, b], 1)
            _slopes(u, threshold, code, factor, slope)
            if wanted or bound:
                for j in range(carried.shape[0]):
                    fired = spikes[j] > zero
                    after = u[j] - spikes[j] * threshold[j] if subtract else v_reset[j]
                    w = after if fired else u[j]
                    share = one if w > v_min[j] else (half if w == v_min[j] else zero)
                    gw = carried[j] * share
                    m = spikes[j] if fired else one
                    gs = given[j] - threshold[j] * gw if subtract else given[j]
                    gh = gs * m * slope[j]
                    gu = (gw if (subtract or not fired) else zero) + gh
                    if wanted:
                        gt = -gh
                        gt -= spikes[j] * gw if subtract else zero
                        gt -= carried[j] - gw if bound == 2 else zero
                        gp[THRESHOLD, j] += gt
                        gp[V_RESET, j] += gw if (fired and not subtract) else zero
                        gp[LEAK, j] += gu
                        gp[GAIN, j] += gu * x[t, b, j]
                        if t > 0:
                            above = s_out[t - 1, b, j]
                            last_u = u_out[t - 1, b, j]
                            before = last_u - above * threshold[j] if subtract else v_reset[j]
                            before = before if above > zero else last_u
                            before = before if before >= v_min[j] else v_min[j]
                        else:
                            before = v_start[b, j]
                        gp[DECAY, j] += gu * before
                    row[j] = gain[j] * gu
                    carried[j] = decay[j] * gu
            elif many:
                for j in range(carried.shape[0]):
                    gw, fired = carried[j], spikes[j] > zero
                    gs = given[j] - threshold[j] * gw if subtract else given[j]
                    m = spikes[j] if fired else one
                    kept = gw if (subtract | (not fired)) else zero
                    gu = kept + gs * m * slope[j]
                    row[j] = gain[j] * gu
                    carried[j] = decay[j] * gu
            else:
                # who fired is seen in u: a pass over memory less
                for j in range(carried.shape[0]):
                    gw, fired = carried[j], (u[j] > threshold[j]) | (inclusive & (u[j] == threshold[j]))
                    gs = given[j] - threshold[j] * gw if subtract else given[j]
                    kept = gw if (subtract | (not fired)) else zero
                    gu = kept + gs * slope[j]
                    row[j] = gain[j] * gu
                    carried[j] = decay[j] * gu
