"""Spikes and registers of a few populations under given input: what the calibrated quantiser needs of an emulator.

This is the one seam between quantiser and emulator: `drive`, then `integrate`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from nirdeploy import exact
from nirdeploy.native import compiler
from nirdeploy_loihi.bounds import STATE_LIMIT
from nirdeploy_loihi.program import SYNAPSE_SHIFT, Compartments, Program, Synapses

__all__ = ["Found", "components", "drive", "entries", "integrate", "run_program"]

Integers = NDArray[np.int64]
Ints = NDArray[np.int32]
_HALF, _WHOLE, _SHIFT = STATE_LIMIT, 2 * STATE_LIMIT, SYNAPSE_SHIFT
_kernel = compiler([Path(__file__)], error_model="python")


class Found(NamedTuple):
    """Populations over time.

    Attributes:
        spikes: of each, 0 and 1, [step, batch, neurons].
        v: of each after the reset, [step, batch, neurons]; empty where it was not kept.
        wraps: steps and neurons in which u wrapped, of each.
        clips: likewise, in which v was clipped.
        peak_u: largest magnitude of u before wrapping, of each.
        peak_v: largest magnitude of v before clipping and reset, of each.
    """

    spikes: dict[str, Ints]
    v: dict[str, Ints]
    wraps: dict[str, int]
    clips: dict[str, int]
    peak_u: dict[str, int]
    peak_v: dict[str, int]


def components(program: Program) -> list[tuple[str, ...]]:
    """Populations in execution order, those of a loop together (strongly connected components)."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    names = [p.name for p in program.populations]
    place = {name: i for i, name in enumerate(names)}
    edges = [(place[s.source], place[s.target]) for s in program.synapses if s.source in place]
    rows, columns = zip(*edges, strict=True) if edges else ((), ())
    graph = csr_matrix((np.ones(len(edges)), (rows, columns)), shape=(len(names), len(names)))
    _, labels = connected_components(graph, connection="strong")
    before: dict[int, set[int]] = {int(label): set() for label in labels}
    for source, target in edges:
        if labels[source] != labels[target]:
            before[int(labels[target])].add(int(labels[source]))
    order = TopologicalSorter(before).static_order()
    return [tuple(names[i] for i in np.flatnonzero(labels == label)) for label in order]


def run_program(program: Program, raster: Ints, keep_v: Collection[str] = ()) -> Found:
    """The whole network over a raster [step, batch, neurons of the Input]; v of the populations in `keep_v`."""
    total = Found({}, {}, {}, {}, {}, {})
    spikes = {program.input: raster}
    for names in components(program):
        found = integrate(program, names, drive(program, names, spikes), keep_v=not set(names).isdisjoint(keep_v))
        spikes |= found.spikes
        for field in Found._fields:
            getattr(total, field).update(getattr(found, field))
    return total


# ---------------------------------------------------------------- synaptic sums


def drive(program: Program, names: tuple[str, ...], spikes: Mapping[str, Ints]) -> Ints:
    """Synaptic sums of some populations side by side, [step, batch, their neurons], from all sources but themselves.

    A spike of step t arrives in step t + 1 + delay.

    Args:
        program: the network.
        names: the populations.
        spikes: of each source outside of `names` that no always-on axon is: 0 and 1, [step, batch, neurons].

    Raises:
        QuantizationError: a sum beyond 32 bits; naming the first population and the value.
    """
    steps, batch = next(iter(spikes.values())).shape[:2]
    always = {axons.name: axons for axons in program.always_on}
    parts = []
    for name in names:
        total = np.zeros((steps, batch, program.population(name).size), dtype=np.int64)
        for synapses in program.into(name):
            if synapses.source in names:
                continue
            for delay, part, sources, targets in _by_delay(synapses):
                if synapses.source in always:
                    first = max(0, always[synapses.source].start + 1 + delay)
                    total[first:] += part.weight.sum(1)
                elif delay + 1 < steps:
                    total[delay + 1 :] += _sums(part, spikes[synapses.source][: steps - 1 - delay] * sources) * targets
        parts.append(exact.narrow(total, "a synaptic sum", name))
    return np.concatenate(parts, axis=2)


def _by_delay(synapses: Synapses) -> Iterator[tuple[int, Synapses, Integers, Integers]]:
    """Parts of a connection, each of one delay: that, its weights, and which sources and targets count (0 or 1)."""
    all_of_them = np.ones(1, dtype=np.int64)
    delay = synapses.delay
    before, after = delay[0], delay[:, 0] - delay[0, 0]
    if synapses.window is not None and (after[:, None] + before == delay).all():
        # a kernel stays one where neurons, not synapses, have the delays
        for early in np.unique(before):
            for late in np.unique(after):
                yield int(early + late), synapses, (before == early).astype(np.int64), (after == late).astype(np.int64)
        return
    delays = np.unique(delay)
    whole = synapses.weight if synapses.window is None or len(delays) == 1 else _matrix(synapses)
    for steps in delays:
        part = (
            synapses if len(delays) == 1 else replace(synapses, weight=np.where(delay == steps, whole, 0), window=None)
        )
        yield int(steps), part, all_of_them, all_of_them


def _sums(synapses: Synapses, spikes: Integers) -> Integers:
    steps, batch = spikes.shape[:2]
    flat = spikes.reshape(steps * batch, -1)
    window = synapses.window
    if window is None:
        return exact.linear(flat, synapses.weight).reshape(steps, batch, -1)
    options = {key: getattr(window, key) for key in ("stride", "padding", "dilation", "groups")}
    found = exact.conv2d(flat.reshape(-1, *window.source_shape), synapses.weight, **options)
    return found.reshape(steps, batch, -1)


def _matrix(synapses: Synapses) -> Integers:
    target, source, weight = entries(synapses)
    found = np.zeros((synapses.n_targets, synapses.n_sources), dtype=np.int64)
    np.add.at(found, (target, source), weight)
    return found


def entries(synapses: Synapses) -> tuple[Integers, Integers, Integers]:
    """Target, source and weight of every synapse whose weight is not zero; neurons flat."""
    window = synapses.window
    if window is None:
        target, source = np.nonzero(synapses.weight)
        return target.astype(np.int64), source.astype(np.int64), synapses.weight[target, source]
    _, height, width = window.source_shape
    outs, rows, columns = window.target_shape
    per_group = synapses.weight.shape[1]
    found: list[tuple[Integers, Integers, Integers]] = []
    for ky, kx in np.ndindex(*synapses.weight.shape[2:]):
        taps = synapses.weight[:, :, ky, kx]
        out, into = np.nonzero(taps)
        y = np.arange(rows) * window.stride[0] + ky * window.dilation[0] - window.padding[0]
        x = np.arange(columns) * window.stride[1] + kx * window.dilation[1] - window.padding[1]
        inside = ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
        at_target = np.arange(rows * columns)[inside.reshape(-1)]
        at_source = (y[:, None] * width + x[None, :])[inside]
        channel = out // (outs // window.groups) * per_group + into
        target = out[:, None] * (rows * columns) + at_target[None, :]
        source = channel[:, None] * (height * width) + at_source[None, :]
        weight = np.broadcast_to(taps[out, into][:, None], target.shape)
        found.append((target.reshape(-1), source.reshape(-1), weight.reshape(-1)))
    joined = [np.concatenate(values).astype(np.int64) for values in zip(*found, strict=True)]
    return joined[0], joined[1], joined[2]


# ---------------------------------------------------------------- registers


def integrate(program: Program, names: tuple[str, ...], sums: Ints, *, keep_v: bool = False) -> Found:
    """Step some populations side by side, with the synapses among themselves.

    Args:
        program: the network.
        names: the populations; a loop must be among them as a whole.
        sums: from outside, [step, batch, their neurons].
        keep_v: whether v is returned.
    """
    populations = [program.population(name) for name in names]
    registers = tuple(_joined(populations, key) for key in ("decay_u", "decay_v", "threshold", "bias", "v_start"))
    inner = _inner(program, names)
    a = sums.copy() if len(inner[1]) else sums
    spikes = np.zeros_like(sums)
    v = np.zeros_like(sums) if keep_v else np.zeros((0, 0, 0), dtype=np.int32)
    counts = np.zeros((4, sums.shape[2]), dtype=np.int64)
    _step(a, inner, registers, spikes, v, counts)
    edges = np.cumsum([0, *(p.size for p in populations)])
    part = {name: slice(edges[i], edges[i + 1]) for i, name in enumerate(names)}
    return Found(
        {name: spikes[:, :, s] for name, s in part.items()},
        {name: v[:, :, s] for name, s in part.items()} if keep_v else {},
        *({name: int(counts[i, s].sum()) for name, s in part.items()} for i in (0, 1)),
        *({name: int(counts[i, s].max(initial=0)) for name, s in part.items()} for i in (2, 3)),
    )


def _joined(populations: list[Compartments], key: str) -> Integers:
    return np.concatenate([np.broadcast_to(getattr(p, key), (p.size,)) for p in populations]).astype(np.int64)


def _inner(program: Program, names: tuple[str, ...]) -> tuple[Integers, Integers, Integers, Integers]:
    """Synapses among populations by source: first entry of each source, then targets, weights and steps to arrive."""
    offset = dict(zip(names, np.cumsum([0, *(program.population(n).size for n in names)]), strict=False))
    size = sum(program.population(n).size for n in names)
    found = []
    for synapses in program.synapses:
        if synapses.source not in names or synapses.target not in names:
            continue
        target, source, weight = entries(synapses)
        shape = (synapses.n_targets, synapses.n_sources)
        late = 1 + np.broadcast_to(synapses.delay, shape)[target, source]
        found.append((source + offset[synapses.source], target + offset[synapses.target], weight, late))
    if not found:
        none = np.zeros(0, dtype=np.int64)
        return np.zeros(size + 1, dtype=np.int64), none, none, none
    source, target, weight, late = (np.concatenate(values).astype(np.int64) for values in zip(*found, strict=True))
    order = np.argsort(source, kind="stable")
    first = np.concatenate([[0], np.cumsum(np.bincount(source, minlength=size))]).astype(np.int64)
    return first, target[order], weight[order], late[order]


@_kernel
def _decayed(x: Any, kept: Any) -> Any:
    return (x * kept) >> 12 if x >= 0 else -((-x * kept) >> 12)


@_kernel
def _wrapped(x: Any) -> Any:
    if x > _HALF:
        return x - _WHOLE
    return x + _WHOLE if x <= -_HALF else x


@_kernel
def _deliver(a: Any, spikes: Any, t: int, b: int, first: Any, target: Any, weight: Any, late: Any) -> None:
    """Add the synapses of a step's spikes to the sums of later steps."""
    for i in range(spikes.shape[2]):
        if spikes[t, b, i]:
            for k in range(first[i], first[i + 1]):
                if t + late[k] < a.shape[0]:
                    a[t + late[k], b, target[k]] += weight[k]


@_kernel
def _step(a: Any, inner: Any, registers: Any, spikes: Any, v_out: Any, counts: Any) -> None:
    """Arithmetic of the module `registers`; with synapses among the cells, whose spikes are added to `a`."""
    first, target, weight, late = inner
    decay_u, decay_v, threshold, bias, v_start = registers
    steps, batch, cells = a.shape
    u = np.zeros((batch, cells), np.int64)
    v = np.empty((batch, cells), np.int64)
    v[:] = v_start
    for t in range(steps):
        for b in range(batch):
            for i in range(cells):
                now = _decayed(u[b, i], 4096 - decay_u[i]) + (np.int64(a[t, b, i]) << _SHIFT)
                u[b, i] = _wrapped(now)
                volt = _decayed(v[b, i], 4096 - decay_v[i]) + u[b, i] + bias[i]
                kept = min(max(volt, 1 - _HALF), _HALF - 1)
                counts[0, i] += u[b, i] != now
                counts[1, i] += kept != volt
                counts[2, i] = max(counts[2, i], abs(now))
                counts[3, i] = max(counts[3, i], abs(volt))
                spikes[t, b, i] = kept > threshold[i]
                v[b, i] = 0 if kept > threshold[i] else kept
                if v_out.shape[0]:
                    v_out[t, b, i] = v[b, i]
            if target.shape[0]:
                _deliver(a, spikes, t, b, first, target, weight, late)
