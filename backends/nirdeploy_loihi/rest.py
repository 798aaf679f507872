"""What the biases of stateless nodes bring to each population while nothing spikes, and from which step on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter

import nir
import numpy as np
from numpy.typing import NDArray

from nirdeploy import graph as graphs
from nirdeploy.errors import GraphError
from nirdeploy.reference.convention import Convention
from nirdeploy_loihi.linear import bias_of, float_stage
from nirdeploy_loihi.network import SUPPORTED, Stage, stage_of
from nirdeploy_loihi.timing import steps_of

__all__ = ["Rest", "at_rest"]

Floats = NDArray[np.float64]
Rest = dict[int, Floats]  # step of the graph from which on it flows -> current, the shape of a population
_Flow = dict[tuple[int, bool], Floats]  # (that step, whether a feedback edge carries it at step 0 already)


def at_rest(
    graph: nir.NIRGraph,
    shapes: Mapping[str, graphs.Shapes],
    back: set[tuple[str, str]],
    convention: Convention,
) -> dict[str, Rest]:
    """Constant currents into each population; nothing is computed or allocated where there are none.

    A Delay holds them back, as it starts with zeros. A feedback edge carries at step 0 what flows at rest with
    feedback_start='silence', else it is a step late (Convention, design of feedback edges).

    Raises:
        GraphError: currents that are not finite.
    """
    sources = graphs.predecessors(graph)
    given: dict[str, _Flow] = {}
    found: dict[str, Rest] = {}
    silence = convention.feedback_start == "silence"
    for name in _chained(graph, sources):
        node = graph.nodes[name]
        flow: _Flow = {}
        for source in sources[name]:
            for (start, fresh), value in given.get(source, {}).items():
                key = (start, fresh)
                if (source, name) in back:
                    key = (0, False) if fresh and silence else (start + 1, False)
                flow[key] = flow[key] + value if key in flow else value
        kind = graphs.type_name(node)
        if kind in graphs.MEMBRANES:
            found[name] = _collected(name, flow)
        elif kind == "Delay":
            given[name] = _delayed(name, node, flow, shapes[name], convention)
        elif kind not in ("Input", "Output") and kind in SUPPORTED:
            given[name] = _through(graph, name, shapes[name], flow)
    return found


def _chained(graph: nir.NIRGraph, sources: Mapping[str, list[str]]) -> Iterable[str]:
    """All nodes, those of a chain in its order; populations and Inputs pass nothing on, so there are no cycles."""
    ends = {n for n, node in graph.nodes.items() if graphs.type_name(node) in ("Input", *graphs.MEMBRANES)}
    return TopologicalSorter({n: [s for s in found if s not in ends] for n, found in sources.items()}).static_order()


def _collected(name: str, flow: _Flow) -> Rest:
    total: Rest = {}
    for (start, _), value in flow.items():
        if not np.isfinite(value).all():
            raise GraphError("its biases add up to a value that is not finite", node=name)
        total[start] = total[start] + value if start in total else value
    return {start: value for start, value in total.items() if np.any(value)}


def _delayed(name: str, node: nir.NIRNode, flow: _Flow, shape: graphs.Shapes, convention: Convention) -> _Flow:
    if not flow:
        return {}
    steps = np.broadcast_to(steps_of(name, node, convention), (int(np.prod(shape.input)),)).reshape(shape.input)
    found: _Flow = {}
    for (start, fresh), value in flow.items():
        for count in np.unique(steps):
            key = (start + int(count), fresh and not count)
            part = np.where(steps == count, value, 0.0)
            found[key] = found[key] + part if key in found else part
    return found


def _through(graph: nir.NIRGraph, name: str, shape: graphs.Shapes, flow: _Flow) -> _Flow:
    node = graph.nodes[name]
    stage = stage_of(graph, name, shape)
    found: _Flow = {key: float_stage(stage, node, value[None], bias=False)[0] for key, value in flow.items()}
    own = bias_of(node) if stage.kind in ("conv", "dense") else None
    if own is not None and own.any():
        added = _own(stage, own)
        found[0, True] = found[0, True] + added if (0, True) in found else added
    return found


def _own(stage: Stage, bias: Floats) -> Floats:
    """A weight node's own bias in the shape of its output."""
    channels = bias.reshape(-1, *[1] * (len(stage.shape) - 1)) if stage.kind == "conv" else bias
    found: Floats = np.broadcast_to(channels, stage.shape)
    return found
