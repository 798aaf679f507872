"""Compiled loops of `event` mode."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from nirdeploy_speck.fields import (
    BIAS,
    BIASED,
    CELL,
    CLAMPS,
    COLUMN,
    HEIGHT,
    HIGHEST,
    INPUT_EVENTS,
    KERNEL_X,
    KERNEL_Y,
    OUTPUTS,
    PADDING_X,
    PADDING_Y,
    ROW,
    SATURATIONS,
    SPIKES,
    STRIDE_X,
    STRIDE_Y,
    SUBTRACT,
    SYNAPTIC_OPERATIONS,
    THRESHOLD,
    TO,
    TO_END,
    V_MIN,
    WEIGHT,
    WIDTH,
)
from nirdeploy_speck.native import inline, kernel

__all__ = ["event_loop"]


@inline
def _settle(
    p: Any, k: int, start: int, end: int, v: Any, fired: Any, m: int, step: int, spikes: Any, at: int, counters: Any
) -> int:
    """Fire, once each, those of the cells [start, end) that reach the threshold; returns m and what was added to it."""
    threshold = p[THRESHOLD]
    for cell in range(start, end):
        now = v[cell]
        if now >= threshold:
            if now > HIGHEST:
                now = HIGHEST
                counters[k, SATURATIONS] += 1
            v[cell] = now - threshold if p[SUBTRACT] else 0
            local = cell - p[CELL]
            fired[p[CELL] + m] = local
            m += 1
            if at >= 0:
                spikes[step, at + local] += 1
    return m


@inline
def _channels_first(p: Any, fired: Any, m: int) -> None:
    """Put fired cells, which lie y, x, channel, into the order channel, y, x (an insertion sort: they are few)."""
    first, outputs, area = p[CELL], p[OUTPUTS], p[HEIGHT] * p[WIDTH]
    for i in range(1, m):
        cell = fired[first + i]
        key = cell % outputs * area + cell // outputs
        j = i
        while j > 0:
            before = fired[first + j - 1]
            if before % outputs * area + before // outputs <= key:
                break
            fired[first + j] = before
            j -= 1
        fired[first + j] = cell


@numba.njit
def _apply_event(
    table: Any,
    weights: Any,
    reach: Any,
    k: int,
    c: int,
    y: int,
    x: int,
    v: Any,
    fired: Any,
    step: int,
    spikes: Any,
    spike_at: Any,
    counters: Any,
    channels_first: bool,
) -> int:
    """One event at a core: v += w, clamp, fire once; returns how many neurons fired, which `fired` lists."""
    p = table[k]
    outputs = p[OUTPUTS]
    rows, columns = p[ROW] + y, p[COLUMN] + x
    first_y, last_y = reach[rows, 0], reach[rows, 1]
    first_x, last_x = reach[columns, 0], reach[columns, 1]
    counters[k, INPUT_EVENTS] += 1
    if last_y < first_y or last_x < first_x:
        return 0
    counters[k, SYNAPTIC_OPERATIONS] += (last_y - first_y + 1) * (last_x - first_x + 1) * outputs
    high, low = np.int32(p[THRESHOLD]), np.int32(p[V_MIN])
    m = 0
    clamps: Any = 0
    for oy in range(first_y, last_y + 1):
        ky = y + p[PADDING_Y] - oy * p[STRIDE_Y]
        tap = (c * p[KERNEL_Y] + ky) * p[KERNEL_X] + x + p[PADDING_X]
        for ox in range(first_x, last_x + 1):
            at = p[CELL] + (oy * p[WIDTH] + ox) * outputs
            of = p[WEIGHT] + (tap - ox * p[STRIDE_X]) * outputs
            here, added = v[at : at + outputs], weights[of : of + outputs]
            peak = low
            below = np.int32(0)
            for o in range(outputs):
                now = np.int32(here[o] + added[o])
                below = np.int32(below + np.int32(now < low))
                now = now if now > low else low
                peak = now if now > peak else peak
                here[o] = now
            clamps += below
            if peak >= high:
                m = _settle(p, k, at, at + outputs, v, fired, m, step, spikes, spike_at[k], counters)
    counters[k, CLAMPS] += clamps
    counters[k, SPIKES] += m
    if channels_first and m > 1:
        _channels_first(p, fired, m)
    return m


@numba.njit
def _leak(
    p: Any, k: int, bias: Any, v: Any, fired: Any, step: int, spikes: Any, at: int, counters: Any, fires: bool, cf: bool
) -> int:
    """One cycle of the slow clock at a core: v += bias; returns how many neurons fired."""
    outputs = p[OUTPUTS]
    m = 0
    for position in range(p[HEIGHT] * p[WIDTH]):
        start = p[CELL] + position * outputs
        for o in range(outputs):
            now = v[start + o] + bias[p[BIAS] + o]
            if now < p[V_MIN]:
                now = p[V_MIN]
                counters[k, CLAMPS] += 1
            if now > HIGHEST and not (fires and now >= p[THRESHOLD]):
                now = HIGHEST
                counters[k, SATURATIONS] += 1
            v[start + o] = now
        if fires:
            m = _settle(p, k, start, start + outputs, v, fired, m, step, spikes, at, counters)
    counters[k, SPIKES] += m
    if cf and m > 1:
        _channels_first(p, fired, m)
    return m


@numba.njit
def _cascade(
    table: Any,
    weights: Any,
    reach: Any,
    destinations: Any,
    k: int,
    m: int,
    v: Any,
    fired: Any,
    frames: Any,
    step: int,
    spikes: Any,
    spike_at: Any,
    counters: Any,
    channels_first: bool,
    cause: int,
    trace: Any,
    traced: int,
) -> int:
    """Send what core k has fired on, depth first: all that follows from a spike happens before the next one."""
    depth = 0
    frames[0, 0], frames[0, 1], frames[0, 2], frames[0, 3] = k, m, 0, table[k, TO]
    while depth >= 0:
        k, m, i, to = frames[depth, 0], frames[depth, 1], frames[depth, 2], frames[depth, 3]
        if i == m:
            depth -= 1
            continue
        p = table[k]
        local = fired[p[CELL] + i]
        if to == p[TO]:
            if traced < len(trace):
                trace[traced, 0], trace[traced, 1], trace[traced, 2] = cause, k, local
            traced += 1
        if to >= p[TO_END]:
            frames[depth, 2], frames[depth, 3] = i + 1, p[TO]
            continue
        frames[depth, 3] = to + 1
        other, pooling = destinations[to, 0], destinations[to, 1]
        outputs, width = p[OUTPUTS], p[WIDTH]
        position = local // outputs
        y, x, c = position // width, position % width, local % outputs
        more = _apply_event(
            table,
            weights,
            reach,
            other,
            c + destinations[to, 2],
            y // pooling,
            x // pooling,
            v,
            fired,
            step,
            spikes,
            spike_at,
            counters,
            channels_first,
        )
        if more:
            depth += 1
            frames[depth, 0], frames[depth, 1], frames[depth, 2], frames[depth, 3] = other, more, 0, table[other, TO]
    return traced


@kernel
def event_loop(
    table: NDArray[np.int64],
    weights: NDArray[np.int32],
    bias: NDArray[np.int32],
    reach: NDArray[np.int64],
    destinations: NDArray[np.int64],
    entry: NDArray[np.int64],
    events: NDArray[np.int64],
    until: NDArray[np.int64],
    cycles: NDArray[np.int64],
    v: NDArray[np.int32],
    spikes: NDArray[np.int32],
    spike_at: NDArray[np.int64],
    v_mem: NDArray[np.int32],
    v_mem_at: NDArray[np.int64],
    counters: NDArray[np.int64],
    trace: NDArray[np.int64],
    channels_first: bool,
    leak_fires: bool,
    begun: NDArray[np.int64],
    budget: int,
) -> None:
    """Events, one after the other, through all cores, until the last or so many of them are through.

    Args:
        table, weights, bias, reach, destinations, entry: `Packed.arrays`.
        events: [event, 5] core, channel, y, x and the slow clock's cycles before it.
        until: [step] events up to the end of each step.
        cycles: [step] cycles of the slow clock up to the end of each step.
        v: states [cell], zero.
        spikes, spike_at, v_mem, v_mem_at, counters: as of `step_loop`.
        trace: [spike, 3] filled, as far as it reaches, with the input event (-1 for the slow clock), core and cell.
        channels_first: whether neurons that one event makes fire send in the order channel, y, x; else y, x, channel.
        leak_fires: whether a cycle of the slow clock can make a neuron fire.
        begun: [4] how far it is, zero before the first call: steps, events and cycles that are through, and spikes.
        budget: events to apply before it returns; it is called again until all steps are through.
    """
    n_cores = len(table)
    fired = np.empty(len(v), np.int64)  # each core's part is where its states are
    frames = np.empty((n_cores + 1, 4), np.int64)
    first, e, done, traced = begun
    stop = e + budget
    for step in range(first, len(until)):
        while True:
            last = e >= until[step]
            if e >= stop and not last:
                begun[:] = step, e, done, traced
                return
            wanted = cycles[step] if last else events[e, 4]
            while done < wanted:
                done += 1
                for k in range(n_cores):
                    p = table[k]
                    if not p[BIASED]:
                        continue
                    m = _leak(p, k, bias, v, fired, step, spikes, spike_at[k], counters, leak_fires, channels_first)
                    if m:
                        traced = _cascade(
                            table, weights, reach, destinations, k, m, v, fired, frames, step, spikes, spike_at,
                            counters, channels_first, -1, trace, traced,
                        )  # fmt: skip
            if last:
                break
            k = events[e, 0]
            m = _apply_event(
                table, weights, reach, k, events[e, 1], events[e, 2], events[e, 3], v, fired, step, spikes, spike_at,
                counters, channels_first,
            )  # fmt: skip
            if m:
                traced = _cascade(
                    table, weights, reach, destinations, k, m, v, fired, frames, step, spikes, spike_at, counters,
                    channels_first, e, trace, traced,
                )  # fmt: skip
            e += 1
        for k in range(n_cores):
            if v_mem_at[k] >= 0:
                p = table[k]
                n_cells = p[HEIGHT] * p[WIDTH] * p[OUTPUTS]
                v_mem[step, v_mem_at[k] : v_mem_at[k] + n_cells] = v[p[CELL] : p[CELL] + n_cells]
    begun[:] = len(until), e, done, traced
