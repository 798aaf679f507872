"""Recurrence through the state: outputs of the step before, as edges of the graph, and whether their delays hold."""

from __future__ import annotations

import nir
from torch import fx

from nirdeploy.convert.draft import Signal
from nirdeploy.convert.returned import at, shown
from nirdeploy.convert.walk import PREVIOUS, Walk
from nirdeploy.errors import ConversionError
from nirdeploy.nodes import keeps_state
from nirdeploy.schedule import schedule

__all__ = ["closed"]


def closed(walk: Walk) -> nir.NIRGraph:
    """The finished graph, in which what stood for an output of the step before is the node that gives it.

    Raises:
        ConversionError: an output that does not come back, or delays that a NIR graph of this form does not have.
    """
    replaced: dict[str, tuple[str, ...]] = {}
    wanted: set[tuple[str, str]] = set()
    for name in sorted(s for s in walk.draft.sources() if s.startswith(PREVIOUS)):
        keys = walk.keys_of[name]
        found = walk.env.get(leaf) if isinstance(leaf := at(walk.returned, keys), fx.Node) else None
        if not isinstance(found, Signal):
            raise ConversionError(
                f"state {shown(keys)} is used as a signal, but forward does not return its next value there",
                remedy="Return the output that is to come back one step later under the same key.",
            )
        replaced[name] = found.sources
        wanted |= {(source, target) for source in found.sources for a, target in walk.draft.edges if a == name}
    graph = walk.draft.finish(replaced)
    if wanted:
        _check_delays(graph, wanted)
    return graph


def _check_delays(graph: nir.NIRGraph, wanted: set[tuple[str, str]]) -> None:
    """The delays of forward are those of the graph, but for moves through nodes without state.

    Delaying what goes into a stateless node is delaying what comes out of it. So each such node may be `early` by
    some steps, all others by none, and for every edge early(target) - early(source) must be the difference of the
    delays (retiming, Leiserson and Saxe 1991).
    """
    found = {(".".join(a), ".".join(b)) for a, b in schedule(graph).feedback}
    early = {name: 0 for name, node in graph.nodes.items() if _anchored(node)}
    neighbours: dict[str, list[tuple[str, int]]] = {}
    for source, target in graph.edges:
        moved = ((source, target) in found) - ((source, target) in wanted)
        neighbours.setdefault(source, []).append((target, moved))
        neighbours.setdefault(target, []).append((source, -moved))
    waiting = list(early)
    while waiting:
        name = waiting.pop()
        for other, moved in neighbours.get(name, []):
            if other not in early:
                early[other] = early[name] + moved
                waiting.append(other)
            elif early[other] != early[name] + moved:
                raise ConversionError(
                    f"recurrence through the state delays {sorted(wanted)}, but in a NIR graph of this form the "
                    f"delayed edges are {sorted(found)}",
                    remedy="Feed the earlier output into the layer that the input enters first.",
                )


def _anchored(node: nir.NIRNode) -> bool:
    return keeps_state(node) or isinstance(node, nir.Input | nir.Output)
