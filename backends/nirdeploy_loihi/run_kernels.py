"""The compiled loop over the steps of a run: all populations of a program, sample by sample."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy_loihi.native import kernel
from nirdeploy_loihi.neuron_kernels import MARK, current, fire, fire_held, voltage
from nirdeploy_loihi.synapse_kernels import gather, matrix, window

__all__ = ["ALWAYS", "GIVEN", "OPERATIONS", "POPULATION", "SATURATIONS", "SPIKES", "WRAPS", "Given", "Tables", "run"]

GIVEN, POPULATION, ALWAYS = range(3)  # what a source is
WRAPS, SATURATIONS, OPERATIONS, SPIKES = range(4)
Array = NDArray[Any]


class Tables(NamedTuple):
    """A program as the kernels read it; neurons of all populations follow each other.

    Attributes:
        populations: rows of `packed.POPULATIONS`.
        connections: rows of `packed.CONNECTION`.
        weights: int32, of all connections.
        delays: uint8, of all connections.
        order: int32 [neuron]: for each neuron, in the order in which it is held, its place in the population's shape.
        kept_u: int32 [neuron], 4096 - decay_u.
        kept_v: int32 [neuron], 4096 - decay_v.
        threshold: int32 [neuron].
        bias: int32 [neuron].
        v_start: int32 [neuron].
        sums: int32 or int64 [all rings], zeros: what each sample starts from.
    """

    populations: Array
    connections: Array
    weights: Array
    delays: Array
    order: Array
    kept_u: Array
    kept_v: Array
    threshold: Array
    bias: Array
    v_start: Array
    sums: Array


class Given(NamedTuple):
    """Spikes of the sources outside the program.

    Attributes:
        begins: int64 [source, steps * batch + 1]: where in `spikes` the spikes of a step and sample begin.
        spikes: int32, who spikes.
        axons: int32, 0, 1, 2, ...: those of always-on axons.
    """

    begins: Array
    spikes: Array
    axons: Array


@kernel
def _collect(fired: Array, order: Array, ordered: bool, found: Array) -> int:
    """Places of the marks in `fired`, whose size is a multiple of 8; returns how many."""
    words = fired.view(np.uint64)
    count = 0
    for k in range(words.size):
        if words[k] != 0:
            for i in range(8 * k, 8 * k + 8):
                if fired[i]:
                    found[count] = order[i] if ordered else i
                    count += 1
    return count


@kernel
def _keep(values: Array, order: Array, ordered: bool, out: Array) -> None:
    """Write a state in the order of the population's shape."""
    if ordered:
        for i in range(values.size):
            out[order[i]] = values[i]
    else:
        for i in range(values.size):
            out[i] = values[i]


@kernel
def run(
    tables: Tables, given: Given, traces: Array, traces_at: Array, shown: bool, steps: int, batch: int, part: Array
) -> tuple[Array, Array]:
    """Run samples through all steps.

    Args:
        tables: the program.
        given: spikes of the sources outside.
        traces: int32, written; zero where spikes go.
        traces_at: int64 [population, 4]: where sums, u, v and spikes [step, batch, neuron] begin, -1: not kept.
        shown: v as the chip shows it: 128 for each refractory step left.
        steps: steps of the run.
        batch: samples of the run.
        part: first sample, and sample to stop before.

    Returns:
        Counts [population, 4], and the least and the largest u before folding [population, 2].
    """
    populations, connections = tables.populations, tables.connections
    counts = np.zeros((populations.size, 4), np.int64)
    reached = np.zeros((populations.size, 2), np.int64)
    total = tables.kept_u.size
    u, v, held = np.empty(total, np.int32), np.empty(total, np.int32), np.empty(total, np.int32)
    fired, spiking = np.zeros(total, np.uint8), np.empty(total, np.int32)
    many = np.zeros(populations.size, np.int64)
    sums = np.empty_like(tables.sums)
    for sample in range(part[0], part[1]):
        u[:] = 0
        v[:] = tables.v_start
        held[:] = 0
        sums[:] = 0
        for t in range(steps):
            for c in connections:
                if c.apart_from_sums:
                    p = populations[c.target]
                    at = p.sums_at + (t % p.slots) * p.room
                    gather(c, sums[at : at + p.size], sums, tables.delays, t)
            row = t * batch + sample
            for k in range(populations.size):
                many[k] = _advance(tables, k, t, row, shown, sums, u, v, held, fired, spiking, traces, traces_at,
                                   counts, reached)  # fmt: skip
            left = steps - 2 - t
            if left < 0:
                break
            _deliver(tables, given, t, row, left, sums, spiking, many, counts)
    return counts, reached


@kernel
def _advance(
    tables: Tables, k: int, t: int, row: int, shown: bool, sums: Array, u: Array, v: Array, held: Array, fired: Array,
    spiking: Array, traces: Array, traces_at: Array, counts: Array, reached: Array,
) -> int:  # fmt: skip
    """One step of population `k`; returns how many spike."""
    p = tables.populations[k]
    a, e, n = p.first, p.first + p.size, p.size
    at = p.sums_at + (t % p.slots) * p.room
    came, order, ordered = sums[at : at + n], tables.order[a : a + p.room], p.ordered != 0
    own_u, own_v = u[a:e], v[a:e]
    folded, low, high = current(own_u, came, tables.kept_u[a:e])
    counts[k, WRAPS] += folded
    reached[k, 0], reached[k, 1] = min(reached[k, 0], low), max(reached[k, 1], high)
    counts[k, SATURATIONS] += voltage(own_v, own_u, tables.kept_v[a:e], tables.bias[a:e])
    if p.refractory > 1:
        fire_held(own_v, tables.threshold[a:e], fired[a:e], held[a:e], p.refractory)
    else:
        fire(own_v, tables.threshold[a:e], fired[a:e])
    many = _collect(fired[a : a + p.room], order, ordered, spiking[a:e])
    counts[k, SPIKES] += many
    if traces_at[k, 0] >= 0:
        to = traces_at[k, 0] + row * n
        _keep(came, order, ordered, traces[to : to + n])
    if traces_at[k, 1] >= 0:
        to = traces_at[k, 1] + row * n
        _keep(own_u, order, ordered, traces[to : to + n])
    if traces_at[k, 2] >= 0:
        to = traces_at[k, 2] + row * n
        _keep(own_v, order, ordered, traces[to : to + n])
        if shown and p.refractory > 1:
            for i in range(n):
                if held[a + i] > 0:
                    traces[to + (order[i] if ordered else i)] = MARK * held[a + i]
        elif shown:
            for i in range(many):
                traces[to + spiking[a + i]] = MARK * p.refractory
    if traces_at[k, 3] >= 0:
        to = traces_at[k, 3] + row * n
        for i in range(many):
            traces[to + spiking[a + i]] = 1
    came[:] = 0
    return many


@kernel
def _deliver(
    tables: Tables, given: Given, t: int, row: int, left: int, sums: Array, spiking: Array, many: Array, counts: Array
) -> None:
    """Deliver the spikes of a step to the sums of those that follow."""
    for c in tables.connections:
        to = (t + 1) % c.slots
        if c.apart_from_sums:
            at = c.sums_at + to * c.room
            sums[at : at + c.room] = 0
        if c.kind == POPULATION:
            first = tables.populations[c.source].first
            spikes = spiking[first : first + many[c.source]]
        elif c.kind == GIVEN:
            spikes = given.spikes[given.begins[c.source, row] : given.begins[c.source, row + 1]]
        else:
            spikes = given.axons[: c.source if t >= c.start else 0]
        if spikes.size == 0:
            continue
        if c.kernel_y == 0:
            done = matrix(c, sums, tables.weights, tables.delays, spikes, to, left)
        else:
            done = window(c, sums, tables.weights, tables.delays, spikes, to, left)
        counts[c.target, OPERATIONS] += done
