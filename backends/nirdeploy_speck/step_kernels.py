"""Compiled loops of `step` mode."""

from __future__ import annotations

from typing import Any

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
    LARGEST_BIAS,
    LARGEST_WEIGHT,
    LOWEST,
    MANY,
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

__all__ = ["count_differences", "scan", "step_loop"]


@kernel
def scan(
    currents: NDArray[Any],
    threshold: int,
    v_min: int,
    subtract: bool,
    many: bool,
    spikes: NDArray[Any],
    v_mem: NDArray[Any],
) -> tuple[int, int]:
    """Neurons [step, cell] through time; returns how often v passed 16 bits and how often v_min held it."""
    steps, cells = currents.shape
    state = np.zeros(cells, dtype=np.int64)
    saturations = 0
    clamps = 0
    for step in range(steps):
        for cell in range(cells):
            v = state[cell] + currents[step, cell]
            if v > HIGHEST or v < LOWEST:
                saturations += 1
            n = v // threshold if v > 0 else 0
            if n > 1 and not many:
                n = 1
            if n > 0:
                v = v - n * threshold if subtract else 0
            if v < v_min:
                v = v_min
                clamps += 1
            state[cell] = v
            spikes[step, cell] = n
            v_mem[step, cell] = v
    return saturations, clamps


@kernel
def count_differences(
    currents: NDArray[Any],
    wanted: NDArray[Any],
    bias: NDArray[np.int64],
    threshold: int,
    v_min: int,
    subtract: bool,
    many: bool,
    worst: int,
) -> NDArray[np.int64]:
    """Spikes of neurons as `scan`'s by which each channel differs from what is wanted.

    Args:
        currents: [step, batch, channel, position], without the bias.
        wanted: counts, likewise.
        bias: [channel].
        threshold, v_min, subtract, many: as of `scan`.
        worst: stop where the sum is at least this; -1: never.
    """
    steps, batch, channels, positions = currents.shape
    state = np.zeros((batch, channels, positions), np.int64)
    found = np.zeros(channels, np.int64)
    total = 0
    for step in range(steps):
        for sample in range(batch):
            for channel in range(channels):
                differences = 0
                added = bias[channel]
                for position in range(positions):
                    v = state[sample, channel, position] + currents[step, sample, channel, position] + added
                    n = 0
                    if v >= threshold:
                        n = v // threshold if many else 1
                        v = v - n * threshold if subtract else 0
                    state[sample, channel, position] = max(v, v_min)
                    differences += abs(n - wanted[step, sample, channel, position])
                found[channel] += differences
                total += differences
        if worst >= 0 and total >= worst:
            break
    return found


@inline
def _scatter(p: Any, w: Any, reach: Any, v: Any, c: int, y: int, x: int, n: Any) -> Any:
    """v += n w for every neuron that an input event reaches; returns how many those are."""
    outputs = p[OUTPUTS]
    rows, columns = p[ROW] + y, p[COLUMN] + x
    first_y, last_y = reach[rows, 0], reach[rows, 1]
    first_x, last_x = reach[columns, 0], reach[columns, 1]
    if last_y < first_y or last_x < first_x:
        return 0
    for oy in range(first_y, last_y + 1):
        ky = y + p[PADDING_Y] - oy * p[STRIDE_Y]
        tap = (c * p[KERNEL_Y] + ky) * p[KERNEL_X] + x + p[PADDING_X]
        for ox in range(first_x, last_x + 1):
            at = p[CELL] + (oy * p[WIDTH] + ox) * outputs
            of = p[WEIGHT] + (tap - ox * p[STRIDE_X]) * outputs
            here, added = v[at : at + outputs], w[of : of + outputs]
            for o in range(outputs):
                here[o] += n * added[o]
    return (last_y - first_y + 1) * (last_x - first_x + 1) * outputs


@kernel
def step_loop(
    table: NDArray[np.int64],
    weights: NDArray[np.int32],
    bias: NDArray[np.int32],
    reach: NDArray[np.int64],
    destinations: NDArray[np.int64],
    entry: NDArray[np.int64],
    raster: NDArray[Any],
    v: NDArray[Any],
    bound: NDArray[np.float64],
    limit: int,
    spikes: NDArray[Any],
    spike_at: NDArray[np.int64],
    v_mem: NDArray[Any],
    v_mem_at: NDArray[np.int64],
    counters: NDArray[np.int64],
) -> tuple[int, int]:
    """A raster through all cores, step after step.

    Args:
        table, weights, bias, reach, destinations, entry: `Packed.arrays`.
        raster: counts [step, channel, y, x] of the Input.
        v: states [cell], zero before the first step; the type that sums are made in.
        bound: [core] no |v| is larger; likewise.
        limit: largest sum that `v` holds.
        spikes: [step, cell] counts, filled where a core is recorded.
        spike_at: [core] its first cell in `spikes`, -1 for none.
        v_mem: [step, cell] v at the end of each step, likewise.
        v_mem_at: [core] its first cell in `v_mem`, -1 for none.
        counters: [core, counter], added to.

    Returns:
        -1 and 0, or the position of a core whose sums might pass `limit`, and by how much they might.
    """
    n_cores = len(table)
    channels, height, width = raster.shape[1:]
    events = np.zeros(n_cores, np.int64)
    for step in range(len(raster)):
        for k in range(n_cores):
            p = table[k]
            events[k] = 0
            if p[BIASED]:
                for cell in range(p[HEIGHT] * p[WIDTH]):
                    for o in range(p[OUTPUTS]):
                        v[p[CELL] + cell * p[OUTPUTS] + o] += bias[p[BIAS] + o]
        for c in range(channels):
            for y in range(height):
                for x in range(width):
                    n = raster[step, c, y, x]
                    if n:
                        for to in range(len(entry)):
                            k, pooling = entry[to, 0], entry[to, 1]
                            p = table[k]
                            events[k] += n
                            if bound[k] + float(events[k]) * p[LARGEST_WEIGHT] + p[LARGEST_BIAS] > limit:
                                return k, events[k]
                            reached = _scatter(
                                p, weights, reach, v, c + entry[to, 2], y // pooling, x // pooling, v.dtype.type(n)
                            )
                            counters[k, SYNAPTIC_OPERATIONS] += n * reached
        for k in range(n_cores):
            p = table[k]
            threshold, v_min, outputs = p[THRESHOLD], p[V_MIN], p[OUTPUTS]
            high, low = v.dtype.type(threshold), v.dtype.type(v_min)
            most = bound[k] + float(events[k]) * p[LARGEST_WEIGHT] + p[LARGEST_BIAS]
            if most > limit:
                return k, events[k]
            counters[k, INPUT_EVENTS] += events[k]
            wide = most > HIGHEST
            saturations = 0
            clamps: Any = 0
            for row in range(p[HEIGHT]):
                start = p[CELL] + row * p[WIDTH] * outputs
                end = start + p[WIDTH] * outputs
                row_v = v[start:end]
                if wide:
                    for cell in range(len(row_v)):
                        saturations += (row_v[cell] > HIGHEST) | (row_v[cell] < LOWEST)
                peak = low
                below = np.int32(0)
                for cell in range(len(row_v)):
                    now = row_v[cell]
                    below = np.int32(below + np.int32(now < low))
                    now = now if now > low else low
                    peak = now if now > peak else peak
                    row_v[cell] = now
                clamps += below
                if peak < high:
                    continue
                for cell in range(start, end):
                    if v[cell] < high:
                        continue
                    n = np.int64(v[cell]) // threshold if p[MANY] else 1
                    v[cell] = np.int64(v[cell]) - n * threshold if p[SUBTRACT] else 0
                    counters[k, SPIKES] += n
                    local = cell - p[CELL]
                    if spike_at[k] >= 0:
                        spikes[step, spike_at[k] + local] = n
                    position = local // outputs
                    y, x, c = position // p[WIDTH], position % p[WIDTH], local % outputs
                    for to in range(p[TO], p[TO_END]):
                        other, pooling = destinations[to, 0], destinations[to, 1]
                        q = table[other]
                        events[other] += n
                        if bound[other] + float(events[other]) * q[LARGEST_WEIGHT] + q[LARGEST_BIAS] > limit:
                            return other, events[other]
                        reached = _scatter(
                            q, weights, reach, v, c + destinations[to, 2], y // pooling, x // pooling, v.dtype.type(n)
                        )
                        counters[other, SYNAPTIC_OPERATIONS] += n * reached
            counters[k, SATURATIONS] += saturations
            counters[k, CLAMPS] += clamps
            if p[MANY] or not p[SUBTRACT]:
                bound[k] = max(threshold, -v_min)
            else:
                bound[k] = max(most - threshold, threshold, -v_min)
            if v_mem_at[k] >= 0:
                n_cells = p[HEIGHT] * p[WIDTH] * p[OUTPUTS]
                v_mem[step, v_mem_at[k] : v_mem_at[k] + n_cells] = v[p[CELL] : p[CELL] + n_cells]
    return -1, 0
