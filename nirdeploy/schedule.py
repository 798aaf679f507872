"""Execution order of a graph: subgraphs dissolved, feedback edges chosen by the graph alone.

A node is named by its path, a tuple: ('lif',) at the top, ('sub', 'lif') inside the subgraph 'sub'.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import nir

from nirdeploy.errors import GraphError, UnsupportedError
from nirdeploy.nodes import keeps_state

__all__ = ["NodePath", "Schedule", "dotted", "feedback_key", "lateness", "schedule"]

NodePath = tuple[str, ...]
PathEdge = tuple[NodePath, NodePath]


@dataclass(frozen=True)
class Schedule:
    """A graph as it is executed.

    Attributes:
        nodes: every node but the wires (Inputs and Outputs of subgraphs), by path.
        order: paths in execution order: topological without the feedback edges, ties by name.
        sources: for each node what feeds it in name order, feedback included; twice where two routes lead there.
        feedback: edges that carry their source's previous output, in name order.
        inputs: the graph's Inputs, in name order.
        outputs: the graph's Outputs, in name order.
    """

    nodes: Mapping[NodePath, nir.NIRNode]
    order: tuple[NodePath, ...]
    sources: Mapping[NodePath, tuple[NodePath, ...]]
    feedback: tuple[PathEdge, ...]
    inputs: tuple[NodePath, ...]
    outputs: tuple[NodePath, ...]


def dotted(path: NodePath) -> str:
    """A path for people: 'sub.lif'."""
    return ".".join(path)


def feedback_key(source: NodePath, target: NodePath) -> str:
    """The entry of a feedback edge in a state: 'source->target'."""
    return f"{dotted(source)}->{dotted(target)}"


def schedule(
    graph: nir.NIRGraph, feedback: Iterable[tuple[str, str]] | None = None, *, population_delay: int = 0
) -> Schedule:
    """The execution order of a graph.

    Args:
        graph: a valid graph.
        feedback: dotted edges to treat as feedback instead of the rule's choice.
        population_delay: 1: every edge into a node with state is a feedback edge, which cuts the cycles through it.

    Raises:
        GraphError: a loop of wires alone, or given feedback edges that leave a cycle or do not exist.
        UnsupportedError: a subgraph with several Inputs or Outputs inside another graph, where NIR's edges do not
            say which one they mean.
    """
    nodes, edges = _dissolve(graph)
    inputs = tuple(sorted(p for p, n in nodes.items() if isinstance(n, nir.Input)))
    outputs = tuple(sorted(p for p, n in nodes.items() if isinstance(n, nir.Output)))
    delayed = [edge for edge in edges if population_delay and keeps_state(nodes[edge[1]])]
    late = set(delayed)
    direct = [edge for edge in edges if edge not in late]
    back = _feedback(nodes, direct, inputs, outputs) if feedback is None else _given(edges, feedback)
    cut = late.union(back)
    back = sorted(cut)
    order = _order(nodes, [edge for edge in edges if edge not in cut])
    sources: dict[NodePath, list[NodePath]] = {path: [] for path in nodes}
    for source, target in edges:
        sources[target].append(source)
    named = {path: tuple(sorted(found)) for path, found in sources.items()}
    return Schedule(nodes, order, named, tuple(back), inputs, outputs)


def lateness(plan: Schedule, slow: Collection[NodePath]) -> dict[NodePath, int]:
    """With population_delay=1, how many steps each node is late: those of `slow` on the shortest way from an Input.

    Nodes that no Input reaches are left out.
    """
    after: dict[NodePath, list[NodePath]] = {}
    for target, sources in plan.sources.items():
        for source in sources:
            after.setdefault(source, []).append(target)
    found = dict.fromkeys(plan.inputs, 0)
    waiting = list(plan.inputs)
    while waiting:
        path = waiting.pop(0)
        for target in after.get(path, []):
            late = found[path] + (target in slow)
            if late < found.get(target, 1 << 30):
                found[target] = late
                waiting.append(target)
    return found


# ---------------------------------------------------------------- subgraphs


def _dissolve(graph: nir.NIRGraph) -> tuple[dict[NodePath, nir.NIRNode], list[PathEdge]]:
    """Flat nodes and edges; the Inputs and Outputs of subgraphs are wires and vanish."""
    nodes: dict[NodePath, nir.NIRNode] = {}
    edges: list[PathEdge] = []
    wires: set[NodePath] = set()
    _collect(graph, (), nodes, edges, wires)
    if not wires:
        return nodes, edges
    into: dict[NodePath, list[NodePath]] = {}
    for source, target in edges:
        into.setdefault(target, []).append(source)
    resolved: dict[NodePath, list[NodePath]] = {}

    def behind(wire: NodePath, trail: tuple[NodePath, ...]) -> list[NodePath]:
        """Nodes whose outputs a wire carries; several times where several routes lead there."""
        if wire in trail:
            raise GraphError("a loop of Inputs and Outputs without a node in it", node=dotted(wire))
        if wire not in resolved:
            resolved[wire] = [
                node
                for source in into.get(wire, [])
                for node in (behind(source, (*trail, wire)) if source in wires else [source])
            ]
        return resolved[wire]

    for wire in sorted(wires):
        behind(wire, ())  # also those that lead nowhere: a loop of wires is refused wherever it is
    flat = [
        (node, target)
        for source, target in edges
        if target not in wires
        for node in (behind(source, ()) if source in wires else [source])
    ]
    return {path: node for path, node in nodes.items() if path not in wires}, flat


def _collect(
    graph: nir.NIRGraph,
    prefix: NodePath,
    nodes: dict[NodePath, nir.NIRNode],
    edges: list[PathEdge],
    wires: set[NodePath],
) -> None:
    enter: dict[str, NodePath] = {}
    leave: dict[str, NodePath] = {}
    for name, node in graph.nodes.items():
        path = (*prefix, name)
        if not isinstance(node, nir.NIRGraph):
            nodes[path] = node
            if prefix and isinstance(node, nir.Input | nir.Output):
                wires.add(path)
            continue
        _collect(node, path, nodes, edges, wires)
        enter[name] = (*path, _only(node, nir.Input, path))
        leave[name] = (*path, _only(node, nir.Output, path))
    for source, target in graph.edges:
        edges.append((leave.get(source, (*prefix, source)), enter.get(target, (*prefix, target))))


def _only(graph: nir.NIRGraph, kind: type[nir.NIRNode], path: NodePath) -> str:
    found = sorted(name for name, node in graph.nodes.items() if isinstance(node, kind))
    if len(found) != 1:
        raise UnsupportedError(
            f"a subgraph with {len(found)} {kind.__name__} nodes ({', '.join(found)}); NIR's edges cannot say which "
            "one they mean",
            node=dotted(path),
            remedy="Give it exactly one.",
        )
    only: str = found[0]
    return only


# ---------------------------------------------------------------- feedback and order


def _digraph(nodes: Iterable[NodePath], edges: Iterable[PathEdge]) -> Any:
    import networkx as nx  # imported on first use: 0.2 s

    digraph = nx.DiGraph()
    digraph.add_nodes_from(sorted(nodes))
    digraph.add_edges_from(sorted(edges))
    return digraph


def _cyclic(digraph: Any) -> list[set[NodePath]]:
    import networkx as nx

    return [
        component
        for component in nx.strongly_connected_components(digraph)
        if len(component) > 1 or any(digraph.has_edge(n, n) for n in component)
    ]


def _distances(digraph: Any, starts: tuple[NodePath, ...]) -> dict[NodePath, int]:
    """Edges from the nearest of `starts` to every node they reach."""
    found = dict.fromkeys(starts, 0)
    layer = list(starts)
    while layer:
        following = []
        for node in layer:
            for target in digraph.successors(node):
                if target not in found:
                    found[target] = found[node] + 1
                    following.append(target)
        layer = following
    return found


def _feedback(
    nodes: Mapping[NodePath, nir.NIRNode],
    edges: list[PathEdge],
    inputs: tuple[NodePath, ...],
    outputs: tuple[NodePath, ...],
) -> list[PathEdge]:
    """In each cyclic strongly connected component the edges into its entry; removed, and again.

    Candidates are the component's nodes fed from outside (if none: all). The entry is the one with the smallest
    (edges from the nearest Input minus edges to the nearest Output), then the fewest edges from an Input, then the
    first name; unreachable counts as node count + 1.
    """
    digraph = _digraph(nodes, edges)
    waiting = _cyclic(digraph)
    if not waiting:
        return []
    far = len(nodes) + 1
    from_input = _distances(digraph, inputs)
    to_output = _distances(digraph.reverse(copy=True), outputs)

    def rank(path: NodePath) -> tuple[int, int, NodePath]:
        start = from_input.get(path, far)
        return (start - to_output.get(path, far), start, path)

    found: list[PathEdge] = []
    while waiting:
        component = waiting.pop()
        fed = [n for n in component if any(p not in component for p in digraph.predecessors(n))]
        entry = min(fed or component, key=rank)
        back = [(p, entry) for p in digraph.predecessors(entry) if p in component]
        digraph.remove_edges_from(back)
        found.extend(back)
        waiting.extend(_cyclic(digraph.subgraph(component)))
    return found


def _given(edges: list[PathEdge], feedback: Iterable[tuple[str, str]]) -> list[PathEdge]:
    known = {(dotted(a), dotted(b)): (a, b) for a, b in edges}
    found = []
    for source, target in feedback:
        if (source, target) not in known:
            raise GraphError(f"feedback edge {source!r} -> {target!r} does not exist")
        found.append(known[source, target])
    return found


def _order(nodes: Mapping[NodePath, nir.NIRNode], forward: list[PathEdge]) -> tuple[NodePath, ...]:
    import networkx as nx

    try:
        return tuple(nx.lexicographical_topological_sort(_digraph(nodes, forward)))
    except nx.NetworkXUnfeasible as error:
        raise GraphError("the given feedback edges leave a cycle", remedy="Name one edge of every cycle.") from error
