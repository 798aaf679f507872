"""A population and the weight before it, computed from the events that drive it, where they are few enough."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import nn

from nirdeploy.reference import event_kernels, kernels
from nirdeploy.reference.signals import Signal
from nirdeploy.reference.sparse import Rows, join, to_raster
from nirdeploy.reference.threads import split
from nirdeploy.schedule import NodePath

if TYPE_CHECKING:
    from nirdeploy.reference.engine import Engine

__all__ = ["driven", "few_events"]

# densities above which torch is faster than events, measured by benchmarks/reference.py on two cores
_CROSSOVER = {nn.Linear: 0.25, nn.Conv2d: 0.10}


def few_events(engine: Engine, source: NodePath, weight: NodePath) -> Rows | None:
    """What a node emits as events, where they are too few for torch to be faster with the weight behind it."""
    return engine.signal(source).rows(_CROSSOVER[type(engine.program.modules[weight])])


def driven(engine: Engine, path: NodePath) -> bool:
    """Compute a population and the weight before it from events, where they are few enough."""
    chain = engine.program.chains.get(path)
    if chain is None or engine.sink.wants(chain.weight, "output"):
        return False
    rows = few_events(engine, chain.source, chain.weight)
    if rows is None:
        return False
    weights = engine.program.weights(path)
    native = engine.program.native(path, engine.dtype)
    order = weights.order
    p, q, padded = native.p, native.q, order
    v_node, i_node = engine.held(path)
    v, i = v_node, i_node
    if order.size:
        # take, not [:, order]: that gives the memory of the transpose
        p, q, padded = engine.program.made(
            (path, "ordered"),
            lambda: (p.take(order, 1), q.take(order[: q.shape[1]], 1), np.pad(order, (0, 32))),
        )
        v, i = v_node.take(order, 1), i_node.take(order, 1) if i_node.size else i_node
    v_record, i_record, none = engine.targets(path, v.dtype)

    def work(first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pointer = np.empty((last - first) * engine.steps + 1, np.int64)
        if weights.vectors:
            given = (rows.pointer, rows.index, rows.value, engine.steps, first, last, weights.weight)
            state = (v, i, p, q, native.how[1], native.how[2], pointer, v_record, i_record)
            if weights.reach[0]:
                index = event_kernels.convolution(
                    *given, weights.table, weights.reach, weights.bias, weights.pieces, order, *state
                )
            else:
                index = event_kernels.matrix(*given, weights.sources, weights.table, weights.bias, *state)
            return pointer, index, np.ones(len(index), v.dtype)
        found = kernels.events_layer(
            rows.pointer, rows.index, rows.value, engine.steps, first, last, weights.weight, weights.table,
            weights.reach, weights.bias, weights.pieces, padded, v, i, p, q, native.how, native.dt,
            pointer, v_record, i_record,
        )  # fmt: skip
        return (pointer, *found)

    cost = int(rows.index.size * weights.fan_out) // max(1, engine.batch) + engine.steps * v.shape[1]
    parts = split(work, engine.batch, max(1, (1 << 18) // max(1, cost)))
    if order.size:
        v_node[:, order] = v
        if i_node.size:
            i_node[:, order] = i
    engine.put_states(path, v_record, i_record, none)
    emitted = join(parts, engine.steps, engine.batch, v.shape[1])
    shape = engine.shapes[path].output
    engine.signals[path] = Signal(shape, engine.steps, engine.batch, rows=emitted, dtype=engine.dtype)
    if engine.sink.wants(path, "spikes"):
        target = engine.sink.target(path, "spikes", engine.start, engine.steps)
        assert target is not None
        target[...] = 0
        to_raster(emitted, target)
        engine.sink.put(path, "spikes", engine.start, None)
    elif engine.sink.wants(path, "output"):
        engine.put_emitted(path, engine.signals[path].dense())
    return True
